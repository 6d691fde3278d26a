#import quants
@group(0) @binding(auto) var<storage, read> w_quants: array<vec4<u32>>;
@group(0) @binding(auto) var<storage, read> w_high: array<vec2<u32>>;
// Five words a super-block: a signed byte for each sub-block, then d in f32.
@group(0) @binding(auto) var<storage, read> w_scales: array<u32>;
struct WeightRaw { q: vec4<u32>, h: vec2<u32>, s: u32, d: u32 }
fn weight_raw(b: u32) -> WeightRaw {
    return WeightRaw(w_quants[b], w_high[b], w_scales[(b >> 3u) * 5u + ((b & 7u) >> 1u)], w_scales[(b >> 3u) * 5u + 4u]);
}
fn weight_of(r: WeightRaw, b: u32) -> array<vec4<f32>, 8> {
    let s = r.s >> ((b & 1u) * 16u);
    let scales = vec2<f32>(bitcast<vec2<i32>>(vec2<u32>(s << 24u, s << 16u)) >> vec2<u32>(24u));
    let q = quants_join(quants_of_nibbles(r.q), quants_of_pairs(r.h), 4u);
    return weights_around(q, 32.0, bitcast<f32>(r.d) * scales);
}
fn weight_block(b: u32) -> array<vec4<f32>, 8> { return weight_of(weight_raw(b), b); }
fn weight_bytes_of(r: WeightRaw, b: u32) -> Bytes {
    let s = r.s >> ((b & 1u) * 16u);
    let scales = vec2<f32>(bitcast<vec2<i32>>(vec2<u32>(s << 24u, s << 16u)) >> vec2<u32>(24u));
    let q = quants_join(quants_of_nibbles(r.q), quants_of_pairs(r.h), 4u);
    return bytes_around(q, 32.0, bitcast<f32>(r.d) * scales);
}
