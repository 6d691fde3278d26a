//! Counters and times as tables and as JSON.

use doppler::gpu::{CounterSnapshot, MemoryClass, MemorySnapshot, Phase, PhaseSnapshot, ReadbackClass};
use doppler::session::{KvStats, KvType, ModelStats, RecurrentStats, SessionStats};
use serde_json::{Map, Value, json};

/// Milliseconds.
pub(super) fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

/// Things a second; `None` where nothing was timed.
pub(super) fn rate(n: u64, ns: u64) -> Option<f64> {
    (n > 0 && ns > 0).then(|| n as f64 * 1e9 / ns as f64)
}

fn by_class<T: Copy>(all: &[T], name: impl Fn(T) -> &'static str, value: impl Fn(usize) -> u64) -> Value {
    let object: Map<_, _> = all.iter().enumerate().map(|(i, &c)| (name(c).to_string(), value(i).into())).collect();
    object.into()
}

/// One phase's counters.
pub(super) fn phase_json(p: &PhaseSnapshot, gpu_timed: bool) -> Value {
    json!({
        "submits": p.submits, "dispatches": p.dispatches, "passes": p.passes,
        "buffers": p.buffers, "buffer_bytes": p.buffer_bytes, "bind_groups": p.bind_groups,
        "pipelines": p.pipelines, "pipeline_ms": ms(p.pipeline_ns),
        "uploads": p.uploads, "upload_bytes": p.upload_bytes,
        "submit_cpu_ms": ms(p.submit_cpu_ns), "submit_cpu_max_ms": ms(p.submit_cpu_max_ns),
        "record_cpu_ms": ms(p.record_cpu_ns),
        "gpu_ms": gpu_timed.then(|| ms(p.gpu_ns)), "gpu_time_source": gpu_time_source(gpu_timed),
        "readbacks": by_class(&ReadbackClass::ALL, ReadbackClass::name, |i| p.readbacks[i]),
        "readback_bytes": by_class(&ReadbackClass::ALL, ReadbackClass::name, |i| p.readback_bytes[i]),
    })
}

/// Where GPU times come from; a CPU clock is never called one.
pub(super) fn gpu_time_source(gpu_timed: bool) -> &'static str {
    if gpu_timed { "timestamp" } else { "none" }
}

/// All phases' counters.
pub(super) fn counters_json(c: &CounterSnapshot, gpu_timed: bool) -> Value {
    let object: Map<_, _> =
        Phase::ALL.iter().map(|&p| (p.name().to_string(), phase_json(c.phase(p), gpu_timed))).collect();
    object.into()
}

/// Device memory by class.
pub(super) fn memory_json(m: &MemorySnapshot) -> Value {
    json!({
        "total": m.total, "peak": m.peak, "live_buffers": m.live_buffers,
        "by_class": by_class(&MemoryClass::ALL, MemoryClass::name, |i| m.current[i]),
    })
}

/// A session's times.
pub(super) fn timings_json(s: &SessionStats, load_ns: u64) -> Value {
    json!({
        "load_ms": ms(load_ns),
        "prefill_tokens": s.prefill_tokens, "prefill_ms": ms(s.prefill_ns),
        "prefill_tokens_per_s": rate(s.prefill_tokens, s.prefill_ns),
        "first_token_ms": ms(s.first_token_ns), "generated_tokens": s.generated_tokens,
        "decode_tokens": s.decode_tokens, "decode_ms": ms(s.decode_ns),
        "decode_tokens_per_s": rate(s.decode_tokens, s.decode_ns),
    })
}

/// Where the time of loading went.
pub(super) fn load_json(s: &ModelStats) -> Value {
    let (l, w, up) = (&s.load, &s.load.weights, &s.load.weights.upload);
    json!({
        "load_ms": ms(s.load_ns), "weight_bytes": s.file_bytes, "open_ms": ms(l.open_ns), "allocate_ms": ms(w.allocate_ns),
        "fill_ms": ms(w.fill_ns), "fill_bytes_per_s": rate(s.file_bytes, w.fill_ns),
        "vocabulary_ms": ms(l.vocabulary_ns), "prewarm_ms": ms(w.prewarm_ns), "threads": up.threads,
        "repack_cpu_ms": ms(up.repack_ns), "write_cpu_ms": ms(up.write_ns), "submit_ms": ms(up.submit_ns),
        "wait_ms": ms(up.wait_ns),
    })
}

/// What the attention cache holds.
pub(super) fn kv_json(kv: &KvStats, kv_type: KvType) -> Value {
    let group = |g: &doppler::session::KvGroupStats| {
        json!({
            "window": g.window, "layers": g.layers, "blocks": g.blocks, "used": g.used, "high_water": g.high_water,
            "shared": g.shared, "block_bytes": g.block_bytes,
        })
    };
    json!({
        "type": kv_type.name(), "block_tokens": kv.block_tokens, "block_bytes": kv.block_bytes, "blocks": kv.blocks,
        "used": kv.used, "high_water": kv.high_water, "shared": kv.shared, "copies": kv.copies,
        "bytes": kv.bytes, "used_bytes": kv.used_bytes, "groups": kv.groups.iter().map(group).collect::<Vec<_>>(),
    })
}

/// What recurrent states take.
pub(super) fn recurrent_json(r: &RecurrentStats) -> Value {
    json!({
        "layers": r.layers, "places": r.places, "used": r.used, "high_water": r.high_water,
        "place_bytes": r.place_bytes, "bytes": r.bytes,
    })
}
