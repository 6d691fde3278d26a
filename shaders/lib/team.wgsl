// Products along k by teams: TEAM neighbouring threads of a workgroup of WG make one row of weights (two with PAIR) times NT rows of x, NT 1,
// 2 or 4. With BYTES x is rows of signed bytes (byte_rows), else f32, with TAIL not a multiple of 32 wide.
// NORM: x is still to be normalised by its root mean square, a factor of the result. With BYTES the bytes have the norm's weights in them, and
// row_sums the sums of squares of the blocks of 32 that the rows had before; else both are taken from x and norm_w here.
// CHAIN_IN: x comes from an earlier stage of a chain (lib/chain.wgsl), as bytes.
// The caller declares WG, TEAM, NT, K_BLOCKS (blocks of a row, a constant: so a driver knows how often it goes round and asks for several blocks at
// once) and REDUCE, threads of a team that are sure to be of one subgroup (1: not known), and params with, without BYTES, k4, x_stride4 and
// x_offset4; with NORM k4 and eps.
#import thread
#if CHAIN_IN
#import chain_in
#else
#if BYTES
@group(0) @binding(auto) var<storage, read> x: array<vec4<u32>>;
@group(0) @binding(auto) var<storage, read> x_scales: array<vec2<u32>>;
#if NORM
@group(0) @binding(auto) var<storage, read> row_sums: array<f32>;
#endif
#else
@group(0) @binding(auto) var<storage, read> x: array<vec4<f32>>;
#if NORM
@group(0) @binding(auto) var<storage, read> norm_w: array<vec4<f32>>;
#endif
#endif
#endif
#slot weight

#if PAIR
const TEAM_ROWS: u32 = 2u;
#else
const TEAM_ROWS: u32 = 1u;
#endif
#if NORM
const TEAM_NORMS: u32 = 1u;
#else
const TEAM_NORMS: u32 = 0u;
#endif
override TEAMS: u32 = WG / TEAM;
#if SUBGROUPS
override JOINED: u32 = REDUCE;
#else
const JOINED: u32 = 1u;
#endif
// What is left of a team where JOINED threads have put their parts together; a team's parts begin in different banks.
override TEAM_LEFT: u32 = TEAM / JOINED;
override TEAM_STRIDE: u32 = TEAM_LEFT | 1u;
override TEAM_PARTS: u32 = TEAMS * TEAM_STRIDE;
// Parts of each result, and of the sums of squares.
var<workgroup> team_parts: array<f32, TEAM_PARTS * NT * (TEAM_ROWS + TEAM_NORMS)>;

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
fn team_leave_columns(at: vec2<u32>, i: u32, parts: vec4<f32>) {
    team_leave(at, i, parts.x);
    if (NT > 1u) { team_leave(at, i + 1u, parts.y); }
    if (NT > 2u) {
        team_leave(at, i + 2u, parts.z);
        team_leave(at, i + 3u, parts.w);
    }
}

// Of each row of x: sums with the team's rows of weights, and the squares.
struct TeamSums { first: vec4<f32>, second: vec4<f32>, squares: vec4<f32> }

#if BYTES
// A block of a row of x: its bytes, the scale, the scale times the sum of either half, and the sum of squares.
struct XBlock { lo: vec4<u32>, hi: vec4<u32>, d: f32, sums: vec2<f32>, squares: f32 }
fn x_block(row: u32, b: u32) -> XBlock {
    var v: XBlock;
#if CHAIN_IN
    v.lo = chain_x[row * 2u + b];
    v.hi = chain_x[row * 2u + K_BLOCKS + b];
    let scales = chain_scales[row + b];
#else
    v.lo = x[row * 2u + b];
    v.hi = x[row * 2u + K_BLOCKS + b];
    let scales = x_scales[row + b];
#endif
    v.d = bitcast<f32>(scales.x);
    v.sums = v.d * vec2<f32>(bitcast<vec2<i32>>(vec2<u32>(scales.y << 16u, scales.y)) >> vec2<u32>(16u));
#if NORM
#if CHAIN_IN
    v.squares = chain_squares[row + b];
#else
    v.squares = row_sums[row + b];
#endif
#endif
    return v;
}
fn block_product(w: Bytes, v: XBlock) -> f32 {
    return v.d * dot(w.scale, vec2<f32>(f32(bytes_dot(w.lo, v.lo)), f32(bytes_dot(w.hi, v.hi)))) + dot(w.offset, v.sums);
}
// Block b of the team's rows of weights w_rows, and of the rows of x that begin at x_at.
fn team_step(sums: TeamSums, w_rows: vec2<u32>, x_at: vec4<u32>, b: u32) -> TeamSums {
#if PAIR
    return team_add(sums, weight_bytes(w_rows.x * K_BLOCKS + b), weight_bytes(w_rows.y * K_BLOCKS + b), x_at, b);
#else
    let w = weight_bytes(w_rows.x * K_BLOCKS + b);
    return team_add(sums, w, w, x_at, b);
#endif
}
// The same with the weights' blocks.
fn team_add(sums: TeamSums, w0: Bytes, w1: Bytes, x_at: vec4<u32>, b: u32) -> TeamSums {
    var s = sums;
    let x0 = x_block(x_at.x, b);
#if PAIR
    s.second.x += block_product(w1, x0);
#endif
    s.first.x += block_product(w0, x0);
    s.squares.x += x0.squares;
    if (NT > 1u) {
        let x1 = x_block(x_at.y, b);
        s.first.y += block_product(w0, x1);
        s.squares.y += x1.squares;
#if PAIR
        s.second.y += block_product(w1, x1);
#endif
    }
    if (NT > 2u) {
        let x2 = x_block(x_at.z, b);
        let x3 = x_block(x_at.w, b);
        s.first.z += block_product(w0, x2);
        s.first.w += block_product(w0, x3);
        s.squares.z += x2.squares;
        s.squares.w += x3.squares;
#if PAIR
        s.second.z += block_product(w1, x2);
        s.second.w += block_product(w1, x3);
#endif
    }
    return s;
}
#endif

// Leaves the parts for team_sum: weight rows w_rows (as many as TEAM_ROWS) times rows of x from x_row0 on, none past x_last.
fn team_products(t: Thread, w_rows: vec2<u32>, x_row0: u32, x_last: u32) {
    let at = team_of(t, TEAM);
    let x_rows = min(vec4<u32>(x_row0) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(x_last));
#if BYTES
    var sums: TeamSums;
#if CHAIN_IN
    // The first blocks of weights are asked for before x is there.
    let first = min(at.y, K_BLOCKS - 1u);
    let w0 = weight_bytes(w_rows.x * K_BLOCKS + first);
#if PAIR
    let w1 = weight_bytes(w_rows.y * K_BLOCKS + first);
#else
    let w1 = w0;
#endif
    chain_receive(t, x_row0, min(NT, x_last + 1u - x_row0), K_BLOCKS);
    let x_at = (x_rows - x_row0) * K_BLOCKS;
    if (at.y < K_BLOCKS) { sums = team_add(sums, w0, w1, x_at, at.y); }
    for (var i = 1u; i < K_BLOCKS / TEAM; i++) { sums = team_step(sums, w_rows, x_at, i * TEAM + at.y); }
    if (K_BLOCKS > TEAM && at.y < K_BLOCKS % TEAM) { sums = team_step(sums, w_rows, x_at, K_BLOCKS / TEAM * TEAM + at.y); }
#else
    let x_at = x_rows * K_BLOCKS;
    for (var i = 0u; i < K_BLOCKS / TEAM; i++) { sums = team_step(sums, w_rows, x_at, i * TEAM + at.y); }
    if (at.y < K_BLOCKS % TEAM) { sums = team_step(sums, w_rows, x_at, K_BLOCKS / TEAM * TEAM + at.y); }
#endif
    team_leave_columns(at, 0u, sums.first);
#if PAIR
    team_leave_columns(at, NT, sums.second);
#endif
#if NORM
    team_leave_columns(at, TEAM_ROWS * NT, sums.squares);
#endif
#else
    var acc: array<f32, 8>;
    for (var i = 0u; i < TEAM_ROWS * NT; i++) { acc[i] = 0.0; }
    var squares: array<f32, 4>;
    for (var c = 0u; c < NT; c++) { squares[c] = 0.0; }
#if ELEMENTS
    // Eight weights a thread and step, so that neighbouring threads read neighbouring bytes.
    const STEP: u32 = 2u;
#else
    const STEP: u32 = 8u;
#endif
    let steps = K_BLOCKS * 8u / STEP;
    for (var i = at.y; i < steps; i += TEAM) {
        var xv: array<vec4<f32>, 32>;
        for (var c = 0u; c < NT; c++) {
            let base = x_rows[c] * params.x_stride4 + params.x_offset4;
            for (var j = 0u; j < STEP; j++) {
                let k = i * STEP + j;
                var v = vec4<f32>(0.0);
#if TAIL
                if (k < params.k4) { v = x[base + k]; }
#else
                v = x[base + k];
#endif
#if NORM
                squares[c] += dot(v, v);
#if TAIL
                if (k < params.k4) { v *= norm_w[k]; }
#else
                v *= norm_w[k];
#endif
#endif
                xv[c * STEP + j] = v;
            }
        }
        for (var r = 0u; r < TEAM_ROWS; r++) {
#if ELEMENTS
            let w = weight_eight(w_rows[r] * steps + i);
            for (var c = 0u; c < NT; c++) { acc[r * NT + c] += dot(w[0], xv[c * 2u]) + dot(w[1], xv[c * 2u + 1u]); }
#else
            let w = weight_block(w_rows[r] * steps + i);
            for (var c = 0u; c < NT; c++) {
                let o = c * 8u;
                acc[r * NT + c] += dot(w[0], xv[o]) + dot(w[1], xv[o + 1u]) + dot(w[2], xv[o + 2u]) + dot(w[3], xv[o + 3u])
                    + dot(w[4], xv[o + 4u]) + dot(w[5], xv[o + 5u]) + dot(w[6], xv[o + 6u]) + dot(w[7], xv[o + 7u]);
            }
#endif
        }
    }
    for (var i = 0u; i < TEAM_ROWS * NT; i++) { team_leave(at, i, acc[i]); }
#if NORM
    for (var c = 0u; c < NT; c++) { team_leave(at, TEAM_ROWS * NT + c, squares[c]); }
#endif
#endif
    workgroupBarrier();
}

fn team_total(team: u32, i: u32) -> f32 {
    var s = 0.0;
    for (var j = 0u; j < TEAM_LEFT; j++) { s += team_parts[i * TEAM_PARTS + team * TEAM_STRIDE + j]; }
    return s;
}

// What results of row c of x are multiplied by.
fn team_scale(team: u32, c: u32) -> f32 {
#if NORM
    return 1.0 / sqrt(team_total(team, TEAM_ROWS * NT + c) / f32(params.k4 * 4u) + params.eps);
#else
    return 1.0;
#endif
}

// The result of a team's weight row r with row c of x.
fn team_sum(team: u32, r: u32, c: u32) -> f32 { return team_total(team, r * NT + c); }
