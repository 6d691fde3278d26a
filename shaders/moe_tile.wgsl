// y[e, y_offset + r] = sum_k x[e / share, k] * W[expert of e][r, k] (+ bias[expert, r]), for all entries of all experts: many an expert.
// A workgroup of 64 threads makes a tile of up to 32 entries of one expert by 64 rows of its W; a step along k is one block of
// 32, for which each thread decodes one row of W into workgroup memory. A thread sums 8 x 4 results in f32.
// The grid, written on the device, is (row tiles, tiles of a plane, planes). BIAS adds a bias; TAIL where k is not a multiple of 32.
#import thread
const WG: u32 = 64u;
const TILE_R: u32 = 64u;
struct Params {
    row_groups: u32, n: u32, k4: u32, k_blocks: u32, x_stride4: u32, x_offset4: u32,
    y_stride: u32, y_offset: u32, share: u32, expert_start: u32, experts: u32,
}
@group(0) @binding(auto) var<storage, read> order: array<u32>;
@group(0) @binding(auto) var<storage, read> tiles: array<vec4<u32>>;
@group(0) @binding(auto) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(auto) var<storage, read_write> y: array<f32>;
#if BIAS
@group(0) @binding(auto) var<storage, read> bias: array<f32>;
#endif
#slot weight

// [k][entry / 4] and [k][row of W / 4]: a thread reads whole vectors in the inner loop.
var<workgroup> xs: array<array<vec4<f32>, 8>, 32>;
var<workgroup> ws: array<array<vec4<f32>, 16>, 32>;

@compute @workgroup_size(WG)
fn main(t: Thread) {
    // Planes come from the list and not from the size of the grid, which is not known everywhere to an indirect dispatch.
    let head = tiles[0];
    let index = t.wid.y + t.wid.z * head.y;
    if (index >= head.x || t.wid.x >= params.row_groups) { return; }
    let tile = tiles[1u + index];
    // Wraps to a large number for experts before this part.
    let expert = tile.x - params.expert_start;
    if (expert >= params.experts) { return; }
    let row0 = t.wid.x * TILE_R;
    let tr = t.lid % 16u;
    let tt = t.lid / 16u;
    var acc: array<vec4<f32>, 8>;
    for (var i = 0u; i < 8u; i++) { acc[i] = vec4<f32>(0.0); }
    let w_block = (expert * params.n + min(row0 + t.lid, params.n - 1u)) * params.k_blocks;
    // This thread loads half a block of one row of x.
    let x_row = t.lid / 2u;
    let x_entry = order[tile.y + min(x_row, tile.z - 1u)];
    let x_base = x_entry / params.share * params.x_stride4 + params.x_offset4;
    for (var kb = 0u; kb < params.k_blocks; kb++) {
        var w = weight_block(w_block + kb);
        for (var j = 0u; j < 8u; j++) {
            for (var e = 0u; e < 4u; e++) { ws[j * 4u + e][t.lid / 4u][t.lid % 4u] = w[j][e]; }
        }
        for (var j = 0u; j < 4u; j++) {
            let k = (t.lid % 2u) * 4u + j;
            var v = vec4<f32>(0.0);
#if TAIL
            if (kb * 8u + k < params.k4) { v = x[x_base + kb * 8u + k]; }
#else
            v = x[x_base + kb * 8u + k];
#endif
            for (var e = 0u; e < 4u; e++) { xs[k * 4u + e][x_row / 4u][x_row % 4u] = v[e]; }
        }
        workgroupBarrier();
        for (var k = 0u; k < 32u; k++) {
            let b = ws[k][tr];
            let a0 = xs[k][tt * 2u];
            let a1 = xs[k][tt * 2u + 1u];
            acc[0] += a0.x * b; acc[1] += a0.y * b; acc[2] += a0.z * b; acc[3] += a0.w * b;
            acc[4] += a1.x * b; acc[5] += a1.y * b; acc[6] += a1.z * b; acc[7] += a1.w * b;
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < 8u; i++) {
        let c = tt * 8u + i;
        if (c >= tile.z) { break; }
        let o = order[tile.y + c] * params.y_stride + params.y_offset;
        for (var e = 0u; e < 4u; e++) {
            let r = row0 + tr * 4u + e;
            if (r < params.n) {
                var s = acc[i][e];
#if BIAS
                s += bias[expert * params.n + r];
#endif
                y[o + r] = s;
            }
        }
    }
}
