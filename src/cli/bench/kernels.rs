//! `doppler bench kernels`: single operations, many of them in one submit.
//!
//! Data is uploaded before anything is timed, and nothing is read back. The time of an operation is the time of a submit by the number of
//! operations in it: on the GPU by timestamp queries where the device has them, else wall time from submit (encoding included) to fence.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use doppler::gpu::{Gpu, Phase, Scope};
use doppler::session::Context;
use serde_json::{Value, json};

use super::super::open::DeviceArgs;
use super::super::outcome::{Failure, Outcome};
use super::copy::{copy_speed, in_gb};
use super::kernel_cases::{Case, Work, cases};
use super::results::ResultFile;
use super::stats::{median, percentile, sorted};
use super::{SCHEMA_VERSION, compare, environment, say, write_json};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Few and small operations
    #[arg(long)]
    quick: bool,
    /// Only operations whose name contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// Timed submits of each operation
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Write everything measured to this JSON file; - is stdout
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Compare with an earlier result, run by run
    #[arg(long, value_name = "OLD.json")]
    compare: Option<PathBuf>,
}

/// Most operations in one submit.
const MOST: f64 = 4000.0;

/// The device that operations are measured on.
pub(super) struct Bench {
    context: Context,
    pub(super) gpu: Arc<Gpu>,
    pub(super) scope: Scope,
}

/// Times of one operation, in microseconds, one value a submit.
struct Times {
    in_submit: u32,
    wall: Vec<f64>,
    /// By timestamp queries; absent where there are none.
    gpu: Option<Vec<f64>>,
}

impl Bench {
    /// Wall and GPU nanoseconds of one submit of `n` operations.
    fn submit(&self, work: &Work, n: u32) -> Outcome<(f64, u64)> {
        let gpu_ns = || self.context.stats().counters.phase(Phase::Other).gpu_ns;
        let mut recorder = self.gpu.recorder("bench", &self.scope);
        for i in 0..n {
            work(&mut recorder, i as usize)?;
        }
        let before = gpu_ns();
        let started = Instant::now();
        let submission = recorder.submit()?;
        self.gpu.wait(&submission)?;
        let wall = started.elapsed().as_nanos() as f64;
        Ok((wall, gpu_ns() - before))
    }

    /// Warms up, finds how many operations take about `target_ns`, and times submits of that many.
    fn time(&self, work: &Work, runs: u32, target_ns: f64) -> Outcome<Times> {
        // The first submit compiles and touches all memory; later ones are larger until they are long enough.
        self.submit(work, 1)?;
        let mut n = 1u32;
        loop {
            let (wall, _) = self.submit(work, n)?;
            let wanted = (f64::from(n) * target_ns / wall.max(1.0)).min(MOST);
            if wall >= target_ns / 2.0 || wanted <= f64::from(n) {
                break;
            }
            // Short submits are mostly overhead, so that the estimate is too small: the loop comes back.
            n = (wanted.ceil() as u32).max(n + 1);
        }
        let mut times = Times { in_submit: n, wall: Vec::new(), gpu: Some(Vec::new()) };
        for _ in 0..runs {
            let (wall, gpu) = self.submit(work, n)?;
            let each = |ns: f64| ns / 1e3 / f64::from(n);
            times.wall.push(each(wall));
            // Copies run outside of passes and have no GPU time.
            times.gpu = times.gpu.filter(|_| gpu > 0).map(|mut g| {
                g.push(each(gpu as f64));
                g
            });
        }
        Ok(times)
    }
}

/// Measures one operation; prints its row and gives its JSON.
fn measure(bench: &Bench, case: &Case, args: &Args, copy_speed: f64) -> Outcome<Value> {
    let work = (case.prepare)(bench)?;
    let target_ns = if args.quick { 10e6 } else { 100e6 };
    let t = bench.time(&work, args.runs, target_ns)?;
    let (us, source) = match &t.gpu {
        Some(gpu) => (gpu, "timestamp"),
        None => (&t.wall, "wall"),
    };
    let ordered = sorted(us.iter().copied());
    let middle = median(us.iter().copied());
    // Units a microsecond are millions a second.
    let per_s = |n: u64| if middle > 0.0 { n as f64 / middle * 1e6 } else { 0.0 };
    let (bandwidth, flops) = (per_s(case.bytes), per_s(case.flops));
    let gflops = if case.flops > 0 { format!("{:.1}", flops / 1e9) } else { "-".into() };
    say(
        args.json.as_deref(),
        &format!(
            "{:<46}{:>6}{:>10}{middle:>12.2}{:>12.2}{:>10.1}{:>10.1}{gflops:>12}",
            case.name,
            t.in_submit,
            source,
            percentile(&ordered, 0.9).unwrap_or(middle),
            bandwidth / 1e9,
            bandwidth / copy_speed * 100.0
        ),
    )?;
    Ok(json!({
        "name": case.name, "in_submit": t.in_submit, "time_source": source, "us": us, "wall_us": t.wall, "gpu_us": t.gpu,
        "bytes": case.bytes, "flops": case.flops,
        "summary": {
            "us": middle, "bytes_per_s": bandwidth, "share_of_copy_speed": bandwidth / copy_speed,
            "flops_per_s": (case.flops > 0).then_some(flops),
        },
    }))
}

pub(in crate::cli) fn run(device: &DeviceArgs, args: &Args) -> Outcome {
    let old = args.compare.as_deref().map(ResultFile::open).transpose()?;
    let all = cases(args.quick);
    let chosen: Vec<&Case> = all.iter().filter(|c| c.name.contains(&args.filter)).collect();
    if chosen.is_empty() {
        let names: Vec<_> = all.iter().map(|c| c.name.as_str()).collect();
        return Err(Failure::Usage(format!("no operation has \"{}\" in its name: {}", args.filter, names.join(", "))));
    }
    let context = device.open_timed()?;
    let json_file = args.json.as_deref();
    let copy = copy_speed(&context)?;
    say(json_file, &format!("{}: copies at {}", context.adapter().name, in_gb(copy.bytes_per_s)))?;
    let heading = format!(
        "{:<46}{:>6}{:>10}{:>12}{:>12}{:>10}{:>10}{:>12}",
        "operation", "N", "time by", "us", "p90 us", "GB/s", "% of copy", "GFLOP/s"
    );
    say(json_file, &heading)?;
    let gpu = context.gpu().clone();
    let scope = gpu.scope(Phase::Other);
    let bench = Bench { context, gpu, scope };
    let mut operations = Vec::new();
    for case in chosen {
        operations.push(measure(&bench, case, args, copy.bytes_per_s)?);
    }
    let mut report = json!({
        "schema_version": SCHEMA_VERSION, "kind": "kernels", "environment": environment(&bench.context),
        "copy": copy.as_json(), "quick": args.quick, "timed_submits": args.runs, "operations": operations,
    });
    if let Some(old) = &old {
        report["comparison"] = compare::print(old, &ResultFile::of("this run", &report)?, json_file)?;
    }
    if let Some(file) = json_file {
        write_json(file, &report)?;
    }
    Ok(())
}
