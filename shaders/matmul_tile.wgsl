// y[t, y_offset + r] (+)= sum_k x[t, k] * W[r, k] (+ bias[r]): many rows of x.
// A workgroup of 64 threads makes a tile of 32 rows of x by 64 rows of W; a step along k is one block of 32, for which each
// thread decodes one row of W into workgroup memory. A thread sums 8 x 4 results in f32.
// BIAS adds a bias; ACCUMULATE adds to what y holds; TAIL where k is not a multiple of 32.
#import thread
const WG: u32 = 64u;
const TILE_T: u32 = 32u;
const TILE_R: u32 = 64u;
override K_BLOCKS: u32 = 1u;
struct Params {
    groups: u32, row_groups: u32, n: u32, t_rows: u32, k4: u32,
    x_stride4: u32, x_offset4: u32, y_stride: u32, y_offset: u32, eps: f32,
}
@group(0) @binding(auto) var<storage, read_write> y: array<f32>;
#if BIAS
@group(0) @binding(auto) var<storage, read> bias: array<f32>;
#endif
@group(0) @binding(auto) var<storage, read> x: array<vec4<f32>>;
#slot weight

// [k][row of x / 4] and [k][row of W / 4]: a thread reads whole vectors in the inner loop.
var<workgroup> xs: array<array<vec4<f32>, 8>, 32>;
var<workgroup> ws: array<array<vec4<f32>, 16>, 32>;

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let g = group_index(t);
    if (g >= params.groups) { return; }
    let row0 = (g % params.row_groups) * TILE_R;
    let t0 = (g / params.row_groups) * TILE_T;
    let tr = t.lid % 16u;
    let tt = t.lid / 16u;
    var acc: array<vec4<f32>, 8>;
    for (var i = 0u; i < 8u; i++) { acc[i] = vec4<f32>(0.0); }
    let w_row = min(row0 + t.lid, params.n - 1u);
    // This thread loads half a block of one row of x.
    let x_row = t.lid / 2u;
    let x_base = min(t0 + x_row, params.t_rows - 1u) * params.x_stride4 + params.x_offset4;
    for (var kb = 0u; kb < K_BLOCKS; kb++) {
        var w = weight_block(w_row * K_BLOCKS + kb);
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
        let c = t0 + tt * 8u + i;
        if (c >= params.t_rows) { break; }
        for (var e = 0u; e < 4u; e++) {
            let r = row0 + tr * 4u + e;
            if (r < params.n) {
                var s = acc[i][e];
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
    }
}
