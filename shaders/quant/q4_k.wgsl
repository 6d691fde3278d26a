#import quants
#import sub_scales
@group(0) @binding(auto) var<storage, read> w_quants: array<vec4<u32>>;
// d and dmin, then scales and minimums.
@group(0) @binding(auto) var<storage, read> w_scales: array<vec4<u32>>;
fn weight_block(b: u32) -> array<vec4<f32>, 8> {
    let s = w_scales[b >> 3u];
    let d = unpack2x16float(s.x) * sub_scales(s, b & 7u);
    return weights_above(quants_of_nibbles(w_quants[b]), d.xx, -d.yy);
}
fn weight_bytes(b: u32) -> Bytes {
    let s = w_scales[b >> 3u];
    let d = unpack2x16float(s.x) * sub_scales(s, b & 7u);
    return bytes_above(quants_of_nibbles(w_quants[b]), d.xx, -d.yy);
}
