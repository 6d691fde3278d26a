//! `doppler bench compare`, and `--compare` of the other measurements: the same workloads in two or more results.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::super::outcome::{Failure, Outcome};
use super::results::{Metric, ResultFile, Workload};
use super::stats::{Paired, Verdict, median, paired};
use super::{SCHEMA_VERSION, plot, say, write_json, write_text};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Result files of one kind; the others are compared with the first
    #[arg(required = true, num_args = 2..)]
    files: Vec<PathBuf>,
    /// Draw the figures of all files; - is stdout
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Write the comparison to this JSON file; - is stdout
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// One metric of one workload, before and after.
struct Comparison<'a> {
    workload: &'a Workload,
    metric: &'a Metric,
    old: f64,
    new: f64,
    paired: Paired,
    /// The same tokens were generated; `None` where there are none.
    same_tokens: Option<bool>,
}

impl Comparison<'_> {
    fn verdict(&self) -> Verdict {
        self.paired.verdict(self.metric.higher_is_better)
    }

    /// A difference in percent of the old median.
    fn percent(&self, difference: f64) -> f64 {
        if self.old == 0.0 { 0.0 } else { difference / self.old * 100.0 }
    }

    fn row(&self) -> String {
        let interval = match self.paired.interval {
            Some((low, high)) => format!("[{:+.1}, {:+.1}]", self.percent(low), self.percent(high)),
            None => "one run".into(),
        };
        let tokens = match self.same_tokens {
            Some(true) => "equal",
            Some(false) => "DIFFER",
            None => "",
        };
        format!(
            "  {:<44} {:<12} {:>11.2} {:>11.2} {:<9}{:>+8.1} %  {:<18} {:<10}{tokens}",
            self.workload.name,
            self.metric.name,
            self.old,
            self.new,
            self.metric.unit,
            self.percent(self.paired.median),
            interval,
            self.verdict().name()
        )
    }

    fn as_json(&self) -> Value {
        json!({
            "workload": self.workload.name, "metric": self.metric.name, "unit": self.metric.unit,
            "old_median": self.old, "new_median": self.new, "pairs": self.paired.n,
            "median_difference": self.paired.median,
            "mean_difference_95": self.paired.interval.map(|(low, high)| [low, high]),
            "verdict": self.verdict().name(), "tokens_equal": self.same_tokens,
        })
    }
}

/// Every workload and metric that both results have.
fn compare<'a>(old: &'a ResultFile, new: &'a ResultFile) -> Vec<Comparison<'a>> {
    let mut list = Vec::new();
    for workload in &new.workloads {
        let Some(before) = old.workload(&workload.name) else { continue };
        let same_tokens = before.tokens.as_ref().zip(workload.tokens.as_ref()).map(|(a, b)| a == b);
        for metric in &workload.metrics {
            let Some(earlier) = before.metric(metric.name) else { continue };
            let Some(paired) = paired(&earlier.samples, &metric.samples) else { continue };
            let middle = |m: &Metric| median(m.samples.iter().copied());
            list.push(Comparison { workload, metric, old: middle(earlier), new: middle(metric), paired, same_tokens });
        }
    }
    list
}

/// Prints how `new` differs from `old`, and gives the same as JSON. Text goes where [`say`] puts it.
pub(super) fn print(old: &ResultFile, new: &ResultFile, json: Option<&Path>) -> Outcome<Value> {
    if old.kind != new.kind {
        let text = format!("{} is a result of kind {}, {} of kind {}", old.label, old.kind, new.label, new.kind);
        return Err(Failure::Message(text));
    }
    say(
        json,
        &format!("\n{} -> {}: median of the differences run by run, 95 % interval of their mean", old.label, new.label),
    )?;
    if old.adapter != new.adapter {
        say(json, &format!("  note: on {} and on {}", old.adapter, new.adapter))?;
    }
    let list = compare(old, new);
    for c in &list {
        say(json, &c.row())?;
    }
    let only = |a: &ResultFile, b: &ResultFile| -> Vec<String> {
        a.workloads.iter().map(|w| w.name.clone()).filter(|name| b.workload(name).is_none()).collect()
    };
    let (only_old, only_new) = (only(old, new), only(new, old));
    for (names, file) in [(&only_old, old), (&only_new, new)] {
        for name in names {
            say(json, &format!("  only in {}: {name}", file.label))?;
        }
    }
    let comparisons: Vec<_> = list.iter().map(Comparison::as_json).collect();
    Ok(json!({
        "old": old.label, "new": new.label, "same_adapter": old.adapter == new.adapter,
        "comparisons": comparisons, "only_in_old": only_old, "only_in_new": only_new,
    }))
}

pub(in crate::cli) fn run(args: &Args) -> Outcome {
    let dash = |f: &Option<PathBuf>| f.as_ref().is_some_and(|f| f.as_os_str() == "-");
    if dash(&args.svg) && dash(&args.json) {
        return Err(Failure::Usage("--svg - and --json -: only one of them can go to stdout".into()));
    }
    let files = args.files.iter().map(|f| ResultFile::open(f)).collect::<Outcome<Vec<_>>>()?;
    let Some((first, others)) = files.split_first() else { return Ok(()) };
    let stdout = [&args.json, &args.svg].into_iter().flatten().find(|f| f.as_os_str() == "-");
    let list = others.iter().map(|f| print(first, f, stdout.map(PathBuf::as_path))).collect::<Outcome<Vec<_>>>()?;
    if let Some(file) = &args.svg {
        write_text(file, &plot::svg(&files))?;
    }
    if let Some(file) = &args.json {
        write_json(file, &json!({ "schema_version": SCHEMA_VERSION, "kind": "comparison", "files": list }))?;
    }
    Ok(())
}
