//! The adapters of the machine.

use std::ffi::c_char;

use crate::ffi::guard;
use crate::ffi::status::{Failure, Result, doppler_status};
use crate::ffi::structs::{Versioned, output, slot};
use crate::ffi::text::fixed;
use crate::gpu::{AdapterInfo, Features, list_adapters};

/// Kinds of adapters.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum doppler_adapter_kind {
    /// None of the others.
    Other = 0,
    /// A graphics card with memory of its own.
    Discrete = 1,
    /// A GPU that shares the memory of the CPU.
    Integrated = 2,
    /// A GPU lent to a virtual machine.
    Virtual = 3,
    /// A driver that computes on the CPU (llvmpipe, WARP).
    Software = 4,
}

/// What is known of an adapter. Set `struct_size` before the call.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(missing_debug_implementations, reason = "plain data for C")]
pub struct doppler_adapter_info {
    /// sizeof(doppler_adapter_info)
    pub struct_size: usize,
    /// Name, as the driver gives it; NUL-terminated UTF-8.
    pub name: [c_char; 256],
    /// Driver name and version; NUL-terminated UTF-8.
    pub driver: [c_char; 256],
    /// "vulkan", "metal" or "dx12"; NUL-terminated.
    pub backend: [c_char; 16],
    /// A doppler_adapter_kind.
    pub kind: u32,
    /// PCI vendor id.
    pub vendor: u32,
    /// PCI device id.
    pub device: u32,
    /// Smallest subgroup that a shader can meet.
    pub subgroup_min: u32,
    /// Largest subgroup that a shader can meet.
    pub subgroup_max: u32,
    /// 1 with subgroup operations (of a context: if they are used).
    pub subgroups: u32,
    /// 1 with f16 arithmetic in shaders (of a context: if it is used).
    pub f16: u32,
    /// 1 with immediate data (of a context: if it is used).
    pub immediates: u32,
    /// 1 with timestamp queries (of a context: if they are allowed).
    pub timestamps: u32,
    /// 1 if the driver can keep compiled pipelines (of a context: if that is used).
    pub pipeline_cache: u32,
    /// Largest range that one storage binding can cover, in bytes.
    pub max_binding_bytes: u64,
    /// Largest buffer, in bytes.
    pub max_buffer_bytes: u64,
    /// 1 with cooperative matrices of the shape that the library uses (of a context: if they are used).
    pub cooperative_matrix: u32,
    /// 1 if it is known to start workgroups in the order of their indices, so that one dispatch may hold several operations (of a context: if that is
    /// used). The environment variable DOPPLER_CHAINS, 1 or 0, says so of devices for which it is not known.
    pub chains: u32,
}

// SAFETY: `repr(C)`, numbers only.
unsafe impl Versioned for doppler_adapter_info {
    const NAME: &'static str = "doppler_adapter_info";
    const FIRST: usize = std::mem::offset_of!(Self, max_buffer_bytes) + 8;
}

impl doppler_adapter_info {
    /// `used`: the abilities of an open device, if it is one.
    pub(crate) fn of(info: &AdapterInfo, used: Option<Features>) -> Self {
        use doppler_adapter_kind as K;
        let kind = match info.kind {
            "discrete" => K::Discrete,
            "integrated" => K::Integrated,
            "virtual" => K::Virtual,
            "software" => K::Software,
            _ => K::Other,
        };
        let has = used.unwrap_or(Features {
            subgroups: info.subgroups,
            f16: info.f16,
            immediates: info.immediates,
            timestamps: info.timestamps,
            pipeline_cache: info.pipeline_cache,
            cooperative_matrix: info.cooperative_matrix,
            chains: info.chains,
        });
        Self {
            struct_size: size_of::<Self>(),
            name: fixed(&info.name),
            driver: fixed(&info.driver),
            backend: fixed(&info.backend),
            kind: kind as u32,
            vendor: info.vendor,
            device: info.device,
            subgroup_min: info.subgroup_min,
            subgroup_max: info.subgroup_max,
            subgroups: has.subgroups.into(),
            f16: has.f16.into(),
            immediates: has.immediates.into(),
            timestamps: has.timestamps.into(),
            pipeline_cache: has.pipeline_cache.into(),
            max_binding_bytes: info.max_binding_bytes,
            max_buffer_bytes: info.max_buffer_bytes,
            cooperative_matrix: has.cooperative_matrix.into(),
            chains: has.chains.into(),
        }
    }
}

/// How many adapters this machine has, software ones included. Asks the drivers anew in each call (tens of milliseconds).
///
/// @param count  gets the number
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_adapter_count(count: *mut u32) -> doppler_status {
    guard(|| {
        // SAFETY: the caller vouches for the pointer.
        let count = unsafe { slot(count, "count")? };
        count.write(list_adapters().len() as u32);
        Ok(())
    })
}

/// What is known of an adapter before it is opened. Asks the drivers anew in each call.
///
/// @param index  0 .. count - 1, the number that doppler_context_options.adapter_index takes
/// @param info   filled in; set its `struct_size`
/// @return       DOPPLER_STATUS_INVALID_ARGUMENT if there is no such adapter
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_adapter_get_info(index: u32, info: *mut doppler_adapter_info) -> doppler_status {
    guard(|| {
        // SAFETY: the caller vouches for the structure.
        let info = unsafe { output(info)? };
        info.write(doppler_adapter_info::of(&find(index)?, None));
        Ok(())
    })
}

fn find(index: u32) -> Result<AdapterInfo> {
    let mut list = list_adapters();
    let n = list.len();
    if index as usize >= n {
        let text = format!("adapter {index} asked for, there are {n}");
        return Err(Failure::new(doppler_status::InvalidArgument, text));
    }
    Ok(list.swap_remove(index as usize))
}
