//! Architectures: one file each, turning metadata into a [`ModelSpec`]. Nothing else knows an architecture's name.

mod cohere2;
mod decoder;
mod gemma;
mod glm4;
mod gpt2;
mod gpt_oss;
mod granite;
mod granitehybrid;
mod lfm2;
mod llama;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen2moe;
mod qwen3;
mod qwen3next;
mod smollm3;
mod ssm;
mod starcoder2;

use crate::error::{Result, bail};
use crate::format::{Gguf, Value};
use crate::kernels::constants::{MAX_EXPERTS, MAX_EXPERTS_USED};
use crate::model::spec::{ExpertsSpec, ModelSpec, RopeScaling};

/// An architecture: the name files carry, and how to read its metadata.
#[derive(Debug)]
pub struct Architecture {
    /// `general.architecture`.
    pub name: &'static str,
    /// Fills the spec.
    pub spec: fn(&Gguf) -> Result<ModelSpec>,
}

/// Every architecture that runs.
pub static ARCHITECTURES: &[Architecture] = &[
    llama::LLAMA,
    qwen2::QWEN2,
    qwen2moe::QWEN2MOE,
    qwen3::QWEN3,
    qwen3::QWEN3MOE,
    gemma::GEMMA,
    gemma::GEMMA2,
    gemma::GEMMA3,
    phi3::PHI3,
    smollm3::SMOLLM3,
    granite::GRANITE,
    olmo2::OLMO2,
    cohere2::COHERE2,
    glm4::GLM4,
    starcoder2::STARCODER2,
    gpt2::GPT2,
    gpt_oss::GPT_OSS,
    lfm2::LFM2,
    granitehybrid::GRANITEHYBRID,
    qwen3next::QWEN3NEXT,
    qwen3next::QWEN35,
    qwen3next::QWEN35MOE,
];

/// Reads the spec of a file.
///
/// # Errors
/// [`crate::Error::Unsupported`] naming an architecture that does not run; [`crate::Error::BadFile`] naming a missing or
/// senseless key.
pub fn read_spec(file: &Gguf) -> Result<ModelSpec> {
    if file.get_str("general.type")? == Some("adapter") {
        bail!(
            Unsupported,
            "{}: key \"general.type\": an adapter is no model; it is loaded for one (--lora)",
            file.name()
        );
    }
    let name = file.require_str("general.architecture")?;
    let Some(arch) = ARCHITECTURES.iter().find(|a| a.name == name) else {
        let known: Vec<_> = ARCHITECTURES.iter().map(|a| a.name).collect();
        bail!(Unsupported, "{}: architecture \"{name}\" (this version runs {})", file.name(), known.join(", "));
    };
    let causal = format!("{name}.attention.causal");
    if file.get_bool(&causal)? == Some(false) {
        bail!(Unsupported, "{}: key {causal}: attention to what comes later does not run", file.name());
    }
    (arch.spec)(file)
}

/// Typed access to the keys `<architecture>.<key>`.
pub(super) struct Keys<'a> {
    pub(super) file: &'a Gguf,
    prefix: &'a str,
}

impl<'a> Keys<'a> {
    pub(super) fn new(file: &'a Gguf) -> Result<Self> {
        Ok(Self { file, prefix: file.require_str("general.architecture")? })
    }

    pub(super) fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    pub(super) fn u32(&self, key: &str) -> Result<Option<u32>> {
        self.file.get_u32(&self.name(key))
    }

    /// A count that must be there and lie within `1..=max`: files are not trusted to be sane.
    pub(super) fn count(&self, key: &str, max: u32) -> Result<u32> {
        let value = self.file.require_u32(&self.name(key))?;
        self.within(key, value, max)
    }

    pub(super) fn within(&self, key: &str, value: u32, max: u32) -> Result<u32> {
        if value == 0 || value > max {
            bail!(BadFile, "{}: key {}: {value} is outside 1..={max}", self.file.name(), self.name(key));
        }
        Ok(value)
    }

    pub(super) fn f32(&self, key: &str) -> Result<Option<f32>> {
        self.file.get_f32(&self.name(key))
    }

    /// A positive, finite number.
    pub(super) fn positive(&self, key: &str) -> Result<Option<f32>> {
        match self.f32(key)? {
            Some(v) if !(v > 0.0 && v.is_finite()) => {
                bail!(BadFile, "{}: key {}: {v} is not positive", self.file.name(), self.name(key))
            }
            v => Ok(v),
        }
    }

    /// A positive, finite number that must be there.
    pub(super) fn required_positive(&self, key: &str) -> Result<f32> {
        match self.positive(key)? {
            Some(v) => Ok(v),
            None => bail!(BadFile, "{}: key {} is missing", self.file.name(), self.name(key)),
        }
    }

    pub(super) fn str(&self, key: &str) -> Result<Option<&'a str>> {
        self.file.get_str(&self.name(key))
    }

    /// One number for each layer, from a scalar or an array.
    pub(super) fn per_layer(&self, key: &str, layers: u32) -> Result<Option<Vec<u32>>> {
        self.file.get_u32_per_layer(&self.name(key), layers as usize)
    }

    /// `expert_*`, where there are experts. What files do not say is known of the architecture: whether weights are renormalised (unless
    /// `expert_weights_norm` does say), and whether there is a shared expert with a gate.
    pub(super) fn experts(&self, renormalize: bool, shared: bool) -> Result<Option<ExpertsSpec>> {
        let Some(n_expert) = self.u32("expert_count")?.filter(|&n| n > 0) else { return Ok(None) };
        self.within("expert_count", n_expert, MAX_EXPERTS)?;
        let n_used = self.count("expert_used_count", n_expert.min(MAX_EXPERTS_USED))?;
        // 0 and 1 both stand for softmax.
        if let Some(other) = self.u32("expert_gating_func")?.filter(|&f| f > 1) {
            let (file, key) = (self.file.name(), self.name("expert_gating_func"));
            bail!(Unsupported, "{file}: key {key}: {other} (softmax, 1, runs)");
        }
        let shared_length = "expert_shared_feed_forward_length";
        let shared_n_ff = if shared { Some(self.count(shared_length, 1 << 24)?) } else { None };
        for key in ["expert_shared_count", shared_length, "expert_group_count"] {
            if let Some(n) = self.u32(key)?.filter(|&n| n > 0 && !(shared && key == shared_length)) {
                bail!(
                    Unsupported,
                    "{}: key {}: {n} (does not run with this architecture)",
                    self.file.name(),
                    self.name(key)
                );
            }
        }
        let renormalize = self.file.get_bool(&self.name("expert_weights_norm"))?.unwrap_or(renormalize);
        let scale = self.positive("expert_weights_scale")?.unwrap_or(1.0);
        Ok(Some(ExpertsSpec { n_expert, n_used, renormalize, scale, shared_n_ff, shared_gated: true }))
    }

    /// [`Keys::experts`] of an architecture that always has them.
    pub(super) fn required_experts(&self, renormalize: bool, shared: bool) -> Result<ExpertsSpec> {
        match self.experts(renormalize, shared)? {
            Some(experts) => Ok(experts),
            None => bail!(BadFile, "{}: key {} is missing", self.file.name(), self.name("expert_count")),
        }
    }

    /// Which of `layers` layers have the sliding window, from `attention.sliding_window_pattern`: an array with true for those that have it,
    /// or a number `n` when each `n`-th does not.
    pub(super) fn window_pattern(&self, layers: usize) -> Result<Option<Vec<bool>>> {
        let key = "attention.sliding_window_pattern";
        let name = self.name(key);
        match self.file.get(&name) {
            None => Ok(None),
            Some(Value::Array(_)) => match self.file.get_bool_array(&name)? {
                Some(v) if v.len() != layers => {
                    bail!(BadFile, "{}: key {name} has {} elements for {layers} layers", self.file.name(), v.len())
                }
                v => Ok(v),
            },
            Some(_) => {
                let period = self.count(key, 4096)?;
                Ok(Some((0..layers).map(|i| !decoder::every(period, i)).collect()))
            }
        }
    }

    /// `rope.scaling.*`; the type defaults to linear, as llama.cpp reads such files.
    pub(super) fn rope_scaling(&self, context_length: u32) -> Result<RopeScaling> {
        let longrope = self.file.tensor("rope_factors_short.weight").is_some();
        let kind = self.str("rope.scaling.type")?.unwrap_or(if longrope { "longrope" } else { "linear" });
        let original = || -> Result<u32> {
            Ok(self.u32("rope.scaling.original_context_length")?.unwrap_or(context_length).max(1))
        };
        let factor = match self.positive("rope.scaling.factor")? {
            Some(f) => Some(f),
            None => self.positive("rope.scale_linear")?,
        };
        Ok(match (kind, factor) {
            ("longrope", _) => RopeScaling::LongRope { original_context: original()? },
            ("none", _) | ("linear", None) => RopeScaling::None,
            ("linear", Some(factor)) => RopeScaling::Linear { factor },
            ("yarn", factor) => RopeScaling::Yarn {
                factor: factor.unwrap_or(1.0),
                original_context: original()?,
                beta_fast: self.positive("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                beta_slow: self.positive("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
            },
            (other, _) => bail!(
                Unsupported,
                "{}: key {}: \"{other}\" (none, linear, yarn and longrope run)",
                self.file.name(),
                self.name("rope.scaling.type")
            ),
        })
    }
}

/// Rows of the embedding table: the vocabulary a model computes with (a tokenizer may know fewer).
pub(super) fn vocabulary_rows(file: &Gguf, n_embd: u32) -> Result<u32> {
    let Some(table) = file.tensor("token_embd.weight") else {
        bail!(BadFile, "{}: tensor token_embd.weight is missing", file.name());
    };
    match table.dims.as_slice() {
        [k, rows] if *k == u64::from(n_embd) && (1..=1 << 22).contains(rows) => Ok(*rows as u32),
        dims => {
            bail!(BadFile, "{}: tensor token_embd.weight: shape {dims:?}, expected [{n_embd}, vocabulary]", file.name())
        }
    }
}
