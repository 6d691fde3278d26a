//! Assembling WGSL: imports, flags, fragments, binding numbers, parameters.
//!
//! Shaders are plain files. Five kinds of line are ours, each beginning with `#`:
//! `#import name` (a file of `shaders/lib`, once), `#if FLAG` / `#else` / `#endif` (no nesting of meaning, nesting of
//! blocks allowed), `#slot name` (a fragment chosen by the caller: a weight format, a KV type), and `#set FLAG` (a flag that this shader
//! always has, for the lines after it). `@binding(auto)` counts up in
//! the order of the text. A shader declares `struct Params` and uses `params`; the variable is added here, as immediate data
//! where the device has it and as a uniform at group 1 otherwise. `enable` lines are moved to the top, as WGSL wants them.

use std::collections::HashSet;
use std::fmt::Write as _;

use crate::error::{Error, Result, bail};

/// A piece of WGSL that fills a `#slot`.
#[derive(Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Unique name.
    pub name: &'static str,
    /// Its text.
    pub source: &'static str,
}

/// One storage binding of an assembled shader.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BindingDecl {
    /// The WGSL variable.
    pub name: String,
    /// True for `read`, false for `read_write`.
    pub read_only: bool,
}

/// An assembled shader.
#[derive(Debug)]
pub struct Assembled {
    /// Complete WGSL.
    pub source: String,
    /// The storage bindings of group 0, in order of their numbers.
    pub bindings: Vec<BindingDecl>,
    /// The shader has a `Params` structure.
    pub has_params: bool,
}

const LIBRARY: &[(&str, &str)] = &[
    ("thread", include_str!("../../shaders/lib/thread.wgsl")),
    ("reduce", include_str!("../../shaders/lib/reduce.wgsl")),
    ("finite", include_str!("../../shaders/lib/finite.wgsl")),
    ("scan", include_str!("../../shaders/lib/scan.wgsl")),
    ("state", include_str!("../../shaders/lib/state.wgsl")),
    ("order", include_str!("../../shaders/lib/order.wgsl")),
    ("best", include_str!("../../shaders/lib/best.wgsl")),
    ("step_begin", include_str!("../../shaders/lib/step_begin.wgsl")),
    ("step_end", include_str!("../../shaders/lib/step_end.wgsl")),
    ("places", include_str!("../../shaders/lib/places.wgsl")),
    ("rotation", include_str!("../../shaders/lib/rotation.wgsl")),
    ("wide", include_str!("../../shaders/lib/wide.wgsl")),
    ("philox", include_str!("../../shaders/lib/philox.wgsl")),
    ("activation", include_str!("../../shaders/lib/activation.wgsl")),
    ("bytes", include_str!("../../shaders/lib/bytes.wgsl")),
    ("short", include_str!("../../shaders/lib/short.wgsl")),
    ("chain", include_str!("../../shaders/lib/chain.wgsl")),
    ("chain_in", include_str!("../../shaders/lib/chain_in.wgsl")),
    ("chain_parts", include_str!("../../shaders/lib/chain_parts.wgsl")),
    ("chain_y", include_str!("../../shaders/lib/chain_y.wgsl")),
    ("chain_best", include_str!("../../shaders/lib/chain_best.wgsl")),
    ("route", include_str!("../../shaders/lib/route.wgsl")),
    ("route_in", include_str!("../../shaders/lib/route_in.wgsl")),
    ("byte_rows", include_str!("../../shaders/lib/byte_rows.wgsl")),
    ("number_rows", include_str!("../../shaders/lib/number_rows.wgsl")),
    ("next_rows", include_str!("../../shaders/lib/next_rows.wgsl")),
    ("half_rows", include_str!("../../shaders/lib/half_rows.wgsl")),
    ("staged_rows", include_str!("../../shaders/lib/staged_rows.wgsl")),
    ("team", include_str!("../../shaders/lib/team.wgsl")),
    ("team_tile", include_str!("../../shaders/lib/team_tile.wgsl")),
    ("products", include_str!("../../shaders/lib/products.wgsl")),
    ("quants", include_str!("../../shaders/lib/quants.wgsl")),
    ("sub_scales", include_str!("../../shaders/lib/sub_scales.wgsl")),
    ("coop_product", include_str!("../../shaders/lib/coop_product.wgsl")),
    ("codebook", include_str!("../../shaders/lib/codebook.wgsl")),
    ("attention_row", include_str!("../../shaders/lib/attention_row.wgsl")),
    ("attention_lanes", include_str!("../../shaders/lib/attention_lanes.wgsl")),
    ("attention_tiles", include_str!("../../shaders/lib/attention_tiles.wgsl")),
];

struct Assembler<'a> {
    flags: Vec<&'a str>,
    slots: &'a [(&'static str, &'static Fragment)],
    imported: HashSet<String>,
    filled: HashSet<&'static str>,
    enables: Vec<String>,
    bindings: Vec<BindingDecl>,
    out: String,
}

/// Assembles `source` with `flags` set and each `#slot` filled from `slots`.
///
/// # Errors
/// [`Error::Internal`] naming the line: shaders are part of the library, so any failure is its defect.
pub fn assemble(
    name: &str,
    source: &str,
    flags: &[&'static str],
    slots: &[(&'static str, &'static Fragment)],
    immediates: bool,
) -> Result<Assembled> {
    let mut a = Assembler {
        flags: flags.to_vec(),
        slots,
        imported: HashSet::new(),
        filled: HashSet::new(),
        enables: Vec::new(),
        bindings: Vec::new(),
        out: String::new(),
    };
    a.text(name, source)?;
    if let Some((slot, _)) = slots.iter().find(|(s, _)| !a.filled.contains(s)) {
        bail!(Internal, "shader {name} has no slot {slot}");
    }
    let has_params = a.out.contains("struct Params");
    if has_params {
        a.out.push_str(if immediates {
            "var<immediate> params: Params;\n"
        } else {
            "@group(1) @binding(0) var<uniform> params: Params;\n"
        });
    }
    let mut source = String::with_capacity(a.out.len() + 64);
    for enable in &a.enables {
        let _ = writeln!(source, "{enable}");
    }
    source.push_str(&a.out);
    Ok(Assembled { source, bindings: a.bindings, has_params })
}

impl<'a> Assembler<'a> {
    fn text(&mut self, name: &str, source: &'a str) -> Result<()> {
        // One entry a nested block: is this branch taken, and was the condition true?
        let mut blocks: Vec<(bool, bool)> = Vec::new();
        for (number, line) in source.lines().enumerate() {
            let fail = |what: &str| Error::Internal(format!("shader {name} line {}: {what}: {line}", number + 1));
            let trimmed = line.trim();
            let taken = blocks.iter().all(|b| b.0);
            if let Some(flag) = trimmed.strip_prefix("#if ") {
                let (flag, wanted) = match flag.trim().strip_prefix('!') {
                    Some(f) => (f, false),
                    None => (flag.trim(), true),
                };
                let set = self.flags.contains(&flag) == wanted;
                blocks.push((set, set));
            } else if trimmed == "#else" {
                let block = blocks.last_mut().ok_or_else(|| fail("#else without #if"))?;
                block.0 = !block.1;
            } else if trimmed == "#endif" {
                blocks.pop().ok_or_else(|| fail("#endif without #if"))?;
            } else if !taken {
            } else if let Some(flag) = trimmed.strip_prefix("#set ") {
                self.flags.push(flag.trim());
            } else if let Some(lib) = trimmed.strip_prefix("#import ") {
                let lib = lib.trim();
                if self.imported.insert(lib.to_string()) {
                    let (_, text) = LIBRARY.iter().find(|(n, _)| *n == lib).ok_or_else(|| fail("unknown import"))?;
                    self.text(lib, text)?;
                }
            } else if let Some(slot) = trimmed.strip_prefix("#slot ") {
                let found = self.slots.iter().find(|(s, _)| *s == slot.trim());
                let (slot, fragment) = *found.ok_or_else(|| fail("slot not filled"))?;
                self.filled.insert(slot);
                self.text(fragment.name, fragment.source)?;
            } else if trimmed.starts_with('#') {
                return Err(fail("unknown directive"));
            } else if trimmed.starts_with("enable ") {
                if !self.enables.iter().any(|e| e == trimmed) {
                    self.enables.push(trimmed.to_string());
                }
            } else if trimmed.starts_with("@group(0)") {
                self.binding(trimmed).map_err(|e| fail(&e))?;
            } else {
                self.out.push_str(line);
                self.out.push('\n');
            }
        }
        if !blocks.is_empty() {
            bail!(Internal, "shader {name}: #if without #endif");
        }
        Ok(())
    }

    /// `@group(0) @binding(auto|N) var<storage, read|read_write> name: …;`
    fn binding(&mut self, line: &str) -> std::result::Result<(), String> {
        let number = self.bindings.len();
        let rest = line
            .strip_prefix("@group(0) @binding(auto) ")
            .or_else(|| line.strip_prefix(&format!("@group(0) @binding({number}) ")))
            .ok_or("bindings count up from 0, or are auto")?;
        let (read_only, rest) = if let Some(r) = rest.strip_prefix("var<storage, read> ") {
            (true, r)
        } else if let Some(r) = rest.strip_prefix("var<storage, read_write> ") {
            (false, r)
        } else {
            return Err("a binding is var<storage, read> or var<storage, read_write>".into());
        };
        let name = rest.split(':').next().unwrap_or_default().trim().to_string();
        self.bindings.push(BindingDecl { name, read_only });
        let access = if read_only { "read" } else { "read_write" };
        let _ = writeln!(self.out, "@group(0) @binding({number}) var<storage, {access}> {rest}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static FRAGMENT: Fragment =
        Fragment { name: "frag", source: "enable f16;\n@group(0) @binding(auto) var<storage, read> w: array<u32>;\n" };

    #[test]
    fn flags_slots_bindings_and_params() {
        let text = "struct Params { n: u32 }\n@group(0) @binding(auto) var<storage, read_write> y: array<f32>;\n\
            #slot weight\n#if A\nyes\n#if B\nboth\n#endif\n#else\nno\n#endif\n";
        let a = assemble("t", text, &["A"], &[("weight", &FRAGMENT)], true).unwrap();
        assert!(a.source.starts_with("enable f16;\n"));
        assert!(a.source.contains("yes") && !a.source.contains("both") && !a.source.contains("no\n"));
        assert!(a.source.contains("@binding(1) var<storage, read> w"));
        assert!(a.source.contains("var<immediate> params"));
        let names: Vec<_> = a.bindings.iter().map(|b| (b.name.as_str(), b.read_only)).collect();
        assert_eq!(names, [("y", false), ("w", true)]);
        let set = "#set A\n#if A\nyes\n#endif\n#if B\n#set C\n#endif\n#if C\nno\n#endif\n";
        assert_eq!(assemble("t", set, &[], &[], true).unwrap().source, "yes\n");
        let b = assemble("t", text, &[], &[("weight", &FRAGMENT)], false).unwrap();
        assert!(b.source.contains("no\n") && b.source.contains("@group(1) @binding(0) var<uniform> params"));
    }

    #[test]
    fn mistakes_name_their_line() {
        for (text, part) in [
            ("#if A\n", "#endif"),
            ("#else\n", "line 1"),
            ("\n#import nothing\n", "line 2"),
            ("#slot weight\n", "not filled"),
            ("@group(0) @binding(3) var<storage, read> x: array<u32>;\n", "count up"),
        ] {
            let e = assemble("t", text, &[], &[], true).unwrap_err().to_string();
            assert!(e.contains(part), "{e}");
        }
        assert!(assemble("t", "", &[], &[("weight", &FRAGMENT)], true).is_err());
    }
}
