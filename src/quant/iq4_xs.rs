//! IQ4_XS: super-blocks of 8 blocks of IQ4_NL's quants; `w = d · (s − 32) · VALUES[q]`, `d` f16, `s` of six bits: the low four of two
//! blocks in a byte, the high two of all in 16 bits.

use super::iq4_nl::VALUES;
use super::{Format, Plane, SUPER_BLOCK, blocks, half};

/// A super-block as GGML stores it.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::AnyBitPattern)]
struct Block {
    d: [u8; 2],
    scales_high: [u8; 2],
    scales_low: [u8; 4],
    q: [[u8; 16]; 8],
}
const _: () = assert!(size_of::<Block>() == 136);

impl Block {
    /// The scale of block `j`, −32 to 31.
    fn scale(&self, j: usize) -> i8 {
        let high = u16::from_le_bytes(self.scales_high) >> (2 * j);
        ((self.scales_low[j / 2] >> (4 * (j % 2))) & 15 | ((high & 3) << 4) as u8) as i8 - 32
    }
}

/// The format. A super-block's scales on the device: a signed byte a block, then `d` in f32: it is often below the smallest normal
/// f16, which a device may take for zero.
pub(super) static IQ4_XS: Format = Format {
    name: "IQ4_XS",
    ggml_type: 23,
    block_len: SUPER_BLOCK,
    block_bytes: size_of::<Block>(),
    planes: &[Plane::of_block("w_quants", 16), Plane::of_super_block("w_scales", 12)],
    fragment: include_str!("../../shaders/quant/iq4_xs.wgsl"),
    dequantize: |src, dst| {
        for (x, b) in dst.chunks_exact_mut(SUPER_BLOCK).zip(blocks::<Block>(src)) {
            let d = half(b.d);
            for (j, (x, q)) in x.chunks_exact_mut(32).zip(&b.q).enumerate() {
                let d = d * f32::from(b.scale(j));
                for (i, &q) in q.iter().enumerate() {
                    x[i] = d * f32::from(VALUES[usize::from(q & 15)]);
                    x[i + 16] = d * f32::from(VALUES[usize::from(q >> 4)]);
                }
            }
        }
    },
    repack: |row, planes| {
        let [quants, scales] = planes else { return };
        let planes = quants.chunks_exact_mut(128).zip(scales.chunks_exact_mut(12));
        for (b, (q, s)) in blocks::<Block>(row).zip(planes) {
            q.copy_from_slice(b.q.as_flattened());
            for (j, s) in s[..8].iter_mut().enumerate() {
                *s = b.scale(j) as u8;
            }
            s[8..].copy_from_slice(&half(b.d).to_le_bytes());
        }
    },
    quantize: None,
};
