// Sums of products of NR rows of weights with one row of x, by the threads of a workgroup along k. With BYTES x is rows of signed bytes
// (byte_rows), else f32, with TAIL not a multiple of 32 wide. The caller declares WG and NR (at most 16), and params with k_blocks
// and, without BYTES, k4, x_stride4 and x_offset4. lib/team.wgsl does this for several rows of x, a team of threads a row of weights.
#import thread
#if BYTES
@group(0) @binding(auto) var<storage, read> x: array<vec4<u32>>;
@group(0) @binding(auto) var<storage, read> x_scales: array<vec2<u32>>;
#else
@group(0) @binding(auto) var<storage, read> x: array<vec4<f32>>;
#endif
#slot weight

#if SUBGROUPS
// One a subgroup for each of the NR results; no subgroup has less than 4 threads.
override PARTS: u32 = WG / 4u;
#else
override PARTS: u32 = WG;
#endif
var<workgroup> partial: array<f32, PARTS * NR>;

// Leaves the sums for thread lid < NR to add up with product_sum: weight rows from w_row0 on, none past w_last (results beyond are of the
// last one), times a row of x.
fn products(t: Thread, w_row0: u32, w_last: u32, x_row: u32) {
    var acc: array<f32, 16>;
    for (var r = 0u; r < NR; r++) { acc[r] = 0.0; }
#if BYTES
    for (var b = t.lid; b < params.k_blocks; b += WG) {
        let row = x_row * params.k_blocks;
        let lo = x[row * 2u + b];
        let hi = x[row * 2u + params.k_blocks + b];
        let scales = x_scales[row + b];
        // Scale, and scale times the sum of either half.
        let d = bitcast<f32>(scales.x);
        let sums = d * vec2<f32>(bitcast<vec2<i32>>(vec2<u32>(scales.y << 16u, scales.y)) >> vec2<u32>(16u));
        for (var r = 0u; r < NR; r++) {
            let i = min(w_row0 + r, w_last) * params.k_blocks + b;
            let w = weight_bytes_of(weight_raw(i), i);
            let whole = vec2<f32>(f32(bytes_dot(w.lo, lo)), f32(bytes_dot(w.hi, hi)));
            acc[r] += d * dot(w.scale, whole) + dot(w.offset, sums);
        }
    }
#else
    let base = x_row * params.x_stride4 + params.x_offset4;
#if ELEMENTS
    // Eight weights a thread and step, so that neighbouring threads read neighbouring bytes.
    let eights = params.k_blocks * 4u;
    for (var i = t.lid; i < eights; i += WG) {
        var xv: array<vec4<f32>, 2>;
        for (var j = 0u; j < 2u; j++) {
            let k = i * 2u + j;
#if TAIL
            if (k < params.k4) { xv[j] = x[base + k]; } else { xv[j] = vec4<f32>(0.0); }
#else
            xv[j] = x[base + k];
#endif
        }
        for (var r = 0u; r < NR; r++) {
            let w = weight_eight(min(w_row0 + r, w_last) * eights + i);
            acc[r] += dot(w[0], xv[0]) + dot(w[1], xv[1]);
        }
    }
#else
    for (var b = t.lid; b < params.k_blocks; b += WG) {
        var xv: array<vec4<f32>, 8>;
        for (var j = 0u; j < 8u; j++) { xv[j] = x[base + b * 8u + j]; }
        for (var r = 0u; r < NR; r++) {
            let w = weight_block(min(w_row0 + r, w_last) * params.k_blocks + b);
            acc[r] += dot(w[0], xv[0]) + dot(w[1], xv[1]) + dot(w[2], xv[2]) + dot(w[3], xv[3])
                + dot(w[4], xv[4]) + dot(w[5], xv[5]) + dot(w[6], xv[6]) + dot(w[7], xv[7]);
        }
    }
#endif
#endif
#if SUBGROUPS
    for (var r = 0u; r < NR; r++) {
        let s = subgroupAdd(acc[r]);
        if (t.lane == 0u) { partial[r * PARTS + t.sg] = s; }
    }
#else
    for (var r = 0u; r < NR; r++) { partial[r * PARTS + t.lid] = acc[r]; }
#endif
    workgroupBarrier();
}

// Result r of products.
fn product_sum(t: Thread, r: u32) -> f32 {
#if SUBGROUPS
    let n = t.n_sg;
#else
    let n = WG;
#endif
    var s = 0.0;
    for (var j = 0u; j < n; j++) { s += partial[r * PARTS + j]; }
    return s;
}
