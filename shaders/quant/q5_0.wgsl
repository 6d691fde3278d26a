#import quants
@group(0) @binding(auto) var<storage, read> w_quants: array<vec4<u32>>;
@group(0) @binding(auto) var<storage, read> w_high: array<u32>;
@group(0) @binding(auto) var<storage, read> w_scales: array<u32>;
fn weight_block(b: u32) -> array<vec4<f32>, 8> {
    let d = unpack2x16float(w_scales[b >> 1u])[b & 1u];
    let q = quants_join(quants_of_nibbles(w_quants[b]), quants_of_bits(w_high[b]), 4u);
    return weights_around(q, 16.0, vec2<f32>(d));
}
fn weight_bytes(b: u32) -> Bytes {
    let d = unpack2x16float(w_scales[b >> 1u])[b & 1u];
    let q = quants_join(quants_of_nibbles(w_quants[b]), quants_of_bits(w_high[b]), 4u);
    return bytes_around(q, 16.0, vec2<f32>(d));
}
