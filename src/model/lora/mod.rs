//! LoRA adapters: what is added to products beside a model's own weights, for each sequence by itself.
//!
//! An adapter changes tensors: `W + α/r · B · A`, with A and B of rank r. Weights stay as they are; a product with a changed weight is followed by one
//! with A and one with B, added to its result, both in f32 from the product's f32 input. A weight may be several tensors stacked: their A
//! are stacked likewise, and B has zeros where a row is another tensor's, so it is always two products, whatever the adapter changes.
//! A [`LoraSet`] is the list of a sequence's adapters with a factor for each, and owns the decode plans and bind groups that name them:
//! all of it goes when the last sequence with that list does. Sequences with the same list share it.
//! Not here: whether keys and values that were made with another list still count. That is the session's business.

mod file;
mod set;
mod weights;

pub(crate) use set::{LoraPool, LoraSet};
pub(crate) use weights::load;
pub use weights::{Lora, LoraInfo};
