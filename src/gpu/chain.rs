//! Chains: dispatches that follow each other made one, whose workgroups wait for what they read.
//!
//! Between two dispatches a device runs dry and starts anew, some microseconds for each. In a chain the workgroups of all *stages* are of one dispatch, stage
//! after stage; those of a later one start while an earlier one ends, and wait for single words of it (`shaders/lib/chain.wgsl`). Words carry a tag,
//! so nothing is asked of the order of writes. What is asked for: a device starts workgroups in the order of their indices, and goes on with those that
//! it has started. No API promises that, so chains are for devices that are known to do so ([`crate::gpu::Features::chains`]), and every wait ends.
//!
//! One shader is made of the stages': everything that a text declares gets a prefix, constants and parameters become `const`, bindings count on.

use std::collections::HashSet;
use std::fmt::Write as _;

use crate::error::{Result, bail};
use crate::gpu::buffer::{Buffer, BufferSlice};
use crate::gpu::kernel::{Dispatch, Grid, Kernel, Variant};
use crate::gpu::shader::{self, Assembled, BindingDecl};

/// A binding that keeps its buffer.
type Bound = (&'static str, Buffer, u64, u64);

/// A dispatch that was recorded but is still held back, to become a stage of a chain or to be recorded as it is.
#[derive(Debug, Clone)]
pub struct Held {
    pub(crate) kernel: &'static Kernel,
    pub(crate) label: &'static str,
    pub(crate) variant: Variant,
    pub(crate) bindings: Vec<Bound>,
    pub(crate) params: Vec<u8>,
    pub(crate) grid: Grid,
    pub(crate) layer: Option<u32>,
}

impl Held {
    pub(crate) fn new(d: &Dispatch<'_>, layer: Option<u32>) -> Self {
        let bindings = d.bindings.iter().map(|(n, s)| (*n, s.buffer.clone(), s.offset, s.size)).collect();
        let (variant, params, grid) = (d.variant.clone(), d.params.clone(), d.grid.clone());
        Self { kernel: d.kernel, label: d.label, variant, bindings, params, grid, layer }
    }

    pub(crate) fn slices(&self) -> Vec<(&'static str, BufferSlice<'_>)> {
        self.bindings.iter().map(|(n, b, offset, size)| (*n, b.slice(*offset, *size))).collect()
    }

    pub(crate) fn dispatch(&self) -> Dispatch<'_> {
        Dispatch {
            kernel: self.kernel,
            label: self.label,
            variant: self.variant.clone(),
            bindings: self.slices(),
            params: self.params.clone(),
            grid: self.grid.clone(),
        }
    }

    /// The buffer bound to a variable.
    pub(crate) fn buffer(&self, name: &str) -> Option<u64> {
        self.bindings.iter().find(|b| b.0 == name).map(|b| b.1.id())
    }

    /// A field of the parameters.
    pub(crate) fn param(&self, name: &str) -> Option<u32> {
        let i = self.kernel.params.iter().position(|p| p.0 == name)?;
        self.params.get(4 * i..4 * i + 4)?.try_into().ok().map(u32::from_ne_bytes)
    }

    fn groups(&self) -> Option<[u32; 3]> {
        match self.grid {
            Grid::Direct(g) => Some(g),
            Grid::Indirect(..) => None,
        }
    }
}

/// A dispatch as part of a chain: flags and constants that its kernel does not declare, since they are for chains alone.
#[derive(Debug, Clone)]
pub(crate) struct Stage {
    pub(crate) held: Held,
    pub(crate) flags: Vec<&'static str>,
    pub(crate) constants: Vec<(&'static str, u32)>,
}

/// Stages, and what their shaders share: names of workgroup variables that stand in several of them and are one.
#[derive(Debug, Clone)]
pub struct Chain {
    pub(crate) stages: Vec<Stage>,
    pub(crate) shared: &'static [&'static str],
    /// Variables whose loads must stay in front of the waits that follow them. A driver may move what nobody writes behind them, so these are bound
    /// as if they were written.
    pub(crate) ahead: fn(&str) -> bool,
}

impl Chain {
    /// Workgroups of all stages; `None` if they are not known here, or too many for one dimension of a grid.
    pub(crate) fn groups(&self) -> Option<u32> {
        let mut sum = 0u64;
        for s in &self.stages {
            sum += s.held.groups()?.into_iter().map(u64::from).product::<u64>();
        }
        u32::try_from(sum).ok().filter(|&n| n <= 65_535)
    }

    /// Threads of a workgroup, if all stages have as many.
    pub(crate) fn threads(&self) -> Option<u32> {
        let mut all = self.stages.iter().map(|s| s.held.variant.constant("WG"));
        let first = all.next()??;
        all.all(|n| n == Some(first)).then_some(first)
    }

    /// What the shader depends on, which bindings are of one buffer included.
    pub(crate) fn identity(&self) -> String {
        let mut buffers = Vec::new();
        let mut number = |b: &Bound| {
            let id = b.1.id();
            buffers.iter().position(|x| *x == id).unwrap_or_else(|| {
                buffers.push(id);
                buffers.len() - 1
            })
        };
        let of = |s: &Stage| {
            let h = &s.held;
            let bound: Vec<_> = h.bindings.iter().map(&mut number).collect();
            let (flags, constants) = (&s.flags, &s.constants);
            format!("{} {} {:?} {:?} {flags:?} {constants:?} {bound:?};", h.kernel.name, h.variant, h.params, h.grid)
        };
        self.stages.iter().map(of).collect()
    }

    /// The shader, with its bindings: those of the stages one after another. Its one parameter is the tag.
    pub(crate) fn assemble(&self, device_flags: &[&'static str], immediates: bool) -> Result<Assembled> {
        let (Some(_), Some(threads)) = (self.groups(), self.threads()) else {
            bail!(Internal, "a chain of stages with different workgroups");
        };
        let mut texts = Vec::new();
        let mut written = HashSet::new();
        for Stage { held, flags, .. } in &self.stages {
            held.kernel.admit(&held.variant)?;
            let flags: Vec<_> = held.variant.flags.iter().chain(flags).chain(device_flags).copied().collect();
            let a = shader::assemble(held.kernel.name, held.kernel.source, &flags, &held.variant.slots, true)?;
            // A dispatch uses a buffer in one way: who only reads what another stage writes has it as writable, too.
            for (decl, b) in a.bindings.iter().zip(&held.bindings) {
                if !decl.read_only || (self.ahead)(&decl.name) {
                    written.insert(b.1.id());
                }
            }
            texts.push(a.source);
        }
        let mut out = Joined { shared: self.shared, ..Joined::default() };
        for (i, (stage, text)) in self.stages.iter().zip(&texts).enumerate() {
            out.stage(i, stage, text, &written, i + 1 == self.stages.len(), device_flags.contains(&"SUBGROUPS"))?;
        }
        let mut source = out.enables.concat();
        source.push_str(&out.text);
        let _ = writeln!(source, "@compute @workgroup_size({threads})\nfn main(t: s0_Thread) {{\n    let g = t.wid.x;");
        let variable = if immediates { "var<immediate>" } else { "@group(1) @binding(0) var<uniform>" };
        let _ = writeln!(
            source,
            "{}}}\nstruct Params {{ tag: u32 }}\n{variable} params: Params;\nfn chain_tag() -> u32 {{ return params.tag; }}",
            out.main
        );
        Ok(Assembled { source, bindings: out.bindings, has_params: true })
    }
}

#[derive(Default)]
struct Joined<'a> {
    shared: &'static [&'static str],
    enables: Vec<String>,
    text: String,
    main: String,
    bindings: Vec<BindingDecl>,
    /// Shared variables that are declared.
    declared: HashSet<&'a str>,
    /// Workgroups of the stages so far.
    groups: u32,
}

impl<'a> Joined<'a> {
    fn stage(
        &mut self,
        i: usize,
        stage: &Stage,
        source: &'a str,
        written: &HashSet<u64>,
        last: bool,
        subgroups: bool,
    ) -> Result<()> {
        let held = &stage.held;
        let prefix = format!("s{i}_");
        let mut text = String::new();
        for (name, value) in &stage.constants {
            let _ = writeln!(text, "const {name}: u32 = {value}u;");
        }
        let mut bound = held.bindings.iter();
        for line in source.lines() {
            let workgroup = line.strip_prefix("var<workgroup> ").map(word);
            if line.starts_with("enable ") {
                let line = format!("{line}\n");
                if !self.enables.contains(&line) {
                    self.enables.push(line);
                }
            } else if let Some(rest) = line.strip_prefix("@group(0)") {
                let (Some((_, rest)), Some((_, buffer, ..))) = (rest.split_once("> "), bound.next()) else {
                    bail!(Internal, "stage {}: {line}", held.kernel.name);
                };
                let read_only = !written.contains(&buffer.id());
                let access = if read_only { "read" } else { "read_write" };
                let number = self.bindings.len();
                let _ = writeln!(text, "@group(0) @binding({number}) var<storage, {access}> {rest}");
                self.bindings.push(BindingDecl { name: word(rest).into(), read_only });
            } else if let Some(rest) = line.strip_prefix("override ") {
                let _ = match held.variant.constant(word(rest)) {
                    Some(v) => writeln!(text, "const {}: u32 = {v}u;", word(rest)),
                    None => writeln!(text, "const {rest}"),
                };
            } else if line.starts_with("var<immediate>") {
                let _ = writeln!(text, "const params = Params({});", literals(held).join(", "));
            } else if let Some(name) = workgroup.filter(|n| self.shared.contains(n)) {
                if self.declared.insert(name) {
                    let _ = writeln!(text, "{line}");
                }
            } else if !line.starts_with("@compute") {
                let _ = writeln!(text, "{line}");
            }
        }
        let mut names = declared(&text);
        names.retain(|n| !self.shared.contains(n));
        rename(&mut self.text, &text, &names, &prefix);
        self.call(held, &prefix, last, subgroups)
    }

    /// The part of `main` that runs the stage, in workgroups that think they are of a dispatch of their own.
    fn call(&mut self, held: &Held, prefix: &str, last: bool, subgroups: bool) -> Result<()> {
        let Some([x, y, z]) = held.groups() else { bail!(Internal, "an indirect stage {}", held.kernel.name) };
        let first = self.groups;
        self.groups += x * y * z;
        let (otherwise, main) = (if first == 0 { "    " } else { " else " }, &mut self.main);
        let _ = match last {
            false => writeln!(main, "{otherwise}if (g < {}u) {{", self.groups),
            true => writeln!(main, "{otherwise}{{"),
        };
        let _ = writeln!(main, "        var u: {prefix}Thread;");
        let of_subgroups = if subgroups { &["sg", "lane", "n_sg", "sg_size"][..] } else { &[] };
        for f in ["lid"].iter().chain(of_subgroups) {
            let _ = writeln!(main, "        u.{f} = t.{f};");
        }
        let _ = match (y, z) {
            (1, 1) => writeln!(main, "        u.wid = vec3<u32>(g - {first}u, 0u, 0u);"),
            _ => writeln!(
                main,
                "        let w = g - {first}u;\n        u.wid = vec3<u32>(w % {x}u, w / {x}u % {y}u, w / {}u);",
                x * y
            ),
        };
        let _ = writeln!(main, "        u.nwg = vec3<u32>({x}u, {y}u, {z}u);\n        {prefix}main(u);\n    }}");
        Ok(())
    }
}

/// The word that a text begins with.
fn word(text: &str) -> &str {
    &text[..text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len())]
}

/// The fields of a stage's parameters.
fn literals(held: &Held) -> Vec<String> {
    let fields = held.kernel.params.iter().zip(held.params.chunks(4));
    let literal = |((_, ty), bytes): (&(_, &str), &[u8])| {
        let bits = bytes.try_into().map_or(0, u32::from_ne_bytes);
        if *ty == "f32" { format!("{:?}f", f32::from_bits(bits)) } else { format!("{bits}u") }
    };
    fields.map(literal).collect()
}

/// Names that a text declares at its outermost level.
fn declared(text: &str) -> HashSet<&str> {
    let mut names = HashSet::new();
    for line in text.lines() {
        let line = if line.starts_with("@group(0)") { line.find("var<").map_or("", |i| &line[i..]) } else { line };
        let rest = ["fn ", "const ", "struct ", "alias "].iter().find_map(|w| line.strip_prefix(w));
        let rest = rest.or_else(|| line.strip_prefix("var<").and_then(|l| l.split_once("> ")).map(|l| l.1));
        names.extend(rest.map(word));
    }
    names
}

/// Appends `text` with a prefix to each of `names`, but where they are fields, and without comments.
fn rename(out: &mut String, text: &str, names: &HashSet<&str>, prefix: &str) {
    let mut in_struct = false;
    for line in text.lines() {
        let mut rest = line.split("//").next().unwrap_or_default();
        let mut last = ' ';
        in_struct |= line.starts_with("struct ");
        while let Some(c) = rest.chars().next() {
            let name = word(rest);
            if name.is_empty() {
                out.push(c);
                rest = &rest[c.len_utf8()..];
            } else {
                rest = &rest[name.len()..];
                let field = last == '.' || (in_struct && rest.trim_start().starts_with(':'));
                out.push_str(if !field && names.contains(name) { prefix } else { "" });
                out.push_str(name);
            }
            last = c;
        }
        in_struct &= !line.contains('}');
        out.push('\n');
    }
}
