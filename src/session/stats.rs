//! What things cost, as plain structures.

use crate::gpu::{CounterSnapshot, Guard, MemorySnapshot, PipelineCacheStats, PoolLabelStats, PoolStats, SubmitStats};
use crate::model::{KvStats, LoadTimes, RecurrentStats};
use crate::session::speculate::SpeculationStats;
use crate::session::state::Session;

/// A context's counters and memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextStats {
    /// Everything done on the device, by phase.
    pub counters: CounterSnapshot,
    /// Its submits, by phase and label.
    pub submits: Vec<SubmitStats>,
    /// Device memory, by class.
    pub memory: MemorySnapshot,
    /// The pipeline cache.
    pub pipelines: PipelineCacheStats,
    /// The pool of transient buffers.
    pub pool: PoolStats,
    /// Its leases, by label.
    pub pool_labels: Vec<(&'static str, PoolLabelStats)>,
    /// GPU times come from timestamp queries; otherwise there are none.
    pub gpu_timed: bool,
    /// Passes that were not timed because too many waited to be read.
    pub gpu_times_dropped: u64,
    /// The guard in force.
    pub guard: Guard,
}

/// Where the wall time of loading went. What happens side by side overlaps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LoadStats {
    /// Opening the file: its metadata, the spec, the measuring of its tensors.
    pub open_ns: u64,
    /// Indexing the vocabulary, beside everything that follows.
    pub vocabulary_ns: u64,
    /// Weights and pipelines.
    pub weights: LoadTimes,
}

/// What loading a model cost and what it holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelStats {
    /// Wall time of loading.
    pub load_ns: u64,
    /// Where it went.
    pub load: LoadStats,
    /// Bytes of weights in the file.
    pub file_bytes: u64,
    /// The KV cache.
    pub kv: KvStats,
    /// What recurrent states take.
    pub recurrent: RecurrentStats,
}

/// A session's counters and times since it was opened or its stats were reset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionStats {
    /// This session's share of the work, by phase.
    pub counters: CounterSnapshot,
    /// Its submits, by phase and label.
    pub submits: Vec<SubmitStats>,
    /// Prompt tokens evaluated.
    pub prefill_tokens: u64,
    /// Wall time of evaluating them.
    pub prefill_ns: u64,
    /// Tokens delivered, the first of each generation included.
    pub generated_tokens: u64,
    /// Tokens that came from decode batches (the first comes with the prompt's last submit).
    pub decode_tokens: u64,
    /// Wall time of decode batches.
    pub decode_ns: u64,
    /// Wall time from the start of the latest generation to its first token.
    pub first_token_ns: u64,
    /// What drafts did.
    pub speculation: SpeculationStats,
    /// Tokens in the session.
    pub tokens: u32,
    /// Tokens whose keys and values are in the cache.
    pub cached_tokens: u32,
    /// GPU times come from timestamp queries; otherwise there are none.
    pub gpu_timed: bool,
    /// The guard in force.
    pub guard: Guard,
}

/// The token counts and times of [`SessionStats`] alone: reading them touches no device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "as in SessionStats")]
pub struct Timings {
    pub prefill_tokens: u64,
    pub prefill_ns: u64,
    pub generated_tokens: u64,
    pub decode_tokens: u64,
    pub decode_ns: u64,
    pub first_token_ns: u64,
}

impl Session {
    /// Token counts and times so far.
    pub fn timings(&self) -> Timings {
        let t = &self.tally;
        Timings {
            prefill_tokens: t.prefill_tokens,
            prefill_ns: t.prefill_ns,
            generated_tokens: t.generated_tokens,
            decode_tokens: t.decode_tokens,
            decode_ns: t.decode_ns,
            first_token_ns: t.first_token_ns,
        }
    }
}
