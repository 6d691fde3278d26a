// y[e, y_offset + r] = sum_k x[e / share, k] * W[ids[e]][r, k] (+ bias[ids[e], r]): few entries an expert, each reads its weights once.
// A workgroup makes NR rows of W for one entry e, if its expert is one of this part's. BYTES: x is rows of signed bytes.
// BIAS adds a bias; TAIL where k is not a multiple of 32.
override WG: u32 = 64u;
override NR: u32 = 4u;
struct Params {
    groups: u32, row_groups: u32, n: u32, k4: u32, k_blocks: u32, x_stride4: u32, x_offset4: u32,
    y_stride: u32, y_offset: u32, share: u32, expert_start: u32, experts: u32,
}
@group(0) @binding(auto) var<storage, read> ids: array<u32>;
@group(0) @binding(auto) var<storage, read_write> y: array<f32>;
#if BIAS
@group(0) @binding(auto) var<storage, read> bias: array<f32>;
#endif
#import products

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let g = group_index(t);
    if (g >= params.groups) { return; }
    let entry = g / params.row_groups;
    let row0 = (g % params.row_groups) * NR;
    // Wraps to a large number for experts before this part. The same for the whole workgroup, so all of it leaves.
    let expert = ids[entry] - params.expert_start;
    if (expert >= params.experts) { return; }
    let w0 = expert * params.n;
    let row = entry / params.share;
    products(t, w0 + row0, w0 + params.n - 1u, row);
    if (t.lid < NR && row0 + t.lid < params.n) {
        var s = product_sum(t, t.lid);
#if BIAS
        s += bias[w0 + row0 + t.lid];
#endif
        y[entry * params.y_stride + params.y_offset + row0 + t.lid] = s;
    }
}
