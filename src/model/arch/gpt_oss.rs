//! `gpt-oss`: gpt-oss 20B and 120B.
//!
//! Rotated halves with YaRN, biases everywhere, a sink for each head; `post_attention_norm` stands before the feed-forward block. Mixtures of
//! experts whose weights are the softmax over the chosen logits. No key says that every second layer sees everything, nor
//! the constants of the activation: they are those of the models' own implementation (`swiglu_alpha`, `swiglu_limit`).

use super::decoder::{decoder, slide};
use super::{Architecture, Keys};
use crate::error::Result;
use crate::format::Gguf;
use crate::kernels::{Activation, NormKind, RopePairs};
use crate::model::spec::{ModelSpec, NormNames};

pub(super) const GPT_OSS: Architecture = Architecture { name: "gpt-oss", spec };

const ACTIVATION: Activation = Activation::ClampedSwiglu { alpha: 1.702, limit: 7.0 };

fn spec(file: &Gguf) -> Result<ModelSpec> {
    let k = Keys::new(file)?;
    // Without a window the layers could not be told apart.
    k.count("attention.sliding_window", 1 << 30)?;
    let mut spec = decoder(&k, RopePairs::Halves, NormKind::Rms, Some(k.required_experts(true, false)?))?;
    slide(&k, &mut spec, 2)?;
    spec.attentions_mut().for_each(|a| a.sinks = true);
    for l in &mut spec.layers {
        l.norms = NormNames { ffn: Some("post_attention_norm"), ..NormNames::PRE };
        l.feed_forward.activation = ACTIVATION;
    }
    Ok(spec)
}
