//! How fast the device moves a large buffer: what the bandwidth of kernels and models is measured against.
//!
//! Measured in two ways, of which the faster counts: the driver's copy command (which some drivers run on a slow engine) and a kernel that reads
//! one buffer and writes the other.

use std::time::Instant;

use doppler::Error;
use doppler::gpu::{Buffer, MemoryClass, Phase};
use doppler::kernels::residual;
use doppler::session::Context;
use serde_json::{Value, json};

use super::super::outcome::Outcome;
use super::stats;

/// Bytes of the pattern that the buffer is filled with: zeros might be copied faster than data.
const PATTERN: u64 = 1 << 20;
/// A timed submit takes at least this long, so that what submitting costs does not matter and the clock is up.
const LEAST_SECONDS: f64 = 0.1;

/// Traffic within the device's memory.
pub(super) struct CopySpeed {
    buffer_bytes: u64,
    /// Bytes read and bytes written, added up, a second: the median of the faster way's samples.
    pub(super) bytes_per_s: f64,
    /// The faster way.
    by: &'static str,
    /// Samples of each way.
    samples: Vec<(&'static str, Vec<f64>)>,
}

impl CopySpeed {
    pub(super) fn as_json(&self) -> Value {
        json!({
            "buffer_bytes": self.buffer_bytes, "counts": "bytes read and bytes written",
            "bytes_per_s": self.bytes_per_s, "by": self.by,
            "samples": self.samples.iter().map(|(name, s)| (name.to_string(), json!(s))).collect::<serde_json::Map<_, _>>(),
        })
    }
}

/// Two buffers as large as there is room for, the first filled.
fn buffers(context: &Context) -> Outcome<(Buffer, Buffer)> {
    let gpu = context.gpu();
    let scope = gpu.scope(Phase::Other);
    // Larger than any cache of the device.
    let mut size = if gpu.adapter().is_software() { 32 << 20 } else { 512u64 << 20 };
    size = size.min(gpu.max_binding_bytes());
    let make = |size| {
        let source = gpu.storage("copy.source", size, MemoryClass::Other, &scope)?;
        Ok((source, gpu.storage("copy.target", size, MemoryClass::Other, &scope)?))
    };
    let (source, target) = loop {
        match make(size) {
            Ok(pair) => break pair,
            Err(Error::OutOfMemory(_)) if size > PATTERN => size /= 2,
            Err(e) => return Err(e.into()),
        }
    };
    let mut state = 1u32;
    let mut word = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state
    };
    let pattern: Vec<u32> = (0..PATTERN.min(size) / 4).map(|_| word()).collect();
    let bytes: &[u8] = bytemuck::cast_slice(&pattern);
    for offset in (0..size / PATTERN.min(size)).map(|i| i * PATTERN) {
        gpu.upload(source.slice(offset, bytes.len() as u64), bytes, &scope)?;
    }
    gpu.flush(&scope)?;
    Ok((source, target))
}

/// Measures the copy speed; takes a second or so. Wall time from submit to fence.
pub(super) fn copy_speed(context: &Context) -> Outcome<CopySpeed> {
    let (source, target) = buffers(context)?;
    let gpu = context.gpu();
    let scope = gpu.scope(Phase::Other);
    let elements = (source.size() / 4).min(u64::from(u32::MAX)) as u32;
    let ways = ["copy command", "kernel"];
    let bytes = 2 * source.size();
    let mut samples = Vec::new();
    for (way, name) in ways.into_iter().enumerate() {
        let seconds = |times: u64| -> Outcome<f64> {
            let mut recorder = gpu.recorder("copy", &scope);
            for _ in 0..times {
                match way {
                    0 => recorder.copy(source.whole(), target.whole())?,
                    // Both summands are the source: it is read once.
                    _ => recorder.record(residual(elements, source.whole(), source.whole(), target.whole(), 0.0)?)?,
                }
            }
            let started = Instant::now();
            let submission = recorder.submit()?;
            gpu.wait(&submission)?;
            Ok(started.elapsed().as_secs_f64())
        };
        let mut times = 1;
        while seconds(times)? < LEAST_SECONDS && times < 1 << 16 {
            times *= 2;
        }
        let moved = (bytes * times) as f64;
        samples.push((name, (0..3).map(|_| Ok(moved / seconds(times)?)).collect::<Outcome<Vec<_>>>()?));
    }
    let medians = samples.iter().map(|(name, s)| (*name, stats::median(s.iter().copied())));
    let (by, bytes_per_s) = medians.max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or_default();
    Ok(CopySpeed { buffer_bytes: source.size(), bytes_per_s, by, samples })
}

/// `12.3 GB/s`.
pub(super) fn in_gb(bytes_per_s: f64) -> String {
    format!("{:.1} GB/s", bytes_per_s / 1e9)
}
