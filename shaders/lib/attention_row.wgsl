// Attention of one row over a paged cache by a workgroup: G neighbouring heads that share keys and values take every `splits`-th tile of
// WG / TEAM positions lo..pos, with an online softmax over the tiles. softcap: s = cap * tanh(s / cap).
// FRESH: q, k and v come as the product made them: heads are normalised (QK_NORM) and rotated here (NEOX: the dimensions of
// the two halves pair), as qk_norm.wgsl and rope.wgsl do, and k and v written to their page; who needs the new position takes it from workgroup memory.
// The caller declares WG, HEAD_DIM, G, ATTENTION_TEAM, ATTENTION_AHEAD; rows and tables; params with n_head, n_kv, block_tokens, table_stride,
// window, scale and softcap; with FRESH n_rot and eps, angles and fresh_load(row, i): the four numbers at 4 * i of [q heads, k heads,
// v heads]; with QK_NORM q_w and k_w.
#import thread
#import state
#import activation
#slot kv

var<workgroup> qs: array<vec4<f32>, HEAD_DIM / 4u * G>;
var<workgroup> scratch: array<vec4<f32>, WG>;
// Of the positions of a tile and the heads: scores, and weights relative to the top.
var<workgroup> scores: array<vec4<f32>, WG / ATTENTION_TEAM>;
var<workgroup> weights: array<vec4<f32>, WG / ATTENTION_TEAM>;
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
    let n = params.n_rot / 2u;
    // Asked for before the heads are: most often a thread turns one pair.
    var first_turn = vec2<f32>(1.0, 0.0);
    if (t.lid < (G + 1u) * n) { first_turn = rotation(pos, t.lid % n); }
    for (var i = t.lid; i < (G + 2u) * d4; i += WG) {
        var head = head0 + i / d4;
        if (i >= G * d4) { head = params.n_head + kv_head; }
        if (i >= (G + 1u) * d4) { head += params.n_kv; }
        let v = fresh_load(row, head * d4 + i % d4);
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
    for (var i = t.lid; i < (G + 1u) * n; i += WG) {
        let pair = i % n;
        var r = first_turn;
        if (i != t.lid) { r = rotation(pos, pair); }
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

// The G heads from head0 on, of the row at slot and position: its top scores, weights relative to them, and this thread's part of the values.
struct Attended {
    top: vec4<f32>,
    weights: vec4<f32>,
    values: array<vec4<f32>, 4>,
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
fn take_fresh(t: Thread, row: u32, slot: u32, pos: u32, head0: u32, split: u32, splits: u32) {
    let d4 = HEAD_DIM / 4u;
    let kv_head = head0 / (params.n_head / params.n_kv);
    make_fresh(t, row, pos, head0, kv_head);
    for (var i = t.lid; i < d4 * G; i += WG) { qs[i] = heads_four(i); }
    // The new position is in the last tile.
    if (split == (count_tiles(pos) - 1u) % splits && t.lid < d4) {
        kv_round(0u, t.lid);
        kv_round(1u, t.lid);
        // One of those that share the head writes it. A stopped sequence stays at its end, which may lie beyond its table.
        if (head0 % (params.n_head / params.n_kv) == 0u && pos / params.block_tokens < params.table_stride) {
            kv_keep(place(pos, slot * params.table_stride, kv_head), t.lid);
        }
    }
}
#endif

// What a thread needs of a tile: values of the first of its positions, and with KEYS_AHEAD fours of the key of its position; at most
// ATTENTION_AHEAD of each. None of them depends on q, so the first tile's may be asked for before q is there. What is not there is 0.
struct Ahead {
#if KEYS_AHEAD
    k: array<vec4<f32>, ATTENTION_AHEAD>,
#endif
    v: array<vec4<f32>, ATTENTION_AHEAD>,
}
fn attention_rounds() -> u32 { return (HEAD_DIM / 4u + ATTENTION_TEAM - 1u) / ATTENTION_TEAM; }

fn look_ahead(t: Thread, slot: u32, pos: u32, head0: u32, tile: u32) -> Ahead {
    var a: Ahead;
    let d4 = HEAD_DIM / 4u;
    let tile_len = WG / ATTENTION_TEAM;
    let kv_head = head0 / (params.n_head / params.n_kv);
    let table = slot * params.table_stride;
    let base = first_position(pos) + tile * tile_len;
    // The newest position may not be in its page yet.
#if FRESH
    let end = min(pos, base + tile_len);
#else
    let end = min(pos + 1u, base + tile_len);
#endif
#if KEYS_AHEAD
    let p = base + t.lid / ATTENTION_TEAM;
    var at = 0u;
    if (p < end) { at = place(p, table, kv_head); }
    for (var i = 0u; i < ATTENTION_AHEAD; i++) {
        a.k[i] = vec4<f32>(0.0);
        let d = i * ATTENTION_TEAM + t.lid % ATTENTION_TEAM;
        if (i < attention_rounds() && p < end && d < d4) { a.k[i] = k_load4(at, d); }
    }
#endif
    let v_groups = WG / d4;
    for (var i = 0u; i < ATTENTION_AHEAD; i++) {
        a.v[i] = vec4<f32>(0.0);
        let j = base + t.lid / d4 + i * v_groups;
        if (i * v_groups < tile_len && t.lid / d4 < v_groups && j < end) { a.v[i] = v_load4(place(j, table, kv_head), t.lid % d4); }
    }
    return a;
}

// All threads come here, with the heads' q in qs, and what they have asked for of the first tile; each has the parts of dimensions
// 4 * (lid % (HEAD_DIM / 4)) on.
fn attend(t: Thread, slot: u32, pos: u32, head0: u32, split: u32, splits: u32, first: Ahead) -> Attended {
    let d4 = HEAD_DIM / 4u;
    let tile_len = WG / ATTENTION_TEAM;
    let kv_head = head0 / (params.n_head / params.n_kv);
    let table = slot * params.table_stride;
    let lo = first_position(pos);
    let tiles = count_tiles(pos);
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
    for (var tile = split; tile < tiles; tile += splits) {
        let base = lo + tile * tile_len;
        let n = min(pos + 1u - base, tile_len);
        var now = first;
        if (tile != split) { now = look_ahead(t, slot, pos, head0, tile); }
        var s: array<f32, 4>;
        for (var c = 0u; c < 4u; c++) { s[c] = 0.0; }
        let member = t.lid % ATTENTION_TEAM;
        if (t.lid / ATTENTION_TEAM < n) {
            let p = base + t.lid / ATTENTION_TEAM;
            let at = place(p, table, kv_head);
            for (var round = 0u; round < attention_rounds(); round++) {
                let i = round * ATTENTION_TEAM + member;
                if (i < d4) {
                    var k: vec4<f32>;
#if FRESH
                    if (p == pos) { k = kv_fresh(0u, i); } else {
#else
                    {
#endif
#if KEYS_AHEAD
                        if (round < ATTENTION_AHEAD) { k = now.k[round]; } else { k = k_load4(at, i); }
#else
                        k = k_load4(at, i);
#endif
                    }
                    for (var c = 0u; c < G; c++) { s[c] += dot(qs[c * d4 + i], k); }
                }
            }
        }
        scratch[t.lid] = vec4<f32>(s[0], s[1], s[2], s[3]);
        workgroupBarrier();
        var score = vec4<f32>(LOWEST);
        if (t.lid < n) {
            score = vec4<f32>(0.0);
            for (var j = 0u; j < ATTENTION_TEAM; j++) { score += scratch[t.lid * ATTENTION_TEAM + j]; }
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
            for (var i = 0u; i < ATTENTION_AHEAD; i++) {
                let j = v_group + i * v_groups;
                if (j < n) {
                    var v = now.v[i];
#if FRESH
                    if (base + j == pos) { v = kv_fresh(1u, v_dim); }
#endif
                    for (var c = 0u; c < G; c++) { acc[c] += weights[j][c] * v; }
                }
            }
            for (var j = v_group + ATTENTION_AHEAD * v_groups; j < n; j += v_groups) {
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
    return Attended(top, sum_of_weights, acc);
}

// The value of head c, from all threads' parts; for threads below HEAD_DIM / 4.
fn attended_value(t: Thread, a: Attended, c: u32) -> vec4<f32> {
    let d4 = HEAD_DIM / 4u;
    workgroupBarrier();
    scratch[t.lid] = a.values[c];
    workgroupBarrier();
    var sum = vec4<f32>(0.0);
    if (t.lid < d4) {
        for (var j = 0u; j < WG / d4; j++) { sum += scratch[j * d4 + t.lid]; }
    }
    return sum;
}
