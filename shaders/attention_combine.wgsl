// Puts the splits of attention_decode together: y[row, head, :] = sum_s e^(top_s - top) sum_s / sum_s e^(top_s - top) total_s over the splits
// that have a tile. One workgroup a row and head: groups of d4 threads take every so many-th split, then what they have is put together.
// SINKS: one more logit a head that has no value.
// BYTES: y is written as rows of signed bytes as well; head_dim is a multiple of 32 then.
override WG: u32 = 128u;
#import thread
#import state
struct Params { groups: u32, n_head: u32, d4: u32, window: u32, splits: u32, tile: u32 }
@group(0) @binding(auto) var<storage, read> rows: array<Row>;
@group(0) @binding(auto) var<storage, read> sums: array<vec4<f32>>;
@group(0) @binding(auto) var<storage, read> tops: array<vec2<f32>>;
@group(0) @binding(auto) var<storage, read_write> y: array<vec4<f32>>;
#if BYTES
override BYTE_THREADS: u32 = WG;
#import byte_rows
#endif
#if SINKS
@group(0) @binding(auto) var<storage, read> sinks: array<f32>;
#endif
var<workgroup> parts: array<vec4<f32>, WG>;
// Of a thread's splits: the largest score, and the sum of weights relative to it.
var<workgroup> part_tops: array<vec2<f32>, WG>;
const LOWEST: f32 = -3.4028234e38;

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let g = group_index(t);
    if (g >= params.groups) { return; }
    let row = g / params.n_head;
    let first = g * params.splits;
    let s_groups = WG / params.d4;
    let s_group = t.lid / params.d4;
    let i = t.lid % params.d4;
    var seen = rows[row].pos + 1u;
    if (params.window != 0u) { seen = min(seen, params.window); }
    let n = min((seen + params.tile - 1u) / params.tile, params.splits);
    var top = LOWEST;
    var total = 0.0;
    var sum = vec4<f32>(0.0);
    if (s_group < s_groups) {
        for (var s = s_group; s < n; s += s_groups) {
            // Both loads at once; the order of the sums is that of the splits.
            let part = tops[first + s];
            let value = sums[(first + s) * params.d4 + i];
            let new_top = max(top, part.x);
            let keep = exp(top - new_top);
            let weight = exp(part.x - new_top);
            total = total * keep + weight * part.y;
            sum = sum * keep + weight * value;
            top = new_top;
        }
    }
    parts[t.lid] = sum;
    part_tops[t.lid] = vec2<f32>(top, total);
    workgroupBarrier();
    let on = t.lid < params.d4;
    if (on) {
        var all = top;
        for (var s = 1u; s < s_groups; s++) { all = max(all, part_tops[s * params.d4 + t.lid].x); }
#if SINKS
        all = max(all, sinks[g % params.n_head]);
#endif
        sum *= exp(top - all);
        total *= exp(top - all);
        for (var s = 1u; s < s_groups; s++) {
            let other = part_tops[s * params.d4 + t.lid];
            let weight = exp(other.x - all);
            total += weight * other.y;
            sum += weight * parts[s * params.d4 + t.lid];
        }
#if SINKS
        total += exp(sinks[g % params.n_head] - all);
#endif
        sum /= total;
        y[g * params.d4 + t.lid] = sum;
    }
#if BYTES
    let width = params.n_head * params.d4;
    byte_store(t, on, row, width / 8u, g % params.n_head * params.d4 + t.lid, sum);
#endif
}
