#import quants
@group(0) @binding(auto) var<storage, read> w_quants: array<vec2<u32>>;
// Five words a super-block: scale and minimum of each sub-block in a byte, then d and dmin.
@group(0) @binding(auto) var<storage, read> w_scales: array<u32>;
fn weight_block(b: u32) -> array<vec4<f32>, 8> {
    let super_block = (b >> 3u) * 5u;
    let d = unpack2x16float(w_scales[super_block + 4u]);
    let s = vec2<u32>(w_scales[super_block + ((b & 7u) >> 1u)]) >> vec2<u32>((b & 1u) * 16u, (b & 1u) * 16u + 8u);
    let scales = vec2<f32>(s & vec2<u32>(15u));
    let mins = vec2<f32>((s >> vec2<u32>(4u)) & vec2<u32>(15u));
    return weights_above(quants_of_pairs(w_quants[b]), d.x * scales, -d.y * mins);
}
fn weight_bytes(b: u32) -> Bytes {
    let super_block = (b >> 3u) * 5u;
    let d = unpack2x16float(w_scales[super_block + 4u]);
    let s = vec2<u32>(w_scales[super_block + ((b & 7u) >> 1u)]) >> vec2<u32>((b & 1u) * 16u, (b & 1u) * 16u + 8u);
    let scales = vec2<f32>(s & vec2<u32>(15u));
    let mins = vec2<f32>((s >> vec2<u32>(4u)) & vec2<u32>(15u));
    return bytes_above(quants_of_pairs(w_quants[b]), d.x * scales, -d.y * mins);
}
