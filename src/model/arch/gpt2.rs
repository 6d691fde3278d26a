//! `gpt2`: GPT-2.
//!
//! Layer normalisation, biases everywhere, learned positions and no rotation, a feed-forward block without gate and with GELU.

use super::decoder::decoder;
use super::{Architecture, Keys};
use crate::error::Result;
use crate::format::Gguf;
use crate::kernels::{Activation, NormKind, RopePairs};
use crate::model::spec::ModelSpec;

pub(super) const GPT2: Architecture = Architecture { name: "gpt2", spec };

fn spec(file: &Gguf) -> Result<ModelSpec> {
    let mut spec = decoder(&Keys::new(file)?, RopePairs::None, NormKind::Layer, None)?;
    spec.learned_positions = true;
    spec.ropes.clear();
    spec.attentions_mut().for_each(|a| a.rope = None);
    for l in &mut spec.layers {
        l.feed_forward.activation = Activation::GeluTanh;
        l.feed_forward.gated = false;
    }
    Ok(spec)
}
