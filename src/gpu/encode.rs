//! Encoding: recorded commands become a command buffer; and where their parameters stand if there are no immediates.

use crate::error::{Result, bail};
use crate::gpu::buffer::{Buffer, MemoryClass, Usage};
use crate::gpu::counters::Scope;
use crate::gpu::device::Gpu;
use crate::gpu::kernel::Grid;
use crate::gpu::recorder::{Command, PARAMS_STRIDE, Resolved};

/// The bind group of one parameter structure at a dynamic offset.
pub(crate) fn params_group(
    gpu: &Gpu,
    layout: &wgpu::BindGroupLayout,
    buffer: &Buffer,
    scope: &Scope,
) -> wgpu::BindGroup {
    scope.bind_group_created();
    gpu.device().create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some("params"),
        layout,
        entries: &[wgpu::BindGroupEntry {
            binding: 0,
            resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer: buffer.raw(),
                offset: 0,
                size: std::num::NonZeroU64::new(PARAMS_STRIDE as u64),
            }),
        }],
    })
}

/// The uniform buffer that one submission's parameters are written to where immediates are missing.
#[derive(Debug, Default)]
pub(crate) struct ParamsRing {
    buffer: Option<(Buffer, wgpu::BindGroup)>,
}

impl ParamsRing {
    /// Makes room for a submission with so many bytes of parameters.
    pub(crate) fn reserve(
        &mut self,
        gpu: &Gpu,
        layout: &wgpu::BindGroupLayout,
        wanted: u64,
        scope: &Scope,
    ) -> Result<&(Buffer, wgpu::BindGroup)> {
        if self.buffer.as_ref().is_none_or(|(b, _)| b.size() < wanted) {
            let size = wanted.next_power_of_two().max(64 << 10);
            let b = gpu.create_buffer("params", size, MemoryClass::Other, Usage::Uniform, scope)?;
            let group = params_group(gpu, layout, &b, scope);
            self.buffer = Some((b, group));
        }
        match &self.buffer {
            Some(b) => Ok(b),
            None => bail!(Internal, "no parameter ring"),
        }
    }

    /// Writes one submission's parameters; the ring grows to hold them.
    pub(crate) fn write(
        &mut self,
        gpu: &Gpu,
        layout: &wgpu::BindGroupLayout,
        params: &[u8],
        scope: &Scope,
    ) -> Result<wgpu::BindGroup> {
        let wanted = params.len() as u64;
        let (buffer, group) = self.reserve(gpu, layout, wanted, scope)?;
        gpu.upload(buffer.slice(0, wanted), params, scope)?;
        Ok(group.clone())
    }
}

/// Turns commands into a command buffer.
pub(crate) struct Encoder<'a> {
    gpu: &'a Gpu,
    scope: &'a Scope,
    encoder: wgpu::CommandEncoder,
    pass: Option<wgpu::ComputePass<'static>>,
    dispatches: u64,
    passes: u64,
    /// A pass for each dispatch, so that each is timed.
    each: bool,
}

impl<'a> Encoder<'a> {
    pub(crate) fn new(gpu: &'a Gpu, label: &'static str, scope: &'a Scope) -> Self {
        let encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some(label) });
        let each = gpu.profiler().is_some_and(|p| {
            p.begin_batch();
            p.detailed()
        });
        Self { gpu, scope, encoder, pass: None, dispatches: 0, passes: 0, each }
    }

    pub(crate) fn commands(&mut self, commands: &[Command], params: &[u8], uniforms: Option<&wgpu::BindGroup>) {
        for command in commands {
            match command {
                Command::Dispatch(d) => self.dispatch(d, params, uniforms),
                Command::Copy(c) => {
                    self.pass = None;
                    self.encoder.copy_buffer_to_buffer(
                        c.source.raw(),
                        c.source_offset,
                        c.target.raw(),
                        c.target_offset,
                        c.size,
                    );
                }
                Command::Clear(b, range) => {
                    self.pass = None;
                    self.encoder.clear_buffer(b.raw(), range.start, Some(range.end - range.start));
                }
                Command::Replay(plan) => {
                    self.commands(&plan.commands, &plan.params, plan.uniforms.as_ref().map(|u| &u.1));
                }
            }
        }
    }

    fn dispatch(&mut self, d: &Resolved, params: &[u8], uniforms: Option<&wgpu::BindGroup>) {
        if self.each || self.pass.is_none() {
            self.pass = None;
            self.passes += 1;
            let timed = self.gpu.profiler().and_then(|p| p.next_pass(self.gpu.device(), self.scope, d.label, d.layer));
            let writes = timed.as_ref().map(|q| wgpu::ComputePassTimestampWrites {
                query_set: &q.set,
                beginning_of_pass_write_index: Some(q.first),
                end_of_pass_write_index: Some(q.first + 1),
            });
            let descriptor = wgpu::ComputePassDescriptor { label: None, timestamp_writes: writes };
            self.pass = Some(self.encoder.begin_compute_pass(&descriptor).forget_lifetime());
        }
        let Some(pass) = &mut self.pass else { return };
        pass.set_pipeline(&d.pipeline.raw);
        pass.set_bind_group(0, &d.group, &[]);
        if d.pipeline.has_params {
            match uniforms {
                Some(group) => pass.set_bind_group(1, group, &[d.params.start as u32]),
                None => pass.set_immediates(0, params.get(d.params.clone()).unwrap_or_default()),
            }
        }
        match &d.grid {
            Grid::Direct([x, y, z]) => pass.dispatch_workgroups(*x, *y, *z),
            Grid::Indirect(buffer, offset) => pass.dispatch_workgroups_indirect(buffer.raw(), *offset),
        }
        self.dispatches += 1;
    }

    /// The command buffer, and how many dispatches and passes stand in it.
    pub(crate) fn finish(mut self) -> (wgpu::CommandBuffer, u64, u64) {
        self.pass = None;
        (self.encoder.finish(), self.dispatches, self.passes)
    }
}
