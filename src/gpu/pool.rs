//! Transient buffers, reused only once the device is done with them.
//!
//! A [`Lease`] is a buffer on loan. Dropping it gives the buffer back together with the number of the newest submission; the pool
//! lends it again only after that submission is complete. A recorder keeps leases until it has submitted
//! ([`crate::gpu::Recorder::keep`]), so recorded but unsubmitted work never loses its buffers. Idle buffers are freed when they are too many, and
//! when the memory budget is nearly used up.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::gpu::buffer::{Buffer, MemoryClass, Usage};
use crate::gpu::counters::Scope;
use crate::gpu::device::Gpu;
use crate::gpu::sync::Mutex;

/// Idle buffers kept, at most; more are freed, oldest first.
const MAX_IDLE: usize = 64;

#[derive(Debug)]
struct Idle {
    buffer: Buffer,
    usage: Usage,
    /// Free once this submission is complete.
    after: u64,
}

#[derive(Debug, Default)]
struct State {
    idle: Vec<Idle>,
    labels: BTreeMap<&'static str, PoolLabelStats>,
    stats: PoolStats,
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct Pool {
    state: Mutex<State>,
    /// Serial of the newest submission, kept by the queue.
    pub(crate) submitted: std::sync::atomic::AtomicU64,
}

/// What the pool holds and did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Buffers on loan; anything but 0 when the context is destroyed is a leak.
    pub leased: u64,
    /// Bytes on loan.
    pub leased_bytes: u64,
    /// Most bytes ever on loan.
    pub peak_leased_bytes: u64,
    /// Bytes asked for by the leases there are: the rest of `leased_bytes` is slack.
    pub requested_bytes: u64,
    /// Buffers waiting for reuse.
    pub idle: u64,
    /// Bytes waiting for reuse.
    pub idle_bytes: u64,
    /// Requests answered with an old buffer.
    pub reuses: u64,
    /// Requests that made a new buffer.
    pub misses: u64,
    /// Idle buffers freed.
    pub trimmed: u64,
}

impl PoolStats {
    /// Share of requests that were answered with an old buffer.
    pub fn hit_rate(&self) -> f64 {
        self.reuses as f64 / (self.reuses + self.misses).max(1) as f64
    }
}

/// The leases made under one label.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolLabelStats {
    /// On loan now.
    pub leased: u64,
    /// Bytes of those.
    pub leased_bytes: u64,
    /// Leases so far.
    pub requests: u64,
}

/// What is on loan under one label when nothing should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leak {
    /// What the buffers were leased for.
    pub label: &'static str,
    /// How many.
    pub buffers: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A pooled buffer on loan; at least as large as asked for. Its contents are whatever its last user left.
#[derive(Debug)]
pub struct Lease {
    buffer: Buffer,
    usage: Usage,
    label: &'static str,
    requested: u64,
    pool: Arc<Pool>,
}

impl Lease {
    /// The buffer.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let after = self.pool.submitted.load(std::sync::atomic::Ordering::Relaxed);
        let bytes = self.buffer.size();
        let mut s = self.pool.state.lock();
        s.stats.leased -= 1;
        s.stats.leased_bytes -= bytes;
        s.stats.requested_bytes -= self.requested;
        if let Some(l) = s.labels.get_mut(self.label) {
            l.leased -= 1;
            l.leased_bytes -= bytes;
        }
        s.idle.push(Idle { buffer: self.buffer.clone(), usage: self.usage, after });
        if s.idle.len() > MAX_IDLE {
            s.idle.remove(0);
            s.stats.trimmed += 1;
        }
    }
}

impl Pool {
    /// What the pool holds and did.
    pub fn stats(&self) -> PoolStats {
        let s = self.state.lock();
        let idle_bytes = s.idle.iter().map(|i| i.buffer.size()).sum();
        PoolStats { idle: s.idle.len() as u64, idle_bytes, ..s.stats }
    }

    /// The leases by label.
    pub fn labels(&self) -> Vec<(&'static str, PoolLabelStats)> {
        self.state.lock().labels.iter().map(|(&l, &s)| (l, s)).collect()
    }

    /// What is on loan: at the end of a context this is what leaked.
    pub fn leaks(&self) -> Vec<Leak> {
        let labels = self.labels();
        let on_loan = labels.into_iter().filter(|(_, s)| s.leased > 0);
        on_loan.map(|(label, s)| Leak { label, buffers: s.leased, bytes: s.leased_bytes }).collect()
    }

    /// Frees all idle buffers, and says how many bytes that were. Those that the device still uses live until it is done.
    pub fn trim(&self) -> u64 {
        let mut s = self.state.lock();
        s.stats.trimmed += s.idle.len() as u64;
        s.idle.drain(..).map(|i| i.buffer.size()).sum()
    }

    /// Lends a buffer of at least `size` bytes.
    pub(crate) fn acquire(
        self: &Arc<Self>,
        gpu: &Gpu,
        requested: u64,
        usage: Usage,
        label: &'static str,
        scope: &Scope,
    ) -> Result<Lease> {
        // Powers of two, so that sizes that differ a little share buffers; exact where there is no room for that.
        let exact = requested.max(256).next_multiple_of(4);
        let round = exact.checked_next_power_of_two().unwrap_or(exact);
        let completed = gpu.completed();
        let found = {
            let mut s = self.state.lock();
            let fits =
                |i: &Idle| i.usage == usage && (exact..=round).contains(&i.buffer.size()) && i.after <= completed;
            s.idle.iter().position(fits).map(|i| s.idle.remove(i).buffer)
        };
        let reused = found.is_some();
        let buffer = match found {
            Some(b) => b,
            None => {
                let class = if usage == Usage::Readback { MemoryClass::Staging } else { MemoryClass::Other };
                match gpu.create_buffer("pooled", round, class, usage, scope) {
                    Err(Error::OutOfMemory(_)) if round > exact => {
                        gpu.create_buffer("pooled", exact, class, usage, scope)?
                    }
                    made => made?,
                }
            }
        };
        let size = buffer.size();
        let mut s = self.state.lock();
        if reused {
            s.stats.reuses += 1;
        } else {
            s.stats.misses += 1;
        }
        s.stats.leased += 1;
        s.stats.leased_bytes += size;
        s.stats.requested_bytes += requested;
        s.stats.peak_leased_bytes = s.stats.peak_leased_bytes.max(s.stats.leased_bytes);
        let l = s.labels.entry(label).or_default();
        l.requests += 1;
        l.leased += 1;
        l.leased_bytes += size;
        Ok(Lease { buffer, usage, label, requested, pool: self.clone() })
    }
}
