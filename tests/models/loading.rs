//! Loading: bounded host memory, progress, cancelling, and files that are refused by name.

use std::path::{Path, PathBuf};

use doppler::Error;
use doppler::format::{Gguf, GgufWriter};
use doppler::gpu::{Features, Guard, GuardMode, Place};
use doppler::model::verify_weights;
use doppler::session::{Context, ModelOptions};

use crate::common::{asset, context, shared};

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
    let Some(dir) = shared("models/hearth") else { return };
    let path = dir.join("hearth-5m-Q2_K.gguf");
    let err = context.load_model(&path, &ModelOptions::default(), &mut |_, _| Ok(())).expect_err("Q2_K");
    let text = err.to_string();
    assert!(matches!(err, Error::Unsupported(_)) && text.contains("_K") && text.contains("tensor"), "{text}");
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
