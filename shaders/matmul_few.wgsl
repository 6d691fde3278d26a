// y[t, y_offset + r] (+)= sum_k x[t, k] * W[r, k] (+ bias[r]) for few rows of x, by cooperative matrices: f16 operands, f32 sums. Rows of x as
// half_rows.wgsl makes them. What bounds it is how fast weights come in, so a workgroup has few of them and there are many workgroups.
// A workgroup of 4 subgroups makes 16 (ROWS_16) or 32 rows of x by 32 rows of W for one of `splits` parts of k, the part s at y + s *
// split_stride. A step along k is four blocks of 32; each subgroup multiplies its own quarter of a step, and the quarters are added up at the
// end. Two steps are under way in named registers while one is multiplied: drivers move loads down to their use, and keep arrays in memory.
// BIAS adds a bias; ACCUMULATE adds to what y holds.
enable wgpu_cooperative_matrix;
enable f16;
const WG: u32 = 128u;
const TILE_R: u32 = 32u;
#if ROWS_16
const TILE_T: u32 = 16u;
#else
const TILE_T: u32 = 32u;
#endif
const STEP: u32 = 4u;
struct Params {
    groups: u32, row_groups: u32, n: u32, t_rows: u32, k_blocks: u32, y_stride: u32, y_offset: u32,
    splits: u32, split_blocks: u32, split_stride: u32,
}
@group(0) @binding(auto) var<storage, read> x: array<vec4<u32>>;
@group(0) @binding(auto) var<storage, read> scales: array<f32>;
@group(0) @binding(auto) var<storage, read_write> y: array<f32>;
#if BIAS
@group(0) @binding(auto) var<storage, read> bias: array<f32>;
#endif
#set F16_MATH
#slot weight

// A row of a step, in units of eight numbers: the j-th unit of each of its blocks comes before the next unit of any, so that threads which decode
// neighbouring blocks write neighbouring units. Both operands are in that order, which makes no difference to sums. The padding lets
// rows start in different banks. Nested arrays and constant indices: their bounds are checked once.
struct Row { units: array<array<array<vec4<f16>, 2>, 4>, 4>, pad: array<vec4<f16>, 2> }
// Vectors from one row to the next.
const STRIDE: u32 = 34u;
var<workgroup> xs: array<Row, TILE_T>;
var<workgroup> ws: array<Row, TILE_R>;
// A matrix of results for each subgroup. A workgroup with more than 24 KiB in all would be alone on its processor with some drivers.
var<workgroup> strip: array<array<vec4<f32>, 64>, 4>;

fn load_x(at: u32, on: bool) -> vec4<u32> {
    var v = vec4<u32>(0u);
    if (on) { v = x[at]; }
    return v;
}
fn stage_x(row: u32, j: u32, b: u32, v: vec4<u32>) {
    xs[row].units[j][b] = array<vec4<f16>, 2>(
        vec4<f16>(vec4<f32>(unpack2x16float(v.x), unpack2x16float(v.y))),
        vec4<f16>(vec4<f32>(unpack2x16float(v.z), unpack2x16float(v.w))));
}
#if ELEMENTS
fn stage_eight(row: u32, j: u32, b: u32, raw: vec4<u32>) {
    let d = weight_of(raw);
    ws[row].units[j][b] = array<vec4<f16>, 2>(vec4<f16>(d[0]), vec4<f16>(d[1]));
}
#else
fn stage_block(row: u32, b: u32, raw: WeightRaw, block: u32) {
#if HALF_BLOCKS
    let d = weight_halves(raw, block);
#else
    let d = weight_of(raw, block);
#endif
    ws[row].units[0][b] = array<vec4<f16>, 2>(vec4<f16>(d[0]), vec4<f16>(d[1]));
    ws[row].units[1][b] = array<vec4<f16>, 2>(vec4<f16>(d[2]), vec4<f16>(d[3]));
    ws[row].units[2][b] = array<vec4<f16>, 2>(vec4<f16>(d[4]), vec4<f16>(d[5]));
    ws[row].units[3][b] = array<vec4<f16>, 2>(vec4<f16>(d[6]), vec4<f16>(d[7]));
}
#endif

// Adds up the subgroups' parts of a matrix, which begins at (t0, r0) of y, and writes it.
fn write_matrix(lid: u32, split: u32, t0: u32, r0: u32) {
    workgroupBarrier();
    let t = t0 + lid / 4u;
    let r = r0 + lid % 4u * 4u;
    if (lid < 64u && t < params.t_rows && r < params.n) {
        var a = (strip[0][lid] + strip[1][lid] + strip[2][lid] + strip[3][lid]) * scales[t];
        let last = params.n - 1u - r;
        let o = split * params.split_stride + t * params.y_stride + params.y_offset + r;
#if BIAS
        if (split == 0u) {
            a += vec4<f32>(bias[r], bias[r + min(1u, last)], bias[r + min(2u, last)], bias[r + min(3u, last)]);
        }
#endif
#if ACCUMULATE
        a += vec4<f32>(y[o], y[o + min(1u, last)], y[o + min(2u, last)], y[o + min(3u, last)]);
#endif
        y[o] = a.x;
        if (last >= 1u) { y[o + 1u] = a.y; }
        if (last >= 2u) { y[o + 2u] = a.z; }
        if (last >= 3u) { y[o + 3u] = a.w; }
    }
    workgroupBarrier();
}

@compute @workgroup_size(WG)
fn main(
    // Not as a structure: naga must see that all threads take the same way to the matrices.
    @builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
    @builtin(local_invocation_index) lid: u32, @builtin(subgroup_id) sg: u32,
) {
    let g = wid.x + wid.y * nwg.x;
    if (g >= params.groups) { return; }
    let split = g % params.splits;
    let tile = g / params.splits;
    let row0 = tile % params.row_groups * TILE_R;
    let t0 = tile / params.row_groups * TILE_T;
    let first = split * params.split_blocks;
    let end = min(first + params.split_blocks, params.k_blocks);
    let last_r = params.n - 1u;
    // The unit that this thread copies of every eighth row of x (and of W, if its units can be read alone): unit uj of block ub of a step.
    let uc = lid % 16u;
    let uj = (uc & 1u) | ((uc >> 2u) & 2u);
    let ub = (uc >> 1u) & 3u;
    let u_row = lid / 16u;
    let x_at = ((t0 + u_row) * params.k_blocks + ub) * 4u + uj;
    let x_next = params.k_blocks * 32u;
    let x_on0 = t0 + u_row < params.t_rows;
    let x_on1 = t0 + u_row + 8u < params.t_rows;
#if !ROWS_16
    let x_on2 = t0 + u_row + 16u < params.t_rows;
    let x_on3 = t0 + u_row + 24u < params.t_rows;
#endif
#if ELEMENTS
    let w_at0 = min(row0 + u_row, last_r) * params.k_blocks * 4u + uj;
    let w_at1 = min(row0 + u_row + 8u, last_r) * params.k_blocks * 4u + uj;
    let w_at2 = min(row0 + u_row + 16u, last_r) * params.k_blocks * 4u + uj;
    let w_at3 = min(row0 + u_row + 24u, last_r) * params.k_blocks * 4u + uj;
#else
    // It decodes block wb of row wr of a step. Of eight neighbouring threads those of different rows write to different banks.
    let wb = lid % 4u;
    let wr = lid / 32u * 8u + lid / 8u % 4u + lid / 4u % 2u * 4u;
    let w_at = min(row0 + wr, last_r) * params.k_blocks;
#endif
    var c00 = coop_mat16x16<f32, C>();
    var c01 = coop_mat16x16<f32, C>();
#if !ROWS_16
    var c10 = coop_mat16x16<f32, C>();
    var c11 = coop_mat16x16<f32, C>();
#endif
    // Beyond the last block x is zero, and the last block of W is multiplied once more.
    var a_x0 = load_x(x_at + (first) * 4u, x_on0 & (first + ub < end));
    var a_x1 = load_x(x_at + x_next + (first) * 4u, x_on1 & (first + ub < end));
#if !ROWS_16
    var a_x2 = load_x(x_at + 2u * x_next + (first) * 4u, x_on2 & (first + ub < end));
    var a_x3 = load_x(x_at + 3u * x_next + (first) * 4u, x_on3 & (first + ub < end));
#endif
#if ELEMENTS
    var a_w0 = weight_raw(w_at0 + min(first + ub, end - 1u) * 4u);
    var a_w1 = weight_raw(w_at1 + min(first + ub, end - 1u) * 4u);
    var a_w2 = weight_raw(w_at2 + min(first + ub, end - 1u) * 4u);
    var a_w3 = weight_raw(w_at3 + min(first + ub, end - 1u) * 4u);
#else
    var a_w0 = weight_raw(w_at + min(first + wb, end - 1u));
#endif
    var b_x0 = load_x(x_at + (first + STEP) * 4u, x_on0 & (first + STEP + ub < end));
    var b_x1 = load_x(x_at + x_next + (first + STEP) * 4u, x_on1 & (first + STEP + ub < end));
#if !ROWS_16
    var b_x2 = load_x(x_at + 2u * x_next + (first + STEP) * 4u, x_on2 & (first + STEP + ub < end));
    var b_x3 = load_x(x_at + 3u * x_next + (first + STEP) * 4u, x_on3 & (first + STEP + ub < end));
#endif
#if ELEMENTS
    var b_w0 = weight_raw(w_at0 + min(first + STEP + ub, end - 1u) * 4u);
    var b_w1 = weight_raw(w_at1 + min(first + STEP + ub, end - 1u) * 4u);
    var b_w2 = weight_raw(w_at2 + min(first + STEP + ub, end - 1u) * 4u);
    var b_w3 = weight_raw(w_at3 + min(first + STEP + ub, end - 1u) * 4u);
#else
    var b_w0 = weight_raw(w_at + min(first + STEP + wb, end - 1u));
#endif
    for (var kb = first; kb < end; kb += 2u * STEP) {
        workgroupBarrier();
        stage_x(u_row, uj, ub, a_x0);
        stage_x(u_row + 8u, uj, ub, a_x1);
#if !ROWS_16
        stage_x(u_row + 16u, uj, ub, a_x2);
        stage_x(u_row + 24u, uj, ub, a_x3);
#endif
#if ELEMENTS
        stage_eight(u_row, uj, ub, a_w0);
        stage_eight(u_row + 8u, uj, ub, a_w1);
        stage_eight(u_row + 16u, uj, ub, a_w2);
        stage_eight(u_row + 24u, uj, ub, a_w3);
#else
        stage_block(wr, wb, a_w0, w_at + min(kb + wb, end - 1u));
#endif
        a_x0 = load_x(x_at + (kb + 2u * STEP) * 4u, x_on0 & (kb + 2u * STEP + ub < end));
        a_x1 = load_x(x_at + x_next + (kb + 2u * STEP) * 4u, x_on1 & (kb + 2u * STEP + ub < end));
#if !ROWS_16
        a_x2 = load_x(x_at + 2u * x_next + (kb + 2u * STEP) * 4u, x_on2 & (kb + 2u * STEP + ub < end));
        a_x3 = load_x(x_at + 3u * x_next + (kb + 2u * STEP) * 4u, x_on3 & (kb + 2u * STEP + ub < end));
#endif
#if ELEMENTS
        a_w0 = weight_raw(w_at0 + min(kb + 2u * STEP + ub, end - 1u) * 4u);
        a_w1 = weight_raw(w_at1 + min(kb + 2u * STEP + ub, end - 1u) * 4u);
        a_w2 = weight_raw(w_at2 + min(kb + 2u * STEP + ub, end - 1u) * 4u);
        a_w3 = weight_raw(w_at3 + min(kb + 2u * STEP + ub, end - 1u) * 4u);
#else
        a_w0 = weight_raw(w_at + min(kb + 2u * STEP + wb, end - 1u));
#endif
        workgroupBarrier();
        {
            let b0 = coopLoad<coop_mat16x16<f16, B>>(&ws[0].units[sg][0][0], STRIDE);
            let b1 = coopLoad<coop_mat16x16<f16, B>>(&ws[16].units[sg][0][0], STRIDE);
            let a0 = coopLoadT<coop_mat16x16<f16, A>>(&xs[0].units[sg][0][0], STRIDE);
            c00 = coopMultiplyAdd(a0, b0, c00);
            c01 = coopMultiplyAdd(a0, b1, c01);
#if !ROWS_16
            let a1 = coopLoadT<coop_mat16x16<f16, A>>(&xs[16].units[sg][0][0], STRIDE);
            c10 = coopMultiplyAdd(a1, b0, c10);
            c11 = coopMultiplyAdd(a1, b1, c11);
#endif
        }
        {
            let b0 = coopLoad<coop_mat16x16<f16, B>>(&ws[0].units[sg][2][0], STRIDE);
            let b1 = coopLoad<coop_mat16x16<f16, B>>(&ws[16].units[sg][2][0], STRIDE);
            let a0 = coopLoadT<coop_mat16x16<f16, A>>(&xs[0].units[sg][2][0], STRIDE);
            c00 = coopMultiplyAdd(a0, b0, c00);
            c01 = coopMultiplyAdd(a0, b1, c01);
#if !ROWS_16
            let a1 = coopLoadT<coop_mat16x16<f16, A>>(&xs[16].units[sg][2][0], STRIDE);
            c10 = coopMultiplyAdd(a1, b0, c10);
            c11 = coopMultiplyAdd(a1, b1, c11);
#endif
        }
        workgroupBarrier();
        stage_x(u_row, uj, ub, b_x0);
        stage_x(u_row + 8u, uj, ub, b_x1);
#if !ROWS_16
        stage_x(u_row + 16u, uj, ub, b_x2);
        stage_x(u_row + 24u, uj, ub, b_x3);
#endif
#if ELEMENTS
        stage_eight(u_row, uj, ub, b_w0);
        stage_eight(u_row + 8u, uj, ub, b_w1);
        stage_eight(u_row + 16u, uj, ub, b_w2);
        stage_eight(u_row + 24u, uj, ub, b_w3);
#else
        stage_block(wr, wb, b_w0, w_at + min(kb + STEP + wb, end - 1u));
#endif
        b_x0 = load_x(x_at + (kb + 3u * STEP) * 4u, x_on0 & (kb + 3u * STEP + ub < end));
        b_x1 = load_x(x_at + x_next + (kb + 3u * STEP) * 4u, x_on1 & (kb + 3u * STEP + ub < end));
#if !ROWS_16
        b_x2 = load_x(x_at + 2u * x_next + (kb + 3u * STEP) * 4u, x_on2 & (kb + 3u * STEP + ub < end));
        b_x3 = load_x(x_at + 3u * x_next + (kb + 3u * STEP) * 4u, x_on3 & (kb + 3u * STEP + ub < end));
#endif
#if ELEMENTS
        b_w0 = weight_raw(w_at0 + min(kb + 3u * STEP + ub, end - 1u) * 4u);
        b_w1 = weight_raw(w_at1 + min(kb + 3u * STEP + ub, end - 1u) * 4u);
        b_w2 = weight_raw(w_at2 + min(kb + 3u * STEP + ub, end - 1u) * 4u);
        b_w3 = weight_raw(w_at3 + min(kb + 3u * STEP + ub, end - 1u) * 4u);
#else
        b_w0 = weight_raw(w_at + min(kb + 3u * STEP + wb, end - 1u));
#endif
        workgroupBarrier();
        {
            let b0 = coopLoad<coop_mat16x16<f16, B>>(&ws[0].units[sg][0][0], STRIDE);
            let b1 = coopLoad<coop_mat16x16<f16, B>>(&ws[16].units[sg][0][0], STRIDE);
            let a0 = coopLoadT<coop_mat16x16<f16, A>>(&xs[0].units[sg][0][0], STRIDE);
            c00 = coopMultiplyAdd(a0, b0, c00);
            c01 = coopMultiplyAdd(a0, b1, c01);
#if !ROWS_16
            let a1 = coopLoadT<coop_mat16x16<f16, A>>(&xs[16].units[sg][0][0], STRIDE);
            c10 = coopMultiplyAdd(a1, b0, c10);
            c11 = coopMultiplyAdd(a1, b1, c11);
#endif
        }
        {
            let b0 = coopLoad<coop_mat16x16<f16, B>>(&ws[0].units[sg][2][0], STRIDE);
            let b1 = coopLoad<coop_mat16x16<f16, B>>(&ws[16].units[sg][2][0], STRIDE);
            let a0 = coopLoadT<coop_mat16x16<f16, A>>(&xs[0].units[sg][2][0], STRIDE);
            c00 = coopMultiplyAdd(a0, b0, c00);
            c01 = coopMultiplyAdd(a0, b1, c01);
#if !ROWS_16
            let a1 = coopLoadT<coop_mat16x16<f16, A>>(&xs[16].units[sg][2][0], STRIDE);
            c10 = coopMultiplyAdd(a1, b0, c10);
            c11 = coopMultiplyAdd(a1, b1, c11);
#endif
        }
    }
    workgroupBarrier();
    coopStoreT(c00, &strip[sg][0], 4u);
    write_matrix(lid, split, t0, row0);
    coopStoreT(c01, &strip[sg][0], 4u);
    write_matrix(lid, split, t0, row0 + 16u);
#if !ROWS_16
    coopStoreT(c10, &strip[sg][0], 4u);
    write_matrix(lid, split, t0 + 16u, row0);
    coopStoreT(c11, &strip[sg][0], 4u);
    write_matrix(lid, split, t0 + 16u, row0 + 16u);
#endif
}
