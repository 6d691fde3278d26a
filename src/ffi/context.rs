//! Contexts: `doppler_context`.

use std::ffi::c_char;

use crate::ffi::adapter::doppler_adapter_info;
use crate::ffi::handle::Table;
use crate::ffi::stats::{doppler_phase_stats, doppler_place_stats, phases, places, time_source};
use crate::ffi::status::{Failure, Result, doppler_status};
use crate::ffi::structs::{Versioned, init, output, read, slot};
use crate::ffi::text::c_text_in;
use crate::ffi::{DOPPLER_NONE, guard};
use crate::gpu::{AdapterChoice, Features, Guard, GuardMode, PowerPreference};
use crate::session::{Context, ContextOptions, ContextStats};

/// An open device. Models are loaded into it and keep it alive, so it may be destroyed before them.
#[derive(Debug)]
pub struct doppler_context {
    _private: [u8; 0],
}

pub(crate) static CONTEXTS: Table<doppler_context, Context> = Table::new("context", 1);

/// Which kind of adapter is preferred.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum doppler_power_preference {
    /// Discrete first, then integrated.
    HighPerformance = 0,
    /// Integrated first, then discrete.
    LowPower = 1,
}

/// What happens when decoding costs more than its budget (per submit: 1 submit, 1 readback of at most 16 bytes a token; no buffer, bind
/// group or pipeline created), or a debug readback is asked for.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum doppler_guard_mode {
    /// Nothing is checked.
    Off = 0,
    /// A warning is logged.
    Warn = 1,
    /// The call fails with DOPPLER_STATUS_GUARD.
    Strict = 2,
    /// Sessions only: as the context.
    Inherit = 3,
}

/// Classes of device memory: the index of `memory` in doppler_context_stats.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum doppler_memory_class {
    /// Model weights and tables derived from them.
    Weights = 0,
    /// Keys and values of the attention cache, and its tables.
    Kv = 1,
    /// Activations, planned once for a model.
    Scratch = 2,
    /// Host-visible buffers for readback.
    Staging = 3,
    /// Everything else.
    Other = 4,
}

/// How to open a context. Fill it with doppler_context_options_init().
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct doppler_context_options {
    /// Set by doppler_context_options_init().
    pub struct_size: usize,
    /// Part of the adapter's name, case does not matter; NUL-terminated UTF-8, read during the call. NULL: any.
    pub adapter_name: *const c_char,
    /// Number of the adapter, see doppler_adapter_get_info(); wins over the name. DOPPLER_NONE: not by number.
    /// Where neither number nor name is given, the environment variable DOPPLER_ADAPTER may give one.
    pub adapter_index: u32,
    /// A doppler_power_preference among the adapters that are left.
    pub power_preference: u32,
    /// Not 0: accept an adapter that computes on the CPU. Default 0.
    pub allow_software: u32,
    /// Not 0: use no subgroup operations.
    pub disable_subgroups: u32,
    /// Not 0: use no f16 types in shaders.
    pub disable_f16: u32,
    /// Not 0: use no immediate data.
    pub disable_immediates: u32,
    /// Not 0: use no timestamp queries.
    pub disable_timestamps: u32,
    /// Not 0: keep no compiled pipelines in the driver's cache object.
    pub disable_pipeline_cache: u32,
    /// Most bytes on the device, weights and attention cache included; what would exceed it fails with DOPPLER_STATUS_OUT_OF_MEMORY before
    /// anything is allocated. 0: no limit.
    pub memory_budget: u64,
    /// Not 0: take the GPU time of every pass, where the adapter has timestamp queries. Costs a readback every few hundred passes.
    pub gpu_timing: u32,
    /// A doppler_guard_mode with the production budgets; doppler_context_set_guard() sets others. Default OFF.
    pub guard_mode: u32,
    /// Folder in which the device's width, and where the driver can compiled pipelines, are kept from one process to the next; it is made if it does
    /// not exist. NUL-terminated UTF-8, read during the call. NULL: they are not kept.
    pub cache_dir: *const c_char,
    /// Not 0: use no cooperative matrices.
    pub disable_cooperative_matrix: u32,
    /// Not 0: put no operations together in one dispatch whose workgroups wait for each other.
    pub disable_chains: u32,
    /// Workgroups of 256 threads that the device is taken to run at once, 1 to 256, by which work is divided: so results are the same on devices of
    /// different widths. Rounded up to a power of two. 0 (default): as measured, which is kept in `cache_dir` (the first time takes some ten
    /// milliseconds), or without one a guess by the kind of device.
    pub device_width: u32,
    /// 0.
    pub reserved: u32,
}

// SAFETY: `repr(C)`, numbers and raw pointers.
unsafe impl Versioned for doppler_context_options {
    const NAME: &'static str = "doppler_context_options";
    const FIRST: usize = std::mem::offset_of!(Self, guard_mode) + 4;
}

impl Default for doppler_context_options {
    fn default() -> Self {
        Self {
            struct_size: size_of::<Self>(),
            adapter_name: std::ptr::null(),
            adapter_index: DOPPLER_NONE,
            power_preference: doppler_power_preference::HighPerformance as u32,
            allow_software: 0,
            disable_subgroups: 0,
            disable_f16: 0,
            disable_immediates: 0,
            disable_timestamps: 0,
            disable_pipeline_cache: 0,
            memory_budget: 0,
            gpu_timing: 0,
            guard_mode: doppler_guard_mode::Off as u32,
            cache_dir: std::ptr::null(),
            disable_cooperative_matrix: 0,
            disable_chains: 0,
            device_width: 0,
            reserved: 0,
        }
    }
}

/// What a context has done and holds. Set `struct_size` before the call.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct doppler_context_stats {
    /// sizeof(doppler_context_stats)
    pub struct_size: usize,
    /// Everything done on the device since the context was created or its statistics reset, by doppler_phase.
    pub phases: [doppler_phase_stats; 4],
    /// CPU times of submit calls: entry i counts calls of 2^i to 2^(i+1) nanoseconds.
    pub submit_histogram: [u64; 32],
    /// Device memory now, in bytes, by doppler_memory_class; the last two are reserved and 0.
    pub memory: [u64; 8],
    /// All classes together, in bytes.
    pub memory_total: u64,
    /// Highest total so far, in bytes.
    pub memory_peak: u64,
    /// Buffers that exist now.
    pub live_buffers: u64,
    /// Pipelines held by the pipeline cache.
    pub cached_pipelines: u64,
    /// Shader modules held by it.
    pub cached_modules: u64,
    /// Requests that it answered.
    pub pipeline_hits: u64,
    /// Requests that had to compile.
    pub pipeline_misses: u64,
    /// CPU time of compiling, nanoseconds.
    pub compile_ns: u64,
    /// Transient buffers on loan.
    pub pool_leased: u64,
    /// Transient buffers waiting for reuse.
    pub pool_idle: u64,
    /// Bytes of those.
    pub pool_idle_bytes: u64,
    /// Requests for a transient buffer answered with an old one.
    pub pool_reuses: u64,
    /// Requests that made a new one.
    pub pool_misses: u64,
    /// A doppler_gpu_time_source.
    pub gpu_time_source: u32,
    /// 0.
    pub reserved: u32,
    /// Readbacks by doppler_place; the last two are reserved and 0.
    pub places: [doppler_place_stats; 12],
    /// Most bytes there may be on the device; 0: no limit.
    pub memory_budget: u64,
    /// Bind-group layouts held by the pipeline cache.
    pub cached_group_layouts: u64,
    /// Pipeline layouts held by it.
    pub cached_pipeline_layouts: u64,
    /// Bytes of compiled pipelines that an earlier process left in `cache_dir`.
    pub cache_file_bytes: u64,
    /// 1 if a file was there but was damaged or made for something else.
    pub cache_file_rejected: u64,
    /// Bytes of the transient buffers on loan.
    pub pool_leased_bytes: u64,
    /// Most bytes ever on loan.
    pub pool_peak_leased_bytes: u64,
    /// Bytes asked for by the leases there are; the rest of `pool_leased_bytes` is slack.
    pub pool_requested_bytes: u64,
    /// Idle transient buffers freed.
    pub pool_trimmed: u64,
    /// Passes that were not timed because too many waited to be read.
    pub gpu_times_dropped: u64,
}

// SAFETY: `repr(C)`, numbers only.
unsafe impl Versioned for doppler_context_stats {
    const NAME: &'static str = "doppler_context_stats";
    const FIRST: usize = std::mem::offset_of!(Self, reserved) + 4;
}

impl From<ContextStats> for doppler_context_stats {
    fn from(s: ContextStats) -> Self {
        Self {
            struct_size: size_of::<Self>(),
            phases: phases(&s.counters),
            submit_histogram: s.counters.submit_histogram,
            memory: std::array::from_fn(|i| s.memory.current.get(i).copied().unwrap_or(0)),
            memory_total: s.memory.total,
            memory_peak: s.memory.peak,
            live_buffers: s.memory.live_buffers,
            cached_pipelines: s.pipelines.pipelines,
            cached_modules: s.pipelines.modules,
            pipeline_hits: s.pipelines.hits,
            pipeline_misses: s.pipelines.misses,
            compile_ns: s.pipelines.compile_ns,
            pool_leased: s.pool.leased,
            pool_idle: s.pool.idle,
            pool_idle_bytes: s.pool.idle_bytes,
            pool_reuses: s.pool.reuses,
            pool_misses: s.pool.misses,
            gpu_time_source: time_source(s.gpu_timed),
            reserved: 0,
            places: places(&s.counters),
            memory_budget: s.memory.budget,
            cached_group_layouts: s.pipelines.group_layouts,
            cached_pipeline_layouts: s.pipelines.pipeline_layouts,
            cache_file_bytes: s.pipelines.blob_bytes,
            cache_file_rejected: s.pipelines.blob_rejected.into(),
            pool_leased_bytes: s.pool.leased_bytes,
            pool_peak_leased_bytes: s.pool.peak_leased_bytes,
            pool_requested_bytes: s.pool.requested_bytes,
            pool_trimmed: s.pool.trimmed,
            gpu_times_dropped: s.gpu_times_dropped,
        }
    }
}

/// A guard mode from C; `None` for "inherit".
pub(crate) fn guard_mode(number: u32) -> Result<Option<GuardMode>> {
    use doppler_guard_mode as M;
    match number {
        n if n == M::Off as u32 => Ok(Some(GuardMode::Off)),
        n if n == M::Warn as u32 => Ok(Some(GuardMode::Warn)),
        n if n == M::Strict as u32 => Ok(Some(GuardMode::Strict)),
        n if n == M::Inherit as u32 => Ok(None),
        n => Err(Failure::new(doppler_status::InvalidArgument, format!("guard_mode is {n}"))),
    }
}

/// # Safety
/// The texts of the options are NULL or NUL-terminated.
unsafe fn convert(o: &doppler_context_options) -> Result<ContextOptions> {
    let invalid = |text: String| Err(Failure::new(doppler_status::InvalidArgument, text));
    let name = match o.adapter_name {
        p if p.is_null() => None,
        // SAFETY: passed on.
        p => Some(unsafe { c_text_in(p, "adapter_name")? }.to_string()),
    };
    let power = match o.power_preference {
        n if n == doppler_power_preference::HighPerformance as u32 => PowerPreference::HighPerformance,
        n if n == doppler_power_preference::LowPower as u32 => PowerPreference::LowPower,
        n => return invalid(format!("power_preference is {n}")),
    };
    let Some(mode) = guard_mode(o.guard_mode)? else {
        return invalid("guard_mode: a context has nothing to inherit from".into());
    };
    Ok(ContextOptions {
        adapter: AdapterChoice {
            index: (o.adapter_index != DOPPLER_NONE).then_some(o.adapter_index),
            name,
            power,
            allow_software: o.allow_software != 0,
        },
        features: Features {
            subgroups: o.disable_subgroups == 0,
            f16: o.disable_f16 == 0,
            immediates: o.disable_immediates == 0,
            timestamps: o.disable_timestamps == 0,
            pipeline_cache: o.disable_pipeline_cache == 0,
            cooperative_matrix: o.disable_cooperative_matrix == 0,
            chains: o.disable_chains == 0,
        },
        memory_budget: o.memory_budget,
        timing: o.gpu_timing != 0,
        guard: Guard { mode, ..Guard::default() },
        cache_dir: match o.cache_dir {
            p if p.is_null() => None,
            // SAFETY: passed on.
            p => Some(unsafe { c_text_in(p, "cache_dir")? }.into()),
        },
        width: o.device_width,
        api_trace: None,
    })
}

/// Fills options with their defaults.
///
/// @param options      filled in
/// @param struct_size  sizeof *options
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_context_options_init(
    options: *mut doppler_context_options,
    struct_size: usize,
) -> doppler_status {
    // SAFETY: the caller vouches for the structure.
    guard(|| unsafe { init(options, struct_size, doppler_context_options::default()) })
}

/// Opens a device.
///
/// @param options  NULL: defaults
/// @param context  gets the handle; end it with doppler_context_destroy()
/// @return         DOPPLER_STATUS_NO_ADAPTER if no adapter fits the options, DOPPLER_STATUS_GPU if the driver refuses the device
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_context_create(
    options: *const doppler_context_options,
    context: *mut *mut doppler_context,
) -> doppler_status {
    guard(|| {
        // SAFETY: the caller vouches for structure, texts and pointer.
        let (context, options) =
            unsafe { (slot(context, "context")?, convert(&read(options, doppler_context_options::default())?)?) };
        context.write(CONTEXTS.insert(Context::open(&options)?));
        Ok(())
    })
}

/// Ends a context handle. Models and sessions made from it go on working; the device is closed with the last of them.
///
/// @param context  NULL is allowed; a handle that was destroyed already gets DOPPLER_STATUS_BAD_HANDLE
///
/// Threads: any.
#[unsafe(no_mangle)]
pub extern "C" fn doppler_context_destroy(context: *mut doppler_context) -> doppler_status {
    guard(|| CONTEXTS.remove(context).map(drop))
}

/// The adapter in use, and which of its abilities are used.
///
/// @param info  filled in; set its `struct_size`
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_context_get_adapter_info(
    context: *const doppler_context,
    info: *mut doppler_adapter_info,
) -> doppler_status {
    guard(|| {
        let context = CONTEXTS.get(context)?;
        // SAFETY: the caller vouches for the structure.
        let info = unsafe { output(info)? };
        info.write(doppler_adapter_info::of(context.adapter(), Some(context.features())));
        Ok(())
    })
}

/// Counters, memory and caches of a context. With `gpu_timing` this reads times back from the device.
///
/// @param stats  filled in; set its `struct_size`
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_context_get_stats(
    context: *const doppler_context,
    stats: *mut doppler_context_stats,
) -> doppler_status {
    guard(|| {
        let context = CONTEXTS.get(context)?;
        // SAFETY: the caller vouches for the structure.
        let stats = unsafe { output(stats)? };
        stats.write(context.stats().into());
        Ok(())
    })
}

/// Sets `phases`, `places`, `submit_histogram` and the submits by label of a context to zero; memory and caches are what they are.
///
/// Threads: any.
#[unsafe(no_mangle)]
pub extern "C" fn doppler_context_reset_stats(context: *mut doppler_context) -> doppler_status {
    guard(|| {
        CONTEXTS.get(context)?.reset_stats();
        Ok(())
    })
}
