#import quants
@group(0) @binding(auto) var<storage, read> w_quants: array<vec4<u32>>;
// d and m.
@group(0) @binding(auto) var<storage, read> w_scales: array<u32>;
fn weight_block(b: u32) -> array<vec4<f32>, 8> {
    let s = unpack2x16float(w_scales[b]);
    return weights_above(quants_of_nibbles(w_quants[b]), s.xx, s.yy);
}
fn weight_bytes(b: u32) -> Bytes {
    let s = unpack2x16float(w_scales[b]);
    return bytes_above(quants_of_nibbles(w_quants[b]), s.xx, s.yy);
}
