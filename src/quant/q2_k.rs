//! Q2_K: super-blocks of 16 sub-blocks of 16 two-bit quants; `w = d · s · q − dmin · m`, `d` and `dmin` f16, `s` and `m` of four bits
//! (low and high half of a sub-block's byte). 32 bytes hold the quants of four blocks of 32, each at its own pair of bits.

use super::{Format, Plane, SUPER_BLOCK, bits, blocks, half};

/// A super-block as GGML stores it.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::AnyBitPattern)]
struct Block {
    scales: [u8; 16],
    q: [[u8; 32]; 2],
    d: [u8; 2],
    dmin: [u8; 2],
}
const _: () = assert!(size_of::<Block>() == 84);

/// The format. A super-block's scales on the device: the 16 bytes, then `d` and `dmin`.
pub(super) static Q2_K: Format = Format {
    name: "Q2_K",
    ggml_type: 10,
    block_len: SUPER_BLOCK,
    block_bytes: size_of::<Block>(),
    planes: &[Plane::of_block("w_quants", 8), Plane::of_super_block("w_scales", 20)],
    fragment: include_str!("../../shaders/quant/q2_k.wgsl"),
    dequantize: |src, dst| {
        for (x, b) in dst.chunks_exact_mut(SUPER_BLOCK).zip(blocks::<Block>(src)) {
            let (d, dmin) = (half(b.d), half(b.dmin));
            for (j, (x, scales)) in x.chunks_exact_mut(32).zip(b.scales.chunks_exact(2)).enumerate() {
                for (i, x) in x.iter_mut().enumerate() {
                    let (scale, q) = (scales[i / 16], (b.q[j / 4][i] >> (2 * (j % 4))) & 3);
                    *x = d * f32::from(scale & 15) * f32::from(q) - dmin * f32::from(scale >> 4);
                }
            }
        }
    },
    repack: |row, planes| {
        let [quants, scales] = planes else { return };
        let planes = quants.chunks_exact_mut(64).zip(scales.chunks_exact_mut(20));
        for (b, (q, s)) in blocks::<Block>(row).zip(planes) {
            let words = b.q.each_ref().map(|q| bits::words(q));
            for (j, q) in q.chunks_exact_mut(8).enumerate() {
                bits::put(q, &bits::pairs(&words[j / 4], 2 * (j % 4)));
            }
            s[..16].copy_from_slice(&b.scales);
            s[16..18].copy_from_slice(&b.d);
            s[18..].copy_from_slice(&b.dmin);
        }
    },
    quantize: None,
};
