//! Recording: dispatches and copies collected, then encoded and submitted at once, or frozen into a [`Plan`].
//!
//! A [`Recorder`] holds resolved commands (pipeline, bind group, grid); nothing reaches the driver before
//! [`Recorder::submit`], which consumes it, so a recorder cannot be used after submitting and dropping one frees everything.
//! Consecutive dispatches share one compute pass. A [`Plan`] is the same list kept: replaying it resolves and allocates nothing.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use crate::error::{Result, bail};
use crate::gpu::buffer::{Buffer, BufferSlice, MemoryClass, Usage};
use crate::gpu::chain::{Chain, Held};
use crate::gpu::counters::Scope;
use crate::gpu::device::Gpu;
use crate::gpu::encode::{Encoder, params_group};
use crate::gpu::fault::FaultPoint;
use crate::gpu::kernel::{Dispatch, Grid, MAX_PARAMS};
use crate::gpu::pipeline::{Pipeline, Wanted};
use crate::gpu::pool::Lease;
use crate::gpu::sync::Mutex;

/// Distance of parameter structures in a uniform buffer: the largest alignment an adapter may ask for.
pub(crate) const PARAMS_STRIDE: usize = 256;

/// The number of a submission: later ones are larger, and [`Gpu::completed`] says up to which the device is done.
#[derive(Debug, Clone)]
pub struct Submission {
    pub(crate) serial: u64,
    pub(crate) index: wgpu::SubmissionIndex,
    pub(crate) at: Instant,
}

impl Submission {
    /// Its serial number, counted from 1.
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// Since when the device has it.
    pub fn at(&self) -> Instant {
        self.at
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Resolved {
    pub(crate) pipeline: Arc<Pipeline>,
    pub(crate) group: wgpu::BindGroup,
    pub(crate) params: Range<usize>,
    pub(crate) grid: Grid,
    pub(crate) label: &'static str,
    pub(crate) layer: Option<u32>,
}

#[derive(Debug)]
pub(crate) struct Copy {
    pub(crate) source: Buffer,
    pub(crate) source_offset: u64,
    pub(crate) target: Buffer,
    pub(crate) target_offset: u64,
    pub(crate) size: u64,
}

#[derive(Debug)]
pub(crate) enum Command {
    Dispatch(Resolved),
    Copy(Copy),
    Clear(Buffer, Range<u64>),
    Replay(Arc<Plan>),
}

/// Frozen commands, replayed with [`Recorder::replay`].
#[derive(Debug)]
pub struct Plan {
    pub(crate) commands: Vec<Command>,
    pub(crate) params: Vec<u8>,
    /// Where immediates are missing: the parameters on the device, and their bind group.
    pub(crate) uniforms: Option<(Buffer, wgpu::BindGroup)>,
}

impl Plan {
    /// Dispatches in one replay.
    pub fn dispatches(&self) -> u64 {
        self.commands.iter().filter(|c| matches!(c, Command::Dispatch(_))).count() as u64
    }
}

/// Bind groups by what they bind, for one owner of buffers (a model): building a plan for another batch size makes no new
/// groups. It keeps its buffers alive, so it lives and dies with their owner.
#[derive(Debug, Default)]
pub struct BindGroupCache {
    groups: Mutex<HashMap<GroupKey, wgpu::BindGroup>>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct GroupKey {
    layout: u64,
    slices: Vec<(u64, u64, u64)>,
}

impl BindGroupCache {
    /// Forgets all groups: call it before the buffers they name are replaced.
    pub fn clear(&self) {
        self.groups.lock().clear();
    }
}

/// See the module's text.
#[derive(Debug)]
pub struct Recorder<'g> {
    gpu: &'g Gpu,
    label: &'static str,
    scope: Scope,
    groups: Option<&'g BindGroupCache>,
    commands: Vec<Command>,
    params: Vec<u8>,
    leases: Vec<Lease>,
    layer: Option<u32>,
    /// Present: dispatches are held back ([`Self::hold`]).
    held: Option<Vec<Held>>,
    /// Present: pipelines are not looked up but listed.
    survey: Option<Vec<Wanted>>,
    started: Instant,
}

/// What a recorder holds so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecorderStats {
    /// Dispatches, those of replayed plans included.
    pub dispatches: u64,
    /// Compute passes that they will make (one a dispatch while a profile is taken).
    pub passes: u64,
    /// Copies.
    pub copies: u64,
    /// Fills with zeros.
    pub clears: u64,
    /// Plans replayed.
    pub replays: u64,
    /// Bytes of parameters recorded here.
    pub params_bytes: u64,
    /// Pooled buffers kept until the submit.
    pub leases: u64,
}

impl RecorderStats {
    /// Counts commands; `open` tells whether a pass is open before, and after.
    fn count(&mut self, commands: &[Command], each: bool, open: &mut bool) {
        for c in commands {
            match c {
                Command::Dispatch(_) => {
                    self.dispatches += 1;
                    self.passes += u64::from(each || !*open);
                    *open = true;
                }
                Command::Copy(_) => {
                    self.copies += 1;
                    *open = false;
                }
                Command::Clear(..) => {
                    self.clears += 1;
                    *open = false;
                }
                Command::Replay(plan) => {
                    self.replays += 1;
                    self.count(&plan.commands, each, open);
                }
            }
        }
    }
}

impl<'g> Recorder<'g> {
    pub(crate) fn new(gpu: &'g Gpu, label: &'static str, scope: &Scope) -> Self {
        Self {
            gpu,
            label,
            scope: scope.clone(),
            groups: None,
            commands: Vec::new(),
            params: Vec::new(),
            leases: Vec::new(),
            layer: None,
            held: None,
            survey: None,
            started: Instant::now(),
        }
    }

    /// A recorder that compiles and keeps nothing: what is recorded only names the pipelines that it would need, for [`Gpu::compile`].
    pub(crate) fn survey(gpu: &'g Gpu, scope: &Scope) -> Self {
        Self { survey: Some(Vec::new()), ..Self::new(gpu, "survey", scope) }
    }

    /// The pipelines that a [`Gpu::survey`] found to be needed, each as often as it was recorded.
    pub fn into_survey(self) -> Vec<Wanted> {
        self.survey.unwrap_or_default()
    }

    /// What is recorded so far.
    pub fn stats(&self) -> RecorderStats {
        let mut s = RecorderStats {
            params_bytes: self.params.len() as u64,
            leases: self.leases.len() as u64,
            ..Default::default()
        };
        let each = self.gpu.profiler().is_some_and(|p| p.detailed());
        s.count(&self.commands, each, &mut false);
        s
    }

    /// The layer that what follows belongs to, for profiles and probes; `None` outside the layers.
    pub fn set_layer(&mut self, layer: Option<u32>) {
        self.layer = layer;
    }

    /// Takes bind groups from `cache`, and leaves new ones there.
    #[must_use]
    pub fn with_groups(mut self, cache: &'g BindGroupCache) -> Self {
        self.groups = Some(cache);
        self
    }

    /// The device this records for.
    pub fn gpu(&self) -> &'g Gpu {
        self.gpu
    }

    /// Whom the work is charged to.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Keeps a pooled buffer leased until this work is submitted.
    pub fn keep(&mut self, lease: Lease) {
        self.leases.push(lease);
    }

    /// Appends a dispatch. A grid without workgroups appends nothing.
    ///
    /// # Errors
    /// [`crate::Error::Gpu`] if its pipeline does not compile; [`crate::Error::Internal`] if bindings and shader disagree or a range exceeds
    /// what the adapter can bind.
    pub fn record(&mut self, d: Dispatch<'_>) -> Result<()> {
        if let Grid::Direct(g) = d.grid
            && g.contains(&0)
        {
            return Ok(());
        }
        if let Some(held) = &mut self.held {
            held.push(Held::new(&d, self.layer));
            return Ok(());
        }
        if let Some(list) = &mut self.survey {
            list.push(Wanted::Kernel(d.kernel, d.variant));
            return Ok(());
        }
        self.gpu.fault(FaultPoint::Record)?;
        let pipeline = self.gpu.pipelines().get(self.gpu, d.kernel, &d.variant, &self.scope)?;
        self.push(d, pipeline)
    }

    /// Holds back the dispatches that follow, until [`Self::take_held`]. Nothing else is recorded meanwhile.
    pub fn hold(&mut self) {
        self.held = Some(Vec::new());
    }

    /// True between [`Self::hold`] and [`Self::take_held`].
    pub fn holds(&self) -> bool {
        self.held.is_some()
    }

    /// What was held back; recording goes on as before.
    pub fn take_held(&mut self) -> Vec<Held> {
        self.held.take().unwrap_or_default()
    }

    /// Records what was held back as it was.
    ///
    /// # Errors
    /// As [`Self::record`].
    pub(crate) fn record_held(&mut self, held: &[Held]) -> Result<()> {
        let layer = self.layer;
        let each = |h: &Held| {
            self.layer = h.layer;
            self.record(h.dispatch())
        };
        let outcome = held.iter().try_for_each(each);
        self.layer = layer;
        outcome
    }

    /// Appends a chain, as one dispatch. `tag` is 1 to 255, and no other chain has it from one clearing of the words that it passes on to the next.
    ///
    /// # Errors
    /// As [`Self::record`].
    pub(crate) fn record_chain(&mut self, label: &'static str, chain: Chain, tag: u8) -> Result<()> {
        let (Some(groups), Some(first)) = (chain.groups(), chain.stages.first()) else {
            bail!(Internal, "{label}: a chain of no known size");
        };
        if let Some(list) = &mut self.survey {
            list.push(Wanted::Chain(Box::new(chain)));
            return Ok(());
        }
        self.gpu.fault(FaultPoint::Record)?;
        let pipeline = self.gpu.pipelines().get_chain(self.gpu, &chain, &self.scope)?;
        let d = Dispatch {
            kernel: first.held.kernel,
            label,
            variant: Default::default(),
            bindings: chain.stages.iter().flat_map(|s| s.held.slices()).collect(),
            params: (u32::from(tag) << 24).to_ne_bytes().to_vec(),
            grid: Grid::Direct([groups, 1, 1]),
        };
        self.push(d, pipeline)
    }

    fn push(&mut self, d: Dispatch<'_>, pipeline: Arc<Pipeline>) -> Result<()> {
        self.check_bindings(&d, &pipeline)?;
        let group = self.bind_group(&d, &pipeline);
        let start = self.params.len();
        self.params.extend_from_slice(&d.params);
        let params = start..self.params.len();
        self.params.resize(self.params.len().next_multiple_of(PARAMS_STRIDE), 0);
        let (label, layer) = (d.label, self.layer);
        self.commands.push(Command::Dispatch(Resolved { pipeline, group, params, grid: d.grid, label, layer }));
        Ok(())
    }

    /// Fails while dispatches are held back: something else would come before them, or they would be lost.
    fn check_order(&self) -> Result<()> {
        match &self.held {
            Some(held) => bail!(Internal, "{} dispatches of {} are held back", held.len(), self.label),
            None => Ok(()),
        }
    }

    fn check_bindings(&self, d: &Dispatch<'_>, pipeline: &Pipeline) -> Result<()> {
        let same = d.bindings.len() == pipeline.bindings.len()
            && d.bindings.iter().zip(&pipeline.bindings).all(|(a, b)| a.0 == b.name);
        if !same || d.params.len() > MAX_PARAMS || pipeline.has_params == d.params.is_empty() {
            let given: Vec<_> = d.bindings.iter().map(|b| b.0).collect();
            let wanted: Vec<_> = pipeline.bindings.iter().map(|b| b.name.as_str()).collect();
            bail!(
                Internal,
                "dispatch of {} binds {given:?} with {} parameter bytes, its shader wants {wanted:?}",
                d.kernel.name,
                d.params.len()
            );
        }
        let (limit, align) = (self.gpu.max_binding_bytes(), self.gpu.binding_align());
        for (name, s) in &d.bindings {
            // Size 0 would mean the rest of the buffer to wgpu.
            if s.size == 0 || s.size > limit || !s.offset.is_multiple_of(align) || !s.fits() {
                bail!(
                    Internal,
                    "dispatch of {}: {name} binds bytes {}+{} of \"{}\" ({} bytes); the adapter binds up to {limit} from a multiple of {align} on",
                    d.kernel.name,
                    s.offset,
                    s.size,
                    s.buffer.label(),
                    s.buffer.size()
                );
            }
        }
        Ok(())
    }

    fn bind_group(&self, d: &Dispatch<'_>, pipeline: &Pipeline) -> wgpu::BindGroup {
        let make = || {
            let entries: Vec<_> = d
                .bindings
                .iter()
                .enumerate()
                .map(|(i, (_, s))| wgpu::BindGroupEntry {
                    binding: i as u32,
                    resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                        buffer: s.buffer.raw(),
                        offset: s.offset,
                        size: std::num::NonZeroU64::new(s.size),
                    }),
                })
                .collect();
            self.scope.bind_group_created();
            self.gpu.device().create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(d.label),
                layout: &pipeline.layout.raw,
                entries: &entries,
            })
        };
        let Some(cache) = self.groups else { return make() };
        let slices = d.bindings.iter().map(|(_, s)| (s.buffer.id(), s.offset, s.size)).collect();
        let key = GroupKey { layout: pipeline.layout.id, slices };
        cache.groups.lock().entry(key).or_insert_with(make).clone()
    }

    /// Appends a copy between two ranges of one length, a multiple of 4 bytes.
    ///
    /// # Errors
    /// [`crate::Error::Internal`] if the ranges differ in length, are not aligned to 4 bytes or reach past their buffers.
    pub fn copy(&mut self, source: BufferSlice<'_>, target: BufferSlice<'_>) -> Result<()> {
        let aligned = [source.offset, source.size, target.offset].iter().all(|n| n.is_multiple_of(4));
        if source.size != target.size || !aligned || !source.fits() || !target.fits() {
            bail!(
                Internal,
                "copy of bytes {}+{} of \"{}\" to {}+{} of \"{}\"",
                source.offset,
                source.size,
                source.buffer.label(),
                target.offset,
                target.size,
                target.buffer.label()
            );
        }
        self.gpu.fault(FaultPoint::Record)?;
        self.check_order()?;
        self.commands.push(Command::Copy(Copy {
            source: source.buffer.clone(),
            source_offset: source.offset,
            target: target.buffer.clone(),
            target_offset: target.offset,
            size: source.size,
        }));
        Ok(())
    }

    /// Appends a fill with zeros.
    ///
    /// # Errors
    /// [`crate::Error::Internal`] if the range is not aligned to 4 bytes or reaches past its buffer.
    pub fn clear(&mut self, slice: BufferSlice<'_>) -> Result<()> {
        if !slice.fits() || !slice.offset.is_multiple_of(4) || !slice.size.is_multiple_of(4) {
            bail!(Internal, "clearing bytes {}+{} of \"{}\"", slice.offset, slice.size, slice.buffer.label());
        }
        self.gpu.fault(FaultPoint::Record)?;
        self.check_order()?;
        self.commands.push(Command::Clear(slice.buffer.clone(), slice.offset..slice.offset + slice.size));
        Ok(())
    }

    /// Appends a plan's commands.
    pub fn replay(&mut self, plan: &Arc<Plan>) {
        self.commands.push(Command::Replay(plan.clone()));
    }

    /// Freezes what was recorded.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`] if there is no room for the parameters.
    pub fn into_plan(self) -> Result<Plan> {
        self.check_order()?;
        let uniforms = match self.gpu.pipelines().params_layout() {
            Some(layout) if !self.params.is_empty() => {
                let size = self.params.len() as u64;
                let b =
                    self.gpu.create_buffer("plan.params", size, MemoryClass::Scratch, Usage::Uniform, &self.scope)?;
                self.gpu.upload(b.whole(), &self.params, &self.scope)?;
                let group = params_group(self.gpu, layout, &b, &self.scope);
                Some((b, group))
            }
            _ => None,
        };
        self.scope.recorded(self.started.elapsed().as_nanos() as u64);
        Ok(Plan { commands: self.commands, params: self.params, uniforms })
    }

    /// Throws the recording away, but keeps what it made: its bind groups stay in the cache, and the ring of parameters has room for as many.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`].
    pub fn rehearse(self) -> Result<()> {
        self.check_order()?;
        match self.gpu.pipelines().params_layout() {
            Some(layout) => {
                let wanted = self.params.len() as u64;
                self.gpu.params_ring().lock().reserve(self.gpu, layout, wanted, &self.scope).map(drop)
            }
            None => Ok(()),
        }
    }

    /// Encodes and submits everything.
    ///
    /// # Errors
    /// [`crate::Error::DeviceLost`], [`crate::Error::OutOfMemory`] or [`crate::Error::Gpu`].
    pub fn submit(self) -> Result<Submission> {
        self.check_order()?;
        self.gpu.check()?;
        self.gpu.fault(FaultPoint::Submit)?;
        // The ring of parameters is one buffer: held from writing to submitting, so that two threads cannot mix theirs.
        let mut ring = self.gpu.params_ring().lock();
        let uniforms = match self.gpu.pipelines().params_layout() {
            Some(layout) if !self.params.is_empty() => Some(ring.write(self.gpu, layout, &self.params, &self.scope)?),
            _ => None,
        };
        let errors = self.gpu.device().push_error_scope(wgpu::ErrorFilter::Validation);
        let (gpu, scope) = (self.gpu, self.scope.clone());
        let submission = self.encoded(uniforms.as_ref()).hand_over(gpu, &scope);
        drop(ring);
        if let Some(e) = pollster::block_on(errors.pop()) {
            bail!(Gpu, "submit {}: {e}", submission.1);
        }
        gpu.check()?;
        Ok(submission.0)
    }

    /// Encodes everything, to be submitted later: the work of a submit that can be done while the device is busy with another. For replayed
    /// plans, copies and fills; own dispatches only where the device has immediates, since the ring of parameters is written at the submit.
    ///
    /// # Errors
    /// [`crate::Error::Gpu`] for commands that do not encode; [`crate::Error::Internal`] for parameters that need the ring.
    pub fn encode(self) -> Result<Encoded> {
        self.check_order()?;
        if self.gpu.pipelines().params_layout().is_some() && !self.params.is_empty() {
            bail!(Internal, "{}: dispatches with parameters in a ring cannot be encoded ahead", self.label);
        }
        let errors = self.gpu.device().push_error_scope(wgpu::ErrorFilter::Validation);
        let label = self.label;
        let encoded = self.encoded(None);
        match pollster::block_on(errors.pop()) {
            Some(e) => bail!(Gpu, "encode {label}: {e}"),
            None => Ok(encoded),
        }
    }

    fn encoded(self, uniforms: Option<&wgpu::BindGroup>) -> Encoded {
        let mut encoder = Encoder::new(self.gpu, self.label, &self.scope);
        encoder.commands(&self.commands, &self.params, uniforms);
        let (buffer, dispatches, passes) = encoder.finish();
        self.scope.recorded(self.started.elapsed().as_nanos() as u64);
        Encoded { buffer, label: self.label, dispatches, passes, leases: self.leases }
    }
}

/// Commands that the driver has, not yet submitted. Dropping them submits nothing.
#[derive(Debug)]
pub struct Encoded {
    buffer: wgpu::CommandBuffer,
    label: &'static str,
    dispatches: u64,
    passes: u64,
    leases: Vec<Lease>,
}

impl Encoded {
    /// Submits them, charged to `scope`.
    ///
    /// # Errors
    /// As [`Recorder::submit`].
    pub fn submit(self, gpu: &Gpu, scope: &Scope) -> Result<Submission> {
        gpu.check()?;
        gpu.fault(FaultPoint::Submit)?;
        let errors = gpu.device().push_error_scope(wgpu::ErrorFilter::Validation);
        let (submission, label) = self.hand_over(gpu, scope);
        if let Some(e) = pollster::block_on(errors.pop()) {
            bail!(Gpu, "submit {label}: {e}");
        }
        gpu.check()?;
        Ok(submission)
    }

    fn hand_over(self, gpu: &Gpu, scope: &Scope) -> (Submission, &'static str) {
        let submitting = Instant::now();
        let submission = gpu.queue().submit(self.buffer, self.label, scope, self.dispatches, self.passes);
        if let Some(p) = gpu.profiler() {
            p.submitted(self.label, scope.phase, submitting);
        }
        drop(self.leases);
        (submission, self.label)
    }
}
