//! Q4_K: super-blocks of 8 blocks of 32 four-bit quants; `w = d · s · q − dmin · m`, `d` and `dmin` f16, `s` and `m` of six bits. 32 bytes
//! hold two blocks, one low and one high.

use super::sub_scales::{self, scales_and_mins};
use super::{Format, Plane, SUPER_BLOCK, bits, blocks, half};

/// A super-block as GGML stores it.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::AnyBitPattern)]
struct Block {
    d: [u8; 2],
    dmin: [u8; 2],
    scales: [u8; 12],
    q: [[u8; 32]; 4],
}
const _: () = assert!(size_of::<Block>() == 144);

/// The format.
pub(super) static Q4_K: Format = Format {
    name: "Q4_K",
    ggml_type: 12,
    block_len: SUPER_BLOCK,
    block_bytes: size_of::<Block>(),
    planes: &[Plane::of_block("w_quants", 16), Plane::of_super_block("w_scales", sub_scales::BYTES)],
    fragment: include_str!("../../shaders/quant/q4_k.wgsl"),
    dequantize: |src, dst| {
        for (x, b) in dst.chunks_exact_mut(SUPER_BLOCK).zip(blocks::<Block>(src)) {
            let (d, dmin) = (half(b.d), half(b.dmin));
            for (j, (x, (s, m))) in x.chunks_exact_mut(32).zip(scales_and_mins(&b.scales)).enumerate() {
                let (d, m) = (d * f32::from(s), dmin * f32::from(m));
                for (x, &q) in x.iter_mut().zip(&b.q[j / 2]) {
                    *x = d * f32::from((q >> (4 * (j % 2))) & 15) - m;
                }
            }
        }
    },
    repack: |row, planes| {
        let [quants, scales] = planes else { return };
        let planes = quants.chunks_exact_mut(128).zip(scales.chunks_exact_mut(sub_scales::BYTES));
        for (b, (q, s)) in blocks::<Block>(row).zip(planes) {
            let words = b.q.each_ref().map(|q| bits::words(q));
            for (j, q) in q.chunks_exact_mut(16).enumerate() {
                bits::put(q, &bits::nibbles(&words[j / 2], 4 * (j % 2)));
            }
            let first = u32::from_le_bytes([b.d[0], b.d[1], b.dmin[0], b.dmin[1]]);
            bits::put(s, &sub_scales::pack(first, &scales_and_mins(&b.scales)));
        }
    },
    quantize: None,
};
