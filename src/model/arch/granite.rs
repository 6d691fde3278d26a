//! `granite`: Granite 3 and later, the dense ones.
//!
//! As `llama` with four factors: on embeddings, on scores, on what each block adds to the stream, and a divisor of the logits. With
//! `rope.scaling.finetuned` false nothing is turned (llama.cpp's switch for such models).
//!
//! The factor `s` on what blocks add costs nothing: in `x += s · f(norm(x))` the norm's input may be scaled freely, so the stream is kept
//! divided by `s`, with embeddings divided by `s` and ε by `s²`.

use super::decoder::decoder;
use super::{Architecture, Keys};
use crate::error::Result;
use crate::format::Gguf;
use crate::kernels::{NormKind, RopePairs};
use crate::model::spec::ModelSpec;

pub(super) const GRANITE: Architecture = Architecture { name: "granite", spec };

fn spec(file: &Gguf) -> Result<ModelSpec> {
    let k = Keys::new(file)?;
    let mut spec = decoder(&k, RopePairs::Adjacent, NormKind::Rms, None)?;
    scale(&k, &mut spec)?;
    Ok(spec)
}

/// The factors, and whether anything is turned.
pub(super) fn scale(k: &Keys<'_>, spec: &mut ModelSpec) -> Result<()> {
    let added = k.positive("residual_scale")?.unwrap_or(1.0);
    spec.embedding_scale = k.positive("embedding_scale")?.unwrap_or(1.0) / added;
    spec.norm_eps /= added * added;
    spec.logit_scale = 1.0 / k.required_positive("logit_scale")?;
    if k.file.get_bool(&k.name("rope.scaling.finetuned"))? == Some(false) {
        spec.attentions_mut().for_each(|a| a.rope = None);
    }
    Ok(())
}
