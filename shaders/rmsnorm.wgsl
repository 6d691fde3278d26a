// y[r, :] = x[r, :] / sqrt(mean(x[r, :]^2) + eps) * w. One workgroup a row; cols is a multiple of 4 (strides in vec4).
// CENTER subtracts the row's mean first: layer normalisation. BIAS adds a bias; ADD adds the result to what y holds.
// BYTES: y is written as rows of signed bytes as well; cols is a multiple of 32 then.
override WG: u32 = 64u;
#import reduce
struct Params { rows: u32, cols4: u32, x_stride4: u32, x_offset4: u32, y_stride4: u32, y_offset4: u32, eps: f32 }
@group(0) @binding(auto) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(auto) var<storage, read> w: array<vec4<f32>>;
@group(0) @binding(auto) var<storage, read_write> y: array<vec4<f32>>;
#if BIAS
@group(0) @binding(auto) var<storage, read> bias: array<vec4<f32>>;
#endif
#if BYTES
override BYTE_THREADS: u32 = WG;
#import byte_rows
#endif

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let row = group_index(t);
    if (row >= params.rows) { return; }
    let x0 = params.x_offset4 + row * params.x_stride4;
    let y0 = params.y_offset4 + row * params.y_stride4;
    var mean = 0.0;
#if CENTER
    for (var i = t.lid; i < params.cols4; i += WG) { mean += dot(x[x0 + i], vec4<f32>(1.0)); }
    mean = workgroup_sum(mean, t) / f32(params.cols4 * 4u);
#endif
    var s = 0.0;
    for (var i = t.lid; i < params.cols4; i += WG) {
        let v = x[x0 + i] - mean;
        s += dot(v, v);
    }
    let total = workgroup_sum(s, t);
    let scale = 1.0 / sqrt(total / f32(params.cols4 * 4u) + params.eps);
#if BYTES
    for (var base = 0u; base < params.cols4; base += WG) {
        let i = base + t.lid;
        var v = vec4<f32>(0.0);
        if (i < params.cols4) {
            v = (x[x0 + i] - mean) * scale * w[i];
#if BIAS
            v += bias[i];
#endif
            y[y0 + i] = v;
        }
        byte_store(t, i < params.cols4, row, params.cols4 / 8u, i, v);
    }
#else
    for (var i = t.lid; i < params.cols4; i += WG) {
        var v = (x[x0 + i] - mean) * scale * w[i];
#if BIAS
        v += bias[i];
#endif
#if ADD
        v += y[y0 + i];
#endif
        y[y0 + i] = v;
    }
#endif
}
