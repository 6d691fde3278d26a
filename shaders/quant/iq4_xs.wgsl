#import codebook
@group(0) @binding(auto) var<storage, read> w_quants: array<vec4<u32>>;
// Three words a super-block: a signed byte for each block, then d in f32.
@group(0) @binding(auto) var<storage, read> w_scales: array<u32>;
fn weight_block(b: u32) -> array<vec4<f32>, 8> {
    let super_block = (b >> 3u) * 3u;
    let s = bitcast<i32>(w_scales[super_block + ((b & 7u) >> 2u)] << (24u - (b & 3u) * 8u)) >> 24u;
    return codebook_weights(w_quants[b], bitcast<f32>(w_scales[super_block + 2u]) * f32(s));
}
fn weight_bytes(b: u32) -> Bytes {
    let super_block = (b >> 3u) * 3u;
    let s = bitcast<i32>(w_scales[super_block + ((b & 7u) >> 2u)] << (24u - (b & 3u) * 8u)) >> 24u;
    return codebook_bytes_of(w_quants[b], bitcast<f32>(w_scales[super_block + 2u]) * f32(s));
}
