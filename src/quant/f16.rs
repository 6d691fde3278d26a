//! F16: IEEE half precision.

use super::{Format, Plane, half, repack_plain};

/// The format.
pub(super) static F16: Format = Format {
    name: "F16",
    ggml_type: 1,
    block_len: 1,
    block_bytes: 2,
    planes: &[Plane::of_block("w_values", 64)],
    fragment: include_str!("../../shaders/quant/f16.wgsl"),
    dequantize: |src, dst| {
        for (x, b) in dst.iter_mut().zip(src.chunks_exact(2)) {
            *x = half([b[0], b[1]]);
        }
    },
    repack: repack_plain,
    quantize: None,
};
