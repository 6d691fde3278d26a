// x[r, :] += sum_j weights[r, j] * y[r * n_used + j, :], summed by rising j, so that the same bits come out each time.
// SHARED adds sigmoid(gate[r]) * shared[r, :] to the sum: an expert that every row uses.
// One thread makes four columns (strides and offsets in vec4).
#import thread
override WG: u32 = 64u;
struct Params {
    rows: u32, cols4: u32, n_used: u32, x_stride4: u32, x_offset4: u32, y_stride4: u32, y_offset4: u32,
    shared_stride4: u32, shared_offset4: u32,
}
@group(0) @binding(auto) var<storage, read> weights: array<f32>;
@group(0) @binding(auto) var<storage, read> y: array<vec4<f32>>;
@group(0) @binding(auto) var<storage, read_write> x: array<vec4<f32>>;
#if SHARED
@group(0) @binding(auto) var<storage, read> gate: array<f32>;
@group(0) @binding(auto) var<storage, read> shared_y: array<vec4<f32>>;
#endif

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let i = group_index(t) * WG + t.lid;
    let row = i / params.cols4;
    if (row >= params.rows) { return; }
    let c = i % params.cols4;
    var sum = vec4<f32>(0.0);
    for (var j = 0u; j < params.n_used; j++) {
        let entry = row * params.n_used + j;
        sum += weights[entry] * y[entry * params.y_stride4 + params.y_offset4 + c];
    }
#if SHARED
    sum += 1.0 / (1.0 + exp(-gate[row])) * shared_y[row * params.shared_stride4 + params.shared_offset4 + c];
#endif
    let at = row * params.x_stride4 + params.x_offset4 + c;
    x[at] += sum;
}
