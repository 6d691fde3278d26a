//! Q5_1: 32 five-bit quants with an f16 scale and an f16 minimum; `w = d · q + m`. Quants as in Q5_0.

use super::{Format, Plane, blocks, half, repack_five_bits};

/// A block as GGML stores it.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::AnyBitPattern)]
struct Block {
    d: [u8; 2],
    m: [u8; 2],
    high: [u8; 4],
    q: [u8; 16],
}
const _: () = assert!(size_of::<Block>() == 24);

/// The format.
pub(super) static Q5_1: Format = Format {
    name: "Q5_1",
    ggml_type: 7,
    block_len: 32,
    block_bytes: size_of::<Block>(),
    planes: &[Plane::of_block("w_quants", 16), Plane::of_block("w_high", 4), Plane::of_block("w_scales", 4)],
    fragment: include_str!("../../shaders/quant/q5_1.wgsl"),
    dequantize: |src, dst| {
        for (x, b) in dst.chunks_exact_mut(32).zip(blocks::<Block>(src)) {
            let (d, m, high) = (half(b.d), half(b.m), u32::from_le_bytes(b.high));
            let bit = |i: usize| ((high >> i) & 1) as u8 * 16;
            for (j, &q) in b.q.iter().enumerate() {
                x[j] = d * f32::from(q & 15 | bit(j)) + m;
                x[j + 16] = d * f32::from(q >> 4 | bit(j + 16)) + m;
            }
        }
    },
    repack: repack_five_bits::<{ size_of::<Block>() }, 4>,
    quantize: None,
};
