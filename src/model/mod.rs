//! Models: what they are ([`ModelSpec`]), their weights, and the engine that runs them.
//!
//! This layer knows weight names, layer order and which kernel; not workgroup sizes, not file offsets, not policy.

pub mod arch;
mod engine;
mod forward;
pub mod hf;
mod kv_blocks;
mod kv_cache;
mod kv_state;
mod moe;
mod probe;
mod recurrent;
mod scratch;
mod sequence;
mod slots;
mod spec;
mod verify;
mod weights;

use std::sync::Arc;

use crate::error::{Result, bail};
use crate::format::Gguf;
use crate::gpu::{Gpu, Phase};

pub use crate::kernels::{KvType, TensorStats};
pub use engine::{Drawn, Engine, EngineOptions, MAX_SEQUENCES, MAX_TOKENS_PER_SUBMIT, Stop};
pub use kv_blocks::KvExtent;
pub use kv_cache::{KvGroupStats, KvStats};
pub use probe::{PROBE_POINTS, ProbeOptions, ProbePoint, ProbeReading};
pub use recurrent::state::RecurrentStats;
pub use scratch::default_chunk;
pub use sequence::Sequence;
pub use spec::{
    AttentionSpec, ExpertsSpec, FeedForwardSpec, LayerSpec, Mixer, ModelSpec, NormNames, QkNorm, RecurrentSpec,
    RopeDivisors, RopeScaling, RopeSpec, ScanRule, ScanSpec,
};
pub use verify::{TensorCheck, verify_weights};

/// What was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadedSizes {
    /// Weights of all matrices.
    pub parameters: u64,
    /// Bytes of the matrices in the file.
    pub file_bytes: u64,
    /// Bytes of the matrices that evaluating one token reads.
    pub token_bytes: u64,
    /// Format of most of those bytes.
    pub format: &'static str,
}

/// Checks a file's tensors against its spec, without a device.
///
/// # Errors
/// As [`load`].
pub fn measure(file: &Gguf, spec: &ModelSpec) -> Result<LoadedSizes> {
    let plan = weights::LoadPlan::new(file, spec)?;
    Ok(LoadedSizes {
        parameters: plan.parameters(),
        file_bytes: plan.file_bytes(),
        token_bytes: plan.token_bytes(spec),
        format: plan.main_format(),
    })
}

/// Loads a model's weights and plans its engine. `progress` gets bytes done and bytes in all; an error from it ends the load.
///
/// # Errors
/// [`crate::Error::BadFile`] or [`crate::Error::Unsupported`] naming the tensor, [`crate::Error::OutOfMemory`], or what `progress` returned.
pub fn load(
    gpu: &Arc<Gpu>,
    file: &Gguf,
    spec: Arc<ModelSpec>,
    options: EngineOptions,
    progress: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<Engine> {
    let scope = gpu.scope(Phase::Load);
    if spec.learned_positions && options.n_ctx > spec.context_length {
        let (file, n, most) = (file.name(), options.n_ctx, spec.context_length);
        bail!(InvalidArgument, "{file}: n_ctx {n}: the model has learned {most} positions");
    }
    kv_cache::KvPool::check(options.kv_type, &spec.layers).map_err(|e| e.within(file.name()))?;
    let plan = weights::LoadPlan::new(file, &spec)?;
    let weights = plan.upload(gpu, &spec, options.n_ctx, &scope, progress)?;
    Engine::new(gpu.clone(), spec, weights, options, &scope)
}
