//! Generation end to end: what is drawn, what ends it, and what state it leaves.

use std::ops::ControlFlow;
use std::sync::{LazyLock, mpsc};

use doppler::Error;
use doppler::gpu::{Features, Guard, GuardMode, Phase};
use doppler::model::KvType;
use doppler::sample::{SamplingOptions, penalties, sample_reference};
use doppler::session::{FinishReason, GenerateOptions, Generated, Message, Model, Session, SessionOptions};

use crate::common::{assert_same_greedy, asset, context, gap, load, logits, session};

/// Differences of logits that two ways of computing them may show.
const NEAR: f64 = 1e-3;

/// One model for all tests: they run at the same time, so its sessions are mixed on the device.
fn model() -> Option<&'static Model> {
    static MODEL: LazyLock<Option<Model>> = LazyLock::new(|| {
        let context = context(Features::ALL, Guard::default())?;
        Some(load(&context, &asset(), KvType::F32, 512, 0))
    });
    MODEL.as_ref()
}

fn open(model: &Model, n_ctx: u32, tokens_per_submit: u32) -> Session {
    model.open_session(&SessionOptions { n_ctx, tokens_per_submit, ..Default::default() }).expect("session")
}

/// A session that holds the beginning of a story.
fn story(model: &Model, tokens_per_submit: u32) -> Session {
    let mut s = open(model, 0, tokens_per_submit);
    let tale = [Message::new("user", "Tell me a story about a fox and a lantern.")];
    s.append_messages(&tale, true).expect("messages");
    s
}

fn greedy(max_tokens: u32) -> GenerateOptions {
    GenerateOptions { max_tokens, sampling: SamplingOptions::greedy(), ignore_eos: true, ..Default::default() }
}

fn random(max_tokens: u32, seed: u64) -> GenerateOptions {
    let sampling = SamplingOptions { temperature: 1.0, top_k: 0, top_p: 0.98, min_p: 0.0, seed, ..Default::default() };
    GenerateOptions { max_tokens, sampling, ignore_eos: true, ..Default::default() }
}

/// Generates, and checks what must hold of every generation: the session has its tokens, the events have its tokens and text.
fn generate(s: &mut Session, options: &GenerateOptions) -> Generated {
    let mut want = s.tokens().to_vec();
    let (mut text, mut tokens) = (String::new(), Vec::new());
    let out = s
        .generate(options, &mut |e| {
            text.push_str(&e.text);
            tokens.push(e.token);
            ControlFlow::Continue(())
        })
        .expect("generate");
    assert_eq!((&tokens, &text), (&out.tokens, &out.text));
    want.extend(&out.tokens);
    assert_eq!(s.tokens(), want);
    assert!(s.tokens().len() <= s.n_ctx() as usize);
    assert!(s.stats().cached_tokens as usize <= s.tokens().len());
    out
}

/// What a session generates next is what a fresh one generates that was given the same tokens.
#[track_caller]
fn assert_like_fresh(s: &mut Session) {
    let tokens = s.tokens().to_vec();
    let n = 6.min(s.n_ctx() - tokens.len() as u32);
    let model = s.model().clone();
    let mut fresh = open(&model, 0, 1);
    fresh.append_tokens(&tokens).expect("append");
    let (a, b) = (generate(s, &greedy(n)), generate(&mut fresh, &greedy(n)));
    assert_same_greedy(&model, &tokens, &a.tokens, &b.tokens, NEAR);
}

// ---- What is drawn ------------------------------------------------------------------------------------

#[test]
fn the_seed_decides_and_not_the_submits() {
    let Some(model) = model() else { return };
    let mut by_seed = Vec::new();
    for seed in [1, 2, 1 << 40 | 1] {
        let outs = [1, 4, 16].map(|per_submit| generate(&mut story(model, per_submit), &random(40, seed)));
        assert_eq!(outs[0], outs[1], "seed {seed}: 4 tokens a submit");
        assert_eq!(outs[0], outs[2], "seed {seed}: 16 tokens a submit");
        println!("seed {seed}: {:?}", outs[0].text);
        by_seed.push(outs[0].tokens.clone());
    }
    assert!(by_seed[0] != by_seed[1] && by_seed[0] != by_seed[2] && by_seed[1] != by_seed[2]);
}

#[test]
fn a_generation_in_pieces_draws_the_same() {
    let Some(model) = model() else { return };
    let whole = generate(&mut story(model, 4), &random(30, 9));
    let mut s = story(model, 4);
    let pieces: Vec<u32> = [1, 7, 8, 14].iter().flat_map(|&n| generate(&mut s, &random(n, 9)).tokens).collect();
    assert_eq!(pieces, whole.tokens);
}

#[test]
fn a_bias_forbids_and_forces() {
    let Some(model) = model() else { return };
    let plain = generate(&mut story(model, 4), &greedy(24)).tokens;
    let with = |bias: Vec<(u32, f32)>| {
        let mut options = greedy(24);
        options.sampling.logit_bias = bias;
        generate(&mut story(model, 4), &options).tokens
    };
    for &token in &[plain[0], plain[5]] {
        let tokens = with(vec![(token, f32::NEG_INFINITY)]);
        assert!(!tokens.contains(&token));
        let first = plain.iter().position(|t| *t == token).unwrap();
        assert_eq!(tokens[..first], plain[..first], "nothing else changes");
    }
    assert_eq!(with(vec![(7, 0.0), (1234, 1e4)]), [1234; 24]);
    let vocab = model.info().n_vocab;
    let mut options = greedy(1);
    options.sampling.logit_bias = vec![(vocab, 1.0)];
    let mut s = story(model, 1);
    let e = s.generate(&options, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(e, Error::InvalidArgument(_)), "{e}");
    assert_eq!(generate(&mut s, &greedy(24)).tokens, plain, "an error in the options leaves the session as it was");
}

/// Each token of a generation on the device against the CPU's choice from the same logits, history and position.
#[test]
fn tokens_are_those_of_the_reference() {
    let Some(model) = model() else { return };
    let vocab = model.info().n_vocab as usize;
    let penalised = SamplingOptions {
        repeat_penalty: 1.6,
        frequency_penalty: 0.4,
        presence_penalty: 0.3,
        penalty_last_n: 32,
        ..SamplingOptions::greedy()
    };
    let biased =
        SamplingOptions { logit_bias: vec![(300, 6.0), (32, -3.0), (46, f32::NEG_INFINITY)], ..penalised.clone() };
    let cases = [
        ("greedy", SamplingOptions::greedy()),
        ("penalties", penalised.clone()),
        ("a short window", SamplingOptions { penalty_last_n: 12, ..penalised.clone() }),
        ("defaults", SamplingOptions { seed: 5, ..Default::default() }),
        ("temperature alone", SamplingOptions { temperature: 1.3, seed: 6, ..SamplingOptions::greedy() }),
        ("everything", SamplingOptions { temperature: 1.1, top_k: 200, top_p: 0.97, min_p: 0.005, seed: 7, ..biased }),
    ];
    let plain = generate(&mut story(model, 4), &greedy(20)).tokens;
    for (name, options) in cases {
        let mut s = story(model, 4);
        let prompt = s.tokens().to_vec();
        let out = generate(&mut s, &GenerateOptions { sampling: options.clone(), ..greedy(20) });
        assert!(name != "penalties" || out.tokens != plain, "the penalties changed nothing");
        let mut history = prompt.clone();
        let mut second = session(model);
        let mut row = logits(&mut second, &prompt);
        let (mut near, mut candidates) = (0, 0);
        for (i, &token) in out.tokens.iter().enumerate() {
            row.drain(..row.len() - vocab);
            let want = sample_reference(&row, &history, history.len() as u32, &options);
            candidates += want.survivors.len();
            let margin = if options.is_greedy() {
                let mut changed = row.clone();
                penalties::apply(&mut changed, &history, &options);
                gap(&changed)
            } else {
                want.margin
            };
            near += u32::from(margin < NEAR);
            let same = want.token == token;
            assert!(same || margin < NEAR, "{name}: token {i} is {token}, wanted {} (margin {margin})", want.token);
            history.push(token);
            row = logits(&mut second, &[token]);
        }
        println!(
            "{name}: 20 tokens, {:.1} candidates a token, {near} near a border: {:?}",
            f64::from(candidates as u32) / 20.0,
            out.text
        );
        assert!(near <= 5, "{name}: {near} of 20 tokens prove nothing");
    }
}

// ---- What ends it -------------------------------------------------------------------------------------

#[test]
fn stop_strings_across_token_borders() {
    let Some(model) = model() else { return };
    let mut pieces = Vec::new();
    let mut s = story(model, 1);
    let prompt = s.tokens().len();
    let whole = s
        .generate(&greedy(40), &mut |e| {
            pieces.push(e.text.clone());
            ControlFlow::Continue(())
        })
        .expect("generate");
    // From the middle of one token to the middle of another.
    let long: Vec<usize> = (8..38).filter(|&i| pieces[i].len() > 1 && pieces[i + 1].len() > 1).collect();
    assert!(long.len() > 3, "{pieces:?}");
    for &i in &[long[0], long[long.len() / 2]] {
        let stop = format!("{}{}", &pieces[i][1..], &pieces[i + 1][..1]);
        let at = whole.text.find(&stop).expect("stop string");
        for per_submit in [1, 4, 16] {
            let mut s = story(model, per_submit);
            let options =
                GenerateOptions { stop: vec!["\u{1}never".into(), String::new(), stop.clone()], ..greedy(40) };
            let out = generate(&mut s, &options);
            assert_eq!((out.reason, out.stop_string), (FinishReason::StopString, Some(2)), "{stop:?}");
            assert_eq!(out.text, whole.text[..at]);
            assert_eq!(out.tokens[..], whole.tokens[..out.tokens.len()]);
            assert!(out.tokens.len() <= i + 2);
            assert_eq!(s.tokens().len(), prompt + out.tokens.len(), "tokens drawn after the stop string are forgotten");
            assert_like_fresh(&mut s);
        }
    }
    // Text held back for a stop string that does not come is delivered in the end.
    let tail = whole.text.chars().last().unwrap();
    let out = generate(&mut story(model, 4), &GenerateOptions { stop: vec![format!("{tail}\u{1}")], ..greedy(40) });
    assert_eq!((out.reason, &out.text), (FinishReason::MaxTokens, &whole.text));
}

#[test]
fn max_tokens() {
    let Some(model) = model() else { return };
    let whole = generate(&mut story(model, 1), &greedy(20)).tokens;
    for per_submit in [1, 4, 16] {
        for n in [1, 5, 17] {
            let mut s = story(model, per_submit);
            let out = generate(&mut s, &greedy(n));
            assert_eq!(out.reason, FinishReason::MaxTokens);
            assert_eq!(out.tokens, whole[..n as usize]);
            let stats = s.stats();
            assert_eq!((stats.generated_tokens, stats.decode_tokens), (n.into(), u64::from(n) - 1));
        }
    }
}

#[test]
fn end_tokens_end() {
    let Some(model) = model() else { return };
    let end = model.tokenizer().end_of_generation().to_vec();
    let ask = [Message::new("user", "Hello!")];
    let mut outs = Vec::new();
    for per_submit in [1, 16] {
        let mut s = open(model, 0, per_submit);
        s.append_messages(&ask, true).expect("messages");
        let out = generate(&mut s, &GenerateOptions { ignore_eos: false, ..greedy(100) });
        assert_eq!(out.reason, FinishReason::EndToken);
        let (last, rest) = out.tokens.split_last().expect("tokens");
        assert!(end.contains(last) && !rest.iter().any(|t| end.contains(t)));
        assert!(!out.text.contains("<|im_end|>") && !out.text.is_empty());
        // The conversation goes on: the reply is part of it, and its tokens are kept.
        let before = s.tokens().len();
        let new = s.append_messages(&[Message::new("user", "And then?")], true).expect("messages");
        assert_eq!(s.tokens().len(), before + new as usize);
        assert_like_fresh(&mut s);
        outs.push(out);
    }
    assert_eq!(outs[0], outs[1]);
}

#[test]
fn tokens_end_that_are_asked_to() {
    let Some(model) = model() else { return };
    for per_submit in [1, 16] {
        let mut s = story(model, per_submit);
        let all = generate(&mut s, &greedy(24)).tokens;
        let end = (7..all.len()).find(|&i| !all[..i].contains(&all[i])).expect("a token that is new");
        let mut s = story(model, per_submit);
        let out = generate(&mut s, &GenerateOptions { end_tokens: vec![3, all[end]], ..greedy(24) });
        assert_eq!((out.reason, &out.tokens[..]), (FinishReason::EndToken, &all[..=end]), "{per_submit} a submit");
        // It goes on from there.
        let rest = generate(&mut s, &greedy(23 - end as u32)).tokens;
        assert_eq!(rest, all[end + 1..], "{per_submit} a submit");
        let mut refused = |end_tokens: Vec<u32>| {
            let options = GenerateOptions { end_tokens, ..greedy(4) };
            s.generate(&options, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string()
        };
        let vocab = model.spec().n_vocab;
        assert!(refused(vec![5, vocab]).contains(&format!("end_tokens: {vocab}")));
        assert!(refused((0..65).collect()).contains("65 stop ids, 64"));
    }
}

#[test]
fn the_context_runs_full_and_goes_on() {
    let Some(model) = model() else { return };
    let prompt = story(model, 1).tokens().to_vec();
    let n_ctx = prompt.len() as u32 + 21;
    let mut outs = Vec::new();
    for per_submit in [1, 4, 16] {
        let mut s = open(model, n_ctx, per_submit);
        s.append_tokens(&prompt).expect("append");
        let out = generate(&mut s, &greedy(0));
        assert_eq!((out.reason, s.tokens().len()), (FinishReason::ContextFull, n_ctx as usize));
        assert!(matches!(s.append_tokens(&[5]), Err(Error::ContextFull(_))));
        let again = generate(&mut s, &greedy(0));
        assert_eq!((again.reason, again.tokens.len()), (FinishReason::ContextFull, 0), "full from the beginning");
        s.truncate(n_ctx - 9).expect("truncate");
        let rest = generate(&mut s, &greedy(0));
        assert_eq!((rest.reason, rest.tokens.len()), (FinishReason::ContextFull, 9));
        assert_same_greedy(model, &s.tokens()[..n_ctx as usize - 9], &rest.tokens, &out.tokens[12..], NEAR);
        s.truncate(prompt.len() as u32 - 3).expect("truncate");
        assert_like_fresh(&mut s);
        outs.push(out);
    }
    assert_eq!(outs[0], outs[1]);
    assert_eq!(outs[0], outs[2]);
    // As long as the context allows, max_tokens wins: the last token fits exactly.
    let mut s = open(model, n_ctx, 4);
    s.append_tokens(&prompt).expect("append");
    assert_eq!(generate(&mut s, &greedy(21)).reason, FinishReason::MaxTokens);
}

#[test]
fn an_empty_session_cannot_generate() {
    let Some(model) = model() else { return };
    let mut s = session(model);
    let e = s.generate(&greedy(1), &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(e, Error::InvalidState(_)), "{e}");
    s.append_text("Once", false).expect("append");
    assert_like_fresh(&mut s);
}

#[test]
fn cancelled_from_another_thread() {
    let Some(model) = model() else { return };
    for (per_submit, delivered) in [(1, 3), (4, 5)] {
        let mut s = story(model, per_submit);
        let handle = s.cancel_handle();
        let (ask, asked) = mpsc::channel();
        let (answer, answered) = mpsc::channel();
        let canceller = std::thread::spawn(move || {
            asked.recv().expect("asked");
            handle.cancel();
            answer.send(()).expect("answer");
        });
        let mut n = 0;
        let out = s
            .generate(&greedy(0), &mut |_| {
                n += 1;
                if n == 3 {
                    ask.send(()).expect("ask");
                    answered.recv().expect("answered");
                }
                ControlFlow::Continue(())
            })
            .expect("generate");
        canceller.join().expect("thread");
        // What the submit had drawn already still arrives.
        assert_eq!((out.reason, out.tokens.len(), n), (FinishReason::Cancelled, delivered, delivered));
        assert_like_fresh(&mut s);
        // A request that comes before the call ends the call; with a long prompt, before its evaluation.
        s.cancel_handle().cancel();
        assert_eq!(generate(&mut s, &greedy(5)).reason, FinishReason::Cancelled);
        assert_like_fresh(&mut s);
        s.cancel_handle().cancel();
        let before = s.tokens().to_vec();
        assert!(matches!(s.eval(&[1, 2, 3], &mut |_| Ok(())), Err(Error::Cancelled(_))));
        assert_eq!(s.tokens(), before);
        assert_like_fresh(&mut s);
    }
}

#[test]
fn a_callback_breaks_inside_a_batch() {
    let Some(model) = model() else { return };
    let whole = generate(&mut story(model, 1), &greedy(30));
    for at in [1, 2, 7, 17] {
        let mut s = story(model, 16);
        let prompt = s.tokens().len();
        let mut text = String::new();
        let mut n = 0;
        let out = s
            .generate(&greedy(30), &mut |e| {
                n += 1;
                text.push_str(&e.text);
                if n == at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
            .expect("generate");
        assert_eq!((out.reason, &out.text), (FinishReason::Callback, &text));
        assert_eq!(out.tokens, whole.tokens[..at]);
        assert_eq!(s.tokens().len(), prompt + at);
        assert!(whole.text.starts_with(&text));
        assert_like_fresh(&mut s);
    }
}

// ---- What state it leaves -----------------------------------------------------------------------------

#[test]
fn truncated_sessions_are_like_fresh_ones() {
    let Some(model) = model() else { return };
    let mut s = story(model, 4);
    let prompt = s.tokens().len() as u32;
    generate(&mut s, &random(45, 3));
    // Within the reply, at borders of cache blocks, within the prompt, and nothing at all.
    for keep in [prompt + 40, 64, prompt + 1, prompt, prompt - 1, 33, 32, 1] {
        if keep < s.tokens().len() as u32 {
            s.truncate(keep).expect("truncate");
            assert_like_fresh(&mut s);
            s.truncate(keep).expect("truncate");
        }
    }
    let len = s.tokens().len() as u32;
    assert!(s.truncate(len + 1).is_err());
    s.reset();
    s.append_text("Once upon a time", false).expect("append");
    assert_like_fresh(&mut s);
    // Penalties look at what is said, not at what was forgotten.
    let mut options = greedy(20);
    options.sampling.repeat_penalty = 1.5;
    let mut s = story(model, 4);
    let first = generate(&mut s, &options);
    s.truncate(prompt).expect("truncate");
    assert_eq!(generate(&mut s, &options), first);
}

#[test]
fn sessions_do_not_disturb_each_other() {
    let Some(model) = model() else { return };
    let mut options = [random(4, 21), random(4, 22)];
    options[1].sampling.repeat_penalty = 1.3;
    options[1].sampling.logit_bias = vec![(300, 2.0)];
    let other = || {
        let mut s = open(model, 0, 16);
        s.append_text("The baker has", false).expect("append");
        s
    };
    let alone = |mut s: Session, options: &GenerateOptions| -> Vec<u32> {
        (0..6).flat_map(|_| generate(&mut s, options).tokens).collect()
    };
    let want = [alone(story(model, 2), &options[0]), alone(other(), &options[1])];
    // Turn by turn, while more sessions come and go (slots and cache grow).
    let (mut a, mut b) = (story(model, 2), other());
    let mut got = [Vec::new(), Vec::new()];
    let mut more = Vec::new();
    for i in 0..6 {
        got[0].extend(generate(&mut a, &options[0]).tokens);
        got[1].extend(generate(&mut b, &options[1]).tokens);
        more.push(story(model, 1));
        if i == 3 {
            more.clear();
        }
    }
    assert_eq!(got, want, "turn by turn");
    // Between the submits of one generation.
    let (mut a, mut b) = (story(model, 2), other());
    let mut inner = Vec::new();
    let out = a
        .generate(&random(24, 21), &mut |_| {
            if inner.len() < 24 {
                inner.extend(generate(&mut b, &options[1]).tokens);
            }
            ControlFlow::Continue(())
        })
        .expect("generate");
    assert_eq!([out.tokens, inner], want, "between submits");
    // At the same time.
    let got = std::thread::scope(|scope| {
        let a = scope.spawn(|| alone(story(model, 2), &options[0]));
        let b = scope.spawn(|| alone(other(), &options[1]));
        [a.join().expect("thread"), b.join().expect("thread")]
    });
    assert_eq!(got, want, "on two threads");
}

#[test]
fn a_session_outlives_the_handles() {
    let path = asset();
    let (mut s, want) = {
        let Some(context) = context(Features::ALL, Guard::default()) else { return };
        let model = load(&context, &path, KvType::F32, 128, 0);
        let want = generate(&mut story(&model, 4), &random(12, 4));
        (story(&model, 4), want)
    };
    assert_eq!(generate(&mut s, &random(12, 4)), want);
}

/// Opening a session replaces buffers; the budget of steady decode holds in the next batch all the same.
#[test]
fn other_sessions_do_not_break_the_budget() {
    let path = asset();
    let Some(context) = context(Features::ALL, Guard { mode: GuardMode::Strict, ..Guard::default() }) else { return };
    let model = load(&context, &path, KvType::F16, 128, 0);
    let mut a = story(&model, 4);
    generate(&mut a, &greedy(8));
    let mut b = story(&model, 4);
    let mut options = greedy(8);
    options.sampling.repeat_penalty = 1.2;
    generate(&mut b, &options);
    generate(&mut a, &greedy(8));
}

/// A time for submits changes how many tokens come at once, and none of them.
#[test]
fn submits_of_a_given_time_draw_the_same_tokens() {
    let Some(context) = context(Features::ALL, Guard { mode: GuardMode::Strict, ..Guard::default() }) else { return };
    let model = load(&context, &asset(), KvType::F16, 128, 0);
    let want = generate(&mut story(&model, 1), &random(25, 3));
    // Nothing is that quick, or that slow: each token by itself, and after two of those as many as may.
    for (submit_time_us, submits) in [(1, 24), (u32::MAX, 5)] {
        let options = SessionOptions { tokens_per_submit: 8, submit_time_us, ..Default::default() };
        let mut s = model.open_session(&options).expect("session");
        s.append_tokens(story(&model, 1).tokens()).expect("append");
        assert_eq!(generate(&mut s, &random(25, 3)).tokens, want.tokens, "{submit_time_us} µs");
        assert_eq!(s.stats().counters.phase(Phase::Decode).submits, submits, "{submit_time_us} µs");
    }
}
