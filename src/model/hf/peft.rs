//! Folders as PEFT writes them (`adapter_config.json`, `adapter_model.safetensors`), read as if they were adapter files in GGUF.
//!
//! The tables of [`families`] say which tensor of a model a name means, and what is done with its rows: B has the same rows, so the same is
//! done with B. Whatever would change a result and is not done here is refused by name.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use tokenizers::utils::SysRegex;

use super::bare;
use super::config::Config;
use super::families::{self, Rule};
use super::recipe::{Each, Heads, Op, Recipe, Recipes, result_shape, stored_format};
use crate::error::{Error, Result, bail};
use crate::format::{Gguf, MadeTensor, SafetensorsFolder, StoredTensor, Value};
use crate::model::spec::{ModelSpec, ScanRule};

/// How PEFT begins all names.
const PREFIX: &str = "base_model.model.";

/// α, and where it is another one.
struct Scales {
    alpha: f64,
    patterns: Vec<(SysRegex, f64)>,
    by_root: bool,
}

impl Scales {
    fn of(config: &Config) -> Result<Self> {
        let mut patterns = Vec::new();
        if let Some(part) = config.object("alpha_pattern") {
            for key in part.keys() {
                // As in PEFT: the end of a module's name, or from its beginning on.
                let pattern = if key.starts_with('^') { key.to_string() } else { format!("^(?:.*\\.)?(?:{key})$") };
                match SysRegex::new(&pattern) {
                    Ok(regex) => patterns.push((regex, part.need_f64(key)?)),
                    Err(e) => bail!(BadFile, "{}: key \"{key}\": no pattern: {e}", part.name),
                }
            }
        }
        let by_root = config.bool("use_rslora")?.unwrap_or(false);
        Ok(Self { alpha: config.need_f64("lora_alpha")?, patterns, by_root })
    }

    fn scale(&self, module: &str, rank: u64) -> f64 {
        let own = self.patterns.iter().find(|(regex, _)| regex.find_iter(module).next().is_some());
        let rank = rank as f64;
        own.map_or(self.alpha, |(_, alpha)| *alpha) / if self.by_root { rank.sqrt() } else { rank }
    }
}

/// Refuses what is not plain LoRA.
fn check(config: &Config) -> Result<()> {
    let (off, none) = ([json!(false)], [json!([]), json!({})]);
    config.need_str("peft_type")?;
    config.expect("peft_type", &[json!("LORA")])?;
    config.expect("bias", &[json!("none")])?;
    for key in ["use_dora", "lora_bias", "use_qalora", "ensure_weight_tying", "use_bdlora"] {
        config.expect(key, &off)?;
    }
    for key in [
        "modules_to_save",
        "layer_replication",
        "target_parameters",
        "trainable_token_indices",
        "alora_invocation_tokens",
        "arrow_config",
        "kasa_config",
        "velora_config",
        "monteclora_config",
    ] {
        config.expect(key, &none)?;
    }
    // Other beginnings change the model's own weights too.
    let beginnings = [json!(true), json!(false), json!("gaussian"), json!("eva"), json!("orthogonal")];
    config.expect("init_lora_weights", &beginnings)
}

/// Whether a tensor's rows, or columns, are all that is rearranged.
fn of_rows(op: Op) -> bool {
    use Op::{Gates, HalfRows, PairK, PairQ, Plain, Qkv, TileColumns, TileRows, Transpose};
    matches!(op, Plain | PairQ | PairK | Transpose | HalfRows(_) | Qkv | Gates | TileRows | TileColumns)
}

/// The places of each module of the architecture, without `.weight`: its tensors in GGUF files, and its layer.
fn modules(spec: &ModelSpec) -> HashMap<String, Vec<(Rule, String, usize)>> {
    let mut all: HashMap<String, Vec<(Rule, String, usize)>> = HashMap::new();
    let families = families::all().filter(|f| f.arch == spec.architecture);
    for rule in families.flat_map(|f| f.tensors).copied().flatten().filter(|r| of_rows(r.op)) {
        let Some(module) = rule.from.strip_suffix(".weight") else { continue };
        for i in 0..if module.contains("{i}") { spec.layers.len() } else { 1 } {
            let number = i.to_string();
            let (module, to) = (module.replace("{i}", &number), rule.to.replace("{i}", &number));
            let places = all.entry(module).or_default();
            // Families of one architecture have most rules in common.
            if places.iter().all(|(_, known, _)| *known != to) {
                places.push((*rule, to, i));
            }
        }
    }
    all
}

/// The heads of a layer, for what is done with its rows.
fn heads(spec: &ModelSpec, layer: usize, op: Op) -> Heads {
    let Some(layer) = spec.layers.get(layer) else { return Heads::default() };
    let paired = layer.attention().map_or(0, |a| match op {
        Op::PairQ => a.n_head,
        Op::PairK => a.n_kv,
        _ => 0,
    });
    let scan = layer.recurrent().and_then(|m| m.scan).filter(|s| s.rule == ScanRule::GatedDelta).map(|s| s.shape);
    let of = |f: fn(&crate::kernels::ScanShape) -> u32| scan.as_ref().map_or(0, f) as usize;
    Heads {
        paired: paired as usize,
        keys: of(|s| s.n_key),
        values: of(|s| s.n_head),
        key_dim: of(|s| s.key_dim),
        value_dim: of(|s| s.head_dim),
    }
}

/// One module's two tensors, and whether it is a table that is looked up in.
#[derive(Default)]
struct Halves<'a> {
    a: Option<&'a StoredTensor>,
    b: Option<&'a StoredTensor>,
    table: bool,
}

/// Opens a folder for a model. Beside the file, the factor of each tensor.
///
/// # Errors
/// [`Error::Io`], [`Error::BadFile`] and [`Error::Unsupported`], naming the file and the key or tensor.
pub(in crate::model) fn open_adapter(folder: &Path, spec: &ModelSpec) -> Result<(Gguf, HashMap<String, f64>)> {
    let config = Config::read(&folder.join("adapter_config.json"))?;
    check(&config)?;
    let scales = Scales::of(&config)?;
    let stored = SafetensorsFolder::open_file(&folder.join("adapter_model.safetensors"))?;
    let file = stored.name();
    let mut found: HashMap<&str, Halves<'_>> = HashMap::new();
    for t in stored.tensors() {
        let split = t.name.strip_prefix(PREFIX).and_then(|name| name.rsplit_once(".lora_"));
        let Some((module, kind)) = split else {
            bail!(Unsupported, "{file}: tensor {}: not of the form {PREFIX}….lora_A.weight", t.name);
        };
        let halves = found.entry(module).or_default();
        let half = match kind {
            "A.weight" | "A.default.weight" => &mut halves.a,
            "B.weight" | "B.default.weight" => &mut halves.b,
            "embedding_A" | "embedding_A.default" | "embedding_B" | "embedding_B.default" => {
                halves.table = true;
                if kind.starts_with("embedding_A") { &mut halves.a } else { &mut halves.b }
            }
            _ => bail!(Unsupported, "{file}: tensor {}: lora_A and lora_B run, \"lora_{kind}\" does not", t.name),
        };
        *half = Some(t);
    }
    let modules = modules(spec);
    let (mut tensors, mut list, mut factors) = (Vec::new(), Vec::new(), HashMap::new());
    let mut found: Vec<_> = found.into_iter().collect();
    found.sort_unstable_by_key(|(module, _)| *module);
    for (module, halves) in found {
        let (a, b) = match halves {
            Halves { a: Some(a), b: Some(b), .. } => (a, b),
            Halves { a: Some(one), .. } => bail!(BadFile, "{file}: tensor {} has no lora_B beside it", one.name),
            Halves { b: Some(one), .. } => bail!(BadFile, "{file}: tensor {} has no lora_A beside it", one.name),
            _ => bail!(Internal, "{file}: {module} without tensors"),
        };
        let Some(places) = modules.get(bare(module)) else {
            if module.contains("experts") || module.ends_with(".gate") || module.contains(".router") {
                bail!(Unsupported, "{file}: tensor {}: adapters of routers and experts do not run", a.name);
            }
            bail!(BadFile, "{file}: tensor {} has no place in architecture \"{}\"", a.name, spec.architecture);
        };
        let rank = a.shape.first().copied().unwrap_or(1);
        for (rule, to, layer) in places {
            // What is done with a weight's rows is done with those of B, and what with its columns with those of A. The two multiply from the same
            // side even where the weight is stored transposed.
            let ops = match rule.op {
                _ if halves.table => [Op::Transpose, Op::Plain],
                Op::TileColumns => [Op::TileColumns, Op::Plain],
                Op::Transpose => [Op::Plain; 2],
                op => [Op::Plain, op],
            };
            for ((t, op), half) in [a, b].into_iter().zip(ops).zip(["lora_a", "lora_b"]) {
                let within = |e: Error| e.within(file);
                let from = t.element_type().map_err(within)?;
                let (parts, heads, format) = (vec![t.clone()], heads(spec, *layer, op), stored_format(from));
                let shape = result_shape(&parts, op, heads).map_err(within)?;
                tensors.push(MadeTensor {
                    name: format!("{to}.{half}"),
                    shown: t.name.clone(),
                    dims: shape.iter().rev().copied().collect(),
                    ggml_type: format.ggml_type,
                });
                list.push(Recipe::Stored { parts, op, each: Each::Same, heads, from, to: format });
            }
            factors.insert(to.clone(), scales.scale(module, rank));
        }
    }
    let name = folder.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let metadata = vec![("general.name".to_string(), Value::String(name))];
    let file = file.to_string();
    Ok((Gguf::assemble(&file, metadata, tensors, Box::new(Recipes { folder: Arc::new(stored), list }))?, factors))
}
