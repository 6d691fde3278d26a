#import codebook
@group(0) @binding(auto) var<storage, read> w_quants: array<vec4<u32>>;
@group(0) @binding(auto) var<storage, read> w_scales: array<u32>;
fn weight_block(b: u32) -> array<vec4<f32>, 8> {
    let d = unpack2x16float(w_scales[b >> 1u])[b & 1u];
    return codebook_weights(w_quants[b], d);
}
fn weight_bytes(b: u32) -> Bytes {
    let d = unpack2x16float(w_scales[b >> 1u])[b & 1u];
    return codebook_bytes_of(w_quants[b], d);
}
