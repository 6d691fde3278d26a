//! Folders of safetensors: made of the golden GGUF files by the inverse of what loading does, and compared with them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use doppler::error::Error;
use doppler::format::{Gguf, TensorInfo};
use doppler::gpu::{Features, Guard};
use doppler::model::KvType;
use doppler::model::arch::{ARCHITECTURES, read_spec};
use doppler::model::hf;
use doppler::quant::by_ggml_type;
use doppler::session::{ModelOptions, WeightFormat, tokenizer_of};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use crate::common::{context, load, logits, max_error, session, shared};
use crate::golden::FAMILIES;

/// A tensor as a folder has it: f32 values, the contiguous dimension last.
#[derive(Clone)]
struct Stored {
    shape: Vec<usize>,
    values: Vec<f32>,
    /// Raw bytes instead of values.
    raw: Option<Vec<u8>>,
}

fn decoded(file: &Gguf, t: &TensorInfo) -> Vec<f32> {
    let mut values = vec![0.0; t.elements() as usize];
    (by_ggml_type(t.ggml_type).unwrap().dequantize)(&file.data(t), &mut values);
    values
}

/// Pairs of a head's rows back to halves.
fn unpaired(s: &Stored, heads: usize) -> Stored {
    let (rows, row) = (s.shape[0], s.values.len() / s.shape[0]);
    let pair = rows / heads / 2;
    let mut values = vec![0.0; s.values.len()];
    for r in 0..rows {
        let (head, at) = (r / (2 * pair), r % (2 * pair));
        let to = head * 2 * pair + at % 2 * pair + at / 2;
        values[to * row..(to + 1) * row].copy_from_slice(&s.values[r * row..(r + 1) * row]);
    }
    Stored { values, ..s.clone() }
}

/// The last two dimensions swapped.
fn transposed(s: &Stored) -> Stored {
    let n = s.shape.len();
    let (a, b) = (s.shape[n - 2], s.shape[n - 1]);
    let mut shape = s.shape.clone();
    shape.swap(n - 2, n - 1);
    let mut values = Vec::with_capacity(s.values.len());
    for each in s.values.chunks(a * b) {
        (0..b).for_each(|j| values.extend((0..a).map(|i| each[i * b + j])));
    }
    Stored { shape, values, raw: None }
}

/// Gate and up taking turns along dimension 1.
fn interleaved(gate: &Stored, up: &Stored) -> Stored {
    let row: usize = gate.shape[2..].iter().product();
    let mut values = Vec::new();
    for (g, u) in gate.values.chunks(row).zip(up.values.chunks(row)) {
        values.extend_from_slice(g);
        values.extend_from_slice(u);
    }
    let mut shape = gate.shape.clone();
    shape[1] *= 2;
    Stored { shape, values, raw: None }
}

/// MXFP4 blocks of GGML as bytes of neighbours, and scales.
fn mxfp4(file: &Gguf, names: &[String], shape: &[usize]) -> [Stored; 2] {
    let data: Vec<Vec<u8>> = names.iter().map(|n| file.data(file.tensor(n).unwrap()).into_owned()).collect();
    let row = shape[2] / 32 * 17;
    let (mut blocks, mut scales) = (Vec::new(), Vec::new());
    for r in 0..data[0].len() / row {
        for block in data.iter().flat_map(|d| d[r * row..(r + 1) * row].chunks(17)) {
            scales.push(block[0]);
            let nibble = |j: usize| if j < 16 { block[1 + j] & 15 } else { block[1 + j - 16] >> 4 };
            blocks.extend((0..16).map(|j| nibble(2 * j) | nibble(2 * j + 1) << 4));
        }
    }
    let rows = shape[1] * names.len();
    let of = |shape: &[usize], raw| Stored { shape: shape.to_vec(), values: Vec::new(), raw: Some(raw) };
    [of(&[shape[0], rows, shape[2] / 32, 16], blocks), of(&[shape[0], rows, shape[2] / 32], scales)]
}

/// Where a layer's tensor stands in folders of a family.
fn name_in_folder(kind: &str, part: &str) -> String {
    let (stem, end) = part.rsplit_once('.').unwrap();
    let both = matches!(kind, "gemma2" | "gemma3_text");
    let name = match (kind, stem) {
        ("gpt2", "attn_norm") => "ln_1",
        ("gpt2", "ffn_norm") => "ln_2",
        ("gpt2", "attn_qkv") => "attn.c_attn",
        ("gpt2", "attn_output") => "attn.c_proj",
        ("gpt2" | "starcoder2", "ffn_up") => "mlp.c_fc",
        ("gpt2" | "starcoder2", "ffn_down") => "mlp.c_proj",
        ("phi3" | "glm4", "ffn_up") => "mlp.gate_up_proj",
        (_, "attn_norm") => "input_layernorm",
        (_, "ffn_norm") if both => "pre_feedforward_layernorm",
        (_, "ffn_norm") => "post_attention_layernorm",
        ("glm4", "post_attention_norm") => "post_self_attn_layernorm",
        ("glm4", "post_ffw_norm") => "post_mlp_layernorm",
        (_, "post_attention_norm") => "post_attention_layernorm",
        (_, "post_ffw_norm") => "post_feedforward_layernorm",
        (_, "attn_q") => "self_attn.q_proj",
        (_, "attn_k") => "self_attn.k_proj",
        (_, "attn_v") => "self_attn.v_proj",
        (_, "attn_qkv") => "self_attn.qkv_proj",
        (_, "attn_output") => "self_attn.o_proj",
        (_, "attn_q_norm") => "self_attn.q_norm",
        (_, "attn_k_norm") => "self_attn.k_norm",
        (_, "attn_sinks") => return "self_attn.sinks".into(),
        (_, "ffn_gate") => "mlp.gate_proj",
        (_, "ffn_up") => "mlp.up_proj",
        (_, "ffn_down") => "mlp.down_proj",
        ("gpt_oss", "ffn_gate_inp") => "mlp.router",
        ("mixtral", "ffn_gate_inp") => "block_sparse_moe.gate",
        (_, "ffn_gate_inp") => "mlp.gate",
        (_, "ffn_gate_inp_shexp") => "mlp.shared_expert_gate",
        (_, "ffn_gate_shexp") => "mlp.shared_expert.gate_proj",
        (_, "ffn_up_shexp") => "mlp.shared_expert.up_proj",
        (_, "ffn_down_shexp") => "mlp.shared_expert.down_proj",
        ("mixtral", "ffn_gate_exps") => "block_sparse_moe.experts.{e}.w1",
        ("mixtral", "ffn_up_exps") => "block_sparse_moe.experts.{e}.w3",
        ("mixtral", "ffn_down_exps") => "block_sparse_moe.experts.{e}.w2",
        (_, "ffn_gate_exps") => "mlp.experts.{e}.gate_proj",
        (_, "ffn_up_exps") => "mlp.experts.{e}.up_proj",
        (_, "ffn_down_exps") => "mlp.experts.{e}.down_proj",
        (kind, other) => panic!("{kind}: {other}"),
    };
    format!("{name}.{end}")
}

/// Values of tiled heads back to those that share a key standing together. `per`: rows of a value head.
fn untiled(s: &Stored, config: &Value, per: usize) -> Stored {
    let n = |key: &str| config[key].as_u64().unwrap() as usize;
    let (keys, values) = (n("linear_num_key_heads"), n("linear_num_value_heads"));
    let row = s.values.len() / s.shape[0];
    let skip = s.shape[0] - values * per;
    let mut out = s.clone();
    for head in 0..values {
        // The tile is the number of the value head within its key.
        let to = head % keys * (values / keys) + head / keys;
        let place = |head: usize| (skip + head * per) * row..(skip + (head + 1) * per) * row;
        out.values[place(to)].copy_from_slice(&s.values[place(head)]);
    }
    out
}

/// A layer's tensors of the hybrid families, where they are not those of others.
fn hybrid(
    kind: &str,
    part: &str,
    s: &Stored,
    config: &Value,
    read: &dyn Fn(&str) -> Stored,
) -> Option<Vec<(&'static str, Stored)>> {
    let n = |key: &str| config[key].as_u64().unwrap_or(0) as usize;
    let filters = |s: &Stored| Stored { shape: vec![s.shape[0], 1, s.shape[1]], ..s.clone() };
    let logs = |s: &Stored| Stored {
        shape: vec![s.values.len()],
        values: s.values.iter().map(|v| (-v).ln()).collect(),
        raw: None,
    };
    let flat = |s: &Stored| Stored { shape: vec![s.values.len()], ..s.clone() };
    let stacked = |a: &Stored, b: &Stored| {
        let mut shape = a.shape.clone();
        let rows = shape.len() - 2;
        shape[rows] *= 2;
        let each = a.shape[rows] * a.shape[rows + 1];
        let pairs = a.values.chunks(each).zip(b.values.chunks(each));
        Stored { shape, values: pairs.flat_map(|(a, b)| a.iter().chain(b).copied()).collect(), raw: None }
    };
    let (keys, values, dk, dv) =
        (n("linear_num_key_heads"), n("linear_num_value_heads"), n("linear_key_head_dim"), n("linear_value_head_dim"));
    let lfm2 = [
        ("attn_norm.weight", "operator_norm.weight"),
        ("ffn_norm.weight", "ffn_norm.weight"),
        ("ffn_gate.weight", "feed_forward.w1.weight"),
        ("ffn_up.weight", "feed_forward.w3.weight"),
        ("ffn_down.weight", "feed_forward.w2.weight"),
        ("attn_output.weight", "self_attn.out_proj.weight"),
        ("attn_q_norm.weight", "self_attn.q_layernorm.weight"),
        ("attn_k_norm.weight", "self_attn.k_layernorm.weight"),
        ("shortconv.in_proj.weight", "conv.in_proj.weight"),
        ("shortconv.out_proj.weight", "conv.out_proj.weight"),
    ];
    let tiled = kind.starts_with("qwen3_5");
    Some(match (kind, part) {
        ("lfm2", "shortconv.conv.weight") => vec![("conv.conv.weight", filters(s))],
        ("lfm2", part) => vec![(lfm2.iter().find(|(p, _)| *p == part)?.1, s.clone())],
        ("granitemoehybrid", "ssm_in.weight") => vec![("mamba.in_proj.weight", s.clone())],
        ("granitemoehybrid", "ssm_out.weight") => vec![("mamba.out_proj.weight", s.clone())],
        ("granitemoehybrid", "ssm_conv1d.weight") => vec![("mamba.conv1d.weight", filters(s))],
        ("granitemoehybrid", "ssm_conv1d.bias") => vec![("mamba.conv1d.bias", s.clone())],
        ("granitemoehybrid", "ssm_dt.bias") => vec![("mamba.dt_bias", s.clone())],
        ("granitemoehybrid", "ssm_a") => vec![("mamba.A_log", logs(s))],
        ("granitemoehybrid", "ssm_d") => vec![("mamba.D", flat(s))],
        ("granitemoehybrid", "ssm_norm.weight") => vec![("mamba.norm.weight", flat(s))],
        ("granitemoehybrid", "ffn_gate_inp.weight") => vec![("block_sparse_moe.router.layer.weight", s.clone())],
        ("granitemoehybrid", "ffn_gate_exps.weight") => {
            vec![("block_sparse_moe.input_linear.weight", stacked(s, &read("ffn_up_exps.weight")))]
        }
        ("granitemoehybrid", "ffn_down_exps.weight") => vec![("block_sparse_moe.output_linear.weight", s.clone())],
        ("granitemoehybrid", "ffn_gate_shexp.weight") => {
            vec![("shared_mlp.input_linear.weight", stacked(s, &read("ffn_up_shexp.weight")))]
        }
        ("granitemoehybrid", "ffn_down_shexp.weight") => vec![("shared_mlp.output_linear.weight", s.clone())],
        ("granitemoehybrid", "ffn_up_exps.weight" | "ffn_up_shexp.weight") => vec![],
        ("qwen3_next", "attn_qkv.weight") => {
            let (gate, row) = (read("attn_gate.weight"), s.shape[1]);
            let per = values / keys * dv;
            let mut rows = Vec::new();
            for key in 0..keys {
                let mut take =
                    |from: &Stored, at: usize, n: usize| rows.extend_from_slice(&from.values[at * row..(at + n) * row]);
                take(s, key * dk, dk);
                take(s, keys * dk + key * dk, dk);
                take(s, 2 * keys * dk + key * per, per);
                take(&gate, key * per, per);
            }
            let shape = vec![rows.len() / row, row];
            vec![("linear_attn.in_proj_qkvz.weight", Stored { shape, values: rows, raw: None })]
        }
        ("qwen3_next", "attn_gate.weight") => vec![],
        ("qwen3_next", "ssm_ba.weight") => vec![("linear_attn.in_proj_ba.weight", s.clone())],
        ("qwen3_next", "ssm_conv1d.weight") => vec![("linear_attn.conv1d.weight", filters(s))],
        ("qwen3_next", "ssm_dt.bias") => vec![("linear_attn.dt_bias", s.clone())],
        ("qwen3_next", "ssm_a") => vec![("linear_attn.A_log", logs(s))],
        ("qwen3_next", "ssm_out.weight") => vec![("linear_attn.out_proj.weight", s.clone())],
        (_, "ssm_norm.weight") => vec![("linear_attn.norm.weight", s.clone())],
        (_, "attn_qkv.weight") if tiled => vec![("linear_attn.in_proj_qkv.weight", untiled(s, config, dv))],
        (_, "attn_gate.weight") if tiled => vec![("linear_attn.in_proj_z.weight", untiled(s, config, dv))],
        (_, "ssm_alpha.weight") if tiled => vec![("linear_attn.in_proj_a.weight", untiled(s, config, 1))],
        (_, "ssm_beta.weight") if tiled => vec![("linear_attn.in_proj_b.weight", untiled(s, config, 1))],
        (_, "ssm_conv1d.weight") if tiled => vec![("linear_attn.conv1d.weight", filters(&untiled(s, config, dv)))],
        (_, "ssm_dt.bias") if tiled => vec![("linear_attn.dt_bias", untiled(s, config, 1))],
        (_, "ssm_a") if tiled => vec![("linear_attn.A_log", logs(&untiled(s, config, 1)))],
        (_, "ssm_out.weight") if tiled => {
            vec![("linear_attn.out_proj.weight", transposed(&untiled(&transposed(s), config, dv)))]
        }
        ("qwen3_5_moe_text", "ffn_gate_exps.weight") => {
            vec![("mlp.experts.gate_up_proj", stacked(s, &read("ffn_up_exps.weight")))]
        }
        ("qwen3_5_moe_text", "ffn_up_exps.weight") => vec![],
        ("qwen3_5_moe_text", "ffn_down_exps.weight") => vec![("mlp.experts.down_proj", s.clone())],
        _ => return None,
    })
}

/// All tensors of a golden file, as its family stores them.
fn stored(file: &Gguf, config: &Value) -> BTreeMap<String, Stored> {
    let kind = config["model_type"].as_str().unwrap();
    let heads = |key: &str| config[key].as_u64().unwrap() as usize;
    let paired = matches!(kind, "llama" | "mistral" | "mixtral" | "granite" | "granitemoehybrid" | "smollm3");
    let raised = kind.starts_with("gemma") || kind.starts_with("qwen3_");
    let raised = |name: &str| raised && kind != "qwen3_moe" && name.contains("norm") && !name.contains("ssm_norm");
    let (prefix, layers) = if kind == "gpt2" { ("transformer.", "h") } else { ("model.", "layers") };
    let mut all = BTreeMap::new();
    let read = |name: &str| -> Stored {
        let t = file.tensor(name).unwrap_or_else(|| panic!("{name}"));
        Stored { shape: t.dims.iter().rev().map(|&d| d as usize).collect(), values: decoded(file, t), raw: None }
    };
    for t in file.tensors() {
        let Some(rest) = t.name.strip_prefix("blk.") else {
            let name = match (kind, t.name.as_str()) {
                (_, "rope_freqs.weight" | "rope_factors_long.weight" | "rope_factors_short.weight") => continue,
                ("gpt2", "token_embd.weight") => "transformer.wte.weight".to_string(),
                ("gpt2", "position_embd.weight") => "transformer.wpe.weight".to_string(),
                ("gpt2", other) if other.starts_with("output_norm") => other.replace("output_norm", "transformer.ln_f"),
                (_, "token_embd.weight") => "model.embed_tokens.weight".to_string(),
                (_, "output.weight") => "lm_head.weight".to_string(),
                (_, "token_embd_norm.weight") => "model.embedding_norm.weight".to_string(),
                (_, other) => other.replace("output_norm", "model.norm"),
            };
            let mut s = read(&t.name);
            if raised(&t.name) {
                s.values.iter_mut().for_each(|v| *v -= 1.0);
            }
            all.insert(name, s);
            continue;
        };
        let (layer, part) = rest.split_once('.').unwrap();
        let within = |name: &str| format!("{prefix}{layers}.{layer}.{name}");
        let other = |from: &str, to: &str| t.name.replace(from, to);
        if kind == "gpt_oss" && part.contains("_exps") {
            // Everything of gate and up is made once, from the gate.
            let quantised = t.ggml_type == 39;
            let shape: Vec<usize> = t.dims.iter().rev().map(|&d| d as usize).collect();
            let made = match part {
                "ffn_gate_exps.weight" if quantised => {
                    let names = [t.name.clone(), other("gate", "up")];
                    mxfp4(file, &names, &shape)
                        .into_iter()
                        .zip(["gate_up_proj_blocks", "gate_up_proj_scales"])
                        .collect()
                }
                "ffn_down_exps.weight" if quantised => {
                    let names = [t.name.clone()];
                    mxfp4(file, &names, &shape).into_iter().zip(["down_proj_blocks", "down_proj_scales"]).collect()
                }
                "ffn_gate_exps.weight" => {
                    vec![(transposed(&interleaved(&read(&t.name), &read(&other("gate", "up")))), "gate_up_proj")]
                }
                "ffn_gate_exps.bias" => {
                    vec![(interleaved(&read(&t.name), &read(&other("gate", "up"))), "gate_up_proj_bias")]
                }
                "ffn_down_exps.weight" => vec![(transposed(&read(&t.name)), "down_proj")],
                "ffn_down_exps.bias" => vec![(read(&t.name), "down_proj_bias")],
                _ => continue,
            };
            all.extend(made.into_iter().map(|(s, name)| (within(&format!("mlp.experts.{name}")), s)));
            continue;
        }
        let mut s = read(&t.name);
        let beside = |part: &str| read(&format!("blk.{layer}.{part}"));
        if let Some(made) = hybrid(kind, part, &s, config, &beside) {
            all.extend(made.into_iter().map(|(name, s)| (within(name), s)));
            continue;
        }
        let name = within(&name_in_folder(kind, part));
        if paired && part.starts_with("attn_q.") {
            s = unpaired(&s, heads("num_attention_heads"));
        } else if paired && part.starts_with("attn_k.") {
            s = unpaired(&s, heads("num_key_value_heads"));
        } else if raised(part) {
            s.values.iter_mut().for_each(|v| *v -= 1.0);
        } else if kind == "gpt2" && s.shape.len() == 2 {
            s = transposed(&s);
        } else if part.starts_with("ffn_gate_inp_shexp") && s.shape.len() == 1 {
            s.shape.insert(0, 1);
        }
        if name.contains("{e}") {
            let n = s.shape[0];
            for (e, values) in s.values.chunks(s.values.len() / n).enumerate() {
                let one = Stored { shape: s.shape[1..].to_vec(), values: values.to_vec(), raw: None };
                all.insert(name.replace("{e}", &e.to_string()), one);
            }
        } else {
            all.insert(name, s);
        }
    }
    all
}

/// Bytes in the type that folders have: vectors in f32, where they may be no f16 numbers, matrices in `dtype`.
fn encoded(s: &Stored, dtype: Dtype) -> (Dtype, Vec<u8>) {
    match (&s.raw, dtype) {
        (Some(raw), _) => (Dtype::U8, raw.clone()),
        (None, Dtype::F16) if s.shape.len() > 1 => {
            (dtype, s.values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect())
        }
        (None, Dtype::BF16) if s.shape.len() > 1 => {
            (dtype, s.values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect())
        }
        _ => (Dtype::F32, s.values.iter().flat_map(|v| v.to_le_bytes()).collect()),
    }
}

fn write_file(path: &Path, tensors: &[(&String, &Stored)], dtype: Dtype) {
    let bytes: Vec<(Dtype, Vec<u8>)> = tensors.iter().map(|(_, s)| encoded(s, dtype)).collect();
    let views = tensors.iter().zip(&bytes);
    let views = views.map(|((n, s), (t, b))| (n.to_string(), TensorView::new(*t, s.shape.clone(), b).unwrap()));
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// A tokenizer of all bytes.
fn byte_tokenizer() -> Value {
    let vocab: serde_json::Map<String, Value> =
        (0..=255u8).map(|b| (char::from_u32(0x100 + u32::from(b)).unwrap().to_string(), json!(b))).collect();
    json!({"version": "1.0", "added_tokens": [], "normalizer": null, "post_processor": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": []}})
}

/// A folder of its own for a test.
fn empty_folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("folders").join(name);
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// A golden family as a folder, in one file or in three shards; `None` if the files are absent.
fn folder(family: &str, name: &str, dtype: Dtype, shards: usize) -> Option<(PathBuf, PathBuf)> {
    let golden = shared("golden")?.join(family);
    let source = golden.join("model-f16.gguf");
    let config: Value = serde_json::from_slice(&std::fs::read(golden.join("config.json")).unwrap()).unwrap();
    let to = empty_folder(name);
    std::fs::copy(golden.join("config.json"), to.join("config.json")).unwrap();
    std::fs::write(to.join("tokenizer.json"), byte_tokenizer().to_string()).unwrap();
    let all = stored(&Gguf::open(&source).unwrap(), &config);
    let all: Vec<(&String, &Stored)> = all.iter().collect();
    if shards == 1 {
        write_file(&to.join("model.safetensors"), &all, dtype);
    } else {
        let mut map = serde_json::Map::new();
        for (i, part) in all.chunks(all.len().div_ceil(shards)).enumerate() {
            let file = format!("model-{:05}-of-{shards:05}.safetensors", i + 1);
            write_file(&to.join(&file), part, dtype);
            map.extend(part.iter().map(|(n, _)| (n.to_string(), json!(file))));
        }
        let index = json!({"metadata": {"total_size": 0}, "weight_map": map});
        std::fs::write(to.join("model.safetensors.index.json"), index.to_string()).unwrap();
    }
    Some((to, source))
}

/// The keys of an architecture, as the converter writes them.
fn same_keys(family: &str, made: &Gguf, file: &Gguf) {
    let arch = file.get_str("general.architecture").unwrap().unwrap();
    for (key, want) in file.metadata().filter(|(k, _)| k.starts_with(&format!("{arch}."))) {
        // Not read by any architecture, or not known to the converter; dimensions that are rotated are all, where nothing is said.
        if ["vocab_size", "context_length"].iter().any(|k| key.ends_with(k)) {
            continue;
        }
        let got = made.get(key).unwrap_or_else(|| panic!("{family}: {key} is missing"));
        assert_eq!(
            format!("{got:?}").replace("I32", "U32"),
            format!("{want:?}").replace("I32", "U32"),
            "{family}: {key}"
        );
    }
}

/// Folders of `shared/golden` whose architectures are hybrids.
const HYBRIDS: [&str; 5] = ["lfm2", "granitehybrid", "qwen3next", "qwen35", "qwen35moe"];

/// The same spec and the same weights as the GGUF file, bit for bit, for every family.
#[test]
fn folders_are_read_as_the_converted_files() {
    for family in FAMILIES.into_iter().chain(HYBRIDS) {
        let Some((path, source)) = folder(family, family, Dtype::F16, 1) else { return };
        let (made, file) =
            (hf::open(&path, None).unwrap_or_else(|e| panic!("{family}: {e}")), Gguf::open(&source).unwrap());
        let runs = ARCHITECTURES.iter().any(|a| Some(a.name) == file.get_str("general.architecture").unwrap());
        assert!(runs || HYBRIDS.contains(&family), "{family}");
        let spec = |g: &Gguf| {
            let mut spec = read_spec(g).unwrap_or_else(|e| panic!("{family}: {e}"));
            spec.name = None;
            // The converter does not know the longest context of hybrids.
            spec.context_length = 0;
            spec
        };
        if runs {
            assert_eq!(spec(&made), spec(&file), "{family}");
        } else {
            same_keys(family, &made, &file);
        }
        for t in file.tensors() {
            let m = made.tensor(&t.name).unwrap_or_else(|| panic!("{family}: {} is missing", t.name));
            assert_eq!(m.dims, t.dims, "{family}: {}", t.name);
            let (got, want) = (decoded(&made, m), decoded(&file, t));
            if t.name == "rope_freqs.weight" || t.name.ends_with("ssm_a") {
                // Computed here in f64, by the converter in f32; or a logarithm, and back.
                let near = |(g, w): (&f32, &f32)| (g - w).abs() <= 2e-6 * w.abs();
                assert!(got.iter().zip(&want).all(near), "{family}: {got:?} {want:?}");
            } else {
                assert!(got == want, "{family}: {}", t.name);
            }
        }
        assert_eq!(made.tensors().len(), file.tensors().len(), "{family}");
    }
}

/// Hybrids without experts have the block beside them as their only one.
#[test]
fn a_hybrid_without_experts() {
    let Some((path, source)) = folder("granitehybrid", "granitehybrid-dense", Dtype::F16, 1) else { return };
    let config = std::fs::read_to_string(path.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    let mut all = stored(&Gguf::open(&source).unwrap(), &config);
    all.retain(|name, _| !name.contains("block_sparse_moe"));
    write_file(&path.join("model.safetensors"), &all.iter().collect::<Vec<_>>(), Dtype::F16);
    // Nothing is left out without a word.
    assert!(hf::open(&path, None).unwrap_err().to_string().contains("block_sparse_moe"));
    config["num_local_experts"] = json!(0);
    std::fs::write(path.join("config.json"), config.to_string()).unwrap();
    let (made, file) = (hf::open(&path, None).unwrap(), Gguf::open(&source).unwrap());
    for (part, beside) in ["ffn_gate", "ffn_up", "ffn_down"].map(|p| (p.to_string(), format!("{p}_shexp"))) {
        let [m, f] =
            [(&made, part), (&file, beside)].map(|(g, p)| (g, g.tensor(&format!("blk.1.{p}.weight")).unwrap()));
        assert!(m.1.dims == f.1.dims && decoded(m.0, m.1) == decoded(f.0, f.1));
    }
    assert_eq!(made.get_u32("granitehybrid.feed_forward_length").unwrap(), Some(96));
    assert_eq!(made.get_u32("granitehybrid.expert_count").unwrap(), None);
}

/// The models themselves: logits of a folder and of the GGUF file, in one shard and in several.
#[test]
fn folders_compute_what_the_files_do() {
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let ids: Vec<u32> = (0..40).map(|i| i * 7 % 256).collect();
    for (family, dtype, shards) in
        [("llama3", Dtype::F32, 3), ("gemma3", Dtype::F16, 1), ("gpt-oss", Dtype::F16, 2), ("gpt2", Dtype::F16, 1)]
    {
        let Some((path, source)) = folder(family, &format!("{family}-run"), dtype, shards) else { return };
        let of = |path: &Path| logits(&mut session(&load(&context, path, KvType::F32, 256, 64)), &ids);
        let error = max_error(&of(&path), &of(&source));
        println!("{family}: {error:e}");
        assert!(error <= 2e-5, "{family}: {error}");
    }
}

/// The folder of the repository's model, with its own tokenizer and template, against its GGUF file.
#[test]
fn hearth_from_its_folder() {
    let Some(hearth) = shared("models/hearth") else { return };
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let (path, source) = (hearth.join("hearth-5m-hf"), hearth.join("hearth-5m-f16.gguf"));
    let (a, b) = (tokenizer_of(&path).unwrap(), tokenizer_of(&source).unwrap());
    let corpus = std::fs::read_to_string(hearth.join("val.txt")).unwrap();
    let mut texts: Vec<&str> = corpus.lines().step_by(40).collect();
    texts.extend(["", "  two \u{1f409}\r\n", "<|im_start|>user\nHi<|im_end|>", "a<|endoftext|>b"]);
    for text in texts {
        for special in [false, true] {
            let ids = a.encode(text, true, special).unwrap();
            assert_eq!(ids, b.encode(text, true, special).unwrap(), "{text:?} {special}");
            assert_eq!(a.decode(&ids, true).unwrap(), text);
        }
    }
    assert_eq!((a.eos(), a.end_of_generation()), (b.eos(), b.end_of_generation()));
    let (folder, file) = (load(&context, &path, KvType::F32, 128, 64), load(&context, &source, KvType::F32, 128, 64));
    let talk = [doppler::session::Message::new("user", "Hello!")];
    assert_eq!(folder.format_chat(&talk, true).unwrap(), file.format_chat(&talk, true).unwrap());
    let ids = folder.tokenize_chat(&folder.format_chat(&talk, true).unwrap()).unwrap();
    let (got, want) = (logits(&mut session(&folder), &ids), logits(&mut session(&file), &ids));
    assert!(got == want, "{}", max_error(&got, &want));
}

/// Quantised as GGML's own quantiser has done it in the files beside, bit for bit.
#[test]
fn hearth_is_quantised_as_ggml_does_it() {
    let Some(hearth) = shared("models/hearth") else { return };
    for (format, name) in [(WeightFormat::Q8_0, "Q8_0"), (WeightFormat::Q4_0, "Q4_0")] {
        let file = Gguf::open(&hearth.join(format!("hearth-5m-{name}.gguf"))).unwrap();
        let made = hf::open(&hearth.join("hearth-5m-hf"), Some(format)).unwrap();
        let mut compared = 0;
        for t in file.tensors().iter().filter(|t| by_ggml_type(t.ggml_type).unwrap().name == name) {
            let m = made.tensor(&t.name).unwrap();
            assert_eq!(m.ggml_type, t.ggml_type, "{}", t.name);
            assert!(made.data(m) == file.data(t), "{name}: {}", t.name);
            compared += 1;
        }
        println!("{name}: {compared} matrices are the same");
        assert!(compared >= 40, "{compared}");
    }
}

/// Quantised while loading: each matrix as its own quantiser makes it, and the model still close to itself.
#[test]
fn weights_are_quantised_while_loading() {
    let Some((path, source)) = folder("qwen2", "qwen2-quantised", Dtype::BF16, 1) else { return };
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let ids: Vec<u32> = (0..24).map(|i| i * 11 % 256).collect();
    let want = logits(&mut session(&load(&context, &source, KvType::F32, 64, 64)), &ids);
    let scale = want.iter().map(|x| x * x).sum::<f32>() / want.len() as f32;
    for (format, name, most) in [(WeightFormat::Q8_0, "Q8_0", 2e-3), (WeightFormat::Q4_0, "Q4_0", 0.3)] {
        let made = hf::open(&path, Some(format)).unwrap();
        let q = made.tensor("blk.0.ffn_down.weight").unwrap();
        assert_eq!(by_ggml_type(q.ggml_type).unwrap().name, name);
        assert_eq!(by_ggml_type(made.tensor("blk.0.attn_norm.weight").unwrap().ggml_type).unwrap().name, "F32");
        let options = ModelOptions {
            n_ctx: 64,
            kv_type: KvType::F32,
            prewarm: false,
            exact: true,
            quantize: Some(format),
            ..Default::default()
        };
        let model = context.load_model(&path, &options, &mut |_, _| Ok(())).unwrap();
        assert_eq!(model.info().format, name);
        let got = logits(&mut session(&model), &ids);
        let error = got.iter().zip(&want).map(|(g, w)| (g - w) * (g - w)).sum::<f32>() / want.len() as f32;
        println!("{name}: relative squared error {}", error / scale);
        assert!(error / scale > 1e-7 && error / scale < most, "{name}: {}", error / scale);
    }
    let options = ModelOptions { quantize: Some(WeightFormat::Q8_0), ..Default::default() };
    let e = context.load_model(&source, &options, &mut |_, _| Ok(())).unwrap_err();
    assert!(matches!(e, Error::InvalidArgument(_)), "{e}");
}

/// What is wrong is named: file, and key or tensor.
#[test]
fn broken_folders_are_refused_by_name() {
    let Some((path, _)) = folder("qwen2", "broken", Dtype::F16, 3) else { return };
    let refused = |wanted: &[&str]| {
        let e = hf::open(&path, None)
            .and_then(|g| doppler::model::measure(&g, &read_spec(&g)?).map(drop))
            .unwrap_err()
            .to_string();
        assert!(wanted.iter().all(|w| e.contains(w)), "{e}, wanted {wanted:?}");
    };
    let config = std::fs::read_to_string(path.join("config.json")).unwrap();
    let with = |from: &str, to: &str| {
        assert!(config.contains(from), "{from}");
        std::fs::write(path.join("config.json"), config.replace(from, to)).unwrap();
    };
    let opened = || hf::open(&path, None).map(drop);
    opened().unwrap();
    with("\"num_attention_heads\"", "\"heads\"");
    refused(&["config.json", "num_attention_heads"]);
    with("\"model_type\": \"qwen2\"", "\"model_type\": \"novel\"");
    refused(&["config.json", "model_type", "novel", "llama"]);
    with("\"num_hidden_layers\": 4", "\"num_hidden_layers\": 5");
    refused(&["broken", "layers.4.self_attn.q_proj.weight is missing"]);
    with("\"num_hidden_layers\": 4", "\"num_hidden_layers\": 3");
    refused(&["model.layers.3.", "no place"]);
    with("\"num_hidden_layers\": 4", "\"num_hidden_layers\": \"4\"");
    refused(&["config.json", "num_hidden_layers", "whole number"]);
    with("\"hidden_act\": \"silu\"", "\"hidden_act\": \"relu\"");
    refused(&["config.json", "hidden_act", "relu"]);
    with("\"intermediate_size\": 256", "\"intermediate_size\": 128");
    refused(&["model.layers.0.mlp.gate_proj.weight", "shape"]);
    with("\"rope_type\": \"default\"", "\"rope_type\": \"spiral\"");
    refused(&["config.json", "rope_type", "spiral"]);
    with("{", "{{");
    refused(&["config.json", "not JSON"]);
    std::fs::write(path.join("config.json"), &config).unwrap();

    let shard = path.join("model-00002-of-00003.safetensors");
    let bytes = std::fs::read(&shard).unwrap();
    std::fs::write(&shard, &bytes[..bytes.len() - 5]).unwrap();
    refused(&["model-00002-of-00003.safetensors"]);
    std::fs::write(&shard, &bytes[..5]).unwrap();
    refused(&["model-00002-of-00003.safetensors"]);
    std::fs::remove_file(&shard).unwrap();
    refused(&["model-00002-of-00003.safetensors"]);
    std::fs::write(&shard, &bytes).unwrap();
    opened().unwrap();

    let index = std::fs::read_to_string(path.join("model.safetensors.index.json")).unwrap();
    std::fs::write(path.join("model.safetensors.index.json"), index.replace("model.norm.weight", "model.norm.other"))
        .unwrap();
    refused(&["model.norm.other", "missing"]);
    std::fs::write(path.join("model.safetensors.index.json"), index.replace("model-00001", "../model-00001")).unwrap();
    refused(&["index.json", "no name of a file"]);
    std::fs::remove_file(path.join("model.safetensors.index.json")).unwrap();
    refused(&["model.safetensors"]);

    // A type that no model has.
    let one = Stored { shape: vec![4], values: vec![0.0; 4], raw: None };
    let i64s = vec![0u8; 32];
    let names = ["model.embed_tokens.weight", "model.norm.weight"];
    let view =
        |i: usize| TensorView::new(Dtype::I64, one.shape.clone(), &i64s).map(|v| (names[i].to_string(), v)).unwrap();
    std::fs::write(path.join("model.safetensors"), safetensors::serialize([view(0), view(1)], None).unwrap()).unwrap();
    refused(&["model.embed_tokens.weight", "I64"]);
    std::fs::remove_file(path.join("tokenizer.json")).unwrap();
    assert!(tokenizer_of(&path).unwrap_err().to_string().contains("tokenizer.json"));
    std::fs::write(path.join("tokenizer.json"), "{\"model\": {\"type\": \"WordPiece\"}}").unwrap();
    assert!(tokenizer_of(&path).unwrap_err().to_string().contains("WordPiece"));
}
