// y[r, :] = x[r, :] / sqrt(mean(x[r, :]^2) + eps) * w. One workgroup a row; cols is a multiple of 4 (strides in vec4). BYTES: y is written as rows of signed
// bytes as well; cols is a multiple of 32 then.
override WG: u32 = 64u;
#import reduce
struct Params { rows: u32, cols4: u32, x_stride4: u32, x_offset4: u32, y_stride4: u32, y_offset4: u32, eps: f32 }
@group(0) @binding(auto) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(auto) var<storage, read> w: array<vec4<f32>>;
@group(0) @binding(auto) var<storage, read_write> y: array<vec4<f32>>;
#if BYTES
#import byte_rows
#endif

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let row = group_index(t);
    if (row >= params.rows) { return; }
    let x0 = params.x_offset4 + row * params.x_stride4;
    let y0 = params.y_offset4 + row * params.y_stride4;
    var s = 0.0;
    for (var i = t.lid; i < params.cols4; i += WG) {
        let v = x[x0 + i];
        s += dot(v, v);
    }
    let total = workgroup_sum(s, t);
    let scale = 1.0 / sqrt(total / f32(params.cols4 * 4u) + params.eps);
#if BYTES
    for (var base = 0u; base < params.cols4; base += WG) {
        let i = base + t.lid;
        var v = vec4<f32>(0.0);
        if (i < params.cols4) {
            v = x[x0 + i] * scale * w[i];
            y[y0 + i] = v;
        }
        byte_store(t, i < params.cols4, row, params.cols4 / 8u, i, v);
    }
#else
    for (var i = t.lid; i < params.cols4; i += WG) {
        y[y0 + i] = x[x0 + i] * scale * w[i];
    }
#endif
}
