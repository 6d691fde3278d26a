#import quants
@group(0) @binding(auto) var<storage, read> w_quants: array<vec4<u32>>;
@group(0) @binding(auto) var<storage, read> w_high: array<vec2<u32>>;
// Five words a super-block: a signed byte for each sub-block, then d in f32.
@group(0) @binding(auto) var<storage, read> w_scales: array<u32>;
fn weight_block(b: u32) -> array<vec4<f32>, 8> {
    let super_block = (b >> 3u) * 5u;
    let s = w_scales[super_block + ((b & 7u) >> 1u)] >> ((b & 1u) * 16u);
    let scales = vec2<f32>(bitcast<vec2<i32>>(vec2<u32>(s << 24u, s << 16u)) >> vec2<u32>(24u));
    let q = quants_join(quants_of_nibbles(w_quants[b]), quants_of_pairs(w_high[b]), 4u);
    return weights_around(q, 32.0, bitcast<f32>(w_scales[super_block + 4u]) * scales);
}
fn weight_bytes(b: u32) -> Bytes {
    let super_block = (b >> 3u) * 5u;
    let s = w_scales[super_block + ((b & 7u) >> 1u)] >> ((b & 1u) * 16u);
    let scales = vec2<f32>(bitcast<vec2<i32>>(vec2<u32>(s << 24u, s << 16u)) >> vec2<u32>(24u));
    let q = quants_join(quants_of_nibbles(w_quants[b]), quants_of_pairs(w_high[b]), 4u);
    return bytes_around(q, 32.0, bitcast<f32>(w_scales[super_block + 4u]) * scales);
}
