//! `olmo2`: OLMo 2 and OLMo 3.
//!
//! Blocks read the stream as it is and normalise what they add; q and k are normalised over all heads together; rotated halves. OLMo 3
//! has layers with a window, every fourth sees everything (its configuration, if `attention.sliding_window_pattern` is not there); scaling of
//! positions is for the latter only, and with YaRN the converter writes the whole magnitude (`attention_factor` of the configuration) as
//! `rope.scaling.attn_factor`, which elsewhere is a factor beside YaRN's own.

use super::decoder::{decoder, slide};
use super::{Architecture, Keys};
use crate::error::Result;
use crate::format::Gguf;
use crate::kernels::{NormKind, RopePairs};
use crate::model::spec::{ModelSpec, NormNames, QkNorm, RopeScaling, RopeSpec};

pub(super) const OLMO2: Architecture = Architecture { name: "olmo2", spec };

fn spec(file: &Gguf) -> Result<ModelSpec> {
    let k = Keys::new(file)?;
    let mut spec = decoder(&k, RopePairs::Halves, NormKind::Rms, None)?;
    let sliding = slide(&k, &mut spec, 4)?;
    if let Some(RopeSpec { scaling: RopeScaling::Yarn { factor, .. }, attn_factor, .. }) = spec.ropes.first_mut()
        && k.positive("rope.scaling.attn_factor")?.is_some()
    {
        *attn_factor /= 1.0 + 0.1 * factor.ln();
    }
    let global = spec.rope()?;
    let local = RopeSpec {
        freq_base: k.positive("rope.freq_base_swa")?.unwrap_or(global.freq_base),
        scaling: RopeScaling::None,
        attn_factor: 1.0,
        ..global.clone()
    };
    spec.ropes.push(local);
    spec.layers.iter_mut().for_each(|l| l.norms = NormNames::POST);
    for (a, slides) in spec.attentions_mut().zip(sliding) {
        a.qk_norm = Some(QkNorm::Whole);
        a.rope = Some(usize::from(slides));
    }
    Ok(spec)
}
