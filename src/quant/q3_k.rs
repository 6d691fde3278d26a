//! Q3_K: super-blocks of 16 sub-blocks of 16 three-bit quants; `w = d · (s − 32) · (q − 4)`, `d` f16, `s` of six bits. The low two bits of
//! the quants stand as in Q2_K; bit `j` of byte `i` of the mask is bit 2 of weight `i` of block `j`.

use super::sub_scales::{self, scales_of_q3};
use super::{Format, Plane, SUPER_BLOCK, bits, blocks, half};

/// A super-block as GGML stores it.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::AnyBitPattern)]
struct Block {
    high: [u8; 32],
    q: [[u8; 32]; 2],
    scales: [u8; 12],
    d: [u8; 2],
}
const _: () = assert!(size_of::<Block>() == 110);

/// The format. `d` is kept in f32: it is often below the smallest normal f16, which a device may take for zero.
pub(super) static Q3_K: Format = Format {
    name: "Q3_K",
    ggml_type: 11,
    block_len: SUPER_BLOCK,
    block_bytes: size_of::<Block>(),
    planes: &[
        Plane::of_block("w_quants", 8),
        Plane::of_block("w_high", 4),
        Plane::of_super_block("w_scales", sub_scales::BYTES),
    ],
    fragment: include_str!("../../shaders/quant/q3_k.wgsl"),
    dequantize: |src, dst| {
        for (x, b) in dst.chunks_exact_mut(SUPER_BLOCK).zip(blocks::<Block>(src)) {
            let (d, scales) = (half(b.d), scales_of_q3(&b.scales));
            for (j, (x, s)) in x.chunks_exact_mut(32).zip(scales).enumerate() {
                for (i, x) in x.iter_mut().enumerate() {
                    let s = if i < 16 { s.0 } else { s.1 };
                    let q = (b.q[j / 4][i] >> (2 * (j % 4))) & 3 | ((b.high[i] >> j) & 1) << 2;
                    *x = d * (f32::from(s) - 32.0) * (f32::from(q) - 4.0);
                }
            }
        }
    },
    repack: |row, planes| {
        let [quants, high, scales] = planes else { return };
        let planes = quants.chunks_exact_mut(64).zip(high.chunks_exact_mut(32));
        let planes = planes.zip(scales.chunks_exact_mut(sub_scales::BYTES));
        for (b, ((q, h), s)) in blocks::<Block>(row).zip(planes) {
            let (words, mask) = (b.q.each_ref().map(|q| bits::words(q)), bits::words(&b.high));
            for (j, (q, h)) in q.chunks_exact_mut(8).zip(h.chunks_exact_mut(4)).enumerate() {
                bits::put(q, &bits::pairs(&words[j / 4], 2 * (j % 4)));
                bits::put(h, &[bits::bits(&mask, j)]);
            }
            bits::put(s, &sub_scales::pack(half(b.d).to_bits(), &scales_of_q3(&b.scales)));
        }
    },
    quantize: None,
};
