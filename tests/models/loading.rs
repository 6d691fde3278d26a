//! Loading: bounded host memory, progress, cancelling, and files that are refused by name.

use std::path::{Path, PathBuf};

use doppler::Error;
use doppler::format::{Array, GGML_TYPES, Gguf, GgufWriter, Value};
use doppler::gpu::{Features, Guard, GuardMode, Place};
use doppler::model::verify_weights;
use doppler::quant::by_ggml_type;
use doppler::session::{Context, ModelOptions};

use crate::common::{asset, context, rewrite, shared};

/// A folder of this test process for files it makes.
fn scratch_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{name}", std::process::id()))
}

#[test]
fn progress_counts_up_to_the_whole_and_can_cancel() {
    let Some(dir) = shared("models/hearth") else { return };
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let path = dir.join("hearth-5m-f16.gguf");
    let mut last = (0, 0);
    let model = context
        .load_model(&path, &ModelOptions::default(), &mut |done, total| {
            assert!(done >= last.0 && done <= total);
            last = (done, total);
            Ok(())
        })
        .expect("load");
    assert_eq!(last, (model.info().file_bytes, model.info().file_bytes));
    let live = context.gpu().memory().snapshot().live_buffers;
    let err = context
        .load_model(&path, &ModelOptions::default(), &mut |done, _| match done {
            0 => Ok(()),
            _ => Err(Error::Cancelled("by the test".into())),
        })
        .expect_err("cancelled");
    assert_eq!(err, Error::Cancelled("by the test".into()));
    assert_eq!(context.gpu().memory().snapshot().live_buffers, live, "a cancelled load leaves buffers behind");
}

fn refused(context: &Context, bytes: Vec<u8>, parts: &[&str]) {
    let path = scratch_file("refused.gguf");
    std::fs::write(&path, bytes).expect("write");
    let err = context.load_model(&path, &ModelOptions::default(), &mut |_, _| Ok(())).expect_err("refused");
    std::fs::remove_file(&path).expect("remove");
    let text = err.to_string();
    for part in parts {
        assert!(text.contains(part), "\"{text}\" does not name \"{part}\"");
    }
    assert!(matches!(err, Error::BadFile(_) | Error::Unsupported(_)), "{err:?}");
}

#[test]
fn what_does_not_run_is_refused_by_name() {
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let base = || GgufWriter::new().key("general.architecture", "llama");
    refused(&context, GgufWriter::new().to_bytes(), &["general.architecture"]);
    refused(&context, GgufWriter::new().key("general.architecture", "mamba9").to_bytes(), &["mamba9"]);
    refused(&context, base().to_bytes(), &["llama.block_count"]);
    let experts = |n: u32| base().key("llama.expert_count", n);
    refused(&context, experts(8).to_bytes(), &["llama.expert_used_count"]);
    refused(&context, experts(8).key("llama.expert_used_count", 9u32).to_bytes(), &["llama.expert_used_count", "9"]);
    refused(&context, experts(1 << 20).key("llama.expert_used_count", 2u32).to_bytes(), &["llama.expert_count"]);
    let used = || experts(8).key("llama.expert_used_count", 2u32);
    refused(&context, used().key("llama.expert_gating_func", 2u32).to_bytes(), &["llama.expert_gating_func"]);
    refused(&context, used().key("llama.expert_shared_count", 1u32).to_bytes(), &["llama.expert_shared_count"]);
    let shared_length = "expert_shared_feed_forward_length";
    refused(&context, used().key(&format!("llama.{shared_length}"), 64u32).to_bytes(), &["llama", shared_length]);
    let qwen = || GgufWriter::new().key("general.architecture", "qwen2moe");
    refused(&context, qwen().to_bytes(), &["qwen2moe.expert_count"]);
    let used = || qwen().key("qwen2moe.expert_count", 8u32).key("qwen2moe.expert_used_count", 2u32);
    refused(&context, used().to_bytes(), &["qwen2moe", shared_length]);
    // Keys that an architecture cannot do without.
    let shape = |arch: &str| {
        let key = |name: &str| format!("{arch}.{name}");
        GgufWriter::new()
            .key("general.architecture", arch)
            .key(&key("block_count"), 2u32)
            .key(&key("embedding_length"), 8u32)
            .key(&key("context_length"), 64u32)
            .key(&key("attention.head_count"), 2u32)
            .key(&key("feed_forward_length"), 8u32)
            .tensor("token_embd.weight", &[8, 3], 0, vec![0; 96])
    };
    let (rms, centred) = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon");
    for arch in ["llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "smollm3", "granite", "olmo2", "glm4"]
    {
        refused(&context, shape(arch).to_bytes(), &[&format!("{arch}.{rms}")]);
    }
    for arch in ["starcoder2", "gpt2"] {
        refused(&context, shape(arch).to_bytes(), &[&format!("{arch}.{centred}")]);
    }
    refused(&context, shape("cohere2").to_bytes(), &["cohere2.attention.sliding_window"]);
    refused(&context, shape("gpt-oss").to_bytes(), &["gpt-oss.attention.sliding_window"]);
    refused(&context, shape("qwen3moe").to_bytes(), &["qwen3moe.expert_count"]);
    let with_eps = |arch: &str| shape(arch).key(&format!("{arch}.{rms}"), 1e-6f32);
    refused(&context, with_eps("granite").to_bytes(), &["granite.logit_scale"]);
    let pattern = Value::Array(Array::Bool(vec![true; 3]));
    let olmo = with_eps("olmo2").key("olmo2.attention.sliding_window_pattern", pattern);
    refused(&context, olmo.to_bytes(), &["olmo2.attention.sliding_window_pattern", "3", "2"]);
    // Tensors that a spec asks for.
    refused(&context, with_eps("qwen3").to_bytes(), &["tensor", "is missing"]);
    // Rows of formats with super-blocks are whole super-blocks.
    let odd = base().tensor("blk.0.attn_q.weight", &[96, 8], 12, vec![0; 144 * 3]);
    refused(&context, odd.to_bytes(), &["blk.0.attn_q.weight", "Q4_K", "256", "96"]);
}

/// The error names the tensor and its type, and what runs instead.
#[test]
fn weights_that_do_not_run_are_refused_by_name() {
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let types: Vec<_> = GGML_TYPES.iter().filter(|t| by_ggml_type(t.id).is_none()).collect();
    for name in ["IQ1_S", "IQ2_XXS", "IQ3_S", "TQ1_0", "NVFP4"] {
        assert!(types.iter().any(|t| t.name == name), "{name}");
    }
    for t in types {
        let tensor = "blk.3.ffn_down.weight";
        let other = rewrite(&asset(), "refused-type", |tensors| {
            let (_, dims, ty, data) = tensors.iter_mut().find(|t| t.0 == tensor).expect("tensor");
            let blocks = dims.iter().product::<u64>() / u64::from(t.block_len);
            (*ty, *data) = (t.id, vec![0; (blocks * u64::from(t.block_bytes)) as usize]);
        });
        let err = context.load_model(&other, &ModelOptions::default(), &mut |_, _| Ok(())).expect_err(t.name);
        std::fs::remove_file(&other).expect("remove");
        let text = err.to_string();
        assert!(matches!(err, Error::Unsupported(_)), "{text}");
        for part in [tensor, t.name, "Q8_0", "Q4_K", "MXFP4"] {
            assert!(text.contains(part), "\"{text}\" does not name \"{part}\"");
        }
    }
}

#[test]
fn matrices_arrive_as_the_file_has_them() {
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let file = Gguf::open(&asset()).unwrap();
    let mut seen = Vec::new();
    verify_weights(context.gpu(), &file, &mut |t| {
        assert_eq!((t.differing, t.max_error), (0, 0.0), "{t:?}");
        assert!(t.largest > 0.0 && t.largest < 100.0, "{t:?}");
        seen.push((t.name, t.rows * t.cols));
        Ok(())
    })
    .unwrap();
    let matrices: Vec<_> =
        file.tensors().iter().filter(|t| t.dims.len() > 1).map(|t| (t.name.clone(), t.elements())).collect();
    assert_eq!(seen, matrices);
    let cast = context.stats().counters.places[Place::Cast as usize];
    assert_eq!((cast.readbacks, cast.bytes), (seen.len() as u64, seen.iter().map(|t| t.1 * 4).sum()));

    context.set_guard(Guard { mode: GuardMode::Strict, ..Guard::default() });
    let e = verify_weights(context.gpu(), &file, &mut |_| panic!("it was refused")).unwrap_err();
    assert!(matches!(&e, Error::Guard(m) if m.contains("cast.weights")), "{e}");
    assert_eq!(context.stats().counters.places[Place::Cast as usize].refused, 1);
}

/// The same of files as quantisers make them: every format, several in one file.
#[test]
fn matrices_of_quantised_files_arrive_as_they_are() {
    let Some(dir) = shared("models/hearth") else { return };
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let mut formats = std::collections::BTreeSet::new();
    for entry in std::fs::read_dir(&dir).expect("folder") {
        let path = entry.expect("entry").path();
        if path.extension().is_none_or(|e| e != "gguf") {
            continue;
        }
        let file = Gguf::open(&path).expect("open");
        verify_weights(context.gpu(), &file, &mut |t| {
            assert_eq!((t.differing, t.max_error), (0, 0.0), "{}: {t:?}", path.display());
            formats.insert(t.format);
            Ok(())
        })
        .expect("verify");
    }
    println!("{formats:?}");
    assert!(formats.len() >= 14, "{formats:?}");
}
