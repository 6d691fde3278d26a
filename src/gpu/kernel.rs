//! What a kernel is, and what calling one gives.
//!
//! A [`Kernel`] is a static declaration: a shader and the flags, constants and slots it knows. Calling an operation of
//! `src/kernels` gives a [`Dispatch`], a plain value with the variant, bindings, parameters and grid; it is recorded
//! ([`crate::gpu::Recorder::record`]) or run at once ([`Dispatch::run`], three lines over recording), so both are the same path.

use crate::error::{Result, bail};
use crate::gpu::buffer::{Buffer, BufferSlice};
use crate::gpu::counters::Scope;
use crate::gpu::device::Gpu;
use crate::gpu::recorder::Submission;
use crate::gpu::shader::Fragment;

/// Largest parameter structure, in bytes: what every adapter with immediates offers.
pub const MAX_PARAMS: usize = 128;

/// The declaration of a kernel.
#[derive(Debug)]
pub struct Kernel {
    /// Name, as in `shaders/<name>.wgsl`.
    pub name: &'static str,
    /// The shader's text.
    pub source: &'static str,
    /// Flags a caller may set (`SUBGROUPS` is set by the device).
    pub flags: &'static [&'static str],
    /// Override constants a caller may set.
    pub constants: &'static [&'static str],
    /// Slots to be filled by the caller (`weight`, `kv`).
    pub slots: &'static [&'static str],
    /// Which combinations of them exist.
    pub forms: Forms,
    /// Names and types (`u32` or `f32`) of the parameter structure's fields, in order; from the `params!` macro.
    pub params: &'static [(&'static str, &'static str)],
}

/// The combinations of a kernel's flags, constants and fragments that exist. A dispatch that asks for another one is refused, so
/// that nothing runs which no test knows of.
#[derive(Debug, Clone, Copy)]
pub struct Forms {
    /// Constants whose value chooses a path through the shader, each with its values. The other constants are sizes.
    pub paths: &'static [(&'static str, &'static [u32])],
    /// False for combinations that exclude each other.
    pub exists: fn(&Variant) -> bool,
}

impl Forms {
    /// Every combination of flags and fragments; no constant chooses a path.
    pub const ALL: Self = Self { paths: &[], exists: |_| true };
}

/// The form of a kernel a dispatch asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Variant {
    /// Flags that are set.
    pub flags: Vec<&'static str>,
    /// Override constants, by name.
    pub constants: Vec<(&'static str, u32)>,
    /// Fragments, by slot; names stand for fragments in comparisons (they are unique).
    pub slots: Vec<(&'static str, &'static Fragment)>,
}

impl Variant {
    /// True if a flag is set.
    pub fn has(&self, flag: &str) -> bool {
        self.flags.contains(&flag)
    }

    /// The value of a constant, if it is set.
    pub fn constant(&self, name: &str) -> Option<u32> {
        self.constants.iter().find(|c| c.0 == name).map(|c| c.1)
    }

    /// The name of the fragment in a slot, if it is filled.
    pub fn fragment(&self, slot: &str) -> Option<&'static str> {
        self.slots.iter().find(|s| s.0 == slot).map(|s| s.1.name)
    }
}

impl std::fmt::Display for Variant {
    /// `BIAS TAIL NT=2 weight=Q8_0`, or `plain`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let flags = self.flags.iter().map(|s| s.to_string());
        let constants = self.constants.iter().map(|(n, v)| format!("{n}={v}"));
        let slots = self.slots.iter().map(|(n, g)| format!("{n}={}", g.name.rsplit('/').next().unwrap_or_default()));
        let all: Vec<_> = flags.chain(constants).chain(slots).collect();
        f.write_str(if all.is_empty() { "plain" } else { "" })?;
        f.write_str(&all.join(" "))
    }
}

impl Kernel {
    /// Whether the kernel exists only on devices with [`crate::gpu::Features::cooperative_matrix`]: its text says so by what it enables.
    pub fn is_cooperative(&self) -> bool {
        self.source.contains("enable wgpu_cooperative_matrix;")
    }

    /// A variant without sizes, and with everything in the order of the declaration: what two dispatches of one form have in common.
    pub fn form(&self, v: &Variant) -> Variant {
        let paths = self.forms.paths.iter().filter_map(|&(n, _)| Some((n, v.constant(n)?)));
        let slots = self.slots.iter().filter_map(|n| v.slots.iter().find(|s| s.0 == *n));
        Variant {
            flags: self.flags.iter().copied().filter(|f| v.has(f)).collect(),
            constants: paths.collect(),
            slots: slots.copied().collect(),
        }
    }

    /// Fails if the declaration does not know of this variant.
    ///
    /// # Errors
    /// [`crate::Error::Internal`] naming the kernel and what is unknown.
    pub fn admit(&self, v: &Variant) -> Result<()> {
        if let Some(f) = v.flags.iter().find(|f| !self.flags.contains(f)) {
            bail!(Internal, "kernel {} has no flag {f}", self.name);
        }
        if let Some((c, _)) = v.constants.iter().find(|c| !self.constants.contains(&c.0)) {
            bail!(Internal, "kernel {} has no constant {c}", self.name);
        }
        for (name, values) in self.forms.paths {
            if !v.constant(name).is_some_and(|n| values.contains(&n)) {
                bail!(Internal, "kernel {} declares {name} as one of {values:?}; asked for: {v}", self.name);
            }
        }
        if !(self.forms.exists)(v) {
            bail!(Internal, "kernel {} declares no variant {v}", self.name);
        }
        Ok(())
    }
}

impl std::hash::Hash for Fragment {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

/// How many workgroups.
#[derive(Debug, Clone)]
pub enum Grid {
    /// Counted by the host.
    Direct([u32; 3]),
    /// Read from a buffer at this offset: three `u32`.
    Indirect(Buffer, u64),
}

/// Folds `groups` workgroups into x and y, since a dimension holds 65,535 at most. Shaders get the index back with
/// `group_index` and return early beyond the count, which stands in their parameters.
pub fn linear_grid(groups: u64) -> Grid {
    const LIMIT: u64 = 65_535;
    if groups <= LIMIT {
        return Grid::Direct([groups as u32, 1, 1]);
    }
    // Near-square, so that few surplus groups start.
    let y = groups.div_ceil(LIMIT);
    let x = groups.div_ceil(y);
    Grid::Direct([x as u32, y as u32, 1])
}

/// One call of a kernel.
#[derive(Debug)]
#[must_use = "a dispatch does nothing until it is recorded or run"]
pub struct Dispatch<'a> {
    /// The kernel.
    pub kernel: &'static Kernel,
    /// Name for profiles and counters, such as `attn.q`.
    pub label: &'static str,
    /// The form asked for.
    pub variant: Variant,
    /// Bindings by the shader's variable names, in the shader's order.
    pub bindings: Vec<(&'static str, BufferSlice<'a>)>,
    /// The parameter structure's bytes.
    pub params: Vec<u8>,
    /// Workgroups.
    pub grid: Grid,
}

impl<'a> Dispatch<'a> {
    /// A call of the kernel's plain form.
    pub fn new(kernel: &'static Kernel, params: &impl bytemuck::Pod, grid: Grid) -> Self {
        Self {
            kernel,
            label: kernel.name,
            variant: Variant::default(),
            bindings: Vec::new(),
            params: bytemuck::bytes_of(params).to_vec(),
            grid,
        }
    }

    /// Binds a buffer range to the shader's variable `name`.
    pub fn bind(mut self, name: &'static str, slice: impl Into<BufferSlice<'a>>) -> Self {
        self.bindings.push((name, slice.into()));
        self
    }

    /// Sets a flag if `on`.
    pub fn flag(mut self, name: &'static str, on: bool) -> Self {
        if on {
            self.variant.flags.push(name);
        }
        self
    }

    /// Sets an override constant.
    pub fn constant(mut self, name: &'static str, value: u32) -> Self {
        self.variant.constants.push((name, value));
        self
    }

    /// Fills a slot.
    pub fn slot(mut self, name: &'static str, fragment: &'static Fragment) -> Self {
        self.variant.slots.push((name, fragment));
        self
    }

    /// Names the dispatch for profiles.
    pub fn label(mut self, label: &'static str) -> Self {
        self.label = label;
        self
    }

    /// Records this dispatch alone and submits it.
    ///
    /// # Errors
    /// As [`crate::gpu::Recorder::record`] and [`crate::gpu::Recorder::submit`].
    pub fn run(self, gpu: &Gpu, scope: &Scope) -> Result<Submission> {
        let mut recorder = gpu.recorder("run", scope);
        recorder.record(self)?;
        recorder.submit()
    }
}

/// Declares a parameter structure once: the Rust struct (`#[repr(C)]`, Pod) and the field list that the shader test
/// compares with the WGSL `struct Params`.
macro_rules! params {
    ($name:ident { $($field:ident : $ty:ident),* $(,)? }) => {
        #[repr(C)]
        #[derive(Debug, Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
        pub(crate) struct $name { $(pub(crate) $field: $ty),* }
        impl $name {
            /// Names and types of the fields, in order.
            pub(crate) const FIELDS: &'static [(&'static str, &'static str)] = &[$((stringify!($field), stringify!($ty))),*];
        }
        const _: () = assert!(size_of::<$name>() <= $crate::gpu::MAX_PARAMS);
    };
}
pub(crate) use params;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_cover_every_group_within_the_limit() {
        for n in [0, 1, 65_535, 65_536, 65_537, 1_000_000, 3_000_000_000] {
            let Grid::Direct([x, y, z]) = linear_grid(n) else { panic!() };
            assert!(x <= 65_535 && y <= 65_535 && z == 1);
            let started = u64::from(x) * u64::from(y);
            assert!(started >= n && started - n < u64::from(y).max(1), "{n}: {x} x {y}");
        }
    }
}
