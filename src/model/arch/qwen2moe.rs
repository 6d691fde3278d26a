//! `qwen2moe`: Qwen1.5-MoE and Qwen2-57B-A14B.
//!
//! As `llama` with biases on q, k and v and rotated halves. The chosen experts keep their part of the softmax over all, and every row uses
//! a shared expert besides, weighted by the sigmoid of its own gate.

use super::decoder::decoder;
use super::{Architecture, Keys};
use crate::error::Result;
use crate::format::Gguf;
use crate::kernels::{NormKind, RopePairs};
use crate::model::spec::ModelSpec;

pub(super) const QWEN2MOE: Architecture = Architecture { name: "qwen2moe", spec };

fn spec(file: &Gguf) -> Result<ModelSpec> {
    let k = Keys::new(file)?;
    decoder(&k, RopePairs::Halves, NormKind::Rms, Some(k.required_experts(false, true)?))
}
