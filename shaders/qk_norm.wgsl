// Root-mean-square normalisation of segments of rows, in place: x[s] = x[s] / sqrt(mean(x[s]^2) + eps) * w. A row has q_segments of q_cols4
// vectors, then k_segments of k_cols4, side by side; all segments of a kind have the same weights. One workgroup a segment.
override WG: u32 = 64u;
#import reduce
struct Params {
    rows: u32, x_stride4: u32, x_offset4: u32, q_segments: u32, q_cols4: u32, k_segments: u32, k_cols4: u32, eps: f32,
}
@group(0) @binding(auto) var<storage, read_write> x: array<vec4<f32>>;
@group(0) @binding(auto) var<storage, read> q_w: array<vec4<f32>>;
@group(0) @binding(auto) var<storage, read> k_w: array<vec4<f32>>;

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let g = group_index(t);
    let segments = params.q_segments + params.k_segments;
    let row = g / segments;
    if (row >= params.rows) { return; }
    let segment = g % segments;
    let is_q = segment < params.q_segments;
    let cols4 = select(params.k_cols4, params.q_cols4, is_q);
    let k_segment = segment - params.q_segments;
    let before = select(params.q_segments * params.q_cols4 + k_segment * params.k_cols4, segment * params.q_cols4, is_q);
    let x0 = row * params.x_stride4 + params.x_offset4 + before;
    var s = 0.0;
    for (var i = t.lid; i < cols4; i += WG) { s += dot(x[x0 + i], x[x0 + i]); }
    let total = workgroup_sum(s, t);
    let scale = 1.0 / sqrt(total / f32(cols4 * 4u) + params.eps);
    for (var i = t.lid; i < cols4; i += WG) {
        var w = vec4<f32>(0.0);
        if (is_q) { w = q_w[i]; } else { w = k_w[i]; }
        x[x0 + i] *= scale * w;
    }
}
