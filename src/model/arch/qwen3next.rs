//! `qwen3next` (Qwen3-Next), `qwen35` and `qwen35moe` (Qwen3.5).
//!
//! Three of four layers are gated delta rules, the others attention: rotated halves in a part of each head, each head of q and k normalised, each
//! head of the result gated. `post_attention_norm` stands before the feed-forward block. Mixtures renormalise the chosen experts' weights and
//! may have a shared expert with a gate. Qwen3-Next's heads of v share key heads in runs, those of Qwen3.5's files are stored so that they alternate.
//! Text turns by the same rule whatever `rope.dimension_sections` says of pictures.

use super::decoder::{every, hybrid};
use super::ssm::scanned;
use super::{Architecture, Keys};
use crate::error::{Result, bail};
use crate::kernels::{NormKind, RopePairs};
use crate::model::spec::{ExpertsSpec, ModelSpec, NormNames, QkNorm, ScanRule};

pub(super) const QWEN3NEXT: Architecture =
    Architecture { name: "qwen3next", spec: |file| spec(&Keys::new(file)?, true, false) };
pub(super) const QWEN35: Architecture =
    Architecture { name: "qwen35", spec: |file| spec(&Keys::new(file)?, false, true) };
pub(super) const QWEN35MOE: Architecture =
    Architecture { name: "qwen35moe", spec: |file| spec(&Keys::new(file)?, true, true) };

fn spec(k: &Keys<'_>, mixture: bool, tiled: bool) -> Result<ModelSpec> {
    let shared = k.u32("expert_shared_feed_forward_length")?.is_some_and(|n| n > 0);
    let experts: Option<ExpertsSpec> = if mixture { Some(k.required_experts(true, shared)?) } else { None };
    let delta = scanned(k, ScanRule::GatedDelta, tiled)?;
    let all = k.count("block_count", 4096)?;
    // Layers that guess tokens ahead stand behind the others.
    let ahead = k.u32("nextn_predict_layers")?.unwrap_or(0);
    let Some(layers) = all.checked_sub(ahead).filter(|&n| n > 0) else {
        bail!(BadFile, "{}: key {}: {ahead} of {all} layers", k.file.name(), k.name("nextn_predict_layers"))
    };
    let recurrent = recurrent_layers(k, layers)?;
    let mut spec = hybrid(k, RopePairs::Halves, NormKind::Rms, experts, &|i, _| recurrent(i).then_some(delta))?;
    spec.layers.truncate(layers as usize);
    let widths = if mixture { k.per_layer("feed_forward_length", all)? } else { None };
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

/// Which layers are recurrent: as an array says, or all but each `full_attention_interval`-th.
fn recurrent_layers(k: &Keys<'_>, layers: u32) -> Result<impl Fn(usize) -> bool + use<>> {
    let key = k.name("attention.recurrent_layers");
    let listed = k.file.get_bool_array(&key)?;
    if let Some(n) = listed.as_ref().map(Vec::len).filter(|&n| n < layers as usize) {
        bail!(BadFile, "{}: key {key} has {n} elements for {layers} layers", k.file.name());
    }
    let interval = k.u32("full_attention_interval")?.unwrap_or(4);
    Ok(move |i: usize| listed.as_ref().map_or(!every(interval, i), |l| l.get(i).copied().unwrap_or(false)))
}
