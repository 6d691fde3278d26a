// Root-mean-square normalisation of segments of rows with a gate, in place: x[s] = x[s] / sqrt(mean(x[s]^2) + eps) * w * silu(z[s]);
// GATE_FIRST: the gate is a factor before the mean is taken. A row has `segments` of `cols` columns side by side, x and z alike. All have
// the same weights; with GATE_FIRST w is of the whole row. One workgroup a segment.
override WG: u32 = 64u;
#import reduce
#import activation
struct Params { rows: u32, segments: u32, cols: u32, x_stride: u32, x_offset: u32, z_stride: u32, z_offset: u32, eps: f32 }
@group(0) @binding(auto) var<storage, read_write> x: array<f32>;
@group(0) @binding(auto) var<storage, read> z: array<f32>;
@group(0) @binding(auto) var<storage, read> w: array<f32>;

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let g = group_index(t);
    let row = g / params.segments;
    if (row >= params.rows) { return; }
    let ahead = g % params.segments * params.cols;
    let x0 = row * params.x_stride + params.x_offset + ahead;
    let z0 = row * params.z_stride + params.z_offset + ahead;
    var s = 0.0;
    for (var i = t.lid; i < params.cols; i += WG) {
        var v = x[x0 + i];
#if GATE_FIRST
        v *= silu(z[z0 + i]);
        x[x0 + i] = v;
#endif
        s += v * v;
    }
    let scale = 1.0 / sqrt(workgroup_sum(s, t) / f32(params.cols) + params.eps);
    for (var i = t.lid; i < params.cols; i += WG) {
#if GATE_FIRST
        x[x0 + i] = x[x0 + i] * scale * w[ahead + i];
#else
        x[x0 + i] = x[x0 + i] * scale * w[i] * silu(z[z0 + i]);
#endif
    }
}
