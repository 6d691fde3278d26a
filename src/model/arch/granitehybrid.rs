//! `granitehybrid`: Granite 4 hybrids.
//!
//! As `granite`, where layers without key heads (`attention.head_count_kv` is an array) are Mamba-2. Mixtures renormalise the chosen experts'
//! weights and add a shared expert without gate; without experts the feed-forward block is an ordinary one. The gated normalisation
//! of Mamba-2 reaches over all heads, as in the models' own implementation, whatever the groups of B and C.

use super::decoder::hybrid;
use super::granite::scale;
use super::{Architecture, Keys};
use crate::error::{Result, bail};
use crate::format::Gguf;
use crate::kernels::{MAX_KEY_DIM, NormKind, RopePairs, ScanShape};
use crate::model::spec::{ModelSpec, RecurrentSpec, ScanRule, ScanSpec};

pub(super) const GRANITEHYBRID: Architecture = Architecture { name: "granitehybrid", spec };

fn spec(file: &Gguf) -> Result<ModelSpec> {
    let k = Keys::new(file)?;
    let mut experts = k.experts(true, k.u32("expert_shared_feed_forward_length")?.is_some_and(|n| n > 0))?;
    experts.iter_mut().for_each(|e| e.shared_gated = false);
    let mamba = mamba2(&k)?;
    let mut spec = hybrid(&k, RopePairs::Adjacent, NormKind::Rms, experts, &|_, n_kv| (n_kv == 0).then_some(mamba))?;
    scale(&k, &mut spec)?;
    Ok(spec)
}

/// The shape of the Mamba-2 layers.
fn mamba2(k: &Keys<'_>) -> Result<RecurrentSpec> {
    let (n_head, n_key) = (k.count("ssm.time_step_rank", 1 << 16)?, k.count("ssm.group_count", 1 << 16)?);
    let (inner, key_dim) = (k.count("ssm.inner_size", 1 << 20)?, k.count("ssm.state_size", MAX_KEY_DIM)?);
    if !n_head.is_multiple_of(n_key) || !inner.is_multiple_of(n_head) {
        let file = k.file.name();
        bail!(Unsupported, "{file}: {n_head} recurrent heads over {inner} columns, {n_key} groups of {key_dim}");
    }
    let shape = ScanShape { n_head, n_key, key_dim, head_dim: inner / n_head, tiled: false };
    let norm_eps = k.required_positive("attention.layer_norm_rms_epsilon")?;
    let scan = ScanSpec { rule: ScanRule::Mamba2, shape, norm_eps };
    Ok(RecurrentSpec::scanned(k.count("ssm.conv_kernel", 1 << 10)?, scan))
}
