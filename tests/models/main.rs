//! Whole models against outsiders: reference logits, greedy tokens and perplexities.

mod after_load;
mod batch;
mod budgets;
mod chains;
mod common;
mod embed;
mod ending;
mod faults;
mod folders;
mod golden;
mod hearth;
mod kv_sharing;
mod kv_windows;
#[path = "../common/llama_file.rs"]
mod llama_file;
mod loading;
mod lora;
mod lora_files;
mod moe;
mod perplexity;
mod probe;
mod recurrent;
mod recurrent_files;
mod sampling;
mod score;
mod speculation;
mod together;
mod widths;
