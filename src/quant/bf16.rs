//! BF16: the upper half of an IEEE single.

use super::{Format, Plane, repack_plain};

/// The format.
pub(super) static BF16: Format = Format {
    name: "BF16",
    ggml_type: 30,
    block_len: 1,
    block_bytes: 2,
    planes: &[Plane::of_block("w_values", 64)],
    fragment: include_str!("../../shaders/quant/bf16.wgsl"),
    dequantize: |src, dst| {
        for (x, b) in dst.iter_mut().zip(src.chunks_exact(2)) {
            *x = half::bf16::from_le_bytes([b[0], b[1]]).to_f32();
        }
    },
    repack: repack_plain,
    quantize: None,
};
