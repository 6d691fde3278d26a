//! What mixtures of experts add to running a model, on the tiny ones of the references.

use std::ops::ControlFlow;

use doppler::gpu::{Features, Guard, GuardMode, Phase};
use doppler::model::KvType;
use doppler::sample::SamplingOptions;
use doppler::session::{GenerateOptions, ModelOptions, SessionOptions};

use crate::common::{context, load, session, shared};

const MODELS: [&str; 2] = ["golden/mixtral", "golden/qwen2moe"];

const PROMPT: [u32; 7] = [1, 900, 17, 300, 45, 6, 77];

fn greedy(max_tokens: u32) -> GenerateOptions {
    GenerateOptions { max_tokens, sampling: SamplingOptions::greedy(), ignore_eos: true, ..Default::default() }
}

/// The steady state of decode under a strict guard: one submit and one readback a token, nothing made. The experts of a token are the
/// device's own business.
#[test]
fn steady_decode_makes_nothing() {
    MODELS.into_iter().for_each(steady_decode_makes_nothing_in);
}

fn steady_decode_makes_nothing_in(model: &str) {
    let Some(dir) = shared(model) else { return };
    let guard = Guard { mode: GuardMode::Strict, ..Guard::default() };
    let Some(context) = context(Features::ALL, guard) else { return };
    let model = load(&context, &dir.join("model-f16.gguf"), KvType::F16, 512, 0);
    let mut s = session(&model);
    s.append_tokens(&PROMPT).expect("append");
    s.generate(&greedy(1), &mut |_| ControlFlow::Continue(())).expect("first token");
    let before = s.stats().counters;
    let out = s.generate(&greedy(64), &mut |_| ControlFlow::Continue(())).expect("generate");
    assert_eq!(out.tokens.len(), 64);
    let stats = s.stats();
    let cost = stats.counters.phase(Phase::Decode).since(before.phase(Phase::Decode));
    assert_eq!((cost.submits, cost.required_readbacks()), (63, 63));
    assert_eq!((cost.buffers, cost.bind_groups, cost.pipelines), (0, 0, 0));
    println!("{} dispatches a token", cost.dispatches / 63);
}

/// The same text with one token a submit and with many: nothing of a token's routing is left for the next.
#[test]
fn tokens_in_one_submit() {
    MODELS.into_iter().for_each(tokens_in_one_submit_in);
}

fn tokens_in_one_submit_in(model: &str) {
    let Some(dir) = shared(model) else { return };
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let model = load(&context, &dir.join("model-f16.gguf"), KvType::F32, 512, 0);
    let text = |tokens_per_submit: u32| {
        let options = SessionOptions { tokens_per_submit, ..Default::default() };
        let mut s = model.open_session(&options).expect("session");
        s.append_tokens(&PROMPT).expect("append");
        s.generate(&greedy(40), &mut |_| ControlFlow::Continue(())).expect("generate").tokens
    };
    let one = text(1);
    assert_eq!(one.len(), 40);
    for many in [3, 16] {
        assert_eq!(text(many), one, "{many} tokens a submit");
    }
}

/// After prewarming, prompts below and beyond the number of rows from which experts are grouped compile nothing.
#[test]
fn prewarmed_prompts_compile_nothing() {
    MODELS.into_iter().for_each(prewarmed_prompts_compile_nothing_in);
}

fn prewarmed_prompts_compile_nothing_in(model: &str) {
    let Some(dir) = shared(model) else { return };
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let options = ModelOptions { n_ctx: 512, prefill_chunk: 0, kv_type: KvType::F16, prewarm: true };
    let model = context.load_model(&dir.join("model-f16.gguf"), &options, &mut |_, _| Ok(())).expect("load");
    for rows in [1, 2, 4, 5, 9, 10, 11, 100] {
        let mut s = session(&model);
        let prompt: Vec<u32> = (0..rows).map(|i| PROMPT[i % PROMPT.len()]).collect();
        s.append_tokens(&prompt).expect("append");
        s.generate(&greedy(2), &mut |_| ControlFlow::Continue(())).expect("generate");
        let counters = s.stats().counters;
        let made = [Phase::Prefill, Phase::Decode].map(|p| counters.phase(p).pipelines);
        assert_eq!(made, [0, 0], "a prompt of {rows} tokens");
    }
}
