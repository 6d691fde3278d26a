//! Q6_K: super-blocks of 16 sub-blocks of 16 six-bit quants; `w = d · s · (q − 32)`, `d` f16, `s` a signed byte. Of each half (128 weights),
//! 64 bytes hold the low four bits of blocks 0 and 1 low and of 2 and 3 high, and 32 bytes the high two of all four.

use super::{Format, Plane, SUPER_BLOCK, bits, blocks, half};

/// A super-block as GGML stores it.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::AnyBitPattern)]
struct Block {
    q: [[u8; 32]; 4],
    high: [[u8; 32]; 2],
    scales: [i8; 16],
    d: [u8; 2],
}
const _: () = assert!(size_of::<Block>() == 210);

/// Where the low bits of block `j` stand: which 32 bytes, at which shift.
fn low(j: usize) -> (usize, usize) {
    (j / 4 * 2 + j % 2, j % 4 / 2 * 4)
}

/// The format. A super-block's scales on the device: the 16 bytes, then `d` in f32: it is often below the smallest normal f16, which
/// a device may take for zero.
pub(super) static Q6_K: Format = Format {
    name: "Q6_K",
    ggml_type: 14,
    block_len: SUPER_BLOCK,
    block_bytes: size_of::<Block>(),
    planes: &[Plane::of_block("w_quants", 16), Plane::of_block("w_high", 8), Plane::of_super_block("w_scales", 20)],
    fragment: include_str!("../../shaders/quant/q6_k.wgsl"),
    dequantize: |src, dst| {
        for (x, b) in dst.chunks_exact_mut(SUPER_BLOCK).zip(blocks::<Block>(src)) {
            let d = half(b.d);
            for (j, (x, scales)) in x.chunks_exact_mut(32).zip(b.scales.chunks_exact(2)).enumerate() {
                let (bytes, shift) = low(j);
                for (i, x) in x.iter_mut().enumerate() {
                    let q = (b.q[bytes][i] >> shift) & 15 | ((b.high[j / 4][i] >> (2 * (j % 4))) & 3) << 4;
                    *x = d * f32::from(scales[i / 16]) * (f32::from(q) - 32.0);
                }
            }
        }
    },
    repack: |row, planes| {
        let [quants, high, scales] = planes else { return };
        let planes = quants.chunks_exact_mut(128).zip(high.chunks_exact_mut(64)).zip(scales.chunks_exact_mut(20));
        for (b, ((q, h), s)) in blocks::<Block>(row).zip(planes) {
            let words = (b.q.each_ref().map(|q| bits::words(q)), b.high.each_ref().map(|h| bits::words(h)));
            for (j, (q, h)) in q.chunks_exact_mut(16).zip(h.chunks_exact_mut(8)).enumerate() {
                let (bytes, shift) = low(j);
                bits::put(q, &bits::nibbles(&words.0[bytes], shift));
                bits::put(h, &bits::pairs(&words.1[j / 4], 2 * (j % 4)));
            }
            s[..16].copy_from_slice(bytemuck::cast_slice(&b.scales));
            s[16..].copy_from_slice(&half(b.d).to_le_bytes());
        }
    },
    quantize: None,
};
