//! Q4_1: 32 four-bit quants with an f16 scale and an f16 minimum; `w = d · q + m`. Quants as in Q4_0.

use super::{Format, Plane, blocks, half, repack_scale_first};

/// A block as GGML stores it.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::AnyBitPattern)]
struct Block {
    d: [u8; 2],
    m: [u8; 2],
    q: [u8; 16],
}
const _: () = assert!(size_of::<Block>() == 20);

/// The format.
pub(super) static Q4_1: Format = Format {
    name: "Q4_1",
    ggml_type: 3,
    block_len: 32,
    block_bytes: size_of::<Block>(),
    planes: &[Plane::of_block("w_quants", 16), Plane::of_block("w_scales", 4)],
    fragment: include_str!("../../shaders/quant/q4_1.wgsl"),
    dequantize: |src, dst| {
        for (x, b) in dst.chunks_exact_mut(32).zip(blocks::<Block>(src)) {
            let (d, m) = (half(b.d), half(b.m));
            for (j, &q) in b.q.iter().enumerate() {
                x[j] = d * f32::from(q & 15) + m;
                x[j + 16] = d * f32::from(q >> 4) + m;
            }
        }
    },
    repack: repack_scale_first::<{ size_of::<Block>() }, 4>,
    quantize: None,
};
