//! Families with recurrent or convolutional layers beside those of attention.
//!
//! A layer has the tensors of its kind only, so those are optional here; the architecture finds the ones it misses.

use serde_json::json;

use super::config::{Config, Keys};
use super::families::{
    ATTENTION, EXPERTS, Family, GATED, GEMMA_GLOBALS, GEMMA_HEAD_NORMS, GLOBALS, PAIRED_ATTENTION, PRE, RMS, Rule,
    SHARED_EXPERT, STACKED_EXPERTS, decoder, experts, granite_scales, maybe, of,
};
use super::recipe::{Each, Heads, Op};
use crate::error::{Result, bail};

const LFM2: &[Rule] = &[
    of("token_embd.weight", "embed_tokens.weight"),
    of("token_embd_norm.weight", "embedding_norm.weight"),
    maybe("output.weight", "lm_head.weight"),
    of("blk.{i}.attn_norm.weight", "layers.{i}.operator_norm.weight"),
    of("blk.{i}.ffn_norm.weight", "layers.{i}.ffn_norm.weight"),
    of("blk.{i}.ffn_gate.weight", "layers.{i}.feed_forward.w1.weight"),
    of("blk.{i}.ffn_up.weight", "layers.{i}.feed_forward.w3.weight"),
    of("blk.{i}.ffn_down.weight", "layers.{i}.feed_forward.w2.weight"),
    maybe("blk.{i}.attn_q.weight", "layers.{i}.self_attn.q_proj.weight"),
    maybe("blk.{i}.attn_k.weight", "layers.{i}.self_attn.k_proj.weight"),
    maybe("blk.{i}.attn_v.weight", "layers.{i}.self_attn.v_proj.weight"),
    maybe("blk.{i}.attn_output.weight", "layers.{i}.self_attn.out_proj.weight"),
    maybe("blk.{i}.attn_q_norm.weight", "layers.{i}.self_attn.q_layernorm.weight"),
    maybe("blk.{i}.attn_k_norm.weight", "layers.{i}.self_attn.k_layernorm.weight"),
    maybe("blk.{i}.shortconv.conv.weight", "layers.{i}.conv.conv.weight").exact(),
    maybe("blk.{i}.shortconv.in_proj.weight", "layers.{i}.conv.in_proj.weight"),
    maybe("blk.{i}.shortconv.out_proj.weight", "layers.{i}.conv.out_proj.weight"),
];

const MAMBA: &[Rule] = &[
    maybe("blk.{i}.ssm_in.weight", "layers.{i}.mamba.in_proj.weight"),
    maybe("blk.{i}.ssm_out.weight", "layers.{i}.mamba.out_proj.weight"),
    maybe("blk.{i}.ssm_conv1d.weight", "layers.{i}.mamba.conv1d.weight").exact(),
    maybe("blk.{i}.ssm_conv1d.bias", "layers.{i}.mamba.conv1d.bias"),
    maybe("blk.{i}.ssm_dt.bias", "layers.{i}.mamba.dt_bias"),
    maybe("blk.{i}.ssm_a", "layers.{i}.mamba.A_log").by(Op::Column).each(Each::NegExp).exact(),
    maybe("blk.{i}.ssm_d", "layers.{i}.mamba.D").by(Op::Column).exact(),
    maybe("blk.{i}.ssm_norm.weight", "layers.{i}.mamba.norm.weight").by(Op::Row).exact(),
];

const GRANITE_EXPERTS: &[Rule] = &[
    of("blk.{i}.ffn_gate_inp.weight", "layers.{i}.block_sparse_moe.router.layer.weight"),
    of("blk.{i}.ffn_gate_exps.weight", "layers.{i}.block_sparse_moe.input_linear.weight").by(Op::Half(0)),
    of("blk.{i}.ffn_up_exps.weight", "layers.{i}.block_sparse_moe.input_linear.weight").by(Op::Half(1)),
    of("blk.{i}.ffn_down_exps.weight", "layers.{i}.block_sparse_moe.output_linear.weight"),
    of("blk.{i}.ffn_gate_shexp.weight", "layers.{i}.shared_mlp.input_linear.weight").by(Op::HalfRows(0)),
    of("blk.{i}.ffn_up_shexp.weight", "layers.{i}.shared_mlp.input_linear.weight").by(Op::HalfRows(1)),
    of("blk.{i}.ffn_down_shexp.weight", "layers.{i}.shared_mlp.output_linear.weight"),
];

/// The block that is beside experts, where there are none.
const GRANITE_DENSE: &[Rule] = &[
    of("blk.{i}.ffn_gate.weight", "layers.{i}.shared_mlp.input_linear.weight").by(Op::HalfRows(0)),
    of("blk.{i}.ffn_up.weight", "layers.{i}.shared_mlp.input_linear.weight").by(Op::HalfRows(1)),
    of("blk.{i}.ffn_down.weight", "layers.{i}.shared_mlp.output_linear.weight"),
];

/// Norms of the gated delta rule's models; the weights but 1 are stored.
const DELTA_NORMS: &[Rule] = &[
    of("blk.{i}.attn_norm.weight", "layers.{i}.input_layernorm.weight").each(Each::AddOne),
    of("blk.{i}.post_attention_norm.weight", "layers.{i}.post_attention_layernorm.weight").each(Each::AddOne),
];

/// The gated delta rule, with one projection for everything that belongs to a key.
const DELTA_GROUPED: &[Rule] = &[
    maybe("blk.{i}.attn_qkv.weight", "layers.{i}.linear_attn.in_proj_qkvz.weight").by(Op::Qkv),
    maybe("blk.{i}.attn_gate.weight", "layers.{i}.linear_attn.in_proj_qkvz.weight").by(Op::Gates),
    maybe("blk.{i}.ssm_ba.weight", "layers.{i}.linear_attn.in_proj_ba.weight"),
    maybe("blk.{i}.ssm_conv1d.weight", "layers.{i}.linear_attn.conv1d.weight").exact(),
    maybe("blk.{i}.ssm_dt.bias", "layers.{i}.linear_attn.dt_bias"),
    maybe("blk.{i}.ssm_a", "layers.{i}.linear_attn.A_log").each(Each::NegExp),
    maybe("blk.{i}.ssm_norm.weight", "layers.{i}.linear_attn.norm.weight"),
    maybe("blk.{i}.ssm_out.weight", "layers.{i}.linear_attn.out_proj.weight"),
];

/// The same with a projection for each; the architecture has value heads in tiles.
const DELTA_TILED: &[Rule] = &[
    maybe("blk.{i}.attn_qkv.weight", "layers.{i}.linear_attn.in_proj_qkv.weight").by(Op::TileRows),
    maybe("blk.{i}.attn_gate.weight", "layers.{i}.linear_attn.in_proj_z.weight").by(Op::TileRows),
    maybe("blk.{i}.ssm_alpha.weight", "layers.{i}.linear_attn.in_proj_a.weight").by(Op::TileRows),
    maybe("blk.{i}.ssm_beta.weight", "layers.{i}.linear_attn.in_proj_b.weight").by(Op::TileRows),
    maybe("blk.{i}.ssm_conv1d.weight", "layers.{i}.linear_attn.conv1d.weight").by(Op::TileRows).exact(),
    maybe("blk.{i}.ssm_dt.bias", "layers.{i}.linear_attn.dt_bias").by(Op::TileRows),
    maybe("blk.{i}.ssm_a", "layers.{i}.linear_attn.A_log").by(Op::TileRows).each(Each::NegExp),
    maybe("blk.{i}.ssm_norm.weight", "layers.{i}.linear_attn.norm.weight"),
    maybe("blk.{i}.ssm_out.weight", "layers.{i}.linear_attn.out_proj.weight").by(Op::TileColumns),
];

pub(super) static FAMILIES: &[Family] = &[
    Family { model_types: &["lfm2"], arch: "lfm2", tensors: &[LFM2], keys: lfm2 },
    Family {
        model_types: &["granitemoehybrid"],
        arch: "granitehybrid",
        tensors: &[GLOBALS, &optional::<8>(PAIRED_ATTENTION), PRE, MAMBA, GRANITE_EXPERTS],
        keys: granite,
    },
    Family {
        model_types: &["granitemoehybrid without experts"],
        arch: "granitehybrid",
        tensors: &[GLOBALS, &optional::<8>(PAIRED_ATTENTION), PRE, MAMBA, GRANITE_DENSE],
        keys: granite,
    },
    Family {
        model_types: &["qwen3_next"],
        arch: "qwen3next",
        tensors: &[
            GEMMA_GLOBALS,
            &optional::<8>(ATTENTION),
            &optional::<2>(GEMMA_HEAD_NORMS),
            DELTA_NORMS,
            DELTA_GROUPED,
            EXPERTS,
            STACKED_EXPERTS,
            SHARED_EXPERT,
        ],
        keys: delta_mixture,
    },
    Family {
        model_types: &["qwen3_5", "qwen3_5_text"],
        arch: "qwen35",
        tensors: &[
            GEMMA_GLOBALS,
            &optional::<8>(ATTENTION),
            &optional::<2>(GEMMA_HEAD_NORMS),
            DELTA_NORMS,
            DELTA_TILED,
            GATED,
        ],
        keys: delta,
    },
    Family {
        model_types: &["qwen3_5_moe", "qwen3_5_moe_text"],
        arch: "qwen35moe",
        tensors: &[
            GEMMA_GLOBALS,
            &optional::<8>(ATTENTION),
            &optional::<2>(GEMMA_HEAD_NORMS),
            DELTA_NORMS,
            DELTA_TILED,
            EXPERTS,
            STACKED_EXPERTS,
            SHARED_EXPERT,
        ],
        keys: delta_mixture,
    },
];

/// What the tables call a model: `model_type`, which for some families says too little.
pub(super) fn kind(c: &Config) -> Result<String> {
    let kind = c.need_str("model_type")?;
    let dense = kind == "granitemoehybrid" && c.u32("num_local_experts")?.unwrap_or(0) == 0;
    Ok(if dense { kind + " without experts" } else { kind })
}

/// A table whose tensors only some layers have.
const fn optional<const N: usize>(rules: &[Rule]) -> [Rule; N] {
    let mut all = [of("", ""); N];
    let mut i = 0;
    while i < N {
        all[i] = Rule { optional: true, ..rules[i] };
        i += 1;
    }
    all
}

/// Heads of the gated delta rule, where there are any.
pub(super) fn heads(c: &Config) -> Result<Heads> {
    let get = |key: &str| Ok(c.u32(key)?.unwrap_or(0) as usize);
    let heads = Heads {
        paired: 0,
        keys: get("linear_num_key_heads")?,
        values: get("linear_num_value_heads")?,
        key_dim: get("linear_key_head_dim")?,
        value_dim: get("linear_value_head_dim")?,
    };
    let sizes = [heads.keys, heads.values, heads.key_dim, heads.value_dim];
    let any = sizes.iter().any(|&n| n > 0);
    if any && (sizes.iter().any(|&n| n == 0 || n > 1 << 16) || !heads.values.is_multiple_of(heads.keys)) {
        bail!(BadFile, "{}: {} value heads and {} key heads (keys \"linear_…\")", c.name, heads.values, heads.keys);
    }
    Ok(heads)
}

/// Which layers are of attention.
fn attention_layers(c: &Config) -> Result<Vec<bool>> {
    let Some(kinds) = c.strings("layer_types")? else {
        let interval = c.u32("full_attention_interval")?.unwrap_or(4).max(1);
        return Ok((1..=c.need_u32("num_hidden_layers")?).map(|i| i % interval == 0).collect());
    };
    let known = ["attention", "full_attention", "mamba", "linear_attention", "conv"];
    if kinds.iter().any(|kind| !known.contains(&kind.as_str())) {
        c.refuse("layer_types")?;
    }
    Ok(kinds.iter().map(|kind| kind.ends_with("attention") && kind != "linear_attention").collect())
}

/// Key heads of each layer; none where there is no attention.
fn key_heads(c: &Config, k: &mut Keys) -> Result<()> {
    let n = match c.u32("num_key_value_heads")? {
        Some(n) => n,
        None => c.need_u32("num_attention_heads")?,
    };
    let heads = attention_layers(c)?.into_iter().map(|attends| if attends { n } else { 0 });
    k.put("attention.head_count_kv", heads.collect::<Vec<u32>>());
    Ok(())
}

fn lfm2(c: &Config, k: &mut Keys) -> Result<()> {
    c.expect("conv_bias", &[json!(false)])?;
    key_heads(c, k)?;
    k.put("shortconv.l_cache", c.need_u32("conv_L_cache")?);
    let width = match c.u32("intermediate_size")? {
        Some(n) => n,
        None => c.need_u32("block_ff_dim")?,
    };
    let width = if c.bool("block_auto_adjust_ff_dim")?.unwrap_or(false) {
        let scaled = (f64::from(width) * 2.0 / 3.0).floor() * c.f64("block_ffn_dim_multiplier")?.unwrap_or(1.0);
        let multiple = f64::from(c.u32("block_multiple_of")?.unwrap_or(256).max(1));
        ((scaled.floor() / multiple).ceil() * multiple) as u32
    } else {
        width
    };
    k.put("feed_forward_length", width);
    let eps = if c.f32("norm_eps")?.is_some() { "norm_eps" } else { "block_norm_eps" };
    decoder(c, k, (eps, RMS.1))
}

fn granite(c: &Config, k: &mut Keys) -> Result<()> {
    c.expect("mamba_proj_bias", &[json!(false)])?;
    granite_scales(c, k)?;
    let width = c.need_u32("shared_intermediate_size")?;
    if c.u32("num_local_experts")?.unwrap_or(0) > 0 {
        experts(c, k)?;
        k.put("expert_shared_feed_forward_length", width);
    } else {
        k.put("feed_forward_length", width);
    }
    key_heads(c, k)?;
    k.put("ssm.conv_kernel", c.need_u32("mamba_d_conv")?);
    k.put("ssm.state_size", c.need_u32("mamba_d_state")?);
    k.put("ssm.group_count", c.need_u32("mamba_n_groups")?);
    k.put("ssm.inner_size", c.need_u32("mamba_d_head")?.saturating_mul(c.need_u32("mamba_n_heads")?));
    k.put("ssm.time_step_rank", c.need_u32("mamba_n_heads")?);
    if c.str("position_embedding_type")?.as_deref() != Some("rope") {
        k.put("rope.scaling.finetuned", false);
    }
    decoder(c, k, RMS)
}

fn mixture(c: &Config, k: &mut Keys) -> Result<()> {
    experts(c, k)?;
    k.put("expert_shared_feed_forward_length", c.need_u32("shared_expert_intermediate_size")?);
    // Newer configurations leave it out where all layers are mixtures.
    let width = c.u32("intermediate_size")?.unwrap_or(c.need_u32("moe_intermediate_size")?);
    k.put("feed_forward_length", width);
    Ok(())
}

/// Those of them that are mixtures.
fn delta_mixture(c: &Config, k: &mut Keys) -> Result<()> {
    mixture(c, k)?;
    delta(c, k)
}

/// The models with the gated delta rule.
fn delta(c: &Config, k: &mut Keys) -> Result<()> {
    k.put("ssm.conv_kernel", c.need_u32("linear_conv_kernel_dim")?);
    k.put("ssm.state_size", c.need_u32("linear_key_head_dim")?);
    k.put("ssm.group_count", c.need_u32("linear_num_key_heads")?);
    k.put("ssm.time_step_rank", c.need_u32("linear_num_value_heads")?);
    k.put("ssm.inner_size", c.need_u32("linear_num_value_heads")?.saturating_mul(c.need_u32("linear_value_head_dim")?));
    let attends = attention_layers(c)?;
    let interval = attends.iter().position(|&a| a).map_or(attends.len(), |i| i + 1);
    k.put("full_attention_interval", interval as u32);
    k.put("attention.recurrent_layers", attends.iter().map(|a| !a).collect::<Vec<bool>>());
    if let Some(sections) = c.object("rope_parameters").map(|p| p.numbers("mrope_section")).transpose()?.flatten() {
        let mut four: Vec<i32> = sections.iter().map(|&n| n as i32).collect();
        four.resize(4, 0);
        k.put("rope.dimension_sections", four);
    }
    decoder(c, k, RMS)
}
