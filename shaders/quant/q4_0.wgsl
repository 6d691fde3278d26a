#import quants
@group(0) @binding(auto) var<storage, read> w_quants: array<vec4<u32>>;
@group(0) @binding(auto) var<storage, read> w_scales: array<u32>;
#if DEV_RAW
#set RAW
struct WeightRaw { q: vec4<u32>, d: u32 }
fn weight_raw(b: u32) -> WeightRaw { return WeightRaw(w_quants[b], w_scales[b >> 1u]); }
fn weight_of(r: WeightRaw, b: u32) -> array<vec4<f32>, 8> {
    return weights_around(quants_of_nibbles(r.q), 8.0, vec2<f32>(unpack2x16float(r.d)[b & 1u]));
}
#endif
fn weight_block(b: u32) -> array<vec4<f32>, 8> {
    let d = unpack2x16float(w_scales[b >> 1u])[b & 1u];
    return weights_around(quants_of_nibbles(w_quants[b]), 8.0, vec2<f32>(d));
}
fn weight_bytes(b: u32) -> Bytes {
    let d = unpack2x16float(w_scales[b >> 1u])[b & 1u];
    return bytes_around(quants_of_nibbles(w_quants[b]), 8.0, vec2<f32>(d));
}
