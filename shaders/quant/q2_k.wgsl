#import quants
@group(0) @binding(auto) var<storage, read> w_quants: array<vec2<u32>>;
// Five words a super-block: scale and minimum of each sub-block in a byte, then d and dmin.
@group(0) @binding(auto) var<storage, read> w_scales: array<u32>;
struct WeightRaw { q: vec2<u32>, s: u32, d: u32 }
fn weight_raw(b: u32) -> WeightRaw {
    return WeightRaw(w_quants[b], w_scales[(b >> 3u) * 5u + ((b & 7u) >> 1u)], w_scales[(b >> 3u) * 5u + 4u]);
}
fn weight_of(r: WeightRaw, b: u32) -> array<vec4<f32>, 8> {
    let d = unpack2x16float(r.d);
    let s = vec2<u32>(r.s) >> vec2<u32>((b & 1u) * 16u, (b & 1u) * 16u + 8u);
    let scales = vec2<f32>(s & vec2<u32>(15u));
    let mins = vec2<f32>((s >> vec2<u32>(4u)) & vec2<u32>(15u));
    return weights_above(quants_of_pairs(r.q), d.x * scales, -d.y * mins);
}
fn weight_block(b: u32) -> array<vec4<f32>, 8> { return weight_of(weight_raw(b), b); }
fn weight_bytes_of(r: WeightRaw, b: u32) -> Bytes {
    let d = unpack2x16float(r.d);
    let s = vec2<u32>(r.s) >> vec2<u32>((b & 1u) * 16u, (b & 1u) * 16u + 8u);
    let scales = vec2<f32>(s & vec2<u32>(15u));
    let mins = vec2<f32>((s >> vec2<u32>(4u)) & vec2<u32>(15u));
    return bytes_above(quants_of_pairs(r.q), d.x * scales, -d.y * mins);
}
