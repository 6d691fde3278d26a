//! Statistics as text for people: what `--verbose` prints and C gets from `doppler_…_get_summary`.

use std::fmt::Write;

use crate::gpu::{
    Budget, CounterSnapshot, Guard, GuardMode, MemoryClass, Phase, PhaseSnapshot, Place, PoolLabelStats, ReadbackClass,
    SubmitStats,
};
use crate::model::{KvStats, KvType, RecurrentStats};
use crate::session::stats::{ContextStats, ModelStats, SessionStats};

fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

/// The counters by phase, one row a counter.
fn phases(out: &mut String, c: &CounterSnapshot, gpu_timed: bool) {
    type Field = fn(&PhaseSnapshot) -> String;
    let rows: [(&str, Field); 12] = [
        ("submits", |p| p.submits.to_string()),
        ("dispatches", |p| p.dispatches.to_string()),
        ("passes", |p| p.passes.to_string()),
        ("record CPU ms", |p| format!("{:.2}", ms(p.record_cpu_ns))),
        ("submit CPU ms", |p| format!("{:.2}", ms(p.submit_cpu_ns))),
        ("buffers created", |p| p.buffers.to_string()),
        ("  their bytes", |p| p.buffer_bytes.to_string()),
        ("bind groups", |p| p.bind_groups.to_string()),
        ("pipelines", |p| p.pipelines.to_string()),
        ("  their CPU ms", |p| format!("{:.1}", ms(p.pipeline_ns))),
        ("uploads", |p| p.uploads.to_string()),
        ("  their bytes", |p| p.upload_bytes.to_string()),
    ];
    let _ = write!(out, "{:<16}", "");
    Phase::ALL.iter().for_each(|p| out.push_str(&format!("{:>14}", p.name())));
    out.push('\n');
    let mut row = |name: &str, field: &dyn Fn(&PhaseSnapshot) -> String| {
        let _ = write!(out, "{name:<16}");
        Phase::ALL.iter().for_each(|&p| out.push_str(&format!("{:>14}", field(c.phase(p)))));
        out.push('\n');
    };
    for (name, field) in rows {
        row(name, &field);
    }
    // Classes that were never read back have no row.
    for class in ReadbackClass::ALL {
        let i = class as usize;
        if Phase::ALL.iter().any(|&p| c.phase(p).readbacks[i] > 0) {
            row(&format!("{} reads", class.name()), &|p| p.readbacks[i].to_string());
            row("  their bytes", &|p| p.readback_bytes[i].to_string());
        }
    }
    row("GPU ms", &|p| if gpu_timed { format!("{:.2}", ms(p.gpu_ns)) } else { "-".to_string() });
}

fn submits(out: &mut String, list: &[SubmitStats]) {
    let us = |ns: u64| ns as f64 / 1e3;
    for s in list {
        let _ = writeln!(
            out,
            "submits {}.{}: {} with {} dispatches; CPU us each: avg {:.1}, min {:.1}, max {:.1}",
            s.phase.name(),
            s.label,
            s.submits,
            s.dispatches,
            us(s.avg_ns()),
            us(s.min_ns),
            us(s.max_ns)
        );
    }
}

/// How long submit calls took, by powers of two.
fn histogram(out: &mut String, c: &CounterSnapshot) {
    let calls = c.submit_histogram.iter().enumerate().filter(|(_, n)| **n > 0);
    let list: Vec<_> = calls.map(|(i, n)| format!("{n} below {:.1}", 2f64.powi(i as i32 + 1) / 1e3)).collect();
    if !list.is_empty() {
        let _ = writeln!(out, "submit calls by CPU us: {}", list.join(", "));
    }
}

fn guard(out: &mut String, g: &Guard) {
    let mode = match g.mode {
        GuardMode::Off => "off",
        GuardMode::Warn => "warn",
        GuardMode::Strict => "strict",
    };
    let budget = |b: &Budget| {
        let limit = |n: u64| if n == Budget::UNLIMITED { "any".to_string() } else { n.to_string() };
        format!(
            "{} submits, {} readbacks, {} bytes read back a token, {} buffers, {} bind groups, {} pipelines",
            limit(b.submits),
            limit(b.readbacks),
            limit(b.readback_bytes_per_token),
            limit(b.buffers),
            limit(b.bind_groups),
            limit(b.pipelines)
        )
    };
    let _ = writeln!(
        out,
        "guard {mode}; a decode batch may cost {}; a prompt chunk {}",
        budget(&g.decode),
        budget(&g.prefill)
    );
}

fn leases(out: &mut String, labels: &[(&'static str, PoolLabelStats)]) {
    for (label, l) in labels.iter().filter(|(_, l)| l.requests > 0) {
        let _ = writeln!(out, "  {label}: {} requests, {} on loan ({} bytes)", l.requests, l.leased, l.leased_bytes);
    }
}

fn places(out: &mut String, c: &CounterSnapshot) {
    for place in Place::ALL {
        let p = &c.places[place as usize];
        if p.readbacks + p.refused > 0 {
            let _ = writeln!(
                out,
                "readbacks at {}: {} of {} bytes, {} refused",
                place.name(),
                p.readbacks,
                p.bytes,
                p.refused
            );
        }
    }
}

impl ContextStats {
    /// Everything as a text of some lines.
    pub fn summary(&self) -> String {
        let mut out = String::new();
        phases(&mut out, &self.counters, self.gpu_timed);
        submits(&mut out, &self.submits);
        histogram(&mut out, &self.counters);
        places(&mut out, &self.counters);
        guard(&mut out, &self.guard);
        if self.gpu_times_dropped > 0 {
            let _ = writeln!(out, "{} passes were not timed", self.gpu_times_dropped);
        }
        let m = &self.memory;
        let classes: Vec<_> =
            MemoryClass::ALL.iter().map(|&c| format!("{} {}", c.name(), m.current[c as usize])).collect();
        let budget = if m.budget == 0 { "no budget".to_string() } else { format!("budget {}", m.budget) };
        let _ = writeln!(
            out,
            "device memory: {} bytes in {} buffers, {} at most, {budget} ({})",
            m.total,
            m.live_buffers,
            m.peak,
            classes.join(", ")
        );
        let p = &self.pipelines;
        let kept = match (p.blob_bytes, p.blob_rejected) {
            (_, true) => "; the kept file was refused".to_string(),
            (0, false) => String::new(),
            (n, false) => format!("; {n} bytes kept by an earlier process"),
        };
        let _ = writeln!(
            out,
            "pipelines: {} of {} modules and {} layouts, {} hits, {} misses, {:.1} ms compiling{kept}",
            p.pipelines,
            p.modules,
            p.pipeline_layouts,
            p.hits,
            p.misses,
            ms(p.compile_ns)
        );
        let p = &self.pool;
        let _ = writeln!(
            out,
            "pool: {} leased ({} bytes, {} at most), {} idle ({} bytes), hit rate {:.0} %, {} trimmed",
            p.leased,
            p.leased_bytes,
            p.peak_leased_bytes,
            p.idle,
            p.idle_bytes,
            p.hit_rate() * 100.0,
            p.trimmed
        );
        leases(&mut out, &self.pool_labels);
        out
    }
}

impl SessionStats {
    /// Everything as a text of some lines.
    pub fn summary(&self) -> String {
        let mut out = String::new();
        let rate = |n: u64, ns: u64| if ns == 0 { 0.0 } else { n as f64 * 1e9 / ns as f64 };
        let _ = writeln!(
            out,
            "first token {:.1} ms; prompt {} tokens at {:.1} tok/s, then {} tokens at {:.1} tok/s; {} tokens in the session",
            ms(self.first_token_ns),
            self.prefill_tokens,
            rate(self.prefill_tokens, self.prefill_ns),
            self.decode_tokens,
            rate(self.decode_tokens, self.decode_ns),
            self.tokens
        );
        let s = &self.speculation;
        if s.verifications > 0 {
            let _ = writeln!(
                out,
                "drafts: {} of {} tokens accepted ({:.0} %) in {} verifications, {:.2} each; {:.1} ms of drafting",
                s.accepted,
                s.drafted,
                s.acceptance() * 100.0,
                s.verifications,
                s.mean_accepted(),
                ms(s.draft_ns)
            );
        }
        phases(&mut out, &self.counters, self.gpu_timed);
        submits(&mut out, &self.submits);
        histogram(&mut out, &self.counters);
        places(&mut out, &self.counters);
        guard(&mut out, &self.guard);
        for per_submit in [4, 16] {
            let s = self.counters.phase(Phase::Decode).batching_saving(self.decode_tokens, per_submit);
            if s.submits > 0 {
                let _ = writeln!(
                    out,
                    "{per_submit} tokens a submit would have saved {} submits and {:.2} ms of CPU in submitting",
                    s.submits,
                    ms(s.submit_cpu_ns)
                );
            }
        }
        out
    }
}

impl RecurrentStats {
    /// What recurrent states take, as a line; nothing where there are none.
    pub fn summary(&self) -> String {
        if self.layers == 0 {
            return String::new();
        }
        format!(
            "recurrent states: {} layers, {} of {} places of {} bytes in use, {} at most, {} bytes in all\n",
            self.layers, self.used, self.places, self.place_bytes, self.high_water, self.bytes
        )
    }
}

impl KvStats {
    /// What the cache holds, a line for each group of layers.
    pub fn summary(&self, kv_type: KvType) -> String {
        let mut out = String::new();
        let _ = writeln!(
            out,
            "KV cache ({}): {} of {} bytes in use, blocks of {} tokens, {} shared, {} copied",
            kv_type.name(),
            self.used_bytes,
            self.bytes,
            self.block_tokens,
            self.shared,
            self.copies
        );
        for g in &self.groups {
            let window = if g.window == 0 { "all tokens".to_string() } else { format!("a window of {}", g.window) };
            let _ = writeln!(
                out,
                "  {} layers that see {window}: {} of {} blocks of {} bytes in use, {} at most",
                g.layers, g.used, g.blocks, g.block_bytes, g.high_water
            );
        }
        out
    }
}

impl ModelStats {
    /// Where the time of loading went, in a few lines.
    pub fn load_summary(&self) -> String {
        let (l, w, up) = (&self.load, &self.load.weights, &self.load.weights.upload);
        format!(
            "loaded in {:.0} ms: file opened {:.0}, {} bytes of weights {:.0} ({:.2} GB/s); beside them vocabulary {:.0}, buffers {:.0}, pipelines {:.0}\n\
             weights on {} threads, CPU ms of all: repack {:.0}, write {:.0}; the loading thread's: submit {:.0}, wait for the device {:.0}\n",
            ms(self.load_ns),
            ms(l.open_ns),
            self.file_bytes,
            ms(w.fill_ns),
            self.file_bytes as f64 / w.fill_ns.max(1) as f64,
            ms(l.vocabulary_ns),
            ms(w.allocate_ns),
            ms(w.prewarm_ns),
            up.threads,
            ms(up.repack_ns),
            ms(up.write_ns),
            ms(up.submit_ns),
            ms(up.wait_ns),
        )
    }
}
