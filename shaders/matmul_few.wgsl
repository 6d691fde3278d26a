// y[t, y_offset + r] (+)= sum_k x[t, k] * W[r, k] (+ bias[r]) for few rows of x, by cooperative matrices: f16 operands, f32 sums. Rows of x as
// half_rows.wgsl makes them. What bounds it is how fast weights come in, so a workgroup has few of them and there are many workgroups.
// A workgroup of 8 subgroups makes 16 (ROWS_16) or 32 rows of x by 64 rows of W for one of `splits` parts of k, the part s at y + s *
// split_stride. A step along k is 8 (4) blocks of 32; each subgroup multiplies its own eighth of a step with all rows, and the eighths are added
// up at the end. So each number in workgroup memory is read once.
// BIAS adds a bias; ACCUMULATE adds to what y holds.
enable wgpu_cooperative_matrix;
enable f16;
const WG: u32 = 256u;
const TILE_R: u32 = 64u;
#if ROWS_16
const TILE_T: u32 = 16u;
const STEP: u32 = 8u;
#else
const TILE_T: u32 = 32u;
const STEP: u32 = 4u;
#endif
// Rows stand in workgroup memory as units of eight numbers in f16. The j-th unit of each of a step's blocks comes before the next unit of any: so
// threads that decode neighbouring blocks write neighbouring units. Both operands are in that order, which makes no difference to sums.
// One unit more, so that rows start in different banks.
const UNITS: u32 = STEP * 4u;
const STRIDE: u32 = UNITS + 1u;
const W_AT: u32 = TILE_T * STRIDE;
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
#slot weight

// Bits of f16 in the loop, results in f32 after it: the matrices' elements need not be those of the array.
var<workgroup> tile: array<vec4<f32>, (TILE_T + TILE_R) * STRIDE>;

fn unit(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4<u32>(pack2x16float(a.xy), pack2x16float(a.zw), pack2x16float(b.xy), pack2x16float(b.zw)));
}

// Adds up the subgroups' parts of two neighbouring matrices and writes them; the first begins at (t0, r0) of y.
fn write_pair(lid: u32, split: u32, t0: u32, r0: u32) {
    workgroupBarrier();
    let t = t0 + lid % 64u / 4u;
    let r = r0 + lid / 64u * 16u + lid % 4u * 4u;
    if (lid < 128u && t < params.t_rows && r < params.n) {
        var a = vec4<f32>(0.0);
        for (var s = 0u; s < 8u; s++) { a += tile[s * 128u + lid]; }
        a *= scales[t];
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
    let tile_index = g / params.splits;
    let row0 = tile_index % params.row_groups * TILE_R;
    let t0 = tile_index / params.row_groups * TILE_T;
    let first = split * params.split_blocks;
    let end = min(first + params.split_blocks, params.k_blocks);
    let last_r = params.n - 1u;
    // The units that this thread copies: unit `uj` of block `ub` of a step, of two rows of x (and of some of W, if its units can be read alone). Eight
    // neighbouring threads read whole sectors and write to different banks, or nearly so.
    let uc = lid % UNITS;
    let uj = (uc & 1u) | ((uc >> 2u) & 2u);
    let ub = ((uc >> 1u) & 3u) | ((uc >> 4u) << 2u);
    let u_row = lid / UNITS;
    const U_ROWS: u32 = WG / UNITS;
    let u_to = u_row * STRIDE + uj * STEP + ub;
    let x_at = ((t0 + u_row) * params.k_blocks + ub) * 4u + uj;
    let x_next = U_ROWS * params.k_blocks * 4u;
    let x_on0 = t0 + u_row < params.t_rows;
    let x_on1 = t0 + u_row + U_ROWS < params.t_rows;
#if ELEMENTS
    let w_last = last_r - min(row0 + u_row, last_r);
    let w_at = min(row0 + u_row, last_r) * params.k_blocks * 4u + uj;
    let w_row = params.k_blocks * 4u;
    let w_to = W_AT + u_to;
#else
    // This thread decodes a block of each of two rows 32 apart (of one row). Of eight neighbouring threads those of different rows write to different banks.
#if ROWS_16
    let wb = lid % 8u;
    let wr = lid / 8u;
    let w_at1 = min(row0 + wr + 32u, last_r) * params.k_blocks;
#else
    let wb = lid % 4u;
    let wr = (lid / 32u) * 8u + (lid / 8u) % 4u + (lid / 4u) % 2u * 4u;
#endif
    let w_at0 = min(row0 + wr, last_r) * params.k_blocks;
    let w_to = W_AT + wr * STRIDE + wb;
#endif
    var c00 = coop_mat16x16<f32, C>();
    var c01 = coop_mat16x16<f32, C>();
    var c02 = coop_mat16x16<f32, C>();
    var c03 = coop_mat16x16<f32, C>();
#if !ROWS_16
    var c10 = coop_mat16x16<f32, C>();
    var c11 = coop_mat16x16<f32, C>();
    var c12 = coop_mat16x16<f32, C>();
    var c13 = coop_mat16x16<f32, C>();
#endif
#if RAW
    var px0 = vec4<u32>(0u);
    var px1 = vec4<u32>(0u);
    {
        let x_in = first + ub < end;
        if (x_on0 & x_in) { px0 = x[x_at + first * 4u]; }
        if (x_on1 & x_in) { px1 = x[x_at + x_next + first * 4u]; }
    }
    var r0 = weight_raw(w_at0 + min(first + wb, end - 1u));
#if ROWS_16
    var r1 = weight_raw(w_at1 + min(first + wb, end - 1u));
#endif
    for (var kb = first; kb < end; kb += STEP) {
        let w_block = min(kb + wb, end - 1u);
        workgroupBarrier();
        tile[u_to] = bitcast<vec4<f32>>(px0);
        tile[u_to + U_ROWS * STRIDE] = bitcast<vec4<f32>>(px1);
        let next = kb + STEP;
        let x_in = next + ub < end;
        if (x_on0 & x_in) { px0 = x[x_at + next * 4u]; }
        if (x_on1 & x_in) { px1 = x[x_at + x_next + next * 4u]; }
        let d0 = weight_of(r0, w_at0 + w_block);
        r0 = weight_raw(w_at0 + min(next + wb, end - 1u));
#if ROWS_16
        let d1 = weight_of(r1, w_at1 + w_block);
        r1 = weight_raw(w_at1 + min(next + wb, end - 1u));
#endif
#else
    for (var kb = first; kb < end; kb += STEP) {
        // Zeros beyond the last block, by which the last block of W is multiplied once more.
        var x0 = vec4<u32>(0u);
        var x1 = vec4<u32>(0u);
        let x_in = kb + ub < end;
        if (x_on0 & x_in) { x0 = x[x_at + kb * 4u]; }
        if (x_on1 & x_in) { x1 = x[x_at + x_next + kb * 4u]; }
#if ELEMENTS
        let w_unit = w_at + min(kb + ub, end - 1u) * 4u;
        let e0 = weight_eight(w_unit);
        let e1 = weight_eight(w_unit + min(U_ROWS, w_last) * w_row);
        let e2 = weight_eight(w_unit + min(2u * U_ROWS, w_last) * w_row);
        let e3 = weight_eight(w_unit + min(3u * U_ROWS, w_last) * w_row);
#if ROWS_16
        let e4 = weight_eight(w_unit + min(4u * U_ROWS, w_last) * w_row);
        let e5 = weight_eight(w_unit + min(5u * U_ROWS, w_last) * w_row);
        let e6 = weight_eight(w_unit + min(6u * U_ROWS, w_last) * w_row);
        let e7 = weight_eight(w_unit + min(7u * U_ROWS, w_last) * w_row);
#endif
#else
        let w_block = min(kb + wb, end - 1u);
        let d0 = weight_block(w_at0 + w_block);
#if ROWS_16
        let d1 = weight_block(w_at1 + w_block);
#endif
#endif
        workgroupBarrier();
        tile[u_to] = bitcast<vec4<f32>>(x0);
        tile[u_to + U_ROWS * STRIDE] = bitcast<vec4<f32>>(x1);
#endif
#if ELEMENTS
        tile[w_to] = unit(e0[0], e0[1]);
        tile[w_to + U_ROWS * STRIDE] = unit(e1[0], e1[1]);
        tile[w_to + 2u * U_ROWS * STRIDE] = unit(e2[0], e2[1]);
        tile[w_to + 3u * U_ROWS * STRIDE] = unit(e3[0], e3[1]);
#if ROWS_16
        tile[w_to + 4u * U_ROWS * STRIDE] = unit(e4[0], e4[1]);
        tile[w_to + 5u * U_ROWS * STRIDE] = unit(e5[0], e5[1]);
        tile[w_to + 6u * U_ROWS * STRIDE] = unit(e6[0], e6[1]);
        tile[w_to + 7u * U_ROWS * STRIDE] = unit(e7[0], e7[1]);
#endif
#else
        tile[w_to] = unit(d0[0], d0[1]);
        tile[w_to + STEP] = unit(d0[2], d0[3]);
        tile[w_to + 2u * STEP] = unit(d0[4], d0[5]);
        tile[w_to + 3u * STEP] = unit(d0[6], d0[7]);
#if ROWS_16
        tile[w_to + 32u * STRIDE] = unit(d1[0], d1[1]);
        tile[w_to + 32u * STRIDE + STEP] = unit(d1[2], d1[3]);
        tile[w_to + 32u * STRIDE + 2u * STEP] = unit(d1[4], d1[5]);
        tile[w_to + 32u * STRIDE + 3u * STEP] = unit(d1[6], d1[7]);
#endif
#endif
        workgroupBarrier();
        let at = sg * (UNITS / 8u);
#if !DEV_NOMMA
#if ROWS_16
        for (var u = 0u; u < UNITS / 8u; u += 2u) {
            let a0 = coopLoadT<coop_mat16x16<f16, A>>(&tile[at + u], STRIDE);
            let b0 = coopLoad<coop_mat16x16<f16, B>>(&tile[W_AT + at + u], STRIDE);
            let b1 = coopLoad<coop_mat16x16<f16, B>>(&tile[W_AT + 16u * STRIDE + at + u], STRIDE);
            let b2 = coopLoad<coop_mat16x16<f16, B>>(&tile[W_AT + 32u * STRIDE + at + u], STRIDE);
            let b3 = coopLoad<coop_mat16x16<f16, B>>(&tile[W_AT + 48u * STRIDE + at + u], STRIDE);
            c00 = coopMultiplyAdd(a0, b0, c00);
            c01 = coopMultiplyAdd(a0, b1, c01);
            c02 = coopMultiplyAdd(a0, b2, c02);
            c03 = coopMultiplyAdd(a0, b3, c03);
        }
#else
        let a0 = coopLoadT<coop_mat16x16<f16, A>>(&tile[at], STRIDE);
        let a1 = coopLoadT<coop_mat16x16<f16, A>>(&tile[16u * STRIDE + at], STRIDE);
        let b0 = coopLoad<coop_mat16x16<f16, B>>(&tile[W_AT + at], STRIDE);
        let b1 = coopLoad<coop_mat16x16<f16, B>>(&tile[W_AT + 16u * STRIDE + at], STRIDE);
        let b2 = coopLoad<coop_mat16x16<f16, B>>(&tile[W_AT + 32u * STRIDE + at], STRIDE);
        let b3 = coopLoad<coop_mat16x16<f16, B>>(&tile[W_AT + 48u * STRIDE + at], STRIDE);
        c00 = coopMultiplyAdd(a0, b0, c00);
        c01 = coopMultiplyAdd(a0, b1, c01);
        c02 = coopMultiplyAdd(a0, b2, c02);
        c03 = coopMultiplyAdd(a0, b3, c03);
        c10 = coopMultiplyAdd(a1, b0, c10);
        c11 = coopMultiplyAdd(a1, b1, c11);
        c12 = coopMultiplyAdd(a1, b2, c12);
        c13 = coopMultiplyAdd(a1, b3, c13);
#endif
#endif
    }
    let part = sg * 128u;
    workgroupBarrier();
    coopStoreT(c00, &tile[part], 4u);
    coopStoreT(c01, &tile[part + 64u], 4u);
    write_pair(lid, split, t0, row0);
    coopStoreT(c02, &tile[part], 4u);
    coopStoreT(c03, &tile[part + 64u], 4u);
    write_pair(lid, split, t0, row0 + 32u);
#if !ROWS_16
    coopStoreT(c10, &tile[part], 4u);
    coopStoreT(c11, &tile[part + 64u], 4u);
    write_pair(lid, split, t0 + 16u, row0);
    coopStoreT(c12, &tile[part], 4u);
    coopStoreT(c13, &tile[part + 64u], 4u);
    write_pair(lid, split, t0 + 16u, row0 + 32u);
#endif
}
