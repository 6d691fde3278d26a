//! What the GPU work cost: submits, allocations, readbacks and their bytes, by phase.
//!
//! Counters live in handles, never in globals: the context has one [`Counters`], each session another, and
//! a [`Scope`] names the sinks and the phase that a piece of work is charged to. Counting is a few relaxed
//! atomic adds; nothing here decides anything (see [`crate::gpu::guard`] for the budgets).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::gpu::guard::Guard;
use crate::gpu::readback::{CLASSES, Gate, PLACES, Place, ReadbackClass};
use crate::gpu::sync::Mutex;

/// What the work is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

/// How a counter is read: left as it is, or taken.
type Read = fn(&AtomicU64) -> u64;

fn look(c: &AtomicU64) -> u64 {
    c.load(Relaxed)
}

fn take(c: &AtomicU64) -> u64 {
    c.swap(0, Relaxed)
}

macro_rules! phase_counters {
    ($($(#[$doc:meta])* $field:ident),* $(,)?) => {
        #[derive(Debug, Default)]
        struct PhaseCounters { $($field: AtomicU64,)* readbacks: [AtomicU64; CLASSES], readback_bytes: [AtomicU64; CLASSES] }

        /// The counters of one phase at one moment.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct PhaseSnapshot {
            $($(#[$doc])* pub $field: u64,)*
            /// Readbacks, by [`ReadbackClass`].
            pub readbacks: [u64; CLASSES],
            /// Bytes read back, by [`ReadbackClass`].
            pub readback_bytes: [u64; CLASSES],
        }

        impl PhaseCounters {
            fn read(&self, how: Read) -> PhaseSnapshot {
                PhaseSnapshot {
                    $($field: how(&self.$field),)*
                    readbacks: std::array::from_fn(|i| how(&self.readbacks[i])),
                    readback_bytes: std::array::from_fn(|i| how(&self.readback_bytes[i])),
                }
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

/// Readbacks of one [`crate::gpu::Place`], all phases together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PlaceSnapshot {
    /// Readbacks done.
    pub readbacks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Readbacks that a guard refused.
    pub refused: u64,
}

#[derive(Debug, Default)]
struct PlaceCounters {
    readbacks: AtomicU64,
    bytes: AtomicU64,
    refused: AtomicU64,
}

/// The submits made under one label in one phase. Times are CPU times of the submit calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubmitStats {
    /// What the submits were for, such as `"decode"`.
    pub label: &'static str,
    /// Their phase.
    pub phase: Phase,
    /// How many.
    pub submits: u64,
    /// Dispatches in them.
    pub dispatches: u64,
    /// Nanoseconds in all.
    pub total_ns: u64,
    /// Shortest call, nanoseconds.
    pub min_ns: u64,
    /// Longest call, nanoseconds.
    pub max_ns: u64,
}

impl SubmitStats {
    /// Mean time of a call, nanoseconds.
    pub fn avg_ns(&self) -> u64 {
        self.total_ns / self.submits.max(1)
    }
}

/// A set of counters: one in each context and each session.
#[derive(Debug)]
pub struct Counters {
    phases: [PhaseCounters; 4],
    places: [PlaceCounters; PLACES],
    submit_histogram: [AtomicU64; SUBMIT_HISTOGRAM_BUCKETS],
    /// Labels are few and static: the table stops growing after the first tokens.
    submits: Mutex<BTreeMap<(Phase, &'static str), SubmitStats>>,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            phases: Default::default(),
            places: Default::default(),
            submit_histogram: std::array::from_fn(|_| AtomicU64::new(0)),
            submits: Mutex::default(),
        }
    }
}

/// [`Counters`] at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CounterSnapshot {
    /// By [`Phase`].
    pub phases: [PhaseSnapshot; 4],
    /// By [`crate::gpu::Place`].
    pub places: [PlaceSnapshot; PLACES],
    /// See [`SUBMIT_HISTOGRAM_BUCKETS`].
    pub submit_histogram: [u64; SUBMIT_HISTOGRAM_BUCKETS],
}

/// What drawing more tokens in one submit would have saved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BatchingSaving {
    /// Submits that would not have been made.
    pub submits: u64,
    /// CPU time of submitting that they took: their number times the mean. Waiting and recording come on top.
    pub submit_cpu_ns: u64,
}

impl PhaseSnapshot {
    /// What `tokens` tokens would have saved at `per_submit` tokens a submit.
    pub fn batching_saving(&self, tokens: u64, per_submit: u64) -> BatchingSaving {
        let submits = self.submits.saturating_sub(tokens.div_ceil(per_submit.max(1)));
        BatchingSaving { submits, submit_cpu_ns: submits * (self.submit_cpu_ns / self.submits.max(1)) }
    }
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
    fn read(&self, how: Read) -> CounterSnapshot {
        CounterSnapshot {
            phases: std::array::from_fn(|i| self.phases[i].read(how)),
            places: std::array::from_fn(|i| {
                let p = &self.places[i];
                PlaceSnapshot { readbacks: how(&p.readbacks), bytes: how(&p.bytes), refused: how(&p.refused) }
            }),
            submit_histogram: std::array::from_fn(|i| how(&self.submit_histogram[i])),
        }
    }

    /// The present values.
    pub fn snapshot(&self) -> CounterSnapshot {
        self.read(look)
    }

    /// The present values of one phase.
    pub fn phase(&self, phase: Phase) -> PhaseSnapshot {
        self.phases[phase as usize].read(look)
    }

    /// The submits by phase and label, in that order.
    pub fn submits(&self) -> Vec<SubmitStats> {
        self.submits.lock().values().copied().collect()
    }

    /// Sets everything to zero, and returns what it was: counters, and submits by phase and label. What other threads count meanwhile is
    /// either in what is returned or in what is counted from now on.
    pub fn reset(&self) -> (CounterSnapshot, Vec<SubmitStats>) {
        let submits = std::mem::take(&mut *self.submits.lock());
        (self.read(take), submits.into_values().collect())
    }
}

/// Whom a piece of work is charged to, in which phase, and under whose guard it stands.
#[derive(Debug, Clone)]
pub struct Scope {
    context: Arc<Counters>,
    sessions: Vec<Arc<Counters>>,
    /// The phase.
    pub phase: Phase,
    /// Decides about readbacks.
    pub guard: Guard,
}

impl Scope {
    /// A scope that charges the context only, without a guard.
    pub fn new(context: Arc<Counters>, phase: Phase) -> Self {
        Self { context, sessions: Vec::new(), phase, guard: Guard::default() }
    }

    /// The same scope under a guard.
    #[must_use]
    pub fn with_guard(mut self, guard: Guard) -> Self {
        self.guard = guard;
        self
    }

    /// The same scope in another phase.
    #[must_use]
    pub fn in_phase(mut self, phase: Phase) -> Self {
        self.phase = phase;
        self
    }

    /// The same scope that charges one more session as well.
    #[must_use]
    pub fn with_session(mut self, session: Arc<Counters>) -> Self {
        self.sessions.push(session);
        self
    }

    fn sinks(&self) -> impl Iterator<Item = &Arc<Counters>> {
        std::iter::once(&self.context).chain(&self.sessions)
    }

    fn each(&self, f: impl Fn(&PhaseCounters)) {
        self.sinks().for_each(|s| f(&s.phases[self.phase as usize]));
    }

    pub(crate) fn submitted(&self, label: &'static str, ns: u64, dispatches: u64, passes: u64) {
        self.each(|c| {
            c.submits.fetch_add(1, Relaxed);
            c.dispatches.fetch_add(dispatches, Relaxed);
            c.passes.fetch_add(passes, Relaxed);
            c.submit_cpu_ns.fetch_add(ns, Relaxed);
            c.submit_cpu_max_ns.fetch_max(ns, Relaxed);
        });
        let bucket = (63 - ns.max(1).leading_zeros() as usize).min(SUBMIT_HISTOGRAM_BUCKETS - 1);
        for sink in self.sinks() {
            sink.submit_histogram[bucket].fetch_add(1, Relaxed);
            let mut submits = sink.submits.lock();
            let s = submits.entry((self.phase, label)).or_insert(SubmitStats {
                label,
                phase: self.phase,
                submits: 0,
                dispatches: 0,
                total_ns: 0,
                min_ns: u64::MAX,
                max_ns: 0,
            });
            s.submits += 1;
            s.dispatches += dispatches;
            s.total_ns += ns;
            s.min_ns = s.min_ns.min(ns);
            s.max_ns = s.max_ns.max(ns);
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

    /// One readback, and which places its bytes were for.
    pub(crate) fn read_back(&self, class: ReadbackClass, places: &[(Place, u64)]) {
        let all = places.iter().map(|p| p.1).sum();
        self.each(|c| {
            c.readbacks[class as usize].fetch_add(1, Relaxed);
            c.readback_bytes[class as usize].fetch_add(all, Relaxed);
        });
        for (sink, &(place, bytes)) in self.sinks().flat_map(|s| places.iter().map(move |p| (s, p))) {
            let place = &sink.places[place as usize];
            place.readbacks.fetch_add(1, Relaxed);
            place.bytes.fetch_add(bytes, Relaxed);
        }
    }

    pub(crate) fn refused(&self, gate: &Gate) {
        for sink in self.sinks() {
            sink.places[gate.place as usize].refused.fetch_add(1, Relaxed);
        }
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
        scope.submitted("decode", 1000, 7, 1);
        let gate = Gate::new(Place::Pipeline, ReadbackClass::Token, "decode.token");
        scope.read_back(gate.class, &[(gate.place, 8)]);
        scope.refused(&gate);
        Scope::new(ctx.clone(), Phase::Load).buffer_created(64);
        let (c, s) = (ctx.snapshot(), session.snapshot());
        assert_eq!(c.phase(Phase::Decode), s.phase(Phase::Decode));
        assert_eq!((c.phase(Phase::Decode).dispatches, c.phase(Phase::Load).buffer_bytes), (7, 64));
        assert_eq!(s.total().buffers, 0);
        assert_eq!(c.submit_histogram[9], 1);
        assert_eq!(c.total().required_readback_bytes(), 8);
        let place = c.places[Place::Pipeline as usize];
        assert_eq!((place.readbacks, place.bytes, place.refused), (1, 8, 1));
        assert_eq!(c.places, s.places);
        let before = ctx.phase(Phase::Decode);
        scope.submitted("decode", 5, 1, 1);
        assert_eq!(ctx.phase(Phase::Decode).since(&before).submits, 1);
        scope.submitted("flush", 7, 0, 0);
        let by_label = ctx.submits();
        assert_eq!(by_label.iter().map(|s| s.label).collect::<Vec<_>>(), ["decode", "flush"]);
        let d = by_label[0];
        assert_eq!((d.submits, d.dispatches, d.total_ns, d.min_ns, d.max_ns, d.avg_ns()), (2, 8, 1005, 5, 1000, 502));
        // Three submits for 20 tokens; at 16 a submit two would do.
        let saving = ctx.phase(Phase::Decode).batching_saving(20, 16);
        assert_eq!((saving.submits, saving.submit_cpu_ns), (1, 1012 / 3));
        assert_eq!(ctx.phase(Phase::Decode).batching_saving(20, 1).submits, 0);
        let (taken, submits) = ctx.reset();
        assert_eq!((taken.phase(Phase::Decode).submits, submits), (3, by_label));
        assert!(ctx.submits().is_empty());
        assert_eq!(ctx.snapshot().total(), PhaseSnapshot::default());
    }
}
