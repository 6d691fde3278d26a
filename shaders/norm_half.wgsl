// h[r, :] = x[r, :] / sqrt(mean(x[r, :]^2) + eps) * w as f16 (lib/half_rows.wgsl). One workgroup a row; cols is a multiple of 4.
// PARTS: the parts of a product whose k was split, [splits, rows, cols], are added to x first.
override WG: u32 = 256u;
#import thread
#import reduce
struct Params { rows: u32, cols4: u32, padded4: u32, x_tiles: u32, x_stride4: u32, x_offset4: u32, splits: u32, eps: f32 }
#if PARTS
@group(0) @binding(auto) var<storage, read> parts: array<vec4<f32>>;
@group(0) @binding(auto) var<storage, read_write> x: array<vec4<f32>>;
#else
@group(0) @binding(auto) var<storage, read> x: array<vec4<f32>>;
#endif
@group(0) @binding(auto) var<storage, read> w: array<vec4<f32>>;
#import half_rows

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let r = group_index(t);
    if (r >= params.rows) { return; }
    let base = params.x_offset4 + r * params.x_stride4;
    var squares = 0.0;
    var top = 0.0;
    for (var i = t.lid; i < params.cols4; i += WG) {
        var v = x[base + i];
#if PARTS
        // Four at a time, so that they are waited for once.
        let size = params.rows * params.cols4;
        let last = params.splits - 1u;
        for (var p = 0u; p < params.splits; p += 4u) {
            let at = r * params.cols4 + i;
            let a = parts[at + p * size];
            let b = parts[at + min(p + 1u, last) * size];
            let c = parts[at + min(p + 2u, last) * size];
            let d = parts[at + min(p + 3u, last) * size];
            v += a;
            if (p + 1u <= last) { v += b; }
            if (p + 2u <= last) { v += c; }
            if (p + 3u <= last) { v += d; }
        }
        x[base + i] = v;
#endif
        squares += dot(v, v);
        top = max(top, largest(v * w[i]));
    }
    squares = workgroup_sum(squares, t);
    top = workgroup_max(top, t);
    let scale = 1.0 / sqrt(squares / f32(params.cols4 * 4u) + params.eps);
    let e = half_exponent(top * scale);
    let factor = half_factor(e);
    for (var i = t.lid; i < params.padded4; i += WG) {
        var v = vec4<f32>(0.0);
        // Each thread reads what it wrote itself.
        if (i < params.cols4) { v = x[base + i] * scale * w[i] * factor; }
        h[half_at(r, i)] = half_four(v);
    }
    if (t.lid == 0u) { scales[r] = half_scale(e); }
}
