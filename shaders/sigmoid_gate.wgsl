// x[r, c] *= sigmoid(g[r, c]), in place. One thread an element.
#import thread
override WG: u32 = 64u;
struct Params { rows: u32, cols: u32, x_stride: u32, x_offset: u32, g_stride: u32, g_offset: u32 }
@group(0) @binding(auto) var<storage, read_write> x: array<f32>;
@group(0) @binding(auto) var<storage, read> g: array<f32>;

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let i = group_index(t) * WG + t.lid;
    let row = i / params.cols;
    if (row >= params.rows) { return; }
    let c = i % params.cols;
    x[row * params.x_stride + params.x_offset + c] /= 1.0 + exp(-g[row * params.g_stride + params.g_offset + c]);
}
