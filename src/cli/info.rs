//! `doppler info`: what a GGUF file holds, and whether it runs.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use doppler::Result;
use doppler::format::{Array, Gguf, Value, type_name};
use doppler::kernels::KvType;
use doppler::model::{LoadedSizes, ModelSpec, arch, measure};
use doppler::session::{open_model_file, tokenizer_of};
use serde_json::{Map, json};

use super::input;
use super::outcome::Outcome;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// GGUF file, or folder of safetensors
    file: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
}

/// Elements of an array that are shown.
const SHOWN: usize = 8;
/// Characters of a text that are shown.
const SHOWN_CHARS: usize = 120;

fn array_json(a: &Array) -> serde_json::Value {
    fn first<T: Clone + Into<serde_json::Value>>(v: &[T]) -> serde_json::Value {
        v.iter().take(SHOWN).cloned().map(Into::into).collect()
    }
    match a {
        Array::U8(v) => first(v),
        Array::I8(v) => first(v),
        Array::U16(v) => first(v),
        Array::I16(v) => first(v),
        Array::U32(v) => first(v),
        Array::I32(v) => first(v),
        Array::F32(v) => first(v),
        Array::Bool(v) => first(v),
        Array::String(v) => first(v),
        Array::U64(v) => first(v),
        Array::I64(v) => first(v),
        Array::F64(v) => first(v),
        Array::Array(v) => v.iter().take(SHOWN).map(array_json).collect(),
    }
}

fn value_json(v: &Value) -> serde_json::Value {
    match v {
        Value::U8(x) => (*x).into(),
        Value::I8(x) => (*x).into(),
        Value::U16(x) => (*x).into(),
        Value::I16(x) => (*x).into(),
        Value::U32(x) => (*x).into(),
        Value::I32(x) => (*x).into(),
        Value::F32(x) => (*x).into(),
        Value::Bool(x) => (*x).into(),
        Value::String(x) => x.as_str().into(),
        Value::U64(x) => (*x).into(),
        Value::I64(x) => (*x).into(),
        Value::F64(x) => (*x).into(),
        Value::Array(a) if a.len() <= SHOWN => array_json(a),
        Value::Array(a) => json!({"type": a.element_kind(), "len": a.len(), "first": array_json(a)}),
    }
}

fn value_text(v: &Value) -> String {
    let text = match v {
        Value::Array(a) if a.len() > SHOWN => {
            let first = array_json(a).to_string();
            format!("{} × {}: {}, …]", a.len(), a.element_kind(), first.trim_end_matches(']'))
        }
        other => value_json(other).to_string(),
    };
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}… ({} characters)", &text[..end], text.chars().count()),
        None => text,
    }
}

/// Tensors and bytes of each type, the type of most bytes first.
fn by_type(file: &Gguf) -> Vec<(String, (u64, u64))> {
    let mut types = BTreeMap::new();
    for t in file.tensors() {
        let entry: &mut (u64, u64) = types.entry(type_name(t.ggml_type)).or_default();
        entry.0 += 1;
        entry.1 += t.bytes;
    }
    let mut types: Vec<_> = types.into_iter().collect();
    types.sort_by_key(|(_, (_, bytes))| std::cmp::Reverse(*bytes));
    types
}

/// What it takes to run the file, or why it does not run.
fn runnable(file: &Gguf, args: &Args) -> Result<(ModelSpec, LoadedSizes)> {
    let spec = arch::read_spec(file)?;
    let sizes = measure(file, &spec)?;
    tokenizer_of(&args.file)?;
    Ok((spec, sizes))
}

/// Bytes that a token takes in the attention cache, by the storages that its heads allow.
fn kv_bytes_per_token(s: &ModelSpec) -> serde_json::Value {
    let all = || s.attentions();
    let bytes = |kv: &KvType| all().map(|a| u64::from(a.n_kv) * 2 * kv.row_bytes(a.head_dim)).sum::<u64>();
    let fits = |kv: &&KvType| all().all(|a| kv.check(a.head_dim).is_ok());
    KvType::ALL.iter().filter(fits).map(|kv| (kv.name().to_string(), bytes(kv).into())).collect::<Map<_, _>>().into()
}

/// The windows of the layers, each once, in the order of their first layers; 0 = all tokens.
fn windows(s: &ModelSpec) -> Vec<u32> {
    let mut found = Vec::new();
    for a in s.attentions() {
        if !found.contains(&a.window) {
            found.push(a.window);
        }
    }
    found
}

fn spec_json(s: &ModelSpec, sizes: &LoadedSizes) -> serde_json::Value {
    let a = s.attentions().next();
    json!({
        "architecture": s.architecture, "name": s.name, "parameters": sizes.parameters, "weight_bytes": sizes.file_bytes,
        "format": sizes.format, "n_layer": s.layers.len(), "n_embd": s.n_embd, "n_vocab": s.n_vocab,
        "n_head": a.map(|a| a.n_head), "n_kv_head": a.map(|a| a.n_kv), "head_dim": a.map(|a| a.head_dim),
        "n_recurrent_layer": s.layers.iter().filter(|l| l.recurrent().is_some()).count(), "windows": windows(s), "kv_bytes_per_token": kv_bytes_per_token(s),
        "recurrent_state_bytes": s.layers.iter().filter_map(|l| l.recurrent()).flat_map(|m| m.state_sizes()).sum::<u64>() * 4,
         "n_ff": s.layers.first().map(|l| l.feed_forward.n_ff),
        "n_expert": s.experts().map(|e| e.n_expert).max().unwrap_or(0),
        "n_expert_used": s.experts().map(|e| e.n_used).max().unwrap_or(0),
        "context_length": s.context_length, "rope_freq_base": s.ropes.first().map(|r| r.freq_base),
        "rope_scaling": s.ropes.first().map(|r| format!("{:?}", r.scaling)), "norm_eps": s.norm_eps,
    })
}

fn print_json(file: &Gguf, args: &Args) -> Outcome {
    let metadata: Map<_, _> = file.metadata().map(|(k, v)| (k.to_string(), value_json(v))).collect();
    let types: Map<_, _> =
        by_type(file).into_iter().map(|(t, (n, bytes))| (t, json!({"tensors": n, "bytes": bytes}))).collect();
    let tensors: Vec<_> = file
        .tensors()
        .iter()
        .map(|t| {
            json!({"name": t.name, "dims": t.dims, "type": type_name(t.ggml_type), "offset": t.offset, "bytes": t.bytes})
        })
        .collect();
    let runs = runnable(file, args);
    input::print_json(&json!({
        "file": file.name(), "version": file.version(), "alignment": file.alignment(), "metadata": metadata,
        "tensor_types": types,
        "tensors": if args.tensors { json!(tensors) } else { json!(tensors.len()) },
        "runs": runs.is_ok(),
        "why_not": runs.as_ref().err().map(ToString::to_string),
        "model": runs.as_ref().ok().map(|(s, sizes)| spec_json(s, sizes)),
    }))
}

fn print_text(file: &Gguf, args: &Args) -> Outcome {
    let mut out = std::io::stdout().lock();
    let (keys, tensors) = (file.metadata().len(), file.tensors().len());
    writeln!(out, "{}: GGUF version {}, {keys} keys, {tensors} tensors", file.name(), file.version())?;
    for (key, value) in file.metadata() {
        writeln!(out, "  {key} = {}", value_text(value))?;
    }
    for (name, (n, bytes)) in by_type(file) {
        writeln!(out, "{name}: {n} tensors, {bytes} bytes")?;
    }
    if args.tensors {
        for t in file.tensors() {
            writeln!(out, "  {} {:?} {} ({} bytes at {})", t.name, t.dims, type_name(t.ggml_type), t.bytes, t.offset)?;
        }
    }
    match runnable(file, args) {
        Ok((spec, sizes)) => {
            writeln!(out, "runs:")?;
            if let serde_json::Value::Object(fields) = spec_json(&spec, &sizes) {
                for (key, value) in fields {
                    writeln!(out, "  {key} = {value}")?;
                }
            }
        }
        Err(e) => writeln!(out, "does not run: {e}")?,
    }
    Ok(())
}

pub(super) fn run(args: &Args) -> Outcome {
    let file = open_model_file(&args.file, None)?;
    if args.json { print_json(&file, args) } else { print_text(&file, args) }
}
