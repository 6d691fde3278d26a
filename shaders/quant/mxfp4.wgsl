#import bytes
@group(0) @binding(auto) var<storage, read> w_quants: array<vec4<u32>>;
// A byte a block.
@group(0) @binding(auto) var<storage, read> w_scales: array<u32>;
// Twice the values of the low half of each byte, worked out for four bytes at once: 0 1 2 3 4 6 8 12, and their negatives. To each 12 is
// added, so that no byte is negative.
fn weight_twice(w: u32) -> u32 {
    let n = w & 0x0f0f0f0fu;
    let large = (n >> 2u) & 0x01010101u;
    let v = (n & 0x07070707u) + (n & (large * 3u)) + ((n & (n >> 1u) & large) << 1u);
    return 0x0c0c0c0cu + v - ((v & (((n >> 3u) & 0x01010101u) * 255u)) << 1u);
}
fn weight_floats(w: u32, d: f32) -> vec4<f32> { return d * (vec4<f32>(unpack4xU8(weight_twice(w))) - 12.0); }
struct WeightRaw { q: vec4<u32>, s: u32 }
fn weight_raw(b: u32) -> WeightRaw { return WeightRaw(w_quants[b], w_scales[b >> 2u]); }
fn weight_scale(s: u32, b: u32) -> f32 {
    let e = (s >> ((b & 3u) * 8u)) & 255u;
    // 2^(e - 128); the two smallest are no normal numbers, which a device may take for zero.
    return bitcast<f32>(select((e - 1u) << 23u, 0x00200000u << (e & 1u), e < 2u));
}
fn weight_of(r: WeightRaw, b: u32) -> array<vec4<f32>, 8> {
    let d = weight_scale(r.s, b);
    let q = r.q;
    let h = q >> vec4<u32>(4u);
    return array<vec4<f32>, 8>(
        weight_floats(q.x, d), weight_floats(q.y, d), weight_floats(q.z, d), weight_floats(q.w, d),
        weight_floats(h.x, d), weight_floats(h.y, d), weight_floats(h.z, d), weight_floats(h.w, d));
}
fn weight_block(b: u32) -> array<vec4<f32>, 8> { return weight_of(weight_raw(b), b); }
#set ONE_SCALE
fn weight_bytes_of(r: WeightRaw, b: u32) -> Bytes {
    let q = r.q;
    let h = q >> vec4<u32>(4u);
    let d = vec2<f32>(weight_scale(r.s, b));
    return Bytes(
        vec4<u32>(weight_twice(q.x), weight_twice(q.y), weight_twice(q.z), weight_twice(q.w)),
        vec4<u32>(weight_twice(h.x), weight_twice(h.y), weight_twice(h.z), weight_twice(h.w)), d, -12.0 * d);
}
