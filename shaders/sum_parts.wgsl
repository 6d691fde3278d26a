// y[t, y_offset + c] (+)= sum_s parts[s, t, c]: the parts of a product whose k was split. ACCUMULATE adds to what y holds.
#import thread
override WG: u32 = 64u;
struct Params { rows: u32, cols: u32, splits: u32, y_stride: u32, y_offset: u32 }
@group(0) @binding(auto) var<storage, read> parts: array<f32>;
@group(0) @binding(auto) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let i = group_index(t) * WG + t.lid;
    let size = params.rows * params.cols;
    if (i >= size) { return; }
    var s = 0.0;
    for (var p = 0u; p < params.splits; p++) { s += parts[p * size + i]; }
    let o = i / params.cols * params.y_stride + params.y_offset + i % params.cols;
#if ACCUMULATE
    s += y[o];
#endif
    y[o] = s;
}
