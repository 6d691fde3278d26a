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
