//! Q5_K: Q4_K with a fifth bit; `w = d · s · q − dmin · m`. Bit `j` of byte `i` of the mask is bit 4 of weight `i` of block `j`.

use super::sub_scales::{self, scales_and_mins};
use super::{Format, Plane, SUPER_BLOCK, bits, blocks, half};

/// A super-block as GGML stores it.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::AnyBitPattern)]
struct Block {
    d: [u8; 2],
    dmin: [u8; 2],
    scales: [u8; 12],
    high: [u8; 32],
    q: [[u8; 32]; 4],
}
const _: () = assert!(size_of::<Block>() == 176);

/// The format.
pub(super) static Q5_K: Format = Format {
    name: "Q5_K",
    ggml_type: 13,
    block_len: SUPER_BLOCK,
    block_bytes: size_of::<Block>(),
    planes: &[
        Plane::of_block("w_quants", 16),
        Plane::of_block("w_high", 4),
        Plane::of_super_block("w_scales", sub_scales::BYTES),
    ],
    fragment: include_str!("../../shaders/quant/q5_k.wgsl"),
    dequantize: |src, dst| {
        for (x, b) in dst.chunks_exact_mut(SUPER_BLOCK).zip(blocks::<Block>(src)) {
            let (d, dmin) = (half(b.d), half(b.dmin));
            for (j, (x, (s, m))) in x.chunks_exact_mut(32).zip(scales_and_mins(&b.scales)).enumerate() {
                let (d, m) = (d * f32::from(s), dmin * f32::from(m));
                for (x, (&q, &h)) in x.iter_mut().zip(b.q[j / 2].iter().zip(&b.high)) {
                    *x = d * f32::from((q >> (4 * (j % 2))) & 15 | ((h >> j) & 1) << 4) - m;
                }
            }
        }
    },
    repack: |row, planes| {
        let [quants, high, scales] = planes else { return };
        let planes = quants.chunks_exact_mut(128).zip(high.chunks_exact_mut(32));
        let planes = planes.zip(scales.chunks_exact_mut(sub_scales::BYTES));
        for (b, ((q, h), s)) in blocks::<Block>(row).zip(planes) {
            let (words, mask) = (b.q.each_ref().map(|q| bits::words(q)), bits::words(&b.high));
            for (j, (q, h)) in q.chunks_exact_mut(16).zip(h.chunks_exact_mut(4)).enumerate() {
                bits::put(q, &bits::nibbles(&words[j / 2], 4 * (j % 2)));
                bits::put(h, &[bits::bits(&mask, j)]);
            }
            let first = u32::from_le_bytes([b.d[0], b.d[1], b.dmin[0], b.dmin[1]]);
            bits::put(s, &sub_scales::pack(first, &scales_and_mins(&b.scales)));
        }
    },
    quantize: None,
};
