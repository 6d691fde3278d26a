//! Plans that the device itself can leave out: their dispatches take their workgroups from a buffer, and do nothing where those are zeros.

use crate::gpu::buffer::Buffer;
use crate::gpu::device::Gpu;
use crate::gpu::kernel::Grid;
use crate::gpu::recorder::{Command, Plan, Resolved};

/// Different grids that a switched plan may have: its buffer holds twelve bytes for each.
pub const SWITCH_GRIDS: usize = 128;

impl Plan {
    /// The same commands with the grids of their dispatches in `live`, and what these are: who writes them there, or zeros, decides whether a replay does
    /// anything. `None` for plans that do more than dispatch, that have grids in a buffer already (grouped mixtures of many rows), or too many
    /// different ones; and where shaders are not told the size of a grid that comes from a buffer (D3D12, without wgpu's validating dispatches).
    pub fn switched(&self, gpu: &Gpu, live: &Buffer) -> Option<(Plan, Vec<[u32; 3]>)> {
        if gpu.adapter().backend == wgpu::Backend::Dx12.to_str() {
            return None;
        }
        let mut grids: Vec<[u32; 3]> = Vec::new();
        let mut commands = Vec::with_capacity(self.commands.len());
        for command in &self.commands {
            let Command::Dispatch(d) = command else { return None };
            let Grid::Direct(grid) = d.grid else { return None };
            let at = grids.iter().position(|g| *g == grid).unwrap_or_else(|| {
                grids.push(grid);
                grids.len() - 1
            });
            let grid = Grid::Indirect(live.clone(), at as u64 * 12);
            commands.push(Command::Dispatch(Resolved { grid, ..d.clone() }));
        }
        let fits = grids.len() <= SWITCH_GRIDS && grids.len() as u64 * 12 <= live.size();
        fits.then(|| (Plan { commands, params: self.params.clone(), uniforms: self.uniforms.clone() }, grids))
    }
}
