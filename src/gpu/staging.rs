//! Bulk data on its way to the device: a ring of mapped buffers that any thread fills and one thread hands over.
//!
//! [`Gpu::upload`] takes a fresh staging buffer from the driver for each call. Weights go through the same few buffers again and again instead:
//! a slot is mapped, written (in order: the memory may be write-combining), handed over with the copies that are to be made of it, and mapped
//! again when the device has made them.

use std::collections::{HashMap, VecDeque};
use std::sync::mpsc::{Receiver, Sender, channel};

use crate::error::{Error, Result, bail};
use crate::gpu::buffer::{Buffer, BufferSlice, MemoryClass, Usage};
use crate::gpu::counters::Scope;
use crate::gpu::device::Gpu;
use crate::gpu::fault::FaultPoint;
use crate::gpu::recorder::Submission;

/// A mapped buffer of a [`StagingRing`]. It may be sent to another thread to be written.
#[derive(Debug)]
pub struct StagingSlot {
    view: wgpu::BufferViewMut,
    buffer: Buffer,
}

impl StagingSlot {
    /// Writes `bytes` at `offset`.
    ///
    /// # Errors
    /// [`Error::Internal`] if they do not fit.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let end = offset.checked_add(bytes.len() as u64).filter(|&end| end <= self.buffer.size());
        let Some(end) = end else {
            bail!(Internal, "{} bytes at {offset} of a slot of {}", bytes.len(), self.buffer.size());
        };
        self.view.slice(offset as usize..end as usize).copy_from_slice(bytes);
        Ok(())
    }
}

/// What is to become of a range of a slot.
#[derive(Debug)]
pub struct StagedCopy {
    /// First byte in the slot.
    pub from: u64,
    /// Bytes.
    pub size: u64,
    /// Where they go.
    pub target: Buffer,
    /// First byte there.
    pub offset: u64,
}

/// The number of a buffer, and whether it could be mapped.
type Mapped = (u64, bool);

/// See the module's text. Dropping it gives the buffers back; those in use live until the device is done.
#[derive(Debug)]
pub struct StagingRing<'g> {
    gpu: &'g Gpu,
    scope: Scope,
    slot_bytes: u64,
    most: usize,
    made: usize,
    free: Vec<StagingSlot>,
    /// Handed over; their mapping was asked for.
    busy: HashMap<u64, Buffer>,
    submitted: VecDeque<Submission>,
    mapped: (Sender<Mapped>, Receiver<Mapped>),
}

impl<'g> StagingRing<'g> {
    /// A ring of at most `most` slots of `slot_bytes` each, made when they are needed.
    pub fn new(gpu: &'g Gpu, scope: &Scope, slot_bytes: u64, most: usize) -> Self {
        Self {
            gpu,
            scope: scope.clone(),
            slot_bytes,
            most,
            made: 0,
            free: Vec::new(),
            busy: HashMap::new(),
            submitted: VecDeque::new(),
            mapped: channel(),
        }
    }

    /// A slot of at least `size` bytes, if one is free or can be made.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::DeviceLost`], [`Error::Gpu`].
    pub fn take(&mut self, size: u64) -> Result<Option<StagingSlot>> {
        if self.free.is_empty() && !self.busy.is_empty() {
            self.harvest()?;
        }
        while let Some(slot) = self.free.pop() {
            if slot.buffer.size() >= size {
                return Ok(Some(slot));
            }
            self.made -= 1;
        }
        if self.made >= self.most {
            return Ok(None);
        }
        let size = size.max(self.slot_bytes);
        match self.gpu.create_buffer("upload", size, MemoryClass::Staging, Usage::Upload, &self.scope) {
            // Where memory is short, fewer slots do.
            Err(Error::OutOfMemory(_)) if self.made > 0 => {
                self.most = self.made;
                Ok(None)
            }
            Err(e) => Err(e),
            Ok(buffer) => {
                self.made += 1;
                view(buffer).map(Some)
            }
        }
    }

    /// Submits the copies of slots that are written. In this order, if ranges overlap.
    ///
    /// # Errors
    /// As [`crate::gpu::Recorder::submit`].
    pub fn submit(&mut self, filled: Vec<(StagingSlot, Vec<StagedCopy>)>) -> Result<()> {
        let mut recorder = self.gpu.recorder("staging", &self.scope);
        let mut buffers = Vec::with_capacity(filled.len());
        for (StagingSlot { view, buffer }, copies) in filled {
            drop(view);
            buffer.raw().unmap();
            self.scope.uploaded(copies.iter().map(|c| c.size).sum());
            for c in &copies {
                let target = BufferSlice { buffer: &c.target, offset: c.offset, size: c.size };
                recorder.copy(buffer.slice(c.from, c.size), target)?;
            }
            buffers.push(buffer);
        }
        self.submitted.push_back(recorder.submit()?);
        for buffer in buffers {
            self.gpu.fault(FaultPoint::Map)?;
            // The number alone: a callback that holds its own buffer would keep it alive.
            let (sender, id) = (self.mapped.0.clone(), buffer.id());
            let answer = move |outcome: std::result::Result<(), _>| _ = sender.send((id, outcome.is_ok()));
            buffer.raw().map_async(wgpu::MapMode::Write, .., answer);
            self.busy.insert(id, buffer);
        }
        Ok(())
    }

    /// Takes what the device has given back.
    fn harvest(&mut self) -> Result<()> {
        let completed = self.gpu.completed();
        while self.submitted.front().is_some_and(|s| s.serial() <= completed) {
            self.submitted.pop_front();
        }
        while let Ok((id, ok)) = self.mapped.1.try_recv() {
            let Some(buffer) = self.busy.remove(&id) else { continue };
            if !ok {
                self.gpu.check()?;
                bail!(Gpu, "mapping \"{}\" for writing failed", buffer.label());
            }
            self.free.push(view(buffer)?);
        }
        Ok(())
    }

    /// Waits for the oldest submission that is not complete, if there is one.
    ///
    /// # Errors
    /// As [`Gpu::wait`].
    pub fn wait(&mut self) -> Result<()> {
        match self.submitted.pop_front() {
            Some(oldest) => self.gpu.wait(&oldest)?,
            // Complete, but another thread's poll may not have made the callback yet.
            None => std::thread::yield_now(),
        }
        self.gpu.check()?;
        self.harvest()
    }
}

fn view(buffer: Buffer) -> Result<StagingSlot> {
    match buffer.raw().get_mapped_range_mut(..) {
        Ok(view) => Ok(StagingSlot { view, buffer }),
        Err(e) => Err(Error::Gpu(format!("mapped range of \"{}\": {e}", buffer.label()))),
    }
}
