//! `smollm3`: SmolLM3.
//!
//! As `llama`, but every fourth layer does not turn q and k (`no_rope_layer_interval` of its configuration, which has no key).

use super::decoder::{decoder, every};
use super::{Architecture, Keys};
use crate::error::Result;
use crate::format::Gguf;
use crate::kernels::{NormKind, RopePairs};
use crate::model::spec::ModelSpec;

pub(super) const SMOLLM3: Architecture = Architecture { name: "smollm3", spec };

fn spec(file: &Gguf) -> Result<ModelSpec> {
    let mut spec = decoder(&Keys::new(file)?, RopePairs::Adjacent, NormKind::Rms, None)?;
    for (i, a) in spec.attentions_mut().enumerate() {
        if every(4, i) {
            a.rope = None;
        }
    }
    Ok(spec)
}
