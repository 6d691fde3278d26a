#import codebook
@group(0) @binding(auto) var<storage, read> w_quants: array<vec4<u32>>;
@group(0) @binding(auto) var<storage, read> w_scales: array<u32>;
struct WeightRaw { q: vec4<u32>, s: u32 }
fn weight_raw(b: u32) -> WeightRaw {
    return WeightRaw(w_quants[b], w_scales[b >> 1u]);
}
fn weight_of(r: WeightRaw, b: u32) -> array<vec4<f32>, 8> {
    let d = unpack2x16float(r.s)[b & 1u];
    return codebook_weights(r.q, d);
}
fn weight_block(b: u32) -> array<vec4<f32>, 8> { return weight_of(weight_raw(b), b); }
#set ONE_SCALE
fn weight_bytes_of(r: WeightRaw, b: u32) -> Bytes {
    let d = unpack2x16float(r.s)[b & 1u];
    return codebook_bytes_of(r.q, d);
}
