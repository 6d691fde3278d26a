//! `doppler bench load`: from nothing to the first token, phase by phase.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use doppler::gpu::Phase;
use doppler::sample::SamplingOptions;
use doppler::session::{GenerateOptions, Session, SessionOptions};
use serde_json::{Value, json};

use super::super::open::{DeviceArgs, EngineArgs};
use super::super::outcome::Outcome;
use super::super::report;
use super::inference::prompt_ids;
use super::stats::median;
use super::{SCHEMA_VERSION, environment, say, write_json};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// GGUF files
    #[arg(required = true)]
    models: Vec<PathBuf>,
    /// How often each is loaded; the first time in a process starts the driver
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Length of the prompt
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    prompt_tokens: u32,
    /// Show where the time of each load went
    #[arg(long)]
    verbose: bool,
    /// Write everything measured to this JSON file; - is stdout
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    engine: EngineArgs,
}

/// What one run took. The JSON has everything.
struct Run {
    value: Value,
    /// Device opened, model loaded, session opened, first token after that, all of it, second prompt's first token; milliseconds.
    ms: [f64; 6],
    /// File bytes of weights a second while they went up.
    rate: f64,
    environment: Value,
}

const HEADINGS: [&str; 7] = ["device ms", "load ms", "GB/s", "session ms", "first ms", "total ms", "again ms"];

impl Run {
    fn columns(&self) -> [f64; 7] {
        let [device, load, session, first, total, again] = self.ms;
        [device, load, self.rate / 1e9, session, first, total, again]
    }
}

fn row(columns: &[f64]) -> String {
    let precise = |i: usize| i == 2;
    columns.iter().enumerate().map(|(i, v)| format!("{v:>12.*}", if precise(i) { 2 } else { 1 })).collect()
}

fn one_run(device: &DeviceArgs, file: &Path, args: &Args) -> Outcome<Run> {
    let started = Instant::now();
    let ms_since = |at: Instant| at.elapsed().as_secs_f64() * 1e3;
    let context = device.open()?;
    let device_ms = ms_since(started);
    let at = Instant::now();
    let model = context.load_model(file, &args.engine.model_options(), &mut |_, _| Ok(()))?;
    let load_ms = ms_since(at);
    let at = Instant::now();
    let mut session = model.open_session(&SessionOptions::default())?;
    let session_ms = ms_since(at);
    let prompt = prompt_ids(&model, args.prompt_tokens, 1);
    let options =
        GenerateOptions { max_tokens: 1, sampling: SamplingOptions::greedy(), ignore_eos: true, ..Default::default() };
    let first_token = |session: &mut Session| -> Outcome<(f64, u32)> {
        session.reset();
        session.append_tokens(&prompt)?;
        let at = Instant::now();
        let generated = session.generate(&options, &mut |_| ControlFlow::Continue(()))?;
        Ok((ms_since(at), generated.tokens[0]))
    };
    let (first_ms, token) = first_token(&mut session)?;
    let total_ms = ms_since(started);
    let first = session.stats();
    let (again_ms, same) = first_token(&mut session)?;
    let (stats, totals) = (model.stats(), context.stats());
    let counters = &totals.counters;
    let after_load: u64 = Phase::ALL.iter().filter(|&&p| p != Phase::Load).map(|&p| counters.phase(p).pipelines).sum();
    if token != same {
        eprintln!("doppler: the same prompt gave token {token} and then {same}");
    }
    if args.verbose {
        eprint!("{}", stats.load_summary());
    }
    let environment = environment(&context);
    let at = Instant::now();
    drop((session, model, context));
    let closed_ms = ms_since(at);
    let value = json!({
        "device_ms": device_ms, "load_ms": load_ms, "session_ms": session_ms, "first_token_ms": first_ms, "total_ms": total_ms,
        "first_token_again_ms": again_ms, "closed_ms": closed_ms, "token": token,
        "load": report::load_json(&stats), "pipelines_after_load": after_load,
        "pipelines": {
            "compiled": totals.pipelines.misses, "compile_cpu_ms": report::ms(totals.pipelines.compile_ns),
            "kept_bytes_found": totals.pipelines.blob_bytes,
        },
        "first_token_counters": report::phase_json(first.counters.phase(Phase::Prefill), first.gpu_timed),
        "load_counters": report::phase_json(counters.phase(Phase::Load), totals.gpu_timed),
    });
    let rate = report::rate(stats.file_bytes, stats.load.weights.fill_ns).unwrap_or(0.0);
    Ok(Run { value, ms: [device_ms, load_ms, session_ms, first_ms, total_ms, again_ms], rate, environment })
}

pub(in crate::cli) fn run(device: &DeviceArgs, args: &Args) -> Outcome {
    let mut models = Vec::new();
    let mut environment = Value::Null;
    for file in &args.models {
        say(args.json.as_deref(), &file.display().to_string())?;
        say(args.json.as_deref(), &HEADINGS.iter().map(|h| format!("{h:>12}")).collect::<String>())?;
        let mut runs = Vec::new();
        for _ in 0..args.runs {
            let run = one_run(device, file, args)?;
            say(args.json.as_deref(), &row(&run.columns()))?;
            runs.push(run);
        }
        let medians: [f64; 7] = std::array::from_fn(|i| median(runs.iter().map(|r| r.columns()[i])));
        if runs.len() > 1 {
            say(args.json.as_deref(), &format!("{}  medians", row(&medians)))?;
        }
        let keys =
            ["device_ms", "load_ms", "gb_per_s", "session_ms", "first_token_ms", "total_ms", "first_token_again_ms"];
        let summary: serde_json::Map<_, _> = keys.iter().zip(medians).map(|(k, v)| (k.to_string(), v.into())).collect();
        environment = runs[0].environment.clone();
        models.push(json!({
            "file": file.file_name().map(|n| n.to_string_lossy()), "prompt_tokens": args.prompt_tokens, "summary": summary,
            "runs": runs.into_iter().map(|r| r.value).collect::<Vec<_>>(),
        }));
    }
    let report =
        json!({ "schema_version": SCHEMA_VERSION, "kind": "load", "environment": environment, "models": models });
    args.json.as_deref().map_or(Ok(()), |file| write_json(file, &report))
}
