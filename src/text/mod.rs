//! Text in and out of a model: tokenizers, streamed text, stop strings, chat templates.
//!
//! No file formats (a tokenizer is built from a plain [`Vocab`]), no sampling and nothing of the GPU. Invariant: nothing
//! here panics on what a file or a user provides; templates and vocabularies are data, not trusted code.

pub mod chat;
pub mod stream;
pub mod tokenizer;

mod bpe;
mod builtin;
mod hf;
mod json;
mod pre;
mod python;
mod reply;
mod segments;
mod special;
mod spm;
mod strftime;
mod vocab;

pub use builtin::{builtin_names, builtin_template};
pub use chat::{ChatTemplate, messages_from};
pub use hf::HfFiles;
pub use reply::{ReplyStream, Said};
pub(crate) use segments::add_piece;
pub use segments::{Markers, Piece, SegmentKind, Segmenter};
pub use stream::{Matched, StopMatcher, Utf8Stream};
pub use tokenizer::Tokenizer;
pub use vocab::Vocab;
