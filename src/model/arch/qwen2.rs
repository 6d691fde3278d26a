//! `qwen2`: Qwen2 and Qwen2.5, and R1 distilled into them.
//!
//! As `llama` with biases on q, k and v, and rotated halves.

use super::decoder::decoder;
use super::{Architecture, Keys};
use crate::error::Result;
use crate::format::Gguf;
use crate::kernels::{NormKind, RopePairs};
use crate::model::spec::ModelSpec;

pub(super) const QWEN2: Architecture = Architecture { name: "qwen2", spec };

fn spec(file: &Gguf) -> Result<ModelSpec> {
    decoder(&Keys::new(file)?, RopePairs::Halves, NormKind::Rms, None)
}
