// Sums of products of NR rows of weights with NT rows of x, by the threads of a workgroup along k. With BYTES x is rows of signed bytes
// (byte_rows), else f32, with TAIL not a multiple of 32 wide. The caller declares WG, NR and NT (NR * NT at most 16), and params with k_blocks
// and, without BYTES, k4, x_stride4 and x_offset4.
#import thread
#if BYTES
@group(0) @binding(auto) var<storage, read> x: array<vec4<u32>>;
@group(0) @binding(auto) var<storage, read> x_scales: array<vec2<u32>>;
#else
@group(0) @binding(auto) var<storage, read> x: array<vec4<f32>>;
#endif
#slot weight

#if SUBGROUPS
// One a subgroup for each of the NR * NT results; no subgroup has less than 4 threads.
override PARTS: u32 = WG / 4u;
#else
override PARTS: u32 = WG;
#endif
var<workgroup> partial: array<f32, PARTS * NR * NT>;

// Leaves the sums for thread lid < NR * NT to add up with product_sum: weight rows from w_row0 on, none past w_last, times rows of x from
// x_row0 on, none past x_last; results of rows beyond are of the last ones.
fn products(t: Thread, w_row0: u32, w_last: u32, x_row0: u32, x_last: u32) {
    var acc: array<f32, 16>;
    for (var i = 0u; i < NR * NT; i++) { acc[i] = 0.0; }
#if BYTES
    for (var b = t.lid; b < params.k_blocks; b += WG) {
        var lo: array<vec4<u32>, 4>;
        var hi: array<vec4<u32>, 4>;
        // Scale, and scale times the sum of either half.
        var s: array<vec3<f32>, 4>;
        for (var c = 0u; c < NT; c++) {
            let row = min(x_row0 + c, x_last) * params.k_blocks + b;
            let at = row + min(x_row0 + c, x_last) * params.k_blocks;
            lo[c] = x[at];
            hi[c] = x[at + params.k_blocks];
            let scales = x_scales[row];
            let d = bitcast<f32>(scales.x);
            let sums = bitcast<vec2<i32>>(vec2<u32>(scales.y << 16u, scales.y)) >> vec2<u32>(16u);
            s[c] = vec3<f32>(d, d * vec2<f32>(sums));
        }
        for (var r = 0u; r < NR; r++) {
            let w = weight_bytes(min(w_row0 + r, w_last) * params.k_blocks + b);
            for (var c = 0u; c < NT; c++) {
                let whole = vec2<f32>(f32(bytes_dot(w.lo, lo[c])), f32(bytes_dot(w.hi, hi[c])));
                acc[r * NT + c] += s[c].x * dot(w.scale, whole) + dot(w.offset, s[c].yz);
            }
        }
    }
#else
#if ELEMENTS
    // Eight weights a thread and step, so that neighbouring threads read neighbouring bytes.
    let eights = params.k_blocks * 4u;
    for (var i = t.lid; i < eights; i += WG) {
        var xv: array<vec4<f32>, 8>;
        for (var c = 0u; c < NT; c++) {
            let base = min(x_row0 + c, x_last) * params.x_stride4 + params.x_offset4;
            for (var j = 0u; j < 2u; j++) {
                let k = i * 2u + j;
#if TAIL
                if (k < params.k4) { xv[c * 2u + j] = x[base + k]; } else { xv[c * 2u + j] = vec4<f32>(0.0); }
#else
                xv[c * 2u + j] = x[base + k];
#endif
            }
        }
        for (var r = 0u; r < NR; r++) {
            let w = weight_eight(min(w_row0 + r, w_last) * eights + i);
            for (var c = 0u; c < NT; c++) { acc[r * NT + c] += dot(w[0], xv[c * 2u]) + dot(w[1], xv[c * 2u + 1u]); }
        }
    }
#else
    for (var b = t.lid; b < params.k_blocks; b += WG) {
        var xv: array<vec4<f32>, 32>;
        for (var c = 0u; c < NT; c++) {
            let base = min(x_row0 + c, x_last) * params.x_stride4 + params.x_offset4;
            for (var j = 0u; j < 8u; j++) { xv[c * 8u + j] = x[base + b * 8u + j]; }
        }
        for (var r = 0u; r < NR; r++) {
            let w = weight_block(min(w_row0 + r, w_last) * params.k_blocks + b);
            for (var c = 0u; c < NT; c++) {
                let o = c * 8u;
                acc[r * NT + c] += dot(w[0], xv[o]) + dot(w[1], xv[o + 1u]) + dot(w[2], xv[o + 2u]) + dot(w[3], xv[o + 3u])
                    + dot(w[4], xv[o + 4u]) + dot(w[5], xv[o + 5u]) + dot(w[6], xv[o + 6u]) + dot(w[7], xv[o + 7u]);
            }
        }
    }
#endif
#endif
#if SUBGROUPS
    for (var i = 0u; i < NR * NT; i++) {
        let s = subgroupAdd(acc[i]);
        if (t.lane == 0u) { partial[i * PARTS + t.sg] = s; }
    }
#else
    for (var i = 0u; i < NR * NT; i++) { partial[i * PARTS + t.lid] = acc[i]; }
#endif
    workgroupBarrier();
}

// Result i = r * NT + c of products.
fn product_sum(t: Thread, i: u32) -> f32 {
#if SUBGROUPS
    let n = t.n_sg;
#else
    let n = WG;
#endif
    var s = 0.0;
    for (var j = 0u; j < n; j++) { s += partial[i * PARTS + j]; }
    return s;
}
