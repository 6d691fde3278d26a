//! A profile: the GPU time of every dispatch, as a tree of phase, layer and operation, as a table, and as a trace file.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Instant;

use serde_json::{Value, json};

use crate::gpu::counters::Phase;

/// Events kept for the trace; later ones still count in the tree.
const MAX_EVENTS: usize = 1 << 19;
/// A dispatch that seems to take longer (nanoseconds) was measured wrongly.
const MAX_NS: u64 = 60_000_000_000;

/// Which dispatch was timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) phase: Phase,
    pub(crate) layer: Option<u32>,
    pub(crate) label: &'static str,
    pub(crate) batch: u64,
}

/// Times of one operation, or of everything below a node of the tree. Nanoseconds of GPU time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpTime {
    /// Dispatches.
    pub count: u64,
    /// All together.
    pub total_ns: u64,
    /// Shortest.
    pub min_ns: u64,
    /// Longest.
    pub max_ns: u64,
}

impl Default for OpTime {
    fn default() -> Self {
        Self { count: 0, total_ns: 0, min_ns: u64::MAX, max_ns: 0 }
    }
}

impl OpTime {
    fn add(&mut self, other: Self) {
        self.count += other.count;
        self.total_ns += other.total_ns;
        self.min_ns = self.min_ns.min(other.min_ns);
        self.max_ns = self.max_ns.max(other.max_ns);
    }

    /// Mean.
    pub fn avg_ns(&self) -> u64 {
        self.total_ns / self.count.max(1)
    }
}

/// A row of the profile: one operation of one layer in one phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProfileRow {
    /// Phase.
    pub phase: Phase,
    /// Layer; `None` for what stands outside the layers.
    pub layer: Option<u32>,
    /// Operation, such as `attn.qkv`.
    pub label: &'static str,
    /// Its times.
    pub time: OpTime,
}

/// A node of the tree: phases, below them layers (or `-`), below them operations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProfileNode {
    /// Phase, layer or operation.
    pub name: String,
    /// Everything below it.
    pub time: OpTime,
    /// In order of phase, layer, name.
    pub children: Vec<ProfileNode>,
}

impl ProfileNode {
    fn above(name: String, children: Vec<ProfileNode>) -> Self {
        let mut time = OpTime::default();
        children.iter().for_each(|c| time.add(c.time));
        Self { name, time, children }
    }
}

#[derive(Debug, Clone, Copy)]
struct Event {
    sample: Sample,
    start_ns: u64,
    ns: u64,
}

#[derive(Debug, Clone, Copy)]
struct Submit {
    label: &'static str,
    phase: Phase,
    start_ns: u64,
    ns: u64,
}

/// See the module's text. All GPU times come from timestamp queries.
#[derive(Debug)]
pub struct Profile {
    times: BTreeMap<(Phase, Option<u32>, &'static str), OpTime>,
    events: Vec<Event>,
    submits: Vec<Submit>,
    started: Instant,
    /// Dispatches that found no free query.
    pub dropped: u64,
    /// Pairs that ran backwards, or over a minute: measured wrongly, in no sum.
    pub invalid: u64,
    /// Dispatches that are in the tree but no more in the trace.
    pub untraced: u64,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            times: BTreeMap::new(),
            events: Vec::new(),
            submits: Vec::new(),
            started: Instant::now(),
            dropped: 0,
            invalid: 0,
            untraced: 0,
        }
    }
}

impl Profile {
    /// Adds a dispatch that began at `start_ns` of the GPU's clock and took `ns`; `None` if its end came before its start.
    pub(crate) fn add(&mut self, sample: Sample, start_ns: u64, ns: Option<u64>) {
        let Some(ns) = ns.filter(|&ns| ns <= MAX_NS) else {
            self.invalid += 1;
            return;
        };
        let time = self.times.entry((sample.phase, sample.layer, sample.label)).or_default();
        time.add(OpTime { count: 1, total_ns: ns, min_ns: ns, max_ns: ns });
        if self.events.len() < MAX_EVENTS {
            self.events.push(Event { sample, start_ns, ns });
        } else {
            self.untraced += 1;
        }
    }

    pub(crate) fn add_submit(&mut self, label: &'static str, phase: Phase, started: Instant) {
        if self.submits.len() < MAX_EVENTS {
            let start_ns = started.saturating_duration_since(self.started).as_nanos() as u64;
            self.submits.push(Submit { label, phase, start_ns, ns: started.elapsed().as_nanos() as u64 });
        }
    }

    /// Where the times come from: always `timestamp`.
    pub fn source(&self) -> &'static str {
        "timestamp"
    }

    /// Every operation of every layer and phase.
    pub fn rows(&self) -> impl Iterator<Item = ProfileRow> + '_ {
        self.times.iter().map(|(&(phase, layer, label), &time)| ProfileRow { phase, layer, label, time })
    }

    /// The tree: phase, layer, operation.
    pub fn tree(&self) -> Vec<ProfileNode> {
        let mut phases: BTreeMap<Phase, BTreeMap<Option<u32>, Vec<ProfileNode>>> = BTreeMap::new();
        for r in self.rows() {
            let node = ProfileNode { name: r.label.to_string(), time: r.time, children: Vec::new() };
            phases.entry(r.phase).or_default().entry(r.layer).or_default().push(node);
        }
        let layer_name = |l: Option<u32>| l.map_or("-".to_string(), |l| l.to_string());
        phases
            .into_iter()
            .map(|(phase, layers)| {
                let layers = layers.into_iter().map(|(l, ops)| ProfileNode::above(layer_name(l), ops)).collect();
                ProfileNode::above(phase.name().to_string(), layers)
            })
            .collect()
    }

    /// A table for people: for each phase its operations over all layers, slowest first, then its layers.
    pub fn table(&self) -> String {
        let mut out = format!(
            "GPU times by timestamp queries; {} dropped, {} invalid\n{:<24}{:>9}{:>12}{:>8}{:>10}{:>10}{:>10}\n",
            self.dropped, self.invalid, "", "count", "total us", "%", "min us", "avg us", "max us"
        );
        let mut line = |name: &str, t: &OpTime, share_of: u64| {
            let us = |ns: u64| ns as f64 / 1e3;
            let share = 100.0 * t.total_ns as f64 / share_of.max(1) as f64;
            let _ = writeln!(
                out,
                "{name:<24}{:>9}{:>12.1}{:>8.1}{:>10.2}{:>10.2}{:>10.2}",
                t.count,
                us(t.total_ns),
                share,
                us(t.min_ns.min(t.max_ns)),
                us(t.avg_ns()),
                us(t.max_ns)
            );
        };
        for phase in self.tree() {
            line(&phase.name, &phase.time, phase.time.total_ns);
            let mut ops: BTreeMap<&str, OpTime> = BTreeMap::new();
            for op in phase.children.iter().flat_map(|l| &l.children) {
                ops.entry(&op.name).or_default().add(op.time);
            }
            let mut ops: Vec<_> = ops.into_iter().collect();
            ops.sort_by_key(|(_, t)| std::cmp::Reverse(t.total_ns));
            for (name, t) in &ops {
                line(&format!("  {name}"), t, phase.time.total_ns);
            }
            for layer in phase.children.iter().filter(|l| l.name != "-") {
                line(&format!("  layer {}", layer.name), &layer.time, phase.time.total_ns);
            }
        }
        out
    }

    /// The profile as JSON: rows and what was dropped.
    pub fn to_json(&self) -> Value {
        let rows: Vec<_> = self
            .rows()
            .map(|r| {
                json!({
                    "phase": r.phase.name(), "layer": r.layer, "op": r.label, "count": r.time.count,
                    "total_ns": r.time.total_ns, "min_ns": r.time.min_ns, "avg_ns": r.time.avg_ns(), "max_ns": r.time.max_ns,
                })
            })
            .collect();
        json!({
            "source": self.source(), "dropped": self.dropped, "invalid": self.invalid, "untraced": self.untraced, "rows": rows,
        })
    }

    /// The profile as a trace file in Chrome's JSON format, which Perfetto and chrome://tracing open. Process 1 is the GPU: submissions, in them
    /// layers, in them operations. Process 2 is the CPU's submit calls. The two clocks are not aligned: each starts at 0.
    pub fn trace(&self) -> String {
        let us = |ns: u64| ns as f64 / 1e3;
        let name =
            |pid: u32, text: &str| json!({"name": "process_name", "ph": "M", "pid": pid, "args": {"name": text}});
        let mut events =
            vec![name(1, "GPU (timestamp queries)"), name(2, "CPU submit calls (clock not aligned with the GPU's)")];
        let origin = self.events.iter().map(|e| e.start_ns).min().unwrap_or(0);
        let span = |name: String, cat: &str, from: u64, to: u64| {
            json!({
                "name": name, "cat": cat, "ph": "X", "pid": 1, "tid": 1, "ts": us(from - origin), "dur": us(to.saturating_sub(from)),
            })
        };
        // Spans of consecutive events that belong together, the outer ones first.
        let mut spans = |same: &dyn Fn(&Sample, &Sample) -> bool, title: &dyn Fn(&Sample) -> Option<String>| {
            for run in self.events.chunk_by(|a, b| same(&a.sample, &b.sample)) {
                let (Some(first), Some(text)) = (run.first(), run.first().and_then(|e| title(&e.sample))) else {
                    continue;
                };
                let end = run.iter().map(|e| e.start_ns + e.ns).max().unwrap_or(first.start_ns);
                events.push(span(text, first.sample.phase.name(), first.start_ns, end));
            }
        };
        spans(&|a, b| a.batch == b.batch, &|s| Some(s.phase.name().to_string()));
        spans(&|a, b| a.batch == b.batch && a.layer == b.layer, &|s| s.layer.map(|l| format!("layer {l}")));
        for e in &self.events {
            let mut op = span(e.sample.label.to_string(), e.sample.phase.name(), e.start_ns, e.start_ns + e.ns);
            if let Some(l) = e.sample.layer {
                op["args"] = json!({ "layer": l });
            }
            events.push(op);
        }
        for s in &self.submits {
            events.push(json!({
                "name": s.label, "cat": s.phase.name(), "ph": "X", "pid": 2, "tid": 1, "ts": us(s.start_ns), "dur": us(s.ns),
            }));
        }
        let meta = json!({
            "source": self.source(), "dropped": self.dropped, "invalid": self.invalid, "untraced": self.untraced,
        });
        json!({ "displayTimeUnit": "ns", "otherData": meta, "traceEvents": events }).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(layer: Option<u32>, label: &'static str) -> Sample {
        Sample { phase: Phase::Decode, layer, label, batch: 1 }
    }

    fn profile() -> Profile {
        let mut p = Profile::default();
        p.add(sample(None, "embed"), 1_000, Some(10));
        for (i, ns) in [(0, 100), (1, 300)] {
            p.add(sample(Some(i), "attn.qkv"), 2_000 + u64::from(i) * 1_000, Some(ns));
            p.add(sample(Some(i), "ffn.down"), 2_500 + u64::from(i) * 1_000, Some(50));
        }
        p.add(sample(None, "head"), 9_000, None);
        p.add(sample(None, "head"), 9_000, Some(MAX_NS + 1));
        p
    }

    #[test]
    fn the_tree_sums_its_operations() {
        let p = profile();
        assert_eq!(p.invalid, 2);
        let tree = p.tree();
        assert_eq!(tree.len(), 1);
        let t = tree[0].time;
        assert_eq!((t.count, t.total_ns, t.min_ns, t.max_ns, t.avg_ns()), (5, 510, 10, 300, 102));
        let names: Vec<_> = tree[0].children.iter().map(|l| (l.name.as_str(), l.time.total_ns)).collect();
        assert_eq!(names, [("-", 10), ("0", 150), ("1", 350)]);
        let table = p.table();
        assert!(table.contains("attn.qkv") && table.contains("layer 1") && table.contains("2 invalid"), "{table}");
        let qkv = table.lines().find(|l| l.trim_start().starts_with("attn.qkv")).unwrap();
        assert!(qkv.contains("0.10") && qkv.contains("0.20") && qkv.contains("0.30"), "{qkv}");
    }

    #[test]
    fn the_trace_is_json_whose_spans_nest() {
        let trace: Value = serde_json::from_str(&profile().trace()).unwrap();
        let events = trace["traceEvents"].as_array().unwrap();
        let find = |name: &str| events.iter().filter(|e| e["name"] == name).collect::<Vec<_>>();
        let (submission, layer, op) = (find("decode")[0], find("layer 1")[0], find("attn.qkv")[1]);
        let range = |e: &Value| (e["ts"].as_f64().unwrap(), e["ts"].as_f64().unwrap() + e["dur"].as_f64().unwrap());
        for (outer, inner) in [(submission, layer), (layer, op)] {
            assert!(range(outer).0 <= range(inner).0 && range(inner).1 <= range(outer).1, "{outer} {inner}");
        }
        assert_eq!(op["args"]["layer"], 1);
        assert_eq!(trace["otherData"]["source"], "timestamp");
    }
}
