#import quants
#import sub_scales
@group(0) @binding(auto) var<storage, read> w_quants: array<vec4<u32>>;
@group(0) @binding(auto) var<storage, read> w_high: array<u32>;
// d and dmin, then scales and minimums.
@group(0) @binding(auto) var<storage, read> w_scales: array<vec4<u32>>;
fn weight_block(b: u32) -> array<vec4<f32>, 8> {
    let s = w_scales[b >> 3u];
    let d = unpack2x16float(s.x) * sub_scales(s, b & 7u);
    let q = quants_join(quants_of_nibbles(w_quants[b]), quants_of_bits(w_high[b]), 4u);
    return weights_above(q, d.xx, -d.yy);
}
fn weight_bytes(b: u32) -> Bytes {
    let s = w_scales[b >> 3u];
    let d = unpack2x16float(s.x) * sub_scales(s, b & 7u);
    let q = quants_join(quants_of_nibbles(w_quants[b]), quants_of_bits(w_high[b]), 4u);
    return bytes_above(q, d.xx, -d.yy);
}
