// Products along k by teams: TEAM neighbouring threads of a workgroup of WG make one row of weights (two with PAIR, four with QUAD) times NT rows of x,
// NT 1, 2, 4 or, where they are staged, 8. With BYTES x is rows of signed bytes (byte_rows), else f32, with TAIL not a multiple of 32 wide.
// NORM: x is still to be normalised by its root mean square, a factor of the result. With SCALED, as always with BYTES, x has the norm's weights in
// it, and row_sums the sums of squares of the blocks of 32 that the rows had before, for numbers of both halves of each (lib/next_rows.wgsl); else
// both are taken from x and norm_w here.
// STAGED: rows of x as bytes are brought through workgroup memory (staged_rows), and a team makes two rows of weights.
// CHAIN_IN: x comes from an earlier stage of a chain (lib/chain.wgsl), as bytes, or as numbers where weights are single elements.
// The caller declares WG, TEAM, NT, K_BLOCKS (blocks of a row, a constant: so a driver knows how often it goes round and asks for several blocks at
// once), REDUCE, threads of a team that are sure to be of one subgroup (1: not known), SPREAD, teams that lie beside each other in a subgroup, REDUCE
// threads of each at a time (1: a team's threads are neighbours), SPLIT, parts of a team that threads of a subgroup would have put together, were it not
// spread (1, 2 or 4: so results are the same), and params with, without BYTES, k4, x_stride4 and x_offset4; with NORM eps.
#import thread
#if BYTES
#set SCALED
#endif
#if CHAIN_IN
#import chain_in
#else
#if BYTES
@group(0) @binding(auto) var<storage, read> x: array<vec4<u32>>;
@group(0) @binding(auto) var<storage, read> x_scales: array<vec2<u32>>;
#else
@group(0) @binding(auto) var<storage, read> x: array<vec4<f32>>;
#endif
#if NORM
#if SCALED
@group(0) @binding(auto) var<storage, read> row_sums: array<f32>;
#else
@group(0) @binding(auto) var<storage, read> norm_w: array<vec4<f32>>;
#endif
#endif
#endif
#slot weight

#if STAGED
#set PAIR
#endif
#if QUAD
#set TWO
const TEAM_ROWS: u32 = 4u;
#else
#if PAIR
#set TWO
const TEAM_ROWS: u32 = 2u;
#else
const TEAM_ROWS: u32 = 1u;
#endif
#endif
#if NORM
const TEAM_NORMS: u32 = 1u;
#else
const TEAM_NORMS: u32 = 0u;
#endif
override TEAMS: u32 = WG / TEAM;
// Steps of a team along a row: blocks of bytes; eight single elements, so that neighbouring threads read neighbouring bytes; blocks of 32 of what else
// there is. (Before arrays of overridden size: naga 30 asserts in vain where a constant that only functions use follows one.)
#if ELEMENTS
override TEAM_STEPS: u32 = K_BLOCKS * 4u;
#else
override TEAM_STEPS: u32 = K_BLOCKS;
#endif
#if SUBGROUPS
override JOINED: u32 = REDUCE;
#else
const JOINED: u32 = 1u;
#endif
#if STAGED
override STAGED_HALVES: u32 = 2u * NT;
#endif
// What is left of a team where JOINED threads have put their parts together; a team's parts begin in different banks.
override TEAM_LEFT: u32 = TEAM / JOINED;
override TEAM_STRIDE: u32 = TEAM_LEFT | 1u;
override TEAM_PARTS: u32 = TEAMS * TEAM_STRIDE;
// Parts of each result, and of the sums of squares. CHAINED: a stage of a chain, whose stages share the memory.
#if CHAINED
var<workgroup> team_parts: array<f32, CHAIN_PARTS>;
#else
#if STAGED
// Each team has the squares of one row of x.
var<workgroup> team_parts: array<f32, TEAM_PARTS * (NT * TEAM_ROWS + TEAM_NORMS)>;
#else
var<workgroup> team_parts: array<f32, TEAM_PARTS * NT * (TEAM_ROWS + TEAM_NORMS)>;
#endif
#endif

#if STAGED
#import staged_rows
#endif

// A thread's team, and its place in that.
fn team_at(t: Thread) -> vec2<u32> {
    let i = place_of(t);
    let k = i % (SPREAD * TEAM);
    return vec2<u32>(
        i / (SPREAD * TEAM) * SPREAD + k % (SPREAD * JOINED) / JOINED,
        k / (SPREAD * JOINED) * JOINED + k % JOINED);
}

// A number for each row of x.
alias Columns = array<vec4<f32>, 2>;

// Leaves a thread's part of number i of its team.
fn team_leave(at: vec2<u32>, i: u32, part: f32) {
    var s = part;
#if SUBGROUPS
    for (var apart = 1u; apart < JOINED; apart *= 2u) { s += subgroupShuffleXor(s, apart); }
    if (at.y % JOINED == 0u) { team_parts[i * TEAM_PARTS + at.x * TEAM_STRIDE + at.y / JOINED] = s; }
#else
    team_parts[i * TEAM_PARTS + at.x * TEAM_STRIDE + at.y] = s;
#endif
}
#if SUBGROUPS
// Leaves numbers 0 to n - 1 of a thread's team, up to four, as team_leave does one after the other: threads that put parts together halve what they have with
// each step, and either of two goes on with half of the numbers. So there are fewer exchanges, and sums are the same, of the same two each time.
fn team_leave_four(at: vec2<u32>, v: vec4<f32>, n: u32) {
    let one = (at.y & 1u) != 0u;
    let two = (at.y & 2u) != 0u;
    let r = select(v.xy, v.zw, one) + subgroupShuffleXor(select(v.zw, v.xy, one), 1u);
    var s = select(r.x, r.y, two) + subgroupShuffleXor(select(r.y, r.x, two), 2u);
    for (var apart = 4u; apart < JOINED; apart *= 2u) { s += subgroupShuffleXor(s, apart); }
    let i = select(0u, 2u, one) + select(0u, 1u, two);
    if (at.y % JOINED < 4u && i < n) { team_parts[i * TEAM_PARTS + at.x * TEAM_STRIDE + at.y / JOINED] = s; }
}
#endif
fn team_leave_columns(at: vec2<u32>, i: u32, parts: Columns) {
    team_leave(at, i, parts[0].x);
    if (NT > 1u) { team_leave(at, i + 1u, parts[0].y); }
    if (NT > 2u) {
        team_leave(at, i + 2u, parts[0].z);
        team_leave(at, i + 3u, parts[0].w);
    }
    if (NT > 4u) {
        team_leave(at, i + 4u, parts[1].x);
        team_leave(at, i + 5u, parts[1].y);
        team_leave(at, i + 6u, parts[1].z);
        team_leave(at, i + 7u, parts[1].w);
    }
}

// What a thread takes at a step: TeamW of a row of weights and TeamX of a row of x. SQUARES: of the numbers that are taken, where row_sums do not
// have them.
#if BYTES
alias TeamW = Bytes;
fn team_w(i: u32) -> TeamW { return weight_bytes_of(weight_raw(i), i); }
// A block: its bytes, the scale, the scale times the sum (ONE_SCALE) or that of either half, and the sum of squares.
struct TeamX { lo: vec4<u32>, hi: vec4<u32>, d: f32, sums: vec2<f32>, squares: f32 }
// What an entry of a row's scales has: the scale, and the scale times the sum or those of both halves.
fn team_terms(scales: vec2<u32>) -> vec3<f32> {
    let d = bitcast<f32>(scales.x);
    let sums = bitcast<vec2<i32>>(vec2<u32>(scales.y << 16u, scales.y)) >> vec2<u32>(16u);
#if ONE_SCALE
    return vec3<f32>(d, d * f32(sums.x + sums.y), 0.0);
#else
    return vec3<f32>(d, d * vec2<f32>(sums));
#endif
}
#if !STAGED
// Where a row of x begins.
fn team_row(row: u32) -> u32 { return row * K_BLOCKS; }
fn team_x(row: u32, i: u32) -> TeamX {
    var v: TeamX;
#if CHAIN_IN
    v.lo = chain_x[row * 2u + i];
    v.hi = chain_x[row * 2u + K_BLOCKS + i];
    let terms = team_terms(chain_scales[row + i]);
#else
    v.lo = x[row * 2u + i];
    v.hi = x[row * 2u + K_BLOCKS + i];
    let terms = team_terms(x_scales[row + i]);
#endif
    v.d = terms.x;
    v.sums = terms.yz;
#if NORM
#if CHAIN_IN
    v.squares = chain_squares[row + i];
#else
    v.squares = row_sums[row + i];
#endif
#endif
    return v;
}
#endif
// In this order everywhere: results do not depend on how many rows are made together.
fn team_add_product(sum: f32, w: TeamW, v: TeamX) -> f32 {
#if ONE_SCALE
    let whole = f32(bytes_dot_add(bytes_dot(w.lo, v.lo), w.hi, v.hi));
#if UNSHIFTED
    return fma(w.scale.x * v.d, whole, sum);
#else
    return fma(w.scale.x * v.d, whole, fma(w.offset.x, v.sums.x, sum));
#endif
#else
    let lo = bytes_dot(w.lo, v.lo);
    let hi = bytes_dot(w.hi, v.hi);
    let product = fma(w.scale.y, f32(hi), w.scale.x * f32(lo));
    return fma(v.d, product, fma(w.offset.y, v.sums.y, fma(w.offset.x, v.sums.x, sum)));
#endif
}
#else
#if CHAIN_IN
fn team_row(row: u32) -> u32 { return row * K_BLOCKS * 8u; }
fn team_four(row: u32, k: u32) -> vec4<f32> { return bitcast<vec4<f32>>(chain_x[row + k % 2u * (K_BLOCKS * 4u) + k / 2u]); }
#else
fn team_row(row: u32) -> u32 { return row * params.x_stride4 + params.x_offset4; }
fn team_four(row: u32, k: u32) -> vec4<f32> {
#if TAIL
    if (k >= params.k4) { return vec4<f32>(0.0); }
#endif
    return x[row + k];
}
#endif
#if NORM
#if !SCALED
#set SQUARES
fn team_norm(k: u32) -> vec4<f32> {
#if TAIL
    if (k >= params.k4) { return vec4<f32>(0.0); }
#endif
    return norm_w[k];
}
#endif
#endif
#if ELEMENTS
alias TeamW = array<vec4<f32>, 2>;
struct TeamX { a: vec4<f32>, b: vec4<f32>, squares: f32 }
fn team_w(i: u32) -> TeamW { return weight_eight(i); }
fn team_x(row: u32, i: u32) -> TeamX {
    let k = 2u * i;
    var v: TeamX;
    v.a = team_four(row, k);
    v.b = team_four(row, k + 1u);
#if SQUARES
    v.squares = dot(v.a, v.a) + dot(v.b, v.b);
    v.a *= team_norm(k);
    v.b *= team_norm(k + 1u);
#endif
    return v;
}
fn team_add_product(sum: f32, w: TeamW, v: TeamX) -> f32 { return sum + (dot(w[0], v.a) + dot(w[1], v.b)); }
#else
alias TeamW = array<vec4<f32>, 8>;
struct TeamX { v: array<vec4<f32>, 8>, squares: f32 }
fn team_w(i: u32) -> TeamW { return weight_block(i); }
fn team_x(row: u32, i: u32) -> TeamX {
    var x: TeamX;
    for (var j = 0u; j < 8u; j++) {
        var four = team_four(row, i * 8u + j);
#if SQUARES
        x.squares += dot(four, four);
        four *= team_norm(i * 8u + j);
#endif
        x.v[j] = four;
    }
    return x;
}
fn team_add_product(sum: f32, w: TeamW, x: TeamX) -> f32 {
    return sum + dot(w[0], x.v[0]) + dot(w[1], x.v[1]) + dot(w[2], x.v[2]) + dot(w[3], x.v[3])
        + dot(w[4], x.v[4]) + dot(w[5], x.v[5]) + dot(w[6], x.v[6]) + dot(w[7], x.v[7]);
}
#endif
#endif

// Of each row of x: sums with the team's rows of weights, and the squares.
struct TeamSums {
    a: Columns,
#if TWO
    b: Columns,
#endif
#if QUAD
    c: Columns,
    d: Columns,
#endif
    squares: Columns,
}
// A step of the team's rows of weights.
struct TeamWs {
    a: TeamW,
#if TWO
    b: TeamW,
#endif
#if QUAD
    c: TeamW,
    d: TeamW,
#endif
}
fn team_ws(w_rows: vec4<u32>, i: u32) -> TeamWs {
    var w: TeamWs;
    w.a = team_w(w_rows.x * TEAM_STEPS + i);
#if TWO
    w.b = team_w(w_rows.y * TEAM_STEPS + i);
#endif
#if QUAD
    w.c = team_w(w_rows.z * TEAM_STEPS + i);
    w.d = team_w(w_rows.w * TEAM_STEPS + i);
#endif
    return w;
}
// Adds the products of a step with what there is of row c of x.
fn team_add_row(sums: TeamSums, w: TeamWs, c: u32, x: TeamX) -> TeamSums {
    var s = sums;
    s.a[c / 4u][c % 4u] = team_add_product(s.a[c / 4u][c % 4u], w.a, x);
#if TWO
    s.b[c / 4u][c % 4u] = team_add_product(s.b[c / 4u][c % 4u], w.b, x);
#endif
#if QUAD
    s.c[c / 4u][c % 4u] = team_add_product(s.c[c / 4u][c % 4u], w.c, x);
    s.d[c / 4u][c % 4u] = team_add_product(s.d[c / 4u][c % 4u], w.d, x);
#endif
#if !STAGED
    s.squares[c / 4u][c % 4u] += x.squares;
#endif
    return s;
}
// Step i of weights, and of the rows of x that begin at x_at; staged rows have their numbers, and are eight at most.
fn team_add(sums: TeamSums, w: TeamWs, x_at: vec4<u32>, i: u32) -> TeamSums {
    var s = team_add_row(sums, w, 0u, team_x(x_at.x, i));
    if (NT > 1u) { s = team_add_row(s, w, 1u, team_x(x_at.y, i)); }
    if (NT > 2u) {
        s = team_add_row(s, w, 2u, team_x(x_at.z, i));
        s = team_add_row(s, w, 3u, team_x(x_at.w, i));
    }
#if STAGED
    if (NT > 4u) {
        s = team_add_row(s, w, 4u, team_x(4u, i));
        s = team_add_row(s, w, 5u, team_x(5u, i));
        s = team_add_row(s, w, 6u, team_x(6u, i));
        s = team_add_row(s, w, 7u, team_x(7u, i));
    }
#endif
    return s;
}
// The same with the team's rows of weights w_rows.
fn team_step(sums: TeamSums, w_rows: vec4<u32>, x_at: vec4<u32>, i: u32) -> TeamSums {
    return team_add(sums, team_ws(w_rows, i), x_at, i);
}

// The rows of weights of a thread's team in a workgroup whose rows begin with row0, as many as TEAM_ROWS: so that number i of them is row i / TEAMS of
// team i % TEAMS.
fn team_rows(t: Thread, row0: u32) -> vec4<u32> { return row0 + team_at(t).x + TEAMS * vec4<u32>(0u, 1u, 2u, 3u); }

#if !STAGED
fn team_leave_all(at: vec2<u32>, sums: TeamSums) {
#if SUBGROUPS
    // With one row of x numbers are those of the rows of weights, then the squares.
    if (NT == 1u && JOINED >= 4u && TEAM_ROWS + TEAM_NORMS > 1u) {
        var v = vec4<f32>(sums.a[0].x, 0.0, 0.0, 0.0);
#if TWO
        v.y = sums.b[0].x;
#endif
#if QUAD
        v.z = sums.c[0].x;
        v.w = sums.d[0].x;
#endif
#if NORM
        if (TEAM_ROWS < 4u) { v[TEAM_ROWS % 4u] = sums.squares[0].x; } else { team_leave(at, TEAM_ROWS, sums.squares[0].x); }
#endif
        team_leave_four(at, v, min(TEAM_ROWS + TEAM_NORMS, 4u));
        return;
    }
#endif
    team_leave_columns(at, 0u, sums.a);
#if TWO
    team_leave_columns(at, NT, sums.b);
#endif
#if QUAD
    team_leave_columns(at, 2u * NT, sums.c);
    team_leave_columns(at, 3u * NT, sums.d);
#endif
#if NORM
    team_leave_columns(at, TEAM_ROWS * NT, sums.squares);
#endif
}
#endif

// Leaves the parts for team_sum: weight rows w_rows (as many as TEAM_ROWS) times rows of x from x_row0 on, none past x_last.
fn team_products(t: Thread, w_rows: vec4<u32>, x_row0: u32, x_last: u32) {
    team_products_of(t, w_rows, x_row0, x_last, min(NT, x_last + 1u - x_row0));
}
// The same where a workgroup of a later stage has still to receive so many rows, or none.
fn team_products_of(t: Thread, w_rows: vec4<u32>, x_row0: u32, x_last: u32, missing: u32) {
    let at = team_at(t);
    var sums: TeamSums;
#if STAGED
    // Asked for before x is there, as later ones are before those before them are used.
    var step: StagedStep;
    step.next = team_raws(w_rows, min(at.y, K_BLOCKS - 1u));
    var taken = take_rows(t, x_row0, x_last, 0u);
#if NORM
    // Teams know the squares of a row of x each.
    let row = min(x_row0 + at.x % NT, x_last) * K_BLOCKS;
    var squares = 0.0;
    for (var n = 0u; n < K_BLOCKS / TEAM; n++) { squares += row_sums[row + n * TEAM + at.y]; }
    if (at.y < K_BLOCKS % TEAM) { squares += row_sums[row + K_BLOCKS / TEAM * TEAM + at.y]; }
#endif
    for (var first = 0u; first < K_BLOCKS; first += STAGED_BLOCKS) {
        if (first > 0u) { workgroupBarrier(); }
        stage_rows(t, taken);
        workgroupBarrier();
        taken = take_rows(t, x_row0, x_last, first + STAGED_BLOCKS);
        step = staged_steps(step, w_rows, first, at.y);
    }
    sums = step.sums;
#if NORM
    team_leave(at, TEAM_ROWS * NT, squares);
#endif
#else
    let x_rows = min(x_row0 + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(x_last));
#if CHAIN_IN
    // The first weights are asked for before x is there.
    let ahead = team_ws(w_rows, min(at.y, TEAM_STEPS - 1u));
    chain_receive(t, x_row0, missing, K_BLOCKS);
    let taken = x_rows - x_row0;
#else
    let taken = x_rows;
#endif
    let x_at = vec4<u32>(team_row(taken.x), team_row(taken.y), team_row(taken.z), team_row(taken.w));
#if CHAIN_IN
    if (at.y < TEAM_STEPS) { sums = team_add(sums, ahead, x_at, at.y); }
    for (var i = 1u; i < TEAM_STEPS / TEAM; i++) { sums = team_step(sums, w_rows, x_at, i * TEAM + at.y); }
    if (TEAM_STEPS > TEAM && at.y < TEAM_STEPS % TEAM) { sums = team_step(sums, w_rows, x_at, TEAM_STEPS / TEAM * TEAM + at.y); }
#else
    for (var i = 0u; i < TEAM_STEPS / TEAM; i++) { sums = team_step(sums, w_rows, x_at, i * TEAM + at.y); }
    if (at.y < TEAM_STEPS % TEAM) { sums = team_step(sums, w_rows, x_at, TEAM_STEPS / TEAM * TEAM + at.y); }
#endif
#endif
#if NORM
#if !BYTES
#if SCALED
    // Every thread adds up some of the blocks' sums.
    for (var b = at.y; b < K_BLOCKS; b += TEAM) {
#if CHAIN_IN
        for (var c = 0u; c < NT; c++) { sums.squares[c / 4u][c % 4u] += chain_squares[taken[c] * K_BLOCKS + b]; }
#else
        // Of either half of a block.
        for (var c = 0u; c < NT; c++) {
            sums.squares[c / 4u][c % 4u] += row_sums[taken[c] * K_BLOCKS + b] + row_sums[(params.t_rows + taken[c]) * K_BLOCKS + b];
        }
#endif
    }
#endif
#endif
#endif
#if STAGED
    staged_leave(at, sums.a, sums.b);
#else
    team_leave_all(at, sums);
#endif
    workgroupBarrier();
}

fn team_total(team: u32, i: u32) -> f32 {
    let at = i * TEAM_PARTS + team * TEAM_STRIDE;
    var s = 0.0;
    for (var j = 0u; j < TEAM_LEFT; j += SPLIT) {
        var part = team_parts[at + j];
        if (SPLIT > 1u) { part += team_parts[at + j + 1u]; }
        if (SPLIT > 2u) { part += team_parts[at + j + 2u] + team_parts[at + j + 3u]; }
        s += part;
    }
    return s;
}

// What results of row c of x are multiplied by.
fn team_scale(team: u32, c: u32) -> f32 {
#if NORM
#if TAIL
    let k = f32(params.k4 * 4u);
#else
    // A constant here as in a chain, so that a driver divides in the same way.
    let k = f32(K_BLOCKS * 32u);
#endif
#if STAGED
    let squares = team_total(c, TEAM_ROWS * NT);
#else
    let squares = team_total(team, TEAM_ROWS * NT + c);
#endif
    return 1.0 / sqrt(squares / k + params.eps);
#else
    return 1.0;
#endif
}

// The result of a team's weight row r with row c of x.
fn team_sum(team: u32, r: u32, c: u32) -> f32 { return team_total(team, r * NT + c); }
