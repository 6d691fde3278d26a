// y[t, y_offset + r] (+)= sum_k x[t, k] * W[r, k] (+ bias[r]): few rows of x, weights read once.
// A workgroup makes NR rows of W times NT rows of x; its threads take blocks of 32 along k.
// BIAS adds a bias; ACCUMULATE adds to what y holds; TAIL where k is not a multiple of 32.
#import thread
override WG: u32 = 64u;
override NR: u32 = 4u;
override NT: u32 = 1u;
struct Params {
    groups: u32, row_groups: u32, n: u32, t_rows: u32, k4: u32, k_blocks: u32,
    x_stride4: u32, x_offset4: u32, y_stride: u32, y_offset: u32,
}
@group(0) @binding(auto) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(auto) var<storage, read_write> y: array<f32>;
#if BIAS
@group(0) @binding(auto) var<storage, read> bias: array<f32>;
#endif
#slot weight

// Partial sums: one a thread, or one a subgroup, for each of the NR * NT results (16 at most).
var<workgroup> partial: array<f32, WG * 16u>;

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let g = group_index(t);
    if (g >= params.groups) { return; }
    let row0 = (g % params.row_groups) * NR;
    let t0 = (g / params.row_groups) * NT;
    var acc: array<f32, 16>;
    for (var i = 0u; i < NR * NT; i++) { acc[i] = 0.0; }
    for (var kb = t.lid; kb < params.k_blocks; kb += WG) {
        var xv: array<vec4<f32>, 32>;
        for (var c = 0u; c < NT; c++) {
            let base = min(t0 + c, params.t_rows - 1u) * params.x_stride4 + params.x_offset4;
            for (var j = 0u; j < 8u; j++) {
                let k = kb * 8u + j;
#if TAIL
                if (k < params.k4) { xv[c * 8u + j] = x[base + k]; } else { xv[c * 8u + j] = vec4<f32>(0.0); }
#else
                xv[c * 8u + j] = x[base + k];
#endif
            }
        }
        for (var r = 0u; r < NR; r++) {
            let w = weight_block(min(row0 + r, params.n - 1u) * params.k_blocks + kb);
            for (var c = 0u; c < NT; c++) {
                let o = c * 8u;
                acc[r * NT + c] += dot(w[0], xv[o]) + dot(w[1], xv[o + 1u]) + dot(w[2], xv[o + 2u]) + dot(w[3], xv[o + 3u])
                    + dot(w[4], xv[o + 4u]) + dot(w[5], xv[o + 5u]) + dot(w[6], xv[o + 6u]) + dot(w[7], xv[o + 7u]);
            }
        }
    }
#if SUBGROUPS
    let parts = t.n_sg;
    for (var i = 0u; i < NR * NT; i++) {
        let s = subgroupAdd(acc[i]);
        if (t.lane == 0u) { partial[i * WG + t.sg] = s; }
    }
#else
    let parts = WG;
    for (var i = 0u; i < NR * NT; i++) { partial[i * WG + t.lid] = acc[i]; }
#endif
    workgroupBarrier();
    if (t.lid < NR * NT) {
        let r = row0 + t.lid / NT;
        let c = t0 + t.lid % NT;
        if (r < params.n && c < params.t_rows) {
            var s = 0.0;
            for (var i = 0u; i < parts; i++) { s += partial[t.lid * WG + i]; }
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
