//! The one cache of shader modules, bind-group layouts, pipeline layouts and pipelines.
//!
//! Keys are structural: a pipeline is its source's hash, its constants and the layout of its bindings; a layout is its
//! list of accesses. Names and labels play no part. A failed compile is not kept. The cache belongs to one device.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use crate::error::{Error, Result, bail};
use crate::gpu::chain::Chain;
use crate::gpu::counters::Scope;
use crate::gpu::device::{Features, Gpu};
use crate::gpu::fault::FaultPoint;
use crate::gpu::kernel::{Kernel, MAX_PARAMS, Variant};
use crate::gpu::pipeline_blob::PipelineBlob;
use crate::gpu::recorder::Recorder;
use crate::gpu::shader::{self, BindingDecl};
use crate::gpu::sync::Mutex;

/// A compiled pipeline with what recording it needs.
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub(crate) raw: wgpu::ComputePipeline,
    pub(crate) layout: Arc<GroupLayout>,
    pub(crate) bindings: Vec<BindingDecl>,
    pub(crate) has_params: bool,
}

/// A bind-group layout with the number that bind-group keys use for it.
#[derive(Debug)]
pub(crate) struct GroupLayout {
    pub(crate) raw: wgpu::BindGroupLayout,
    pub(crate) id: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct CallKey {
    /// Address of the static declaration: the quick way to the structural key, not the identity of the pipeline.
    kernel: usize,
    variant: Variant,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct PipelineKey {
    source: u64,
    constants: Vec<(&'static str, u32)>,
    accesses: Vec<bool>,
    params: bool,
}

/// A pipeline that a survey found to be needed.
#[derive(Debug, Clone)]
pub enum Wanted {
    /// A kernel's variant.
    Kernel(&'static Kernel, Variant),
    /// Several dispatches in one.
    Chain(Box<Chain>),
}

impl Wanted {
    /// What two pipelines have in common that are the same.
    fn identity(&self) -> (usize, Option<&Variant>, String) {
        match self {
            Self::Kernel(kernel, variant) => (std::ptr::from_ref(*kernel).addr(), Some(variant), String::new()),
            Self::Chain(chain) => (0, None, chain.identity()),
        }
    }
}

#[derive(Debug, Default)]
struct Tables {
    calls: HashMap<CallKey, Arc<Pipeline>>,
    /// The same for chains, by [`Chain::identity`]: layers have the same, and putting a shader together takes a while.
    chains: HashMap<String, Arc<Pipeline>>,
    pipelines: HashMap<PipelineKey, Arc<Pipeline>>,
    modules: HashMap<u64, wgpu::ShaderModule>,
    group_layouts: HashMap<Vec<bool>, Arc<GroupLayout>>,
    pipeline_layouts: HashMap<(Vec<bool>, bool), wgpu::PipelineLayout>,
}

/// See the module's text.
#[derive(Debug)]
pub struct PipelineCache {
    tables: Mutex<Tables>,
    /// Group 1: the parameters, as a uniform with a dynamic offset, where immediates are missing.
    params_layout: Option<wgpu::BindGroupLayout>,
    driver_cache: Option<wgpu::PipelineCache>,
    features: Features,
    blob_bytes: u64,
    blob_rejected: bool,
    hits: AtomicU64,
    misses: AtomicU64,
    compile_ns: AtomicU64,
    purges: AtomicU64,
}

/// What the cache holds and did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PipelineCacheStats {
    /// Pipelines held.
    pub pipelines: u64,
    /// Shader modules held.
    pub modules: u64,
    /// Bind-group layouts held.
    pub group_layouts: u64,
    /// Pipeline layouts held.
    pub pipeline_layouts: u64,
    /// Calls answered from the cache.
    pub hits: u64,
    /// Calls that compiled.
    pub misses: u64,
    /// CPU time spent compiling, of all threads together.
    pub compile_ns: u64,
    /// Bytes of compiled pipelines that an earlier process left ([`crate::gpu::GpuOptions::cache_dir`]).
    pub blob_bytes: u64,
    /// Such a file was there but was damaged or made for something else.
    pub blob_rejected: bool,
}

impl PipelineCache {
    pub(crate) fn new(device: &wgpu::Device, features: Features, blob: Option<&PipelineBlob>) -> Self {
        let params_layout = (!features.immediates).then(|| {
            device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: Some("params"),
                entries: &[wgpu::BindGroupLayoutEntry {
                    binding: 0,
                    visibility: wgpu::ShaderStages::COMPUTE,
                    ty: wgpu::BindingType::Buffer {
                        ty: wgpu::BufferBindingType::Uniform,
                        has_dynamic_offset: true,
                        min_binding_size: None,
                    },
                    count: None,
                }],
            })
        });
        let driver_cache = features.pipeline_cache.then(|| {
            // SAFETY: the blob, where there is one, was written by `driver_blob` of the same adapter and driver (its key and
            // checksum were checked when it was read), and `fallback` makes the driver start empty if it disagrees.
            unsafe {
                device.create_pipeline_cache(&wgpu::PipelineCacheDescriptor {
                    label: Some("doppler"),
                    data: blob.and_then(PipelineBlob::data),
                    fallback: true,
                })
            }
        });
        Self {
            tables: Default::default(),
            params_layout,
            driver_cache,
            features,
            blob_bytes: blob.and_then(PipelineBlob::data).map_or(0, |d| d.len() as u64),
            blob_rejected: blob.is_some_and(PipelineBlob::rejected),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            compile_ns: AtomicU64::new(0),
            purges: AtomicU64::new(0),
        }
    }

    pub(crate) fn params_layout(&self) -> Option<&wgpu::BindGroupLayout> {
        self.params_layout.as_ref()
    }

    /// What the cache holds and did.
    pub fn stats(&self) -> PipelineCacheStats {
        let t = self.tables.lock();
        PipelineCacheStats {
            pipelines: t.pipelines.len() as u64,
            modules: t.modules.len() as u64,
            group_layouts: t.group_layouts.len() as u64,
            pipeline_layouts: t.pipeline_layouts.len() as u64,
            hits: self.hits.load(Relaxed),
            misses: self.misses.load(Relaxed),
            compile_ns: self.compile_ns.load(Relaxed),
            blob_bytes: self.blob_bytes,
            blob_rejected: self.blob_rejected,
        }
    }

    /// Forgets everything and says what was held. Plans made before keep their pipelines and go on working.
    pub fn purge(&self) -> PipelineCacheStats {
        let freed = self.stats();
        *self.tables.lock() = Tables::default();
        self.purges.fetch_add(1, Relaxed);
        freed
    }

    /// How often everything was forgotten: bind groups made before belong to layouts that new pipelines do not have.
    pub(crate) fn purges(&self) -> u64 {
        self.purges.load(Relaxed)
    }

    /// The driver's compiled pipelines as a blob, where the backend has one.
    pub fn driver_blob(&self) -> Option<Vec<u8>> {
        self.driver_cache.as_ref()?.get_data()
    }

    /// The pipeline of a kernel's variant: from the cache, or compiled now and charged to `scope`.
    pub(crate) fn get(
        &self,
        gpu: &Gpu,
        kernel: &'static Kernel,
        variant: &Variant,
        scope: &Scope,
    ) -> Result<Arc<Pipeline>> {
        let call = CallKey { kernel: std::ptr::from_ref(kernel).addr(), variant: variant.clone() };
        if let Some(p) = self.tables.lock().calls.get(&call) {
            self.hits.fetch_add(1, Relaxed);
            return Ok(p.clone());
        }
        // Compiled without holding the lock, so that several threads can compile ahead at once; two threads that ask for
        // the same pipeline both compile it, and the first one in stays.
        let started = Instant::now();
        let (key, assembled) = self.key(kernel, variant)?;
        {
            let mut t = self.tables.lock();
            if let Some(p) = t.pipelines.get(&key).cloned() {
                self.hits.fetch_add(1, Relaxed);
                t.calls.insert(call, p.clone());
                return Ok(p);
            }
        }
        let kept = self.make(gpu, kernel.name, key, assembled, started, scope)?;
        self.tables.lock().calls.insert(call, kept.clone());
        Ok(kept)
    }

    /// The pipeline of a chain, likewise.
    pub(crate) fn get_chain(&self, gpu: &Gpu, chain: &Chain, scope: &Scope) -> Result<Arc<Pipeline>> {
        let call = chain.identity();
        if let Some(p) = self.tables.lock().chains.get(&call) {
            self.hits.fetch_add(1, Relaxed);
            return Ok(p.clone());
        }
        let started = Instant::now();
        let flags: Vec<_> = self.features.shader_flags().collect();
        let assembled = chain.assemble(&flags, self.features.immediates)?;
        let key = Self::key_of(&assembled, Vec::new());
        let found = self.tables.lock().pipelines.get(&key).cloned();
        let kept = match found {
            Some(p) => {
                self.hits.fetch_add(1, Relaxed);
                p
            }
            None => self.make(gpu, "chain", key, assembled, started, scope)?,
        };
        self.tables.lock().chains.insert(call, kept.clone());
        Ok(kept)
    }

    /// Compiles a pipeline, charged to `scope`; the one that is there already if another thread was quicker.
    fn make(
        &self,
        gpu: &Gpu,
        name: &str,
        key: PipelineKey,
        assembled: shader::Assembled,
        started: Instant,
        scope: &Scope,
    ) -> Result<Arc<Pipeline>> {
        gpu.fault(FaultPoint::Pipeline)?;
        let pipeline = Arc::new(self.compile(gpu.device(), name, &key, assembled)?);
        let ns = started.elapsed().as_nanos() as u64;
        self.misses.fetch_add(1, Relaxed);
        self.compile_ns.fetch_add(ns, Relaxed);
        scope.pipeline_created(ns);
        Ok(self.tables.lock().pipelines.entry(key).or_insert(pipeline).clone())
    }

    fn key(&self, kernel: &'static Kernel, variant: &Variant) -> Result<(PipelineKey, shader::Assembled)> {
        kernel.admit(variant)?;
        let mut flags = variant.flags.clone();
        flags.extend(self.features.shader_flags());
        let assembled = shader::assemble(kernel.name, kernel.source, &flags, &variant.slots, self.features.immediates)?;
        let mut constants = variant.constants.clone();
        constants.sort_unstable();
        Ok((Self::key_of(&assembled, constants), assembled))
    }

    fn key_of(assembled: &shader::Assembled, constants: Vec<(&'static str, u32)>) -> PipelineKey {
        let mut hasher = DefaultHasher::new();
        assembled.source.hash(&mut hasher);
        let accesses = assembled.bindings.iter().map(|b| b.read_only).collect();
        PipelineKey { source: hasher.finish(), constants, accesses, params: assembled.has_params }
    }

    fn compile(
        &self,
        device: &wgpu::Device,
        name: &str,
        key: &PipelineKey,
        assembled: shader::Assembled,
    ) -> Result<Pipeline> {
        let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let internal = device.push_error_scope(wgpu::ErrorFilter::Internal);
        let module = self.tables.lock().modules.get(&key.source).cloned();
        let module = module.unwrap_or_else(|| {
            let descriptor = wgpu::ShaderModuleDescriptor {
                label: Some(name),
                source: wgpu::ShaderSource::Wgsl(assembled.source.as_str().into()),
            };
            // The counter that wgpu adds to every loop keeps drivers from unrolling: products ran 2 to 10 times slower with it (docs/performance.md).
            // Bounds and division checks stay.
            let checks =
                wgpu::ShaderRuntimeChecks { force_loop_bounding: false, ..wgpu::ShaderRuntimeChecks::checked() };
            // SAFETY: the shaders are this library's own, and each of their loops counts up to a bound.
            unsafe { device.create_shader_module_trusted(descriptor, checks) }
        });
        let layout = self.group_layout(device, &key.accesses);
        let pipeline_layout = self.pipeline_layout(device, key, &layout);
        let constants: Vec<_> = key.constants.iter().map(|&(n, v)| (n, f64::from(v))).collect();
        let raw = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(name),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &constants,
                // Kernels write workgroup memory before they read it.
                zero_initialize_workgroup_memory: false,
            },
            cache: self.driver_cache.as_ref(),
        });
        let internal = pollster::block_on(internal.pop());
        if let Some(e) = pollster::block_on(scope.pop()).or(internal) {
            bail!(Gpu, "pipeline {name}: {e}");
        }
        self.tables.lock().modules.entry(key.source).or_insert(module);
        Ok(Pipeline { raw, layout, bindings: assembled.bindings, has_params: assembled.has_params })
    }

    fn group_layout(&self, device: &wgpu::Device, accesses: &[bool]) -> Arc<GroupLayout> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let mut t = self.tables.lock();
        if let Some(l) = t.group_layouts.get(accesses) {
            return l.clone();
        }
        let entries: Vec<_> = accesses
            .iter()
            .enumerate()
            .map(|(i, &read_only)| wgpu::BindGroupLayoutEntry {
                binding: i as u32,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Storage { read_only },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        let raw = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries });
        let layout = Arc::new(GroupLayout { raw, id: NEXT_ID.fetch_add(1, Relaxed) });
        t.group_layouts.insert(accesses.to_vec(), layout.clone());
        layout
    }

    fn pipeline_layout(&self, device: &wgpu::Device, key: &PipelineKey, group: &GroupLayout) -> wgpu::PipelineLayout {
        let layout_key = (key.accesses.clone(), key.params);
        if let Some(l) = self.tables.lock().pipeline_layouts.get(&layout_key) {
            return l.clone();
        }
        let params = if key.params { self.params_layout.as_ref() } else { None };
        let groups: &[_] = if params.is_some() { &[Some(&group.raw), params] } else { &[Some(&group.raw)] };
        let immediate_size = if key.params && self.features.immediates { MAX_PARAMS as u32 } else { 0 };
        let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: groups,
            immediate_size,
        });
        self.tables.lock().pipeline_layouts.insert(layout_key, layout.clone());
        layout
    }
}

impl Gpu {
    /// A recorder whose [`Recorder::into_survey`] lists the pipelines that the recorded work would need.
    pub fn survey(&self, scope: &Scope) -> Recorder<'_> {
        Recorder::survey(self, scope)
    }

    /// Compiles pipelines ahead of their use, on as many threads as the machine has (at most 16).
    ///
    /// # Errors
    /// [`crate::Error::Gpu`] naming the kernel that does not compile; the others are compiled all the same.
    pub fn compile(&self, wanted: &[Wanted], scope: &Scope) -> Result<()> {
        let mut list: Vec<_> = wanted.iter().collect();
        let mut seen = HashSet::new();
        list.retain(|w| seen.insert(w.identity()));
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(16).min(list.len());
        let next = AtomicUsize::new(0);
        let work = || {
            let mut outcome = Ok(());
            while let Some(wanted) = list.get(next.fetch_add(1, Relaxed)) {
                let made = match wanted {
                    Wanted::Kernel(kernel, variant) => self.pipelines().get(self, kernel, variant, scope),
                    Wanted::Chain(chain) => self.pipelines().get_chain(self, chain, scope),
                };
                outcome = outcome.and(made.map(drop));
            }
            outcome
        };
        if threads <= 1 {
            return work();
        }
        std::thread::scope(|s| {
            let running: Vec<_> = (0..threads).map(|_| s.spawn(work)).collect();
            // Every thread is joined before the first error is given back.
            let mut outcome = Ok(());
            for thread in running {
                let joined = thread.join();
                outcome =
                    outcome.and(joined.unwrap_or_else(|_| Err(Error::Internal("a compiling thread panicked".into()))));
            }
            outcome
        })
    }
}
