//! `qwen3next` (Qwen3-Next), `qwen35` and `qwen35moe` (Qwen3.5).
//!
//! Three of four layers are gated delta rules, the others attention: rotated halves in a part of each head, each head of q and k normalised, each
//! head of the result gated. `post_attention_norm` stands before the feed-forward block. Mixtures renormalise the chosen experts' weights and
//! may have a shared expert with a gate. Qwen3-Next's heads of v share key heads in runs, those of Qwen3.5's files are stored so that they alternate.
//! Text turns by the same rule whatever `rope.dimension_sections` says of pictures.

use super::decoder::{every, hybrid};
use super::{Architecture, Keys};
use crate::error::{Result, bail};
use crate::format::Gguf;
use crate::kernels::{MAX_KEY_DIM, NormKind, RopePairs, ScanShape};
use crate::model::spec::{ExpertsSpec, ModelSpec, NormNames, QkNorm, RecurrentSpec, ScanRule, ScanSpec};

pub(super) const QWEN3NEXT: Architecture =
    Architecture { name: "qwen3next", spec: |file| spec(&Keys::new(file)?, true, false) };
pub(super) const QWEN35: Architecture =
    Architecture { name: "qwen35", spec: |file| spec(&Keys::new(file)?, false, true) };
pub(super) const QWEN35MOE: Architecture =
    Architecture { name: "qwen35moe", spec: |file| spec(&Keys::new(file)?, true, true) };

fn spec(k: &Keys<'_>, mixture: bool, tiled: bool) -> Result<ModelSpec> {
    let shared = k.u32("expert_shared_feed_forward_length")?.is_some_and(|n| n > 0);
    let experts: Option<ExpertsSpec> = if mixture { Some(k.required_experts(true, shared)?) } else { None };
    let delta = delta(k, tiled)?;
    let recurrent = recurrent_layers(k.file, k)?;
    let layers = k.count("block_count", 4096)?;
    let mut spec = hybrid(k, RopePairs::Halves, NormKind::Rms, experts, &|i, _| recurrent(i).then_some(delta))?;
    // Layers that guess tokens ahead stand behind the others.
    let ahead = k.u32("nextn_predict_layers")?.unwrap_or(0) as usize;
    if ahead >= spec.layers.len() {
        bail!(BadFile, "{}: key {}: {ahead} of all layers", k.file.name(), k.name("nextn_predict_layers"));
    }
    spec.layers.truncate(spec.layers.len() - ahead);
    let widths = if mixture { k.per_layer("feed_forward_length", layers)? } else { None };
    for (i, l) in spec.layers.iter_mut().enumerate() {
        // Some layers of a mixture may be ordinary ones (`mlp_only_layers` of the configuration, which has no key).
        if mixture && k.file.tensor(&format!("blk.{i}.ffn_gate_inp.weight")).is_none() {
            l.feed_forward.experts = None;
            l.feed_forward.n_ff = widths.as_ref().and_then(|w| w.get(i)).copied().unwrap_or(0);
            k.within("feed_forward_length", l.feed_forward.n_ff, 1 << 24)?;
        }
        l.norms = NormNames { ffn: Some("post_attention_norm"), ..NormNames::PRE };
    }
    for a in spec.attentions_mut() {
        a.qk_norm = Some(QkNorm::Heads);
        a.gated = true;
    }
    Ok(spec)
}

/// The shape of the delta rule's layers.
fn delta(k: &Keys<'_>, tiled: bool) -> Result<RecurrentSpec> {
    let (n_head, n_key) = (k.count("ssm.time_step_rank", 1 << 16)?, k.count("ssm.group_count", 1 << 16)?);
    let (inner, key_dim) = (k.count("ssm.inner_size", 1 << 20)?, k.count("ssm.state_size", MAX_KEY_DIM)?);
    if !n_head.is_multiple_of(n_key) || !inner.is_multiple_of(n_head) || !key_dim.is_multiple_of(4) {
        let file = k.file.name();
        bail!(Unsupported, "{file}: {n_head} recurrent heads over {inner} columns, {n_key} key heads of {key_dim}");
    }
    let shape = ScanShape { n_head, n_key, key_dim, head_dim: inner / n_head, tiled };
    let norm_eps = k.required_positive("attention.layer_norm_rms_epsilon")?;
    let scan = ScanSpec { rule: ScanRule::GatedDelta, shape, norm_eps };
    Ok(RecurrentSpec::scanned(k.count("ssm.conv_kernel", 1 << 10)?, scan))
}

/// Which layers are recurrent: as an array says, or all but each `full_attention_interval`-th.
fn recurrent_layers(file: &Gguf, k: &Keys<'_>) -> Result<impl Fn(usize) -> bool + use<>> {
    let key = k.name("attention.recurrent_layers");
    let listed = file.get_bool_array(&key)?;
    let layers = k.count("block_count", 4096)?;
    if let Some(n) = listed.as_ref().map(Vec::len).filter(|&n| n != layers as usize) {
        bail!(BadFile, "{}: key {key} has {n} elements for {layers} layers", file.name());
    }
    let interval = k.u32("full_attention_interval")?.unwrap_or(4);
    Ok(move |i: usize| listed.as_ref().map_or(!every(interval, i), |l| l.get(i).copied().unwrap_or(false)))
}
