//! Q8_0: 32 signed bytes with one f16 scale; `w = d · q`.

use super::{Format, Plane, blocks, half, repack_scale_first};

/// A block as GGML stores it.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::AnyBitPattern)]
struct Block {
    d: [u8; 2],
    q: [i8; 32],
}
const _: () = assert!(size_of::<Block>() == 34);

/// The format.
pub(super) static Q8_0: Format = Format {
    name: "Q8_0",
    ggml_type: 8,
    block_len: 32,
    block_bytes: size_of::<Block>(),
    planes: &[Plane::of_block("w_quants", 32), Plane::of_block("w_scales", 2)],
    fragment: include_str!("../../shaders/quant/q8_0.wgsl"),
    dequantize: |src, dst| {
        for (x, b) in dst.chunks_exact_mut(32).zip(blocks::<Block>(src)) {
            let d = half(b.d);
            for (x, &q) in x.iter_mut().zip(&b.q) {
                *x = d * f32::from(q);
            }
        }
    },
    repack: repack_scale_first::<{ size_of::<Block>() }, 2>,
    quantize: Some(quantize),
};

fn quantize(src: &[f32], dst: &mut Vec<u8>) {
    for block in src.chunks_exact(32) {
        let d = block.iter().fold(0.0f32, |m, x| m.max(x.abs())) / 127.0;
        let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        dst.extend(::half::f16::from_f32(d).to_le_bytes());
        dst.extend(block.iter().map(|x| (x * inverse).round() as i8 as u8));
    }
}
