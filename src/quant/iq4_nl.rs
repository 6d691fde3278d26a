//! IQ4_NL: 32 four-bit numbers of a table's values with one f16 scale; `w = d · VALUES[q]`. Quants as in Q4_0.

use super::{Format, Plane, blocks, half, repack_scale_first};

/// What the quants stand for, here and in IQ4_XS: GGML's table of a normal distribution's weights. The shaders have it plus 128.
pub(super) const VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// A block as GGML stores it.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::AnyBitPattern)]
struct Block {
    d: [u8; 2],
    q: [u8; 16],
}
const _: () = assert!(size_of::<Block>() == 18);

/// The format.
pub(super) static IQ4_NL: Format = Format {
    name: "IQ4_NL",
    ggml_type: 20,
    block_len: 32,
    block_bytes: size_of::<Block>(),
    planes: &[Plane::of_block("w_quants", 16), Plane::of_block("w_scales", 2)],
    fragment: include_str!("../../shaders/quant/iq4_nl.wgsl"),
    dequantize: |src, dst| {
        for (x, b) in dst.chunks_exact_mut(32).zip(blocks::<Block>(src)) {
            let d = half(b.d);
            for (j, &q) in b.q.iter().enumerate() {
                x[j] = d * f32::from(VALUES[usize::from(q & 15)]);
                x[j + 16] = d * f32::from(VALUES[usize::from(q >> 4)]);
            }
        }
    },
    repack: repack_scale_first::<{ size_of::<Block>() }, 2>,
    quantize: None,
};

#[cfg(test)]
mod tests {
    use super::VALUES;

    #[test]
    fn the_shaders_have_the_same_table() {
        let text = include_str!("../../shaders/lib/codebook.wgsl");
        for four in VALUES.chunks_exact(4) {
            let word = u32::from_le_bytes(std::array::from_fn(|i| (i16::from(four[i]) + 128) as u8));
            assert!(text.contains(&format!("{word:#010x}u")), "{four:?}: {word:#010x}");
        }
    }
}
