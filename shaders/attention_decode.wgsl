// Attention of single rows over the paged cache: softmax(scale * q . K) V over positions lo..pos, with lo from the window; softcap:
// s = cap * tanh(s / cap). A workgroup takes G neighbouring heads of a row that share keys and values, and every splits-th tile of WG
// positions, with an online softmax over its tiles. One split writes y; SPLIT: each writes its own top, total and sum, which attention_combine
// puts together, and those without a tile write nothing. Any length; head_dim a multiple of 4, at most 4 * WG.
override WG: u32 = 128u;
override HEAD_DIM: u32 = 64u;
override G: u32 = 1u;
#import thread
#import state
#import activation
struct Params {
    groups: u32, n_head: u32, n_kv: u32, block_tokens: u32, table_stride: u32, window: u32, splits: u32, scale: f32, softcap: f32,
}
@group(0) @binding(auto) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(auto) var<storage, read> rows: array<Row>;
@group(0) @binding(auto) var<storage, read> tables: array<u32>;
// SPLIT: [row, head, split] of head_dim, else [row, head].
@group(0) @binding(auto) var<storage, read_write> y: array<vec4<f32>>;
#if SPLIT
// (Largest score, sum of weights) of each row, head and split.
@group(0) @binding(auto) var<storage, read_write> tops: array<vec2<f32>>;
#endif
#slot kv

var<workgroup> qs: array<vec4<f32>, HEAD_DIM / 4u * G>;
// Of the positions of a tile: the weights of the heads, and where the position stands in the cache.
var<workgroup> weights: array<vec4<f32>, WG>;
var<workgroup> places: array<u32, WG>;
var<workgroup> scratch: array<vec4<f32>, WG>;
const LOWEST: f32 = -3.4028234e38;

fn all_max(v: vec4<f32>, t: Thread) -> vec4<f32> {
    workgroupBarrier();
#if SUBGROUPS
    let s = subgroupMax(v);
    if (t.lane == 0u) { scratch[t.sg] = s; }
    workgroupBarrier();
    var best = scratch[0];
    for (var i = 1u; i < t.n_sg; i++) { best = max(best, scratch[i]); }
    return best;
#else
    scratch[t.lid] = v;
    workgroupBarrier();
    for (var n = WG / 2u; n > 0u; n /= 2u) {
        if (t.lid < n) { scratch[t.lid] = max(scratch[t.lid], scratch[t.lid + n]); }
        workgroupBarrier();
    }
    return scratch[0];
#endif
}

fn all_sum(v: vec4<f32>, t: Thread) -> vec4<f32> {
    workgroupBarrier();
#if SUBGROUPS
    let s = subgroupAdd(v);
    if (t.lane == 0u) { scratch[t.sg] = s; }
    workgroupBarrier();
    var total = scratch[0];
    for (var i = 1u; i < t.n_sg; i++) { total += scratch[i]; }
    return total;
#else
    scratch[t.lid] = v;
    workgroupBarrier();
    for (var n = WG / 2u; n > 0u; n /= 2u) {
        if (t.lid < n) { scratch[t.lid] += scratch[t.lid + n]; }
        workgroupBarrier();
    }
    return scratch[0];
#endif
}

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let g = group_index(t);
    if (g >= params.groups) { return; }
    let d4 = HEAD_DIM / 4u;
    let split = g % params.splits;
    let head_groups = params.n_head / G;
    let row = g / params.splits / head_groups;
    let head0 = (g / params.splits % head_groups) * G;
    let kv_head = head0 / (params.n_head / params.n_kv);
    let pos = rows[row].pos;
    let table = rows[row].slot * params.table_stride;
    var lo = 0u;
    if (params.window != 0u && pos + 1u > params.window) { lo = pos + 1u - params.window; }
    let tiles = (pos + WG - lo) / WG;
    if (split >= tiles) { return; }
    let q0 = (row * params.n_head + head0) * d4;
    for (var i = t.lid; i < d4 * G; i += WG) { qs[i] = q[q0 + i]; }
    // For the values: thread (v_group, v_dim) takes every v_groups-th position.
    let v_groups = WG / d4;
    let v_dim = t.lid % d4;
    let v_group = t.lid / d4;
    var top = vec4<f32>(LOWEST);
    var total = vec4<f32>(0.0);
    var acc: array<vec4<f32>, 4>;
    for (var c = 0u; c < G; c++) { acc[c] = vec4<f32>(0.0); }
    workgroupBarrier();
    for (var tile = split; tile < tiles; tile += params.splits) {
        let base = lo + tile * WG;
        let p = base + t.lid;
        var score = vec4<f32>(LOWEST);
        if (p <= pos) {
            let block = tables[table + p / params.block_tokens];
            let at = (block * params.n_kv + kv_head) * params.block_tokens + p % params.block_tokens;
            places[t.lid] = at;
            var s: array<f32, 4>;
            for (var c = 0u; c < 4u; c++) { s[c] = 0.0; }
            for (var i = 0u; i < d4; i++) {
                let k = k_load4(at, i);
                for (var c = 0u; c < G; c++) { s[c] += dot(qs[c * d4 + i], k); }
            }
            score = params.scale * vec4<f32>(s[0], s[1], s[2], s[3]);
            if (params.softcap > 0.0) {
                for (var c = 0u; c < 4u; c++) { score[c] = params.softcap * safe_tanh(score[c] / params.softcap); }
            }
        }
        let new_top = max(top, all_max(score, t));
        let weight = select(vec4<f32>(0.0), exp(score - new_top), p <= pos);
        weights[t.lid] = weight;
        let rescale = exp(top - new_top);
        total = total * rescale + weight;
        for (var c = 0u; c < G; c++) { acc[c] *= rescale[c]; }
        top = new_top;
        workgroupBarrier();
        let n = min(pos + 1u - base, WG);
        if (v_group < v_groups) {
            for (var j = v_group; j < n; j += v_groups) {
                let v = v_load4(places[j], v_dim);
                let w = weights[j];
                for (var c = 0u; c < G; c++) { acc[c] += w[c] * v; }
            }
        }
        workgroupBarrier();
    }
    total = all_sum(total, t);
    for (var c = 0u; c < G; c++) {
        workgroupBarrier();
        scratch[t.lid] = acc[c];
        workgroupBarrier();
        if (t.lid < d4) {
            var s = vec4<f32>(0.0);
            for (var j = 0u; j < v_groups; j++) { s += scratch[j * d4 + t.lid]; }
#if SPLIT
            let part = (row * params.n_head + head0 + c) * params.splits + split;
            y[part * d4 + t.lid] = s;
            if (t.lid == 0u) { tops[part] = vec2<f32>(top[c], total[c]); }
#else
            y[q0 + c * d4 + t.lid] = s / total[c];
#endif
        }
    }
}
