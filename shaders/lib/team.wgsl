// Products along k by teams: TEAM neighbouring threads of a workgroup of WG make one row of weights (two with PAIR) times NT rows of x, NT at
// most 4. With BYTES x is rows of signed bytes (byte_rows), else f32, with TAIL not a multiple of 32 wide.
// NORM: x is still to be normalised by its root mean square, a factor of the result. With BYTES the bytes have the norm's weights in them, and
// row_sums the sums of squares of the blocks of 32 that the rows had before; else both are taken from x and norm_w here.
// The caller declares WG, TEAM and NT, and params with k_blocks, k4 and, without BYTES, x_stride4 and x_offset4; with NORM eps.
#import thread
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
// One thread's part of each result, and of the sums of squares; a team's parts begin in different banks.
override TEAM_PARTS: u32 = TEAMS * (TEAM + 1u);
var<workgroup> team_parts: array<f32, TEAM_PARTS * NT * (TEAM_ROWS + TEAM_NORMS)>;

// Leaves the parts for team_sum: weight rows w_rows (as many as TEAM_ROWS) times rows of x from x_row0 on, none past x_last.
fn team_products(t: Thread, w_rows: vec2<u32>, x_row0: u32, x_last: u32) {
    let member = t.lid % TEAM;
    var acc: array<f32, 8>;
    for (var i = 0u; i < TEAM_ROWS * NT; i++) { acc[i] = 0.0; }
    var squares: array<f32, 4>;
    for (var c = 0u; c < NT; c++) { squares[c] = 0.0; }
#if BYTES
    for (var b = member; b < params.k_blocks; b += TEAM) {
        var lo: array<vec4<u32>, 4>;
        var hi: array<vec4<u32>, 4>;
        // Scale, and scale times the sum of either half.
        var s: array<vec3<f32>, 4>;
        for (var c = 0u; c < NT; c++) {
            let row = min(x_row0 + c, x_last) * params.k_blocks;
            lo[c] = x[row * 2u + b];
            hi[c] = x[row * 2u + params.k_blocks + b];
            let scales = x_scales[row + b];
            let d = bitcast<f32>(scales.x);
            let sums = bitcast<vec2<i32>>(vec2<u32>(scales.y << 16u, scales.y)) >> vec2<u32>(16u);
            s[c] = vec3<f32>(d, d * vec2<f32>(sums));
#if NORM
            squares[c] += row_sums[row + b];
#endif
        }
        for (var r = 0u; r < TEAM_ROWS; r++) {
            let w = weight_bytes(w_rows[r] * params.k_blocks + b);
            for (var c = 0u; c < NT; c++) {
                let whole = vec2<f32>(f32(bytes_dot(w.lo, lo[c])), f32(bytes_dot(w.hi, hi[c])));
                acc[r * NT + c] += s[c].x * dot(w.scale, whole) + dot(w.offset, s[c].yz);
            }
        }
    }
#else
#if ELEMENTS
    // Eight weights a thread and step, so that neighbouring threads read neighbouring bytes.
    const STEP: u32 = 2u;
#else
    const STEP: u32 = 8u;
#endif
    let steps = params.k_blocks * 8u / STEP;
    for (var i = member; i < steps; i += TEAM) {
        var xv: array<vec4<f32>, 32>;
        for (var c = 0u; c < NT; c++) {
            let base = min(x_row0 + c, x_last) * params.x_stride4 + params.x_offset4;
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
#endif
    let at = t.lid / TEAM * (TEAM + 1u) + member;
    for (var i = 0u; i < TEAM_ROWS * NT; i++) { team_parts[i * TEAM_PARTS + at] = acc[i]; }
#if NORM
    for (var c = 0u; c < NT; c++) { team_parts[(TEAM_ROWS * NT + c) * TEAM_PARTS + at] = squares[c]; }
#endif
    workgroupBarrier();
}

fn team_total(team: u32, i: u32) -> f32 {
    var s = 0.0;
    for (var j = 0u; j < TEAM; j++) { s += team_parts[i * TEAM_PARTS + team * (TEAM + 1u) + j]; }
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
