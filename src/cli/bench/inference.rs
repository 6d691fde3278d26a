//! `doppler bench inference`: prompt evaluation and greedy generation, measured.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use doppler::gpu::{MemoryClass, Phase, PhaseSnapshot};
use doppler::model::arch;
use doppler::sample::SamplingOptions;
use doppler::session::{Context, GenerateOptions, Model, Session, SessionStats, open_model_file};
use serde_json::{Value, json};

use super::super::open::{self, DeviceArgs, EngineArgs, ProfileArgs, SubmitArgs};
use super::super::outcome::{Failure, Outcome};
use super::super::report;
use super::super::speculate::{self, SpeculationArgs};
use super::copy::{CopySpeed, copy_speed, in_gb};
use super::results::ResultFile;
use super::stats::{median, percentile, sorted};
use super::{SCHEMA_VERSION, batch, compare, ending, environment, say, write_json};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// GGUF files
    #[arg(required = true)]
    models: Vec<PathBuf>,
    /// Timed runs of each workload
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) runs: u32,
    /// Runs before them that are not timed
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) warmup: u32,
    /// Lengths of prompts
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "64,256,512")]
    prompt_tokens: Vec<u32>,
    /// Tokens to generate
    #[arg(long = "gen", value_name = "N,…", value_delimiter = ',', default_value = "64,128")]
    generate: Vec<u32>,
    /// Sequences that generate together, each with a prompt of its own; speeds are of all of them
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1")]
    sequences: Vec<u32>,
    /// Tokens drawn in one submit; they arrive together
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) tokens_per_submit: u32,
    /// Token that ends a generation (repeatable): with one, steps are such as can be left out. Rates are of what is generated, GB/s as if all went on
    #[arg(long, value_name = "ID")]
    pub(super) end_token: Vec<u32>,
    /// Also end a generation by its Nth token, in the middle of a submit, and show how long that takes (one sequence)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    end_after: Option<u32>,
    /// Show each run, and the counters of each workload with GPU times, which cost a little
    #[arg(long)]
    pub(super) verbose: bool,
    /// Write everything measured to this JSON file; - is stdout
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Compare with an earlier result, run by run
    #[arg(long, value_name = "OLD.json")]
    compare: Option<PathBuf>,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    profile: ProfileArgs,
    #[command(flatten)]
    drafts: SpeculationArgs,
}

impl Args {
    pub(super) fn say(&self, text: &str) -> Outcome {
        say(self.json.as_deref(), text)
    }
}

/// One prompt length with one length of generation.
pub(super) struct Workload {
    pub(super) prompt: u32,
    pub(super) generate: u32,
    pub(super) note: Option<String>,
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

/// Ids that depend on nothing but the vocabulary and where they begin: a fixed walk over its ordinary tokens.
pub(super) fn prompt_ids(model: &Model, n: u32, start: u32) -> Vec<u32> {
    let tokenizer = model.tokenizer();
    let vocab = tokenizer.vocab_size() as u32;
    let mut state = start;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((u64::from(state) * u64::from(vocab)) >> 32) as u32
    };
    std::iter::repeat_with(next).filter(|&id| !tokenizer.is_control(id)).take(n as usize).collect()
}

fn one_run(session: &mut Session, prompt: &[u32], w: &Workload, args: &Args) -> Outcome<Run> {
    session.reset();
    session.reset_stats();
    session.append_tokens(prompt)?;
    let options = GenerateOptions {
        max_tokens: w.generate,
        sampling: SamplingOptions::greedy(),
        ignore_eos: true,
        end_tokens: args.end_token.clone(),
        ..Default::default()
    };
    // Verifications give as many as are accepted.
    let batch = if args.drafts.wanted() { 1 } else { args.tokens_per_submit };
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
        "speculation": speculate::stats_json(&r.stats.speculation),
        "counters": report::counters_json(&r.stats.counters, r.stats.gpu_timed),
    })
}

/// Bytes of weights, and of keys and values, that the average decode step of a workload must read.
pub(super) fn bytes_per_token(model: &Model, w: &Workload) -> (u64, u64) {
    let kv = model.stats().kv;
    // Decode steps see prompt + 1 to prompt + gen - 1 positions.
    let seen = f64::from(w.prompt) + f64::from(w.generate) / 2.0;
    let all: f64 = model.spec().attentions().map(|a| f64::from(a.kv_width())).sum();
    let read = |window: u32| if window == 0 { seen } else { seen.min(f64::from(window)) };
    let positions: f64 =
        model.spec().attentions().map(|a| f64::from(a.kv_width()) / all.max(1.0) * read(a.window)).sum();
    let position_bytes = kv.block_bytes as f64 / f64::from(kv.block_tokens.max(1));
    (model.info().token_bytes, (position_bytes * positions).round() as u64)
}

/// Runs a workload; the second value says whether all runs gave the same tokens.
fn measure(session: &mut Session, w: &Workload, args: &Args, copy: &CopySpeed) -> Outcome<(Value, bool)> {
    let prompt = prompt_ids(session.model(), w.prompt, 1);
    let mut all = Vec::new();
    for _ in 0..args.warmup + args.runs {
        all.push(one_run(session, &prompt, w, args)?);
    }
    let same = all.iter().all(|r| r.tokens == all[0].tokens && !r.tokens.is_empty());
    let timed = &all[args.warmup as usize..];
    let latencies = sorted(timed.iter().flat_map(|r| r.batch_ms.iter().copied()));
    let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|p| percentile(&latencies, p));
    let prefill = median(timed.iter().map(Run::prefill_rate));
    let decode = median(timed.iter().map(Run::decode_rate));
    let first = median(timed.iter().map(|r| report::ms(r.first_token_ns)));
    let last = &timed[timed.len() - 1];
    let (weight_bytes, kv_bytes) = bytes_per_token(session.model(), w);
    let bandwidth = (weight_bytes + kv_bytes) as f64 * decode;
    let share = bandwidth / copy.bytes_per_s;
    let latencies = [p50, p90, p99].map(Option::unwrap_or_default);
    print_row(w, &[&[prefill, decode, first], &latencies[..], &[bandwidth / 1e9, share * 100.0]].concat(), last, args)?;
    if args.verbose {
        for (i, r) in timed.iter().enumerate() {
            let first = report::ms(r.first_token_ns);
            args.say(&format!(
                "{:>10}run {}: prefill {:.1}/s, decode {:.1}/s, first token {first:.3} ms",
                "",
                i + 1,
                r.prefill_rate(),
                r.decode_rate()
            ))?;
        }
        args.say(&format!(
            "{:>10}decode reads {weight_bytes} bytes of weights and {kv_bytes} of keys and values a token: {}, {:.1} % of the copy speed",
            "",
            in_gb(bandwidth),
            share * 100.0
        ))?;
    }
    if !same {
        eprintln!("doppler: runs of {} + {} gave different tokens", w.prompt, w.generate);
    }
    let end = |after| ending::measure(session, &prompt, &all[0].tokens, after, w, args);
    let ended = args.end_after.map(end).transpose()?;
    let value = json!({
        "sequences": 1, "prompt_tokens": w.prompt, "gen_tokens": w.generate, "note": w.note, "sampling": "greedy", "ignore_eos": true,
        "end_tokens": args.end_token,
        "tokens_per_submit": args.tokens_per_submit, "warmup_runs": args.warmup, "timed_runs": args.runs,
        "prompt_ids": prompt, "generated_ids": all[0].tokens, "tokens_agree": same, "ended": ended,
        "summary": {
            "prefill_tokens_per_s": prefill, "decode_tokens_per_s": decode, "first_token_ms": first,
            "ms_per_token_p50": p50, "ms_per_token_p90": p90, "ms_per_token_p99": p99,
            "weight_bytes_per_token": weight_bytes, "kv_bytes_per_token": kv_bytes,
            "decode_bytes_per_s": bandwidth, "share_of_copy_speed": share,
        },
        "warmup": all[..args.warmup as usize].iter().map(run_json).collect::<Vec<_>>(),
        "runs": timed.iter().map(run_json).collect::<Vec<_>>(),
    });
    Ok((value, same))
}

const HEADINGS: [&str; 15] = [
    "prompt",
    "gen",
    "prefill/s",
    "decode/s",
    "first ms",
    "p50 ms",
    "p90 ms",
    "p99 ms",
    "GB/s",
    "% of copy",
    "submits",
    "allocs",
    "readbacks",
    "bytes",
    "GPU ms",
];

fn print_row(w: &Workload, numbers: &[f64], last: &Run, args: &Args) -> Outcome {
    // Prefill and decode, as "a+b".
    let both = |f: &dyn Fn(&PhaseSnapshot) -> String| {
        let c = &last.stats.counters;
        format!("{}+{}", f(c.phase(Phase::Prefill)), f(c.phase(Phase::Decode)))
    };
    let mut row = format!("{:>10}{:>10}", w.prompt, w.generate);
    for (i, n) in numbers.iter().enumerate() {
        row.push_str(&if (2..6).contains(&i) { format!("{n:>10.3}") } else { format!("{n:>10.1}") });
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
    args.say(&row)?;
    if let Some(note) = &w.note {
        args.say(&format!("{:>10}{note}", ""))?;
    }
    let s = &last.stats.speculation;
    if s.verifications > 0 {
        args.say(&format!(
            "{:>10}drafts: {} of {} accepted ({:.0} %) in {} verifications, {:.2} each, {:.1} ms of drafting",
            "",
            s.accepted,
            s.drafted,
            s.acceptance() * 100.0,
            s.verifications,
            s.mean_accepted(),
            report::ms(s.draft_ns)
        ))?;
    }
    if args.verbose {
        eprint!("{}", last.stats.summary());
    }
    Ok(())
}

fn one_model(context: &Context, file: &Path, args: &Args, copy: &CopySpeed) -> Outcome<(Value, bool)> {
    let trained = arch::read_spec(&open_model_file(file, None)?)?.context_length;
    let longest = if args.engine.ctx == 0 { trained } else { args.engine.ctx };
    let list = workloads(args, longest);
    let Some(n_ctx) = list.iter().map(|w| w.prompt + w.generate).max() else {
        return Err(Failure::Message(format!("{}: no workload fits", file.display())));
    };
    let mut options = args.engine.model_options();
    options.n_ctx = n_ctx;
    let model = open::model(context, file, &options)?;
    let (info, load_ms) = (model.info(), report::ms(model.stats().load_ns));
    args.say(&format!("{}: {} {}, loaded in {load_ms:.0} ms", file.display(), info.architecture, info.format))?;
    let how = args.drafts.session_options(context, &options, &SubmitArgs::of(args.tokens_per_submit))?;
    if how.speculation.is_some() {
        args.say("with drafts: a token's ms are of single arrivals, and those of a verification arrive together")?;
    }
    let mut measured = Vec::new();
    let mut agree = true;
    args.profile.start(context)?;
    if args.sequences.contains(&1) {
        let mut session = model.open_session(&how)?;
        args.say(&HEADINGS.iter().map(|h| format!("{h:>10}")).collect::<String>())?;
        for w in &list {
            let (value, same) = measure(&mut session, w, args, copy)?;
            measured.push(value);
            agree &= same;
        }
    }
    for &n in args.sequences.iter().filter(|&&n| n > 1) {
        for w in &list {
            let (value, same) = batch::measure(&model, n, w, args, copy)?;
            measured.push(value);
            agree &= same;
        }
    }
    args.profile.finish(context)?;
    let totals = context.stats();
    if args.verbose {
        eprint!("{}", totals.summary());
    }
    let memory = totals.memory;
    let classes: Vec<_> =
        MemoryClass::ALL.iter().map(|&m| format!("{} {}", m.name(), memory.current[m as usize])).collect();
    args.say(&format!("device memory: {} bytes, {} at most ({})", memory.total, memory.peak, classes.join(", ")))?;
    let value = json!({
        "file": file.file_name().map(|n| n.to_string_lossy()), "architecture": info.architecture, "name": info.name,
        "format": info.format, "parameters": info.parameters, "weight_bytes": info.file_bytes,
        "token_bytes": info.token_bytes,
        "speculation": speculate::source_json(how.speculation.as_ref()),
        "kv_type": info.kv_type.name(), "n_ctx": n_ctx, "load_ms": load_ms,
        "load_counters": report::phase_json(totals.counters.phase(Phase::Load), totals.gpu_timed),
        "context_counters": report::counters_json(&totals.counters, totals.gpu_timed),
        "memory": report::memory_json(&memory), "workloads": measured,
    });
    Ok((value, agree))
}

pub(in crate::cli) fn run(device: &DeviceArgs, args: &Args) -> Outcome {
    if args.profile.wanted() && args.models.len() > 1 {
        return Err(Failure::Usage("--profile takes one model: a trace is of one device".into()));
    }
    // Before anything is measured: a file that cannot be compared with is an error now.
    let old = args.compare.as_deref().map(ResultFile::open).transpose()?;
    let (mut models, mut agree) = (Vec::new(), true);
    let mut first: Option<(Value, CopySpeed)> = None;
    for file in &args.models {
        // A fresh device for each model: its counters and memory are that model's alone.
        let context = if args.verbose { device.open_timed()? } else { device.open()? };
        let (_, copy) = match &first {
            Some(known) => known,
            None => {
                // On a device of its own, so that its buffers are not the model's peak.
                let copy = copy_speed(&device.open_with(context.features())?)?;
                args.say(&format!("{}: copies at {}", context.adapter().name, in_gb(copy.bytes_per_s)))?;
                first.insert((environment(&context), copy))
            }
        };
        let (value, same) = one_model(&context, file, args, copy)?;
        models.push(value);
        agree &= same;
    }
    let (environment, copy) = first.map_or((Value::Null, Value::Null), |(e, c)| (e, c.as_json()));
    let mut report = json!({
        "schema_version": SCHEMA_VERSION, "kind": "inference", "environment": environment, "copy": copy, "models": models,
    });
    if let Some(old) = &old {
        let new = ResultFile::of("this run", &report)?;
        report["comparison"] = compare::print(old, &new, args.json.as_deref())?;
    }
    if let Some(file) = &args.json {
        write_json(file, &report)?;
    }
    if agree { Ok(()) } else { Err(Failure::Reported) }
}
