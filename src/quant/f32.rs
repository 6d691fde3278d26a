//! F32: IEEE single precision.

use super::{Format, Plane, repack_plain};

/// The format.
pub(super) static F32: Format = Format {
    name: "F32",
    ggml_type: 0,
    block_len: 1,
    block_bytes: 4,
    planes: &[Plane::of_block("w_values", 128)],
    fragment: include_str!("../../shaders/quant/f32.wgsl"),
    dequantize: |src, dst| {
        for (x, b) in dst.iter_mut().zip(src.chunks_exact(4)) {
            *x = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        }
    },
    repack: repack_plain,
    quantize: None,
};
