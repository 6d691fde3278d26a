//! `doppler test correctness`: this build on this machine's GPU.

use std::io::Write;
use std::path::{Path, PathBuf};

use doppler::kernels::variants::device_sets;
use doppler::session::Context;
use serde_json::{Value, json};

use super::input;
use super::open::DeviceArgs;
use super::outcome::{Failure, Outcome};
use super::selfcheck::{self, CHECKS, Check, Coverage, Lab, Measured};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only a few kernels, in few variants
    #[arg(long)]
    quick: bool,
    /// Only checks whose name contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// Also decode every matrix of this model, and evaluate a prompt whole, in chunks and token by token
    #[arg(long, value_name = "GGUF")]
    model: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The case of a check that is nearest to its bound, or beyond it.
fn worst(cases: &[Measured]) -> Option<&Measured> {
    cases.iter().max_by(|a, b| a.ratio().total_cmp(&b.ratio()))
}

struct Report {
    json: bool,
    failed: u32,
    all: Vec<Value>,
}

impl Report {
    /// One check on one kind of device.
    fn add(&mut self, name: &str, device: &str, result: &doppler::Result<Vec<Measured>>) -> Outcome {
        let line = match result {
            Ok(cases) => {
                let pass = !cases.is_empty() && cases.iter().all(Measured::passes);
                self.failed += u32::from(!pass);
                let verdict = if pass { "PASS" } else { "FAIL" };
                let list: Vec<_> = cases
                    .iter()
                    .map(|c| json!({"case": c.case, "error": c.error, "bound": c.bound, "pass": c.passes()}))
                    .collect();
                self.all.push(json!({"name": name, "device": device, "pass": pass, "cases": list}));
                match worst(cases) {
                    Some(w) => format!(
                        "{verdict} {name:<18} {} cases, {device}; nearest to its bound: error {:.2e}, bound {:.2e} ({})",
                        cases.len(),
                        w.error,
                        w.bound,
                        w.case
                    ),
                    None => format!("{verdict} {name:<18} no cases, {device}"),
                }
            }
            Err(e) => {
                self.failed += 1;
                self.all.push(json!({"name": name, "device": device, "pass": false, "problem": e.to_string()}));
                format!("FAIL {name:<18} {device}: {e}")
            }
        };
        if !self.json {
            writeln!(std::io::stdout(), "{line}")?;
        }
        Ok(())
    }
}

/// How many missing variants are listed as text.
const LISTED: usize = 40;

impl Report {
    /// How much of what kernels declare was tried. In a full run nothing may be missing.
    fn coverage(&mut self, coverage: &Coverage, full: bool) -> Outcome<Value> {
        let (declared, missing) = (coverage.declared(), coverage.missing());
        let executed = declared - missing.len();
        let fails = full && !missing.is_empty();
        self.failed += u32::from(fails);
        if !self.json {
            let mut out = std::io::stdout().lock();
            writeln!(out, "variants: {declared} declared, {executed} executed")?;
            if fails {
                for name in missing.iter().take(LISTED) {
                    writeln!(out, "FAIL variant never executed against its reference: {name}")?;
                }
                if let more @ 1.. = missing.len().saturating_sub(LISTED) {
                    writeln!(out, "and {more} more")?;
                }
            }
        }
        Ok(json!({"declared": declared, "executed": executed, "complete": full, "missing": missing}))
    }
}

type ModelCheck = fn(&Context, &Path) -> doppler::Result<Vec<Measured>>;

type Results = Vec<(&'static str, doppler::Result<Vec<Measured>>)>;

/// The checks that have variants left to try on a device, and what they covered.
fn wanted_checks(context: &Context, coverage: Coverage, chosen: &[&Check]) -> (Results, Coverage) {
    let lab = Lab::new(context.gpu().clone(), coverage);
    let results = chosen.iter().filter(|c| lab.wants(c)).map(|c| (c.name, lab.check(c))).collect();
    (results, lab.into_coverage())
}

pub(super) fn run(device: &DeviceArgs, args: &Args) -> Outcome {
    let context = device.open()?;
    let features = context.gpu().features();
    let chosen: Vec<&Check> =
        CHECKS.iter().filter(|c| (c.quick || !args.quick) && c.name.contains(&args.filter)).collect();
    let of_model: [(&str, ModelCheck); 2] = [("tensors", selfcheck::tensor_check), ("model", selfcheck::model_check)];
    let with_model = args.model.iter().flat_map(|file| of_model.map(|(name, check)| (name, check, file)));
    let with_model: Vec<_> = with_model.filter(|(name, ..)| name.contains(&args.filter)).collect();
    if chosen.is_empty() && with_model.is_empty() {
        let names: Vec<_> = CHECKS.iter().map(|c| c.name).collect();
        return Err(Failure::Usage(format!("no check has \"{}\" in its name: {}", args.filter, names.join(", "))));
    }
    let full = !args.quick && args.filter.is_empty();
    let mut report = Report { json: args.json, failed: 0, all: Vec::new() };
    let mut sets = device_sets(features).into_iter();
    let everything = sets.next().map_or("", |s| s.0);
    let lab = Lab::new(context.gpu().clone(), Coverage::new(features, args.quick)?);
    for check in &chosen {
        report.add(check.name, everything, &lab.check(check))?;
    }
    let mut coverage = lab.into_coverage();
    if full {
        // Devices with fewer abilities, side by side: nearly all of their time is spent in compiling.
        let others =
            sets.map(|(name, features)| Ok((name, device.open_with(features)?))).collect::<Outcome<Vec<_>>>()?;
        let done = std::thread::scope(|s| {
            let start = |(name, context): (&'static str, Context)| {
                let (coverage, chosen) = (coverage.clone(), &chosen);
                s.spawn(move || (name, wanted_checks(&context, coverage, chosen)))
            };
            let threads: Vec<_> = others.into_iter().map(start).collect();
            threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect::<Vec<_>>()
        });
        for thread in done {
            let (name, (results, seen)) = thread.map_err(|_| Failure::Message("a check panicked".into()))?;
            for (check, result) in &results {
                report.add(check, name, result)?;
            }
            coverage.merge(seen);
        }
    }
    for (name, check, file) in with_model {
        report.add(name, everything, &check(&context, file))?;
    }
    let variants = report.coverage(&coverage, full)?;
    let adapter = context.gpu().adapter();
    if args.json {
        input::print_json(&json!({
            "adapter": adapter.name, "driver": adapter.driver, "failed": report.failed, "checks": report.all,
            "variants": variants,
        }))?;
    } else {
        writeln!(std::io::stdout(), "{} checks, {} failed, on {}", report.all.len(), report.failed, adapter.name)?;
    }
    if report.failed == 0 { Ok(()) } else { Err(Failure::Reported) }
}
