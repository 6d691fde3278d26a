#import quants
#import sub_scales
@group(0) @binding(auto) var<storage, read> w_quants: array<vec2<u32>>;
@group(0) @binding(auto) var<storage, read> w_high: array<u32>;
// d in f32, then the scales.
@group(0) @binding(auto) var<storage, read> w_scales: array<vec4<u32>>;
fn weight_block(b: u32) -> array<vec4<f32>, 8> {
    let s = w_scales[b >> 3u];
    let d = bitcast<f32>(s.x) * (sub_scales(s, b & 7u) - 32.0);
    let q = quants_join(quants_of_pairs(w_quants[b]), quants_of_bits(w_high[b]), 2u);
    return weights_around(q, 4.0, d);
}
fn weight_bytes(b: u32) -> Bytes {
    let s = w_scales[b >> 3u];
    let d = bitcast<f32>(s.x) * (sub_scales(s, b & 7u) - 32.0);
    let q = quants_join(quants_of_pairs(w_quants[b]), quants_of_bits(w_high[b]), 2u);
    return bytes_around(q, 4.0, d);
}
