// Puts the splits of attention_decode together: y[row, head, :] = sum_s e^(top_s - top) sum_s / sum_s e^(top_s - top) total_s over the splits
// that have a tile. One workgroup a row and head: groups of d4 threads take every so many-th split, then what they have is put together.
// SINKS: one more logit a head that has no value.
// BYTES: y is written as rows of signed bytes as well; head_dim is a multiple of 32 then.
override WG: u32 = 128u;
override HEAD_DIM: u32 = 64u;
// Positions of a tile.
override TILE: u32 = 32u;
#import thread
#import state
struct Params { n_head: u32, window: u32, splits: u32 }
@group(0) @binding(auto) var<storage, read> rows: array<Row>;
@group(0) @binding(auto) var<storage, read> sums: array<vec4<f32>>;
@group(0) @binding(auto) var<storage, read> tops: array<vec2<f32>>;
@group(0) @binding(auto) var<storage, read_write> y: array<vec4<f32>>;
#if BYTES
override BYTE_THREADS: u32 = HEAD_DIM / 4u;
#import byte_rows
#endif
#if SINKS
@group(0) @binding(auto) var<storage, read> sinks: array<f32>;
#endif
var<workgroup> parts: array<vec4<f32>, WG>;
// Of a thread's splits: the largest score, and the sum of weights relative to it.
var<workgroup> part_tops: array<vec2<f32>, WG>;
const LOWEST: f32 = -3.4028234e38;

// The grid is [heads, rows].
@compute @workgroup_size(WG)
fn main(t: Thread) {
    let d4 = HEAD_DIM / 4u;
    let row = t.wid.y;
    let g = row * params.n_head + t.wid.x;
    let first = g * params.splits;
    let s_groups = WG / d4;
    let s_group = t.lid / d4;
    let i = t.lid % d4;
    // The first are asked for before it is known how many there are.
    var s = s_group;
    var at = first + min(s, params.splits - 1u);
    var part = tops[at];
    var value = sums[at * d4 + i];
    var seen = rows[row].pos + 1u;
    if (params.window != 0u) { seen = min(seen, params.window); }
    let n = min((seen + TILE - 1u) / TILE, params.splits);
    var top = LOWEST;
    var total = 0.0;
    var sum = vec4<f32>(0.0);
    while (s < n && s_group < s_groups) {
        let new_top = max(top, part.x);
        let keep = exp(top - new_top);
        let weight = exp(part.x - new_top);
        total = total * keep + weight * part.y;
        sum = sum * keep + weight * value;
        top = new_top;
        s += s_groups;
        at = first + min(s, params.splits - 1u);
        part = tops[at];
        value = sums[at * d4 + i];
    }
    parts[t.lid] = sum;
    part_tops[t.lid] = vec2<f32>(top, total);
    workgroupBarrier();
    let on = t.lid < d4;
    if (on) {
        var all = top;
        for (var s = 1u; s < s_groups; s++) { all = max(all, part_tops[s * d4 + t.lid].x); }
#if SINKS
        all = max(all, sinks[t.wid.x]);
#endif
        sum *= exp(top - all);
        total *= exp(top - all);
        for (var s = 1u; s < s_groups; s++) {
            let other = part_tops[s * d4 + t.lid];
            let weight = exp(other.x - all);
            total += weight * other.y;
            sum += weight * parts[s * d4 + t.lid];
        }
#if SINKS
        total += exp(sinks[t.wid.x] - all);
#endif
        sum /= total;
        y[g * d4 + t.lid] = sum;
    }
#if BYTES
    let width = params.n_head * d4;
    byte_store(t, on, row, width / 8u, t.wid.x * d4 + t.lid, sum);
#endif
}
