// Puts the splits of attention_decode together: y[row, head, :] = sum_s e^(top_s - top) sum_s / sum_s e^(top_s - top) total_s over the splits
// that have a tile, at most WG of them. One workgroup a row and head. SINKS: one more logit a head that has no value.
// BYTES: y is written as rows of signed bytes as well; head_dim is a multiple of 32 then.
override WG: u32 = 128u;
#import reduce
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
var<workgroup> weights: array<f32, WG>;
var<workgroup> parts: array<vec4<f32>, WG>;
const LOWEST: f32 = -3.4028234e38;

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let g = group_index(t);
    if (g >= params.groups) { return; }
    let row = g / params.n_head;
    var seen = rows[row].pos + 1u;
    if (params.window != 0u) { seen = min(seen, params.window); }
    let n = min((seen + params.tile - 1u) / params.tile, params.splits);
    let first = g * params.splits;
    var own = vec2<f32>(LOWEST, 0.0);
    if (t.lid < n) { own = tops[first + t.lid]; }
    var top = workgroup_max(own.x, t);
#if SINKS
    top = max(top, sinks[g % params.n_head]);
#endif
    let weight = exp(own.x - top);
    weights[t.lid] = weight;
    var total = workgroup_sum(weight * own.y, t);
#if SINKS
    total += exp(sinks[g % params.n_head] - top);
#endif
    let s_groups = WG / params.d4;
    let s_group = t.lid / params.d4;
    let i = t.lid % params.d4;
    var sum = vec4<f32>(0.0);
    if (s_group < s_groups) {
        for (var s = s_group; s < n; s += s_groups) { sum += weights[s] * sums[(first + s) * params.d4 + i]; }
    }
    parts[t.lid] = sum;
    workgroupBarrier();
    let on = t.lid < params.d4;
    if (on) {
        for (var s = 1u; s < s_groups; s++) { sum += parts[s * params.d4 + t.lid]; }
        sum /= total;
        y[g * params.d4 + t.lid] = sum;
    }
#if BYTES
    let width = params.n_head * params.d4;
    byte_store(t, on, row, width / 8u, g % params.n_head * params.d4 + t.lid, sum);
#endif
}
