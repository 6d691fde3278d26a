//! `starcoder2`: StarCoder2.
//!
//! Layer normalisation, biases everywhere, rotated halves, a feed-forward block without gate and with GELU.

use super::decoder::decoder;
use super::{Architecture, Keys};
use crate::error::Result;
use crate::format::Gguf;
use crate::kernels::{Activation, NormKind, RopePairs};
use crate::model::spec::ModelSpec;

pub(super) const STARCODER2: Architecture = Architecture { name: "starcoder2", spec };

fn spec(file: &Gguf) -> Result<ModelSpec> {
    let mut spec = decoder(&Keys::new(file)?, RopePairs::Halves, NormKind::Layer, None)?;
    for l in &mut spec.layers {
        l.feed_forward.activation = Activation::GeluTanh;
        l.feed_forward.gated = false;
    }
    Ok(spec)
}
