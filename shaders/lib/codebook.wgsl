#import bytes
// The values of IQ4_NL and IQ4_XS (src/quant/iq4_nl.rs), plus 128, for the low half of each byte of a word. The table holds four a word.
fn codebook_raised(w: u32) -> vec4<u32> {
    let n = unpack4xU8(w & 0x0f0f0f0fu);
    let third_bit = (n & vec4<u32>(4u)) != vec4<u32>(0u);
    let below = select(vec4<u32>(0x3f2d1801u), vec4<u32>(0x766a5d4fu), third_bit);
    let above = select(vec4<u32>(0xa6998d81u), vec4<u32>(0xf1d9c5b5u), third_bit);
    let four = select(below, above, n >= vec4<u32>(8u));
    return (four >> ((n & vec4<u32>(3u)) << vec4<u32>(3u))) & vec4<u32>(255u);
}
fn codebook_values(w: u32) -> vec4<f32> { return vec4<f32>(codebook_raised(w)) - 128.0; }
// As signed bytes: less 128 is the top bit turned.
fn codebook_bytes(w: u32) -> u32 {
    let v = codebook_raised(w);
    return (v.x | (v.y << 8u) | (v.z << 16u) | (v.w << 24u)) ^ 0x80808080u;
}
fn codebook_bytes_of(q: vec4<u32>, d: f32) -> Bytes {
    let h = q >> vec4<u32>(4u);
    return Bytes(
        vec4<u32>(codebook_bytes(q.x), codebook_bytes(q.y), codebook_bytes(q.z), codebook_bytes(q.w)),
        vec4<u32>(codebook_bytes(h.x), codebook_bytes(h.y), codebook_bytes(h.z), codebook_bytes(h.w)), vec2<f32>(d), vec2<f32>(0.0));
}
// The weights of a block with one scale.
fn codebook_weights(q: vec4<u32>, d: f32) -> array<vec4<f32>, 8> {
    let h = q >> vec4<u32>(4u);
    return array<vec4<f32>, 8>(
        d * codebook_values(q.x), d * codebook_values(q.y), d * codebook_values(q.z), d * codebook_values(q.w),
        d * codebook_values(h.x), d * codebook_values(h.y), d * codebook_values(h.z), d * codebook_values(h.w));
}
