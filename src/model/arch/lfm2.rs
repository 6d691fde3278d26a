//! `lfm2`: LFM2.
//!
//! Layers without key heads (`attention.head_count_kv` is an array) are gated short convolutions, the others attention as in `qwen3`: rotated
//! halves, each head of q and k normalised. The last normalisation is called `token_embd_norm`.

use super::decoder::hybrid;
use super::{Architecture, Keys};
use crate::error::Result;
use crate::format::Gguf;
use crate::kernels::{NormKind, RopePairs};
use crate::model::spec::{ModelSpec, QkNorm, RecurrentSpec};

pub(super) const LFM2: Architecture = Architecture { name: "lfm2", spec };

fn spec(file: &Gguf) -> Result<ModelSpec> {
    let k = Keys::new(file)?;
    let conv_kernel = k.count("shortconv.l_cache", 1 << 10)?;
    let conv = RecurrentSpec { channels: k.count("embedding_length", 1 << 20)?, conv_kernel, scan: None };
    let mut spec = hybrid(&k, RopePairs::Halves, NormKind::Rms, None, &|_, n_kv| (n_kv == 0).then_some(conv))?;
    spec.output_norm = "token_embd_norm";
    spec.attentions_mut().for_each(|a| a.qk_norm = Some(QkNorm::Heads));
    Ok(spec)
}
