//! The open device: features, queue, memory, caches, failures.
//!
//! A [`Gpu`] is shared (`Arc`) by everything made from it and may be used from any thread. wgpu's default handler for uncaptured
//! errors panics; ours are installed before anything else happens, and every failure becomes a typed error here.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::error::{Error, Result, bail};
use crate::gpu::adapter::{self, AdapterChoice, AdapterInfo};
use crate::gpu::buffer::{Buffer, BufferSlice, Memory, MemoryClass, Usage};
use crate::gpu::counters::{Counters, Phase, Scope};
use crate::gpu::encode::ParamsRing;
use crate::gpu::fault::{FaultPoint, Faults};
use crate::gpu::guard::Guard;
use crate::gpu::pipeline::PipelineCache;
use crate::gpu::pipeline_blob::PipelineBlob;
use crate::gpu::pool::{Lease, Pool};
use crate::gpu::profiler::Profiler;
use crate::gpu::recorder::{Recorder, Submission};
use crate::gpu::sync::Mutex;
use crate::gpu::width::Width;

/// Optional abilities of a device; each can be switched off to force its fallback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// Subgroup operations in reductions.
    pub subgroups: bool,
    /// f16 types in shaders (f16 weights are read natively).
    pub f16: bool,
    /// Parameters as immediate data instead of a uniform buffer.
    pub immediates: bool,
    /// GPU times by timestamp queries.
    pub timestamps: bool,
    /// Compiled pipelines kept by the driver's cache object.
    pub pipeline_cache: bool,
    /// Products by cooperative matrices (16×16×16, f16 operands and f32 sums); goes with subgroups and f16.
    pub cooperative_matrix: bool,
    /// Several operations of a decode step in one dispatch, whose workgroups wait for each other (docs/architecture.md); for devices that are known
    /// to start workgroups in the order of their indices; goes with subgroups.
    pub chains: bool,
}

impl Features {
    /// Everything on: the adapter's own abilities decide.
    pub const ALL: Self = Self {
        subgroups: true,
        f16: true,
        immediates: true,
        timestamps: true,
        pipeline_cache: true,
        cooperative_matrix: true,
        chains: true,
    };

    fn and(self, other: Self) -> Self {
        let (subgroups, f16) = (self.subgroups && other.subgroups, self.f16 && other.f16);
        Self {
            subgroups,
            f16,
            immediates: self.immediates && other.immediates,
            timestamps: self.timestamps && other.timestamps,
            pipeline_cache: self.pipeline_cache && other.pipeline_cache,
            // Its shaders number subgroups and hold f16 operands.
            cooperative_matrix: self.cooperative_matrix && other.cooperative_matrix && subgroups && f16,
            // Beside what its stages receive there is little room for parts of sums that no subgroup has put together.
            chains: self.chains && other.chains && subgroups,
        }
    }

    /// Flags that every shader of this device is assembled with.
    pub fn shader_flags(&self) -> impl Iterator<Item = &'static str> + use<> {
        [(self.subgroups, "SUBGROUPS"), (self.f16, "F16")].into_iter().filter(|f| f.0).map(|f| f.1)
    }

    fn wgpu(self) -> wgpu::Features {
        [
            (self.subgroups, wgpu::Features::SUBGROUP),
            (self.cooperative_matrix, wgpu::Features::SUBGROUP_BARRIER),
            (self.f16, wgpu::Features::SHADER_F16),
            (self.immediates, wgpu::Features::IMMEDIATES),
            (self.timestamps, wgpu::Features::TIMESTAMP_QUERY),
            (self.pipeline_cache, wgpu::Features::PIPELINE_CACHE),
            (self.cooperative_matrix, wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX),
        ]
        .into_iter()
        .filter(|f| f.0)
        .fold(wgpu::Features::empty(), |a, f| a | f.1)
    }
}

/// How to open a device.
#[derive(Debug, Clone)]
pub struct GpuOptions {
    /// Which adapter.
    pub adapter: AdapterChoice,
    /// Abilities that may be used, where the adapter has them.
    pub features: Features,
    /// Most bytes on the device, weights and KV included; 0 = no limit.
    pub memory_budget: u64,
    /// Take GPU times of every pass (needs timestamp queries; costs a profile readback every few hundred passes).
    pub timing: bool,
    /// Readback gates and budgets; see also [`Gpu::set_guard`].
    pub guard: Guard,
    /// Folder in which the device's width, and where the backend can the driver's compiled pipelines, are kept from one process to the next; it is made
    /// if it does not exist. `None`: they are not kept.
    pub cache_dir: Option<PathBuf>,
    /// Workgroups of 256 threads that the device is taken to run at once, by which kernels divide their work: so results are the same on devices of
    /// different widths. Rounded up to a power of two, [`crate::gpu::FULL_WIDTH`] at most. 0: as measured, where `cache_dir` keeps that, else a guess.
    pub width: u32,
    /// Folder that gets a trace of every call made of wgpu (needs the cargo feature `api-trace`). For tests and bug reports.
    pub api_trace: Option<PathBuf>,
}

impl Default for GpuOptions {
    fn default() -> Self {
        Self {
            adapter: AdapterChoice::default(),
            features: Features::ALL,
            memory_budget: 0,
            timing: false,
            guard: Guard::default(),
            cache_dir: None,
            width: 0,
            api_trace: None,
        }
    }
}

#[cfg(feature = "api-trace")]
fn trace(options: &GpuOptions) -> Result<wgpu::Trace> {
    Ok(options.api_trace.clone().map_or(wgpu::Trace::Off, wgpu::Trace::Directory))
}

#[cfg(not(feature = "api-trace"))]
fn trace(options: &GpuOptions) -> Result<wgpu::Trace> {
    match &options.api_trace {
        None => Ok(wgpu::Trace::Off),
        Some(_) => bail!(Unsupported, "api_trace: this build lacks the cargo feature api-trace"),
    }
}

/// Workgroup memory that kernels with cooperative matrices take.
const COOP_WORKGROUP_BYTES: u32 = 45_056;

/// Leave to use what wgpu calls experimental, where the device is to have it.
fn experimental(features: Features) -> wgpu::ExperimentalFeatures {
    if !features.cooperative_matrix {
        return wgpu::ExperimentalFeatures::disabled();
    }
    // SAFETY: wgpu warns of defects that its validation does not catch. Used are cooperative matrices alone, in the one shape that the
    // adapter lists, on workgroup memory and storage, in uniform control flow, in this library's own shaders, each checked against a reference.
    unsafe { wgpu::ExperimentalFeatures::enabled() }
}

/// The first failure the driver reported outside any scope, and whether the device is lost.
#[derive(Debug, Default)]
struct Failure {
    first: Mutex<Option<Error>>,
    lost: Mutex<Option<String>>,
}

/// The only thing that submits.
#[derive(Debug)]
pub(crate) struct Queue {
    raw: wgpu::Queue,
    pool: Arc<Pool>,
    completed: Arc<AtomicU64>,
    /// Serial numbers are given out in the order of submission.
    order: Mutex<u64>,
}

impl Queue {
    pub(crate) fn submit(
        &self,
        work: wgpu::CommandBuffer,
        label: &'static str,
        scope: &Scope,
        dispatches: u64,
        passes: u64,
    ) -> Submission {
        let mut last = self.order.lock();
        let serial = *last + 1;
        let started = Instant::now();
        let index = self.raw.submit([work]);
        scope.submitted(label, started.elapsed().as_nanos() as u64, dispatches, passes);
        *last = serial;
        self.pool.submitted.store(serial, Relaxed);
        let completed = self.completed.clone();
        self.raw.on_submitted_work_done(move || {
            completed.fetch_max(serial, Relaxed);
        });
        Submission { serial, index, at: Instant::now() }
    }
}

/// An open device. See the module's text.
#[derive(Debug)]
pub struct Gpu {
    device: wgpu::Device,
    queue: Queue,
    adapter: AdapterInfo,
    features: Features,
    limits: wgpu::Limits,
    counters: Arc<Counters>,
    memory: Arc<Memory>,
    pipelines: PipelineCache,
    pool: Arc<Pool>,
    params_ring: Mutex<ParamsRing>,
    profiler: Option<Profiler>,
    guard: Mutex<Guard>,
    failure: Arc<Failure>,
    faults: Faults,
    blob: Option<PipelineBlob>,
    pub(super) width: Width,
}

impl Gpu {
    /// Opens a device.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] if none fits the choice; [`Error::Gpu`] if the driver refuses it.
    pub fn open(options: &GpuOptions) -> Result<Arc<Self>> {
        let (raw, adapter) = adapter::pick(&options.adapter)?;
        let present = Features {
            subgroups: adapter.subgroups,
            f16: adapter.f16,
            // Less than this is of no use: parameters must fit.
            immediates: adapter.immediates && raw.limits().max_immediate_size as usize >= crate::gpu::MAX_PARAMS,
            timestamps: adapter.timestamps,
            pipeline_cache: adapter.pipeline_cache,
            // Kernels with matrices lay their tiles out in that much.
            cooperative_matrix: adapter.cooperative_matrix
                && raw.limits().max_compute_workgroup_storage_size >= COOP_WORKGROUP_BYTES,
            chains: adapter.chains,
        };
        let features = options.features.and(present);
        let mut limits = raw.limits();
        limits.max_immediate_size = if features.immediates { crate::gpu::MAX_PARAMS as u32 } else { 0 };
        let (device, queue) = pollster::block_on(raw.request_device(&wgpu::DeviceDescriptor {
            label: Some("doppler"),
            required_features: features.wgpu(),
            required_limits: limits.clone(),
            experimental_features: experimental(features),
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            trace: trace(options)?,
        }))
        .map_err(|e| Error::Gpu(format!("adapter {} gives no device: {e}", adapter.name)))?;
        let failure = Arc::new(Failure::default());
        let sink = failure.clone();
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| {
            let e = match e {
                wgpu::Error::OutOfMemory { .. } => Error::OutOfMemory("the device ran out of memory".into()),
                e => Error::Gpu(e.to_string()),
            };
            log::error!("{e}");
            sink.first.lock().get_or_insert(e);
        }));
        let sink = failure.clone();
        device.set_device_lost_callback(move |reason, text| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                sink.lost.lock().get_or_insert(text);
            }
        });
        let pool = Arc::new(Pool::default());
        let profiler = features.timestamps.then(|| Profiler::new(queue.get_timestamp_period(), options.timing));
        let blob = options.cache_dir.as_ref().filter(|_| features.pipeline_cache);
        let blob = blob.map(|dir| PipelineBlob::open(dir, &adapter));
        let queue =
            Queue { raw: queue, pool: pool.clone(), completed: Arc::new(AtomicU64::new(0)), order: Mutex::new(0) };
        let width = Width::new(&adapter, options.width, options.cache_dir.as_deref());
        Ok(Arc::new(Self {
            width,
            pipelines: PipelineCache::new(&device, features, blob.as_ref()),
            queue,
            adapter,
            features,
            limits,
            counters: Arc::new(Counters::default()),
            memory: Arc::new(Memory::new(options.memory_budget)),
            pool,
            params_ring: Mutex::new(ParamsRing::default()),
            profiler,
            guard: Mutex::new(options.guard),
            failure,
            faults: Faults::default(),
            blob,
            device,
        }))
    }

    /// The adapter behind this device.
    pub fn adapter(&self) -> &AdapterInfo {
        &self.adapter
    }

    /// The abilities in use.
    pub fn features(&self) -> Features {
        self.features
    }

    /// Counters of everything done on this device.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// The account of device memory.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The pipeline cache.
    pub fn pipelines(&self) -> &PipelineCache {
        &self.pipelines
    }

    /// The pool of transient buffers.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// The guard in force.
    pub fn guard(&self) -> Guard {
        *self.guard.lock()
    }

    /// Replaces the guard, for scopes made from now on; sessions with a guard of their own keep it.
    pub fn set_guard(&self, guard: Guard) {
        *self.guard.lock() = guard;
    }

    /// A scope that charges this device's counters and stands under its guard.
    pub fn scope(&self, phase: Phase) -> Scope {
        Scope::new(self.counters.clone(), phase).with_guard(self.guard())
    }

    /// Largest range a shader can bind, in bytes (a multiple of 256).
    pub fn max_binding_bytes(&self) -> u64 {
        self.limits.max_storage_buffer_binding_size.min(self.limits.max_buffer_size) & !255
    }

    /// Bytes that a binding's offset must be a multiple of.
    pub(crate) fn binding_align(&self) -> u64 {
        self.limits.min_storage_buffer_offset_alignment.into()
    }

    /// Most threads in a workgroup.
    pub fn max_workgroup_threads(&self) -> u32 {
        self.limits.max_compute_invocations_per_workgroup.min(self.limits.max_compute_workgroup_size_x)
    }

    /// Storage buffers that a kernel may bind.
    pub fn max_storage_bindings(&self) -> u32 {
        self.limits.max_storage_buffers_per_shader_stage
    }

    /// Bytes of workgroup memory that a kernel may take.
    pub fn workgroup_bytes(&self) -> u32 {
        self.limits.max_compute_workgroup_storage_size
    }

    pub(crate) fn device(&self) -> &wgpu::Device {
        &self.device
    }

    pub(crate) fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Passes are timed now: by the context's option, or for a profile.
    pub fn profiling(&self) -> bool {
        self.profiler.as_ref().is_some_and(Profiler::on)
    }

    pub(crate) fn profiler(&self) -> Option<&Profiler> {
        self.profiler.as_ref()
    }

    pub(crate) fn faults(&self) -> &Faults {
        &self.faults
    }

    pub(crate) fn params_ring(&self) -> &Mutex<ParamsRing> {
        &self.params_ring
    }

    /// The failure the driver reported since the last check, if any. A lost device fails every check.
    ///
    /// # Errors
    /// [`Error::DeviceLost`], [`Error::OutOfMemory`] or [`Error::Gpu`].
    pub fn check(&self) -> Result<()> {
        if let Some(text) = self.failure.lost.lock().as_ref() {
            bail!(DeviceLost, "{text}");
        }
        self.failure.first.lock().take().map_or(Ok(()), Err)
    }

    /// Makes a storage buffer (contents are zero).
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] beyond the budget, the adapter's limit or the device's memory.
    pub fn storage(&self, label: &str, size: u64, class: MemoryClass, scope: &Scope) -> Result<Buffer> {
        self.create_buffer(label, size, class, Usage::Storage, scope)
    }

    /// Makes a storage buffer that can also hold the workgroup counts of [`crate::gpu::Grid::Indirect`].
    ///
    /// # Errors
    /// As [`Gpu::storage`].
    pub fn indirect(&self, label: &str, size: u64, scope: &Scope) -> Result<Buffer> {
        self.create_buffer(label, size, MemoryClass::Other, Usage::Indirect, scope)
    }

    /// Makes a buffer that the host can map to read.
    ///
    /// # Errors
    /// As [`Gpu::storage`].
    pub fn staging(&self, label: &str, size: u64, scope: &Scope) -> Result<Buffer> {
        self.create_buffer(label, size, MemoryClass::Staging, Usage::Readback, scope)
    }

    pub(crate) fn create_buffer(
        &self,
        label: &str,
        size: u64,
        class: MemoryClass,
        usage: Usage,
        scope: &Scope,
    ) -> Result<Buffer> {
        self.check()?;
        self.fault(FaultPoint::Buffer)?;
        if self.memory.strained_by(size) {
            self.pool.trim();
        }
        let b = Buffer::create(&self.device, &self.memory, label, size, class, usage)?;
        scope.buffer_created(b.size());
        Ok(b)
    }

    /// Lends a transient storage buffer.
    ///
    /// # Errors
    /// As [`Gpu::storage`].
    pub fn lease(&self, label: &'static str, size: u64, scope: &Scope) -> Result<Lease> {
        self.pool.acquire(self, size, Usage::Storage, label, scope)
    }

    /// Lends a transient buffer that the host can map.
    pub(crate) fn lease_readback(&self, size: u64, scope: &Scope) -> Result<Lease> {
        self.pool.acquire(self, size, Usage::Readback, "readback", scope)
    }

    /// Writes `bytes` (a multiple of 4) to the start of `target`, before the next submission runs.
    ///
    /// # Errors
    /// [`Error::Internal`] if the bytes do not fit.
    pub fn upload(&self, target: BufferSlice<'_>, bytes: &[u8], scope: &Scope) -> Result<()> {
        let aligned = bytes.len().is_multiple_of(4) && target.offset.is_multiple_of(4);
        if bytes.len() as u64 > target.size || !aligned || !target.fits() {
            bail!(
                Internal,
                "upload of {} bytes to bytes {}+{} of \"{}\" ({} bytes)",
                bytes.len(),
                target.offset,
                target.size,
                target.buffer.label(),
                target.buffer.size()
            );
        }
        if !bytes.is_empty() {
            self.queue.raw.write_buffer(target.buffer.raw(), target.offset, bytes);
            scope.uploaded(bytes.len() as u64);
        }
        Ok(())
    }

    /// Starts recording work charged to `scope`.
    pub fn recorder(&self, label: &'static str, scope: &Scope) -> Recorder<'_> {
        Recorder::new(self, label, scope)
    }

    /// Serial of the newest submission known to be complete.
    pub fn completed(&self) -> u64 {
        // A failing poll is a lost device, which `check` reports.
        let _ = self.device.poll(wgpu::PollType::Poll);
        self.queue.completed.load(Relaxed)
    }

    /// Waits until a submission is complete.
    ///
    /// # Errors
    /// [`Error::DeviceLost`].
    pub fn wait(&self, submission: &Submission) -> Result<()> {
        let wait = wgpu::PollType::Wait { submission_index: Some(submission.index.clone()), timeout: None };
        if let Err(e) = self.device.poll(wait) {
            self.check()?;
            bail!(DeviceLost, "waiting for submission {}: {e}", submission.serial);
        }
        self.fault(FaultPoint::Wait)?;
        self.check()
    }

    /// To be called before [`Gpu::wait`], where it is known how long a submission is likely to take: from `window` before that time to `window` after it the
    /// device is asked again and again. Who sleeps until it answers hears of it later, and goes on with a processor that has to come to its clock
    /// first. A device that computes on the processor is not disturbed.
    pub(crate) fn watch(&self, submission: &Submission, takes: Duration, window: Duration) {
        if self.adapter.is_software() {
            return;
        }
        let end = submission.at + takes;
        // It may be complete long before that.
        let asleep = end.checked_sub(window).map(|begin| begin.saturating_duration_since(Instant::now()));
        let wait = wgpu::PollType::Wait { submission_index: Some(submission.index.clone()), timeout: asleep };
        // What goes wrong else is told by who waits next.
        if !matches!(self.device.poll(wait), Err(wgpu::PollError::Timeout)) {
            return;
        }
        while self.completed() < submission.serial && Instant::now() < end + window {
            std::hint::spin_loop();
        }
    }

    /// Waits until everything submitted is complete: uploads not followed by a submission included.
    ///
    /// # Errors
    /// As [`Recorder::submit`] and [`Gpu::wait`].
    pub fn flush(&self, scope: &Scope) -> Result<()> {
        let submission = self.recorder("flush", scope).submit()?;
        self.wait(&submission)
    }

    /// Writes the driver's compiled pipelines to [`GpuOptions::cache_dir`], if there are new ones. Happens by itself after a model was loaded and when
    /// the device is closed.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn save_pipelines(&self) -> Result<()> {
        self.blob.as_ref().map_or(Ok(()), |blob| blob.save(&self.pipelines))
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        if let Err(e) = self.save_pipelines() {
            log::warn!("compiled pipelines were not kept: {e}");
        }
        for leak in self.pool.leaks() {
            log::error!("leak: {} of {} bytes was leased and never given back", leak.label, leak.bytes);
        }
    }
}
