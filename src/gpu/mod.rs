//! The GPU runtime: device, queue, buffers, pipeline cache, shader assembly, recorder, readback, guards.
//!
//! The only place that names wgpu. It knows nothing of what a kernel computes.

mod adapter;
mod buffer;
mod counters;
mod device;
mod guard;
mod kernel;
mod pipeline;
mod pool;
mod recorder;
mod shader;
mod timer;

pub use adapter::{ADAPTER_VARIABLE, AdapterChoice, AdapterInfo, PowerPreference, list_adapters};
pub use buffer::{Buffer, BufferSlice, Memory, MemoryClass, MemorySnapshot};
pub use counters::{CounterSnapshot, Counters, Phase, PhaseSnapshot, ReadbackClass, SUBMIT_HISTOGRAM_BUCKETS, Scope};
pub use device::{Features, Gpu, GpuOptions};
pub use guard::{DecodeBudget, Guard, GuardMode};
pub use kernel::{Dispatch, Forms, Grid, Kernel, MAX_PARAMS, Variant, linear_grid};
pub use pipeline::{PipelineCache, PipelineCacheStats};
pub use pool::{Lease, Pool, PoolStats};
pub use recorder::{BindGroupCache, Plan, Recorder, Submission};
pub use shader::{Assembled, BindingDecl, Fragment, assemble};

pub(crate) use kernel::params;
pub(crate) use pipeline::parking::Mutex;
