//! How fast the device copies a large buffer: what the bandwidth of kernels and models is measured against.

use std::time::Instant;

use doppler::Error;
use doppler::gpu::{Buffer, MemoryClass, Phase};
use doppler::session::Context;
use serde_json::{Value, json};

use super::super::outcome::Outcome;
use super::stats;

/// Bytes of the pattern that the buffer is filled with: zeros might be copied faster than data.
const PATTERN: u64 = 1 << 20;
/// A timed submit takes at least this long, so that what submitting costs does not matter and the clock is up.
const LEAST_SECONDS: f64 = 0.1;

/// Copies within the device's memory.
pub(super) struct CopySpeed {
    buffer_bytes: u64,
    /// Bytes read and bytes written, added up, a second: the median of the samples.
    pub(super) bytes_per_s: f64,
    samples: Vec<f64>,
}

impl CopySpeed {
    pub(super) fn as_json(&self) -> Value {
        json!({
            "buffer_bytes": self.buffer_bytes, "counts": "bytes read and bytes written",
            "bytes_per_s": self.bytes_per_s, "samples": self.samples,
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

/// Measures the copy speed; takes some hundred milliseconds. Wall time from submit to fence.
pub(super) fn copy_speed(context: &Context) -> Outcome<CopySpeed> {
    let (source, target) = buffers(context)?;
    let gpu = context.gpu();
    let scope = gpu.scope(Phase::Other);
    let seconds = |copies: u64| -> Outcome<f64> {
        let mut recorder = gpu.recorder("copy", &scope);
        for _ in 0..copies {
            recorder.copy(source.whole(), target.whole())?;
        }
        let started = Instant::now();
        let submission = recorder.submit()?;
        gpu.wait(&submission)?;
        Ok(started.elapsed().as_secs_f64())
    };
    let mut copies = 1;
    while seconds(copies)? < LEAST_SECONDS && copies < 1 << 16 {
        copies *= 2;
    }
    let moved = (2 * source.size() * copies) as f64;
    let samples = (0..3).map(|_| Ok(moved / seconds(copies)?)).collect::<Outcome<Vec<_>>>()?;
    let bytes_per_s = stats::median(samples.iter().copied());
    Ok(CopySpeed { buffer_bytes: source.size(), bytes_per_s, samples })
}

/// `12.3 GB/s`.
pub(super) fn in_gb(bytes_per_s: f64) -> String {
    format!("{:.1} GB/s", bytes_per_s / 1e9)
}
