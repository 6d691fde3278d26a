//! Scores of continuations against the references' logits, and against evaluating them one by one.

use doppler::Error;
use doppler::gpu::{FaultPoint, Features, Guard, Phase, ReadbackClass};
use doppler::model::KvType;
use doppler::session::{Choice, EmbedOptions, Model, ModelOptions, Ranking, Session};

use crate::common::*;

/// Families with what may go wrong in a batch of several runs: plain, windows and soft caps, mixtures, sinks, and recurrences of all kinds.
const FAMILIES: [&str; 8] =
    ["llama3", "gemma2", "qwen3moe", "gpt-oss", "phi3-longrope", "lfm2", "qwen3next", "granitehybrid"];

fn told(model: &Model, ids: &[u32]) -> Session {
    let mut s = session(model);
    s.append_tokens(ids).expect("append");
    s
}

fn choose(s: &mut Session, continuations: &[&[u32]]) -> Choice {
    let (tokens, generated) = (s.tokens().to_vec(), s.stats().generated_tokens);
    let choice = s.choose_tokens(continuations, Ranking::Sum).expect("choose");
    assert_eq!((s.tokens(), s.stats().generated_tokens), (&tokens[..], generated), "the session is as it was");
    assert_eq!(s.stats().cached_tokens as usize, tokens.len(), "and evaluated");
    assert_eq!(choice.scores.len(), continuations.len());
    for (score, c) in choice.scores.iter().zip(continuations) {
        assert_eq!(score.log_probs.len(), c.len());
    }
    choice
}

/// The same by evaluating each continuation with all its logits in a session of its own.
fn one_by_one(model: &Model, prefix: &[u32], continuations: &[&[u32]]) -> Vec<Vec<f64>> {
    let vocab = model.info().n_vocab as usize;
    let each = |c: &&[u32]| {
        let ids: Vec<u32> = prefix.iter().chain(&c[..c.len() - 1]).copied().collect();
        let rows = logits(&mut session(model), &ids);
        let last = &rows[(prefix.len() - 1) * vocab..];
        last.chunks_exact(vocab).zip(*c).map(|(row, &t)| log_prob(row, t)).collect()
    };
    continuations.iter().map(each).collect()
}

#[track_caller]
fn near(what: &str, choice: &Choice, want: &[Vec<f64>], bound: f64) -> f64 {
    let mut worst = 0.0f64;
    for (i, (got, want)) in choice.scores.iter().zip(want).enumerate() {
        for (j, (g, w)) in got.log_probs.iter().zip(want).enumerate() {
            let error = (f64::from(*g) - w).abs();
            assert!(error <= bound, "{what}: token {j} of continuation {i}: {g}, wanted {w}");
            worst = worst.max(error);
        }
        let sum: f64 = want.iter().sum();
        assert!((got.log_likelihood() - sum).abs() <= bound * want.len() as f64, "{what}: sum of {i}");
        assert!((got.mean() * want.len() as f64 - got.log_likelihood()).abs() < 1e-6);
    }
    worst
}

/// Continuations of all lengths, cut out of the prompts whose logits are known at every position, between others that are not known: those are
/// compared with evaluating them alone. In chunks that all fit into, and in chunks that the long ones do not.
#[test]
fn scores_are_those_of_the_references() {
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    for family in FAMILIES {
        let Some(dir) = shared(&format!("golden/{family}")) else { return };
        let reference = Reference::open(dir.join("reference.safetensors"));
        let (ids, rows) = (reference.ids("prompt2.ids"), reference.floats("prompt2.logits"));
        // A difference of logits goes in twice.
        let bound = if family == "qwen3next" { 4e-3 } else { 2e-3 };
        for chunk in [256, 16] {
            let model = load(&context, &dir.join("model-f16.gguf"), KvType::F32, 256, chunk);
            let vocab = model.info().n_vocab as usize;
            let mut worst = 0f64;
            let prefixes: &[usize] = if chunk == 16 && !long_tests() { &[7] } else { &[1, 7, 32] };
            for &prefix in prefixes {
                let lens = [1, 2, 5, 33, 1, 8].map(|n: usize| n.min(40 - prefix));
                let decoy: Vec<u32> = ids.iter().rev().take(21).copied().collect();
                let mut all: Vec<&[u32]> = Vec::new();
                for &n in &lens {
                    all.extend([&ids[prefix..prefix + n], &decoy[..n.min(21)]]);
                }
                let mut want = one_by_one(&model, &ids[..prefix], &all);
                for (want, c) in want.iter_mut().zip(&all).step_by(2) {
                    let row = |i: usize| &rows[(prefix - 1 + i) * vocab..][..vocab];
                    *want = c.iter().enumerate().map(|(i, &t)| log_prob(row(i), t)).collect();
                }
                let mut s = told(&model, &ids[..prefix]);
                let what = format!("{family} after {prefix}, chunks of {chunk}");
                let choice = choose(&mut s, &all);
                worst = worst.max(near(&what, &choice, &want, bound));
                let best = (0..want.len()).max_by(|&a, &b| {
                    let sum = |i: usize| want[i].iter().sum::<f64>();
                    sum(a).total_cmp(&sum(b)).then(b.cmp(&a))
                });
                assert_eq!(Some(choice.best), best, "{what}");
                // Again, now that the prefix is evaluated; then one alone; then the session goes on as one that was never asked.
                near(&what, &choose(&mut s, &all), &want, bound);
                near(&what, &choose(&mut s, &all[6..7]), &want[6..7], bound);
                let (a, b) = (generate(&mut s, &greedy(4)), generate(&mut told(&model, &ids[..prefix]), &greedy(4)));
                assert_same_greedy(&model, &ids[..prefix], &a, &b, 2e-3);
            }
            assert_eq!(model.stats().kv.used, 0, "{family}: nothing is held");
            println!("{family}, chunks of {chunk}: largest error {worst:.1e}");
        }
    }
}

/// More continuations than slots, and than a wave takes, after a text of several blocks; a fork goes on undisturbed.
#[test]
fn many_continuations_are_like_each_alone() {
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    for kv in [KvType::F32, KvType::F16] {
        let model = load(&context, &shallow(), kv, 160, 64);
        let text =
            "Once upon a time there was a little mouse who lived in a clock, and a cat who lived under the stairs.";
        let prefix = model.tokenizer().encode(text, true, false).expect("encode");
        assert!(!prefix.len().is_multiple_of(32));
        let vocab = model.info().n_vocab;
        let token = |i: usize, j: usize| ((i * 7919 + j * 104_729 + 13) as u32) % vocab;
        let all: Vec<Vec<u32>> = (0..77).map(|i| (0..1 + i % 5).map(|j| token(i, j)).collect()).collect();
        let all: Vec<&[u32]> = all.iter().map(Vec::as_slice).collect();
        let mut s = told(&model, &prefix);
        let mut fork = {
            generate(&mut s, &greedy(1));
            s.truncate(prefix.len() as u32).expect("truncate");
            s.fork().expect("fork")
        };
        let used = model.stats().kv.used;
        let choice = choose(&mut s, &all);
        // The last token was evaluated again, so that its block is the session's own now.
        assert_eq!(model.stats().kv.used, used + 1);
        let bound = if kv == KvType::F32 { 1e-3 } else { 0.02 };
        near("together", &choice, &one_by_one(&model, &prefix, &all), bound);
        let alone: Vec<f64> = all.iter().map(|c| choose(&mut s, &[c]).scores[0].log_likelihood()).collect();
        for (i, (a, b)) in choice.scores.iter().zip(&alone).enumerate() {
            assert!((a.log_likelihood() - b).abs() <= bound * 5.0, "{i}: {} together, {b} alone", a.log_likelihood());
        }
        let (a, b) = (generate(&mut fork, &greedy(6)), generate(&mut s, &greedy(6)));
        assert_same_greedy(&model, &prefix, &a, &b, bound);
        assert!(model.stats().kv.copies > 0);
    }
}

/// One submit for the prompt and all first tokens, one for the rest of all continuations together; four bytes a token are read back.
#[test]
fn a_choice_is_two_submits_and_keeps_strict_budgets() {
    for (name, features) in feature_sets() {
        let Some(context) = context(features, Guard::PRODUCTION) else { return };
        for prewarm in [true, false] {
            let options = ModelOptions { n_ctx: 256, prefill_chunk: 64, prewarm, ..Default::default() };
            let model = context.load_model(&shallow(), &options, &mut |_, _| Ok(())).expect("load");
            let mut s = session(&model);
            s.append_text("The mouse lived in", false).expect("append");
            let texts = [" a clock.", " the kitchen of a very old house.", " Paris"];
            let tokens: u64 =
                texts.iter().map(|t| model.tokenizer().encode(t, false, false).expect("encode").len() as u64).sum();
            let first = s.choose(&texts, false, Ranking::Mean).expect("choose");
            for round in 0..3 {
                if round == 1 {
                    context.purge_caches();
                }
                s.reset_stats();
                let again = s.choose(&texts, false, Ranking::Mean).expect("choose");
                assert_eq!(again.best, first.best);
                let c = s.stats().counters;
                let p = c.phase(Phase::Prefill);
                assert_eq!((p.submits, p.buffers, p.bind_groups, p.pipelines), (2, 0, 0, 0), "{name}, round {round}");
                let class = ReadbackClass::Score as usize;
                assert_eq!((p.readbacks[class], p.readback_bytes[class]), (2, 4 * tokens), "{name}");
                assert_eq!(p.required_readbacks(), 2);
                assert_eq!(c.phase(Phase::Decode), &Default::default());
            }
            // Continuations of one token need no second submit.
            s.reset_stats();
            s.choose_tokens(&[&[5], &[6], &[7]], Ranking::First).expect("choose");
            assert_eq!(s.stats().counters.phase(Phase::Prefill).submits, 1);
            generate(&mut s, &greedy(5));
        }
    }
}

#[test]
fn what_cannot_be_chosen_from_is_refused_and_changes_nothing() {
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let model = load(&context, &asset(), KvType::F32, 64, 32);
    let mut s = session(&model);
    assert!(matches!(s.choose_tokens(&[&[1]], Ranking::Sum), Err(Error::InvalidState(_))));
    let prefix: Vec<u32> = (3..43).collect();
    s.append_tokens(&prefix).expect("append");
    let refuse = |s: &mut Session, c: &[&[u32]], word: &str| {
        let error = s.choose_tokens(c, Ranking::Sum).expect_err(word);
        assert!(error.to_string().contains(word), "{error}");
        assert_eq!(s.tokens(), prefix);
        error
    };
    refuse(&mut s, &[], "no continuations");
    refuse(&mut s, &[&[1], &[]], "continuation 1");
    let vocab = model.info().n_vocab;
    assert!(matches!(refuse(&mut s, &[&[1], &[vocab]], "vocabulary"), Error::InvalidArgument(_)));
    assert!(matches!(refuse(&mut s, &[&[1, 2, vocab]], "vocabulary"), Error::InvalidArgument(_)));
    // 40 and 25 tokens: the last of them is not evaluated.
    let long: Vec<u32> = (100..126).collect();
    assert!(matches!(refuse(&mut s, &[&[1], &long], "continuation 1"), Error::ContextFull(_)));
    let want = one_by_one(&model, &prefix, &[&long[..25], &[9, 8]]);
    near("up to the end of the context", &choose(&mut s, &[&long[..25], &[9, 8]]), &want, 1e-3);
    s.cancel_handle().cancel();
    assert!(matches!(refuse(&mut s, &[&long[..25]], "cancelled"), Error::Cancelled(_)));
    near("after being cancelled", &choose(&mut s, &[&long[..25], &[9, 8]]), &want, 1e-3);
    assert_eq!(model.stats().kv.used, 2);
}

/// Failures at every step of scoring and embedding: nothing stays on loan, and the next call is right.
#[test]
fn a_failure_at_any_step_leaves_nothing_on_loan() {
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let recurrent = shared("golden/granitehybrid").map(|d| d.join("model-f16.gguf"));
    for file in [shallow()].into_iter().chain(recurrent) {
        let gpu = context.gpu().clone();
        let model = load(&context, &file, KvType::F32, 96, 16);
        let prefix: Vec<u32> = (5..45).collect();
        let continuations: [&[u32]; 4] = [&[7, 8, 9], &[3], &[11, 12, 13, 14], &[20; 21]];
        let texts: [&[u32]; 3] = [&[5, 6, 7], &[8; 9], &[9; 20]];
        let embed = || model.embed_tokens(&texts, &EmbedOptions::default());
        let mut s = told(&model, &prefix);
        let (want, vectors) = (choose(&mut s, &continuations), embed().expect("embed").values);
        let used = || (model.stats().kv.used, model.stats().recurrent.used);
        let mut failures = 0;
        for point in [FaultPoint::Record, FaultPoint::Submit, FaultPoint::Wait, FaultPoint::Map, FaultPoint::Buffer] {
            // Steps of recording are alike in every layer. A regular run takes some of the others, a long one all.
            let others = if long_tests() { 1 } else { 3 };
            for nth in (1..).step_by(if point == FaultPoint::Record { 47 } else { others }) {
                // Every other time the prompt is evaluated too.
                let mut s = told(&model, &prefix);
                if nth % 2 == 0 {
                    choose(&mut s, &continuations);
                }
                gpu.inject_fault(point, nth);
                let (chosen, embedded) = (s.choose_tokens(&continuations, Ranking::Sum), embed());
                gpu.inject_fault(point, 0);
                if chosen.is_ok() && embedded.is_ok() {
                    break;
                }
                failures += 1;
                for e in [chosen.err(), embedded.err()].into_iter().flatten() {
                    assert!(matches!(&e, Error::Gpu(m) if m.contains("injected")), "{point:?} {nth}: {e}");
                }
                assert!(gpu.pool().leaks().is_empty(), "{point:?} {nth}: {:?}", gpu.pool().leaks());
                assert_eq!(s.tokens(), prefix);
                let again = choose(&mut s, &continuations);
                for (a, b) in again.scores.iter().zip(&want.scores) {
                    assert!((a.log_likelihood() - b.log_likelihood()).abs() < 2e-3, "{point:?} {nth}");
                }
                let near = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-4;
                assert!(embed().expect("embed").values.iter().zip(&vectors).all(near), "{point:?} {nth}");
                drop(s);
                assert_eq!(used().0, 2, "{point:?} {nth}: only the first session is left");
            }
        }
        assert!(failures > 10, "{failures}");
        drop(s);
        assert_eq!(used(), (0, 0));
    }
}
