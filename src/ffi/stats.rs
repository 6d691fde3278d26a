//! Counters as C sees them: the same for contexts and sessions.

use crate::gpu::{CounterSnapshot, Phase, PhaseSnapshot, SUBMIT_HISTOGRAM_BUCKETS};

/// What GPU work is for: the index of `phases` in statistics.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum doppler_phase {
    /// Loading: weights go up, pipelines are compiled.
    Load = 0,
    /// Evaluating a prompt.
    Prefill = 1,
    /// Generating tokens.
    Decode = 2,
    /// Everything else.
    Other = 3,
}

/// What is read back: the index of `readbacks` and `readback_bytes`.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum doppler_readback_class {
    /// Generated tokens and their stop flags.
    Token = 0,
    /// Logits that were asked for.
    Logits = 1,
    /// Embeddings that were asked for.
    Embedding = 2,
    /// State of a sequence.
    State = 3,
    /// Intermediate values, for debugging.
    Debug = 4,
    /// GPU times.
    Profile = 5,
    /// Probabilities of given tokens that were asked for.
    Score = 6,
}

/// Where GPU times come from.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum doppler_gpu_time_source {
    /// There are none: `gpu_ns` is 0. A CPU clock is never called a GPU time.
    None = 0,
    /// Timestamp queries of the GPU.
    Timestamp = 1,
}

/// The cost of one phase. This structure stands in arrays, so it does not grow: `reserved` is for what is added.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct doppler_phase_stats {
    /// Calls of the queue's submit.
    pub submits: u64,
    /// Dispatches recorded.
    pub dispatches: u64,
    /// Compute passes recorded.
    pub passes: u64,
    /// Buffers created.
    pub buffers_created: u64,
    /// Bytes of those buffers.
    pub buffer_bytes: u64,
    /// Bind groups created.
    pub bind_groups: u64,
    /// Pipelines created (compiled, or taken from the driver's cache).
    pub pipelines: u64,
    /// CPU time of creating them, nanoseconds.
    pub pipeline_ns: u64,
    /// Writes of host data into buffers.
    pub uploads: u64,
    /// Bytes of those writes.
    pub upload_bytes: u64,
    /// Readbacks, by doppler_readback_class; the last one is reserved and 0.
    pub readbacks: [u64; 8],
    /// Bytes read back, by doppler_readback_class; the last one is reserved and 0.
    pub readback_bytes: [u64; 8],
    /// CPU time inside submit calls, nanoseconds.
    pub submit_cpu_ns: u64,
    /// Longest single submit call, nanoseconds.
    pub submit_cpu_max_ns: u64,
    /// CPU time of recording commands, nanoseconds.
    pub record_cpu_ns: u64,
    /// GPU time, nanoseconds; see `gpu_time_source` of the structure around this one.
    pub gpu_ns: u64,
    /// 0.
    pub reserved: [u64; 6],
}

/// Which part of the library reads back: the index of `places` in statistics.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum doppler_place {
    /// Tokens drawn after a prompt or in a decode batch.
    Pipeline = 0,
    /// A layer's intermediate tensors.
    Layer = 1,
    /// Logits.
    Logits = 2,
    /// The attention cache.
    KvCache = 3,
    /// GPU times.
    Profiler = 4,
    /// Candidates and choices of the samplers.
    Sample = 5,
    /// State of the stop check.
    CheckStop = 6,
    /// Converted or repacked data.
    Cast = 7,
    /// A buffer, read by a tool.
    Pool = 8,
    /// Scores and embeddings.
    Results = 9,
}

/// Readbacks of one place, all phases together. It stands in arrays, so it does not grow.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct doppler_place_stats {
    /// Readbacks done.
    pub readbacks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Readbacks that a guard refused.
    pub refused: u64,
}

/// All places, in the order of [`doppler_place`]; the last two are reserved and 0.
pub(crate) fn places(counters: &CounterSnapshot) -> [doppler_place_stats; 12] {
    std::array::from_fn(|i| {
        counters.places.get(i).map_or(doppler_place_stats::default(), |p| doppler_place_stats {
            readbacks: p.readbacks,
            bytes: p.bytes,
            refused: p.refused,
        })
    })
}

fn classes<const N: usize>(values: [u64; N]) -> [u64; 8] {
    std::array::from_fn(|i| values.get(i).copied().unwrap_or(0))
}

impl From<&PhaseSnapshot> for doppler_phase_stats {
    fn from(p: &PhaseSnapshot) -> Self {
        Self {
            submits: p.submits,
            dispatches: p.dispatches,
            passes: p.passes,
            buffers_created: p.buffers,
            buffer_bytes: p.buffer_bytes,
            bind_groups: p.bind_groups,
            pipelines: p.pipelines,
            pipeline_ns: p.pipeline_ns,
            uploads: p.uploads,
            upload_bytes: p.upload_bytes,
            readbacks: classes(p.readbacks),
            readback_bytes: classes(p.readback_bytes),
            submit_cpu_ns: p.submit_cpu_ns,
            submit_cpu_max_ns: p.submit_cpu_max_ns,
            record_cpu_ns: p.record_cpu_ns,
            gpu_ns: p.gpu_ns,
            reserved: [0; 6],
        }
    }
}

/// All phases, in the order of [`doppler_phase`].
pub(crate) fn phases(counters: &CounterSnapshot) -> [doppler_phase_stats; 4] {
    [Phase::Load, Phase::Prefill, Phase::Decode, Phase::Other].map(|p| counters.phase(p).into())
}

pub(crate) fn time_source(gpu_timed: bool) -> u32 {
    let source = if gpu_timed { doppler_gpu_time_source::Timestamp } else { doppler_gpu_time_source::None };
    source as u32
}

// The header writes the number out, for cbindgen does not look into other modules.
const _: () = assert!(SUBMIT_HISTOGRAM_BUCKETS == 32);
