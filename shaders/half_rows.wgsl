// Rows as f16 for cooperative products: h[r, k] = x[r, k] * 2^e, scales[r] = 2^-e, with the row's largest magnitude brought to 2^14..2^15,
// so that no row leaves the range of f16 and what is lost is far below its sums. h is padded with zeros to whole blocks of 32.
// A row with an infinity or a NaN keeps it. One workgroup a row.
override WG: u32 = 256u;
#import thread
#import reduce
struct Params { rows: u32, cols4: u32, padded4: u32, stride4: u32, offset4: u32 }
@group(0) @binding(auto) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(auto) var<storage, read_write> h: array<vec2<u32>>;
@group(0) @binding(auto) var<storage, read_write> scales: array<f32>;

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let r = group_index(t);
    if (r >= params.rows) { return; }
    let base = r * params.stride4 + params.offset4;
    var top = 0.0;
    for (var i = t.lid; i < params.cols4; i += WG) {
        let v = abs(x[base + i]);
        top = max(top, max(max(v.x, v.y), max(v.z, v.w)));
    }
    top = workgroup_max(top, t);
    // The exponent of the factor, as f32 stores it; its negative must be a normal number too.
    let e = min(268u - ((bitcast<u32>(top) >> 23u) & 255u), 253u);
    let factor = bitcast<f32>(e << 23u);
    for (var i = t.lid; i < params.padded4; i += WG) {
        var v = vec4<f32>(0.0);
        if (i < params.cols4) { v = x[base + i] * factor; }
        h[r * params.padded4 + i] = vec2<u32>(pack2x16float(v.xy), pack2x16float(v.zw));
    }
    if (t.lid == 0u) { scales[r] = bitcast<f32>((254u - e) << 23u); }
}
