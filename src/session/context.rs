//! The context: an open device, from which models are loaded.

use std::path::Path;
use std::sync::Arc;

use crate::error::Result;
use crate::gpu::{AdapterInfo, Features, Gpu, GpuOptions};
use crate::session::model::Model;
use crate::session::options::ModelOptions;
use crate::session::stats::ContextStats;

/// How to open a context.
pub type ContextOptions = GpuOptions;

/// An open device. Clones share it; models keep it alive. Any thread.
#[derive(Debug, Clone)]
pub struct Context {
    gpu: Arc<Gpu>,
}

impl Context {
    /// Opens a device.
    ///
    /// # Errors
    /// [`crate::Error::NoAdapter`] if no adapter fits, [`crate::Error::Gpu`] if the driver refuses.
    pub fn open(options: &ContextOptions) -> Result<Self> {
        Ok(Self { gpu: Gpu::open(options)? })
    }

    /// The device.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// Loads a GGUF file. `progress` gets bytes done and bytes in all; an error from it ends the load.
    ///
    /// # Errors
    /// [`crate::Error::Io`], [`crate::Error::BadFile`] or [`crate::Error::Unsupported`] naming file and key or tensor,
    /// [`crate::Error::OutOfMemory`], or what `progress` returned.
    pub fn load_model(
        &self,
        path: &Path,
        options: &ModelOptions,
        progress: &mut dyn FnMut(u64, u64) -> Result<()>,
    ) -> Result<Model> {
        Model::load(self, path, options, progress)
    }

    /// Counters, memory, caches.
    pub fn stats(&self) -> ContextStats {
        // Times that cannot be read any more (a lost device) are simply missing from the counters.
        if let Err(e) = self.gpu.collect_times() {
            log::warn!("GPU times are missing: {e}");
        }
        ContextStats {
            counters: self.gpu.counters().snapshot(),
            memory: self.gpu.memory().snapshot(),
            pipelines: self.gpu.pipelines().stats(),
            pool: self.gpu.pool().stats(),
            gpu_timed: self.gpu.timed(),
        }
    }

    /// The adapter behind the device.
    pub fn adapter(&self) -> &AdapterInfo {
        self.gpu.adapter()
    }

    /// The abilities in use.
    pub fn features(&self) -> Features {
        self.gpu.features()
    }

    /// Sets the counters to zero; memory and caches are what they are.
    pub fn reset_stats(&self) {
        self.gpu.counters().reset();
    }
}
