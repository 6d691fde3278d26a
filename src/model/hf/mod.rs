//! Folders as Hugging Face lays them out (`config.json` and safetensors) read as if they were GGUF files.
//!
//! Names of tensors and keys are translated by the tables of [`families`], and weights are rearranged as converters do it, when their bytes are
//! asked for. Everything else (architectures, loading, checks) is that of GGUF files. The tokenizer is not read here.
//! Invariant: a tensor that has no place is an error, so that nothing a model computes with is left out.

mod config;
mod families;
mod hybrids;
mod peft;
mod recipe;
mod rope;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Result, bail};
use crate::format::{ElementType, Gguf, MadeTensor, SafetensorsFolder, StoredTensor};
use crate::quant::Format;
use config::{Config, Keys};
use families::{Family, Rule};
pub(super) use peft::open_adapter;
use recipe::{Heads, Op, Recipe, Recipes, format_named, result_shape, stored_format};

/// What weights are quantised to while they are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightFormat {
    /// 8 bits and a scale for each 32 weights.
    Q8_0,
    /// 4 bits and a scale for each 32 weights.
    Q4_0,
}

impl WeightFormat {
    fn format(self) -> &'static Format {
        format_named(match self {
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
        })
    }
}

/// Tensors that belong to parts of a model that are not run: pictures, sound, prediction of several tokens, and tables that are computed.
const IGNORED: &[&str] = &["visual.", "vision_tower.", "multi_modal_projector.", "audio_tower.", "mtp."];
const IGNORED_ENDS: &[&str] = &["rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias"];

/// Opens a folder. Matrices are quantised to `quantize`, but for routers, tables of positions, and rows that are no multiple of 32.
///
/// # Errors
/// [`crate::Error::Io`], [`crate::Error::BadFile`] and [`crate::Error::Unsupported`], naming the file and the key or tensor.
pub fn open(folder: &Path, quantize: Option<WeightFormat>) -> Result<Gguf> {
    let config = Config::open(folder)?;
    let kind = hybrids::kind(&config)?;
    let Some(family) = families::all().find(|f| f.model_types.contains(&kind.as_str())) else {
        let known: Vec<&str> = families::all().flat_map(|f| f.model_types).copied().collect();
        bail!(Unsupported, "{}: key \"model_type\": \"{kind}\" (this version loads {})", config.name, known.join(", "));
    };
    let mut keys = Keys::new(family.arch);
    (family.keys)(&config, &mut keys)?;
    let stored = SafetensorsFolder::open(folder)?;
    let mut plan = Plan {
        config: &config,
        by_name: stored.tensors().iter().map(|t| (bare(&t.name), t)).collect(),
        folder: &stored,
        quantize: quantize.map(WeightFormat::format),
        heads: hybrids::heads(&config)?,
        used: Vec::new(),
        tensors: Vec::new(),
        recipes: Vec::new(),
    };
    plan.run(family)?;
    for (name, values) in std::mem::take(&mut keys.tensors) {
        plan.tensors.push(MadeTensor {
            name: name.into(),
            shown: name.into(),
            dims: vec![values.len() as u64],
            ggml_type: 0,
        });
        plan.recipes.push(Recipe::Given(values));
    }
    plan.leave_nothing(family)?;
    let (tensors, list) = (plan.tensors, plan.recipes);
    let name = stored.name().to_string();
    Gguf::assemble(&name, keys.list, tensors, Box::new(Recipes { folder: Arc::new(stored), list }))
}

/// A name without the prefixes that folders differ in.
fn bare(name: &str) -> &str {
    let mut rest = name;
    for prefix in ["model.", "language_model.", "model.", "transformer."] {
        rest = rest.strip_prefix(prefix).unwrap_or(rest);
    }
    rest
}

struct Plan<'a> {
    config: &'a Config,
    folder: &'a SafetensorsFolder,
    by_name: HashMap<&'a str, &'a StoredTensor>,
    quantize: Option<&'static Format>,
    heads: Heads,
    used: Vec<&'a str>,
    tensors: Vec<MadeTensor>,
    recipes: Vec<Recipe>,
}

impl<'a> Plan<'a> {
    fn run(&mut self, family: &Family) -> Result<()> {
        let layers = match self.config.u32("num_hidden_layers")? {
            Some(n) => n,
            None => self.config.need_u32("n_layer")?,
        };
        for rule in family.tensors.iter().copied().flatten() {
            if rule.from == "lm_head.weight" && !self.has_head()? {
                continue;
            }
            // A number of layers that is nonsense ends at the first one that is missing.
            for i in 0..if rule.from.contains("{i}") { layers } else { 1 } {
                self.add(rule, &i.to_string())?;
            }
        }
        Ok(())
    }

    /// Whether the head has a matrix of its own.
    fn has_head(&self) -> Result<bool> {
        let stored = self.by_name.contains_key("lm_head.weight");
        match self.config.bool("tie_word_embeddings")? {
            Some(true) => Ok(false),
            Some(false) if !stored => bail!(BadFile, "{}: tensor lm_head.weight is missing", self.folder.name()),
            _ => Ok(stored),
        }
    }

    fn add(&mut self, rule: &Rule, layer: &str) -> Result<()> {
        let from = rule.from.replace("{i}", layer);
        let mut names = match rule.op {
            Op::Stack => {
                let n = families::n_expert(self.config)?.min(1 << 16);
                (0..n).map(|e| from.replace("{e}", &e.to_string())).collect()
            }
            Op::Mxfp4(_) => vec![from.clone(), from.replace("_blocks", "_scales")],
            _ => vec![from.clone()],
        };
        if rule.optional && !names.first().is_some_and(|n| self.by_name.contains_key(n.as_str())) {
            return Ok(());
        }
        let mut parts = Vec::with_capacity(names.len());
        for name in names.drain(..) {
            let Some(&tensor) = self.by_name.get(name.as_str()) else {
                bail!(BadFile, "{}: tensor {name} is missing", self.folder.name());
            };
            self.used.push(tensor.name.as_str());
            let mut part = tensor.clone();
            // Filters of one channel each.
            if let [channels, 1, taps] = part.shape[..] {
                part.shape = vec![channels, taps];
            }
            parts.push(part);
        }
        let within = |e: crate::error::Error| e.within(self.folder.name());
        let paired = match rule.op {
            Op::PairQ => self.config.need_u32("num_attention_heads")?,
            Op::PairK => match self.config.u32("num_key_value_heads")? {
                Some(n) => n,
                None => self.config.need_u32("num_attention_heads")?,
            },
            _ => 0,
        } as usize;
        let heads = Heads { paired, ..self.heads };
        let shape = result_shape(&parts, rule.op, heads).map_err(within)?;
        let Some(first) = parts.first() else { bail!(BadFile, "{}: no experts", self.folder.name()) };
        let element = first.element_type().map_err(within)?;
        if (element == ElementType::U8) != matches!(rule.op, Op::Mxfp4(_)) {
            bail!(Unsupported, "{}: tensor {}: type {element:?} in this place", self.folder.name(), first.name);
        }
        let to = rule.to.replace("{i}", layer);
        let format = self.format(&to, &shape, element, rule);
        self.tensors.push(MadeTensor {
            name: to,
            shown: first.name.clone(),
            dims: shape.iter().rev().copied().collect(),
            ggml_type: format.ggml_type,
        });
        self.recipes.push(Recipe::Stored { parts, op: rule.op, each: rule.each, heads, from: element, to: format });
        Ok(())
    }

    /// What a tensor's elements become.
    fn format(&self, name: &str, shape: &[u64], stored: ElementType, rule: &Rule) -> &'static Format {
        if let Op::Mxfp4(_) = rule.op {
            return format_named("MXFP4");
        }
        if rule.exact || shape.len() < 2 || name.ends_with(".bias") {
            return format_named("F32");
        }
        let small = name.contains("ffn_gate_inp") || name.starts_with("position_embd");
        match self.quantize {
            Some(f) if !small && shape.last().is_some_and(|k| k.is_multiple_of(f.block_len as u64)) => f,
            _ => stored_format(stored),
        }
    }

    /// Refuses tensors that no rule has used.
    fn leave_nothing(&self, family: &Family) -> Result<()> {
        let used: std::collections::HashSet<&str> = self.used.iter().copied().collect();
        let ignored = |bare: &str| {
            IGNORED.iter().any(|p| bare.starts_with(p))
                || IGNORED_ENDS.iter().any(|e| bare.ends_with(e))
                || bare == "lm_head.weight"
        };
        let mut left: Vec<&str> = self
            .by_name
            .iter()
            .filter(|(bare, t)| !used.contains(t.name.as_str()) && !ignored(bare))
            .map(|(_, t)| t.name.as_str())
            .collect();
        left.sort_unstable();
        match left.first() {
            Some(name) => bail!(
                Unsupported,
                "{}: tensor {name} has no place in architecture \"{}\" of {} layers",
                self.folder.name(),
                family.arch,
                self.config.u32("num_hidden_layers")?.unwrap_or(0)
            ),
            None => Ok(()),
        }
    }
}
