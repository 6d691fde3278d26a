@group(0) @binding(auto) var<storage, read> w_quants: array<vec4<u32>>;
@group(0) @binding(auto) var<storage, read> w_scales: array<u32>;
// The low four bits of each byte, less 8.
fn weight_nibbles(w: u32, d: f32) -> vec4<f32> {
    return d * (vec4<f32>(unpack4xU8(w & 0x0f0f0f0fu)) - 8.0);
}
fn weight_block(b: u32) -> array<vec4<f32>, 8> {
    let d = unpack2x16float(w_scales[b >> 1u])[b & 1u];
    let q = w_quants[b];
    let h = q >> vec4<u32>(4u);
    return array<vec4<f32>, 8>(
        weight_nibbles(q.x, d), weight_nibbles(q.y, d), weight_nibbles(q.z, d), weight_nibbles(q.w, d),
        weight_nibbles(h.x, d), weight_nibbles(h.y, d), weight_nibbles(h.z, d), weight_nibbles(h.w, d));
}
