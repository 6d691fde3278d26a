// y[e, y_offset + r] = sum_k x[e / share, k] * W[ids[e]][r, k] (+ bias[ids[e], r]): few entries an expert, each reads its weights once.
// A workgroup makes NR rows of W for one entry e, if its expert is one of this part's; its threads take blocks of 32 along k.
// BIAS adds a bias; TAIL where k is not a multiple of 32.
#import thread
override WG: u32 = 64u;
override NR: u32 = 4u;
struct Params {
    groups: u32, row_groups: u32, n: u32, k4: u32, k_blocks: u32, x_stride4: u32, x_offset4: u32,
    y_stride: u32, y_offset: u32, share: u32, expert_start: u32, experts: u32,
}
@group(0) @binding(auto) var<storage, read> ids: array<u32>;
@group(0) @binding(auto) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(auto) var<storage, read_write> y: array<f32>;
#if BIAS
@group(0) @binding(auto) var<storage, read> bias: array<f32>;
#endif
#slot weight

// Partial sums: one a thread, or one a subgroup, for each of the NR results (4 at most).
var<workgroup> partial: array<f32, WG * 4u>;

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
    let base = entry / params.share * params.x_stride4 + params.x_offset4;
    var acc: array<f32, 4>;
    for (var r = 0u; r < NR; r++) { acc[r] = 0.0; }
    for (var kb = t.lid; kb < params.k_blocks; kb += WG) {
        var xv: array<vec4<f32>, 8>;
        for (var j = 0u; j < 8u; j++) {
            let k = kb * 8u + j;
#if TAIL
            if (k < params.k4) { xv[j] = x[base + k]; } else { xv[j] = vec4<f32>(0.0); }
#else
            xv[j] = x[base + k];
#endif
        }
        for (var r = 0u; r < NR; r++) {
            let w = weight_block((w0 + min(row0 + r, params.n - 1u)) * params.k_blocks + kb);
            acc[r] += dot(w[0], xv[0]) + dot(w[1], xv[1]) + dot(w[2], xv[2]) + dot(w[3], xv[3])
                + dot(w[4], xv[4]) + dot(w[5], xv[5]) + dot(w[6], xv[6]) + dot(w[7], xv[7]);
        }
    }
#if SUBGROUPS
    let parts = t.n_sg;
    for (var r = 0u; r < NR; r++) {
        let s = subgroupAdd(acc[r]);
        if (t.lane == 0u) { partial[r * WG + t.sg] = s; }
    }
#else
    let parts = WG;
    for (var r = 0u; r < NR; r++) { partial[r * WG + t.lid] = acc[r]; }
#endif
    workgroupBarrier();
    if (t.lid < NR && row0 + t.lid < params.n) {
        var s = 0.0;
        for (var i = 0u; i < parts; i++) { s += partial[t.lid * WG + i]; }
#if BIAS
        s += bias[w0 + row0 + t.lid];
#endif
        y[entry * params.y_stride + params.y_offset + row0 + t.lid] = s;
    }
}
