//! The GPU runtime: device, queue, buffers, pipeline cache, shader assembly, recorder, readback, profiler, guards.
//!
//! The only place that names wgpu. It knows nothing of what a kernel computes.

mod adapter;
mod arena;
mod buffer;
mod chain;
mod counters;
mod device;
mod encode;
mod fault;
mod guard;
mod kernel;
mod pipeline;
mod pipeline_blob;
mod pool;
mod profile;
mod profiler;
mod readback;
mod recorder;
mod shader;
mod staging;
mod switch;
mod sync;
mod width;

pub use adapter::{ADAPTER_VARIABLE, AdapterChoice, AdapterInfo, CHAINS_VARIABLE, PowerPreference, list_adapters};
pub use arena::{ALWAYS, Arena, ArenaPlan, Region, Steps};
pub use buffer::{Buffer, BufferSlice, Memory, MemoryClass, MemorySnapshot};
pub use chain::Held;
pub use counters::{
    BatchingSaving, CounterSnapshot, Counters, Phase, PhaseSnapshot, PlaceSnapshot, SUBMIT_HISTOGRAM_BUCKETS, Scope,
    SubmitStats,
};
pub use device::{Features, Gpu, GpuOptions};
pub use fault::FaultPoint;
pub use guard::{Budget, Guard, GuardMode};
pub use kernel::{Dispatch, Forms, Grid, Kernel, MAX_PARAMS, Variant, linear_grid};
pub use pipeline::{PipelineCache, PipelineCacheStats, Wanted};
pub use pool::{Leak, Lease, Pool, PoolLabelStats, PoolStats};
pub use profile::{OpTime, Profile, ProfileNode, ProfileRow};
pub use readback::{Gate, Place, ReadbackClass};
pub use recorder::{BindGroupCache, Encoded, Plan, Recorder, RecorderStats, Submission};
pub use shader::{Assembled, BindingDecl, Fragment, assemble};
pub use staging::{StagedCopy, StagingRing, StagingSlot};
pub use switch::SWITCH_GRIDS;
pub use width::FULL_WIDTH;

pub(crate) use chain::{Chain, Stage};
pub(crate) use kernel::params;
pub(crate) use sync::{Mutex, MutexGuard};
