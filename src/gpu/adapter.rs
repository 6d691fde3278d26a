//! Finding adapters, and choosing one.

use crate::error::{Error, Result, bail};

/// Which adapter to open.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AdapterChoice {
    /// Index in the list of [`list_adapters`]; wins over `name`.
    pub index: Option<u32>,
    /// A part of the adapter's name, case-insensitive.
    pub name: Option<String>,
    /// Which kind is preferred among the ones left.
    pub power: PowerPreference,
    /// Accept an adapter that computes on the CPU (llvmpipe, WARP).
    pub allow_software: bool,
}

/// Preference between a fast and a frugal adapter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PowerPreference {
    /// Discrete first, then integrated.
    #[default]
    HighPerformance,
    /// Integrated first, then discrete.
    LowPower,
}

/// What is known of an adapter before it is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterInfo {
    /// Its name, as the driver gives it.
    pub name: String,
    /// Driver name and version text.
    pub driver: String,
    /// `vulkan`, `metal`, `dx12`, ….
    pub backend: String,
    /// `discrete`, `integrated`, `virtual`, `software` or `other`.
    pub kind: &'static str,
    /// PCI vendor id.
    pub vendor: u32,
    /// PCI device id.
    pub device: u32,
    /// Smallest subgroup a shader can meet.
    pub subgroup_min: u32,
    /// Largest subgroup a shader can meet.
    pub subgroup_max: u32,
    /// Largest range one storage binding can cover, in bytes.
    pub max_binding_bytes: u64,
    /// Largest buffer, in bytes.
    pub max_buffer_bytes: u64,
    /// The adapter has subgroup operations.
    pub subgroups: bool,
    /// The adapter has f16 arithmetic in shaders.
    pub f16: bool,
    /// The adapter has immediate data (push constants).
    pub immediates: bool,
    /// The adapter has timestamp queries.
    pub timestamps: bool,
    /// The backend can keep compiled pipelines in a blob.
    pub pipeline_cache: bool,
    /// The adapter multiplies 16×16×16 matrices of f16 with f32 sums, in subgroups of 32 threads.
    pub cooperative_matrix: bool,
    /// The device is known to start workgroups in the order of their indices and to go on with those that it has started, so that some may wait for
    /// others ([`CHAINS_VARIABLE`]).
    pub chains: bool,
}

impl AdapterInfo {
    /// A number of threads that no subgroup has less of; 1 where it is not known.
    pub fn least_subgroup(&self) -> u32 {
        self.subgroup_min.max(1)
    }

    /// True for an adapter that computes on the CPU.
    pub fn is_software(&self) -> bool {
        self.kind == "software"
    }

    pub(crate) fn of(adapter: &wgpu::Adapter) -> Self {
        let (info, features, limits) = (adapter.get_info(), adapter.features(), adapter.limits());
        let kind = match info.device_type {
            wgpu::DeviceType::DiscreteGpu => "discrete",
            wgpu::DeviceType::IntegratedGpu => "integrated",
            wgpu::DeviceType::VirtualGpu => "virtual",
            wgpu::DeviceType::Cpu => "software",
            wgpu::DeviceType::Other => "other",
        };
        let vendor = info.vendor;
        Self {
            name: info.name,
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_string(),
            backend: info.backend.to_str().to_string(),
            kind,
            vendor: info.vendor,
            device: info.device,
            subgroup_min: info.subgroup_min_size,
            subgroup_max: info.subgroup_max_size,
            max_binding_bytes: limits.max_storage_buffer_binding_size,
            max_buffer_bytes: limits.max_buffer_size,
            // Kernels lay out their memory for subgroups of four threads at least, as WebGPU has them.
            subgroups: features.contains(wgpu::Features::SUBGROUP) && info.subgroup_min_size >= 4,
            f16: features.contains(wgpu::Features::SHADER_F16),
            immediates: features.contains(wgpu::Features::IMMEDIATES),
            timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
            pipeline_cache: features.contains(wgpu::Features::PIPELINE_CACHE),
            cooperative_matrix: has_cooperative_matrix(adapter),
            chains: has_chains(vendor),
        }
    }
}

/// The environment variable that says whether devices start workgroups in the order of their indices, 1 or 0, for one of which it is not known. Where it is
/// not so, waits end without what they wait for; that is seen, and what was computed is done again without chains.
pub const CHAINS_VARIABLE: &str = "DOPPLER_CHAINS";

/// Whether chains of dispatches were tried on the devices of a vendor: NVIDIA's.
fn has_chains(vendor: u32) -> bool {
    match std::env::var(CHAINS_VARIABLE).as_deref() {
        Ok("1") => true,
        Ok("0") => false,
        _ => vendor == 0x10de,
    }
}

/// Whether the adapter has the shape of cooperative matrix that the kernels are written for. They lay out their tiles for subgroups of 32
/// threads, and wgpu has no way to ask for a size where an adapter has several.
fn has_cooperative_matrix(adapter: &wgpu::Adapter) -> bool {
    let info = adapter.get_info();
    let fits = |p: &wgpu::CooperativeMatrixProperties| {
        (p.m_size, p.n_size, p.k_size) == (16, 16, 16)
            && p.ab_type == wgpu::CooperativeScalarType::F16
            && p.cr_type == wgpu::CooperativeScalarType::F32
    };
    adapter.features().contains(
        wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX
            | wgpu::Features::SUBGROUP
            | wgpu::Features::SUBGROUP_BARRIER
            | wgpu::Features::SHADER_F16,
    ) && (info.subgroup_min_size, info.subgroup_max_size) == (32, 32)
        && adapter.cooperative_matrix_properties().iter().any(fits)
}

fn instance() -> wgpu::Instance {
    wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12,
        // Explicit, so that debug and release builds record the same work: wgpu's default adds a validating
        // dispatch before each indirect one in debug builds.
        flags: wgpu::InstanceFlags::empty(),
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    })
}

fn enumerate(instance: &wgpu::Instance) -> Vec<wgpu::Adapter> {
    pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()))
}

/// The adapters of this machine, in the order that [`AdapterChoice::index`] counts.
pub fn list_adapters() -> Vec<AdapterInfo> {
    enumerate(&instance()).iter().map(AdapterInfo::of).collect()
}

/// The environment variable read where neither index nor name is given: an index, or a part of a name.
pub const ADAPTER_VARIABLE: &str = "DOPPLER_ADAPTER";

/// Completes a choice that names nothing from [`ADAPTER_VARIABLE`]. Naming an adapter there allows a software one.
fn from_environment(choice: &AdapterChoice) -> AdapterChoice {
    let mut choice = choice.clone();
    if choice.index.is_some() || choice.name.is_some() {
        return choice;
    }
    if let Ok(text) = std::env::var(ADAPTER_VARIABLE)
        && !text.trim().is_empty()
    {
        match text.trim().parse() {
            Ok(index) => choice.index = Some(index),
            Err(_) => choice.name = Some(text.trim().to_string()),
        }
        choice.allow_software = true;
    }
    choice
}

/// Index of the adapter that `choice` means in `list`.
///
/// # Errors
/// [`Error::NoAdapter`], saying what was asked and what is there.
fn choose(list: &[AdapterInfo], choice: &AdapterChoice) -> Result<usize> {
    let found = || match list {
        [] => "no adapter at all (is a Vulkan, Metal or D3D12 driver installed?)".to_string(),
        _ => {
            list.iter().enumerate().map(|(i, a)| format!("{i}: {} ({})", a.name, a.kind)).collect::<Vec<_>>().join(", ")
        }
    };
    let software_allowed = |a: &AdapterInfo| choice.allow_software || !a.is_software();
    if let Some(index) = choice.index {
        let Some(a) = list.get(index as usize) else {
            bail!(NoAdapter, "index {index} asked for; found {}", found());
        };
        if !software_allowed(a) {
            bail!(NoAdapter, "adapter {index} ({}) is a software one, which the options do not allow", a.name);
        }
        return Ok(index as usize);
    }
    let named = |a: &AdapterInfo| match &choice.name {
        Some(part) => a.name.to_lowercase().contains(&part.to_lowercase()),
        None => true,
    };
    let rank = |a: &AdapterInfo| match (a.kind, choice.power) {
        ("discrete", PowerPreference::HighPerformance) | ("integrated", PowerPreference::LowPower) => 0,
        ("discrete", _) | ("integrated", _) => 1,
        ("software", _) => 3,
        _ => 2,
    };
    list.iter()
        .enumerate()
        .filter(|(_, a)| named(a) && software_allowed(a))
        .min_by_key(|(_, a)| rank(a))
        .map(|(i, _)| i)
        .ok_or_else(|| {
            let wanted = match &choice.name {
                Some(n) => format!("one whose name contains \"{n}\" was asked for"),
                None => "any was asked for".to_string(),
            };
            let software = if choice.allow_software { "" } else { ", software ones not allowed" };
            Error::NoAdapter(format!("{wanted}{software}; found {}", found()))
        })
}

/// Opens the instance and picks the adapter.
pub(crate) fn pick(choice: &AdapterChoice) -> Result<(wgpu::Adapter, AdapterInfo)> {
    let mut adapters = enumerate(&instance());
    let infos: Vec<_> = adapters.iter().map(AdapterInfo::of).collect();
    let index = choose(&infos, &from_environment(choice))?;
    Ok((adapters.swap_remove(index), infos[index].clone()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn info(name: &str, kind: &'static str) -> AdapterInfo {
        AdapterInfo {
            name: name.into(),
            driver: String::new(),
            backend: "vulkan".into(),
            kind,
            vendor: 0,
            device: 0,
            subgroup_min: 8,
            subgroup_max: 8,
            max_binding_bytes: 1 << 27,
            max_buffer_bytes: 1 << 28,
            subgroups: true,
            f16: true,
            immediates: true,
            timestamps: true,
            pipeline_cache: true,
            cooperative_matrix: false,
            chains: false,
        }
    }

    #[test]
    fn choice_follows_index_name_power_and_software_rule() {
        let list = [info("llvmpipe", "software"), info("Small", "integrated"), info("Big", "discrete")];
        let any = AdapterChoice { allow_software: true, ..Default::default() };
        assert_eq!(choose(&list, &any).unwrap(), 2);
        assert_eq!(choose(&list, &AdapterChoice { power: PowerPreference::LowPower, ..any.clone() }).unwrap(), 1);
        assert_eq!(choose(&list, &AdapterChoice { name: Some("LLVM".into()), ..any.clone() }).unwrap(), 0);
        assert_eq!(choose(&list, &AdapterChoice { index: Some(1), ..any.clone() }).unwrap(), 1);
        let strict = AdapterChoice { name: Some("llvm".into()), ..Default::default() };
        assert!(choose(&list, &strict).unwrap_err().to_string().contains("Small"));
        assert!(choose(&[], &any).unwrap_err().to_string().contains("driver"));
        assert!(choose(&list, &AdapterChoice { index: Some(9), ..any }).is_err());
    }
}
