// y[t, y_offset + r] (+)= sum_k x[t, k] * W[r, k] (+ bias[r]) by cooperative matrices: f16 operands, f32 sums. Rows of x as half_rows.wgsl makes them.
// A workgroup of 4 subgroups makes a tile of 128 rows of x (64 with ROWS_64) by 128 rows of W; each subgroup has a quarter of it, as 4 (2) by 4
// matrices of 16 x 16. A step along k is one block of 32: both operands stand in workgroup memory, W decoded on the way there, and
// the next step's are read into registers meanwhile. BIAS adds a bias; ACCUMULATE adds to what y holds.
enable f16;
enable wgpu_cooperative_matrix;
const WG: u32 = 128u;
const TILE_R: u32 = 128u;
#if ROWS_64
const TILE_T: u32 = 64u;
#else
const TILE_T: u32 = 128u;
#endif
// Rows of x that a subgroup has, and vectors of x that a thread loads in a step.
const SUB_T: u32 = TILE_T / 2u;
const X_LOADS: u32 = TILE_T / 16u;
// Vectors from one row to the next in workgroup memory: 8, and 2 so that rows start in different banks.
const STRIDE: u32 = 10u;
struct Params {
    groups: u32, row_groups: u32, n: u32, t_rows: u32, k_blocks: u32, y_stride: u32, y_offset: u32,
}
@group(0) @binding(auto) var<storage, read> x: array<vec4<f16>>;
@group(0) @binding(auto) var<storage, read> scales: array<f32>;
@group(0) @binding(auto) var<storage, read_write> y: array<f32>;
#if BIAS
@group(0) @binding(auto) var<storage, read> bias: array<f32>;
#endif
#set HALVES
#slot weight

var<workgroup> xs: array<vec4<f16>, TILE_T * STRIDE>;
var<workgroup> ws: array<vec4<f16>, TILE_R * STRIDE>;
// 16 rows by 32 columns of results for each subgroup.
var<workgroup> strip: array<f32, 2048>;

// Writes the strip of a subgroup whose first element is y's (t0, r0).
fn write_strip(sg: u32, lane: u32, t0: u32, r0: u32) {
    workgroupBarrier();
    let r = r0 + lane;
    if (r < params.n) {
        for (var i = 0u; i < 16u; i++) {
            let c = t0 + i;
            if (c >= params.t_rows) { break; }
            var s = strip[sg * 512u + i * 32u + lane] * scales[c];
#if BIAS
            s += bias[r];
#endif
            let o = c * params.y_stride + params.y_offset + r;
#if ACCUMULATE
            s += y[o];
#endif
            y[o] = s;
        }
    }
    workgroupBarrier();
}

@compute @workgroup_size(WG)
fn main(
    // Not as a structure: naga must see that all threads take the same way to the matrices.
    @builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
    @builtin(local_invocation_index) lid: u32, @builtin(subgroup_id) sg: u32, @builtin(subgroup_invocation_id) lane: u32,
) {
    let g = wid.x + wid.y * nwg.x;
    if (g >= params.groups) { return; }
    let t_groups = params.groups / params.row_groups;
    // Neighbouring workgroups share rows of W, which are the larger operand.
    let row0 = (g / t_groups) * TILE_R;
    let t0 = (g % t_groups) * TILE_T;
    let sub_t = (sg / 2u) * SUB_T;
    let sub_r = (sg % 2u) * 64u;
    let stride4 = params.k_blocks * 8u;
    // This thread loads every 16th row of x, one vector in eight; and one row of W, or with QUADS as of x.
    var x_at: array<u32, X_LOADS>;
    for (var i = 0u; i < X_LOADS; i++) {
        x_at[i] = min(t0 + i * 16u + lid / 8u, params.t_rows - 1u) * stride4 + lid % 8u;
    }
    let x_to = (lid / 8u) * STRIDE + lid % 8u;
    var x_next: array<vec4<f16>, X_LOADS>;
    for (var i = 0u; i < X_LOADS; i++) { x_next[i] = x[x_at[i]]; }
#if QUADS
    var w_at: array<u32, 8>;
    for (var i = 0u; i < 8u; i++) { w_at[i] = min(row0 + i * 16u + lid / 8u, params.n - 1u) * params.k_blocks; }
    var w_next: array<vec4<f16>, 8>;
    for (var i = 0u; i < 8u; i++) { w_next[i] = weight_quad(w_at[i], lid % 8u); }
#else
    let w_at = min(row0 + lid, params.n - 1u) * params.k_blocks;
    var w_next = weight_block(w_at);
#endif
    var c00 = coop_mat16x16<f32, C>();
    var c01 = coop_mat16x16<f32, C>();
    var c02 = coop_mat16x16<f32, C>();
    var c03 = coop_mat16x16<f32, C>();
    var c10 = coop_mat16x16<f32, C>();
    var c11 = coop_mat16x16<f32, C>();
    var c12 = coop_mat16x16<f32, C>();
    var c13 = coop_mat16x16<f32, C>();
#if !ROWS_64
    var c20 = coop_mat16x16<f32, C>();
    var c21 = coop_mat16x16<f32, C>();
    var c22 = coop_mat16x16<f32, C>();
    var c23 = coop_mat16x16<f32, C>();
    var c30 = coop_mat16x16<f32, C>();
    var c31 = coop_mat16x16<f32, C>();
    var c32 = coop_mat16x16<f32, C>();
    var c33 = coop_mat16x16<f32, C>();
#endif
    for (var kb = 0u; kb < params.k_blocks; kb++) {
        for (var i = 0u; i < X_LOADS; i++) { xs[x_to + i * 16u * STRIDE] = x_next[i]; }
#if QUADS
        for (var i = 0u; i < 8u; i++) { ws[x_to + i * 16u * STRIDE] = w_next[i]; }
#else
        for (var i = 0u; i < 8u; i++) { ws[lid * STRIDE + i] = vec4<f16>(w_next[i]); }
#endif
        workgroupBarrier();
        let next = min(kb + 1u, params.k_blocks - 1u);
        for (var i = 0u; i < X_LOADS; i++) { x_next[i] = x[x_at[i] + next * 8u]; }
#if QUADS
        for (var i = 0u; i < 8u; i++) { w_next[i] = weight_quad(w_at[i] + next, lid % 8u); }
#else
        w_next = weight_block(w_at + next);
#endif
        for (var k = 0u; k < 8u; k += 4u) {
            let a = sub_t * STRIDE + k;
            let b = sub_r * STRIDE + k;
            let b0 = coopLoad<coop_mat16x16<f16, B>>(&ws[b + 0u * STRIDE], STRIDE);
            let b1 = coopLoad<coop_mat16x16<f16, B>>(&ws[b + 16u * STRIDE], STRIDE);
            let b2 = coopLoad<coop_mat16x16<f16, B>>(&ws[b + 32u * STRIDE], STRIDE);
            let b3 = coopLoad<coop_mat16x16<f16, B>>(&ws[b + 48u * STRIDE], STRIDE);
            let a0 = coopLoadT<coop_mat16x16<f16, A>>(&xs[a + 0u * STRIDE], STRIDE);
            c00 = coopMultiplyAdd(a0, b0, c00);
            c01 = coopMultiplyAdd(a0, b1, c01);
            c02 = coopMultiplyAdd(a0, b2, c02);
            c03 = coopMultiplyAdd(a0, b3, c03);
            let a1 = coopLoadT<coop_mat16x16<f16, A>>(&xs[a + 16u * STRIDE], STRIDE);
            c10 = coopMultiplyAdd(a1, b0, c10);
            c11 = coopMultiplyAdd(a1, b1, c11);
            c12 = coopMultiplyAdd(a1, b2, c12);
            c13 = coopMultiplyAdd(a1, b3, c13);
#if !ROWS_64
            let a2 = coopLoadT<coop_mat16x16<f16, A>>(&xs[a + 32u * STRIDE], STRIDE);
            c20 = coopMultiplyAdd(a2, b0, c20);
            c21 = coopMultiplyAdd(a2, b1, c21);
            c22 = coopMultiplyAdd(a2, b2, c22);
            c23 = coopMultiplyAdd(a2, b3, c23);
            let a3 = coopLoadT<coop_mat16x16<f16, A>>(&xs[a + 48u * STRIDE], STRIDE);
            c30 = coopMultiplyAdd(a3, b0, c30);
            c31 = coopMultiplyAdd(a3, b1, c31);
            c32 = coopMultiplyAdd(a3, b2, c32);
            c33 = coopMultiplyAdd(a3, b3, c33);
#endif
        }
        workgroupBarrier();
    }
    let at = sg * 512u;
    coopStoreT(c00, &strip[at], 32u); coopStoreT(c01, &strip[at + 16u], 32u);
    write_strip(sg, lane, t0 + sub_t + 0u, row0 + sub_r + 0u);
    coopStoreT(c02, &strip[at], 32u); coopStoreT(c03, &strip[at + 16u], 32u);
    write_strip(sg, lane, t0 + sub_t + 0u, row0 + sub_r + 32u);
    coopStoreT(c10, &strip[at], 32u); coopStoreT(c11, &strip[at + 16u], 32u);
    write_strip(sg, lane, t0 + sub_t + 16u, row0 + sub_r + 0u);
    coopStoreT(c12, &strip[at], 32u); coopStoreT(c13, &strip[at + 16u], 32u);
    write_strip(sg, lane, t0 + sub_t + 16u, row0 + sub_r + 32u);
#if !ROWS_64
    coopStoreT(c20, &strip[at], 32u); coopStoreT(c21, &strip[at + 16u], 32u);
    write_strip(sg, lane, t0 + sub_t + 32u, row0 + sub_r + 0u);
    coopStoreT(c22, &strip[at], 32u); coopStoreT(c23, &strip[at + 16u], 32u);
    write_strip(sg, lane, t0 + sub_t + 32u, row0 + sub_r + 32u);
    coopStoreT(c30, &strip[at], 32u); coopStoreT(c31, &strip[at + 16u], 32u);
    write_strip(sg, lane, t0 + sub_t + 48u, row0 + sub_r + 0u);
    coopStoreT(c32, &strip[at], 32u); coopStoreT(c33, &strip[at + 16u], 32u);
    write_strip(sg, lane, t0 + sub_t + 48u, row0 + sub_r + 32u);
#endif
}
