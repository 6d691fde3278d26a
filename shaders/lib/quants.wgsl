// Quants of a block of 32 weights, one a byte: byte e of word c is that of weight 4c + e. src/quant/bits.rs says how they are packed.
// Weights 0 to 15 and 16 to 31 may have different scales.
#import bytes
struct Quants { lo: vec4<u32>, hi: vec4<u32> }

fn quants_of_nibbles(q: vec4<u32>) -> Quants {
    return Quants(q & vec4<u32>(0x0f0f0f0fu), (q >> vec4<u32>(4u)) & vec4<u32>(0x0f0f0f0fu));
}
fn quants_of_pairs(q: vec2<u32>) -> Quants {
    let s = vec4<u32>(0u, 2u, 4u, 6u);
    return Quants((q.xxxx >> s) & vec4<u32>(0x03030303u), (q.yyyy >> s) & vec4<u32>(0x03030303u));
}
fn quants_of_bits(q: u32) -> Quants {
    let w = vec4<u32>(q);
    return Quants((w >> vec4<u32>(0u, 1u, 2u, 3u)) & vec4<u32>(0x01010101u), (w >> vec4<u32>(4u, 5u, 6u, 7u)) & vec4<u32>(0x01010101u));
}
// The bits of `high` above those of `low`, from bit `shift` of each byte on.
fn quants_join(low: Quants, high: Quants, shift: u32) -> Quants {
    let s = vec4<u32>(shift);
    return Quants(low.lo | (high.lo << s), low.hi | (high.hi << s));
}
fn quants_f32(w: u32) -> vec4<f32> { return vec4<f32>(unpack4xU8(w)); }

#if F16_MATH
// d * (q - zero) in f16, rounded once as from f32: 1024 + q and q - zero are exact, and so is d.
fn halves_of(w: u32, zero: f16, d: f16) -> vec4<f16> {
    let a = vec2<f16>(unpack2x16float((w & 0x00ff00ffu) | 0x64006400u));
    let b = vec2<f16>(unpack2x16float(((w >> 8u) & 0x00ff00ffu) | 0x64006400u));
    return (vec4<f16>(a.x, b.x, a.y, b.y) - vec4<f16>(1024.0h + zero)) * d;
}
fn halves_around(q: Quants, zero: f16, d: f16) -> array<vec4<f16>, 8> {
    return array<vec4<f16>, 8>(
        halves_of(q.lo.x, zero, d), halves_of(q.lo.y, zero, d), halves_of(q.lo.z, zero, d), halves_of(q.lo.w, zero, d),
        halves_of(q.hi.x, zero, d), halves_of(q.hi.y, zero, d), halves_of(q.hi.z, zero, d), halves_of(q.hi.w, zero, d));
}
#endif
// d * (q - zero). The products are exact: quants and scales have few bits.
fn weights_around(q: Quants, zero: f32, d: vec2<f32>) -> array<vec4<f32>, 8> {
    return array<vec4<f32>, 8>(
        d.x * (quants_f32(q.lo.x) - zero), d.x * (quants_f32(q.lo.y) - zero),
        d.x * (quants_f32(q.lo.z) - zero), d.x * (quants_f32(q.lo.w) - zero),
        d.y * (quants_f32(q.hi.x) - zero), d.y * (quants_f32(q.hi.y) - zero),
        d.y * (quants_f32(q.hi.z) - zero), d.y * (quants_f32(q.hi.w) - zero));
}
// d * q + m. The product is exact, so it does not matter whether the sum is fused with it.
fn weights_above(q: Quants, d: vec2<f32>, m: vec2<f32>) -> array<vec4<f32>, 8> {
    return array<vec4<f32>, 8>(
        d.x * quants_f32(q.lo.x) + m.x, d.x * quants_f32(q.lo.y) + m.x,
        d.x * quants_f32(q.lo.z) + m.x, d.x * quants_f32(q.lo.w) + m.x,
        d.y * quants_f32(q.hi.x) + m.y, d.y * quants_f32(q.hi.y) + m.y,
        d.y * quants_f32(q.hi.z) + m.y, d.y * quants_f32(q.hi.w) + m.y);
}

// The same weights, for products with bytes. Quants have seven bits at most, so each is its own signed byte.
fn bytes_around(q: Quants, zero: f32, d: vec2<f32>) -> Bytes { return Bytes(q.lo, q.hi, d, -zero * d); }
fn bytes_above(q: Quants, d: vec2<f32>, m: vec2<f32>) -> Bytes { return Bytes(q.lo, q.hi, d, m); }
