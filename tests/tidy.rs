//! Rules about the source text that the compiler does not enforce: layers, shaders against their declarations, file sizes. No device.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use doppler::gpu::{Assembled, Kernel, assemble};
use doppler::kernels::KERNELS;
use doppler::kernels::variants::forms;
use naga::valid::{Capabilities, ValidationFlags, Validator};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files below `dir` whose name ends in `.extension`, sorted.
fn files(dir: &str, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root().join(dir)];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no .{extension} files in {dir}");
    found
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().to_string_lossy().replace('\\', "/")
}

/// A file's lines without line comments and the contents of strings (which may name anything), numbered from 1.
fn code(path: &Path) -> Vec<(usize, String)> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().enumerate().map(|(i, l)| (i + 1, strip(l))).collect()
}

fn strip(line: &str) -> String {
    let mut out = String::new();
    let mut chars = line.chars().peekable();
    let mut in_string = false;
    while let Some(c) = chars.next() {
        match c {
            '\\' if in_string => _ = chars.next(),
            '"' => in_string = !in_string,
            '/' if !in_string && chars.peek() == Some(&'/') => break,
            // The character literal '"'.
            '\'' if !in_string && chars.peek() == Some(&'"') => _ = chars.next(),
            _ if in_string => {}
            _ => out.push(c),
        }
    }
    out
}

#[test]
fn comments_and_strings_are_no_code() {
    assert_eq!(strip(r#"a("b // \"c"); // d"#), "a(); ");
    assert_eq!(strip(r#"x == '"' && y // z"#), "x == ' && y ");
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Where `word` stands alone in `line`.
fn words<'a>(line: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    line.match_indices(word)
        .map(|(i, _)| i)
        .filter(move |&i| !line[..i].ends_with(is_word) && !line[i + word.len()..].starts_with(is_word))
}

/// Names right after a path's `::`: `a` of `a::b`, or `a` and `c` of `{a::b, c}`.
fn heads(rest: &str) -> Vec<String> {
    let name = |s: &str| s.trim().chars().take_while(|&c| is_word(c)).collect::<String>();
    let Some(list) = rest.strip_prefix('{') else { return vec![name(rest)] };
    let mut depth = 0;
    let mut items = vec![String::new()];
    for c in list.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => items.push(String::new()),
            _ => {}
        }
        items.last_mut().unwrap().push(c);
    }
    items.iter().map(|s| name(s.trim_start_matches(','))).filter(|s| !s.is_empty()).collect()
}

/// Imported by all layers.
const LEAVES: [&str; 2] = ["error", "checksum"];

/// Layer, and what it may import beside itself and the leaves (docs/architecture.md, the table of layers).
const LAYERS: &[(&str, &[&str])] = &[
    ("main", &["cli"]),
    // kernels, quant: the self-check runs each kernel by itself.
    ("cli", &["session", "gpu", "format", "text", "model", "sample", "kernels", "quant"]),
    // gpu: plain types, and opening a device.
    ("ffi", &["session", "gpu"]),
    ("session", &["model", "sample", "text", "gpu", "format"]),
    // sample: the plain parameter structure.
    ("model", &["kernels", "format", "quant", "gpu", "sample"]),
    ("kernels", &["gpu", "quant", "sample"]),
    ("format", &["quant"]),
    ("gpu", &[]),
    ("sample", &[]),
    ("text", &[]),
    ("quant", &[]),
    ("error", &[]),
    ("checksum", &[]),
];

fn layer_of(path: &str) -> &str {
    let first = path.trim_start_matches("src/").split('/').next().unwrap();
    first.trim_end_matches(".rs")
}

/// Imports of `layer` in a file that the table does not allow, as text.
fn bad_imports(path: &str, text: &str) -> Vec<String> {
    let layer = layer_of(path);
    let Some((_, allowed)) = LAYERS.iter().find(|l| l.0 == layer) else {
        return vec![format!("{path}: layer {layer} is not in the table")];
    };
    // How many `super` lead from here to the crate's root.
    let inner = path.trim_start_matches("src/").trim_end_matches("/mod.rs");
    let depth = inner.split('/').count();
    let climb = "super::".repeat(depth);
    let mut bad = Vec::new();
    for start in ["crate::", "doppler::", climb.as_str()] {
        for (i, _) in text.match_indices(start).filter(|(i, _)| !text[..*i].ends_with(|c| is_word(c) || c == ':')) {
            for name in heads(&text[i + start.len()..]) {
                let known = LAYERS.iter().any(|l| l.0 == name);
                // What is no layer is a type or macro that the root re-exports from `error`.
                if known && name != layer && !LEAVES.contains(&name.as_str()) && !allowed.contains(&name.as_str()) {
                    let line = text[..i].lines().count().max(1);
                    bad.push(format!("{path}:{line}: {layer} may not use {name}"));
                }
            }
        }
    }
    bad
}

#[test]
fn layers_import_only_what_lies_below() {
    let mut bad = Vec::new();
    for path in files("src", "rs") {
        let name = relative(&path);
        if name == "src/lib.rs" {
            continue;
        }
        let text: Vec<String> = code(&path).into_iter().map(|l| l.1).collect();
        bad.extend(bad_imports(&name, &text.join("\n")));
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

#[test]
fn the_layer_rule_sees_every_spelling() {
    for (path, text) in [
        ("src/gpu/x.rs", "use crate::kernels::Matrix;"),
        ("src/gpu/x.rs", "use crate::{error::Result, model::{a, b}};"),
        ("src/gpu/x.rs", "use crate::{\n    error::{Error, Result},\n    session,\n};"),
        ("src/quant/mod.rs", "let a = super::gpu::linear_grid(1);"),
        ("src/text/a/b.rs", "super::super::super::sample::draw()"),
        ("src/model/a.rs", "fn f() { crate::session::open() }"),
        ("src/ffi/a.rs", "use crate::model::Model;"),
        ("src/main.rs", "use doppler::kernels::rope;"),
        ("src/unheard/of.rs", ""),
    ] {
        assert_eq!(bad_imports(path, text).len(), 1, "{path}: {text}");
    }
    for (path, text) in [
        ("src/kernels/x.rs", "use crate::gpu::{Kernel, model};\nuse crate::error::Result;"),
        (
            "src/gpu/x.rs",
            "use crate::Error; use crate::gpu::kernel::params; mycrate::model::x(); use super::super::Error;",
        ),
        ("src/kernels/x.rs", "use super::super::gpu;"),
    ] {
        assert_eq!(bad_imports(path, text), [""; 0], "{path}: {text}");
    }
}

#[test]
fn wgpu_and_unsafe_stand_only_where_they_belong() {
    let mut bad = Vec::new();
    let mut in_format = Vec::new();
    for path in files("src", "rs") {
        let name = relative(&path);
        for (number, line) in code(&path) {
            let at = format!("{name}:{number}: {}", line.trim());
            if words(&line, "wgpu").next().is_some() && layer_of(&name) != "gpu" {
                bad.push(format!("only src/gpu names wgpu: {at}"));
            }
            if words(&line, "unsafe").next().is_some() {
                match layer_of(&name) {
                    "ffi" | "gpu" => {}
                    // Setting a signal handler.
                    "cli" if name == "src/cli/interrupt.rs" => {}
                    "format" => in_format.push(at),
                    _ => bad.push(format!("unsafe outside src/ffi and src/gpu: {at}")),
                }
            }
        }
    }
    if in_format.len() > 1 {
        bad.push(format!("src/format has unsafe code beside mapping a file: {in_format:?}"));
    }
    bad.extend(in_format.iter().filter(|l| !l.contains("map")).map(|l| format!("src/format may map a file only: {l}")));
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

#[test]
fn files_are_short() {
    let long: Vec<String> = files("src", "rs")
        .iter()
        .map(|p| (relative(p), std::fs::read_to_string(p).unwrap().lines().count()))
        .filter(|(_, n)| *n > 600)
        .map(|(p, n)| format!("{p} has {n} lines, 600 are the limit"))
        .collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn every_shader_file_is_included() {
    let sources: String = files("src", "rs").iter().map(|p| std::fs::read_to_string(p).unwrap()).collect();
    let unused: Vec<String> = files("shaders", "wgsl")
        .iter()
        .map(|p| relative(p))
        .filter(|p| !sources.contains(&format!("/{p}\")")))
        .collect();
    assert!(unused.is_empty(), "no include_str! of {unused:?}");
}

#[test]
fn kernels_are_named_after_their_files() {
    let mut seen = BTreeMap::new();
    for k in KERNELS {
        let path = root().join(format!("shaders/{}.wgsl", k.name));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert_eq!(text, k.source, "kernel {}", k.name);
        assert!(seen.insert(k.name, ()).is_none(), "kernel {} is listed twice", k.name);
    }
    for path in files("shaders", "wgsl").iter().filter(|p| p.parent() == Some(&root().join("shaders"))) {
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(seen.contains_key(name), "shaders/{name}.wgsl is no kernel of KERNELS");
    }
}

/// Every subset.
fn subsets(flags: &[&'static str]) -> Vec<Vec<&'static str>> {
    (0..1usize << flags.len())
        .map(|bits| flags.iter().enumerate().filter(|(i, _)| bits >> i & 1 == 1).map(|(_, f)| *f).collect())
        .collect()
}

#[test]
fn every_shader_is_valid_and_is_what_its_declaration_says() {
    let mut count = 0;
    for kernel in KERNELS.iter().copied() {
        let forms = forms(kernel);
        assert!(!forms.is_empty(), "{}: no form exists, or a slot has no fragment", kernel.name);
        for form in forms {
            for device in subsets(&["SUBGROUPS", "F16"]) {
                if kernel.is_cooperative() && device.len() < 2 {
                    continue;
                }
                let flags = [form.flags.as_slice(), &device].concat();
                for immediates in [true, false] {
                    let what = format!("{} {form} {device:?} immediates {immediates}", kernel.name);
                    let assembled = assemble(kernel.name, kernel.source, &flags, &form.slots, immediates)
                        .unwrap_or_else(|e| panic!("{what}: {e}"));
                    check_shader(&what, kernel, &assembled, &flags, immediates);
                    count += 1;
                }
            }
        }
    }
    assert!(count >= KERNELS.len() * 8, "{count} forms");
}

fn check_shader(what: &str, kernel: &Kernel, assembled: &Assembled, flags: &[&str], immediates: bool) {
    let source = &assembled.source;
    let module = naga::front::wgsl::parse_str(source)
        .unwrap_or_else(|e| panic!("{what}: {}", e.emit_to_string_with_path(source, kernel.name)));
    // Nothing but what the device flags promise.
    // Reading halves as words is in WebGPU's core; every adapter here has it.
    let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    capabilities.set(Capabilities::SUBGROUP, flags.contains(&"SUBGROUPS"));
    capabilities.set(Capabilities::SHADER_FLOAT16, flags.contains(&"F16"));
    capabilities.set(Capabilities::IMMEDIATES, immediates);
    // Devices for kernels with matrices have barriers of a subgroup.
    capabilities.set(Capabilities::COOPERATIVE_MATRIX | Capabilities::SUBGROUP_BARRIER, kernel.is_cooperative());
    Validator::new(ValidationFlags::all(), capabilities)
        .subgroup_stages(naga::valid::ShaderStages::COMPUTE)
        .subgroup_operations(naga::valid::SubgroupOperationSet::all())
        .validate(&module)
        .unwrap_or_else(|e| panic!("{what}: {}", e.emit_to_string_with_path(source, kernel.name)));

    // One entry point, with a workgroup of one dimension; its size is WG where the kernel lets the caller choose.
    let [entry] = module.entry_points.as_slice() else { panic!("{what}: {} entry points", module.entry_points.len()) };
    assert_eq!((entry.name.as_str(), entry.stage), ("main", naga::ShaderStage::Compute), "{what}");
    assert_eq!(entry.workgroup_size[1..], [1, 1], "{what}");
    let overridden =
        entry.workgroup_size_overrides.and_then(|o| o[0]).map(|handle| match module.global_expressions[handle] {
            naga::Expression::Override(o) => module.overrides[o].name.clone().unwrap_or_default(),
            ref e => panic!("{what}: workgroup size {e:?}"),
        });
    let wanted = kernel.constants.contains(&"WG").then(|| "WG".to_string());
    assert_eq!(overridden, wanted, "{what}: what sets the workgroup size");

    // Every constant is an override, and every override can be set, but those that are computed from others.
    let is_literal = |init| matches!(module.global_expressions[init], naga::Expression::Literal(_));
    let set = module.overrides.iter().filter(|(_, o)| o.init.is_none_or(is_literal));
    let mut overrides: Vec<_> = set.filter_map(|(_, o)| o.name.as_deref()).collect();
    let mut constants = kernel.constants.to_vec();
    overrides.sort_unstable();
    constants.sort_unstable();
    assert_eq!(overrides, constants, "{what}: overrides");

    // Bindings in the order of their numbers.
    let mut storage = BTreeMap::new();
    let mut params = None;
    for (_, var) in module.global_variables.iter() {
        let name = var.name.clone().unwrap_or_default();
        match var.space {
            naga::AddressSpace::Storage { access } => {
                let binding = var.binding.unwrap_or_else(|| panic!("{what}: {name} has no binding"));
                assert_eq!(binding.group, 0, "{what}: {name}");
                let read_only = !access.contains(naga::StorageAccess::STORE);
                assert!(storage.insert(binding.binding, (name, read_only)).is_none(), "{what}: binding used twice");
            }
            naga::AddressSpace::Uniform => {
                assert!(!immediates, "{what}: a uniform beside immediates");
                let b = var.binding.unwrap();
                assert_eq!((b.group, b.binding), (1, 0), "{what}");
                params = Some(var.ty);
            }
            naga::AddressSpace::Immediate => params = Some(var.ty),
            naga::AddressSpace::WorkGroup | naga::AddressSpace::Private => {}
            other => panic!("{what}: {name} in {other:?}"),
        }
    }
    let numbers: Vec<u32> = storage.keys().copied().collect();
    assert_eq!(numbers, (0..storage.len() as u32).collect::<Vec<_>>(), "{what}");
    let declared: Vec<_> = assembled.bindings.iter().map(|b| (b.name.clone(), b.read_only)).collect();
    assert_eq!(storage.into_values().collect::<Vec<_>>(), declared, "{what}: bindings");

    // The parameters: names, types and offsets of the Rust structure, whose fields are all 4 bytes.
    assert_eq!(params.is_some(), assembled.has_params, "{what}");
    let Some(params) = params else {
        assert!(kernel.params.is_empty(), "{what}: the shader has no Params");
        return;
    };
    let naga::TypeInner::Struct { members, .. } = &module.types[params].inner else { panic!("{what}: Params") };
    let fields: Vec<_> = members
        .iter()
        .map(|m| {
            let ty = match module.types[m.ty].inner {
                naga::TypeInner::Scalar(naga::Scalar::U32) => "u32",
                naga::TypeInner::Scalar(naga::Scalar::I32) => "i32",
                naga::TypeInner::Scalar(naga::Scalar::F32) => "f32",
                _ => "no scalar",
            };
            (m.name.as_deref().unwrap_or_default(), ty, m.offset)
        })
        .collect();
    let wanted: Vec<_> = kernel.params.iter().enumerate().map(|(i, &(n, t))| (n, t, i as u32 * 4)).collect();
    assert_eq!(fields, wanted, "{what}: parameters");
}
