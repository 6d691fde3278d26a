// Attention of single rows over the paged cache: softmax(scale * q . K) V over positions lo..pos, with lo from the window; softcap:
// s = cap * tanh(s / cap). A workgroup takes G neighbouring heads of a row that share keys and values, and every splits-th tile of WG / 4
// positions, with an online softmax over its tiles. One split writes y; SPLIT: each writes its own top, total and sum, which attention_combine
// puts together, and those without a tile write nothing. Any length; head_dim a multiple of 4, at most 4 * WG.
// CHAIN_OUT: parts go to a later stage of a chain, which attention_combine is then.
// FRESH: q, k and v come as the product made them: heads are normalised (QK_NORM) and rotated here, as qk_norm.wgsl and rope.wgsl do, and k
// and v written to their page; the rows of a batch are of different sequences.
override WG: u32 = 128u;
override HEAD_DIM: u32 = 64u;
override G: u32 = 1u;
override LANES: u32 = 16u;
override AT_ONCE: u32 = 1u;
override LEAST_SUBGROUP: u32 = 32u;
// A model's numbers are constants, since dividing by others takes a device as long as asking its memory.
override SHARED: u32 = 1u;
override BLOCK: u32 = 32u;
override N_ROT: u32 = 0u;
#import thread
#import state
struct Params {
    n_head: u32, n_kv: u32, table_stride: u32, window: u32, splits: u32, scale: f32, softcap: f32, x_stride4: u32, x_offset4: u32, eps: f32,
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
// Slot and position of each row (Row of lib/state.wgsl): loaded at once, since a driver asks for the second of two only behind what the first decides.
@group(0) @binding(auto) var<storage, read> rows: array<vec2<u32>>;
@group(0) @binding(auto) var<storage, read> tables: array<u32>;
#if CHAIN_OUT
#import chain_parts
#else
// SPLIT: [row, head, split] of head_dim, else [row, head].
@group(0) @binding(auto) var<storage, read_write> y: array<vec4<f32>>;
#if SPLIT
// (Largest score, sum of weights) of each row, head and split.
@group(0) @binding(auto) var<storage, read_write> tops: array<vec2<f32>>;
#endif
#endif

// A tile has so many times fewer positions than a workgroup has threads. Vectors of values that a thread asks for before the scores are there, in
// lib/attention_tiles.wgsl.
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

// Vector i of head c of a workgroup: the sum of its values with weights relative to the top score, and the sum of these.
fn give(t: Thread, c: u32, i: u32, top: f32, weights: f32, sum: vec4<f32>) {
    let head = t.wid.z * params.n_head + t.wid.y * G + c;
#if CHAIN_OUT
    part_send((head * params.splits + t.wid.x) * (HEAD_DIM / 4u) + i, Part(sum, top, weights));
#else
#if SPLIT
    let part = head * params.splits + t.wid.x;
    y[part * (HEAD_DIM / 4u) + i] = sum;
    if (i == 0u) { tops[part] = vec2<f32>(top, weights); }
#else
    y[head * (HEAD_DIM / 4u) + i] = sum / weights;
#endif
#endif
}

// The grid is [splits, groups of heads, rows].
@compute @workgroup_size(WG)
fn main(t: Thread) {
    let row = t.wid.z;
    let head0 = t.wid.y * G;
#if FRESH
    let asked = ask_fresh(t, row, head0);
#endif
    let place = rows[row];
    let slot = place.x;
    let pos = place.y;
    if (t.wid.x >= count_tiles(pos)) { return; }
    let ahead = look_ahead(t, slot, pos, head0, t.wid.x);
#if FRESH
    take_fresh(t, row, slot, pos, head0, t.wid.x, params.splits, asked);
#else
    let q0 = (row * params.n_head + head0) * (HEAD_DIM / 4u);
    for (var i = t.lid; i < HEAD_DIM / 4u * G; i += WG) { qs[i] = q[q0 + i]; }
#endif
    attend(t, slot, pos, head0, t.wid.x, params.splits, ahead);
}
