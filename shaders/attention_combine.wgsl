// Puts the splits of attention_decode together: y[row, head, :] = sum_s e^(top_s - top) sum_s / sum_s e^(top_s - top) total_s over the splits
// that have a tile. A workgroup makes SPAN vectors of a row's head: groups of so many threads take every so many-th split, then what they have is put
// together. CHAIN_IN: the splits are those of an earlier stage of a chain.
// SINKS: one more logit a head that has no value.
// BYTES: y is written as rows of signed bytes as well; head_dim is a multiple of 32 then.
override WG: u32 = 128u;
override HEAD_DIM: u32 = 64u;
override SPAN: u32 = 16u;
// Positions of a tile.
override TILE: u32 = 32u;
// A size that no subgroup is below.
override LEAST_SUBGROUP: u32 = 1u;
#import thread
#import state
struct Params { n_head: u32, window: u32, splits: u32 }
@group(0) @binding(auto) var<storage, read> rows: array<Row>;
#if CHAIN_IN
#import chain_parts
#else
@group(0) @binding(auto) var<storage, read> sums: array<vec4<f32>>;
@group(0) @binding(auto) var<storage, read> tops: array<vec2<f32>>;
struct Part { sum: vec4<f32>, top: f32, weights: f32 }
fn part_receive(i: u32) -> Part {
    let d4 = HEAD_DIM / 4u;
    let top = tops[i / d4];
    return Part(sums[i], top.x, top.y);
}
#endif
@group(0) @binding(auto) var<storage, read_write> y: array<vec4<f32>>;
#if BYTES
override BYTE_THREADS: u32 = SPAN;
#set NEIGHBOURS
override BYTE_TOGETHER: u32 = LEAST_SUBGROUP;
#import byte_rows
#endif
#if SINKS
@group(0) @binding(auto) var<storage, read> sinks: array<f32>;
#endif
// Of a thread's splits: the sum, and the largest score and the sum of weights relative to it.
#if CHAIN_IN
// Attention's own memory: a workgroup is of one stage, and with more of it a device runs fewer at a time.
var<workgroup> scratch: array<vec4<f32>, WG>;
var<workgroup> fresh: array<f32, 2u * WG>;
fn leave(i: u32, sum: vec4<f32>, top: vec2<f32>) {
    scratch[i] = sum;
    fresh[2u * i] = top.x;
    fresh[2u * i + 1u] = top.y;
}
fn left_sum(i: u32) -> vec4<f32> { return scratch[i]; }
fn left_top(i: u32) -> vec2<f32> { return vec2<f32>(fresh[2u * i], fresh[2u * i + 1u]); }
#else
var<workgroup> parts: array<vec4<f32>, WG>;
var<workgroup> part_tops: array<vec2<f32>, WG>;
fn leave(i: u32, sum: vec4<f32>, top: vec2<f32>) {
    parts[i] = sum;
    part_tops[i] = top;
}
fn left_sum(i: u32) -> vec4<f32> { return parts[i]; }
fn left_top(i: u32) -> vec2<f32> { return part_tops[i]; }
#endif
const LOWEST: f32 = -3.4028234e38;

// The grid is [heads * spans of a head, rows].
@compute @workgroup_size(WG)
fn main(t: Thread) {
    let d4 = HEAD_DIM / 4u;
    let row = t.wid.y;
    let head = t.wid.x * SPAN / d4;
    let place = place_of(t);
    let i = t.wid.x * SPAN % d4 + place % SPAN;
    let first = (row * params.n_head + head) * params.splits;
    let s_groups = WG / SPAN;
    let s_group = place / SPAN;
    var s = s_group;
#if !CHAIN_IN
    // The first are asked for before it is known how many there are.
    var part = part_receive((first + min(s, params.splits - 1u)) * d4 + i);
#endif
    var seen = rows[row].pos + 1u;
    if (params.window != 0u) { seen = min(seen, params.window); }
    let n = min((seen + TILE - 1u) / TILE, params.splits);
    var top = LOWEST;
    var total = 0.0;
    var sum = vec4<f32>(0.0);
    while (s < n && s_group < s_groups) {
#if CHAIN_IN
        let part = part_receive((first + s) * d4 + i);
#endif
        let new_top = max(top, part.top);
        let keep = exp(top - new_top);
        let weight = exp(part.top - new_top);
        total = total * keep + weight * part.weights;
        sum = sum * keep + weight * part.sum;
        top = new_top;
        s += s_groups;
#if !CHAIN_IN
        part = part_receive((first + min(s, params.splits - 1u)) * d4 + i);
#endif
    }
    // Groups whose threads are of one subgroup are put together there (SPAN being a power of two, WG a multiple of both), those that are left in memory.
#if SUBGROUPS
#if CHAIN_IN
    // Threads have waited each for itself.
    workgroupBarrier();
#endif
    var left = s_groups;
    let shuffles = (SPAN & (SPAN - 1u)) == 0u;
    for (var apart = SPAN; shuffles && apart < LEAST_SUBGROUP; apart *= 2u) {
        let new_top = max(top, subgroupShuffleXor(top, apart));
        let keep = exp(top - new_top);
        total *= keep;
        total += subgroupShuffleXor(total, apart);
        sum *= keep;
        sum += subgroupShuffleXor(sum, apart);
        top = new_top;
        left /= 2u;
    }
    let each = s_groups / left;
    if (s_group % each == 0u) { leave(s_group / each * SPAN + place % SPAN, sum, vec2<f32>(top, total)); }
#else
    let left = s_groups;
    leave(place, sum, vec2<f32>(top, total));
#endif
    workgroupBarrier();
    let on = place < SPAN;
    if (on) {
        var all = top;
        for (var s = 1u; s < left; s++) { all = max(all, left_top(s * SPAN + place).x); }
#if SINKS
        all = max(all, sinks[head]);
#endif
        sum *= exp(top - all);
        total *= exp(top - all);
        for (var s = 1u; s < left; s++) {
            let other = left_top(s * SPAN + place);
            let weight = exp(other.x - all);
            total += weight * other.y;
            sum += weight * left_sum(s * SPAN + place);
        }
#if SINKS
        total += exp(sinks[head] - all);
#endif
        sum /= total;
        y[row * params.n_head * d4 + t.wid.x * SPAN + place] = sum;
    }
#if BYTES
    let width = params.n_head * d4;
    byte_store(t, on, row, width / 8u, t.wid.x * SPAN + place, sum);
#endif
}
