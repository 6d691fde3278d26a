//! The context: an open device, from which models are loaded.

use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result, bail};
use crate::gpu::{AdapterInfo, Features, Gpu, GpuOptions, Guard, Mutex, PipelineCacheStats, Profile};
use crate::model::tune;
use crate::session::model::Model;
use crate::session::options::ModelOptions;
use crate::session::stats::ContextStats;

/// How to open a context.
pub type ContextOptions = GpuOptions;

/// An open device. Clones share it; models keep it alive. Any thread.
#[derive(Debug, Clone)]
pub struct Context {
    gpu: Arc<Gpu>,
    /// The last profile that was taken.
    profile: Arc<Mutex<Option<Arc<Profile>>>>,
}

impl Context {
    /// Opens a device.
    ///
    /// # Errors
    /// [`crate::Error::NoAdapter`] if no adapter fits, [`crate::Error::Gpu`] if the driver refuses.
    pub fn open(options: &ContextOptions) -> Result<Self> {
        let gpu = Gpu::open(options)?;
        tune(&gpu);
        Ok(Self { gpu, profile: Arc::default() })
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
            submits: self.gpu.counters().submits(),
            memory: self.gpu.memory().snapshot(),
            pipelines: self.gpu.pipelines().stats(),
            pool: self.gpu.pool().stats(),
            pool_labels: self.gpu.pool().labels(),
            gpu_timed: self.gpu.timed(),
            gpu_times_dropped: self.gpu.times_dropped(),
            guard: self.gpu.guard(),
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

    /// The guard of the context.
    pub fn guard(&self) -> Guard {
        self.gpu.guard()
    }

    /// Replaces it; sessions that have a guard of their own keep theirs.
    pub fn set_guard(&self, guard: Guard) {
        self.gpu.set_guard(guard);
    }

    /// Forgets compiled pipelines and idle transient buffers. Loaded models keep what their plans use; what is needed again is compiled again.
    /// Returns what the pipeline cache held, and the bytes of the buffers.
    pub fn purge_caches(&self) -> (PipelineCacheStats, u64) {
        (self.gpu.pipelines().purge(), self.gpu.pool().trim())
    }

    /// Starts a profile of every dispatch on this device (see [`Gpu::start_profile`]).
    ///
    /// # Errors
    /// As [`Gpu::start_profile`].
    pub fn start_profile(&self) -> Result<()> {
        self.gpu.start_profile()
    }

    /// Ends the profile, keeps it as the context's last one, and returns it.
    ///
    /// # Errors
    /// As [`Gpu::stop_profile`].
    pub fn stop_profile(&self) -> Result<Arc<Profile>> {
        let profile = Arc::new(self.gpu.stop_profile()?);
        *self.profile.lock() = Some(profile.clone());
        Ok(profile)
    }

    /// The profile taken last.
    ///
    /// # Errors
    /// [`crate::Error::InvalidState`] if none was taken.
    pub fn last_profile(&self) -> Result<Arc<Profile>> {
        match self.profile.lock().as_ref() {
            Some(p) => Ok(p.clone()),
            None => bail!(InvalidState, "no profile was taken in this context"),
        }
    }

    /// Writes the profile taken last as a trace file (see [`Profile::trace`]).
    ///
    /// # Errors
    /// As [`Context::last_profile`]; [`Error::Io`] naming the file.
    pub fn write_trace(&self, path: &Path) -> Result<()> {
        let trace = self.last_profile()?.trace();
        std::fs::write(path, trace).map_err(|e| Error::Io(format!("{}: {e}", path.display())))
    }
}
