//! The keys that decoders share, read into a spec of the commonest shape: pre-norm blocks with RMSNorm, rotated grouped-query attention over
//! all positions, gated feed-forward with SiLU. An architecture changes what is different in its models.

use super::Keys;
use crate::error::{Result, bail};
use crate::kernels::{Activation, NormKind, RopePairs};
use crate::model::spec::{
    AttentionSpec, ExpertsSpec, FeedForwardSpec, LayerSpec, Mixer, ModelSpec, NormNames, RecurrentSpec, RopeSpec,
};

/// Whether a layer of this number is one of the rare ones where every `period`-th is: the last of each period.
pub(super) fn every(period: u32, layer: usize) -> bool {
    period > 0 && layer as u32 % period == period - 1
}

/// The spec as the keys have it, with rotated pairs, normalisation and experts as the architecture has them.
pub(super) fn decoder(
    k: &Keys<'_>,
    pairs: RopePairs,
    norm: NormKind,
    experts: Option<ExpertsSpec>,
) -> Result<ModelSpec> {
    hybrid(k, pairs, norm, experts, &|_, _| None)
}

/// As [`decoder`], where `recurrent` says which layers have no attention, by their number and their key heads.
pub(super) fn hybrid(
    k: &Keys<'_>,
    pairs: RopePairs,
    norm: NormKind,
    experts: Option<ExpertsSpec>,
    recurrent: &dyn Fn(usize, u32) -> Option<RecurrentSpec>,
) -> Result<ModelSpec> {
    let file = k.file;
    let n_layer = k.count("block_count", 4096)?;
    let n_embd = k.count("embedding_length", 1 << 20)?;
    let context_length = k.count("context_length", 1 << 30)?;
    let Some(heads) = k.per_layer("attention.head_count", n_layer)? else {
        bail!(BadFile, "{}: key {} is missing", file.name(), k.name("attention.head_count"))
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
    let most_heads = k.within("attention.head_count", heads.iter().copied().max().unwrap_or(0), 1 << 16)?;
    let head_dim = k.u32("attention.key_length")?.unwrap_or(n_embd / most_heads);
    let head_dim = k.within("attention.key_length", head_dim, 1024)?;
    if let Some(v) = k.u32("attention.value_length")?
        && v != head_dim
    {
        bail!(Unsupported, "{}: value heads of {v} beside key heads of {head_dim}", file.name());
    }
    let n_rot = k.u32("rope.dimension_count")?.unwrap_or(head_dim);
    if n_rot > head_dim || !n_rot.is_multiple_of(2) || !head_dim.is_multiple_of(4) {
        bail!(Unsupported, "{}: heads of {head_dim} with {n_rot} rotated dimensions", file.name());
    }
    let scale = k.positive("attention.scale")?.unwrap_or_else(|| 1.0 / (head_dim as f32).sqrt());
    let window = k.u32("attention.sliding_window")?.unwrap_or(0);
    let mut layers = Vec::with_capacity(n_layer as usize);
    for (i, ((&n_head, &n_kv), &n_ff)) in heads.iter().zip(&kv_heads).zip(&widths).enumerate() {
        k.within("feed_forward_length", n_ff, 1 << 24)?;
        let mixer = match recurrent(i, n_kv) {
            Some(m) => Mixer::Recurrent(m),
            None => {
                k.within("attention.head_count", n_head, 1 << 16)?;
                k.within("attention.head_count_kv", n_kv, n_head)?;
                if !n_head.is_multiple_of(n_kv) {
                    bail!(BadFile, "{}: {n_head} query heads do not share {n_kv} key heads evenly", file.name());
                }
                let (softcap, rope, qk_norm, sinks, gated) = (0.0, Some(0), None, false, false);
                let a = AttentionSpec { n_head, n_kv, head_dim, scale, window, softcap, rope, qk_norm, sinks, gated };
                Mixer::Attention(a)
            }
        };
        layers.push(LayerSpec {
            mixer,
            feed_forward: FeedForwardSpec { n_ff, activation: Activation::Silu, gated: true, experts },
            norms: NormNames::PRE,
            parallel: false,
        });
    }
    let eps = match norm {
        NormKind::Rms => "attention.layer_norm_rms_epsilon",
        NormKind::Layer => "attention.layer_norm_epsilon",
    };
    Ok(ModelSpec {
        architecture: k.prefix.into(),
        name: file.get_str("general.name")?.map(str::to_string),
        n_vocab: super::vocabulary_rows(file, n_embd)?,
        n_embd,
        context_length,
        norm,
        norm_eps: k.required_positive(eps)?,
        embedding_scale: 1.0,
        learned_positions: false,
        ropes: vec![RopeSpec {
            pairs,
            n_rot,
            freq_base: k.positive("rope.freq_base")?.unwrap_or(10000.0),
            scaling: k.rope_scaling(context_length)?,
            attn_factor: k.positive("rope.scaling.attn_factor")?.unwrap_or(1.0),
        }],
        output_norm: "output_norm",
        logit_scale: 1.0,
        logit_softcap: 0.0,
        layers,
    })
}

/// Leaves the window to sliding layers: those that `attention.sliding_window_pattern` names (true in an array, or all but each `n`-th for a
/// number), or else all but each `period`-th. Returns which layers slide; none do without `attention.sliding_window`.
pub(super) fn slide(k: &Keys<'_>, spec: &mut ModelSpec, period: u32) -> Result<Vec<bool>> {
    let n = spec.layers.len();
    let sliding = match k.window_pattern(n)? {
        Some(pattern) => pattern,
        None => (0..n).map(|i| !every(period, i)).collect(),
    };
    for (layer, &slides) in spec.layers.iter_mut().zip(&sliding) {
        if let Some(a) = layer.attention_mut().filter(|_| !slides) {
            a.window = 0;
        }
    }
    Ok(spec.layers.iter().map(|l| l.attention().is_some_and(|a| a.window > 0)).collect())
}
