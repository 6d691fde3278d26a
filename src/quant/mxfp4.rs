//! MXFP4: 32 four-bit floats (one sign, two exponent and one mantissa bit) with a power of two for a scale; `w = 2^(e − 127) · f`. Quants as
//! in Q4_0. As in GGML the values are doubled, so that they are integers, and the scale is halved; `e = 255` is a scale like others.

use super::{Format, Plane, blocks, repack_scale_first};

/// Twice what the quants stand for.
const VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// A block as GGML stores it.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::AnyBitPattern)]
struct Block {
    e: u8,
    q: [u8; 16],
}
const _: () = assert!(size_of::<Block>() == 17);

/// `2^(e − 128)`. The two smallest are no normal numbers in f32.
fn scale(e: u8) -> f32 {
    f32::from_bits(match e {
        0 | 1 => 1 << (21 + e),
        _ => u32::from(e - 1) << 23,
    })
}

/// The format.
pub(super) static MXFP4: Format = Format {
    name: "MXFP4",
    ggml_type: 39,
    block_len: 32,
    block_bytes: size_of::<Block>(),
    planes: &[Plane::of_block("w_quants", 16), Plane::of_block("w_scales", 1)],
    fragment: include_str!("../../shaders/quant/mxfp4.wgsl"),
    dequantize: |src, dst| {
        for (x, b) in dst.chunks_exact_mut(32).zip(blocks::<Block>(src)) {
            let d = scale(b.e);
            for (j, &q) in b.q.iter().enumerate() {
                x[j] = d * f32::from(VALUES[usize::from(q & 15)]);
                x[j + 16] = d * f32::from(VALUES[usize::from(q >> 4)]);
            }
        }
    },
    repack: repack_scale_first::<{ size_of::<Block>() }, 1>,
    quantize: None,
};

#[cfg(test)]
mod tests {
    #[test]
    fn scales_are_powers_of_two() {
        for e in 0..=255u8 {
            assert_eq!(f64::from(super::scale(e)), 2f64.powi(i32::from(e) - 128), "{e}");
        }
    }
}
