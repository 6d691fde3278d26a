// Attention of single rows over the paged cache: softmax(scale * q . K) V over positions lo..pos, with lo from the window; softcap:
// s = cap * tanh(s / cap). A workgroup takes G neighbouring heads of a row that share keys and values, and every splits-th tile of WG / 4
// positions, with an online softmax over its tiles. One split writes y; SPLIT: each writes its own top, total and sum, which attention_combine
// puts together, and those without a tile write nothing. Any length; head_dim a multiple of 4, at most 4 * WG.
// FRESH: q, k and v come as the product made them: heads are normalised (QK_NORM) and rotated here, as qk_norm.wgsl and rope.wgsl do, and k
// and v written to their page; the rows of a batch are of different sequences.
override WG: u32 = 128u;
override HEAD_DIM: u32 = 64u;
override G: u32 = 1u;
#import thread
#import state
struct Params {
    groups: u32, n_head: u32, n_kv: u32, block_tokens: u32, table_stride: u32, window: u32, splits: u32, scale: f32, softcap: f32,
    x_stride4: u32, x_offset4: u32, n_rot: u32, eps: f32,
}
#if FRESH
// [row, q heads, k heads, v heads]
@group(0) @binding(auto) var<storage, read> qkv: array<vec4<f32>>;
@group(0) @binding(auto) var<storage, read> angles: array<vec2<f32>>;
#if QK_NORM
@group(0) @binding(auto) var<storage, read> q_w: array<f32>;
@group(0) @binding(auto) var<storage, read> k_w: array<f32>;
#endif
#else
@group(0) @binding(auto) var<storage, read> q: array<vec4<f32>>;
#endif
@group(0) @binding(auto) var<storage, read> rows: array<Row>;
@group(0) @binding(auto) var<storage, read> tables: array<u32>;
// SPLIT: [row, head, split] of head_dim, else [row, head].
@group(0) @binding(auto) var<storage, read_write> y: array<vec4<f32>>;
#if SPLIT
// (Largest score, sum of weights) of each row, head and split.
@group(0) @binding(auto) var<storage, read_write> tops: array<vec2<f32>>;
#endif

// Threads of a position's score, and vectors of values that a thread asks for before the scores are there.
const ATTENTION_TEAM: u32 = 4u;
const ATTENTION_AHEAD: u32 = 8u;
#if FRESH
fn fresh_load(row: u32, i: u32) -> vec4<f32> { return qkv[row * params.x_stride4 + params.x_offset4 + i]; }
#endif
#import attention_row
#if SINKS
// A logit for each query head that takes part in the softmax and has no value.
@group(0) @binding(auto) var<storage, read> sinks: array<f32>;
#endif

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let g = group_index(t);
    if (g >= params.groups) { return; }
    let d4 = HEAD_DIM / 4u;
    let split = g % params.splits;
    let head_groups = params.n_head / G;
    let row = g / params.splits / head_groups;
    let head0 = (g / params.splits % head_groups) * G;
    let pos = rows[row].pos;
    let slot = rows[row].slot;
    if (split >= count_tiles(pos)) { return; }
    let q0 = (row * params.n_head + head0) * d4;
    let ahead = look_ahead(t, slot, pos, head0, split);
#if FRESH
    take_fresh(t, row, slot, pos, head0, split, params.splits);
#else
    for (var i = t.lid; i < d4 * G; i += WG) { qs[i] = q[q0 + i]; }
#endif
    let a = attend(t, slot, pos, head0, split, params.splits, ahead);
    for (var c = 0u; c < G; c++) {
        let sum = attended_value(t, a, c);
        if (t.lid < d4) {
#if SPLIT
            let part = (row * params.n_head + head0 + c) * params.splits + split;
            y[part * d4 + t.lid] = sum;
            if (t.lid == 0u) { tops[part] = vec2<f32>(a.top[c], a.weights[c]); }
#else
            y[q0 + c * d4 + t.lid] = sum / a.weights[c];
#endif
        }
    }
}
