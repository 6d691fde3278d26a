//! GPU times of compute passes, by timestamp queries.
//!
//! Each pass gets a pair of queries from a fixed set; when the set is used up, or times are asked for, the pairs are resolved
//! and read in one go (a readback of class `profile`, charged to the phase `other`), and each duration is added to the scope that the pass
//! was charged to. Passes beyond the set go untimed and are counted.

use crate::error::Result;
use crate::gpu::buffer::{MemoryClass, Usage};
use crate::gpu::counters::{Phase, ReadbackClass, Scope};
use crate::gpu::device::Gpu;
use crate::gpu::pipeline::parking::Mutex;

const PAIRS: u32 = 512;

#[derive(Debug)]
pub(crate) struct Timer {
    set: wgpu::QuerySet,
    nanoseconds_per_tick: f32,
    pending: Mutex<Pending>,
}

#[derive(Debug, Default)]
struct Pending {
    scopes: Vec<Scope>,
    dropped: u64,
}

impl Timer {
    pub(crate) fn new(device: &wgpu::Device, nanoseconds_per_tick: f32) -> Self {
        let set = device.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("pass times"),
            ty: wgpu::QueryType::Timestamp,
            count: PAIRS * 2,
        });
        Self { set, nanoseconds_per_tick, pending: Mutex::default() }
    }

    /// The query pair of the next pass, or nothing if all are in use.
    pub(crate) fn next_pass(&self, scope: &Scope) -> Option<(wgpu::QuerySet, u32)> {
        let mut p = self.pending.lock();
        if p.scopes.len() as u32 >= PAIRS {
            p.dropped += 1;
            return None;
        }
        p.scopes.push(scope.clone());
        Some((self.set.clone(), (p.scopes.len() as u32 - 1) * 2))
    }

    /// True when the set is nearly used up: the owner collects between submissions, not inside one.
    pub(crate) fn nearly_full(&self) -> bool {
        self.pending.lock().scopes.len() as u32 > PAIRS * 3 / 4
    }

    /// Reads all pending pairs.
    pub(crate) fn collect(&self, gpu: &Gpu) -> Result<()> {
        let mut pending = self.pending.lock();
        if pending.scopes.is_empty() {
            return Ok(());
        }
        // Before anything is taken: a refusal keeps the times for later.
        gpu.guard().gate(ReadbackClass::Profile, "pass times")?;
        let scopes = std::mem::take(&mut pending.scopes);
        if pending.dropped > 0 {
            log::warn!("{} passes were not timed: the query set was full", pending.dropped);
            pending.dropped = 0;
        }
        let other = gpu.scope(Phase::Other);
        let bytes = scopes.len() as u64 * 16;
        let resolved = gpu.create_buffer("pass times", bytes, MemoryClass::Other, Usage::Queries, &other)?;
        let staging = gpu.lease_readback(bytes, &other)?;
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        encoder.resolve_query_set(&self.set, 0..scopes.len() as u32 * 2, resolved.raw(), 0);
        encoder.copy_buffer_to_buffer(resolved.raw(), 0, staging.buffer().raw(), 0, bytes);
        let submission = gpu.queue().submit(encoder.finish(), &other, 0, 0);
        let mut out = vec![0; bytes as usize];
        gpu.read_staging(staging.buffer(), &submission, &mut out, ReadbackClass::Profile, &other)?;
        let ticks: Vec<u64> = out.chunks_exact(8).map(bytemuck::pod_read_unaligned).collect();
        for (scope, pair) in scopes.iter().zip(ticks.chunks_exact(2)) {
            let elapsed = pair[1].saturating_sub(pair[0]);
            scope.gpu_time((elapsed as f64 * f64::from(self.nanoseconds_per_tick)) as u64);
        }
        Ok(())
    }
}
