#import quants
@group(0) @binding(auto) var<storage, read> w_quants: array<vec4<u32>>;
@group(0) @binding(auto) var<storage, read> w_high: array<u32>;
// d and m.
@group(0) @binding(auto) var<storage, read> w_scales: array<u32>;
struct WeightRaw { q: vec4<u32>, h: u32, s: u32 }
fn weight_raw(b: u32) -> WeightRaw {
    return WeightRaw(w_quants[b], w_high[b], w_scales[b]);
}
fn weight_of(r: WeightRaw, b: u32) -> array<vec4<f32>, 8> {
    let s = unpack2x16float(r.s);
    let q = quants_join(quants_of_nibbles(r.q), quants_of_bits(r.h), 4u);
    return weights_above(q, s.xx, s.yy);
}
fn weight_block(b: u32) -> array<vec4<f32>, 8> { return weight_of(weight_raw(b), b); }
#set ONE_SCALE
fn weight_bytes_of(r: WeightRaw, b: u32) -> Bytes {
    let s = unpack2x16float(r.s);
    let q = quants_join(quants_of_nibbles(r.q), quants_of_bits(r.h), 4u);
    return bytes_above(q, s.xx, s.yy);
}
