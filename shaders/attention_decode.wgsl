// Attention of single rows over the paged cache: softmax(scale * q . K) V over positions lo..pos, with lo from the window; softcap:
// s = cap * tanh(s / cap). A workgroup takes G neighbouring heads of a row that share keys and values, and every splits-th tile of WG / 4
// positions, with an online softmax over its tiles. One split writes y; SPLIT: each writes its own top, total and sum, which attention_combine
// puts together, and those without a tile write nothing. Any length; head_dim a multiple of 4, at most 4 * WG.
// FRESH: q, k and v come as the product made them: heads are normalised (QK_NORM) and rotated here, as qk_norm.wgsl and rope.wgsl do, and k
// and v written to their page. Who needs the new position takes it from workgroup memory; the rows of a batch are of different sequences.
override WG: u32 = 128u;
override HEAD_DIM: u32 = 64u;
override G: u32 = 1u;
#import thread
#import state
#import activation
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
#slot kv
#if SINKS
// A logit for each query head that takes part in the softmax and has no value.
@group(0) @binding(auto) var<storage, read> sinks: array<f32>;
#endif

// Threads of a position's score, and vectors of values that a thread asks for before the scores are there.
const TEAM: u32 = 4u;
const AHEAD: u32 = 8u;
var<workgroup> qs: array<vec4<f32>, HEAD_DIM / 4u * G>;
var<workgroup> scratch: array<vec4<f32>, WG>;
// Of the positions of a tile and the heads: scores, and weights relative to the top.
var<workgroup> scores: array<vec4<f32>, WG / TEAM>;
var<workgroup> weights: array<vec4<f32>, WG / TEAM>;
const LOWEST: f32 = -3.4028234e38;

#if FRESH
#import rotation
// The G heads of q, then the head of k and that of v.
var<workgroup> fresh: array<f32, (G + 2u) * HEAD_DIM>;
fn heads_four(i: u32) -> vec4<f32> {
    return vec4<f32>(fresh[i * 4u], fresh[i * 4u + 1u], fresh[i * 4u + 2u], fresh[i * 4u + 3u]);
}
// Dimensions 4 * d4 on of the new key (j = 0) or value (1).
fn fresh_four(j: u32, d4: u32) -> vec4<f32> { return heads_four((G + j) * (HEAD_DIM / 4u) + d4); }

#if QK_NORM
// Threads that add up a head's squares.
const SQUARES: u32 = 16u;
var<workgroup> squares: array<f32, SQUARES * (G + 1u)>;
#endif

// Leaves q, k and v as attention takes them in `fresh`.
fn make_fresh(t: Thread, row: u32, pos: u32, head0: u32, kv_head: u32) {
    let d4 = HEAD_DIM / 4u;
    let x0 = row * params.x_stride4 + params.x_offset4;
    for (var i = t.lid; i < (G + 2u) * d4; i += WG) {
        var head = head0 + i / d4;
        if (i >= G * d4) { head = params.n_head + kv_head; }
        if (i >= (G + 1u) * d4) { head += params.n_kv; }
        let v = qkv[x0 + head * d4 + i % d4];
        fresh[i * 4u] = v.x;
        fresh[i * 4u + 1u] = v.y;
        fresh[i * 4u + 2u] = v.z;
        fresh[i * 4u + 3u] = v.w;
    }
    workgroupBarrier();
#if QK_NORM
    if (t.lid < SQUARES * (G + 1u)) {
        var s = 0.0;
        for (var i = t.lid % SQUARES; i < HEAD_DIM; i += SQUARES) {
            let v = fresh[t.lid / SQUARES * HEAD_DIM + i];
            s += v * v;
        }
        squares[t.lid] = s;
    }
    workgroupBarrier();
    for (var i = t.lid; i < (G + 1u) * HEAD_DIM; i += WG) {
        let head = i / HEAD_DIM;
        var total = 0.0;
        for (var j = 0u; j < SQUARES; j++) { total += squares[head * SQUARES + j]; }
        var w = 0.0;
        if (head < G) { w = q_w[i % HEAD_DIM]; } else { w = k_w[i % HEAD_DIM]; }
        fresh[i] *= w / sqrt(total / f32(HEAD_DIM) + params.eps);
    }
    workgroupBarrier();
#endif
    let n = params.n_rot / 2u;
    for (var i = t.lid; i < (G + 1u) * n; i += WG) {
        let pair = i % n;
        let r = rotation(pos, pair);
#if NEOX
        let a = i / n * HEAD_DIM + pair;
        let b = a + n;
#else
        let a = i / n * HEAD_DIM + 2u * pair;
        let b = a + 1u;
#endif
        let v = vec2<f32>(fresh[a], fresh[b]);
        fresh[a] = v.x * r.x - v.y * r.y;
        fresh[b] = v.y * r.x + v.x * r.y;
    }
    workgroupBarrier();
}
#endif

fn place(p: u32, table: u32, kv_head: u32) -> u32 {
    let block = tables[table + p / params.block_tokens];
    return (block * params.n_kv + kv_head) * params.block_tokens + p % params.block_tokens;
}

// Four dimensions of the value at position p.
fn value_at(p: u32, pos: u32, table: u32, kv_head: u32, d4: u32) -> vec4<f32> {
#if FRESH
    if (p == pos) { return kv_fresh(1u, d4); }
#endif
    return v_load4(place(p, table, kv_head), d4);
}

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let g = group_index(t);
    if (g >= params.groups) { return; }
    let d4 = HEAD_DIM / 4u;
    let tile_len = WG / TEAM;
    let split = g % params.splits;
    let head_groups = params.n_head / G;
    let row = g / params.splits / head_groups;
    let head0 = (g / params.splits % head_groups) * G;
    let kv_head = head0 / (params.n_head / params.n_kv);
    let pos = rows[row].pos;
    let table = rows[row].slot * params.table_stride;
    var lo = 0u;
    if (params.window != 0u && pos + 1u > params.window) { lo = pos + 1u - params.window; }
    let tiles = (pos + tile_len - lo) / tile_len;
    if (split >= tiles) { return; }
    let q0 = (row * params.n_head + head0) * d4;
#if FRESH
    make_fresh(t, row, pos, head0, kv_head);
    for (var i = t.lid; i < d4 * G; i += WG) { qs[i] = heads_four(i); }
    // The new position is in the last tile.
    if (split == (tiles - 1u) % params.splits && t.lid < d4) {
        kv_round(0u, t.lid);
        kv_round(1u, t.lid);
        // One of those that share the head writes it. A stopped sequence stays at its end, which may lie beyond its table.
        if (head0 % (params.n_head / params.n_kv) == 0u && pos / params.block_tokens < params.table_stride) {
            kv_keep(place(pos, table, kv_head), t.lid);
        }
    }
#else
    for (var i = t.lid; i < d4 * G; i += WG) { qs[i] = q[q0 + i]; }
#endif
    // For the values: thread (v_group, v_dim) takes every v_groups-th position.
    let v_groups = WG / d4;
    let v_dim = t.lid % d4;
    let v_group = t.lid / d4;
    var top = vec4<f32>(LOWEST);
    // Of the weights that this thread made.
    var total = vec4<f32>(0.0);
#if SINKS
    for (var c = 0u; c < G; c++) { top[c] = sinks[head0 + c]; }
    if (t.lid == 0u) { total = vec4<f32>(1.0); }
#endif
    var acc: array<vec4<f32>, 4>;
    for (var c = 0u; c < G; c++) { acc[c] = vec4<f32>(0.0); }
    workgroupBarrier();
    for (var tile = split; tile < tiles; tile += params.splits) {
        let base = lo + tile * tile_len;
        let n = min(pos + 1u - base, tile_len);
        // Values do not depend on the scores: ask for the first of them now.
        var v: array<vec4<f32>, AHEAD>;
        for (var i = 0u; i < AHEAD; i++) {
            let j = v_group + i * v_groups;
            v[i] = vec4<f32>(0.0);
            if (v_group < v_groups && j < n) { v[i] = value_at(base + j, pos, table, kv_head, v_dim); }
        }
        var s: array<f32, 4>;
        for (var c = 0u; c < 4u; c++) { s[c] = 0.0; }
        let member = t.lid % TEAM;
        if (t.lid / TEAM < n) {
            let p = base + t.lid / TEAM;
            let at = place(p, table, kv_head);
            for (var round = 0u; round < (d4 + TEAM - 1u) / TEAM; round++) {
                let i = round * TEAM + member;
                if (i < d4) {
#if FRESH
                    var k: vec4<f32>;
                    if (p == pos) { k = kv_fresh(0u, i); } else { k = k_load4(at, i); }
#else
                    let k = k_load4(at, i);
#endif
                    for (var c = 0u; c < G; c++) { s[c] += dot(qs[c * d4 + i], k); }
                }
            }
        }
        scratch[t.lid] = vec4<f32>(s[0], s[1], s[2], s[3]);
        workgroupBarrier();
        var score = vec4<f32>(LOWEST);
        if (t.lid < n) {
            score = vec4<f32>(0.0);
            for (var j = 0u; j < TEAM; j++) { score += scratch[t.lid * TEAM + j]; }
            score *= params.scale;
            if (params.softcap > 0.0) {
                for (var c = 0u; c < 4u; c++) { score[c] = params.softcap * safe_tanh(score[c] / params.softcap); }
            }
            scores[t.lid] = score;
        }
        workgroupBarrier();
        var new_top = top;
        for (var j = 0u; j < n; j++) { new_top = max(new_top, scores[j]); }
        let rescale = exp(top - new_top);
        total *= rescale;
        for (var c = 0u; c < G; c++) { acc[c] *= rescale[c]; }
        top = new_top;
        if (t.lid < n) {
            let weight = exp(score - top);
            total += weight;
            weights[t.lid] = weight;
        }
        workgroupBarrier();
        if (v_group < v_groups) {
            for (var i = 0u; i < AHEAD; i++) {
                let j = v_group + i * v_groups;
                if (j < n) { for (var c = 0u; c < G; c++) { acc[c] += weights[j][c] * v[i]; } }
            }
            for (var j = v_group + AHEAD * v_groups; j < n; j += v_groups) {
                let late = value_at(base + j, pos, table, kv_head, v_dim);
                for (var c = 0u; c < G; c++) { acc[c] += weights[j][c] * late; }
            }
        }
    }
    workgroupBarrier();
    scratch[t.lid] = total;
    workgroupBarrier();
    // Threads beyond the tile made no weights, but the first may hold a sink.
    var sum_of_weights = vec4<f32>(0.0);
    for (var j = 0u; j < tile_len; j++) { sum_of_weights += scratch[j]; }
    for (var c = 0u; c < G; c++) {
        workgroupBarrier();
        scratch[t.lid] = acc[c];
        workgroupBarrier();
        if (t.lid < d4) {
            var sum = vec4<f32>(0.0);
            for (var j = 0u; j < v_groups; j++) { sum += scratch[j * d4 + t.lid]; }
#if SPLIT
            let part = (row * params.n_head + head0 + c) * params.splits + split;
            y[part * d4 + t.lid] = sum;
            if (t.lid == 0u) { tops[part] = vec2<f32>(top[c], sum_of_weights[c]); }
#else
            y[q0 + c * d4 + t.lid] = sum / sum_of_weights[c];
#endif
        }
    }
}
