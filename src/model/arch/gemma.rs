//! `gemma`, `gemma2` and `gemma3`.
//!
//! Embeddings times √n_embd, GELU, rotated halves; the converter has added the 1 to the weights of the norms. Gemma 2 and 3 also normalise
//! what a block adds, and some of their layers see a window. What files leave out is as in the models' configurations:
//!
//! * Gemma 2: every second layer sees everything; caps of 50 on scores and 30 on logits, a window of 4096;
//! * Gemma 3: every sixth layer sees everything, the others turn with a base of 10000 and without scaling; heads of q and k are normalised;
//! * the 27B models, known by their 46 and 62 layers, scale scores by the width of the stream over the heads, not by the size of a head
//!   (`query_pre_attn_scalar` of their configurations, which has no key).

use super::decoder::{decoder, slide};
use super::{Architecture, Keys};
use crate::error::Result;
use crate::format::Gguf;
use crate::kernels::{Activation, NormKind, RopePairs};
use crate::model::spec::{ModelSpec, NormNames, QkNorm, RopeScaling, RopeSpec};

pub(super) const GEMMA: Architecture = Architecture { name: "gemma", spec: |file| gemma(&Keys::new(file)?) };
pub(super) const GEMMA2: Architecture = Architecture { name: "gemma2", spec: gemma2 };
pub(super) const GEMMA3: Architecture = Architecture { name: "gemma3", spec: gemma3 };

/// Layers of the 27B models.
const LAYERS_27B: [usize; 2] = [46, 62];

fn gemma(k: &Keys<'_>) -> Result<ModelSpec> {
    let mut spec = decoder(k, RopePairs::Halves, NormKind::Rms, None)?;
    spec.embedding_scale = (spec.n_embd as f32).sqrt();
    spec.layers.iter_mut().for_each(|l| l.feed_forward.activation = Activation::GeluTanh);
    Ok(spec)
}

/// What Gemma 2 and 3 share.
fn later(k: &Keys<'_>, window: u32) -> Result<ModelSpec> {
    let mut spec = gemma(k)?;
    let large = LAYERS_27B.contains(&spec.layers.len()) && k.f32("attention.scale")?.is_none();
    for l in &mut spec.layers {
        l.norms = NormNames::BOTH;
    }
    let width = spec.n_embd as f32;
    for a in spec.attentions_mut() {
        a.window = window;
        if large {
            a.scale = (a.n_head as f32 / width).sqrt();
        }
    }
    Ok(spec)
}

fn gemma2(file: &Gguf) -> Result<ModelSpec> {
    let k = Keys::new(file)?;
    let mut spec = later(&k, k.u32("attention.sliding_window")?.unwrap_or(4096))?;
    slide(&k, &mut spec, 2)?;
    let cap = k.positive("attn_logit_softcapping")?.unwrap_or(50.0);
    spec.attentions_mut().for_each(|a| a.softcap = cap);
    spec.logit_softcap = k.positive("final_logit_softcapping")?.unwrap_or(30.0);
    Ok(spec)
}

fn gemma3(file: &Gguf) -> Result<ModelSpec> {
    let k = Keys::new(file)?;
    let mut spec = later(&k, k.u32("attention.sliding_window")?.unwrap_or(0))?;
    let sliding = slide(&k, &mut spec, 6)?;
    let local = RopeSpec {
        freq_base: k.positive("rope.freq_base_swa")?.unwrap_or(10000.0),
        scaling: RopeScaling::None,
        ..spec.rope()?.clone()
    };
    spec.ropes.push(local);
    for (a, slides) in spec.attentions_mut().zip(sliding) {
        a.rope = Some(usize::from(slides));
        a.qk_norm = Some(QkNorm::Heads);
    }
    spec.logit_softcap = k.positive("final_logit_softcapping")?.unwrap_or(0.0);
    Ok(spec)
}
