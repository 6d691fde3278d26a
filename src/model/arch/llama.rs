//! `llama`: Llama 2 and 3, Mistral, SmolLM2, TinyLlama and what else was converted under this name.
//!
//! Pre-norm blocks with RMSNorm, grouped-query attention, SwiGLU. The converter permutes q and k, so pairs are adjacent.
//! Llama 3.1's frequency scaling comes as the tensor `rope_freqs`. Files with experts (Mixtral) carry this name too; the weights of the
//! chosen experts are renormalised, which no key says.

use super::{Architecture, Keys};
use crate::error::{Result, bail};
use crate::format::Gguf;
use crate::kernels::{Activation, RopePairs};
use crate::model::spec::{AttentionSpec, ExpertsSpec, FeedForwardSpec, LayerSpec, ModelSpec, RopeSpec};

pub(super) const LLAMA: Architecture = Architecture { name: "llama", spec };

fn spec(file: &Gguf) -> Result<ModelSpec> {
    let k = Keys::new(file)?;
    decoder(&k, RopePairs::Adjacent, k.experts(true, false)?)
}

/// The keys of a decoder of this shape, with rotated pairs and experts as its architecture has them.
pub(super) fn decoder(k: &Keys<'_>, pairs: RopePairs, experts: Option<ExpertsSpec>) -> Result<ModelSpec> {
    let file = k.file;
    let n_layer = k.count("block_count", 4096)?;
    let n_embd = k.count("embedding_length", 1 << 20)?;
    let context_length = k.count("context_length", 1 << 30)?;
    let heads = match k.per_layer("attention.head_count", n_layer)? {
        Some(h) => h,
        None => bail!(BadFile, "{}: key {} is missing", file.name(), k.name("attention.head_count")),
    };
    let kv_heads = k.per_layer("attention.head_count_kv", n_layer)?.unwrap_or_else(|| heads.clone());
    let expert_widths = match experts {
        Some(_) => k.per_layer("expert_feed_forward_length", n_layer)?,
        None => None,
    };
    let widths = match (expert_widths, k.per_layer("feed_forward_length", n_layer)?) {
        (Some(w), _) | (None, Some(w)) => w,
        (None, None) => bail!(BadFile, "{}: key {} is missing", file.name(), k.name("feed_forward_length")),
    };
    let first_heads = k.within("attention.head_count", heads.first().copied().unwrap_or(0), 1 << 16)?;
    let head_dim = k.u32("attention.key_length")?.unwrap_or(n_embd / first_heads);
    let head_dim = k.within("attention.key_length", head_dim, 1024)?;
    if let Some(v) = k.u32("attention.value_length")?
        && v != head_dim
    {
        bail!(Unsupported, "{}: value heads of {v} beside key heads of {head_dim}", file.name());
    }
    let n_rot = k.u32("rope.dimension_count")?.unwrap_or(head_dim);
    if n_rot > head_dim || !n_rot.is_multiple_of(4) || !head_dim.is_multiple_of(4) {
        bail!(Unsupported, "{}: heads of {head_dim} with {n_rot} rotated dimensions", file.name());
    }
    let scale = k.positive("attention.scale")?.unwrap_or_else(|| 1.0 / (head_dim as f32).sqrt());
    let window = k.u32("attention.sliding_window")?.unwrap_or(0);
    let mut layers = Vec::with_capacity(n_layer as usize);
    for ((&n_head, &n_kv), &n_ff) in heads.iter().zip(&kv_heads).zip(&widths) {
        k.within("attention.head_count", n_head, 1 << 16)?;
        k.within("feed_forward_length", n_ff, 1 << 24)?;
        k.within("attention.head_count_kv", n_kv, n_head)?;
        if !n_head.is_multiple_of(n_kv) {
            bail!(BadFile, "{}: {n_head} query heads do not share {n_kv} key heads evenly", file.name());
        }
        layers.push(LayerSpec {
            attention: AttentionSpec { n_head, n_kv, head_dim, scale, window, softcap: 0.0 },
            feed_forward: FeedForwardSpec { n_ff, activation: Activation::Silu, experts },
        });
    }
    Ok(ModelSpec {
        architecture: k.prefix.into(),
        name: file.get_str("general.name")?.map(str::to_string),
        n_vocab: super::vocabulary_rows(file, n_embd)?,
        n_embd,
        context_length,
        norm_eps: k.positive("attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5),
        embedding_scale: 1.0,
        rope: RopeSpec {
            pairs,
            n_rot,
            freq_base: k.positive("rope.freq_base")?.unwrap_or(10000.0),
            scaling: k.rope_scaling(context_length)?,
            attn_factor: k.positive("rope.scaling.attn_factor")?.unwrap_or(1.0),
        },
        layers,
    })
}
