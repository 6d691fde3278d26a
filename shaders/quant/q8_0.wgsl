#import bytes
@group(0) @binding(auto) var<storage, read> w_quants: array<vec4<u32>>;
@group(0) @binding(auto) var<storage, read> w_scales: array<u32>;
// Four signed bytes of a word.
fn weight_four(w: u32, d: f32) -> vec4<f32> {
    let v = bitcast<vec4<i32>>(vec4<u32>(w << 24u, w << 16u, w << 8u, w)) >> vec4<u32>(24u);
    return d * vec4<f32>(v);
}
struct WeightRaw { q0: vec4<u32>, q1: vec4<u32>, s: u32 }
fn weight_raw(b: u32) -> WeightRaw {
    return WeightRaw(w_quants[b * 2u], w_quants[b * 2u + 1u], w_scales[b >> 1u]);
}
fn weight_of(r: WeightRaw, b: u32) -> array<vec4<f32>, 8> {
    let d = unpack2x16float(r.s)[b & 1u];
    return array<vec4<f32>, 8>(
        weight_four(r.q0.x, d), weight_four(r.q0.y, d), weight_four(r.q0.z, d), weight_four(r.q0.w, d),
        weight_four(r.q1.x, d), weight_four(r.q1.y, d), weight_four(r.q1.z, d), weight_four(r.q1.w, d));
}
fn weight_block(b: u32) -> array<vec4<f32>, 8> { return weight_of(weight_raw(b), b); }
#set ONE_SCALE
#set UNSHIFTED
fn weight_bytes_of(r: WeightRaw, b: u32) -> Bytes {
    return Bytes(r.q0, r.q1, vec2<f32>(unpack2x16float(r.s)[b & 1u]), vec2<f32>(0.0));
}
