#import quants
@group(0) @binding(auto) var<storage, read> w_quants: array<vec4<u32>>;
@group(0) @binding(auto) var<storage, read> w_scales: array<u32>;
struct WeightRaw { q: vec4<u32>, s: u32 }
fn weight_raw(b: u32) -> WeightRaw {
    return WeightRaw(w_quants[b], w_scales[b >> 1u]);
}
fn weight_of(r: WeightRaw, b: u32) -> array<vec4<f32>, 8> {
    let d = unpack2x16float(r.s)[b & 1u];
    return weights_around(quants_of_nibbles(r.q), 8.0, vec2<f32>(d));
}
#if F16_MATH
#set HALF_BLOCKS
fn weight_halves(r: WeightRaw, b: u32) -> array<vec4<f16>, 8> {
    return halves_around(quants_of_nibbles(r.q), 8.0h, f16(unpack2x16float(r.s)[b & 1u]));
}
#endif
fn weight_block(b: u32) -> array<vec4<f32>, 8> { return weight_of(weight_raw(b), b); }
#set ONE_SCALE
#set UNSHIFTED
fn weight_bytes_of(r: WeightRaw, b: u32) -> Bytes {
    let d = unpack2x16float(r.s)[b & 1u];
    // (q - 8) * 16 as a signed byte, so that there is nothing to take off afterwards.
    let q = r.q ^ vec4<u32>(0x88888888u);
    let high = vec4<u32>(0xf0f0f0f0u);
    return Bytes((q << vec4<u32>(4u)) & high, q & high, vec2<f32>(d * 0.0625), vec2<f32>(0.0));
}
