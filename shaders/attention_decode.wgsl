// Attention of single rows over the paged cache: one workgroup a row and head, online softmax over tiles of WG positions.
// y[t, head, :] = softmax(scale * q . K) V over positions lo..pos, with lo from the window; softcap: s = cap * tanh(s / cap).
// Any length; head_dim a multiple of 4, at most 4 * WG.
override WG: u32 = 64u;
override HEAD_DIM: u32 = 64u;
#import reduce
#import state
#import activation
struct Params {
    groups: u32, t_rows: u32, n_head: u32, n_kv: u32, block_tokens: u32, table_stride: u32, window: u32, scale: f32,
    softcap: f32,
}
@group(0) @binding(auto) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(auto) var<storage, read> rows: array<Row>;
@group(0) @binding(auto) var<storage, read> tables: array<u32>;
@group(0) @binding(auto) var<storage, read_write> y: array<vec4<f32>>;
#slot kv
#if SINKS
// A logit for each query head that takes part in the softmax and has no value.
@group(0) @binding(auto) var<storage, read> sinks: array<f32>;
#endif

var<workgroup> qs: array<vec4<f32>, HEAD_DIM / 4u>;
var<workgroup> weights: array<f32, WG>;
var<workgroup> index: array<u32, WG>;
var<workgroup> sums: array<vec4<f32>, WG>;
const LOWEST: f32 = -3.4028234e38;

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let g = group_index(t);
    if (g >= params.groups) { return; }
    let d4 = HEAD_DIM / 4u;
    let row = g / params.n_head;
    let head = g % params.n_head;
    let kv_head = head / (params.n_head / params.n_kv);
    let pos = rows[row].pos;
    let table = rows[row].slot * params.table_stride;
    for (var i = t.lid; i < d4; i += WG) { qs[i] = q[g * d4 + i]; }
    // For the values: thread (group v_group, dimension v_dim) takes every v_groups-th position.
    let v_groups = WG / d4;
    let v_dim = t.lid % d4;
    let v_group = t.lid / d4;
    var top = LOWEST;
    var total = 0.0;
#if SINKS
    top = sinks[head];
    total = 1.0;
#endif
    var acc = vec4<f32>(0.0);
    var lo = 0u;
    if (params.window != 0u && pos + 1u > params.window) { lo = pos + 1u - params.window; }
    workgroupBarrier();
    for (var base = lo; base <= pos; base += WG) {
        let p = base + t.lid;
        var score = LOWEST;
        if (p <= pos) {
            let block = tables[table + p / params.block_tokens];
            let at = (block * params.n_kv + kv_head) * params.block_tokens + p % params.block_tokens;
            index[t.lid] = at;
            var s = 0.0;
            for (var i = 0u; i < d4; i++) { s += dot(qs[i], k_load4(at, i)); }
            s *= params.scale;
            if (params.softcap > 0.0) { s = params.softcap * safe_tanh(s / params.softcap); }
            score = s;
        }
        let new_top = max(top, workgroup_max(score, t));
        let weight = select(0.0, exp(score - new_top), p <= pos);
        weights[t.lid] = weight;
        let rescale = exp(top - new_top);
        total = total * rescale + workgroup_sum(weight, t);
        acc *= rescale;
        top = new_top;
        workgroupBarrier();
        let n = min(pos + 1u - base, WG);
        if (v_group < v_groups) {
            for (var j = v_group; j < n; j += v_groups) { acc += weights[j] * v_load4(index[j], v_dim); }
        }
        workgroupBarrier();
    }
    sums[t.lid] = acc;
    workgroupBarrier();
    if (t.lid < d4) {
        var s = vec4<f32>(0.0);
        for (var j = 0u; j < v_groups; j++) { s += sums[j * d4 + t.lid]; }
        y[g * d4 + t.lid] = s / total;
    }
}
