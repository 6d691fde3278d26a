//! `doppler bench inference`: prompt evaluation and greedy generation, measured. `docs/performance.md` has the method.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use doppler::format::Gguf;
use doppler::gpu::{MemoryClass, Phase, PhaseSnapshot};
use doppler::model::arch;
use doppler::sample::SamplingOptions;
use doppler::session::{Context, GenerateOptions, Model, Session, SessionStats};
use serde_json::{Value, json};

use super::open::{self, DeviceArgs, EngineArgs};
use super::outcome::{Failure, Outcome};
use super::{adapters, input, report};

/// Version of the JSON that `--json` writes.
const SCHEMA_VERSION: u32 = 1;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// GGUF files
    #[arg(required = true)]
    models: Vec<PathBuf>,
    /// Timed runs of each workload
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Runs before them that are not timed
    #[arg(long, value_name = "N", default_value_t = 1)]
    warmup: u32,
    /// Lengths of prompts
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "64,256,512")]
    prompt_tokens: Vec<u32>,
    /// Tokens to generate
    #[arg(long = "gen", value_name = "N,…", value_delimiter = ',', default_value = "64,128")]
    generate: Vec<u32>,
    /// Tokens drawn in one submit; they arrive together
    #[arg(long, value_name = "N", default_value_t = 1)]
    tokens_per_submit: u32,
    /// Show the counters of each workload
    #[arg(long)]
    verbose: bool,
    /// Write everything measured to this JSON file; - is stdout
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    engine: EngineArgs,
}

/// One prompt length with one length of generation.
struct Workload {
    prompt: u32,
    generate: u32,
    note: Option<String>,
}

/// What one run took. Times are wall times of this process.
struct Run {
    tokens: Vec<u32>,
    first_token_ns: u64,
    decode_ns: u64,
    /// Milliseconds a token, of each batch delivered after the first token.
    batch_ms: Vec<f64>,
    stats: SessionStats,
}

impl Run {
    fn prefill_rate(&self) -> f64 {
        report::rate(self.stats.prefill_tokens, self.stats.prefill_ns).unwrap_or(0.0)
    }
    /// Tokens after the first, by the time after the first.
    fn decode_rate(&self) -> f64 {
        report::rate(self.tokens.len() as u64 - 1, self.decode_ns).unwrap_or(0.0)
    }
}

/// Value below which a share `p` of the sorted values lies, interpolated linearly between neighbours.
fn percentile(sorted: &[f64], p: f64) -> Option<f64> {
    let at = p * (sorted.len().checked_sub(1)? as f64);
    let (low, high) = (*sorted.get(at.floor() as usize)?, *sorted.get(at.ceil() as usize)?);
    Some(low + (high - low) * at.fract())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    percentile(&sorted(values), 0.5).unwrap_or(0.0)
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut v: Vec<f64> = values.collect();
    v.sort_by(f64::total_cmp);
    v
}

/// Workloads that fit a context, the prompts clipped where they do not.
fn workloads(args: &Args, context: u32) -> Vec<Workload> {
    let mut list = Vec::new();
    for &wanted in &args.prompt_tokens {
        for &generate in &args.generate {
            let prompt = wanted.min(context.saturating_sub(generate));
            if prompt == 0 || generate == 0 {
                eprintln!("doppler: note: {wanted} + {generate} tokens do not fit in a context of {context}; left out");
                continue;
            }
            let note = (prompt < wanted).then(|| format!("prompt clipped from {wanted} to {prompt} tokens"));
            list.push(Workload { prompt, generate, note });
        }
    }
    list
}

/// Ids that depend on nothing but the vocabulary: a fixed walk over its ordinary tokens.
fn prompt_ids(model: &Model, n: u32) -> Vec<u32> {
    let tokenizer = model.tokenizer();
    let vocab = tokenizer.vocab_size() as u32;
    let mut state = 1u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((u64::from(state) * u64::from(vocab)) >> 32) as u32
    };
    std::iter::repeat_with(next).filter(|&id| !tokenizer.is_control(id)).take(n as usize).collect()
}

fn one_run(session: &mut Session, prompt: &[u32], w: &Workload, batch: u32) -> Outcome<Run> {
    session.reset();
    session.reset_stats();
    session.append_tokens(prompt)?;
    let options = GenerateOptions {
        max_tokens: w.generate,
        sampling: SamplingOptions::greedy(),
        ignore_eos: true,
        ..Default::default()
    };
    let mut arrivals = Vec::with_capacity(w.generate as usize);
    let started = Instant::now();
    let generated = session.generate(&options, &mut |_| {
        arrivals.push(started.elapsed().as_nanos() as u64);
        ControlFlow::Continue(())
    })?;
    // The first token comes alone, with the prompt's last submit; then whole batches come at once.
    let mut before = arrivals.first().copied().unwrap_or(0);
    let mut batch_ms = Vec::new();
    for tokens in arrivals.get(1..).unwrap_or_default().chunks(batch.max(1) as usize) {
        batch_ms.push(report::ms(tokens[0] - before) / tokens.len() as f64);
        before = tokens[0];
    }
    let first_token_ns = arrivals.first().copied().unwrap_or(0);
    Ok(Run {
        tokens: generated.tokens,
        first_token_ns,
        decode_ns: before - first_token_ns,
        batch_ms,
        stats: session.stats(),
    })
}

fn run_json(r: &Run) -> Value {
    json!({
        "first_token_ms": report::ms(r.first_token_ns),
        "prefill_ms": report::ms(r.stats.prefill_ns), "prefill_tokens_per_s": r.prefill_rate(),
        "decode_ms": report::ms(r.decode_ns), "decode_tokens_per_s": r.decode_rate(),
        "batch_ms_per_token": r.batch_ms,
        "counters": report::counters_json(&r.stats.counters, r.stats.gpu_timed),
    })
}

/// Runs a workload; the second value says whether all runs gave the same tokens.
fn measure(session: &mut Session, w: &Workload, args: &Args) -> Outcome<(Value, bool)> {
    let prompt = prompt_ids(session.model(), w.prompt);
    let mut all = Vec::new();
    for _ in 0..args.warmup + args.runs {
        all.push(one_run(session, &prompt, w, args.tokens_per_submit)?);
    }
    let same = all.iter().all(|r| r.tokens == all[0].tokens && !r.tokens.is_empty());
    let timed = &all[args.warmup as usize..];
    let latencies = sorted(timed.iter().flat_map(|r| r.batch_ms.iter().copied()));
    let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|p| percentile(&latencies, p));
    let prefill = median(timed.iter().map(Run::prefill_rate));
    let decode = median(timed.iter().map(Run::decode_rate));
    let first = median(timed.iter().map(|r| report::ms(r.first_token_ns)));
    let last = &timed[timed.len() - 1];
    print_row(w, [prefill, decode, first, p50.unwrap_or(0.0), p90.unwrap_or(0.0), p99.unwrap_or(0.0)], last, args)?;
    if !same {
        eprintln!("doppler: runs of {} + {} gave different tokens", w.prompt, w.generate);
    }
    let value = json!({
        "prompt_tokens": w.prompt, "gen_tokens": w.generate, "note": w.note, "sampling": "greedy", "ignore_eos": true,
        "tokens_per_submit": args.tokens_per_submit, "warmup_runs": args.warmup, "timed_runs": args.runs,
        "prompt_ids": prompt, "generated_ids": all[0].tokens, "tokens_agree": same,
        "summary": {
            "prefill_tokens_per_s": prefill, "decode_tokens_per_s": decode, "first_token_ms": first,
            "ms_per_token_p50": p50, "ms_per_token_p90": p90, "ms_per_token_p99": p99,
        },
        "warmup": all[..args.warmup as usize].iter().map(run_json).collect::<Vec<_>>(),
        "runs": timed.iter().map(run_json).collect::<Vec<_>>(),
    });
    Ok((value, same))
}

const HEADINGS: [&str; 13] = [
    "prompt",
    "gen",
    "prefill/s",
    "decode/s",
    "first ms",
    "p50 ms",
    "p90 ms",
    "p99 ms",
    "submits",
    "allocs",
    "readbacks",
    "bytes",
    "GPU ms",
];

/// Text goes to stderr where stdout is for JSON.
fn say(args: &Args, text: &str) -> Outcome {
    match &args.json {
        Some(file) if file.as_os_str() == "-" => writeln!(std::io::stderr(), "{text}")?,
        _ => writeln!(std::io::stdout(), "{text}")?,
    }
    Ok(())
}

fn print_row(w: &Workload, numbers: [f64; 6], last: &Run, args: &Args) -> Outcome {
    // Prefill and decode, as "a+b".
    let both = |f: &dyn Fn(&PhaseSnapshot) -> String| {
        let c = &last.stats.counters;
        format!("{}+{}", f(c.phase(Phase::Prefill)), f(c.phase(Phase::Decode)))
    };
    let mut row = format!("{:>10}{:>10}", w.prompt, w.generate);
    for (i, n) in numbers.into_iter().enumerate() {
        row.push_str(&if i < 2 { format!("{n:>10.1}") } else { format!("{n:>10.3}") });
    }
    for text in [
        both(&|p| p.submits.to_string()),
        both(&|p| p.buffers.to_string()),
        both(&|p| p.readbacks.iter().sum::<u64>().to_string()),
        both(&|p| p.readback_bytes.iter().sum::<u64>().to_string()),
        if last.stats.gpu_timed { both(&|p| format!("{:.1}", report::ms(p.gpu_ns))) } else { "none".into() },
    ] {
        row.push_str(&format!(" {text:>9}"));
    }
    say(args, &row)?;
    if let Some(note) = &w.note {
        say(args, &format!("{:>10}{note}", ""))?;
    }
    if args.verbose {
        eprint!("{}", last.stats.summary());
    }
    Ok(())
}

fn one_model(context: &Context, file: &Path, args: &Args) -> Outcome<(Value, bool)> {
    let trained = arch::read_spec(&Gguf::open(file)?)?.context_length;
    let longest = if args.engine.ctx == 0 { trained } else { args.engine.ctx };
    let list = workloads(args, longest);
    let Some(n_ctx) = list.iter().map(|w| w.prompt + w.generate).max() else {
        return Err(Failure::Message(format!("{}: no workload fits", file.display())));
    };
    let mut options = args.engine.model_options();
    options.n_ctx = n_ctx;
    let model = open::model(context, file, &options)?;
    let (info, load_ms) = (model.info(), report::ms(model.stats().load_ns));
    say(args, &format!("{}: {} {}, loaded in {load_ms:.0} ms", file.display(), info.architecture, info.format))?;
    let mut session = model.open_session(&open::session_options(args.tokens_per_submit))?;
    let headings = HEADINGS.iter().map(|h| format!("{h:>10}")).collect::<String>();
    say(args, &headings)?;
    let mut measured = Vec::new();
    let mut agree = true;
    for w in &list {
        let (value, same) = measure(&mut session, w, args)?;
        measured.push(value);
        agree &= same;
    }
    let memory = context.stats().memory;
    let classes: Vec<_> =
        MemoryClass::ALL.iter().map(|&m| format!("{} {}", m.name(), memory.current[m as usize])).collect();
    say(args, &format!("device memory: {} bytes, {} at most ({})", memory.total, memory.peak, classes.join(", ")))?;
    let value = json!({
        "file": file.file_name().map(|n| n.to_string_lossy()), "architecture": info.architecture, "name": info.name,
        "format": info.format, "parameters": info.parameters, "weight_bytes": info.file_bytes,
        "kv_type": info.kv_type.name(), "n_ctx": n_ctx, "load_ms": load_ms,
        "load_counters": report::phase_json(context.stats().counters.phase(Phase::Load), context.gpu().timed()),
        "memory": report::memory_json(&memory), "workloads": measured,
    });
    Ok((value, agree))
}

pub(super) fn run(device: &DeviceArgs, args: &Args) -> Outcome {
    let mut models = Vec::new();
    let mut agree = true;
    let mut environment = Value::Null;
    for file in &args.models {
        // A fresh device for each model: its counters and memory are that model's alone.
        let context = device.open()?;
        let gpu = context.gpu();
        let f = gpu.features();
        environment = json!({
            "program": "doppler", "version": env!("CARGO_PKG_VERSION"), "debug_build": cfg!(debug_assertions),
            "os": std::env::consts::OS, "cpu": std::env::consts::ARCH, "adapter": adapters::as_json(gpu.adapter()),
            "gpu_time_source": report::gpu_time_source(gpu.timed()),
            "features": {
                "subgroups": f.subgroups, "f16": f.f16, "immediates": f.immediates, "timestamps": f.timestamps,
                "pipeline_cache": f.pipeline_cache,
            },
        });
        let (value, same) = one_model(&context, file, args)?;
        models.push(value);
        agree &= same;
    }
    if let Some(file) = &args.json {
        let report = json!({ "schema_version": SCHEMA_VERSION, "environment": environment, "models": models });
        if file.as_os_str() == "-" {
            input::print_json(&report)?;
        } else {
            let text = serde_json::to_string_pretty(&report)?;
            std::fs::write(file, text).map_err(|e| Failure::Message(format!("{}: {e}", file.display())))?;
        }
    }
    if agree { Ok(()) } else { Err(Failure::Reported) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_interpolate_between_neighbours() {
        let v = [1.0, 2.0, 3.0, 5.0];
        assert_eq!(percentile(&v, 0.5), Some(2.5));
        assert_eq!(percentile(&v, 0.0), Some(1.0));
        assert_eq!(percentile(&v, 1.0), Some(5.0));
        assert!((percentile(&v, 0.9).unwrap() - 4.4).abs() < 1e-12);
        assert_eq!(percentile(&[], 0.5), None);
        assert_eq!(median([9.0, 1.0, 4.0].into_iter()), 4.0);
    }
}
