//! `llama`: Llama 2 and 3, Mistral, SmolLM2, TinyLlama and what else was converted under this name.
//!
//! Pre-norm blocks with RMSNorm, grouped-query attention, SwiGLU. The converter permutes q and k, so pairs are adjacent.
//! Llama 3.1's frequency scaling comes as the tensor `rope_freqs`. Files with experts (Mixtral) carry this name too; the weights of the
//! chosen experts are renormalised, which no key says.

use super::decoder::decoder;
use super::{Architecture, Keys};
use crate::error::Result;
use crate::format::Gguf;
use crate::kernels::{NormKind, RopePairs};
use crate::model::spec::ModelSpec;

pub(super) const LLAMA: Architecture = Architecture { name: "llama", spec };

fn spec(file: &Gguf) -> Result<ModelSpec> {
    let k = Keys::new(file)?;
    decoder(&k, RopePairs::Adjacent, NormKind::Rms, k.experts(true, false)?)
}
