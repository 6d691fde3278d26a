//! GPU times by timestamp queries: sums by phase, and on request a profile of every dispatch.
//!
//! Timing (an option of the device) takes a pair of timestamps for each compute pass and adds the durations to the scope's
//! counters. Profiling ([`Gpu::start_profile`]) gives every dispatch a pass of its own while it is on, and keeps its phase, layer and label too. Pairs
//! are resolved and read between submissions (a readback of class `profile`, charged to the phase `other`). What does not fit into the
//! query sets is counted as dropped, never guessed; without timestamp queries there are no GPU times at all.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::error::{Result, bail};
use crate::gpu::buffer::Usage;
use crate::gpu::counters::{Phase, Scope};
use crate::gpu::device::Gpu;
use crate::gpu::profile::{Profile, Sample};
use crate::gpu::readback::{Gate, Place, ReadbackClass};
use crate::gpu::sync::Mutex;

/// Pairs in one query set: wgpu allows 4,096 queries.
const PAIRS: usize = wgpu::QUERY_SET_MAX_QUERIES as usize / 2;
/// Query sets at most. Without profiling one is used.
const MAX_SETS: usize = 16;

/// A pass whose pair was handed out.
#[derive(Debug)]
struct Pending {
    scope: Scope,
    label: &'static str,
    layer: Option<u32>,
    /// Number of the command buffer it stands in.
    batch: u64,
}

#[derive(Debug, Default)]
struct State {
    sets: Vec<wgpu::QuerySet>,
    pending: Vec<Pending>,
    batch: u64,
    dropped: u64,
    profile: Option<Profile>,
}

#[derive(Debug)]
pub(crate) struct Profiler {
    nanoseconds_per_tick: f64,
    /// Timing was asked for when the device was opened.
    timing: bool,
    /// A profile is being taken: a pass a dispatch.
    detailed: AtomicBool,
    state: Mutex<State>,
}

/// The pair of one pass.
pub(crate) struct PassQueries {
    pub(crate) set: wgpu::QuerySet,
    pub(crate) first: u32,
}

const TIMES: Gate = Gate::new(Place::Profiler, ReadbackClass::Profile, "times");

impl Profiler {
    pub(crate) fn new(nanoseconds_per_tick: f32, timing: bool) -> Self {
        Self {
            nanoseconds_per_tick: nanoseconds_per_tick.into(),
            timing,
            detailed: AtomicBool::new(false),
            state: Mutex::default(),
        }
    }

    /// Passes are timed always.
    pub(crate) fn timing(&self) -> bool {
        self.timing
    }

    /// Every dispatch gets its own pass.
    pub(crate) fn detailed(&self) -> bool {
        self.detailed.load(Relaxed)
    }

    /// Passes are timed now.
    pub(crate) fn on(&self) -> bool {
        self.timing || self.detailed()
    }

    /// A new command buffer begins.
    pub(crate) fn begin_batch(&self) {
        if self.on() {
            self.state.lock().batch += 1;
        }
    }

    /// A submit call of the CPU, for the profile's second track.
    pub(crate) fn submitted(&self, label: &'static str, phase: Phase, started: std::time::Instant) {
        if self.detailed()
            && let Some(p) = &mut self.state.lock().profile
        {
            p.add_submit(label, phase, started);
        }
    }

    /// The query pair of the next pass, or nothing if times are not taken or all pairs are in use.
    pub(crate) fn next_pass(
        &self,
        device: &wgpu::Device,
        scope: &Scope,
        label: &'static str,
        layer: Option<u32>,
    ) -> Option<PassQueries> {
        if !self.on() {
            return None;
        }
        let mut s = self.state.lock();
        let n = s.pending.len();
        let sets = if s.profile.is_some() { MAX_SETS } else { 1 };
        if n >= sets * PAIRS {
            s.dropped += 1;
            if let Some(profile) = &mut s.profile {
                profile.dropped += 1;
            }
            return None;
        }
        if n / PAIRS >= s.sets.len() {
            s.sets.push(device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("pass times"),
                ty: wgpu::QueryType::Timestamp,
                count: wgpu::QUERY_SET_MAX_QUERIES,
            }));
        }
        let batch = s.batch;
        s.pending.push(Pending { scope: scope.clone(), label, layer, batch });
        Some(PassQueries { set: s.sets[n / PAIRS].clone(), first: (n % PAIRS) as u32 * 2 })
    }

    /// True when so much is pending that the next submission might not find room.
    fn nearly_full(&self) -> bool {
        self.on() && {
            let s = self.state.lock();
            let sets = if s.profile.is_some() { MAX_SETS } else { 1 };
            s.pending.len() > sets * PAIRS / 4
        }
    }

    /// Passes that were not timed because all pairs were in use.
    fn dropped(&self) -> u64 {
        self.state.lock().dropped
    }

    /// Reads all pending pairs.
    fn collect(&self, gpu: &Gpu) -> Result<()> {
        let other = gpu.scope(Phase::Other);
        // Held by whoever submits: pairs handed out by then are in the queue, so that resolving them reads what their passes wrote.
        let submitting = gpu.params_ring().lock();
        let mut state = self.state.lock();
        if state.pending.is_empty() {
            return Ok(());
        }
        // Before anything is taken: a refusal keeps the times for later.
        gpu.gate(&TIMES, &other)?;
        let n = state.pending.len();
        let bytes = n as u64 * 16;
        let resolved = gpu.pool().acquire(gpu, bytes, Usage::Queries, "times.resolved", &other)?;
        let staging = gpu.lease_readback(bytes, &other)?;
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        for (i, set) in state.sets.iter().enumerate().take(n.div_ceil(PAIRS)) {
            let pairs = (n - i * PAIRS).min(PAIRS) as u32;
            encoder.resolve_query_set(set, 0..pairs * 2, resolved.buffer().raw(), (i * PAIRS * 16) as u64);
        }
        encoder.copy_buffer_to_buffer(resolved.buffer().raw(), 0, staging.buffer().raw(), 0, bytes);
        let submission = gpu.queue().submit(encoder.finish(), "times", &other, 0, 0);
        // From here on the pairs are used up, whatever becomes of reading them.
        let pending = std::mem::take(&mut state.pending);
        drop(state);
        drop(submitting);
        let mut out = vec![0; bytes as usize];
        gpu.read_staging(staging.buffer(), &submission, &mut out, TIMES, &other)?;
        let ticks: Vec<u64> = out.chunks_exact(8).map(bytemuck::pod_read_unaligned).collect();
        let mut state = self.state.lock();
        for (p, pair) in pending.iter().zip(ticks.chunks_exact(2)) {
            let ns = |ticks: u64| (ticks as f64 * self.nanoseconds_per_tick) as u64;
            let elapsed = pair[1].checked_sub(pair[0]).map(ns);
            if let Some(ns) = elapsed {
                p.scope.gpu_time(ns);
            }
            let sample = Sample { phase: p.scope.phase, layer: p.layer, label: p.label, batch: p.batch };
            if let Some(profile) = &mut state.profile {
                profile.add(sample, ns(pair[0]), elapsed);
            }
        }
        Ok(())
    }
}

impl Gpu {
    /// Starts a profile: from now on each dispatch is timed by itself. One profile at a time; starting again throws the old one away.
    ///
    /// # Errors
    /// [`crate::Error::Guard`] if the context's guard refuses profile readbacks; [`crate::Error::Unsupported`] without timestamp queries.
    pub fn start_profile(&self) -> Result<()> {
        let Some(profiler) = self.profiler() else {
            bail!(Unsupported, "profiling: this device has no timestamp queries, or they are switched off");
        };
        self.gate(&TIMES, &self.scope(Phase::Other))?;
        profiler.collect(self)?;
        profiler.state.lock().profile = Some(Profile::default());
        profiler.detailed.store(true, Relaxed);
        Ok(())
    }

    /// Ends the profile and returns it.
    ///
    /// # Errors
    /// [`crate::Error::InvalidState`] if none was started; what reading the times back reports (the profile then goes on).
    pub fn stop_profile(&self) -> Result<Profile> {
        let Some(profiler) = self.profiler().filter(|p| p.detailed()) else {
            bail!(InvalidState, "no profile was started");
        };
        profiler.collect(self)?;
        profiler.detailed.store(false, Relaxed);
        match profiler.state.lock().profile.take() {
            Some(p) => Ok(p),
            None => bail!(InvalidState, "no profile was started"),
        }
    }

    /// Makes room for the times of coming passes if there is little left; called between submissions. Where the guard forbids reading
    /// times, later ones are dropped and counted instead.
    ///
    /// # Errors
    /// As [`Gpu::download`].
    pub fn rest_profiler(&self) -> Result<()> {
        match self.profiler() {
            Some(p) if p.nearly_full() && self.guard().gate(&TIMES).is_ok() => p.collect(self),
            _ => Ok(()),
        }
    }

    /// Collects GPU times that were taken but not yet read (see [`crate::gpu::GpuOptions::timing`]). Does nothing where the guard forbids
    /// reading them ([`Gpu::timed`]).
    ///
    /// # Errors
    /// As [`Gpu::download`].
    pub fn collect_times(&self) -> Result<()> {
        match self.profiler() {
            Some(p) if self.guard().gate(&TIMES).is_ok() => p.collect(self),
            _ => Ok(()),
        }
    }

    /// True if GPU times are taken and the guard lets them be read: what is counted is then what was measured.
    pub fn timed(&self) -> bool {
        self.profiler().is_some_and(Profiler::timing) && self.guard().gate(&TIMES).is_ok()
    }

    /// Passes that were not timed since the device was opened, because too many waited to be read.
    pub fn times_dropped(&self) -> u64 {
        self.profiler().map_or(0, Profiler::dropped)
    }
}
