//! What the GPU work cost: submits, allocations, readbacks and their bytes, by phase.
//!
//! Counters live in handles, never in globals: the context has one [`Counters`], each session another, and
//! a [`Scope`] names the sinks and the phase that a piece of work is charged to. Counting is a few relaxed
//! atomic adds; nothing here decides anything (see [`crate::gpu::guard`] for the budgets).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What the work is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Loading a model: weights up, pipelines compiled.
    Load,
    /// Evaluating a prompt.
    Prefill,
    /// Generating tokens.
    Decode,
    /// Everything else (tools, tests, state copies).
    Other,
}

impl Phase {
    /// All phases, in the order of [`CounterSnapshot::phases`].
    pub const ALL: [Phase; 4] = [Phase::Load, Phase::Prefill, Phase::Decode, Phase::Other];

    /// Lower-case name.
    pub fn name(self) -> &'static str {
        ["load", "prefill", "decode", "other"][self as usize]
    }
}

/// What is read back. `Token`, `Logits`, `Embedding` and `State` are what a caller asked for (required);
/// `Debug` and `Profile` are extras that a guard may refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReadbackClass {
    /// Sampled tokens and their stop flags.
    Token,
    /// Logits a caller asked for.
    Logits,
    /// Embeddings a caller asked for.
    Embedding,
    /// Sequence state: snapshots, saves.
    State,
    /// Intermediate tensors, looked at by a person.
    Debug,
    /// Timestamps.
    Profile,
}

impl ReadbackClass {
    /// All classes, in the order of [`PhaseSnapshot::readbacks`].
    pub const ALL: [ReadbackClass; 6] = [
        ReadbackClass::Token,
        ReadbackClass::Logits,
        ReadbackClass::Embedding,
        ReadbackClass::State,
        ReadbackClass::Debug,
        ReadbackClass::Profile,
    ];

    /// Lower-case name.
    pub fn name(self) -> &'static str {
        ["token", "logits", "embedding", "state", "debug", "profile"][self as usize]
    }

    /// True for the classes without which the caller's request cannot be answered.
    pub fn required(self) -> bool {
        !matches!(self, ReadbackClass::Debug | ReadbackClass::Profile)
    }
}

macro_rules! phase_counters {
    ($($(#[$doc:meta])* $field:ident),* $(,)?) => {
        #[derive(Debug, Default)]
        struct PhaseCounters { $($field: AtomicU64,)* readbacks: [AtomicU64; 6], readback_bytes: [AtomicU64; 6] }

        /// The counters of one phase at one moment.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct PhaseSnapshot {
            $($(#[$doc])* pub $field: u64,)*
            /// Readbacks, by [`ReadbackClass`].
            pub readbacks: [u64; 6],
            /// Bytes read back, by [`ReadbackClass`].
            pub readback_bytes: [u64; 6],
        }

        impl PhaseCounters {
            fn snapshot(&self) -> PhaseSnapshot {
                PhaseSnapshot {
                    $($field: self.$field.load(Relaxed),)*
                    readbacks: std::array::from_fn(|i| self.readbacks[i].load(Relaxed)),
                    readback_bytes: std::array::from_fn(|i| self.readback_bytes[i].load(Relaxed)),
                }
            }
            fn reset(&self) {
                $(self.$field.store(0, Relaxed);)*
                for c in self.readbacks.iter().chain(&self.readback_bytes) { c.store(0, Relaxed); }
            }
        }

        impl PhaseSnapshot {
            fn zip(self, other: Self, f: impl Fn(u64, u64) -> u64) -> Self {
                Self {
                    $($field: f(self.$field, other.$field),)*
                    readbacks: std::array::from_fn(|i| f(self.readbacks[i], other.readbacks[i])),
                    readback_bytes: std::array::from_fn(|i| f(self.readback_bytes[i], other.readback_bytes[i])),
                }
            }
        }
    };
}

phase_counters! {
    /// Calls of the queue's submit.
    submits,
    /// Dispatches recorded, indirect ones included.
    dispatches,
    /// Compute passes recorded.
    passes,
    /// Buffers created.
    buffers,
    /// Bytes of the buffers created.
    buffer_bytes,
    /// Bind groups created.
    bind_groups,
    /// Compute pipelines created (compiled, or taken from the driver's cache).
    pipelines,
    /// CPU time spent in creating pipelines.
    pipeline_ns,
    /// Writes of host data into buffers.
    uploads,
    /// Bytes written into buffers.
    upload_bytes,
    /// CPU time inside the submit calls.
    submit_cpu_ns,
    /// Longest single submit call.
    submit_cpu_max_ns,
    /// CPU time spent recording commands.
    record_cpu_ns,
    /// GPU time by timestamp queries; 0 where the device has none or timing is off (never a CPU clock).
    gpu_ns,
}

/// Log-2 histogram of the CPU time of submit calls: bucket `i` holds calls of `[2^i, 2^(i+1))` nanoseconds.
pub const SUBMIT_HISTOGRAM_BUCKETS: usize = 32;

/// A set of counters: one in each context and each session.
#[derive(Debug)]
pub struct Counters {
    phases: [PhaseCounters; 4],
    submit_histogram: [AtomicU64; SUBMIT_HISTOGRAM_BUCKETS],
}

impl Default for Counters {
    fn default() -> Self {
        Self { phases: Default::default(), submit_histogram: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

/// [`Counters`] at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CounterSnapshot {
    /// By [`Phase`].
    pub phases: [PhaseSnapshot; 4],
    /// See [`SUBMIT_HISTOGRAM_BUCKETS`].
    pub submit_histogram: [u64; SUBMIT_HISTOGRAM_BUCKETS],
}

impl CounterSnapshot {
    /// The counters of one phase.
    pub fn phase(&self, phase: Phase) -> &PhaseSnapshot {
        &self.phases[phase as usize]
    }

    /// All phases added up.
    pub fn total(&self) -> PhaseSnapshot {
        let mut sum = self.phases.iter().fold(PhaseSnapshot::default(), |a, b| a.zip(*b, |x, y| x.saturating_add(y)));
        sum.submit_cpu_max_ns = self.phases.iter().map(|p| p.submit_cpu_max_ns).max().unwrap_or(0);
        sum
    }
}

impl PhaseSnapshot {
    /// What was added since `earlier` (the longest submit is taken as it is: a maximum has no difference).
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut d = self.zip(*earlier, u64::saturating_sub);
        d.submit_cpu_max_ns = self.submit_cpu_max_ns;
        d
    }

    /// Readbacks of the required classes (see [`ReadbackClass::required`]).
    pub fn required_readbacks(&self) -> u64 {
        ReadbackClass::ALL.iter().filter(|c| c.required()).map(|&c| self.readbacks[c as usize]).sum()
    }

    /// Bytes read back in the required classes.
    pub fn required_readback_bytes(&self) -> u64 {
        ReadbackClass::ALL.iter().filter(|c| c.required()).map(|&c| self.readback_bytes[c as usize]).sum()
    }
}

impl Counters {
    /// The present values.
    pub fn snapshot(&self) -> CounterSnapshot {
        CounterSnapshot {
            phases: std::array::from_fn(|i| self.phases[i].snapshot()),
            submit_histogram: std::array::from_fn(|i| self.submit_histogram[i].load(Relaxed)),
        }
    }

    /// The present values of one phase.
    pub fn phase(&self, phase: Phase) -> PhaseSnapshot {
        self.phases[phase as usize].snapshot()
    }

    /// Sets everything to zero.
    pub fn reset(&self) {
        self.phases.iter().for_each(PhaseCounters::reset);
        self.submit_histogram.iter().for_each(|c| c.store(0, Relaxed));
    }
}

/// Whom a piece of work is charged to, and in which phase.
#[derive(Debug, Clone)]
pub struct Scope {
    context: Arc<Counters>,
    session: Option<Arc<Counters>>,
    /// The phase.
    pub phase: Phase,
}

impl Scope {
    /// A scope that charges the context only.
    pub fn new(context: Arc<Counters>, phase: Phase) -> Self {
        Self { context, session: None, phase }
    }

    /// The same scope that also charges a session.
    #[must_use]
    pub fn with_session(mut self, session: Arc<Counters>) -> Self {
        self.session = Some(session);
        self
    }

    fn each(&self, f: impl Fn(&PhaseCounters)) {
        f(&self.context.phases[self.phase as usize]);
        if let Some(s) = &self.session {
            f(&s.phases[self.phase as usize]);
        }
    }

    pub(crate) fn submitted(&self, ns: u64, dispatches: u64, passes: u64) {
        self.each(|c| {
            c.submits.fetch_add(1, Relaxed);
            c.dispatches.fetch_add(dispatches, Relaxed);
            c.passes.fetch_add(passes, Relaxed);
            c.submit_cpu_ns.fetch_add(ns, Relaxed);
            c.submit_cpu_max_ns.fetch_max(ns, Relaxed);
        });
        let bucket = (63 - ns.max(1).leading_zeros() as usize).min(SUBMIT_HISTOGRAM_BUCKETS - 1);
        for sink in [Some(&self.context), self.session.as_ref()].into_iter().flatten() {
            sink.submit_histogram[bucket].fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn recorded(&self, ns: u64) {
        self.each(|c| {
            c.record_cpu_ns.fetch_add(ns, Relaxed);
        });
    }

    pub(crate) fn buffer_created(&self, bytes: u64) {
        self.each(|c| {
            c.buffers.fetch_add(1, Relaxed);
            c.buffer_bytes.fetch_add(bytes, Relaxed);
        });
    }

    pub(crate) fn bind_group_created(&self) {
        self.each(|c| {
            c.bind_groups.fetch_add(1, Relaxed);
        });
    }

    pub(crate) fn pipeline_created(&self, ns: u64) {
        self.each(|c| {
            c.pipelines.fetch_add(1, Relaxed);
            c.pipeline_ns.fetch_add(ns, Relaxed);
        });
    }

    pub(crate) fn uploaded(&self, bytes: u64) {
        self.each(|c| {
            c.uploads.fetch_add(1, Relaxed);
            c.upload_bytes.fetch_add(bytes, Relaxed);
        });
    }

    pub(crate) fn read_back(&self, class: ReadbackClass, bytes: u64) {
        self.each(|c| {
            c.readbacks[class as usize].fetch_add(1, Relaxed);
            c.readback_bytes[class as usize].fetch_add(bytes, Relaxed);
        });
    }

    pub(crate) fn gpu_time(&self, ns: u64) {
        self.each(|c| {
            c.gpu_ns.fetch_add(ns, Relaxed);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_charges_context_and_session_in_its_phase() {
        let (ctx, session) = (Arc::new(Counters::default()), Arc::new(Counters::default()));
        let scope = Scope::new(ctx.clone(), Phase::Decode).with_session(session.clone());
        scope.submitted(1000, 7, 1);
        scope.read_back(ReadbackClass::Token, 8);
        Scope::new(ctx.clone(), Phase::Load).buffer_created(64);
        let (c, s) = (ctx.snapshot(), session.snapshot());
        assert_eq!(c.phase(Phase::Decode), s.phase(Phase::Decode));
        assert_eq!((c.phase(Phase::Decode).dispatches, c.phase(Phase::Load).buffer_bytes), (7, 64));
        assert_eq!(s.total().buffers, 0);
        assert_eq!(c.submit_histogram[9], 1);
        assert_eq!(c.total().required_readback_bytes(), 8);
        let before = ctx.phase(Phase::Decode);
        scope.submitted(5, 1, 1);
        assert_eq!(ctx.phase(Phase::Decode).since(&before).submits, 1);
        ctx.reset();
        assert_eq!(ctx.snapshot().total(), PhaseSnapshot::default());
    }
}
