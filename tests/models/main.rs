//! Whole models against outsiders: reference logits, greedy tokens and perplexities.

mod batch;
mod budgets;
mod common;
mod faults;
mod folders;
mod golden;
mod hearth;
mod kv_sharing;
mod kv_windows;
mod loading;
mod moe;
mod perplexity;
mod probe;
mod recurrent;
mod recurrent_files;
mod sampling;
mod together;
