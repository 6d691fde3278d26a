//! Transient buffers, reused only once the device is done with them.
//!
//! A [`Lease`] is a buffer on loan. Dropping it gives the buffer back together with the number of the newest submission; the pool
//! lends it again only after that submission is complete. A recorder keeps leases until it has submitted
//! ([`crate::gpu::Recorder::keep`]), so recorded but unsubmitted work never loses its buffers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::error::Result;
use crate::gpu::buffer::{Buffer, MemoryClass, Usage};
use crate::gpu::counters::Scope;
use crate::gpu::device::Gpu;
use crate::gpu::pipeline::parking::Mutex;

/// Idle buffers kept, at most; more are freed, oldest first.
const MAX_IDLE: usize = 64;

#[derive(Debug)]
struct Idle {
    buffer: Buffer,
    usage: Usage,
    /// Free once this submission is complete.
    after: u64,
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct Pool {
    idle: Mutex<Vec<Idle>>,
    /// Serial of the newest submission, kept by the queue.
    pub(crate) submitted: AtomicU64,
    leased: AtomicU64,
    reuses: AtomicU64,
    misses: AtomicU64,
}

/// What the pool holds and did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Buffers on loan; anything but 0 when the context is destroyed is a leak.
    pub leased: u64,
    /// Buffers waiting for reuse.
    pub idle: u64,
    /// Bytes waiting for reuse.
    pub idle_bytes: u64,
    /// Requests answered with an old buffer.
    pub reuses: u64,
    /// Requests that made a new buffer.
    pub misses: u64,
}

/// A pooled buffer on loan; at least as large as asked for.
#[derive(Debug)]
pub struct Lease {
    buffer: Buffer,
    usage: Usage,
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
        self.pool.leased.fetch_sub(1, Relaxed);
        let after = self.pool.submitted.load(Relaxed);
        let mut idle = self.pool.idle.lock();
        idle.push(Idle { buffer: self.buffer.clone(), usage: self.usage, after });
        if idle.len() > MAX_IDLE {
            idle.remove(0);
        }
    }
}

impl Pool {
    /// What the pool holds and did.
    pub fn stats(&self) -> PoolStats {
        let idle = self.idle.lock();
        PoolStats {
            leased: self.leased.load(Relaxed),
            idle: idle.len() as u64,
            idle_bytes: idle.iter().map(|i| i.buffer.size()).sum(),
            reuses: self.reuses.load(Relaxed),
            misses: self.misses.load(Relaxed),
        }
    }

    /// Frees all idle buffers, and says how many bytes that were.
    pub fn trim(&self) -> u64 {
        let mut idle = self.idle.lock();
        idle.drain(..).map(|i| i.buffer.size()).sum()
    }

    /// Lends a buffer of at least `size` bytes.
    pub(crate) fn acquire(self: &Arc<Self>, gpu: &Gpu, size: u64, usage: Usage, scope: &Scope) -> Result<Lease> {
        // Powers of two, so that sizes that differ a little share buffers.
        let size = size.max(256).next_power_of_two();
        let completed = gpu.completed();
        let found = {
            let mut idle = self.idle.lock();
            let i = idle.iter().position(|i| i.usage == usage && i.buffer.size() == size && i.after <= completed);
            i.map(|i| idle.remove(i).buffer)
        };
        let buffer = match found {
            Some(b) => {
                self.reuses.fetch_add(1, Relaxed);
                b
            }
            None => {
                self.misses.fetch_add(1, Relaxed);
                let class = if usage == Usage::Readback { MemoryClass::Staging } else { MemoryClass::Other };
                gpu.create_buffer("pooled", size, class, usage, scope)?
            }
        };
        self.leased.fetch_add(1, Relaxed);
        Ok(Lease { buffer, usage, pool: self.clone() })
    }
}
