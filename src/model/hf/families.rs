//! One entry for each family of models: names of tensors, and keys of the configuration, beside those of GGUF files.
//!
//! Names are written without the prefixes that folders differ in (`model.`, `transformer.`, `language_model.`). `{i}` is a layer, `{e}` an
//! expert.

use serde_json::json;

use super::config::{Config, Keys};
use super::hybrids;
use super::recipe::{Each, Op};
use super::rope::rope;
use crate::error::Result;

/// A tensor: its name in GGUF files, its name in folders, and what is done with it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rule {
    pub(super) to: &'static str,
    pub(super) from: &'static str,
    pub(super) op: Op,
    pub(super) each: Each,
    pub(super) optional: bool,
    /// Kept in f32, whatever its shape.
    pub(super) exact: bool,
}

pub(super) const fn of(to: &'static str, from: &'static str) -> Rule {
    Rule { to, from, op: Op::Plain, each: Each::Same, optional: false, exact: false }
}

pub(super) const fn maybe(to: &'static str, from: &'static str) -> Rule {
    Rule { optional: true, ..of(to, from) }
}

impl Rule {
    pub(super) const fn by(self, op: Op) -> Self {
        Self { op, ..self }
    }

    pub(super) const fn each(self, each: Each) -> Self {
        Self { each, ..self }
    }

    pub(super) const fn exact(self) -> Self {
        Self { exact: true, ..self }
    }
}

/// A family of models.
#[derive(Debug)]
pub(super) struct Family {
    /// `model_type` of the configuration.
    pub(super) model_types: &'static [&'static str],
    /// The architecture that runs them.
    pub(super) arch: &'static str,
    /// Tables of tensors.
    pub(super) tensors: &'static [&'static [Rule]],
    pub(super) keys: fn(&Config, &mut Keys) -> Result<()>,
}

pub(super) const GLOBALS: &[Rule] = &[
    of("token_embd.weight", "embed_tokens.weight"),
    of("output_norm.weight", "norm.weight"),
    maybe("output.weight", "lm_head.weight"),
];

pub(super) const ATTENTION: &[Rule] = &[
    of("blk.{i}.attn_q.weight", "layers.{i}.self_attn.q_proj.weight"),
    of("blk.{i}.attn_k.weight", "layers.{i}.self_attn.k_proj.weight"),
    of("blk.{i}.attn_v.weight", "layers.{i}.self_attn.v_proj.weight"),
    of("blk.{i}.attn_output.weight", "layers.{i}.self_attn.o_proj.weight"),
    maybe("blk.{i}.attn_q.bias", "layers.{i}.self_attn.q_proj.bias"),
    maybe("blk.{i}.attn_k.bias", "layers.{i}.self_attn.k_proj.bias"),
    maybe("blk.{i}.attn_v.bias", "layers.{i}.self_attn.v_proj.bias"),
    maybe("blk.{i}.attn_output.bias", "layers.{i}.self_attn.o_proj.bias"),
];

/// As [`ATTENTION`], for architectures that rotate adjacent pairs where the stored models rotate halves.
pub(super) const PAIRED_ATTENTION: &[Rule] = &[
    of("blk.{i}.attn_q.weight", "layers.{i}.self_attn.q_proj.weight").by(Op::PairQ),
    of("blk.{i}.attn_k.weight", "layers.{i}.self_attn.k_proj.weight").by(Op::PairK),
    of("blk.{i}.attn_v.weight", "layers.{i}.self_attn.v_proj.weight"),
    of("blk.{i}.attn_output.weight", "layers.{i}.self_attn.o_proj.weight"),
    maybe("blk.{i}.attn_q.bias", "layers.{i}.self_attn.q_proj.bias").by(Op::PairQ),
    maybe("blk.{i}.attn_k.bias", "layers.{i}.self_attn.k_proj.bias").by(Op::PairK),
    maybe("blk.{i}.attn_v.bias", "layers.{i}.self_attn.v_proj.bias"),
    maybe("blk.{i}.attn_output.bias", "layers.{i}.self_attn.o_proj.bias"),
];

const HEAD_NORMS: &[Rule] = &[
    of("blk.{i}.attn_q_norm.weight", "layers.{i}.self_attn.q_norm.weight"),
    of("blk.{i}.attn_k_norm.weight", "layers.{i}.self_attn.k_norm.weight"),
];

pub(super) const GATED: &[Rule] = &[
    of("blk.{i}.ffn_gate.weight", "layers.{i}.mlp.gate_proj.weight"),
    of("blk.{i}.ffn_up.weight", "layers.{i}.mlp.up_proj.weight"),
    of("blk.{i}.ffn_down.weight", "layers.{i}.mlp.down_proj.weight"),
    maybe("blk.{i}.ffn_gate.bias", "layers.{i}.mlp.gate_proj.bias"),
    maybe("blk.{i}.ffn_up.bias", "layers.{i}.mlp.up_proj.bias"),
    maybe("blk.{i}.ffn_down.bias", "layers.{i}.mlp.down_proj.bias"),
];

/// Gate and up in one matrix, gate first.
const FUSED: &[Rule] = &[
    of("blk.{i}.ffn_up.weight", "layers.{i}.mlp.gate_up_proj.weight"),
    of("blk.{i}.ffn_down.weight", "layers.{i}.mlp.down_proj.weight"),
];

/// Experts one by one; those stacked in the file are in [`STACKED_EXPERTS`]. A model has either.
pub(super) const EXPERTS: &[Rule] = &[
    of("blk.{i}.ffn_gate_inp.weight", "layers.{i}.mlp.gate.weight"),
    maybe("blk.{i}.ffn_gate_exps.weight", "layers.{i}.mlp.experts.{e}.gate_proj.weight").by(Op::Stack),
    maybe("blk.{i}.ffn_up_exps.weight", "layers.{i}.mlp.experts.{e}.up_proj.weight").by(Op::Stack),
    maybe("blk.{i}.ffn_down_exps.weight", "layers.{i}.mlp.experts.{e}.down_proj.weight").by(Op::Stack),
];

pub(super) const STACKED_EXPERTS: &[Rule] = &[
    maybe("blk.{i}.ffn_gate_exps.weight", "layers.{i}.mlp.experts.gate_up_proj").by(Op::Half(0)),
    maybe("blk.{i}.ffn_up_exps.weight", "layers.{i}.mlp.experts.gate_up_proj").by(Op::Half(1)),
    maybe("blk.{i}.ffn_down_exps.weight", "layers.{i}.mlp.experts.down_proj"),
];

const MIXTRAL_EXPERTS: &[Rule] = &[
    maybe("blk.{i}.ffn_gate_inp.weight", "layers.{i}.block_sparse_moe.gate.weight"),
    maybe("blk.{i}.ffn_gate_inp.weight", "layers.{i}.mlp.gate.weight"),
    maybe("blk.{i}.ffn_gate_exps.weight", "layers.{i}.block_sparse_moe.experts.{e}.w1.weight").by(Op::Stack),
    maybe("blk.{i}.ffn_up_exps.weight", "layers.{i}.block_sparse_moe.experts.{e}.w3.weight").by(Op::Stack),
    maybe("blk.{i}.ffn_down_exps.weight", "layers.{i}.block_sparse_moe.experts.{e}.w2.weight").by(Op::Stack),
];

pub(super) const SHARED_EXPERT: &[Rule] = &[
    of("blk.{i}.ffn_gate_inp_shexp.weight", "layers.{i}.mlp.shared_expert_gate.weight"),
    of("blk.{i}.ffn_gate_shexp.weight", "layers.{i}.mlp.shared_expert.gate_proj.weight"),
    of("blk.{i}.ffn_up_shexp.weight", "layers.{i}.mlp.shared_expert.up_proj.weight"),
    of("blk.{i}.ffn_down_shexp.weight", "layers.{i}.mlp.shared_expert.down_proj.weight"),
];

/// The 2880 rows of gate and up take turns. Experts are MXFP4, or plain and transposed.
const GPT_OSS: &[Rule] = &[
    of("blk.{i}.attn_sinks.weight", "layers.{i}.self_attn.sinks"),
    of("blk.{i}.attn_norm.weight", "layers.{i}.input_layernorm.weight"),
    of("blk.{i}.post_attention_norm.weight", "layers.{i}.post_attention_layernorm.weight"),
    of("blk.{i}.ffn_gate_inp.weight", "layers.{i}.mlp.router.weight"),
    of("blk.{i}.ffn_gate_inp.bias", "layers.{i}.mlp.router.bias"),
    maybe("blk.{i}.ffn_gate_exps.weight", "layers.{i}.mlp.experts.gate_up_proj").by(Op::Columns(0)),
    maybe("blk.{i}.ffn_up_exps.weight", "layers.{i}.mlp.experts.gate_up_proj").by(Op::Columns(1)),
    maybe("blk.{i}.ffn_down_exps.weight", "layers.{i}.mlp.experts.down_proj").by(Op::TransposeEach),
    maybe("blk.{i}.ffn_gate_exps.weight", "layers.{i}.mlp.experts.gate_up_proj_blocks").by(Op::Mxfp4(Some(0))),
    maybe("blk.{i}.ffn_up_exps.weight", "layers.{i}.mlp.experts.gate_up_proj_blocks").by(Op::Mxfp4(Some(1))),
    maybe("blk.{i}.ffn_down_exps.weight", "layers.{i}.mlp.experts.down_proj_blocks").by(Op::Mxfp4(None)),
    of("blk.{i}.ffn_gate_exps.bias", "layers.{i}.mlp.experts.gate_up_proj_bias").by(Op::Every(0)),
    of("blk.{i}.ffn_up_exps.bias", "layers.{i}.mlp.experts.gate_up_proj_bias").by(Op::Every(1)),
    of("blk.{i}.ffn_down_exps.bias", "layers.{i}.mlp.experts.down_proj_bias"),
];

pub(super) const PRE: &[Rule] = &[
    of("blk.{i}.attn_norm.weight", "layers.{i}.input_layernorm.weight"),
    of("blk.{i}.ffn_norm.weight", "layers.{i}.post_attention_layernorm.weight"),
];

const POST: &[Rule] = &[
    of("blk.{i}.post_attention_norm.weight", "layers.{i}.post_attention_layernorm.weight"),
    of("blk.{i}.post_ffw_norm.weight", "layers.{i}.post_feedforward_layernorm.weight"),
];

pub(super) const GEMMA_GLOBALS: &[Rule] = &[
    of("token_embd.weight", "embed_tokens.weight"),
    of("output_norm.weight", "norm.weight").each(Each::AddOne),
    maybe("output.weight", "lm_head.weight"),
];

const GEMMA_PRE: &[Rule] = &[
    of("blk.{i}.attn_norm.weight", "layers.{i}.input_layernorm.weight").each(Each::AddOne),
    of("blk.{i}.ffn_norm.weight", "layers.{i}.post_attention_layernorm.weight").each(Each::AddOne),
];

const GEMMA_BOTH: &[Rule] = &[
    of("blk.{i}.attn_norm.weight", "layers.{i}.input_layernorm.weight").each(Each::AddOne),
    of("blk.{i}.post_attention_norm.weight", "layers.{i}.post_attention_layernorm.weight").each(Each::AddOne),
    of("blk.{i}.ffn_norm.weight", "layers.{i}.pre_feedforward_layernorm.weight").each(Each::AddOne),
    of("blk.{i}.post_ffw_norm.weight", "layers.{i}.post_feedforward_layernorm.weight").each(Each::AddOne),
];

pub(super) const GEMMA_HEAD_NORMS: &[Rule] = &[
    of("blk.{i}.attn_q_norm.weight", "layers.{i}.self_attn.q_norm.weight").each(Each::AddOne),
    of("blk.{i}.attn_k_norm.weight", "layers.{i}.self_attn.k_norm.weight").each(Each::AddOne),
];

const GLM4_NORMS: &[Rule] = &[
    of("blk.{i}.attn_norm.weight", "layers.{i}.input_layernorm.weight"),
    of("blk.{i}.post_attention_norm.weight", "layers.{i}.post_self_attn_layernorm.weight"),
    of("blk.{i}.ffn_norm.weight", "layers.{i}.post_attention_layernorm.weight"),
    of("blk.{i}.post_ffw_norm.weight", "layers.{i}.post_mlp_layernorm.weight"),
];

const PHI3: &[Rule] = &[
    of("blk.{i}.attn_qkv.weight", "layers.{i}.self_attn.qkv_proj.weight"),
    of("blk.{i}.attn_output.weight", "layers.{i}.self_attn.o_proj.weight"),
];

const COHERE2: &[Rule] = &[of("blk.{i}.attn_norm.weight", "layers.{i}.input_layernorm.weight")];

const STARCODER2: &[Rule] = &[
    maybe("output_norm.bias", "norm.bias"),
    maybe("blk.{i}.attn_norm.bias", "layers.{i}.input_layernorm.bias"),
    maybe("blk.{i}.ffn_norm.bias", "layers.{i}.post_attention_layernorm.bias"),
    of("blk.{i}.ffn_up.weight", "layers.{i}.mlp.c_fc.weight"),
    of("blk.{i}.ffn_down.weight", "layers.{i}.mlp.c_proj.weight"),
    maybe("blk.{i}.ffn_up.bias", "layers.{i}.mlp.c_fc.bias"),
    maybe("blk.{i}.ffn_down.bias", "layers.{i}.mlp.c_proj.bias"),
];

const GPT2: &[Rule] = &[
    of("token_embd.weight", "wte.weight"),
    of("position_embd.weight", "wpe.weight"),
    of("output_norm.weight", "ln_f.weight"),
    of("output_norm.bias", "ln_f.bias"),
    maybe("output.weight", "lm_head.weight"),
    of("blk.{i}.attn_norm.weight", "h.{i}.ln_1.weight"),
    of("blk.{i}.attn_norm.bias", "h.{i}.ln_1.bias"),
    of("blk.{i}.attn_qkv.weight", "h.{i}.attn.c_attn.weight").by(Op::Transpose),
    of("blk.{i}.attn_qkv.bias", "h.{i}.attn.c_attn.bias"),
    of("blk.{i}.attn_output.weight", "h.{i}.attn.c_proj.weight").by(Op::Transpose),
    of("blk.{i}.attn_output.bias", "h.{i}.attn.c_proj.bias"),
    of("blk.{i}.ffn_norm.weight", "h.{i}.ln_2.weight"),
    of("blk.{i}.ffn_norm.bias", "h.{i}.ln_2.bias"),
    of("blk.{i}.ffn_up.weight", "h.{i}.mlp.c_fc.weight").by(Op::Transpose),
    of("blk.{i}.ffn_up.bias", "h.{i}.mlp.c_fc.bias"),
    of("blk.{i}.ffn_down.weight", "h.{i}.mlp.c_proj.weight").by(Op::Transpose),
    of("blk.{i}.ffn_down.bias", "h.{i}.mlp.c_proj.bias"),
];

/// Granite's factors, of both kinds of its models.
pub(super) fn granite_scales(c: &Config, k: &mut Keys) -> Result<()> {
    k.put_some("attention.scale", c.f32("attention_multiplier")?);
    k.put_some("embedding_scale", c.f32("embedding_multiplier")?);
    k.put_some("residual_scale", c.f32("residual_multiplier")?);
    k.put("logit_scale", c.f32("logits_scaling")?.unwrap_or(1.0));
    Ok(())
}

/// Every family that is known.
pub(super) fn all() -> impl Iterator<Item = &'static Family> {
    FAMILIES.iter().chain(hybrids::FAMILIES)
}

static FAMILIES: &[Family] = &[
    Family {
        model_types: &["llama", "mistral"],
        arch: "llama",
        tensors: &[GLOBALS, PAIRED_ATTENTION, PRE, GATED],
        keys: |c, k| decoder(c, k, RMS),
    },
    Family {
        model_types: &["mixtral"],
        arch: "llama",
        tensors: &[GLOBALS, PAIRED_ATTENTION, PRE, MIXTRAL_EXPERTS, STACKED_EXPERTS],
        keys: |c, k| {
            experts(c, k)?;
            decoder(c, k, RMS)
        },
    },
    Family { model_types: &["qwen2"], arch: "qwen2", tensors: &[GLOBALS, ATTENTION, PRE, GATED], keys: qwen },
    Family {
        model_types: &["qwen2_moe"],
        arch: "qwen2moe",
        tensors: &[GLOBALS, ATTENTION, PRE, EXPERTS, STACKED_EXPERTS, SHARED_EXPERT],
        keys: |c, k| {
            experts(c, k)?;
            k.put("expert_shared_feed_forward_length", c.need_u32("shared_expert_intermediate_size")?);
            qwen(c, k)
        },
    },
    Family {
        model_types: &["qwen3"],
        arch: "qwen3",
        tensors: &[GLOBALS, ATTENTION, HEAD_NORMS, PRE, GATED],
        keys: qwen,
    },
    Family {
        model_types: &["qwen3_moe"],
        arch: "qwen3moe",
        tensors: &[GLOBALS, ATTENTION, HEAD_NORMS, PRE, EXPERTS, STACKED_EXPERTS],
        keys: |c, k| {
            experts(c, k)?;
            qwen(c, k)
        },
    },
    Family {
        model_types: &["gemma"],
        arch: "gemma",
        tensors: &[GEMMA_GLOBALS, ATTENTION, GEMMA_PRE, GATED],
        keys: |c, k| decoder(c, k, RMS),
    },
    Family {
        model_types: &["gemma2"],
        arch: "gemma2",
        tensors: &[GEMMA_GLOBALS, ATTENTION, GEMMA_BOTH, GATED],
        keys: gemma,
    },
    Family {
        model_types: &["gemma3", "gemma3_text"],
        arch: "gemma3",
        tensors: &[GEMMA_GLOBALS, ATTENTION, GEMMA_HEAD_NORMS, GEMMA_BOTH, GATED],
        keys: gemma,
    },
    Family {
        model_types: &["phi3"],
        arch: "phi3",
        tensors: &[GLOBALS, PHI3, PRE, FUSED],
        keys: |c, k| decoder(c, k, RMS),
    },
    Family {
        model_types: &["smollm3"],
        arch: "smollm3",
        tensors: &[GLOBALS, PAIRED_ATTENTION, PRE, GATED],
        keys: |c, k| {
            c.expect("no_rope_layer_interval", &[json!(4)])?;
            let n = c.need_u32("num_hidden_layers")?;
            c.expect("no_rope_layers", &[(1..=n).map(|i| u32::from(i % 4 != 0)).collect()])?;
            c.expect("use_sliding_window", &[json!(false)])?;
            decoder(c, k, RMS)
        },
    },
    Family {
        model_types: &["granite"],
        arch: "granite",
        tensors: &[GLOBALS, PAIRED_ATTENTION, PRE, GATED],
        keys: |c, k| {
            granite_scales(c, k)?;
            decoder(c, k, RMS)
        },
    },
    Family {
        model_types: &["olmo2", "olmo3"],
        arch: "olmo2",
        tensors: &[GLOBALS, ATTENTION, HEAD_NORMS, POST, GATED],
        keys: |c, k| {
            windows(c, k)?;
            decoder(c, k, RMS)
        },
    },
    Family {
        model_types: &["cohere2"],
        arch: "cohere2",
        tensors: &[GLOBALS, ATTENTION, COHERE2, GATED],
        keys: |c, k| {
            c.expect("use_qk_norm", &[json!(false)])?;
            windows(c, k)?;
            k.put("logit_scale", c.f32("logit_scale")?.unwrap_or(0.0625));
            decoder(c, k, ("layer_norm_eps", "attention.layer_norm_epsilon"))
        },
    },
    Family {
        model_types: &["glm4"],
        arch: "glm4",
        tensors: &[GLOBALS, ATTENTION, GLM4_NORMS, FUSED],
        keys: |c, k| decoder(c, k, RMS),
    },
    Family {
        model_types: &["starcoder2"],
        arch: "starcoder2",
        tensors: &[GLOBALS, ATTENTION, PRE, STARCODER2],
        keys: |c, k| decoder(c, k, ("norm_epsilon", "attention.layer_norm_epsilon")),
    },
    Family { model_types: &["gpt2"], arch: "gpt2", tensors: &[GPT2], keys: gpt2 },
    Family {
        model_types: &["gpt_oss"],
        arch: "gpt-oss",
        tensors: &[GLOBALS, ATTENTION, GPT_OSS],
        keys: |c, k| {
            c.expect("swiglu_limit", &[json!(7.0), json!(7)])?;
            c.expect("swiglu_alpha", &[json!(1.702)])?;
            experts(c, k)?;
            k.put("expert_feed_forward_length", c.need_u32("intermediate_size")?);
            windows(c, k)?;
            decoder(c, k, RMS)
        },
    },
];

/// Names of the epsilon of norms.
pub(super) const RMS: (&str, &str) = ("rms_norm_eps", "attention.layer_norm_rms_epsilon");

/// Width of a head.
pub(super) fn head_dim(c: &Config) -> Result<u32> {
    match c.u32("head_dim")? {
        Some(n) => Ok(n),
        None => Ok(c.need_u32("hidden_size")? / c.need_u32("num_attention_heads")?.max(1)),
    }
}

/// What all decoders have. An architecture's own keys come before: they are not written twice.
pub(super) fn decoder(c: &Config, k: &mut Keys, (eps_from, eps_to): (&str, &str)) -> Result<()> {
    let heads = c.need_u32("num_attention_heads")?;
    k.put("block_count", c.need_u32("num_hidden_layers")?);
    k.put("context_length", c.need_u32("max_position_embeddings")?);
    k.put("embedding_length", c.need_u32("hidden_size")?);
    if !k.has("feed_forward_length") {
        k.put("feed_forward_length", c.need_u32("intermediate_size")?);
    }
    k.put("attention.head_count", heads);
    if !k.has("attention.head_count_kv") {
        k.put("attention.head_count_kv", c.u32("num_key_value_heads")?.unwrap_or(heads));
    }
    k.put(eps_to, c.need_f32(eps_from)?);
    let head_dim = head_dim(c)?;
    k.put("attention.key_length", head_dim);
    k.put("attention.value_length", head_dim);
    // Phi-3 and Mistral have windows on all layers.
    if !k.has("attention.sliding_window") && c.bool("use_sliding_window")? != Some(false) {
        k.put_some("attention.sliding_window", c.u32("sliding_window")?);
    }
    activation(c)?;
    rope(c, k, head_dim, k_is_total(c)?)
}

/// Whether a given magnitude of YaRN is the whole one in the keys of the architecture.
fn k_is_total(c: &Config) -> Result<bool> {
    Ok(c.need_str("model_type")?.starts_with("olmo"))
}

/// The activation is the architecture's; another one does not run.
fn activation(c: &Config) -> Result<()> {
    let (silu, gelu) =
        (["silu", "swish"].map(|s| json!(s)), ["gelu_pytorch_tanh", "gelu_new", "gelu_fast"].map(|s| json!(s)));
    match c.need_str("model_type")?.as_str() {
        // Gemma's first configurations say "gelu" and mean its approximation.
        "gemma" => c.expect("hidden_act", &[&gelu[..], &[json!("gelu")]].concat()),
        "gemma2" | "gemma3" | "gemma3_text" => c.expect("hidden_activation", &gelu),
        "starcoder2" => c.expect("hidden_act", &gelu),
        "gpt2" => c.expect("activation_function", &gelu),
        _ => c.expect("hidden_act", &silu),
    }
}

/// Which layers slide.
fn windows(c: &Config, k: &mut Keys) -> Result<()> {
    k.put_some("attention.sliding_window", c.u32("sliding_window")?);
    let Some(kinds) = c.strings("layer_types")? else { return Ok(()) };
    if kinds.iter().any(|kind| kind != "sliding_attention" && kind != "full_attention") {
        return c.refuse("layer_types");
    }
    k.put("attention.sliding_window_pattern", kinds.iter().map(|kind| kind == "sliding_attention").collect::<Vec<_>>());
    Ok(())
}

pub(super) fn experts(c: &Config, k: &mut Keys) -> Result<()> {
    c.expect("decoder_sparse_step", &[json!(1)])?;
    c.expect("mlp_only_layers", &[json!([])])?;
    k.put("expert_count", n_expert(c)?);
    k.put("expert_used_count", c.need_u32("num_experts_per_tok")?);
    k.put_some("expert_feed_forward_length", c.u32("moe_intermediate_size")?);
    k.put_some("expert_weights_norm", c.bool("norm_topk_prob")?);
    Ok(())
}

/// Number of experts, under the names it has had.
pub(super) fn n_expert(c: &Config) -> Result<u32> {
    match c.u32("num_experts")? {
        Some(n) => Ok(n),
        None => c.need_u32("num_local_experts"),
    }
}

fn qwen(c: &Config, k: &mut Keys) -> Result<()> {
    c.expect("use_sliding_window", &[json!(false)])?;
    c.expect("qkv_bias", &[json!(true)])?;
    // A number here means nothing while `use_sliding_window` is off, which is also the default.
    k.put("attention.sliding_window", 0u32);
    decoder(c, k, RMS)
}

/// Gemma 2 and 3.
fn gemma(c: &Config, k: &mut Keys) -> Result<()> {
    windows(c, k)?;
    if let Some(n) = c.f32("query_pre_attn_scalar")? {
        k.put("attention.scale", 1.0 / n.sqrt());
    }
    k.put_some("attn_logit_softcapping", c.f32("attn_logit_softcapping")?);
    k.put_some("final_logit_softcapping", c.f32("final_logit_softcapping")?);
    c.expect("use_bidirectional_attention", &[json!(false)])?;
    decoder(c, k, RMS)
}

fn gpt2(c: &Config, k: &mut Keys) -> Result<()> {
    activation(c)?;
    for (key, wanted) in
        [("scale_attn_weights", true), ("scale_attn_by_inverse_layer_idx", false), ("add_cross_attention", false)]
    {
        c.expect(key, &[json!(wanted)])?;
    }
    let width = c.need_u32("n_embd")?;
    k.put("block_count", c.need_u32("n_layer")?);
    k.put("context_length", c.need_u32("n_positions")?);
    k.put("embedding_length", width);
    k.put("feed_forward_length", c.u32("n_inner")?.unwrap_or(width.saturating_mul(4)));
    k.put("attention.head_count", c.need_u32("n_head")?);
    k.put("attention.layer_norm_epsilon", c.need_f32("layer_norm_epsilon")?);
    Ok(())
}
