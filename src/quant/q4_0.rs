//! Q4_0: 32 four-bit quants with one f16 scale; `w = d · (q − 8)`. Byte `j` holds weight `j` low and weight `j + 16` high.

use super::{Format, Plane, blocks, half, repack_scale_first};

/// A block as GGML stores it.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::AnyBitPattern)]
struct Block {
    d: [u8; 2],
    q: [u8; 16],
}
const _: () = assert!(size_of::<Block>() == 18);

/// The format.
pub(super) static Q4_0: Format = Format {
    name: "Q4_0",
    ggml_type: 2,
    block_len: 32,
    block_bytes: size_of::<Block>(),
    planes: &[Plane::of_block("w_quants", 16), Plane::of_block("w_scales", 2)],
    fragment: include_str!("../../shaders/quant/q4_0.wgsl"),
    dequantize: |src, dst| {
        for (x, b) in dst.chunks_exact_mut(32).zip(blocks::<Block>(src)) {
            let d = half(b.d);
            for (j, &q) in b.q.iter().enumerate() {
                x[j] = d * (f32::from(q & 15) - 8.0);
                x[j + 16] = d * (f32::from(q >> 4) - 8.0);
            }
        }
    },
    repack: repack_scale_first::<{ size_of::<Block>() }, 2>,
    quantize: Some(quantize),
};

fn quantize(src: &[f32], dst: &mut Vec<u8>) {
    for block in src.chunks_exact(32) {
        // The weight of the largest size, with its sign, becomes −8 exactly.
        let (_, extreme) = block
            .iter()
            .fold((0.0f32, 0.0f32), |(size, extreme), &x| if x.abs() > size { (x.abs(), x) } else { (size, extreme) });
        let d = extreme / -8.0;
        let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        dst.extend(::half::f16::from_f32(d).to_le_bytes());
        let (low, high) = block.split_at(16);
        let quant = |x: f32| ((x * inverse + 8.5) as i8).clamp(0, 15) as u8;
        dst.extend(low.iter().zip(high).map(|(&a, &b)| quant(a) | quant(b) << 4));
    }
}
