//! The Rust API: what a user does with a [`Context`], a [`Model`] and a [`Session`].
//!
//! This layer knows positions, the token loop, cancellation, threads and budgets; not shapes of weights, not WGSL, not pointers.
//! A context and a model may be used from any thread; a session from one thread at a time (its [`CancelHandle`] from any).

mod chat;
mod context;
mod embed;
mod file;
mod generation;
mod lora;
mod model;
mod options;
mod pace;
mod score;
mod snapshot;
mod speculate;
mod state;
mod stats;
mod summary;
mod together;

pub use crate::model::hf::WeightFormat;
pub use crate::model::{
    KvGroupStats, KvStats, KvType, LoraInfo, PROBE_POINTS, Pooling, ProbeOptions, ProbePoint, ProbeReading,
    RecurrentStats, TensorStats,
};
pub use crate::sample::SamplingOptions;
pub use crate::text::{Piece, SegmentKind};
pub use chat::{ChatOptions, Message};
pub use context::{Context, ContextOptions};
pub use embed::{EmbedOptions, Embeddings};
pub use file::{chat_template_of, open_model_file, tokenizer_of};
pub use generation::{FinishReason, Generated, TokenEvent};
pub use lora::{Lora, LoraCache};
pub use model::{Model, ModelInfo};
pub use options::{GenerateOptions, ModelOptions, SessionOptions};
pub use score::{Choice, Ranking, Score};
pub use speculate::{DEFAULT_NGRAM, DraftSource, Speculation, SpeculationStats};
pub use state::{CancelHandle, Session};
pub use stats::{ContextStats, LoadStats, ModelStats, SessionStats, Timings};
pub use together::generate_together;
