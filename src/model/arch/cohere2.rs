//! `cohere2`: Command R7B and Command A.
//!
//! Attention and feed-forward read one layer normalisation and are added together; adjacent pairs. Every fourth layer sees everything and
//! does not turn q and k (`sliding_window_pattern` of its configuration, which has no key). `logit_scale` is a factor.

use super::decoder::{decoder, slide};
use super::{Architecture, Keys};
use crate::error::Result;
use crate::format::Gguf;
use crate::kernels::{NormKind, RopePairs};
use crate::model::spec::{ModelSpec, NormNames};

pub(super) const COHERE2: Architecture = Architecture { name: "cohere2", spec };

fn spec(file: &Gguf) -> Result<ModelSpec> {
    let k = Keys::new(file)?;
    // Without a window the layers could not be told apart.
    k.count("attention.sliding_window", 1 << 30)?;
    let mut spec = decoder(&k, RopePairs::Adjacent, NormKind::Layer, None)?;
    spec.logit_scale = k.required_positive("logit_scale")?;
    let sliding = slide(&k, &mut spec, 4)?;
    for (a, slides) in spec.attentions_mut().zip(sliding) {
        if !slides {
            a.rope = None;
        }
    }
    for l in &mut spec.layers {
        l.norms = NormNames { ffn: None, ..NormNames::PRE };
        l.parallel = true;
    }
    Ok(spec)
}
