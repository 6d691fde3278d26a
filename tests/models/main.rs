//! Whole models against outsiders: reference logits, greedy tokens and perplexities.

mod common;
mod golden;
mod hearth;
mod perplexity;
mod sampling;
