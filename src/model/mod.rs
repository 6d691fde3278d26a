//! Models: what they are ([`ModelSpec`]), their weights, and the engine that runs them.
//!
//! This layer knows weight names, layer order and which kernel; not workgroup sizes, not file offsets, not policy.

pub mod arch;
mod chains;
mod decode;
mod draw;
mod embed;
mod engine;
mod forward;
pub mod hf;
mod kv_blocks;
mod kv_cache;
mod kv_state;
mod lora;
mod moe;
mod norms;
mod probe;
mod recurrent;
mod runs;
mod score;
mod scratch;
mod sequence;
mod slots;
mod spec;
mod steps;
mod verify;
mod verify_draft;
mod weights;

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Instant;

use crate::error::{Error, Result, bail};
use crate::format::Gguf;
use crate::gpu::{Gpu, Phase, Scope};
use crate::kernels::measure_width;

pub use crate::kernels::{KvType, TensorStats, UploadTimes};
pub use decode::Follows;
pub use embed::Pooling;
pub use engine::{Drawn, Engine, EngineOptions, MAX_SEQUENCES, MAX_TOKENS_PER_SUBMIT, Stop};
pub use kv_blocks::KvExtent;
pub use kv_cache::{KvGroupStats, KvStats};
pub use lora::{Lora, LoraInfo};
pub use probe::{PROBE_POINTS, ProbeOptions, ProbePoint, ProbeReading};
pub use recurrent::state::RecurrentStats;
pub use runs::WaveBatch;
pub use scratch::default_chunk;
pub use sequence::Sequence;
pub use spec::{
    AttentionSpec, ExpertsSpec, FeedForwardSpec, LayerSpec, Mixer, ModelSpec, NormNames, QkNorm, RecurrentSpec,
    RopeDivisors, RopeScaling, RopeSpec, ScanRule, ScanSpec,
};
pub use verify::{TensorCheck, verify_weights};
pub use verify_draft::{DraftRole, MAX_DRAFT};

/// Measures how wide a device is, if that is to be kept and is not yet. Comes before its first model.
pub(crate) fn tune(gpu: &Gpu) {
    if gpu.lacks_width()
        && let Err(e) = measure_width(gpu).and_then(|width| gpu.keep_width(width))
    {
        log::warn!("the device's width is a guess: {e}");
    }
}

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

/// Where the time of loading went. What happens side by side overlaps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LoadTimes {
    /// Wall time of filling the weights' buffers.
    pub fill_ns: u64,
    /// Where that went.
    pub upload: UploadTimes,
    /// Wall time of making them, beside the filling.
    pub allocate_ns: u64,
    /// Wall time of [`Engine::prewarm`], after that.
    pub prewarm_ns: u64,
}

fn timed<T>(ns: &mut u64, work: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let value = work();
    *ns = started.elapsed().as_nanos() as u64;
    value
}

/// Makes what single sequences need, and keeps the pipelines that were compiled. A sequence is opened so that there is a cache to bind; its pages are kept for
/// the first session.
fn prepare(engine: &mut Engine, scope: &Scope) -> Result<()> {
    let sequence = engine.open(engine.options().n_ctx, scope)?;
    let prepared = engine.prewarm(scope);
    engine.close(sequence);
    prepared?;
    if let Err(e) = engine.gpu().save_pipelines() {
        log::warn!("compiled pipelines were not kept: {e}");
    }
    Ok(())
}

/// Loads a model's weights and plans its engine. `progress` gets bytes done and bytes in all; an error from it ends the load.
///
/// # Errors
/// As [`load_timed`].
pub fn load(
    gpu: &Arc<Gpu>,
    file: &Gguf,
    spec: Arc<ModelSpec>,
    options: EngineOptions,
    progress: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<Engine> {
    load_timed(gpu, file, spec, options, false, progress).map(|(engine, _)| engine)
}

/// As [`load`], and says where the time went. With `prewarm` everything that single sequences need is made and compiled while weights go up.
///
/// # Errors
/// [`crate::Error::BadFile`] or [`crate::Error::Unsupported`] naming the tensor, [`crate::Error::OutOfMemory`], or what `progress` returned.
pub fn load_timed(
    gpu: &Arc<Gpu>,
    file: &Gguf,
    spec: Arc<ModelSpec>,
    options: EngineOptions,
    prewarm: bool,
    progress: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<(Engine, LoadTimes)> {
    let scope = gpu.scope(Phase::Load);
    if spec.learned_positions && options.n_ctx > spec.context_length {
        let (file, n, most) = (file.name(), options.n_ctx, spec.context_length);
        bail!(InvalidArgument, "{file}: n_ctx {n}: the model has learned {most} positions");
    }
    kv_cache::KvPool::check(options.kv_type, &spec.layers).map_err(|e| e.within(file.name()))?;
    let plan = weights::LoadPlan::new(file, &spec)?;
    progress(0, plan.file_bytes())?;
    let allocate = |sender, times: &mut LoadTimes| {
        timed(&mut times.allocate_ns, || plan.allocate(gpu, &spec, options.n_ctx, &scope, sender))
    };
    let finish = |weights, times: &mut LoadTimes| -> Result<Engine> {
        let mut engine = Engine::new(gpu.clone(), spec.clone(), weights, options, &scope)?;
        engine.lora = lora::LoraPool::new(plan.places(&spec));
        if prewarm {
            timed(&mut times.prewarm_ns, || prepare(&mut engine, &scope))?;
        }
        Ok(engine)
    };
    let (sender, unfilled) = channel();
    let mut times = LoadTimes::default();
    let mut fill_ns = 0;
    if gpu.memory().snapshot().budget != 0 {
        // One after the other: what the upload takes is given back before the rest is made, so that a budget counts what stays.
        let weights = allocate(sender, &mut times)?;
        times.upload = timed(&mut times.fill_ns, || plan.fill(&unfilled, gpu, &scope, progress))?;
        let engine = finish(weights, &mut times)?;
        return Ok((engine, times));
    }
    std::thread::scope(|s| {
        // Buffers take a while to make, and pipelines to compile: both happen while the weights go up.
        let preparing = s.spawn(|| -> Result<(Engine, LoadTimes)> {
            let mut times = LoadTimes::default();
            let weights = allocate(sender, &mut times)?;
            Ok((finish(weights, &mut times)?, times))
        });
        let filled = timed(&mut fill_ns, || plan.fill(&unfilled, gpu, &scope, progress));
        // If that failed, no more buffers are made.
        drop(unfilled);
        let prepared =
            preparing.join().unwrap_or_else(|_| Err(Error::Internal("preparing the engine panicked".into())));
        let upload = filled?;
        prepared.map(|(engine, times)| (engine, LoadTimes { fill_ns, upload, ..times }))
    })
}

/// Loads an adapter for the model of an engine: a GGUF file, or a folder as PEFT writes it. `places` and `rows` are what [`Engine::lora_places`] says: the
/// engine is not held while the file is read.
///
/// # Errors
/// [`crate::Error::Io`]; [`crate::Error::BadFile`] or [`crate::Error::Unsupported`] naming file and key or tensor; [`crate::Error::OutOfMemory`].
pub(crate) fn load_lora(
    gpu: &Gpu,
    path: &Path,
    spec: &ModelSpec,
    (places, rows): (Arc<weights::Places>, u32),
) -> Result<Lora> {
    lora::load(gpu, path, spec, &places, rows, &gpu.scope(Phase::Load))
}
