//! `qwen3` and `qwen3moe`.
//!
//! As `llama` with rotated halves; each head of q and k is normalised before it is turned. The chosen experts' weights are renormalised.

use super::decoder::decoder;
use super::{Architecture, Keys};
use crate::error::Result;
use crate::format::Gguf;
use crate::kernels::{NormKind, RopePairs};
use crate::model::spec::{ExpertsSpec, ModelSpec, QkNorm};

pub(super) const QWEN3: Architecture = Architecture { name: "qwen3", spec: |file| spec(&Keys::new(file)?, None) };
pub(super) const QWEN3MOE: Architecture = Architecture { name: "qwen3moe", spec: mixture };

fn spec(k: &Keys<'_>, experts: Option<ExpertsSpec>) -> Result<ModelSpec> {
    let mut spec = decoder(k, RopePairs::Halves, NormKind::Rms, experts)?;
    spec.attentions_mut().for_each(|a| a.qk_norm = Some(QkNorm::Heads));
    Ok(spec)
}

fn mixture(file: &Gguf) -> Result<ModelSpec> {
    let k = Keys::new(file)?;
    spec(&k, Some(k.required_experts(true, false)?))
}
