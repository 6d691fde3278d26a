// y[t, y_offset + r] (+)= sum_k x[t, k] * W[r, k] (+ bias[r]): few rows of x, weights read once.
// A workgroup makes NR rows of W times NT rows of x. BYTES: x is rows of signed bytes.
// BIAS adds a bias; ACCUMULATE adds to what y holds; TAIL where k is not a multiple of 32.
override WG: u32 = 64u;
override NR: u32 = 4u;
override NT: u32 = 1u;
struct Params {
    groups: u32, row_groups: u32, n: u32, t_rows: u32, k4: u32, k_blocks: u32,
    x_stride4: u32, x_offset4: u32, y_stride: u32, y_offset: u32,
}
@group(0) @binding(auto) var<storage, read_write> y: array<f32>;
#if BIAS
@group(0) @binding(auto) var<storage, read> bias: array<f32>;
#endif
#import products

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let g = group_index(t);
    if (g >= params.groups) { return; }
    let row0 = (g % params.row_groups) * NR;
    let t0 = (g / params.row_groups) * NT;
    products(t, row0, params.n - 1u, t0, params.t_rows - 1u);
    if (t.lid < NR * NT) {
        let r = row0 + t.lid / NT;
        let c = t0 + t.lid % NT;
        if (r < params.n && c < params.t_rows) {
            var s = product_sum(t, t.lid);
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
