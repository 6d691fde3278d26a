//! Q5_0: 32 five-bit quants with one f16 scale; `w = d · (q − 16)`. The low four bits as in Q4_0; bit `i` of a word is bit 4 of weight `i`.

use super::{Format, Plane, blocks, half, repack_five_bits};

/// A block as GGML stores it.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::AnyBitPattern)]
struct Block {
    d: [u8; 2],
    high: [u8; 4],
    q: [u8; 16],
}
const _: () = assert!(size_of::<Block>() == 22);

/// The format.
pub(super) static Q5_0: Format = Format {
    name: "Q5_0",
    ggml_type: 6,
    block_len: 32,
    block_bytes: size_of::<Block>(),
    planes: &[Plane::of_block("w_quants", 16), Plane::of_block("w_high", 4), Plane::of_block("w_scales", 2)],
    fragment: include_str!("../../shaders/quant/q5_0.wgsl"),
    dequantize: |src, dst| {
        for (x, b) in dst.chunks_exact_mut(32).zip(blocks::<Block>(src)) {
            let (d, high) = (half(b.d), u32::from_le_bytes(b.high));
            let bit = |i: usize| ((high >> i) & 1) as u8 * 16;
            for (j, &q) in b.q.iter().enumerate() {
                x[j] = d * (f32::from(q & 15 | bit(j)) - 16.0);
                x[j + 16] = d * (f32::from(q >> 4 | bit(j + 16)) - 16.0);
            }
        }
    },
    repack: repack_five_bits::<{ size_of::<Block>() }, 2>,
    quantize: None,
};
