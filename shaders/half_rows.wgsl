// Rows as f16 for cooperative products (lib/half_rows.wgsl). One workgroup a row.
override WG: u32 = 256u;
#import thread
#import reduce
struct Params { rows: u32, cols4: u32, padded4: u32, x_tiles: u32, stride4: u32, offset4: u32 }
@group(0) @binding(auto) var<storage, read> x: array<vec4<f32>>;
#import half_rows

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let r = group_index(t);
    if (r >= params.rows) { return; }
    let base = r * params.stride4 + params.offset4;
    var top = 0.0;
    for (var i = t.lid; i < params.cols4; i += WG) { top = max(top, largest(x[base + i])); }
    top = workgroup_max(top, t);
    let e = half_exponent(top);
    let factor = half_factor(e);
    for (var i = t.lid; i < params.padded4; i += WG) {
        var v = vec4<f32>(0.0);
        if (i < params.cols4) { v = x[base + i] * factor; }
        h[half_at(r, i)] = half_four(v);
    }
    if (t.lid == 0u) { scales[r] = half_scale(e); }
}
