//! Which variants of the kernels exist, and which of them must be tried against a reference.
//!
//! What exists is said by each kernel ([`crate::gpu::Forms`]), and a dispatch of anything else is refused. Trying all of it on every
//! kind of device would grow with the product of formats, flags and abilities, so a variant is *declared* for trial as follows:
//!
//! * on a device with everything the adapter has, the first fragment of each family (weight formats of one block length; the storages of
//!   keys and values) with every combination of flags and paths, and every other fragment without flags and with as many as exist
//!   together, with every path;
//! * on devices with one ability switched off, and with none, wherever the shader's text then differs: the first of each family without
//!   flags and with as many as exist together, with every path; every other fragment with as many flags as exist together, on the last path.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::error::Result;
use crate::gpu::{BindingDecl, Features, Fragment, Kernel, Variant, assemble};
use crate::kernels::{KERNELS, fragments_of};
use crate::quant::{FORMATS, Format, by_name};

/// What makes two dispatches the same shader on the same path: the kernel's name, the form, and the text as assembled for the device.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct VariantKey {
    kernel: &'static str,
    form: Variant,
    source: u64,
}

impl VariantKey {
    /// The key of a dispatch on a device with these abilities.
    ///
    /// # Errors
    /// [`crate::Error::Internal`] if the kernel does not know the variant.
    pub fn new(kernel: &'static Kernel, variant: &Variant, features: Features) -> Result<Self> {
        Ok(Self::with_bindings(kernel, variant, features)?.0)
    }

    /// [`VariantKey::new`], and the bindings in their order.
    ///
    /// # Errors
    /// As [`VariantKey::new`].
    pub fn with_bindings(
        kernel: &'static Kernel,
        variant: &Variant,
        features: Features,
    ) -> Result<(Self, Vec<BindingDecl>)> {
        kernel.admit(variant)?;
        let form = kernel.form(variant);
        let flags: Vec<_> = form.flags.iter().copied().chain(features.shader_flags()).collect();
        let assembled = assemble(kernel.name, kernel.source, &flags, &form.slots, features.immediates)?;
        let mut hasher = DefaultHasher::new();
        assembled.source.hash(&mut hasher);
        Ok((Self { kernel: kernel.name, form, source: hasher.finish() }, assembled.bindings))
    }

    /// The kernel's name.
    pub fn kernel(&self) -> &'static str {
        self.kernel
    }
}

/// A variant that must be tried against a reference.
#[derive(Debug)]
pub struct Declared {
    /// The kernel.
    pub kernel: &'static Kernel,
    /// Flags, paths and fragments.
    pub form: Variant,
    /// The first device of [`device_sets`] on which the shader reads like this.
    pub device: &'static str,
    /// What its execution is recognised by.
    pub key: VariantKey,
}

impl std::fmt::Display for Declared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} ({})", self.kernel.name, self.form, self.device)
    }
}

/// Devices that differ in their shaders, of an adapter with these abilities: everything, each ability switched off, none.
pub fn device_sets(present: Features) -> Vec<(&'static str, Features)> {
    let p = present;
    // An ability that is added must be looked at here: does it change shaders?
    let Features {
        subgroups: _,
        f16: _,
        immediates: _,
        timestamps: _,
        pipeline_cache: _,
        cooperative_matrix: _,
        chains: _,
    } = p;
    let nothing =
        Features { subgroups: false, f16: false, immediates: false, cooperative_matrix: false, chains: false, ..p };
    // The last decides which kernels there are, not how they read, so nothing is tried without one of them alone.
    let mut sets = vec![
        ("everything on", p),
        ("no subgroups", Features { subgroups: false, cooperative_matrix: false, chains: false, ..p }),
        ("no f16", Features { f16: false, cooperative_matrix: false, ..p }),
        ("no immediates", Features { immediates: false, ..p }),
        ("nothing on", nothing),
        // Shaders read the same, but operations choose among them by other sizes: here those run that the first device never takes.
        ("no chains", Features { chains: false, ..p }),
    ];
    // What the adapter lacks cannot be switched off.
    let mut seen: Vec<Features> = Vec::new();
    sets.retain(|&(_, f)| {
        let new = !seen.contains(&f);
        seen.push(f);
        new
    });
    sets
}

fn subsets(flags: &[&'static str]) -> Vec<Vec<&'static str>> {
    let chosen = |bits: usize| flags.iter().enumerate().filter(move |(i, _)| bits >> i & 1 == 1).map(|(_, &f)| f);
    (0..1usize << flags.len()).map(|bits| chosen(bits).collect()).collect()
}

/// Ways to fill slots: every fragment in each. A kernel of several slots for weights does not exist with every combination, but it is all the same
/// to a slot what stands in the others: so each format stands in each of them once, beside others of its kind (with bytes or without).
fn fillings(slots: &[&'static str]) -> Vec<Vec<(&'static str, &'static Fragment)>> {
    if slots.iter().filter(|s| **s != "kv").count() > 1 {
        let (bytes, floats): (Vec<_>, Vec<_>) = FORMATS.iter().partition(|f| f.has_bytes());
        let fill = |kind: &[&Format], i: usize| {
            let of = |(j, &slot): (usize, &&'static str)| {
                let all = fragments_of(slot);
                let wanted = kind.get((i + j) % kind.len().max(1)).map(|f| f.name).filter(|_| slot != "kv");
                Some((slot, *all.iter().find(|f| Some(f.name) == wanted).or(all.get(i % all.len().max(1)))?))
            };
            slots.iter().enumerate().filter_map(of).collect()
        };
        return [bytes, floats].iter().flat_map(|kind| (0..kind.len()).map(|i| fill(kind, i))).collect();
    }
    slots.iter().fold(vec![Vec::new()], |all, &slot| {
        let extend = |filled: &Vec<_>| {
            let filled = filled.clone();
            fragments_of(slot).into_iter().map(move |f| [filled.as_slice(), &[(slot, f)]].concat())
        };
        all.iter().flat_map(extend).collect()
    })
}

/// Values of the constants that choose a path.
fn paths(kernel: &Kernel) -> Vec<Vec<(&'static str, u32)>> {
    kernel.forms.paths.iter().fold(vec![Vec::new()], |all, &(name, values)| {
        all.iter().flat_map(|set| values.iter().map(move |&v| [set.as_slice(), &[(name, v)]].concat())).collect()
    })
}

/// Every form that exists.
pub fn forms(kernel: &Kernel) -> Vec<Variant> {
    let mut all = Vec::new();
    for slots in fillings(kernel.slots) {
        for constants in paths(kernel) {
            for flags in subsets(kernel.flags) {
                all.push(Variant { flags, constants: constants.clone(), slots: slots.clone() });
            }
        }
    }
    all.retain(kernel.forms.exists);
    all
}

/// The first fragment of its family stands for it where flags are combined.
fn leads_family(slot: &str, fragment: &str) -> bool {
    if slot == "kv" {
        return fragments_of(slot).first().is_some_and(|f| f.name == fragment);
    }
    let Some(format) = by_name(fragment).filter(|_| slot == "weight") else { return true };
    FORMATS.iter().find(|f| f.block_len == format.block_len).is_some_and(|f| f.name == format.name)
}

/// True if no form with the same fragments and constants has these flags and more.
fn has_most_flags(form: &Variant, all: &[Variant]) -> bool {
    let more = |o: &Variant| {
        (&o.slots, &o.constants) == (&form.slots, &form.constants)
            && o.flags.len() > form.flags.len()
            && form.flags.iter().all(|f| o.has(f))
    };
    !all.iter().any(more)
}

/// Whether a form is tried: see the module's text.
fn is_tried(kernel: &Kernel, form: &Variant, all: &[Variant], everything_on: bool) -> bool {
    let leads = form.slots.iter().all(|(slot, f)| leads_family(slot, f.name));
    let last_path = kernel.forms.paths.iter().all(|(name, values)| form.constant(name) == values.last().copied());
    let most = has_most_flags(form, all);
    match (everything_on, leads) {
        (true, true) => true,
        (true, false) | (false, true) => most || form.flags.is_empty(),
        (false, false) => most && last_path,
    }
}

/// Rows are staged where subgroups read them together.
fn exists_on(kernel: &Kernel, form: &Variant, features: Features) -> bool {
    (features.cooperative_matrix || !kernel.is_cooperative()) && (features.subgroups || !form.has("STAGED"))
}

/// Every variant to be tried on an adapter with these abilities. See the module's text.
///
/// # Errors
/// [`crate::Error::Internal`] for a shader that does not assemble.
pub fn declared(present: Features) -> Result<Vec<Declared>> {
    let mut list = Vec::new();
    let mut seen = HashSet::new();
    for kernel in KERNELS.iter().copied() {
        let all = forms(kernel);
        for (i, (device, features)) in device_sets(present).into_iter().enumerate() {
            let here: Vec<_> = all.iter().filter(|form| exists_on(kernel, form, features)).cloned().collect();
            for form in &here {
                if !is_tried(kernel, form, &here, i == 0) {
                    continue;
                }
                let key = VariantKey::new(kernel, form, features)?;
                if seen.insert(key.clone()) {
                    list.push(Declared { kernel, form: form.clone(), device, key });
                }
            }
        }
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(name: &str) -> &'static Kernel {
        KERNELS.iter().copied().find(|k| k.name == name).unwrap()
    }

    #[test]
    fn forms_are_the_product_without_what_excludes_each_other() {
        assert_eq!(forms(kernel("cast")).len(), 3);
        assert_eq!(forms(kernel("activate")).len(), 10);
        assert_eq!(forms(kernel("rope")).len(), 3 * fragments_of("kv").len());
        let vec = forms(kernel("matmul_vec"));
        let of = |format| vec.iter().filter(|v| v.fragment("weight") == Some(format)).count();
        assert_eq!(
            (of("F32"), of("Q8_0")),
            ((14 + 8) * 3, 12 * 3 + 6 * 2),
            "tails and scaled numbers without blocks, and without a tail also four rows; bytes with them, staged for four or eight; no norm added to something"
        );
    }

    #[test]
    fn declared_variants_reach_every_fragment_flag_path_and_device() {
        let list = declared(Features::ALL).unwrap();
        let has = |kernel: &str, device: &str, f: &dyn Fn(&Variant) -> bool| {
            list.iter().any(|d| d.kernel.name == kernel && d.device == device && f(&d.form))
        };
        for kernel in KERNELS {
            for form in forms(kernel) {
                for slot in &form.slots {
                    let fragment = |v: &Variant| v.slots.contains(slot);
                    assert!(has(kernel.name, "everything on", &fragment), "{} {form}", kernel.name);
                    assert!(
                        kernel.is_cooperative() || has(kernel.name, "nothing on", &fragment),
                        "{} {form}",
                        kernel.name
                    );
                }
                for flag in &form.flags {
                    assert!(has(kernel.name, "everything on", &|v| v.has(flag)), "{} {form}", kernel.name);
                }
                for &(name, value) in &form.constants {
                    let same = |v: &Variant| v.constant(name) == Some(value);
                    assert!(has(kernel.name, "everything on", &same), "{} {form}", kernel.name);
                }
            }
        }
        // No weight format's text knows of that ability.
        assert!(!has("gather", "no f16", &|_| true));
    }

    #[test]
    fn undeclared_variants_are_refused_by_name() {
        let k = kernel("matmul_vec");
        let fine = forms(k).into_iter().find(|v| v.fragment("weight") == Some("Q8_0")).unwrap();
        k.admit(&Variant { constants: vec![("WG", 64), ("NT", 2)], ..fine.clone() }).unwrap();
        for (bad, part) in [
            (Variant { constants: vec![("NT", 3)], ..fine.clone() }, "NT"),
            (Variant { constants: vec![], ..fine.clone() }, "NT"),
            (Variant { flags: vec!["NO_SUCH"], ..fine.clone() }, "NO_SUCH"),
            (Variant { flags: vec!["TAIL"], ..fine.clone() }, "TAIL"),
            (Variant { constants: vec![("NT", 1), ("XX", 1)], ..fine.clone() }, "XX"),
        ] {
            let e = k.admit(&bad).unwrap_err().to_string();
            assert!(e.contains("matmul_vec") && e.contains(part), "{e}");
        }
    }
}
