// h[r, :] = act(x[r, gate + :]) * x[r, up + :] (GATED), or act(x[r, :]) without a gate, as f16 (lib/half_rows.wgsl). One workgroup a row, whose
// columns are a multiple of 4. GELU, CLAMPED: as activate.wgsl has them. Worked out twice: for the row's largest, and to be written.
override WG: u32 = 256u;
#import thread
#import reduce
#import activation
struct Params { rows: u32, cols4: u32, padded4: u32, x_tiles: u32, x_stride4: u32, gate_offset4: u32, up_offset4: u32, alpha: f32, limit: f32 }
@group(0) @binding(auto) var<storage, read> x: array<vec4<f32>>;
#import half_rows

fn act(g: f32) -> f32 {
#if CLAMPED
    let low = min(g, params.limit);
    return low / (1.0 + exp(-params.alpha * low));
#else
#if GELU
    return gelu_tanh(g);
#else
    return silu(g);
#endif
#endif
}

fn activated(row: u32, i: u32) -> vec4<f32> {
    let g = x[row * params.x_stride4 + params.gate_offset4 + i];
    var v = vec4<f32>(act(g.x), act(g.y), act(g.z), act(g.w));
#if GATED
    var up = x[row * params.x_stride4 + params.up_offset4 + i];
#if CLAMPED
    up = clamp(up, vec4<f32>(-params.limit), vec4<f32>(params.limit)) + 1.0;
#endif
    v *= up;
#endif
    return v;
}

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let r = group_index(t);
    if (r >= params.rows) { return; }
    var top = 0.0;
    for (var i = t.lid; i < params.cols4; i += WG) { top = max(top, largest(activated(r, i))); }
    top = workgroup_max(top, t);
    let e = half_exponent(top);
    let factor = half_factor(e);
    for (var i = t.lid; i < params.padded4; i += WG) {
        var v = vec4<f32>(0.0);
        if (i < params.cols4) { v = activated(r, i) * factor; }
        h[half_at(r, i)] = half_four(v);
    }
    if (t.lid == 0u) { scales[r] = half_scale(e); }
}
