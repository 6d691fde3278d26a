// Attention of one row over a paged cache by a workgroup: G neighbouring heads that share keys and values take every `splits`-th tile of
// WG / ATTENTION_TEAM positions lo..pos, with an online softmax over the tiles, by subgroups (lib/attention_lanes.wgsl) where SHUFFLE is set and
// the device has them, else by steps of the whole workgroup (lib/attention_tiles.wgsl). softcap: s = cap * tanh(s / cap).
// FRESH: q, k and v come as the product made them: heads are normalised (QK_NORM) and rotated here (NEOX: the dimensions of
// the two halves pair), as qk_norm.wgsl and rope.wgsl do, and k and v written to their page; who needs the new position takes it from workgroup memory.
// The caller declares WG, HEAD_DIM, G, LANES, SHARED (heads that share keys and values), BLOCK (positions of a page), ATTENTION_TEAM and
// ATTENTION_AHEAD; tables; params with n_head, n_kv, table_stride, window, scale and softcap; with FRESH N_ROT (dimensions that are
// rotated), eps, angles and fresh_load(row, i): the four numbers at 4 * i of [q heads, k heads,
// v heads]; with QK_NORM q_w and k_w; with SINKS sinks; and
// give(t, c, i, top, weights, sum), which takes vector i of head c of the workgroup.
#import thread
#import state
#import activation
#if SUBGROUPS
#if SHUFFLE
#set LANES_PATH
#endif
#endif
#if FRESH
// Numbers: room for two vectors of every thread, so that what a thread has asked for is kept without a condition. (By name, and in front of other
// arrays: see lib/attention_lanes.wgsl.)
override FRESH_ROOM: u32 = max((G + 2u) * HEAD_DIM, 8u * WG);
#endif
#if LANES_PATH
#import attention_lanes
#else
#import attention_tiles
#endif
#slot kv

var<workgroup> qs: array<vec4<f32>, HEAD_DIM / 4u * G>;
const LOWEST: f32 = -3.4028234e38;

#if FRESH
#import rotation
// The G heads of q, then the head of k and that of v.
var<workgroup> fresh: array<f32, FRESH_ROOM>;
fn heads_four(i: u32) -> vec4<f32> {
    return vec4<f32>(fresh[i * 4u], fresh[i * 4u + 1u], fresh[i * 4u + 2u], fresh[i * 4u + 3u]);
}
// Dimensions 4 * d4 on of the new key (j = 0) or value (1).
fn fresh_four(j: u32, d4: u32) -> vec4<f32> { return heads_four((G + j) * (HEAD_DIM / 4u) + d4); }

#if QK_NORM
// Threads that add up a head's squares.
const SQUARES: u32 = 16u;
var<workgroup> squares: array<f32, SQUARES * (G + 1u)>;
var<workgroup> head_scales: array<f32, G + 1u>;
#endif

// Vector i of [G heads of q, the head of k, that of v] of a row.
fn fresh_vector(row: u32, head0: u32, i: u32) -> vec4<f32> {
    let d4 = HEAD_DIM / 4u;
    var head = head0 + i / d4;
    if (i >= G * d4) { head = params.n_head + head0 / SHARED; }
    if (i >= (G + 1u) * d4) { head += params.n_kv; }
    return fresh_load(row, head * d4 + i % d4);
}
fn keep_fresh(i: u32, v: vec4<f32>) {
    fresh[i * 4u] = v.x;
    fresh[i * 4u + 1u] = v.y;
    fresh[i * 4u + 2u] = v.z;
    fresh[i * 4u + 3u] = v.w;
}

// What a thread needs of the new row, asked for before it is known where that is.
struct FreshAhead { a: vec4<f32>, b: vec4<f32> }
fn ask_fresh(t: Thread, row: u32, head0: u32) -> FreshAhead {
    let last = (G + 2u) * (HEAD_DIM / 4u) - 1u;
    return FreshAhead(fresh_vector(row, head0, min(t.lid, last)), fresh_vector(row, head0, min(t.lid + WG, last)));
}

// Leaves q, k and v as attention takes them in `fresh`.
fn make_fresh(t: Thread, row: u32, pos: u32, head0: u32, asked: FreshAhead) {
    let vectors = (G + 2u) * (HEAD_DIM / 4u);
    let n = N_ROT / 2u;
    // A thread turns the same pair of each of its heads where they are as many as there are threads, or a part of that.
    let same = WG % max(n, 1u) == 0u;
    var turn = vec2<f32>(1.0, 0.0);
    if (n != 0u) { turn = rotation(pos, t.lid % max(n, 1u), n); }
    keep_fresh(t.lid, asked.a);
    keep_fresh(t.lid + WG, asked.b);
    for (var i0 = 2u * WG; i0 < vectors; i0 += WG) {
        let i = i0 + t.lid;
        if (i < vectors) { keep_fresh(i, fresh_vector(row, head0, i)); }
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
    if (t.lid < G + 1u) {
        var total = 0.0;
        for (var j = 0u; j < SQUARES; j++) { total += squares[t.lid * SQUARES + j]; }
        head_scales[t.lid] = 1.0 / sqrt(total / f32(HEAD_DIM) + params.eps);
    }
    workgroupBarrier();
    for (var i0 = 0u; i0 < (G + 1u) * HEAD_DIM; i0 += WG) {
        let i = i0 + t.lid;
        if (i < (G + 1u) * HEAD_DIM) {
            var w = 0.0;
            if (i < G * HEAD_DIM) { w = q_w[i % HEAD_DIM]; } else { w = k_w[i % HEAD_DIM]; }
            fresh[i] *= w * head_scales[i / HEAD_DIM];
        }
    }
    workgroupBarrier();
#endif
    for (var i0 = 0u; i0 < (G + 1u) * n; i0 += WG) {
        let i = i0 + t.lid;
        if (i < (G + 1u) * n) {
            let pair = i % max(n, 1u);
            let head = i / max(n, 1u);
            if (i0 != 0u && !same) { turn = rotation(pos, pair, n); }
#if NEOX
            let a = head * HEAD_DIM + pair;
            let b = a + n;
#else
            let a = head * HEAD_DIM + 2u * pair;
            let b = a + 1u;
#endif
            let v = vec2<f32>(fresh[a], fresh[b]);
            fresh[a] = v.x * turn.x - v.y * turn.y;
            fresh[b] = v.y * turn.x + v.x * turn.y;
        }
    }
    workgroupBarrier();
}
#endif

fn place(p: u32, table: u32, kv_head: u32) -> u32 {
    return (tables[table + p / BLOCK] * params.n_kv + kv_head) * BLOCK + p % BLOCK;
}

// Where a row's first position is, and its number of tiles.
fn first_position(pos: u32) -> u32 {
    if (params.window != 0u && pos + 1u > params.window) { return pos + 1u - params.window; }
    return 0u;
}
fn count_tiles(pos: u32) -> u32 {
    let tile_len = WG / ATTENTION_TEAM;
    return (pos + tile_len - first_position(pos)) / tile_len;
}

#if FRESH
// Leaves q in qs, and the new key and value where they are needed and kept.
fn take_fresh(t: Thread, row: u32, slot: u32, pos: u32, head0: u32, split: u32, splits: u32, asked: FreshAhead) {
    let d4 = HEAD_DIM / 4u;
    let kv_head = head0 / SHARED;
    make_fresh(t, row, pos, head0, asked);
    for (var i0 = 0u; i0 < d4 * G; i0 += WG) {
        if (i0 + t.lid < d4 * G) { qs[i0 + t.lid] = heads_four(i0 + t.lid); }
    }
    // The new position is in the last tile.
    if (split == (count_tiles(pos) - 1u) % splits && t.lid < d4) {
        kv_round(0u, t.lid);
        kv_round(1u, t.lid);
        // One of those that share the head writes it. A stopped sequence stays at its end, which may lie beyond its table.
        if (head0 % SHARED == 0u && pos / BLOCK < params.table_stride) {
            kv_keep(place(pos, slot * params.table_stride, kv_head), t.lid);
        }
    }
}
#endif
