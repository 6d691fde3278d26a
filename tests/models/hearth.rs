//! The model that ships with the project, against its float64 reference.

use std::ops::ControlFlow;

use doppler::gpu::{Features, Guard, GuardMode, Phase};
use doppler::model::KvType;
use doppler::sample::SamplingOptions;
use doppler::session::GenerateOptions;

use crate::common::{self, Reference, assert_greedy, context, load, logits, max_error, session, shared};

fn greedy(max_tokens: u32) -> GenerateOptions {
    GenerateOptions { max_tokens, sampling: SamplingOptions::greedy(), ignore_eos: true, ..Default::default() }
}

/// Last-position logits and 64 greedy tokens of the 12 reference prompts; with `some`, a regular run takes every sixth, from there on.
fn against_reference(file: &str, features: Features, kv: KvType, bound: f32, some: Option<usize>) {
    let Some(dir) = shared("models/hearth") else { return };
    let Some(context) = context(features, Guard::default()) else { return };
    let reference = Reference::open(dir.join("reference.safetensors"));
    let model = load(&context, &dir.join(file), kv, 1024, 0);
    let vocab = model.info().n_vocab as usize;
    let mut worst = 0f32;
    let every = if some.is_none() || common::long_tests() { 1 } else { 6 };
    for i in (some.unwrap_or(0) % every..12).step_by(every) {
        let ids = reference.ids(&format!("prompt_{i:02}"));
        let mut s = session(&model);
        let all = logits(&mut s, &ids);
        let error = max_error(&all[all.len() - vocab..], &reference.floats(&format!("logits_{i:02}")));
        worst = worst.max(error);
        assert!(error <= bound, "{file} prompt {i}: largest logit error {error}, bound {bound}");
        let out = s.generate(&greedy(64), &mut |_| ControlFlow::Continue(())).expect("generate");
        let (want, margins) = (reference.ids(&format!("greedy_{i:02}")), reference.floats(&format!("margin_{i:02}")));
        assert_greedy(&format!("{file} prompt {i}"), &out.tokens, &want, &margins, 2.0 * bound);
    }
    println!("{file}, {} KV: largest logit error {worst:.2e} (bound {bound:.0e})", kv.name());
}

#[test]
fn f32_file_f32_kv() {
    against_reference("f32/hearth-5m-f32.gguf", Features::ALL, KvType::F32, 1e-3, Some(1));
}

#[test]
fn f16_file_f32_kv_in_every_feature_set() {
    for (i, (name, features)) in common::feature_sets().into_iter().enumerate() {
        println!("features: {name}");
        against_reference("hearth-5m-f16.gguf", features, KvType::F32, 1e-3, (i > 0).then_some(i));
    }
}

#[test]
fn f16_file_f16_kv() {
    against_reference("hearth-5m-f16.gguf", Features::ALL, KvType::F16, 0.05, Some(2));
}

/// The steady state of decode, under a strict guard: one submit and one readback a token, nothing made.
#[test]
fn steady_decode_makes_nothing() {
    let Some(dir) = shared("models/hearth") else { return };
    let guard = Guard { mode: GuardMode::Strict, ..Guard::default() };
    let Some(context) = context(Features::ALL, guard) else { return };
    let model = load(&context, &dir.join("hearth-5m-Q8_0.gguf"), KvType::F16, 1024, 0);
    let mut s = session(&model);
    s.append_text("Once upon a time", false).expect("append");
    s.generate(&greedy(1), &mut |_| ControlFlow::Continue(())).expect("first token");
    let before = s.stats().counters;
    let out = s.generate(&greedy(64), &mut |_| ControlFlow::Continue(())).expect("generate");
    assert_eq!(out.tokens.len(), 64);
    let stats = s.stats();
    let cost = stats.counters.phase(Phase::Decode).since(before.phase(Phase::Decode));
    // The first of the 64 comes with the prompt's submit.
    assert_eq!((cost.submits, cost.required_readbacks()), (63, 63));
    assert_eq!((cost.buffers, cost.bind_groups, cost.pipelines), (0, 0, 0));
    assert!(cost.required_readback_bytes() <= 16 * 63, "{} bytes", cost.required_readback_bytes());
    assert_eq!(stats.decode_tokens, 63);
    println!("{} dispatches a token", cost.dispatches / 63);
}
