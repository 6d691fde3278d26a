//! `granitehybrid`: Granite 4 hybrids.
//!
//! As `granite`, where layers without key heads (`attention.head_count_kv` is an array) are Mamba-2. Mixtures renormalise the chosen experts'
//! weights and add a shared expert without gate; without experts the feed-forward block is an ordinary one. The gated normalisation
//! of Mamba-2 reaches over the heads that share B and C.

use super::decoder::hybrid;
use super::granite::scale;
use super::ssm::scanned;
use super::{Architecture, Keys};
use crate::error::Result;
use crate::format::Gguf;
use crate::kernels::{NormKind, RopePairs};
use crate::model::spec::{ModelSpec, ScanRule};

pub(super) const GRANITEHYBRID: Architecture = Architecture { name: "granitehybrid", spec };

fn spec(file: &Gguf) -> Result<ModelSpec> {
    let k = Keys::new(file)?;
    let mut experts = k.experts(true, k.u32("expert_shared_feed_forward_length")?.is_some_and(|n| n > 0))?;
    experts.iter_mut().for_each(|e| e.shared_gated = false);
    let mamba = scanned(&k, ScanRule::Mamba2, false)?;
    let mut spec = hybrid(&k, RopePairs::Adjacent, NormKind::Rms, experts, &|_, n_kv| (n_kv == 0).then_some(mamba))?;
    scale(&k, &mut spec)?;
    Ok(spec)
}
