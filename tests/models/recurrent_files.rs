//! Files of recurrent models: the layouts that converters have used, ordinary layers among mixtures, and what is missing or of a wrong shape.

use std::path::Path;

use doppler::gpu::{Features, Guard};
use doppler::model::KvType;
use doppler::session::{Context, ModelOptions};

use crate::common::*;

/// The rows of a tensor, and its place among the others.
fn take(tensors: &mut Vec<Tensor>, name: &str) -> (usize, Vec<u64>, u32, Vec<Vec<u8>>) {
    let at = tensors.iter().position(|t| t.0 == name).unwrap_or_else(|| panic!("{name}"));
    let (_, dims, kind, data) = tensors.remove(at);
    let rows = data.chunks(data.len() / dims[1] as usize).map(<[u8]>::to_vec).collect();
    (at, dims, kind, rows)
}

fn logits_of(context: &Context, path: &Path) -> Vec<f32> {
    let model = load(context, path, KvType::F32, 64, 16);
    let ids: Vec<u32> = (0..40).map(|i| 20 + i * 37 % 900).collect();
    logits(&mut session(&model), &ids)
}

/// Qwen3-Next as the first converters wrote it, and with strengths and steps in tensors of their own: the same logits.
#[test]
fn layouts_of_the_delta_rule() {
    let Some(dir) = shared("golden/qwen3next") else { return };
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let path = dir.join("model-f16.gguf");
    let want = logits_of(&context, &path);
    // Two key heads of 32, with two heads of 32 each.
    let (keys, values) = (32usize, 64usize);
    let fused = rewrite(&path, "fused", |tensors| {
        for layer in 0..3 {
            let (_, _, _, gate) = take(tensors, &format!("blk.{layer}.attn_gate.weight"));
            let (at, dims, kind, qkv) = take(tensors, &format!("blk.{layer}.attn_qkv.weight"));
            let mut rows = Vec::new();
            for k in 0..2 {
                rows.extend_from_slice(&qkv[k * keys..][..keys]);
                rows.extend_from_slice(&qkv[(2 + k) * keys..][..keys]);
                rows.extend_from_slice(&qkv[4 * keys + k * values..][..values]);
                rows.extend_from_slice(&gate[k * values..][..values]);
            }
            let dims = vec![dims[0], rows.len() as u64];
            tensors.insert(at, (format!("blk.{layer}.ssm_in.weight"), dims, kind, rows.concat()));
        }
    });
    let apart = rewrite(&path, "apart", |tensors| {
        for layer in 0..3 {
            let (at, dims, kind, rows) = take(tensors, &format!("blk.{layer}.ssm_ba.weight"));
            for (i, name) in ["ssm_beta", "ssm_alpha"].into_iter().enumerate() {
                let own: Vec<u8> = rows.chunks(2).skip(i).step_by(2).flatten().flatten().copied().collect();
                tensors.insert(at, (format!("blk.{layer}.{name}.weight"), vec![dims[0], 4], kind, own));
            }
        }
    });
    for other in [fused, apart] {
        let error = max_error(&logits_of(&context, &other), &want);
        std::fs::remove_file(&other).expect("remove");
        assert!(error <= 1e-6, "{}: {error}", other.display());
    }
}

/// A layer without a router among mixtures: its feed-forward block is an ordinary one. Without shared experts there is none.
#[test]
fn ordinary_layers_among_mixtures() {
    let Some(dir) = shared("golden/qwen35moe") else { return };
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let path = dir.join("model-f16.gguf");
    let mixed = rewrite(&path, "mixed", |tensors| {
        tensors.retain(|t| !(t.0.starts_with("blk.1.ffn_")));
        for (name, dims) in [("gate", [128u64, 256]), ("up", [128, 256]), ("down", [256, 128])] {
            let weights = (0..128 * 256).map(|i| half::f16::from_f32(((i * 37 % 101) as f32 - 50.0) / 900.0));
            let data = weights.flat_map(half::f16::to_le_bytes).collect();
            tensors.push((format!("blk.1.ffn_{name}.weight"), dims.to_vec(), 1, data));
        }
    });
    let model = load(&context, &mixed, KvType::F32, 64, 16);
    let dense: Vec<bool> = model.spec().layers.iter().map(|l| l.feed_forward.experts.is_none()).collect();
    assert_eq!(dense, [false, true, false, false]);
    assert_eq!(model.spec().layers[1].feed_forward.n_ff, 256);
    assert_ne!(logits_of(&context, &mixed), logits_of(&context, &path));
    std::fs::remove_file(&mixed).expect("remove");
}

/// What is missing or has another shape is named.
#[test]
fn broken_files_are_refused_by_name() {
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    for (family, names) in [
        ("lfm2", &["token_embd_norm.weight", "blk.0.shortconv.conv.weight", "blk.1.shortconv.in_proj.weight"][..]),
        ("qwen35", &["blk.0.ssm_a", "blk.1.ssm_dt.bias", "blk.2.attn_gate.weight", "blk.0.ssm_norm.weight"]),
        ("granitehybrid", &["blk.0.ssm_in.weight", "blk.1.ssm_d", "blk.3.ssm_conv1d.weight", "blk.0.ssm_out.weight"]),
    ] {
        let Some(dir) = shared(&format!("golden/{family}")) else { return };
        for name in names {
            for cut in [false, true] {
                let broken = rewrite(&dir.join("model-f16.gguf"), "broken", |tensors| {
                    if !cut {
                        return tensors.retain(|t| t.0 != *name);
                    }
                    let t = tensors.iter_mut().find(|t| t.0 == *name).expect("tensor");
                    // Half of it, along its longest dimension.
                    let longest = t.1.iter_mut().max().expect("dimensions");
                    *longest /= 2;
                    t.3.truncate(t.3.len() / 2);
                });
                let refused = context.load_model(&broken, &ModelOptions::default(), &mut |_, _| Ok(()));
                std::fs::remove_file(&broken).expect("remove");
                let error = refused.expect_err("refused").to_string();
                assert!(error.contains(name), "{error}, not {name}");
            }
        }
    }
}

/// Quantised weights of recurrent layers, with activations as they are and as bytes: near each other, and both near the unquantised model.
#[test]
fn quantised_weights_by_both_paths() {
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    for family in ["lfm2", "qwen35", "granitehybrid"] {
        let Some(dir) = shared(&format!("golden/{family}")) else { return };
        let path = dir.join("model-f16.gguf");
        let quantised = rewrite(&path, "q8", |tensors| {
            for t in tensors.iter_mut().filter(|t| t.2 == 1 && t.1[0] % 32 == 0) {
                (t.2, t.3) = (8, q8_0(&t.3));
            }
        });
        let evaluate = |path: &Path, exact: bool| {
            // Few rows at a time: those are taken as bytes.
            let options = ModelOptions {
                n_ctx: 64,
                prefill_chunk: 2,
                kv_type: KvType::F32,
                prewarm: false,
                exact,
                quantize: None,
            };
            let model = context.load_model(path, &options, &mut |_, _| Ok(())).expect("load");
            let ids: Vec<u32> = (0..24).map(|i| 20 + i * 37 % 900).collect();
            logits(&mut session(&model), &ids)
        };
        let [plain, exact, fast] =
            [(&path, true), (&quantised, true), (&quantised, false)].map(|(p, e)| evaluate(p, e));
        std::fs::remove_file(&quantised).expect("remove");
        let rms = |a: &[f32], b: &[f32]| {
            let square = a.iter().zip(b).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>();
            (square / a.len() as f64).sqrt()
        };
        let (rounded, bytes) = (rms(&exact, &plain), rms(&fast, &exact));
        println!(
            "{family}: {rounded:.3} by rounding weights, {bytes:.3} by rounding activations; logits are of size 3"
        );
        assert!(rounded < 0.5 && bytes < 0.5, "{family}: {rounded} and {bytes}");
        assert!(bytes > 0.0, "{family}: activations were not rounded");
    }
}
