#import quants
#import sub_scales
@group(0) @binding(auto) var<storage, read> w_quants: array<vec2<u32>>;
@group(0) @binding(auto) var<storage, read> w_high: array<u32>;
// d in f32, then the scales.
@group(0) @binding(auto) var<storage, read> w_scales: array<vec4<u32>>;
struct WeightRaw { q: vec2<u32>, h: u32, s: vec4<u32> }
fn weight_raw(b: u32) -> WeightRaw {
    return WeightRaw(w_quants[b], w_high[b], w_scales[b >> 3u]);
}
fn weight_of(r: WeightRaw, b: u32) -> array<vec4<f32>, 8> {
    let d = bitcast<f32>(r.s.x) * (sub_scales(r.s, b & 7u) - 32.0);
    let q = quants_join(quants_of_pairs(r.q), quants_of_bits(r.h), 2u);
    return weights_around(q, 4.0, d);
}
fn weight_block(b: u32) -> array<vec4<f32>, 8> { return weight_of(weight_raw(b), b); }
fn weight_bytes_of(r: WeightRaw, b: u32) -> Bytes {
    let d = bitcast<f32>(r.s.x) * (sub_scales(r.s, b & 7u) - 32.0);
    let q = quants_join(quants_of_pairs(r.q), quants_of_bits(r.h), 2u);
    return bytes_around(q, 4.0, d);
}
