// y[t, y_offset + r] (+)= sum_k x[t, k] * W[r, k] (+ bias[r]) for few rows of x, by cooperative matrices: f16 operands, f32 sums. x in tiles as
// lib/half_rows.wgsl makes them. A workgroup of 4 subgroups makes 16 (ROWS_16) or 32 rows of x by 32 rows of W for one of `splits` parts of k, the
// part s at y + s * split_stride. A step along k is two blocks of 32; each subgroup decodes every fourth step to memory of its own and multiplies it, without
// waiting for the others; what they made is added up at the end. While a step is multiplied the next one is under way.
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
// Blocks of a step, and of a step of each subgroup.
const STEP: u32 = 2u;
const ROUND: u32 = 8u;
struct Params {
    groups: u32, row_groups: u32, n: u32, t_rows: u32, x_tiles: u32, k_blocks: u32, y_stride: u32, y_offset: u32,
    splits: u32, split_blocks: u32, split_stride: u32,
}
@group(0) @binding(auto) var<storage, read> x: array<vec4<f16>>;
@group(0) @binding(auto) var<storage, read> scales: array<f32>;
@group(0) @binding(auto) var<storage, read_write> y: array<f32>;
#if BIAS
@group(0) @binding(auto) var<storage, read> bias: array<f32>;
#endif
#set F16_MATH
#slot weight

// A row of a step, in units of four numbers: the j-th unit of both blocks comes before the next unit of either, as in tiles of x. Sixteen threads that decode both
// blocks of eight rows write to different banks, and so do rows when they are read as matrices. Nested arrays and constant indices: their bounds are
// checked once.
struct Row { units: array<array<vec4<f16>, 2>, 8>, pad: array<vec4<f16>, 2> }
// Vectors from one row to the next, and in a tile of x.
const STRIDE: u32 = 18u;
const X_STRIDE: u32 = 4u;
const X_TILE: u32 = 64u;
var<workgroup> ws: array<array<Row, TILE_R>, 4>;
// A matrix of results for each subgroup. A workgroup with more than 24 KiB in all would be alone on its processor with some drivers.
var<workgroup> strip: array<array<vec4<f32>, 64>, 4>;

// Between what the threads of a subgroup write and what they read of it as matrices. Its memory is no other subgroup's, so none has to wait for another, as they
// would at a barrier of the workgroup (a fifth slower). As naga writes it, this names the subgroup's memory and not the workgroup's: what keeps the order there is that
// each thread's writes and the matrices that it reads overlap. The self-check compares what comes of several rounds on the device it runs on.
fn own_barrier() { subgroupBarrier(); }

#if ELEMENTS
fn stage_eight(sg: u32, row: u32, u: u32, raw: vec4<u32>) {
    let d = weight_of(raw);
    ws[sg][row].units[u % 4u * 2u][u / 4u] = vec4<f16>(d[0]);
    ws[sg][row].units[u % 4u * 2u + 1u][u / 4u] = vec4<f16>(d[1]);
}
#else
fn stage_block(sg: u32, row: u32, b: u32, raw: WeightRaw, block: u32) {
#if HALF_BLOCKS
    let d = weight_halves(raw, block);
#else
    let d = weight_of(raw, block);
#endif
    ws[sg][row].units[0][b] = vec4<f16>(d[0]);
    ws[sg][row].units[1][b] = vec4<f16>(d[1]);
    ws[sg][row].units[2][b] = vec4<f16>(d[2]);
    ws[sg][row].units[3][b] = vec4<f16>(d[3]);
    ws[sg][row].units[4][b] = vec4<f16>(d[4]);
    ws[sg][row].units[5][b] = vec4<f16>(d[5]);
    ws[sg][row].units[6][b] = vec4<f16>(d[6]);
    ws[sg][row].units[7][b] = vec4<f16>(d[7]);
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
    @builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lid: u32,
    @builtin(subgroup_id) sg: u32, @builtin(subgroup_invocation_id) lane: u32,
) {
    let g = wid.x + wid.y * nwg.x;
    if (g >= params.groups) { return; }
    let split = g % params.splits;
    let tile = g / params.splits;
    let row0 = tile % params.row_groups * TILE_R;
    let t0 = tile / params.row_groups * TILE_T;
    let first = split * params.split_blocks;
    let end = min(first + params.split_blocks, params.k_blocks);
    let rounds = (end - first + ROUND - 1u) / ROUND;
    let last_r = params.n - 1u;
    // Beyond the last block x is zero, and the last block of W is multiplied once more.
#if ELEMENTS
    // Of every fourth row, unit u of the eight (of eight elements) of a step.
    let u = lane % 8u;
    let u_row = lane / 8u;
    let w_at0 = min(row0 + u_row, last_r) * params.k_blocks;
    let w_at1 = min(row0 + u_row + 4u, last_r) * params.k_blocks;
    let w_at2 = min(row0 + u_row + 8u, last_r) * params.k_blocks;
    let w_at3 = min(row0 + u_row + 12u, last_r) * params.k_blocks;
    let w_at4 = min(row0 + u_row + 16u, last_r) * params.k_blocks;
    let w_at5 = min(row0 + u_row + 20u, last_r) * params.k_blocks;
    let w_at6 = min(row0 + u_row + 24u, last_r) * params.k_blocks;
    let w_at7 = min(row0 + u_row + 28u, last_r) * params.k_blocks;
    var kw = min(first + sg * STEP + u / 4u, end - 1u);
    var w0 = weight_raw((w_at0 + kw) * 4u + u % 4u);
    var w1 = weight_raw((w_at1 + kw) * 4u + u % 4u);
    var w2 = weight_raw((w_at2 + kw) * 4u + u % 4u);
    var w3 = weight_raw((w_at3 + kw) * 4u + u % 4u);
    var w4 = weight_raw((w_at4 + kw) * 4u + u % 4u);
    var w5 = weight_raw((w_at5 + kw) * 4u + u % 4u);
    var w6 = weight_raw((w_at6 + kw) * 4u + u % 4u);
    var w7 = weight_raw((w_at7 + kw) * 4u + u % 4u);
#else
    // Of rows wr and wr + 16, block wb of the two of a step.
    let wb = lane % 2u;
    let wr = lane / 2u;
    let w_at0 = min(row0 + wr, last_r) * params.k_blocks;
    let w_at1 = min(row0 + wr + 16u, last_r) * params.k_blocks;
    var kw = min(first + sg * STEP + wb, end - 1u);
    var w0 = weight_raw(w_at0 + kw);
    var w1 = weight_raw(w_at1 + kw);
#endif
    var c00 = coop_mat16x16<f32, C>();
    var c01 = coop_mat16x16<f32, C>();
#if !ROWS_16
    var c10 = coop_mat16x16<f32, C>();
    var c11 = coop_mat16x16<f32, C>();
#endif
    for (var i = 0u; i < rounds; i++) {
        let kb = first + i * ROUND + sg * STEP;
        own_barrier();
#if ELEMENTS
        stage_eight(sg, u_row, u, w0);
        stage_eight(sg, u_row + 4u, u, w1);
        stage_eight(sg, u_row + 8u, u, w2);
        stage_eight(sg, u_row + 12u, u, w3);
        stage_eight(sg, u_row + 16u, u, w4);
        stage_eight(sg, u_row + 20u, u, w5);
        stage_eight(sg, u_row + 24u, u, w6);
        stage_eight(sg, u_row + 28u, u, w7);
        kw = min(kb + ROUND + u / 4u, end - 1u);
        w0 = weight_raw((w_at0 + kw) * 4u + u % 4u);
        w1 = weight_raw((w_at1 + kw) * 4u + u % 4u);
        w2 = weight_raw((w_at2 + kw) * 4u + u % 4u);
        w3 = weight_raw((w_at3 + kw) * 4u + u % 4u);
        w4 = weight_raw((w_at4 + kw) * 4u + u % 4u);
        w5 = weight_raw((w_at5 + kw) * 4u + u % 4u);
        w6 = weight_raw((w_at6 + kw) * 4u + u % 4u);
        w7 = weight_raw((w_at7 + kw) * 4u + u % 4u);
#else
        stage_block(sg, wr, wb, w0, w_at0 + kw);
        stage_block(sg, wr + 16u, wb, w1, w_at1 + kw);
        kw = min(kb + ROUND + wb, end - 1u);
        w0 = weight_raw(w_at0 + kw);
        w1 = weight_raw(w_at1 + kw);
#endif
        own_barrier();
        // Four tiles of x along a step.
        let at = (kb * 2u * params.x_tiles + t0 / 16u) * X_TILE;
        let next = params.x_tiles * X_TILE;
        {
            let b0 = coopLoad<coop_mat16x16<f16, B>>(&ws[sg][0].units[0][0], STRIDE);
            let b1 = coopLoad<coop_mat16x16<f16, B>>(&ws[sg][16].units[0][0], STRIDE);
            let a0 = coopLoadT<coop_mat16x16<f16, A>>(&x[at], X_STRIDE);
            c00 = coopMultiplyAdd(a0, b0, c00);
            c01 = coopMultiplyAdd(a0, b1, c01);
#if !ROWS_16
            let a1 = coopLoadT<coop_mat16x16<f16, A>>(&x[at + X_TILE], X_STRIDE);
            c10 = coopMultiplyAdd(a1, b0, c10);
            c11 = coopMultiplyAdd(a1, b1, c11);
#endif
        }
        {
            let b0 = coopLoad<coop_mat16x16<f16, B>>(&ws[sg][0].units[2][0], STRIDE);
            let b1 = coopLoad<coop_mat16x16<f16, B>>(&ws[sg][16].units[2][0], STRIDE);
            let a0 = coopLoadT<coop_mat16x16<f16, A>>(&x[at + next], X_STRIDE);
            c00 = coopMultiplyAdd(a0, b0, c00);
            c01 = coopMultiplyAdd(a0, b1, c01);
#if !ROWS_16
            let a1 = coopLoadT<coop_mat16x16<f16, A>>(&x[at + next + X_TILE], X_STRIDE);
            c10 = coopMultiplyAdd(a1, b0, c10);
            c11 = coopMultiplyAdd(a1, b1, c11);
#endif
        }
        {
            let b0 = coopLoad<coop_mat16x16<f16, B>>(&ws[sg][0].units[4][0], STRIDE);
            let b1 = coopLoad<coop_mat16x16<f16, B>>(&ws[sg][16].units[4][0], STRIDE);
            let a0 = coopLoadT<coop_mat16x16<f16, A>>(&x[at + 2u * next], X_STRIDE);
            c00 = coopMultiplyAdd(a0, b0, c00);
            c01 = coopMultiplyAdd(a0, b1, c01);
#if !ROWS_16
            let a1 = coopLoadT<coop_mat16x16<f16, A>>(&x[at + 2u * next + X_TILE], X_STRIDE);
            c10 = coopMultiplyAdd(a1, b0, c10);
            c11 = coopMultiplyAdd(a1, b1, c11);
#endif
        }
        {
            let b0 = coopLoad<coop_mat16x16<f16, B>>(&ws[sg][0].units[6][0], STRIDE);
            let b1 = coopLoad<coop_mat16x16<f16, B>>(&ws[sg][16].units[6][0], STRIDE);
            let a0 = coopLoadT<coop_mat16x16<f16, A>>(&x[at + 3u * next], X_STRIDE);
            c00 = coopMultiplyAdd(a0, b0, c00);
            c01 = coopMultiplyAdd(a0, b1, c01);
#if !ROWS_16
            let a1 = coopLoadT<coop_mat16x16<f16, A>>(&x[at + 3u * next + X_TILE], X_STRIDE);
            c10 = coopMultiplyAdd(a1, b0, c10);
            c11 = coopMultiplyAdd(a1, b1, c11);
#endif
        }
    }
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
