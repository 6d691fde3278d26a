// y[t, y_offset + r] (+)= sum_k x[t, k] * W[r, k] (+ bias[r]) by cooperative matrices: f16 operands, f32 sums. Rows of x as half_rows.wgsl makes them.
// A workgroup of 8 subgroups makes a tile of 128 rows of x (64 with ROWS_64) by 128 rows of W; each subgroup has an eighth of it, as 2 (1) by 4
// matrices of 16 x 16. A step along k is two blocks of 32. Both operands stand in workgroup memory, W decoded on the way there, and the next
// step's are read into registers meanwhile: into named ones, since drivers keep arrays in memory, where each load is waited for.
// BIAS adds a bias; ACCUMULATE adds to what y holds.
// GROUPED multiplies entries of experts as moe_tile.wgsl does: a tile is one of its list, the grid is written on the device, an entry's row
// of x is entry / share and its row of y the entry.
enable f16;
enable wgpu_cooperative_matrix;
const WG: u32 = 256u;
const TILE_R: u32 = 128u;
#if ROWS_64
const TILE_T: u32 = 64u;
#else
const TILE_T: u32 = 128u;
#endif
const SUB_T: u32 = TILE_T / 4u;
// Vectors of a row in a step, and from one row to the next in workgroup memory: two more, so that rows start in different banks.
const STEP: u32 = 16u;
const STRIDE: u32 = STEP + 2u;
struct Params {
    groups: u32, row_groups: u32, n: u32, t_rows: u32, k_blocks: u32, y_stride: u32, y_offset: u32,
    share: u32, expert_start: u32, experts: u32,
}
#if GROUPED
@group(0) @binding(auto) var<storage, read> order: array<u32>;
@group(0) @binding(auto) var<storage, read> tiles: array<vec4<u32>>;
#endif
@group(0) @binding(auto) var<storage, read> x: array<vec4<u32>>;
@group(0) @binding(auto) var<storage, read> scales: array<f32>;
@group(0) @binding(auto) var<storage, read_write> y: array<f32>;
#if BIAS
@group(0) @binding(auto) var<storage, read> bias: array<f32>;
#endif
#set HALVES
#slot weight

var<workgroup> xs: array<vec4<f16>, TILE_T * STRIDE>;
var<workgroup> ws: array<vec4<f16>, TILE_R * STRIDE>;
// A matrix of results for each subgroup.
var<workgroup> strip: array<f32, 2048>;

// The rows of x and W of a workgroup: those from `t0` (in the order of entries, if GROUPED) and before `t_end`; those from `row0` of the
// weight that begins at row `w_first`.
struct Tile { t0: u32, t_end: u32, row0: u32, w_first: u32 }

// The row of y, and the row of x, that stand at t.
fn row_of(t: u32) -> vec2<u32> {
#if GROUPED
    let entry = order[t];
    return vec2<u32>(entry, entry / params.share);
#else
    return vec2<u32>(t, t);
#endif
}

fn halves(a: u32, b: u32) -> vec4<f16> { return vec4<f16>(vec4<f32>(unpack2x16float(a), unpack2x16float(b))); }

// Writes a subgroup's matrix, whose first element stands at (t0, r0) of the tile. A thread has every second number of a column.
fn write_strip(sg: u32, lane: u32, tile: Tile, t0: u32, r0: u32) {
    workgroupBarrier();
    let r = tile.row0 + r0 + lane % 16u;
    let t = tile.t0 + t0 + lane / 16u;
    let from_strip = sg * 256u + lane;
    if (r < params.n && t < tile.t_end) {
        let last = tile.t_end - 1u;
        let row0 = row_of(t);
        let row1 = row_of(min(t + 2u, last));
        let row2 = row_of(min(t + 4u, last));
        let row3 = row_of(min(t + 6u, last));
        let row4 = row_of(min(t + 8u, last));
        let row5 = row_of(min(t + 10u, last));
        let row6 = row_of(min(t + 12u, last));
        let row7 = row_of(min(t + 14u, last));
        let o0 = row0.x * params.y_stride + params.y_offset + r;
        let o1 = row1.x * params.y_stride + params.y_offset + r;
        let o2 = row2.x * params.y_stride + params.y_offset + r;
        let o3 = row3.x * params.y_stride + params.y_offset + r;
        let o4 = row4.x * params.y_stride + params.y_offset + r;
        let o5 = row5.x * params.y_stride + params.y_offset + r;
        let o6 = row6.x * params.y_stride + params.y_offset + r;
        let o7 = row7.x * params.y_stride + params.y_offset + r;
        var a = vec4<f32>(strip[from_strip] * scales[row0.y], strip[from_strip + 32u] * scales[row1.y], strip[from_strip + 64u] * scales[row2.y], strip[from_strip + 96u] * scales[row3.y]);
        var b = vec4<f32>(strip[from_strip + 128u] * scales[row4.y], strip[from_strip + 160u] * scales[row5.y], strip[from_strip + 192u] * scales[row6.y], strip[from_strip + 224u] * scales[row7.y]);
#if BIAS
        a += bias[tile.w_first + r];
        b += bias[tile.w_first + r];
#endif
#if ACCUMULATE
        a += vec4<f32>(y[o0], y[o1], y[o2], y[o3]);
        b += vec4<f32>(y[o4], y[o5], y[o6], y[o7]);
#endif
        y[o0] = a.x;
        if (t + 2u <= last) { y[o1] = a.y; }
        if (t + 4u <= last) { y[o2] = a.z; }
        if (t + 6u <= last) { y[o3] = a.w; }
        if (t + 8u <= last) { y[o4] = b.x; }
        if (t + 10u <= last) { y[o5] = b.y; }
        if (t + 12u <= last) { y[o6] = b.z; }
        if (t + 14u <= last) { y[o7] = b.w; }
    }
    workgroupBarrier();
}

@compute @workgroup_size(WG)
fn main(
    // Not as a structure: naga must see that all threads take the same way to the matrices.
    @builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
    @builtin(local_invocation_index) lid: u32, @builtin(subgroup_id) sg: u32, @builtin(subgroup_invocation_id) lane: u32,
) {
#if GROUPED
    // Planes come from the list and not from the size of the grid, which is not known everywhere to an indirect dispatch.
    let listed = tiles[0];
    let index = wid.y + wid.z * listed.y;
    // Not `||`, which naga does not take for the same in all threads.
    if ((index >= listed.x) | (wid.x >= params.row_groups)) { return; }
    let entries = tiles[1u + index];
    // Wraps to a large number for experts before this part.
    let expert = entries.x - params.expert_start;
    if (expert >= params.experts) { return; }
    let tile = Tile(entries.y, entries.y + entries.z, wid.x * TILE_R, expert * params.n);
#else
    let g = wid.x + wid.y * nwg.x;
    if (g >= params.groups) { return; }
    let t_groups = params.groups / params.row_groups;
    // Neighbouring workgroups share rows of W, which are the larger operand.
    let tile = Tile((g % t_groups) * TILE_T, params.t_rows, (g / t_groups) * TILE_R, 0u);
#endif
    let sub_t = (sg / 2u) * SUB_T;
    let sub_r = (sg % 2u) * 64u;
    // This thread loads eight numbers of every 32nd row of x; and one block of a row of W, or with QUADS four numbers of every 16th.
    let xr = lid / 8u;
    let xc = lid % 8u;
    let last_t = tile.t_end - 1u;
    let x_at0 = row_of(min(tile.t0 + xr, last_t)).y * params.k_blocks * 4u + xc;
    let x_at1 = row_of(min(tile.t0 + 32u + xr, last_t)).y * params.k_blocks * 4u + xc;
#if !ROWS_64
    let x_at2 = row_of(min(tile.t0 + 64u + xr, last_t)).y * params.k_blocks * 4u + xc;
    let x_at3 = row_of(min(tile.t0 + 96u + xr, last_t)).y * params.k_blocks * 4u + xc;
#endif
    let x_to = xr * STRIDE + xc * 2u;
    let last_r = params.n - 1u;
#if QUADS
    let wr = lid / STEP;
    let wc = lid % 8u;
    let wb = lid % STEP / 8u;
    let w_at0 = (tile.w_first + min(tile.row0 + wr, last_r)) * params.k_blocks;
    let w_at1 = (tile.w_first + min(tile.row0 + 16u + wr, last_r)) * params.k_blocks;
    let w_at2 = (tile.w_first + min(tile.row0 + 32u + wr, last_r)) * params.k_blocks;
    let w_at3 = (tile.w_first + min(tile.row0 + 48u + wr, last_r)) * params.k_blocks;
    let w_at4 = (tile.w_first + min(tile.row0 + 64u + wr, last_r)) * params.k_blocks;
    let w_at5 = (tile.w_first + min(tile.row0 + 80u + wr, last_r)) * params.k_blocks;
    let w_at6 = (tile.w_first + min(tile.row0 + 96u + wr, last_r)) * params.k_blocks;
    let w_at7 = (tile.w_first + min(tile.row0 + 112u + wr, last_r)) * params.k_blocks;
    let w_to = wr * STRIDE + lid % STEP;
#else
    let w_row = lid / 2u;
    let w_at = (tile.w_first + min(tile.row0 + w_row, last_r)) * params.k_blocks;
    let w_to = w_row * STRIDE + lid % 2u * 8u;
#endif
    var c00 = coop_mat16x16<f32, C>();
    var c01 = coop_mat16x16<f32, C>();
    var c02 = coop_mat16x16<f32, C>();
    var c03 = coop_mat16x16<f32, C>();
#if !ROWS_64
    var c10 = coop_mat16x16<f32, C>();
    var c11 = coop_mat16x16<f32, C>();
    var c12 = coop_mat16x16<f32, C>();
    var c13 = coop_mat16x16<f32, C>();
#endif
    var x0: vec4<u32>;
    var x1: vec4<u32>;
#if !ROWS_64
    var x2: vec4<u32>;
    var x3: vec4<u32>;
#endif
    var w0: vec4<f16>;
    var w1: vec4<f16>;
    var w2: vec4<f16>;
    var w3: vec4<f16>;
    var w4: vec4<f16>;
    var w5: vec4<f16>;
    var w6: vec4<f16>;
    var w7: vec4<f16>;
    {
        // Beyond the last block zeros, by which the last block of W is multiplied once more.
        let x_in = xc / 4u < params.k_blocks;
        x0 = select(vec4<u32>(0u), x[x_at0], x_in);
        x1 = select(vec4<u32>(0u), x[x_at1], x_in);
#if !ROWS_64
        x2 = select(vec4<u32>(0u), x[x_at2], x_in);
        x3 = select(vec4<u32>(0u), x[x_at3], x_in);
#endif
#if QUADS
        let w_block = min(wb, params.k_blocks - 1u);
        w0 = weight_quad(w_at0 + w_block, wc);
        w1 = weight_quad(w_at1 + w_block, wc);
        w2 = weight_quad(w_at2 + w_block, wc);
        w3 = weight_quad(w_at3 + w_block, wc);
        w4 = weight_quad(w_at4 + w_block, wc);
        w5 = weight_quad(w_at5 + w_block, wc);
        w6 = weight_quad(w_at6 + w_block, wc);
        w7 = weight_quad(w_at7 + w_block, wc);
#else
        let block = weight_block(w_at + min(lid % 2u, params.k_blocks - 1u));
        w0 = vec4<f16>(block[0]);
        w1 = vec4<f16>(block[1]);
        w2 = vec4<f16>(block[2]);
        w3 = vec4<f16>(block[3]);
        w4 = vec4<f16>(block[4]);
        w5 = vec4<f16>(block[5]);
        w6 = vec4<f16>(block[6]);
        w7 = vec4<f16>(block[7]);
#endif
    }
    for (var kb = 0u; kb < params.k_blocks; kb += 2u) {
        xs[x_to] = halves(x0.x, x0.y);
        xs[x_to + 1u] = halves(x0.z, x0.w);
        xs[x_to + 32u * STRIDE] = halves(x1.x, x1.y);
        xs[x_to + 32u * STRIDE + 1u] = halves(x1.z, x1.w);
#if !ROWS_64
        xs[x_to + 64u * STRIDE] = halves(x2.x, x2.y);
        xs[x_to + 64u * STRIDE + 1u] = halves(x2.z, x2.w);
        xs[x_to + 96u * STRIDE] = halves(x3.x, x3.y);
        xs[x_to + 96u * STRIDE + 1u] = halves(x3.z, x3.w);
#endif
#if QUADS
        ws[w_to] = w0;
        ws[w_to + 16u * STRIDE] = w1;
        ws[w_to + 32u * STRIDE] = w2;
        ws[w_to + 48u * STRIDE] = w3;
        ws[w_to + 64u * STRIDE] = w4;
        ws[w_to + 80u * STRIDE] = w5;
        ws[w_to + 96u * STRIDE] = w6;
        ws[w_to + 112u * STRIDE] = w7;
#else
        ws[w_to] = w0;
        ws[w_to + 1u] = w1;
        ws[w_to + 2u] = w2;
        ws[w_to + 3u] = w3;
        ws[w_to + 4u] = w4;
        ws[w_to + 5u] = w5;
        ws[w_to + 6u] = w6;
        ws[w_to + 7u] = w7;
#endif
        let next = kb + 2u;
        workgroupBarrier();
        {
            // Beyond the last block zeros, by which the last block of W is multiplied once more.
            let x_in = next + xc / 4u < params.k_blocks;
            x0 = select(vec4<u32>(0u), x[x_at0 + next * 4u], x_in);
            x1 = select(vec4<u32>(0u), x[x_at1 + next * 4u], x_in);
#if !ROWS_64
            x2 = select(vec4<u32>(0u), x[x_at2 + next * 4u], x_in);
            x3 = select(vec4<u32>(0u), x[x_at3 + next * 4u], x_in);
#endif
#if QUADS
            let w_block = min(next + wb, params.k_blocks - 1u);
            w0 = weight_quad(w_at0 + w_block, wc);
            w1 = weight_quad(w_at1 + w_block, wc);
            w2 = weight_quad(w_at2 + w_block, wc);
            w3 = weight_quad(w_at3 + w_block, wc);
            w4 = weight_quad(w_at4 + w_block, wc);
            w5 = weight_quad(w_at5 + w_block, wc);
            w6 = weight_quad(w_at6 + w_block, wc);
            w7 = weight_quad(w_at7 + w_block, wc);
#else
            let block = weight_block(w_at + min(next + lid % 2u, params.k_blocks - 1u));
            w0 = vec4<f16>(block[0]);
            w1 = vec4<f16>(block[1]);
            w2 = vec4<f16>(block[2]);
            w3 = vec4<f16>(block[3]);
            w4 = vec4<f16>(block[4]);
            w5 = vec4<f16>(block[5]);
            w6 = vec4<f16>(block[6]);
            w7 = vec4<f16>(block[7]);
#endif
        }
        for (var k = 0u; k < STEP; k += 4u) {
            let a = sub_t * STRIDE + k;
            let b = sub_r * STRIDE + k;
            let b0 = coopLoad<coop_mat16x16<f16, B>>(&ws[b], STRIDE);
            let b1 = coopLoad<coop_mat16x16<f16, B>>(&ws[b + 16u * STRIDE], STRIDE);
            let b2 = coopLoad<coop_mat16x16<f16, B>>(&ws[b + 32u * STRIDE], STRIDE);
            let b3 = coopLoad<coop_mat16x16<f16, B>>(&ws[b + 48u * STRIDE], STRIDE);
            let a0 = coopLoadT<coop_mat16x16<f16, A>>(&xs[a], STRIDE);
            c00 = coopMultiplyAdd(a0, b0, c00);
            c01 = coopMultiplyAdd(a0, b1, c01);
            c02 = coopMultiplyAdd(a0, b2, c02);
            c03 = coopMultiplyAdd(a0, b3, c03);
#if !ROWS_64
            let a1 = coopLoadT<coop_mat16x16<f16, A>>(&xs[a + 16u * STRIDE], STRIDE);
            c10 = coopMultiplyAdd(a1, b0, c10);
            c11 = coopMultiplyAdd(a1, b1, c11);
            c12 = coopMultiplyAdd(a1, b2, c12);
            c13 = coopMultiplyAdd(a1, b3, c13);
#endif
        }
        workgroupBarrier();
    }
    let at = sg * 256u;
    coopStoreT(c00, &strip[at], 16u);
    write_strip(sg, lane, tile, sub_t, sub_r);
    coopStoreT(c01, &strip[at], 16u);
    write_strip(sg, lane, tile, sub_t, sub_r + 16u);
    coopStoreT(c02, &strip[at], 16u);
    write_strip(sg, lane, tile, sub_t, sub_r + 32u);
    coopStoreT(c03, &strip[at], 16u);
    write_strip(sg, lane, tile, sub_t, sub_r + 48u);
#if !ROWS_64
    coopStoreT(c10, &strip[at], 16u);
    write_strip(sg, lane, tile, sub_t + 16u, sub_r);
    coopStoreT(c11, &strip[at], 16u);
    write_strip(sg, lane, tile, sub_t + 16u, sub_r + 16u);
    coopStoreT(c12, &strip[at], 16u);
    write_strip(sg, lane, tile, sub_t + 16u, sub_r + 32u);
    coopStoreT(c13, &strip[at], 16u);
    write_strip(sg, lane, tile, sub_t + 16u, sub_r + 48u);
#endif
}
