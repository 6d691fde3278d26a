//! `doppler bench table`: results beside another engine's figures, as Markdown and as pictures, written into a document.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::super::input;
use super::super::outcome::{Failure, Outcome};
use super::results::{Metric, Reader, ResultFile, Workload};
use super::{plot, write_text};

/// Where the table stands in a document.
const MARKS: [&str; 2] = ["<!-- written by doppler bench table -->\n", "<!-- end of the table -->\n"];

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Results of `bench inference` and `bench load`, of one machine
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Figures of another engine; benches/baseline.json shows the form
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// What the device can read, GB/s; 0 = the copy speed that was measured
    #[arg(long, value_name = "GB/S", default_value_t = 0.0)]
    limit: f64,
    /// A line above the table: command, device, commit
    #[arg(long, value_name = "TEXT", default_value = "")]
    note: String,
    /// Write to this document, between its marks for the table; - is stdout
    #[arg(long, value_name = "FILE", default_value = "-")]
    into: PathBuf,
    /// Draw speeds, with the baseline's, and the share of the limit
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// One measured workload.
struct Row {
    model: String,
    sequences: u64,
    prompt: u64,
    prefill: f64,
    decode: f64,
    bytes_per_s: f64,
    share: f64,
    /// The other engine's prefill and decode.
    baseline: [Option<f64>; 2],
}

/// The other engine's name and figures.
struct Baseline {
    name: String,
    entries: Vec<Value>,
}

impl Baseline {
    fn open(file: &Path) -> Outcome<Self> {
        let value = input::json(file)?;
        let fail = |text: &str| Failure::Message(format!("{}: {text}", file.display()));
        let name = value["name"].as_str().ok_or_else(|| fail("\"name\" is missing"))?.to_string();
        let entries = value["entries"].as_array().ok_or_else(|| fail("\"entries\" is missing"))?.clone();
        match entries.iter().find(|e| !e["file"].is_string() || !e["sequences"].is_u64() || !e["prompt"].is_u64()) {
            Some(e) => Err(fail(&format!("an entry has \"file\", \"sequences\" and \"prompt\": {e}"))),
            None => Ok(Self { name, entries }),
        }
    }

    /// Its figure of a workload. Decoding without depth (`prompt` 0) stands for depths that it has no figure of, up to 512.
    fn of(&self, model: &str, sequences: u64, prompt: u64, what: &str) -> Option<f64> {
        let at = |depth: u64| {
            let same = |e: &&Value| e["file"] == model && e["sequences"] == sequences && e["prompt"] == depth;
            self.entries.iter().find(same).and_then(|e| e[what].as_f64())
        };
        at(prompt).or_else(|| at(0).filter(|_| what == "decode" && prompt <= 512))
    }
}

fn rows(r: &Reader<'_>, value: &Value, args: &Args, baseline: Option<&Baseline>) -> Outcome<Vec<Row>> {
    let mut rows = Vec::new();
    for m in r.get(value, "models", Value::as_array)? {
        let model = r.get(m, "file", Value::as_str)?.trim_end_matches(".gguf").to_string();
        for w in r.get(m, "workloads", Value::as_array)? {
            let sequences = w["sequences"].as_u64().unwrap_or(1);
            let prompt = r.get(w, "prompt_tokens", Value::as_u64)?;
            let summary = &w["summary"];
            let bytes_per_s = r.get(summary, "decode_bytes_per_s", Value::as_f64)?;
            let share = match args.limit > 0.0 {
                true => bytes_per_s / (args.limit * 1e9),
                false => r.get(summary, "share_of_copy_speed", Value::as_f64)?,
            };
            let other = |what| baseline.and_then(|b| b.of(&model, sequences, prompt, what));
            rows.push(Row {
                sequences,
                prompt,
                prefill: r.get(summary, "prefill_tokens_per_s", Value::as_f64)?,
                decode: r.get(summary, "decode_tokens_per_s", Value::as_f64)?,
                bytes_per_s,
                share,
                baseline: [other("prefill"), other("decode")],
                model: model.clone(),
            });
        }
    }
    Ok(rows)
}

/// A rate with thousands apart.
fn rate(v: f64) -> String {
    let digits = format!("{v:.0}");
    let first = (digits.len() + 2) % 3 + 1;
    digits.char_indices().fold(String::new(), |mut out, (i, c)| {
        if i >= first && (i - first) % 3 == 0 {
            out.push(',');
        }
        out.push(c);
        out
    })
}

fn markdown(rows: &[Row], loads: &[String], args: &Args, baseline: Option<&Baseline>) -> String {
    let mut out = String::new();
    if !args.note.is_empty() {
        let _ = writeln!(out, "{}\n", args.note);
    }
    let other = baseline.map_or("–", |b| &b.name);
    let limit = if args.limit > 0.0 { format!("{:.0} GB/s", args.limit) } else { "the copy speed".into() };
    let _ = writeln!(
        out,
        "| file | sequences | prompt | prefill tok/s | {other} | decode tok/s | {other} | GB/s | share of {limit} |\n\
         |---|---|---|---|---|---|---|---|---|"
    );
    for r in rows {
        let [prefill, decode] = r.baseline.map(|v| v.map_or("–".into(), rate));
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {prefill} | {} | {decode} | {} | {:.0} % |",
            r.model,
            r.sequences,
            rate(r.prompt as f64),
            rate(r.prefill),
            rate(r.decode),
            rate(r.bytes_per_s / 1e9),
            r.share * 100.0
        );
    }
    if !loads.is_empty() {
        out.push_str("\n| file | load ms | GB/s | first token after it ms | device, load and first token ms |\n|---|---|---|---|---|\n");
        loads.iter().for_each(|l| out.push_str(l));
    }
    out
}

fn loads(r: &Reader<'_>, value: &Value) -> Outcome<Vec<String>> {
    let mut out = Vec::new();
    for m in r.get(value, "models", Value::as_array)? {
        let of = |key: &str| r.get(&m["summary"], key, Value::as_f64);
        out.push(format!(
            "| {} | {:.0} | {:.1} | {:.1} | {:.0} |\n",
            r.get(m, "file", Value::as_str)?.trim_end_matches(".gguf"),
            of("load_ms")?,
            of("gb_per_s")?,
            of("first_token_ms")?,
            of("total_ms")?
        ));
    }
    Ok(out)
}

/// Rows as series: ours with the share of the limit, and the other engine's.
fn series(rows: &[Row], adapter: &str, baseline: Option<&Baseline>) -> Vec<ResultFile> {
    let metric = |name, unit, v| Metric { name, unit, higher_is_better: true, samples: vec![v] };
    let name = |r: &Row| match r.sequences {
        1 => format!("{}, {} tokens before", r.model, r.prompt),
        n => format!("{}, {n} sequences", r.model),
    };
    let file = |label: &str, adapter: &str, of: &dyn Fn(&Row) -> Vec<Metric>| {
        let workloads = rows.iter().map(|r| Workload { name: name(r), tokens: None, metrics: of(r) }).collect();
        ResultFile { label: label.into(), kind: "inference".into(), adapter: adapter.into(), workloads }
    };
    let ours = |r: &Row| {
        vec![
            metric("decode", "tokens/s", r.decode),
            metric("prefill", "tokens/s", r.prefill),
            metric("share of the memory limit in decode", "%", r.share * 100.0),
        ]
    };
    let theirs = |r: &Row| {
        let [prefill, decode] = r.baseline;
        [("decode", decode), ("prefill", prefill)]
            .into_iter()
            .filter_map(|(name, v)| Some(metric(name, "tokens/s", v?)))
            .collect()
    };
    let mut all = vec![file("doppler", adapter, &ours)];
    all.extend(baseline.map(|b| file(&b.name, "its own run", &theirs)));
    all
}

/// A document with another table.
fn replaced(document: &str, table: &str) -> Option<String> {
    let (before, rest) = document.split_once(MARKS[0])?;
    let (_, after) = rest.split_once(MARKS[1])?;
    Some(format!("{before}{}{table}{}{after}", MARKS[0], MARKS[1]))
}

pub(in crate::cli) fn run(args: &Args) -> Outcome {
    let baseline = args.baseline.as_deref().map(Baseline::open).transpose()?;
    let (mut all, mut loaded, mut adapters) = (Vec::new(), Vec::new(), Vec::new());
    for path in &args.files {
        let (file, value) = (path.display().to_string(), input::json(path)?);
        let r = Reader { what: &file };
        match r.kind(&value)? {
            "inference" => all.extend(rows(&r, &value, args, baseline.as_ref())?),
            "load" => loaded.extend(loads(&r, &value)?),
            other => return r.fail(&format!("a result of kind \"{other}\"")),
        }
        adapters.push(value["environment"]["adapter"]["name"].as_str().unwrap_or("unknown adapter").to_string());
    }
    adapters.dedup();
    let [adapter] = &adapters[..] else {
        return Err(Failure::Message(format!("the results are of several adapters: {}", adapters.join(", "))));
    };
    let table = markdown(&all, &loaded, args, baseline.as_ref());
    if args.into.as_os_str() == "-" {
        write_text(&args.into, &table)?;
    } else {
        let name = args.into.display();
        let document = std::fs::read_to_string(&args.into).map_err(|e| Failure::Message(format!("{name}: {e}")))?;
        let Some(text) = replaced(&document, &table) else {
            return Err(Failure::Message(format!(
                "{name} has no place for the table: {:?} and {:?}",
                MARKS[0], MARKS[1]
            )));
        };
        write_text(&args.into, &text)?;
    }
    match &args.svg {
        Some(file) => write_text(file, &plot::svg(&series(&all, adapter, baseline.as_ref()))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_thousands_apart() {
        assert_eq!([0.4, 999.6, 12_345.0, 1_234_567.0].map(rate), ["0", "1,000", "12,345", "1,234,567"]);
    }

    #[test]
    fn only_what_stands_between_the_marks_is_replaced() {
        let [a, b] = MARKS;
        assert_eq!(replaced(&format!("x\n{a}old\n{b}y"), "new\n"), Some(format!("x\n{a}new\n{b}y")));
        assert_eq!(replaced(&format!("x\n{b}{a}"), "new\n"), None);
    }

    #[test]
    fn a_depth_without_a_figure_takes_the_one_without_depth_if_it_is_near() {
        let entry = |prompt: u64, decode: f64| serde_json::json!({"file": "m", "sequences": 1, "prompt": prompt, "decode": decode});
        let b = Baseline { name: "other".into(), entries: vec![entry(0, 7.0), entry(4096, 5.0)] };
        let of = |prompt, what| b.of("m", 1, prompt, what);
        assert_eq!([of(512, "decode"), of(4096, "decode"), of(8192, "decode")], [Some(7.0), Some(5.0), None]);
        assert_eq!((of(512, "prefill"), b.of("m", 8, 512, "decode"), b.of("n", 1, 0, "decode")), (None, None, None));
    }
}
