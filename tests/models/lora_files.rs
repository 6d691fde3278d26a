//! Adapter files: the two forms of one adapter give the same, and what does not fit or does not run is refused by name.

use std::path::{Path, PathBuf};

use doppler::error::Error;
use doppler::format::{Gguf, GgufWriter};
use doppler::gpu::{Features, Guard};
use doppler::model::KvType;
use doppler::session::{LoraCache, Model};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};

use crate::common::*;
use crate::lora::{Change, Noise, le, writer, written};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/lora").join(name)
}

/// A tensor of a folder: name, shape, numbers.
type Stored = (String, Vec<usize>, Vec<f32>);

fn stored(folder: &Path) -> Vec<Stored> {
    let bytes = std::fs::read(folder.join("adapter_model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let half = |b: &[u8]| f16::from_le_bytes([b[0], b[1]]).to_f32();
    let all = file.tensors().into_iter();
    all.map(|(name, t)| (name, t.shape().to_vec(), t.data().chunks_exact(2).map(half).collect())).collect()
}

/// Writes a folder as PEFT does.
fn folder(name: &str, config: &Value, tensors: &[Stored]) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-peft-{name}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    std::fs::write(path.join("adapter_config.json"), config.to_string()).unwrap();
    let bytes: Vec<Vec<u8>> = tensors.iter().map(|t| le(&t.2)).collect();
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, shape, _), bytes)| (name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &path.join("adapter_model.safetensors")).unwrap();
    path
}

fn config() -> Value {
    json!({"peft_type": "LORA", "lora_alpha": 8, "r": 2, "bias": "none", "use_dora": false, "modules_to_save": null})
}

fn hearth() -> Option<Model> {
    Some(load(&context(Features::ALL, Guard::default())?, &asset(), KvType::F32, 64, 16))
}

fn adapted(model: &Model, path: &Path) -> Vec<f32> {
    let mut s = session(model);
    let lora = model.load_lora(path).unwrap_or_else(|e| panic!("{e}"));
    s.set_loras(&[(lora, 1.0)], LoraCache::Forget).unwrap();
    logits(&mut s, &[1, 300, 400, 500, 600])
}

/// The folder of PEFT as a converter makes a GGUF file of it: names, rows of q (4 heads) in pairs, and other types.
#[test]
fn both_forms_of_an_adapter_give_the_same() {
    let Some(model) = hearth() else { return };
    let want = adapted(&model, &fixture("hearth"));
    let heads = model.spec().layers[0].attention().unwrap().n_head as usize;
    let names = [("q_proj", "attn_q"), ("v_proj", "attn_v"), ("o_proj", "attn_output"), ("down_proj", "ffn_down")];
    for ty in ["F32", "F16", "BF16"] {
        let mut file = writer("llama", 8.0, &[]);
        for (name, shape, values) in stored(&fixture("hearth")) {
            let parts: Vec<&str> = name.split('.').collect();
            let (_, part) = names.iter().find(|(from, _)| parts[6] == *from).unwrap();
            let half = if name.contains("lora_A") { "lora_a" } else { "lora_b" };
            let row = shape[1];
            let mut rows: Vec<&[f32]> = values.chunks(row).collect();
            if *part == "attn_q" && half == "lora_b" {
                let dim = shape[0] / heads;
                let order = (0..shape[0]).map(|r| r / dim * dim + r % dim % 2 * (dim / 2) + r % dim / 2);
                rows = order.map(|r| rows[r]).collect();
            }
            let values = rows.concat();
            let (number, bytes) = match ty {
                "F32" => (0, le(&values)),
                "F16" => (1, values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect()),
                _ => (30, values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect::<Vec<u8>>()),
            };
            let dims = [row as u64, shape[0] as u64];
            file = file.tensor(&format!("blk.{}.{part}.weight.{half}", parts[4]), &dims, number, bytes);
        }
        let got = adapted(&model, &written(&format!("same-{ty}"), &file));
        if ty == "BF16" {
            // Numbers are rounded there, so not the same, but near.
            let error = max_error(&got, &want);
            assert!(error > 0.0 && error < 1.5, "{error}");
        } else {
            assert_eq!(got, want, "{ty}");
        }
    }
}

/// Ranks and α of single modules, names with an adapter's name in them, and quantised matrices.
#[test]
fn factors_of_single_modules() {
    let Some(model) = hearth() else { return };
    let mut noise = Noise::new(9);
    let mut numbers = |n: usize| (0..n).map(|_| noise.next(0.2)).collect::<Vec<f32>>();
    let module = |layer: u32| format!("base_model.model.model.layers.{layer}.mlp.down_proj");
    let ff = model.spec().layers[0].feed_forward.n_ff as usize;
    let n_embd = model.spec().n_embd as usize;
    let mut tensors: Vec<Stored> = Vec::new();
    for (layer, rank, name) in [(0, 2, "A.weight"), (3, 8, "A.default.weight")] {
        tensors.push((format!("{}.lora_{name}", module(layer)), vec![rank, ff], numbers(rank * ff)));
        let b = name.replace('A', "B");
        tensors.push((format!("{}.lora_{b}", module(layer)), vec![n_embd, rank], numbers(rank * n_embd)));
    }
    let mut alpha = config();
    alpha["alpha_pattern"] = json!({"layers.3.mlp.down_proj": 2.0, "^model.layers.1": 77.0});
    let plain = adapted(&model, &folder("patterns", &alpha, &tensors));
    // The same in factors: 8 / 2 and 2 / 8.
    let mut one = config();
    one["lora_alpha"] = json!(1);
    one["alpha_pattern"] = json!({"down_proj": 2, "layers.9": 1});
    let mut scaled = tensors.clone();
    scaled[1].2.iter_mut().for_each(|x| *x *= 4.0);
    assert_eq!(adapted(&model, &folder("factors", &one, &scaled)), plain);
    let mut root = config();
    root["use_rslora"] = json!(true);
    root["lora_alpha"] = json!(2.0 * 2f64.sqrt() * 2f64.sqrt());
    root["alpha_pattern"] =
        json!({"layers.0.mlp.down_proj": 4.0 * 2f64.sqrt(), "layers.3.mlp.down_proj": 0.25 * 8f64.sqrt()});
    let rooted = adapted(&model, &folder("root", &root, &tensors));
    assert!(
        max_error(&rooted, &plain) < 1e-3
            && max_error(&plain, &logits(&mut session(&model), &[1, 300, 400, 500, 600])) > 0.1
    );
}

#[track_caller]
fn refused(model: &Model, path: &Path, words: &[&str]) {
    let error = model.load_lora(path).unwrap_err();
    assert!(matches!(error, Error::BadFile(_) | Error::Unsupported(_) | Error::Io(_)), "{error:?}");
    let text = error.to_string();
    let file = path.file_name().unwrap().to_str().unwrap();
    assert!(text.contains(file) && words.iter().all(|w| text.contains(w)), "{text}");
}

#[test]
fn bad_gguf_files_are_refused_by_name() {
    let Some(model) = hearth() else { return };
    let mut noise = Noise::new(1);
    let n_embd = model.spec().n_embd as usize;
    let q = Change::random("blk.0.attn_q.weight", 3, [n_embd, n_embd], &mut noise);
    let of = |tensor: &str, dims| Change::random(tensor, 3, dims, &mut Noise::new(2));
    let refuse = |name: &str, file: &GgufWriter, words: &[&str]| refused(&model, &written(name, file), words);
    refused(&model, Path::new("/no/such/adapter.gguf"), &[]);
    refused(&model, &asset(), &["general.type", "adapter"]);
    refuse("no-tensors", &writer("llama", 1.0, &[]), &["without tensors"]);
    refuse("arch", &writer("qwen3", 1.0, &[q]), &["qwen3", "llama"]);
    let good = of("blk.0.attn_q.weight", [n_embd, n_embd]);
    refuse("alpha", &writer("llama", f32::NAN, &[good]), &["adapter.lora.alpha"]);
    for (name, tensor, dims) in
        [("unknown", "blk.77.attn_q.weight", [n_embd, n_embd]), ("norm", "blk.0.attn_norm.weight", [n_embd, n_embd])]
    {
        refuse(name, &writer("llama", 1.0, &[of(tensor, dims)]), &[tensor, "no matrix"]);
    }
    for (name, dims) in [("rows", [n_embd + 4, n_embd]), ("columns", [n_embd, n_embd - 4])] {
        let change = of("blk.0.attn_output.weight", dims);
        refuse(name, &writer("llama", 1.0, &[change]), &["blk.0.attn_output.weight.lora_", "shape"]);
    }
    let half = GgufWriter::new()
        .key("general.type", "adapter")
        .key("adapter.type", "lora")
        .key("general.architecture", "llama")
        .tensor("blk.0.attn_q.weight.lora_a", &[n_embd as u64, 2], 0, vec![0; n_embd * 8]);
    refuse("half", &half, &["blk.0.attn_q.weight.lora_a", "lora_b"]);
    let stray = half.clone().tensor("blk.0.attn_q.weight.lora_c", &[4], 0, vec![0; 16]);
    refuse("stray", &stray, &["lora_c"]);
    let other = half.clone().tensor("blk.0.attn_q.weight.lora_b", &[3, n_embd as u64], 0, vec![0; n_embd * 12]);
    refuse("ranks", &other, &["blk.0.attn_q.weight.lora_b", "shape"]);
    let infinite = half.tensor("blk.0.attn_q.weight.lora_b", &[2, n_embd as u64], 0, vec![0xff; n_embd * 8]);
    refuse("infinite", &infinite, &["blk.0.attn_q.weight.lora_b", "NaN"]);
}

#[test]
fn bad_folders_are_refused_by_name() {
    let Some(model) = hearth() else { return };
    let tensors = stored(&fixture("hearth"));
    let with = |name: &str, key: &str, value: Value, words: &[&str]| {
        let mut config = config();
        config[key] = value;
        let path = folder(name, &config, &tensors);
        let text = model.load_lora(&path).unwrap_err().to_string();
        assert!(
            text.contains("adapter_config.json") && text.contains(key) && words.iter().all(|w| text.contains(w)),
            "{text}"
        );
    };
    with("dora", "use_dora", json!(true), &[]);
    with("bias", "bias", json!("lora_only"), &["lora_only"]);
    with("saved", "modules_to_save", json!(["lm_head"]), &["lm_head"]);
    with("kind", "peft_type", json!("LOHA"), &["LOHA"]);
    with("pissa", "init_lora_weights", json!("pissa"), &["pissa"]);
    with("pattern", "alpha_pattern", json!({"(": 1}), &["pattern"]);
    with("no-alpha", "lora_alpha", json!("much"), &["a number"]);
    let file = |name: &str, change: &dyn Fn(&mut Vec<Stored>), words: &[&str]| {
        let mut tensors = tensors.clone();
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        change(&mut tensors);
        let text = model.load_lora(&folder(name, &config(), &tensors)).unwrap_err().to_string();
        assert!(text.contains("adapter_model.safetensors") && words.iter().all(|w| text.contains(w)), "{text}");
    };
    file("half", &|t| drop(t.remove(0)), &["lora_B", "no lora_A"]);
    file(
        "magnitude",
        &|t| t[0].0 = t[0].0.replace("lora_A.weight", "lora_magnitude_vector"),
        &["lora_magnitude_vector"],
    );
    file("foreign", &|t| t[0].0 = "classifier.weight".into(), &["classifier.weight"]);
    file("module", &|t| t.iter_mut().for_each(|t| t.0 = t.0.replace("down_proj", "sideways")), &["sideways", "llama"]);
    file("layer", &|t| t.iter_mut().for_each(|t| t.0 = t.0.replace("layers.5", "layers.55")), &["layers.55"]);
    file("shape", &|t| (t[0].1, t[0].2) = (vec![1, 2, 2], vec![0.0; 4]), &[".lora_A.weight", "shape"]);
    let experts = |t: &mut Vec<Stored>| t.iter_mut().for_each(|t| t.0 = t.0.replace("down_proj", "experts.0.w1"));
    file("experts", &experts, &["experts.0.w1", "experts do not run"]);
    // An adapter for another model of the same architecture.
    if let Some(path) = shared("golden/llama2/model-f16.gguf") {
        let context = context(Features::ALL, Guard::default()).unwrap();
        let other = load(&context, &path, KvType::F32, 64, 16);
        let text = other.load_lora(&fixture("hearth")).unwrap_err().to_string();
        assert!(text.contains("adapter_model.safetensors"), "{text}");
        let lora = model.load_lora(&fixture("hearth")).unwrap();
        let error = session(&other).set_loras(&[(lora, 1.0)], LoraCache::Forget).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
    }
    let lora = model.load_lora(&fixture("hearth")).unwrap();
    let error = session(&model).set_loras(&[(lora, f32::INFINITY)], LoraCache::Forget).unwrap_err();
    assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
}

/// Experts' matrices are known, and do not run.
#[test]
fn experts_are_refused_by_name() {
    let Some(path) = shared("golden/qwen3moe/model-f16.gguf") else { return };
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let file = Gguf::open(&path).unwrap();
    let model = load(&context, &path, KvType::F32, 64, 16);
    for tensor in ["blk.0.ffn_gate_exps.weight", "blk.0.ffn_gate_inp.weight"] {
        let dims = &file.tensor(tensor).unwrap().dims;
        let change = Change::random(tensor, 2, [dims[1] as usize, dims[0] as usize], &mut Noise::new(1));
        refused(&model, &written("experts", &writer("qwen3moe", 1.0, &[change])), &[tensor, "experts do not run"]);
    }
}
