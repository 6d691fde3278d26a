#import codebook
@group(0) @binding(auto) var<storage, read> w_quants: array<vec4<u32>>;
// Three words a super-block: a signed byte for each block, then d in f32.
@group(0) @binding(auto) var<storage, read> w_scales: array<u32>;
struct WeightRaw { q: vec4<u32>, s: u32, d: u32 }
fn weight_raw(b: u32) -> WeightRaw {
    return WeightRaw(w_quants[b], w_scales[(b >> 3u) * 3u + ((b & 7u) >> 2u)], w_scales[(b >> 3u) * 3u + 2u]);
}
fn weight_of(r: WeightRaw, b: u32) -> array<vec4<f32>, 8> {
    let s = bitcast<i32>(r.s << (24u - (b & 3u) * 8u)) >> 24u;
    let d = bitcast<f32>(r.d) * f32(s);
    return codebook_weights(r.q, d);
}
fn weight_block(b: u32) -> array<vec4<f32>, 8> { return weight_of(weight_raw(b), b); }
#set ONE_SCALE
fn weight_bytes_of(r: WeightRaw, b: u32) -> Bytes {
    let s = bitcast<i32>(r.s << (24u - (b & 3u) * 8u)) >> 24u;
    let d = bitcast<f32>(r.d) * f32(s);
    return codebook_bytes_of(r.q, d);
}
