#import quants
#import sub_scales
@group(0) @binding(auto) var<storage, read> w_quants: array<vec4<u32>>;
// d and dmin, then scales and minimums.
@group(0) @binding(auto) var<storage, read> w_scales: array<vec4<u32>>;
struct WeightRaw { q: vec4<u32>, s: vec4<u32> }
fn weight_raw(b: u32) -> WeightRaw {
    return WeightRaw(w_quants[b], w_scales[b >> 3u]);
}
fn weight_of(r: WeightRaw, b: u32) -> array<vec4<f32>, 8> {
    let d = unpack2x16float(r.s.x) * sub_scales(r.s, b & 7u);
    return weights_above(quants_of_nibbles(r.q), d.xx, -d.yy);
}
fn weight_block(b: u32) -> array<vec4<f32>, 8> { return weight_of(weight_raw(b), b); }
#set ONE_SCALE
fn weight_bytes_of(r: WeightRaw, b: u32) -> Bytes {
    let d = unpack2x16float(r.s.x) * sub_scales(r.s, b & 7u);
    return bytes_above(quants_of_nibbles(r.q), d.xx, -d.yy);
}
