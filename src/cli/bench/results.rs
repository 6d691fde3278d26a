//! Result files of `doppler bench`, as named series of measurements.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use super::super::input;
use super::super::outcome::{Failure, Outcome};
use super::SCHEMA_VERSION;

/// What one result file says.
pub(super) struct ResultFile {
    /// What it is called in tables.
    pub(super) label: String,
    /// `inference` or `kernels`.
    pub(super) kind: String,
    /// The adapter's name.
    pub(super) adapter: String,
    pub(super) workloads: Vec<Workload>,
}

/// One workload of a model, or one operation.
pub(super) struct Workload {
    pub(super) name: String,
    /// Generated token ids, where there are any.
    pub(super) tokens: Option<Vec<u64>>,
    pub(super) metrics: Vec<Metric>,
}

/// A quantity, measured in several runs.
pub(super) struct Metric {
    pub(super) name: &'static str,
    pub(super) unit: &'static str,
    pub(super) higher_is_better: bool,
    /// One value a run, in the order of the runs.
    pub(super) samples: Vec<f64>,
}

/// Name, unit, whether more is better, and the key in each run's object.
const INFERENCE: [(&str, &str, bool, &str); 3] = [
    ("decode", "tokens/s", true, "decode_tokens_per_s"),
    ("prefill", "tokens/s", true, "prefill_tokens_per_s"),
    ("first token", "ms", false, "first_token_ms"),
];

/// Walks a result and names what is missing in it.
pub(super) struct Reader<'a> {
    pub(super) what: &'a str,
}

impl Reader<'_> {
    pub(super) fn fail<T>(&self, text: &str) -> Outcome<T> {
        Err(Failure::Message(format!("{}: {text}", self.what)))
    }

    /// A value that must be there.
    pub(super) fn get<'v, T>(&self, v: &'v Value, key: &str, as_type: fn(&'v Value) -> Option<T>) -> Outcome<T> {
        match v.get(key).and_then(as_type) {
            Some(x) => Ok(x),
            None => self.fail(&format!("not a result of `doppler bench`: \"{key}\" is missing or of a wrong type")),
        }
    }

    /// Fails unless this program reads such results; their kind.
    pub(super) fn kind<'v>(&self, value: &'v Value) -> Outcome<&'v str> {
        let version = self.get(value, "schema_version", Value::as_u64)?;
        if version != u64::from(SCHEMA_VERSION) {
            return self.fail(&format!("schema_version {version}; this program reads {SCHEMA_VERSION}"));
        }
        self.get(value, "kind", Value::as_str)
    }

    fn numbers(&self, list: &[Value], what: &str) -> Outcome<Vec<f64>> {
        match list.iter().map(Value::as_f64).collect::<Option<Vec<_>>>() {
            Some(n) if !n.is_empty() && n.iter().all(|x| x.is_finite()) => Ok(n),
            _ => self.fail(&format!("{what} must be numbers, one at least")),
        }
    }

    fn inference(&self, model: &Value) -> Outcome<Vec<Workload>> {
        let file = self.get(model, "file", Value::as_str)?;
        let kv = match self.get(model, "kv_type", Value::as_str)? {
            "f16" => String::new(),
            other => format!(", kv {other}"),
        };
        let mut all = Vec::new();
        for w in self.get(model, "workloads", Value::as_array)? {
            let (prompt, generate) =
                (self.get(w, "prompt_tokens", Value::as_u64)?, self.get(w, "gen_tokens", Value::as_u64)?);
            let batch = self.get(w, "tokens_per_submit", Value::as_u64)?;
            let ids = self.get(w, "generated_ids", Value::as_array)?;
            let runs = self.get(w, "runs", Value::as_array)?;
            let metric = |&(name, unit, higher_is_better, key): &(&'static str, &'static str, bool, &str)| {
                let values: Vec<Value> = runs.iter().map(|r| r[key].clone()).collect();
                Ok(Metric {
                    name,
                    unit,
                    higher_is_better,
                    samples: self.numbers(&values, &format!("\"{key}\" of runs"))?,
                })
            };
            let several = if batch == 1 { String::new() } else { format!(", {batch} a submit") };
            // Absent in older results.
            let together = match w["sequences"].as_u64() {
                None | Some(1) => String::new(),
                Some(n) => format!(", {n} sequences"),
            };
            all.push(Workload {
                name: format!("{file} {prompt}+{generate}{together}{several}{kv}"),
                tokens: ids.iter().map(Value::as_u64).collect(),
                metrics: INFERENCE.iter().map(metric).collect::<Outcome<_>>()?,
            });
        }
        Ok(all)
    }

    fn operation(&self, v: &Value) -> Outcome<Workload> {
        let samples = self.numbers(self.get(v, "us", Value::as_array)?, "\"us\"")?;
        let metric = Metric { name: "time", unit: "µs", higher_is_better: false, samples };
        Ok(Workload { name: self.get(v, "name", Value::as_str)?.into(), tokens: None, metrics: vec![metric] })
    }
}

impl ResultFile {
    /// Reads a file that `--json` wrote.
    pub(super) fn open(path: &Path) -> Outcome<Self> {
        let label = path.file_stem().map_or_else(|| path.to_string_lossy(), |s| s.to_string_lossy());
        let value = input::json(path)?;
        Self::read(&label, &path.to_string_lossy(), &value)
    }

    /// A result that was measured just now.
    pub(super) fn of(label: &str, value: &Value) -> Outcome<Self> {
        Self::read(label, label, value)
    }

    fn read(label: &str, what: &str, value: &Value) -> Outcome<Self> {
        let r = Reader { what };
        let kind = r.kind(value)?;
        let mut workloads: Vec<Workload> = match kind {
            "inference" => {
                let models = r.get(value, "models", Value::as_array)?;
                models.iter().map(|m| r.inference(m)).collect::<Outcome<Vec<_>>>()?.into_iter().flatten().collect()
            }
            "kernels" => {
                let list = r.get(value, "operations", Value::as_array)?;
                list.iter().map(|v| r.operation(v)).collect::<Outcome<_>>()?
            }
            other => return r.fail(&format!("a result of kind \"{other}\"; inference and kernels can be compared")),
        };
        // Files of one name, or prompts clipped to one length: told apart by their order.
        let mut times = HashMap::new();
        for w in &mut workloads {
            let n = times.entry(w.name.clone()).and_modify(|n| *n += 1).or_insert(1);
            if *n > 1 {
                w.name = format!("{} ({n})", w.name);
            }
        }
        let adapter = &value["environment"]["adapter"]["name"];
        let adapter = adapter.as_str().unwrap_or("unknown adapter").to_string();
        Ok(Self { label: label.to_string(), kind: kind.to_string(), adapter, workloads })
    }

    pub(super) fn workload(&self, name: &str) -> Option<&Workload> {
        self.workloads.iter().find(|w| w.name == name)
    }
}

impl Workload {
    pub(super) fn metric(&self, name: &str) -> Option<&Metric> {
        self.metrics.iter().find(|m| m.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn problem(v: Value) -> String {
        match ResultFile::read("a", "a.json", &v) {
            Err(Failure::Message(text)) => text,
            Err(e) => panic!("{e:?}"),
            Ok(_) => panic!("{v} was read"),
        }
    }

    #[test]
    fn what_is_no_result_is_refused_with_a_reason() {
        assert!(problem(json!({"schema_version": 1})).contains("schema_version 1; this program reads 2"));
        assert!(problem(json!([])).contains("schema_version"));
        assert!(problem(json!({"schema_version": 2, "kind": "video"})).contains("video"));
        let bad = json!({"schema_version": 2, "kind": "kernels", "operations": [{"name": "x", "us": ["fast"]}]});
        let text = problem(bad);
        assert!(text.contains("a.json") && text.contains("numbers"), "{text}");
        let bad = json!({"schema_version": 2, "kind": "inference", "models": [{"file": "m", "kv_type": "f16"}]});
        assert!(problem(bad).contains("workloads"));
    }

    #[test]
    fn series_have_the_values_of_all_runs() {
        let run =
            |d: f64| json!({"decode_tokens_per_s": d, "prefill_tokens_per_s": 2.0 * d, "first_token_ms": 1.0 / d});
        let workload = json!({
            "prompt_tokens": 64, "gen_tokens": 8, "tokens_per_submit": 4, "generated_ids": [1, 2],
            "runs": [run(4.0), run(5.0)],
        });
        let model = |kv: &str| json!({"file": "m.gguf", "kv_type": kv, "workloads": [workload]});
        let models = [model("f16"), model("f32"), model("f16")];
        let v = json!({"schema_version": 2, "kind": "inference", "models": models});
        let f = ResultFile::of("a", &v).unwrap_or_else(|e| panic!("{e:?}"));
        let names: Vec<_> = f.workloads.iter().map(|w| w.name.as_str()).collect();
        let name = "m.gguf 64+8, 4 a submit";
        assert_eq!(names, [name, &format!("{name}, kv f32"), &format!("{name} (2)")]);
        let w = f.workload(name).unwrap();
        assert_eq!(w.tokens, Some(vec![1, 2]));
        assert_eq!(w.metric("prefill").unwrap().samples, [8.0, 10.0]);
        assert!(!w.metric("first token").unwrap().higher_is_better);
    }
}
