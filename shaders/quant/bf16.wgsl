#set ELEMENTS
@group(0) @binding(auto) var<storage, read> w_values: array<vec4<u32>>;
// A bf16 is the upper half of an f32.
fn weight_pairs(a: u32, b: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4<u32>(a << 16u, a & 0xffff0000u, b << 16u, b & 0xffff0000u));
}
fn weight_block(b: u32) -> array<vec4<f32>, 8> {
    let i = b * 4u;
    let w0 = w_values[i]; let w1 = w_values[i + 1u]; let w2 = w_values[i + 2u]; let w3 = w_values[i + 3u];
    return array<vec4<f32>, 8>(
        weight_pairs(w0.x, w0.y), weight_pairs(w0.z, w0.w), weight_pairs(w1.x, w1.y), weight_pairs(w1.z, w1.w),
        weight_pairs(w2.x, w2.y), weight_pairs(w2.z, w2.w), weight_pairs(w3.x, w3.y), weight_pairs(w3.z, w3.w));
}
// Eight weights as they are stored, and what they are.
fn weight_raw(i: u32) -> vec4<u32> { return w_values[i]; }
fn weight_of(w: vec4<u32>) -> array<vec4<f32>, 2> {
    return array<vec4<f32>, 2>(weight_pairs(w.x, w.y), weight_pairs(w.z, w.w));
}
fn weight_eight(i: u32) -> array<vec4<f32>, 2> { return weight_of(weight_raw(i)); }
