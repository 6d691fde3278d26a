// Attention of one row by teams of LANES neighbouring threads of a subgroup (16, 8 or 4): a team takes LANES / 4 positions of a tile, with an online
// softmax of its own, and the teams are put together at the end. So there is no barrier in the loop. Keys and values of a tile are asked for
// together, those of the first before q is there. head_dim at most 16 * LANES. See lib/attention_row.wgsl.
// Registers have names, since drivers keep arrays that are carried from one step to the next in memory. No load stands under a condition of its own, and
// none is converted before it is used: a driver waits for a load where the condition ends (docs/performance-log.md).
// The caller declares LEAST_SUBGROUP, a size that no subgroup is below, and AT_ONCE, heads that are put together at a time.
// Vectors of four dimensions that a thread has of a head; at most 4.
override ROUNDS: u32 = (HEAD_DIM / 4u + LANES - 1u) / LANES;
override LANE_TEAMS: u32 = WG / LANES;
// naga 30 panics where an override with a value made of others stands behind a size that is not just a name, so these come first, by name.
override MOST_SUBGROUPS: u32 = WG / LEAST_SUBGROUP;
override SUBGROUP_VECTORS: u32 = MOST_SUBGROUPS * AT_ONCE * ROUNDS * LANES;
override SUBGROUP_HEADS: u32 = MOST_SUBGROUPS * 4u;
// Of each subgroup: values of the heads that are put together, and of every head the top score and the sum of weights relative to it.
var<workgroup> scratch: array<vec4<f32>, SUBGROUP_VECTORS>;
var<workgroup> subgroup_tops: array<vec2<f32>, SUBGROUP_HEADS>;

// A thread's vectors of a head: those at member, LANES + member, and so on.
struct Rounds { a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32> }
struct RawRounds { a: KvRaw, b: KvRaw, c: KvRaw, d: KvRaw }
// Of the positions of a thread's team. Positions that are not in the cache (yet) are those of the last that is.
struct Ahead {
    k0: RawRounds, k1: RawRounds, k2: RawRounds, k3: RawRounds,
    v0: RawRounds, v1: RawRounds, v2: RawRounds, v3: RawRounds,
}
// Where vector r of a thread is in a head; past the head's end the last.
fn vector_of(r: u32, member: u32) -> u32 { return min(r * LANES + member, HEAD_DIM / 4u - 1u); }

fn k_rounds(row: u32, member: u32) -> RawRounds {
    var x: RawRounds;
    x.a = k_raw(row, vector_of(0u, member));
    if (ROUNDS > 1u) { x.b = k_raw(row, vector_of(1u, member)); }
    if (ROUNDS > 2u) { x.c = k_raw(row, vector_of(2u, member)); }
    if (ROUNDS > 3u) { x.d = k_raw(row, vector_of(3u, member)); }
    return x;
}
fn v_rounds(row: u32, member: u32) -> RawRounds {
    var x: RawRounds;
    x.a = v_raw(row, vector_of(0u, member));
    if (ROUNDS > 1u) { x.b = v_raw(row, vector_of(1u, member)); }
    if (ROUNDS > 2u) { x.c = v_raw(row, vector_of(2u, member)); }
    if (ROUNDS > 3u) { x.d = v_raw(row, vector_of(3u, member)); }
    return x;
}
#if FRESH
fn fresh_rounds(j: u32, member: u32) -> RawRounds {
    var x: RawRounds;
    x.a = kv_fresh(j, vector_of(0u, member));
    if (ROUNDS > 1u) { x.b = kv_fresh(j, vector_of(1u, member)); }
    if (ROUNDS > 2u) { x.c = kv_fresh(j, vector_of(2u, member)); }
    if (ROUNDS > 3u) { x.d = kv_fresh(j, vector_of(3u, member)); }
    return x;
}
#endif
fn rounds_times(x: Rounds, f: f32) -> Rounds {
    var y = x;
    y.a *= f;
    if (ROUNDS > 1u) { y.b *= f; }
    if (ROUNDS > 2u) { y.c *= f; }
    if (ROUNDS > 3u) { y.d *= f; }
    return y;
}
fn rounds_plus(x: Rounds, f: f32, v: Rounds) -> Rounds {
    var y = x;
    y.a += f * v.a;
    if (ROUNDS > 1u) { y.b += f * v.b; }
    if (ROUNDS > 2u) { y.c += f * v.c; }
    if (ROUNDS > 3u) { y.d += f * v.d; }
    return y;
}

// Of two teams, where `f` brings this one's values to the top score of both.
fn rounds_joined(x: Rounds, f: f32, apart: u32) -> Rounds {
    var y = rounds_times(x, f);
    y.a += subgroupShuffleXor(y.a, apart);
    if (ROUNDS > 1u) { y.b += subgroupShuffleXor(y.b, apart); }
    if (ROUNDS > 2u) { y.c += subgroupShuffleXor(y.c, apart); }
    if (ROUNDS > 3u) { y.d += subgroupShuffleXor(y.d, apart); }
    return y;
}

fn look_ahead(t: Thread, slot: u32, pos: u32, head0: u32, tile: u32) -> Ahead {
    var a: Ahead;
    let at = team_of(t, LANES);
    let kv_head = head0 / SHARED;
    let table = slot * params.table_stride;
    let p = first_position(pos) + tile * (WG / ATTENTION_TEAM) + at.x;
    // The newest position may not be in its page yet.
#if FRESH
    let last = max(pos, 1u) - 1u;
#else
    let last = pos;
#endif
    let row0 = place(min(p, last), table, kv_head);
    var row1 = 0u;
    var row2 = 0u;
    var row3 = 0u;
    if (LANES >= 8u) { row1 = place(min(p + LANE_TEAMS, last), table, kv_head); }
    if (LANES >= 16u) {
        row2 = place(min(p + 2u * LANE_TEAMS, last), table, kv_head);
        row3 = place(min(p + 3u * LANE_TEAMS, last), table, kv_head);
    }
    a.k0 = k_rounds(row0, at.y);
    if (LANES >= 8u) { a.k1 = k_rounds(row1, at.y); }
    if (LANES >= 16u) {
        a.k2 = k_rounds(row2, at.y);
        a.k3 = k_rounds(row3, at.y);
    }
    a.v0 = v_rounds(row0, at.y);
    if (LANES >= 8u) { a.v1 = v_rounds(row1, at.y); }
    if (LANES >= 16u) {
        a.v2 = v_rounds(row2, at.y);
        a.v3 = v_rounds(row3, at.y);
    }
    return a;
}

// The products of the heads' q with four dimensions of k.
fn score_parts(r: u32, member: u32, raw: KvRaw) -> vec4<f32> {
    let i = vector_of(r, member);
    var k = kv_four(raw, i);
    if (HEAD_DIM % (4u * LANES) != 0u && r * LANES + member > i) { k = vec4<f32>(0.0); }
    var s = vec4<f32>(dot(qs[i], k), 0.0, 0.0, 0.0);
    if (G > 1u) { s.y = dot(qs[HEAD_DIM / 4u + i], k); }
    if (G > 2u) {
        s.z = dot(qs[2u * (HEAD_DIM / 4u) + i], k);
        s.w = dot(qs[3u * (HEAD_DIM / 4u) + i], k);
    }
    return s;
}
fn scores_of(member: u32, k: RawRounds) -> vec4<f32> {
    var s = score_parts(0u, member, k.a);
    if (ROUNDS > 1u) { s += score_parts(1u, member, k.b); }
    if (ROUNDS > 2u) { s += score_parts(2u, member, k.c); }
    if (ROUNDS > 3u) { s += score_parts(3u, member, k.d); }
    return s;
}
fn values_of(member: u32, v: RawRounds) -> Rounds {
    var x: Rounds;
    x.a = kv_four(v.a, vector_of(0u, member));
    if (ROUNDS > 1u) { x.b = kv_four(v.b, vector_of(1u, member)); }
    if (ROUNDS > 2u) { x.c = kv_four(v.c, vector_of(2u, member)); }
    if (ROUNDS > 3u) { x.d = kv_four(v.d, vector_of(3u, member)); }
    return x;
}

// All threads come here, with the heads' q in qs, and what they have asked for of the first tile.
fn attend(t: Thread, slot: u32, pos: u32, head0: u32, split: u32, splits: u32, first: Ahead) {
    let tiles = count_tiles(pos);
    let at = team_of(t, LANES);
    let member = at.y;
    let lane0 = t.lane - member;
    // Scores: thread 4 * u + c of a team has that of position u and head c, and what belongs to head c.
    let head = member % 4u;
    var top = LOWEST;
    var total = 0.0;
    var v0: Rounds;
    var v1: Rounds;
    var v2: Rounds;
    var v3: Rounds;
    workgroupBarrier();
    var now = first;
    for (var tile = split; tile < tiles; tile += splits) {
        let base = first_position(pos) + tile * (WG / ATTENTION_TEAM) + at.x;
        // The new position is in the last tile, and what comes after it counts for nothing whatever it is.
        if (tile + 1u == tiles) {
            let zero = RawRounds();
            if (base > pos) { now.v0 = zero; }
            if (base + LANE_TEAMS > pos) { now.v1 = zero; }
            if (base + 2u * LANE_TEAMS > pos) { now.v2 = zero; }
            if (base + 3u * LANE_TEAMS > pos) { now.v3 = zero; }
#if FRESH
            let new_k = fresh_rounds(0u, member);
            let new_v = fresh_rounds(1u, member);
            if (base == pos) {
                now.k0 = new_k;
                now.v0 = new_v;
            }
            if (base + LANE_TEAMS == pos) {
                now.k1 = new_k;
                now.v1 = new_v;
            }
            if (base + 2u * LANE_TEAMS == pos) {
                now.k2 = new_k;
                now.v2 = new_v;
            }
            if (base + 3u * LANE_TEAMS == pos) {
                now.k3 = new_k;
                now.v3 = new_v;
            }
#endif
        }
        // Sums over the team, each thread's of one number: half of the numbers go to the other half of the threads, and so on.
        var s = scores_of(member, now.k0);
        if (LANES >= 8u) {
            var s1 = scores_of(member, now.k1);
            if (LANES >= 16u) {
                let s2 = scores_of(member, now.k2);
                let s3 = scores_of(member, now.k3);
                let upper = (member & 8u) != 0u;
                s = select(s, s2, upper) + subgroupShuffleXor(select(s2, s, upper), 8u);
                s1 = select(s1, s3, upper) + subgroupShuffleXor(select(s3, s1, upper), 8u);
            }
            let upper = (member & 4u) != 0u;
            s = select(s, s1, upper) + subgroupShuffleXor(select(s1, s, upper), 4u);
        }
        let second = (member & 2u) != 0u;
        let pair = select(s.xy, s.zw, second) + subgroupShuffleXor(select(s.zw, s.xy, second), 2u);
        let odd = (member & 1u) != 0u;
        var score = select(pair.x, pair.y, odd) + subgroupShuffleXor(select(pair.y, pair.x, odd), 1u);
        score *= params.scale;
        if (params.softcap > 0.0) { score = params.softcap * safe_tanh(score / params.softcap); }
        let on = head < G && base + member / 4u * LANE_TEAMS <= pos;
        score = select(LOWEST, score, on);
        var new_top = max(top, score);
        if (LANES >= 8u) { new_top = max(new_top, subgroupShuffleXor(new_top, 4u)); }
        if (LANES >= 16u) { new_top = max(new_top, subgroupShuffleXor(new_top, 8u)); }
        let rescale = exp(top - new_top);
        let weight = select(0.0, exp(score - new_top), on);
        total = total * rescale + weight;
        top = new_top;
        if (subgroupAny(rescale != 1.0)) {
            v0 = rounds_times(v0, subgroupShuffle(rescale, lane0));
            if (G > 1u) { v1 = rounds_times(v1, subgroupShuffle(rescale, lane0 + 1u)); }
            if (G > 2u) {
                v2 = rounds_times(v2, subgroupShuffle(rescale, lane0 + 2u));
                v3 = rounds_times(v3, subgroupShuffle(rescale, lane0 + 3u));
            }
        }
        for (var u = 0u; u < LANES / 4u; u++) {
            var raw = now.v0;
            if (u == 1u) { raw = now.v1; }
            if (u == 2u) { raw = now.v2; }
            if (u == 3u) { raw = now.v3; }
            let v = values_of(member, raw);
            let lane = lane0 + u * 4u;
            v0 = rounds_plus(v0, subgroupShuffle(weight, lane), v);
            if (G > 1u) { v1 = rounds_plus(v1, subgroupShuffle(weight, lane + 1u), v); }
            if (G > 2u) {
                v2 = rounds_plus(v2, subgroupShuffle(weight, lane + 2u), v);
                v3 = rounds_plus(v3, subgroupShuffle(weight, lane + 3u), v);
            }
        }
        if (tile + splits < tiles) { now = look_ahead(t, slot, pos, head0, tile + splits); }
    }
    if (LANES >= 8u) { total += subgroupShuffleXor(total, 4u); }
    if (LANES >= 16u) { total += subgroupShuffleXor(total, 8u); }
    // The teams of a subgroup, then the subgroups.
    for (var apart = LANES; apart < t.sg_size; apart *= 2u) {
        let other = subgroupShuffleXor(top, apart);
        let new_top = max(top, other);
        let keep = exp(top - new_top);
        total = total * keep;
        total += subgroupShuffleXor(total, apart);
        top = new_top;
        v0 = rounds_joined(v0, subgroupShuffle(keep, lane0), apart);
        if (G > 1u) { v1 = rounds_joined(v1, subgroupShuffle(keep, lane0 + 1u), apart); }
        if (G > 2u) {
            v2 = rounds_joined(v2, subgroupShuffle(keep, lane0 + 2u), apart);
            v3 = rounds_joined(v3, subgroupShuffle(keep, lane0 + 3u), apart);
        }
    }
    if (t.lane < 4u) { subgroup_tops[t.sg * 4u + t.lane] = vec2<f32>(top, total); }
    let d4 = HEAD_DIM / 4u;
    for (var c0 = 0u; c0 < G; c0 += AT_ONCE) {
        if (c0 != 0u) { workgroupBarrier(); }
        if (t.lane < LANES) {
            for (var c = 0u; c < AT_ONCE; c++) {
                var x = v0;
                if (c0 + c == 1u) { x = v1; }
                if (c0 + c == 2u) { x = v2; }
                if (c0 + c == 3u) { x = v3; }
                let to = (t.sg * AT_ONCE + c) * ROUNDS * LANES + t.lane;
                scratch[to] = x.a;
                if (ROUNDS > 1u) { scratch[to + LANES] = x.b; }
                if (ROUNDS > 2u) { scratch[to + 2u * LANES] = x.c; }
                if (ROUNDS > 3u) { scratch[to + 3u * LANES] = x.d; }
            }
        }
        workgroupBarrier();
        for (var i0 = 0u; i0 < AT_ONCE * d4; i0 += WG) {
            let c = (i0 + t.lid) / d4;
            let i = (i0 + t.lid) % d4;
            if (c < AT_ONCE) {
                var all = LOWEST;
                for (var j = 0u; j < t.n_sg; j++) { all = max(all, subgroup_tops[j * 4u + c0 + c].x); }
                var weights = 0.0;
#if SINKS
                let sink = sinks[head0 + c0 + c];
                all = max(all, sink);
                weights = exp(sink - all);
#endif
                var sum = vec4<f32>(0.0);
                for (var j = 0u; j < t.n_sg; j++) {
                    let part = subgroup_tops[j * 4u + c0 + c];
                    let keep = exp(part.x - all);
                    weights += part.y * keep;
                    sum += keep * scratch[(j * AT_ONCE + c) * ROUNDS * LANES + i];
                }
                give(t, c0 + c, i, all, weights, sum);
            }
        }
    }
}
