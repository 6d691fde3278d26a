// Rows of x as bytes in workgroup memory, for lib/team.wgsl with STAGED: some blocks of each of NT rows at a time, which all teams of the workgroup
// read. So an address is made once for all rows, and a device's own checks of its memory are not made again and again.
// No load stands under a condition: a driver waits for it where that ends.
// Blocks of each row at a time, a multiple of TEAM (STAGED_BLOCKS of src/kernels/constants.rs). Two dimensions, so that naga checks an index once for all
// rows.
const STAGED_BLOCKS: u32 = 64u;
// [row, half of a block][block]
var<workgroup> staged_x: array<array<vec4<u32>, STAGED_BLOCKS>, STAGED_HALVES>;
// ONE_SCALE: the scale, and the scale times the sum; else as they lie in memory.
var<workgroup> staged_terms: array<array<vec2<f32>, STAGED_BLOCKS>, NT>;

// What a thread brings of the blocks that are staged next: one or two, since workgroups have 32 threads or more for each row of x.
struct Taken { lo: vec4<u32>, hi: vec4<u32>, scales: vec2<u32> }
struct Takens { a: Taken, b: Taken }
fn taken_at(i: u32, x_row0: u32, x_last: u32, first: u32) -> Taken {
    let e = min(i, NT * STAGED_BLOCKS - 1u);
    let row = min(x_row0 + e / STAGED_BLOCKS, x_last);
    let b = min(first + e % STAGED_BLOCKS, K_BLOCKS - 1u);
    return Taken(x[row * (2u * K_BLOCKS) + b], x[row * (2u * K_BLOCKS) + K_BLOCKS + b], x_scales[row * K_BLOCKS + b]);
}
// Of rows from x_row0 on, none past x_last, from block `first` on.
fn take_rows(t: Thread, x_row0: u32, x_last: u32, first: u32) -> Takens {
    var taken: Takens;
    taken.a = taken_at(t.lid, x_row0, x_last, first);
    if (NT * STAGED_BLOCKS > WG) { taken.b = taken_at(t.lid + WG, x_row0, x_last, first); }
    return taken;
}
fn stage(i: u32, taken: Taken) {
    if (i < NT * STAGED_BLOCKS) {
        let c = i / STAGED_BLOCKS;
        let b = i % STAGED_BLOCKS;
        staged_x[2u * c][b] = taken.lo;
        staged_x[2u * c + 1u][b] = taken.hi;
#if ONE_SCALE
        staged_terms[c][b] = team_terms(taken.scales).xy;
#else
        staged_terms[c][b] = bitcast<vec2<f32>>(taken.scales);
#endif
    }
}
// Leaves what was taken for all threads.
fn stage_rows(t: Thread, taken: Takens) {
    stage(t.lid, taken.a);
    if (NT * STAGED_BLOCKS > WG) { stage(t.lid + WG, taken.b); }
}
// Block i of those that are staged of row c.
fn team_x(c: u32, i: u32) -> TeamX {
#if ONE_SCALE
    let terms = staged_terms[c][i];
    return TeamX(staged_x[2u * c][i], staged_x[2u * c + 1u][i], terms.x, vec2<f32>(terms.y), 0.0);
#else
    let terms = team_terms(bitcast<vec2<u32>>(staged_terms[c][i]));
    return TeamX(staged_x[2u * c][i], staged_x[2u * c + 1u][i], terms.x, terms.yz, 0.0);
#endif
}

// A step of the team's rows of weights as it lies in memory, so that what is asked for ahead takes few registers.
struct TeamRaws { a: WeightRaw, b: WeightRaw }
fn team_raws(w_rows: vec4<u32>, i: u32) -> TeamRaws {
    var r: TeamRaws;
    r.a = weight_raw(w_rows.x * TEAM_STEPS + i);
    r.b = weight_raw(w_rows.y * TEAM_STEPS + i);
    return r;
}
fn team_ws_of(r: TeamRaws, w_rows: vec4<u32>, i: u32) -> TeamWs {
    var w: TeamWs;
    w.a = weight_bytes_of(r.a, w_rows.x * TEAM_STEPS + i);
    w.b = weight_bytes_of(r.b, w_rows.y * TEAM_STEPS + i);
    return w;
}

// A thread's sums, and its next step of weights.
struct StagedStep { sums: TeamSums, next: TeamRaws }
// Block i of those that are staged, of which number 0 is block `first` of the rows; the weights that come next are asked for meanwhile.
fn staged_step(before: StagedStep, w_rows: vec4<u32>, first: u32, i: u32) -> StagedStep {
    var step = before;
    let w = team_ws_of(step.next, w_rows, min(first + i, K_BLOCKS - 1u));
    step.next = team_raws(w_rows, min(first + i + TEAM, K_BLOCKS - 1u));
    if (K_BLOCKS % STAGED_BLOCKS == 0u || first + i < K_BLOCKS) {
        step.sums = team_add(step.sums, w, vec4<u32>(0u, 1u, 2u, 3u), i);
    }
    return step;
}
// All that are staged: of four rows as often as a driver knows beforehand, so that it unrolls the loop, which is much faster; of eight it is slower.
fn staged_steps(before: StagedStep, w_rows: vec4<u32>, first: u32, member: u32) -> StagedStep {
    var step = before;
    if (NT > 4u) {
        for (var i = member; i < STAGED_BLOCKS; i += TEAM) { step = staged_step(step, w_rows, first, i); }
    } else {
        for (var n = 0u; n < STAGED_BLOCKS / TEAM; n += 2u) {
            step = staged_step(step, w_rows, first, n * TEAM + member);
            if (STAGED_BLOCKS > TEAM) { step = staged_step(step, w_rows, first, (n + 1u) * TEAM + member); }
        }
    }
    return step;
}

// Leaves a thread's parts of the team's two rows of weights, as team_leave_columns does one after the other. Threads that put parts together halve what
// they have with each step: either of two goes on with half of the results. Sums are the same, of the same two numbers each time.
fn staged_leave(at: vec2<u32>, a: Columns, b: Columns) {
#if SUBGROUPS
    if (JOINED >= 4u) {
        let one = (at.y & 1u) != 0u;
        let two = (at.y & 2u) != 0u;
        let four = (at.y & 4u) != 0u;
        let to = at.x * TEAM_STRIDE + at.y / JOINED;
        var i = select(0u, NT, one);
        var v = select(a[0], b[0], one) + subgroupShuffleXor(select(b[0], a[0], one), 1u);
        if (NT > 4u) {
            let w = select(a[1], b[1], one) + subgroupShuffleXor(select(b[1], a[1], one), 1u);
            v = select(v, w, two) + subgroupShuffleXor(select(w, v, two), 2u);
            i += select(0u, 4u, two);
            if (JOINED == 4u) {
                for (var e = 0u; e < 4u; e++) { team_parts[(i + e) * TEAM_PARTS + to] = v[e]; }
            } else {
                var r = select(v.xy, v.zw, four) + subgroupShuffleXor(select(v.zw, v.xy, four), 4u);
                for (var apart = 8u; apart < JOINED; apart *= 2u) { r += subgroupShuffleXor(r, apart); }
                i += select(0u, 2u, four);
                if (at.y % JOINED < 8u) {
                    team_parts[i * TEAM_PARTS + to] = r.x;
                    team_parts[(i + 1u) * TEAM_PARTS + to] = r.y;
                }
            }
        } else {
            let r = select(v.xy, v.zw, two) + subgroupShuffleXor(select(v.zw, v.xy, two), 2u);
            i += select(0u, 2u, two);
            if (JOINED == 4u) {
                team_parts[i * TEAM_PARTS + to] = r.x;
                team_parts[(i + 1u) * TEAM_PARTS + to] = r.y;
            } else {
                var s = select(r.x, r.y, four) + subgroupShuffleXor(select(r.y, r.x, four), 4u);
                for (var apart = 8u; apart < JOINED; apart *= 2u) { s += subgroupShuffleXor(s, apart); }
                if (at.y % JOINED < 8u) { team_parts[(i + select(0u, 1u, four)) * TEAM_PARTS + to] = s; }
            }
        }
        return;
    }
#endif
    team_leave_columns(at, 0u, a);
    team_leave_columns(at, NT, b);
}
