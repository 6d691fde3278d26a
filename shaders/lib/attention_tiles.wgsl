// Attention of one row by steps of the whole workgroup: scores by teams of ATTENTION_TEAM threads a position, then weights, then values by
// threads along the dimensions. See lib/attention_row.wgsl.
var<workgroup> scratch: array<vec4<f32>, WG>;
// Of the positions of a tile and the heads: scores, and weights relative to the top.
var<workgroup> scores: array<vec4<f32>, WG / ATTENTION_TEAM>;
var<workgroup> weights: array<vec4<f32>, WG / ATTENTION_TEAM>;

// Four dimensions of the value at position p.
fn value_at(p: u32, pos: u32, table: u32, kv_head: u32, d4: u32) -> vec4<f32> {
#if FRESH
    if (p == pos) { return kv_four(kv_fresh(1u, d4), d4); }
#endif
    return v_load4(place(p, table, kv_head), d4);
}

// What a thread needs of a tile: values of the first of its positions, at most ATTENTION_AHEAD. None of them depends on q, so the first
// tile's may be asked for before q is there. What is not there is 0.
struct Ahead {
    v: array<vec4<f32>, ATTENTION_AHEAD>,
}
fn attention_rounds() -> u32 { return (HEAD_DIM / 4u + ATTENTION_TEAM - 1u) / ATTENTION_TEAM; }

fn look_ahead(t: Thread, slot: u32, pos: u32, head0: u32, tile: u32) -> Ahead {
    var a: Ahead;
    let d4 = HEAD_DIM / 4u;
    let tile_len = WG / ATTENTION_TEAM;
    let kv_head = head0 / SHARED;
    let table = slot * params.table_stride;
    let base = first_position(pos) + tile * tile_len;
    // The newest position may not be in its page yet.
#if FRESH
    let end = min(pos, base + tile_len);
#else
    let end = min(pos + 1u, base + tile_len);
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
fn attend(t: Thread, slot: u32, pos: u32, head0: u32, split: u32, splits: u32, first: Ahead) {
    let d4 = HEAD_DIM / 4u;
    let tile_len = WG / ATTENTION_TEAM;
    let kv_head = head0 / SHARED;
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
    for (var c = 0u; c < 4u; c++) { acc[c] = vec4<f32>(0.0); }
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
                    if (p == pos) { k = kv_four(kv_fresh(0u, i), i); } else {
#else
                    {
#endif
                        k = k_load4(at, i);
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
                    if (base + j == pos) { v = kv_four(kv_fresh(1u, v_dim), v_dim); }
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
    for (var c = 0u; c < G; c++) {
        workgroupBarrier();
        scratch[t.lid] = acc[c];
        workgroupBarrier();
        if (t.lid < d4) {
            var sum = vec4<f32>(0.0);
            for (var j = 0u; j < WG / d4; j++) { sum += scratch[j * d4 + t.lid]; }
            give(t, c, t.lid, top[c], sum_of_weights[c], sum);
        }
    }
}
