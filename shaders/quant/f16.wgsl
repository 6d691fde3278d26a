// Kernels that hold weights in f16 say HALVES before the slot and take four at a time, so that neighbouring threads read neighbouring addresses.
#if HALVES
enable f16;
@group(0) @binding(auto) var<storage, read> w_values: array<vec4<f16>>;
fn weight_block(b: u32) -> array<vec4<f32>, 8> {
    let i = b * 8u;
    return array<vec4<f32>, 8>(
        vec4<f32>(w_values[i]), vec4<f32>(w_values[i + 1u]), vec4<f32>(w_values[i + 2u]), vec4<f32>(w_values[i + 3u]),
        vec4<f32>(w_values[i + 4u]), vec4<f32>(w_values[i + 5u]), vec4<f32>(w_values[i + 6u]), vec4<f32>(w_values[i + 7u]));
}
#set QUADS
fn weight_quad(b: u32, c: u32) -> vec4<f16> { return w_values[b * 8u + c]; }
#else
#set ELEMENTS
@group(0) @binding(auto) var<storage, read> w_values: array<vec4<u32>>;
fn weight_half(a: u32, b: u32) -> vec4<f32> { return vec4<f32>(unpack2x16float(a), unpack2x16float(b)); }
fn weight_block(b: u32) -> array<vec4<f32>, 8> {
    let i = b * 4u;
    let w0 = w_values[i]; let w1 = w_values[i + 1u]; let w2 = w_values[i + 2u]; let w3 = w_values[i + 3u];
    return array<vec4<f32>, 8>(
        weight_half(w0.x, w0.y), weight_half(w0.z, w0.w), weight_half(w1.x, w1.y), weight_half(w1.z, w1.w),
        weight_half(w2.x, w2.y), weight_half(w2.z, w2.w), weight_half(w3.x, w3.y), weight_half(w3.z, w3.w));
}
// Eight weights as they are stored, and what they are.
fn weight_raw(i: u32) -> vec4<u32> { return w_values[i]; }
fn weight_of(w: vec4<u32>) -> array<vec4<f32>, 2> {
    return array<vec4<f32>, 2>(weight_half(w.x, w.y), weight_half(w.z, w.w));
}
fn weight_eight(i: u32) -> array<vec4<f32>, 2> { return weight_of(weight_raw(i)); }
#endif
