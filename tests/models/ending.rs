//! Generations that end in the middle of a submit, whose steps after that are left out: in models of other kinds, alone and together.

use std::ops::ControlFlow;

use doppler::gpu::{Features, Guard};
use doppler::model::KvType;
use doppler::sample::SamplingOptions;
use doppler::session::{FinishReason, GenerateOptions, Model, Session, SessionOptions, generate_together};

use crate::common::*;

/// Tokens of a whole generation: two submits after the first token.
const WHOLE: u32 = 33;

fn options(max_tokens: u32, end_tokens: Vec<u32>) -> GenerateOptions {
    let sampling =
        SamplingOptions { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 3, ..Default::default() };
    GenerateOptions { max_tokens, sampling, ignore_eos: true, end_tokens, ..Default::default() }
}

/// A session that draws 16 tokens a submit, after a prompt.
fn told(mut s: Session, prompt: u32) -> Session {
    s.append_tokens(&[1, 40 + prompt, 17, 93, 11, 60 + 2 * prompt, 5]).unwrap();
    s
}

/// Ends generations at a token in the first submit and in the second, and goes on: with the tokens of one that was not ended.
pub fn ends_early(what: &str, open: &dyn Fn() -> Session) {
    let mut free = [0, 1].map(|prompt| told(open(), prompt));
    let all = free.each_mut().map(|s| generate(s, &options(WHOLE, Vec::new())));
    // A token that is new, after so many.
    let new = |i: usize, from: usize| {
        let at = (from..all[i].len()).find(|&n| !all[i][..n].contains(&all[i][n]));
        at.unwrap_or_else(|| panic!("{what}: no new token from {from} on in {:?}", all[i]))
    };
    let ends = [new(0, 4), new(1, 19)];
    assert!(ends[0] < 14 && ends[1] < 30, "{what}: {ends:?}");
    let wanted = [0, 1].map(|i| options(WHOLE, vec![all[i][ends[i]]]));
    let goes_on = |s: &mut Session, i: usize| {
        let rest = generate(s, &options(WHOLE - 1 - ends[i] as u32, Vec::new()));
        assert_eq!(rest, all[i][ends[i] + 1..], "{what}: {i} goes on");
    };
    for i in [0, 1] {
        let mut s = told(open(), i as u32);
        let out = s.generate(&wanted[i], &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!((out.reason, &out.tokens[..]), (FinishReason::EndToken, &all[i][..=ends[i]]), "{what}: {i} alone");
        goes_on(&mut s, i);
    }
    let mut both = [0, 1].map(|prompt| told(open(), prompt));
    let [a, b] = &mut both;
    let outs = generate_together(&mut [a, b], &wanted, &mut |_, _| ControlFlow::Continue(())).unwrap();
    for (i, out) in outs.into_iter().enumerate() {
        assert_eq!(out.unwrap().tokens, all[i][..=ends[i]], "{what}: {i} together");
        goes_on(&mut both[i], i);
    }
}

/// Opens sessions of a model that draw 16 tokens a submit.
pub fn by_sixteen(model: &Model) -> Session {
    model.open_session(&SessionOptions { tokens_per_submit: 16, ..Default::default() }).unwrap()
}

#[test]
fn generations_that_end_early_go_on_as_if_they_had_not() {
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let hearth = load(&context, &asset(), KvType::F32, 96, 32);
    ends_early("hearth", &|| by_sixteen(&hearth));
    // Mixtures, recurrent layers of two kinds, windows.
    for family in ["qwen3moe", "lfm2", "qwen35", "gemma3"] {
        let Some(path) = shared(&format!("golden/{family}/model-f16.gguf")) else { return };
        let model = load(&context, &path, KvType::F32, 96, 32);
        ends_early(family, &|| by_sixteen(&model));
    }
}
