//! Buffers that are counted, named by class, and given back.
//!
//! Every byte on the device is charged to a [`MemoryClass`] of the context's [`Memory`] account while its buffer lives,
//! weights and KV cache included; a budget refuses a buffer before it is made.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::error::{Result, bail};

/// What a buffer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MemoryClass {
    /// Model weights and tables derived from them.
    Weights,
    /// Keys and values of the attention cache, and its tables.
    Kv,
    /// Activations, planned once for a model and batch size.
    Scratch,
    /// Host-visible buffers for readback, and for weights while they are loaded.
    Staging,
    /// Everything else.
    Other,
}

impl MemoryClass {
    /// All classes, in the order of [`MemorySnapshot::current`].
    pub const ALL: [MemoryClass; 5] =
        [MemoryClass::Weights, MemoryClass::Kv, MemoryClass::Scratch, MemoryClass::Staging, MemoryClass::Other];

    /// Lower-case name.
    pub fn name(self) -> &'static str {
        ["weights", "kv", "scratch", "staging", "other"][self as usize]
    }
}

/// Bytes on the device, by class, and their budget.
#[derive(Debug, Default)]
pub struct Memory {
    current: [AtomicU64; 5],
    total: AtomicU64,
    peak: AtomicU64,
    live_buffers: AtomicU64,
    /// 0 = no budget.
    budget: u64,
}

/// [`Memory`] at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemorySnapshot {
    /// Bytes now, by [`MemoryClass`].
    pub current: [u64; 5],
    /// All classes together.
    pub total: u64,
    /// Highest total so far.
    pub peak: u64,
    /// Buffers alive.
    pub live_buffers: u64,
    /// Most bytes there may be; 0 = no limit.
    pub budget: u64,
}

impl Memory {
    pub(crate) fn new(budget: u64) -> Self {
        Self { budget, ..Default::default() }
    }

    /// The present values.
    pub fn snapshot(&self) -> MemorySnapshot {
        MemorySnapshot {
            current: std::array::from_fn(|i| self.current[i].load(Relaxed)),
            total: self.total.load(Relaxed),
            peak: self.peak.load(Relaxed),
            live_buffers: self.live_buffers.load(Relaxed),
            budget: self.budget,
        }
    }

    /// True if `bytes` more would pass nine tenths of the budget: time to free what nobody uses.
    pub(crate) fn strained_by(&self, bytes: u64) -> bool {
        self.budget != 0 && self.total.load(Relaxed).saturating_add(bytes) > self.budget / 10 * 9
    }

    /// Charges `bytes`, or refuses them.
    fn charge(self: &Arc<Self>, class: MemoryClass, bytes: u64, label: &str) -> Result<Charge> {
        let total = self.total.fetch_add(bytes, Relaxed) + bytes;
        if self.budget != 0 && total > self.budget {
            self.total.fetch_sub(bytes, Relaxed);
            bail!(
                OutOfMemory,
                "buffer \"{label}\" of {bytes} bytes would bring the device memory to {total} bytes, the budget is {}",
                self.budget
            );
        }
        self.current[class as usize].fetch_add(bytes, Relaxed);
        self.live_buffers.fetch_add(1, Relaxed);
        self.peak.fetch_max(total, Relaxed);
        Ok(Charge { memory: self.clone(), class, bytes })
    }
}

/// The account's entry of one buffer; dropping it takes the bytes off.
#[derive(Debug)]
struct Charge {
    memory: Arc<Memory>,
    class: MemoryClass,
    bytes: u64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.memory.current[self.class as usize].fetch_sub(self.bytes, Relaxed);
        self.memory.total.fetch_sub(self.bytes, Relaxed);
        self.memory.live_buffers.fetch_sub(1, Relaxed);
    }
}

#[derive(Debug)]
struct Inner {
    raw: wgpu::Buffer,
    id: u64,
    size: u64,
    label: String,
    _charge: Charge,
}

/// A device buffer; clones share it, the last one frees it (the driver keeps it until submitted work is done).
#[derive(Debug, Clone)]
pub struct Buffer(Arc<Inner>);

/// How a buffer may be used, beside being bound and copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Usage {
    /// Storage, copy source and destination.
    Storage,
    /// Uniform and copy destination: parameters where immediates are missing.
    Uniform,
    /// Storage, copies, and arguments of indirect dispatches.
    Indirect,
    /// Copy destination that the host maps to read.
    Readback,
    /// Copy source that the host maps to write; made mapped.
    Upload,
    /// Destination of resolved timestamp queries.
    Queries,
}

impl Usage {
    fn bits(self) -> wgpu::BufferUsages {
        use wgpu::BufferUsages as U;
        match self {
            Usage::Storage => U::STORAGE | U::COPY_SRC | U::COPY_DST,
            Usage::Uniform => U::UNIFORM | U::COPY_DST,
            Usage::Indirect => U::STORAGE | U::COPY_SRC | U::COPY_DST | U::INDIRECT,
            Usage::Readback => U::MAP_READ | U::COPY_DST,
            Usage::Upload => U::MAP_WRITE | U::COPY_SRC,
            Usage::Queries => U::QUERY_RESOLVE | U::COPY_SRC,
        }
    }
}

impl Buffer {
    /// Makes a buffer; its size is rounded up to 4 bytes. Called by the device only, which counts it.
    pub(crate) fn create(
        device: &wgpu::Device,
        memory: &Arc<Memory>,
        label: &str,
        size: u64,
        class: MemoryClass,
        usage: Usage,
    ) -> Result<Self> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let size = size.max(4).next_multiple_of(4);
        let limit = device.limits().max_buffer_size;
        if size > limit {
            bail!(OutOfMemory, "buffer \"{label}\" of {size} bytes: the adapter's largest buffer is {limit} bytes");
        }
        let charge = memory.charge(class, size, label)?;
        let oom = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let invalid = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let raw = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size,
            usage: usage.bits(),
            mapped_at_creation: usage == Usage::Upload,
        });
        let invalid = pollster::block_on(invalid.pop());
        if pollster::block_on(oom.pop()).is_some() {
            bail!(OutOfMemory, "the device has no room for buffer \"{label}\" of {size} bytes");
        }
        if let Some(e) = invalid {
            bail!(Gpu, "buffer \"{label}\" of {size} bytes: {e}");
        }
        let id = NEXT_ID.fetch_add(1, Relaxed);
        Ok(Self(Arc::new(Inner { raw, id, size, label: label.to_string(), _charge: charge })))
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.0.size
    }

    /// The name it was made with.
    pub fn label(&self) -> &str {
        &self.0.label
    }

    pub(crate) fn raw(&self) -> &wgpu::Buffer {
        &self.0.raw
    }

    /// A number that no other buffer of this process has.
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// The bytes `offset .. offset + size`.
    pub fn slice(&self, offset: u64, size: u64) -> BufferSlice<'_> {
        BufferSlice { buffer: self, offset, size }
    }

    /// All of it.
    pub fn whole(&self) -> BufferSlice<'_> {
        self.slice(0, self.size())
    }
}

/// A range of a buffer, as a kernel's binding. Offsets must respect the adapter's alignment (256 always does).
#[derive(Debug, Clone, Copy)]
pub struct BufferSlice<'a> {
    /// The buffer.
    pub buffer: &'a Buffer,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

impl BufferSlice<'_> {
    /// True if the range lies inside its buffer.
    pub(crate) fn fits(&self) -> bool {
        self.offset.checked_add(self.size).is_some_and(|end| end <= self.buffer.size())
    }
}

impl<'a> From<&'a Buffer> for BufferSlice<'a> {
    fn from(buffer: &'a Buffer) -> Self {
        buffer.whole()
    }
}
