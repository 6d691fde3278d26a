//! Several sessions that generate together: each says what it says alone, at the cost of one.

use std::ops::ControlFlow;

use doppler::gpu::{Features, Guard, Phase};
use doppler::model::{KvType, MAX_SEQUENCES};
use doppler::sample::SamplingOptions;
use doppler::session::{
    FinishReason, GenerateOptions, Generated, Model, ModelOptions, ProbeOptions, Session, SessionOptions,
    generate_together,
};
use doppler::{Error, Result};

use crate::common::*;

const PROMPTS: [&str; 6] = [
    "Once upon a time there was a little mouse who lived in a clock",
    "The lighthouse",
    "A baker woke up early, lit the fire, and",
    "Why is the sky blue? Because",
    "Long ago, in a valley between two hills, there lived an old woman with seven goats and one very clever dog.",
    "Snow",
];

/// Sampling, length and ends of their own for each.
fn options(i: usize) -> GenerateOptions {
    let sampling = match i % 3 {
        0 => SamplingOptions::greedy(),
        1 => SamplingOptions { temperature: 1.0, top_k: 0, top_p: 0.9, seed: i as u64, ..Default::default() },
        _ => SamplingOptions { temperature: 0.7, seed: 7, repeat_penalty: 1.2, ..Default::default() },
    };
    GenerateOptions {
        max_tokens: 5 + 7 * (i as u32 % 4),
        sampling,
        stop: if i == 4 { vec![" the".into()] } else { Vec::new() },
        ignore_eos: i.is_multiple_of(2),
        render_special: false,
        end_tokens: Vec::new(),
    }
}

fn open(model: &Model, tokens_per_submit: u32) -> Session {
    model.open_session(&SessionOptions { tokens_per_submit, ..Default::default() }).unwrap()
}

fn told(model: &Model, i: usize, tokens_per_submit: u32) -> Session {
    let mut s = open(model, tokens_per_submit);
    s.append_text(PROMPTS[i % PROMPTS.len()], false).unwrap();
    s
}

fn alone(model: &Model, i: usize) -> Generated {
    told(model, i, 1).generate(&options(i), &mut |_| ControlFlow::Continue(())).unwrap()
}

/// Generates together, and checks that the events are those of the results.
fn together(sessions: &mut [Session], options: &[GenerateOptions]) -> Vec<Result<Generated>> {
    let mut heard = vec![(Vec::new(), String::new()); sessions.len()];
    let mut members: Vec<&mut Session> = sessions.iter_mut().collect();
    let all = generate_together(&mut members, options, &mut |i, event| {
        heard[i].0.push(event.token);
        heard[i].1.push_str(&event.text);
        ControlFlow::Continue(())
    })
    .unwrap();
    for (i, (result, (tokens, text))) in all.iter().zip(heard).enumerate() {
        if let Ok(g) = result {
            let held: String = g.held.iter().map(|p| p.text.as_str()).collect();
            assert_eq!((&g.tokens, &g.text), (&tokens, &(text + &held)), "session {i}");
        }
    }
    all
}

#[test]
fn each_says_what_it_says_alone() {
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let model = load(&context, &asset(), KvType::F32, 96, 64);
    let want: Vec<_> = (0..6).map(|i| alone(&model, i)).collect();
    assert!(want.iter().any(|w| w.reason == FinishReason::StopString) || want[4].tokens.len() > 5, "{want:?}");
    for tokens_per_submit in [1, 4] {
        let mut sessions: Vec<_> = (0..6).map(|i| told(&model, i, tokens_per_submit)).collect();
        let all_options: Vec<_> = (0..6).map(options).collect();
        let got = together(&mut sessions, &all_options);
        for (i, (got, want)) in got.into_iter().zip(&want).enumerate() {
            assert_eq!(&got.unwrap(), want, "session {i}, {tokens_per_submit} tokens a submit");
        }
        // They go on where they are, by themselves and together.
        let mut again = told(&model, 2, 1);
        again.generate(&options(2), &mut |_| ControlFlow::Continue(())).unwrap();
        let next = generate(&mut again, &greedy(6));
        assert_eq!(generate(&mut sessions[2], &greedy(6)), next);
        assert_eq!(sessions[2].tokens(), again.tokens());
        let more = together(&mut sessions[1..3], &[greedy(4), greedy(4)]);
        assert_eq!(more[1].as_ref().unwrap().tokens, generate(&mut again, &greedy(4)));
    }
}

#[test]
fn more_sessions_than_a_submit_takes() {
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let model = load(&context, &shallow(), KvType::F32, 64, 64);
    let n = MAX_SEQUENCES as usize + 2;
    let mut sessions: Vec<_> = (0..n).map(|i| told(&model, i, 2)).collect();
    let all_options: Vec<_> = (0..n).map(|i| greedy(3 + i as u32 % 3)).collect();
    let got = together(&mut sessions, &all_options);
    for (i, got) in got.into_iter().enumerate() {
        let want = generate(&mut told(&model, i, 1), &all_options[i]);
        assert_eq!(got.unwrap().tokens, want, "session {i}");
    }
}

#[test]
fn a_batch_costs_what_one_costs() {
    // Products as they are by default: with bytes, and tiles from five rows on.
    let Some(context) = context(Features::ALL, Guard::PRODUCTION) else { return };
    let options = ModelOptions { n_ctx: 96, ..Default::default() };
    let model = context.load_model(&shallow(), &options, &mut |_, _| Ok(())).unwrap();
    let mut sessions: Vec<_> = (0..6).map(|i| told(&model, i, 4)).collect();
    // Lengths for whole batches, after the first token: two leave after one, two after two, and so on.
    let all_options: Vec<_> = (0..6u32).map(|i| greedy(1 + 4 * (1 + i / 2))).collect();
    let decode = |s: &Session| *s.stats().counters.phase(Phase::Decode);
    let before = *context.stats().counters.phase(Phase::Decode);
    for result in together(&mut sessions, &all_options) {
        result.unwrap();
    }
    let of_all = context.stats().counters.phase(Phase::Decode).since(&before);
    assert_eq!((of_all.submits, of_all.required_readbacks()), (3, 3), "{of_all:?}");
    // Where there are chains, a word of each batch says whether a wait was in vain.
    let word = if context.gpu().features().chains { 8 } else { 0 };
    assert_eq!(of_all.required_readback_bytes(), (6 + 4 + 2) * 4 * 8 + 3 * word);
    assert_eq!((of_all.buffers, of_all.bind_groups, of_all.pipelines), (0, 0, 0), "{of_all:?}");
    for (i, s) in sessions.iter().enumerate() {
        let cost = decode(s);
        assert_eq!((cost.submits, cost.required_readbacks()), (1 + i as u64 / 2, 1 + i as u64 / 2), "session {i}");
    }
}

/// A prompt that needs pages has buffers and plans replaced: decoding makes none of them, though its first batch is encoded while the last prompt runs.
#[test]
fn forks_decode_together_and_make_nothing() {
    let Some(context) = context(Features::ALL, Guard::PRODUCTION) else { return };
    let options = ModelOptions { n_ctx: 96, ..Default::default() };
    let model = context.load_model(&shallow(), &options, &mut |_, _| Ok(())).unwrap();
    let mut parent = told(&model, 0, 4);
    generate(&mut parent, &greedy(5));
    for round in 0..2 {
        let fork = |i: u32| {
            let mut fork = parent.fork().unwrap();
            fork.append_tokens(&[300 + i, 17, 5]).unwrap();
            fork
        };
        let mut forks: Vec<_> = (0..3).map(fork).collect();
        let before = *context.stats().counters.phase(Phase::Decode);
        for result in together(&mut forks, &[greedy(9), greedy(9), greedy(9)]) {
            assert_eq!(result.unwrap().tokens.len(), 9);
        }
        let cost = context.stats().counters.phase(Phase::Decode).since(&before);
        assert_eq!(
            (cost.submits, cost.buffers, cost.bind_groups, cost.pipelines),
            (2, 0, 0, 0),
            "round {round}: {cost:?}"
        );
    }
}

#[test]
fn one_that_is_cancelled_or_stopped_or_fails_leaves_the_others_alone() {
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let model = load(&context, &shallow(), KvType::F32, 96, 64);
    let want: Vec<_> = (0..6).map(|i| generate(&mut told(&model, i, 1), &greedy(12))).collect();
    let mut sessions: Vec<_> = (0..6).map(|i| told(&model, i, 1)).collect();
    // Nothing to go on from; no room for a token; a probe.
    sessions.push(open(&model, 1));
    let mut full = open(&model, 1);
    full.append_tokens(&vec![300; 96]).unwrap();
    sessions.push(full);
    let mut probed = told(&model, 0, 1);
    probed.set_probe(Some(ProbeOptions::default())).unwrap();
    sessions.push(probed);
    let mut all_options = vec![greedy(12); 9];
    // Refused when the generation begins.
    all_options[5].sampling.temperature = f32::NAN;
    let cancel = sessions[1].cancel_handle();
    let mut heard = [0; 9];
    let mut members: Vec<&mut Session> = sessions.iter_mut().collect();
    let got = generate_together(&mut members, &all_options, &mut |i, _| {
        heard[i] += 1;
        if i == 0 && heard[0] == 3 {
            cancel.cancel();
        }
        if i == 3 && heard[3] == 5 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .unwrap();
    for i in [0, 2, 4] {
        assert_eq!(got[i].as_ref().unwrap().tokens, want[i], "session {i}");
    }
    let cancelled = got[1].as_ref().unwrap();
    assert_eq!(cancelled.reason, FinishReason::Cancelled);
    assert!(cancelled.tokens.len() < 12 && want[1].starts_with(&cancelled.tokens), "{:?}", cancelled.tokens);
    let stopped = got[3].as_ref().unwrap();
    assert_eq!((stopped.reason, &stopped.tokens[..]), (FinishReason::Callback, &want[3][..5]));
    assert!(matches!(&got[5], Err(Error::InvalidArgument(m)) if m.contains("temperature")), "{:?}", got[5]);
    assert!(matches!(got[6], Err(Error::InvalidState(_))), "{:?}", got[6]);
    assert_eq!(got[7].as_ref().unwrap().reason, FinishReason::ContextFull);
    assert!(matches!(&got[8], Err(Error::InvalidArgument(m)) if m.contains("probe")), "{:?}", got[8]);
    // All of them can be used again.
    assert_eq!(generate(&mut sessions[1], &greedy(3)).len(), 3);
    sessions[5].generate(&greedy(2), &mut |_| ControlFlow::Continue(())).unwrap();
}

#[test]
fn what_cannot_go_together_is_refused() {
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let [a, b] = [0, 1].map(|_| load(&context, &shallow(), KvType::F32, 64, 64));
    let (mut one, mut other) = (told(&a, 0, 1), told(&b, 1, 1));
    let mut none = |_: usize, _: &_| ControlFlow::Continue(());
    let refused = |r: Result<Vec<Result<Generated>>>, part: &str| match r {
        Err(Error::InvalidArgument(m)) => assert!(m.contains(part), "{m}"),
        other => panic!("{other:?}"),
    };
    refused(generate_together(&mut [&mut one, &mut other], &[greedy(2), greedy(2)], &mut none), "session 1");
    refused(generate_together(&mut [&mut one], &[], &mut none), "0 options for 1 sessions");
    assert!(generate_together(&mut [], &[], &mut none).unwrap().is_empty());
    assert_eq!(generate(&mut one, &greedy(2)).len(), 2);
}
