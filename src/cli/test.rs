//! `doppler test correctness`: this build on this machine's GPU.

use std::io::Write;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::input;
use super::open::DeviceArgs;
use super::outcome::{Failure, Outcome};
use super::selfcheck::{self, CHECKS, Check, Lab, Measured};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only a few kernels
    #[arg(long)]
    quick: bool,
    /// Only checks whose name contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// Also evaluate a prompt of this model whole, in chunks and token by token
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
    fn add(&mut self, name: &str, result: &doppler::Result<Vec<Measured>>) -> Outcome {
        let line = match result {
            Ok(cases) => {
                let pass = !cases.is_empty() && cases.iter().all(Measured::passes);
                self.failed += u32::from(!pass);
                let verdict = if pass { "PASS" } else { "FAIL" };
                let list: Vec<_> = cases
                    .iter()
                    .map(|c| json!({"case": c.case, "error": c.error, "bound": c.bound, "pass": c.passes()}))
                    .collect();
                self.all.push(json!({"name": name, "pass": pass, "cases": list}));
                match worst(cases) {
                    Some(w) => format!(
                        "{verdict} {name:<20} {} cases; nearest to its bound: error {:.2e}, bound {:.2e} ({})",
                        cases.len(),
                        w.error,
                        w.bound,
                        w.case
                    ),
                    None => format!("{verdict} {name:<20} no cases"),
                }
            }
            Err(e) => {
                self.failed += 1;
                self.all.push(json!({"name": name, "pass": false, "problem": e.to_string()}));
                format!("FAIL {name:<20} {e}")
            }
        };
        if !self.json {
            writeln!(std::io::stdout(), "{line}")?;
        }
        Ok(())
    }
}

pub(super) fn run(device: &DeviceArgs, args: &Args) -> Outcome {
    let context = device.open()?;
    let lab = Lab::new(context.gpu().clone());
    let chosen: Vec<&Check> =
        CHECKS.iter().filter(|c| (c.quick || !args.quick) && c.name.contains(&args.filter)).collect();
    let with_model = args.model.as_ref().filter(|_| "model".contains(&args.filter));
    if chosen.is_empty() && with_model.is_none() {
        let names: Vec<_> = CHECKS.iter().map(|c| c.name).collect();
        return Err(Failure::Usage(format!("no check has \"{}\" in its name: {}", args.filter, names.join(", "))));
    }
    let mut report = Report { json: args.json, failed: 0, all: Vec::new() };
    for check in &chosen {
        report.add(check.name, &(check.run)(&lab))?;
    }
    if let Some(file) = with_model {
        report.add("model", &selfcheck::model_check(&context, file))?;
    }
    let adapter = context.gpu().adapter();
    if args.json {
        input::print_json(&json!({
            "adapter": adapter.name, "driver": adapter.driver, "failed": report.failed, "checks": report.all,
        }))?;
    } else {
        writeln!(std::io::stdout(), "{} checks, {} failed, on {}", report.all.len(), report.failed, adapter.name)?;
    }
    if report.failed == 0 { Ok(()) } else { Err(Failure::Reported) }
}
