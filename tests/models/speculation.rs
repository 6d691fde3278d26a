//! Drafts change nothing but the number of submits: tokens, text, ends and states are those of plain decoding.

use std::ops::ControlFlow;
use std::path::PathBuf;

use doppler::Error;
use doppler::gpu::{FaultPoint, Features, Guard, Phase};
use doppler::model::KvType;
use doppler::sample::SamplingOptions;
use doppler::session::{
    Context, DraftSource, FinishReason, GenerateOptions, Generated, Message, Model, ModelOptions, Session,
    SessionOptions, Speculation, SpeculationStats,
};

use crate::common::*;

/// Drafts as many tokens as said, always.
fn fixed(source: DraftSource, max_draft: u32) -> Speculation {
    Speculation { source, max_draft, adaptive: false }
}

fn lookup(min: u32, max: u32) -> DraftSource {
    DraftSource::Lookup { min, max }
}

fn open(model: &Model, n_ctx: u32, tokens_per_submit: u32, speculation: Option<Speculation>) -> Session {
    let options = SessionOptions { n_ctx, tokens_per_submit, speculation, ..Default::default() };
    model.open_session(&options).expect("session")
}

fn load_fast(context: &Context, file: &std::path::Path, kv_type: KvType) -> Model {
    let options = ModelOptions { n_ctx: 512, prefill_chunk: 64, kv_type, ..Default::default() };
    context.load_model(file, &options, &mut |_, _| Ok(())).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

fn run(s: &mut Session, options: &GenerateOptions) -> Generated {
    s.generate(options, &mut |_| ControlFlow::Continue(())).expect("generate")
}

fn random(max_tokens: u32, seed: u64) -> GenerateOptions {
    let sampling = SamplingOptions {
        temperature: 1.0,
        top_k: 0,
        top_p: 0.95,
        min_p: 0.0,
        seed,
        repeat_penalty: 1.2,
        frequency_penalty: 0.1,
        presence_penalty: 0.1,
        penalty_last_n: 20,
        ..Default::default()
    };
    GenerateOptions { max_tokens, sampling, ignore_eos: true, ..Default::default() }
}

/// A text that repeats itself, and one that does not.
fn prompts(vocab: u32) -> [Vec<u32>; 2] {
    let word = |i: u32| 3 + i * 71 % (vocab - 3);
    [(0..90).map(|i| word(i % 9)).collect(), (0..70).map(word).collect()]
}

/// A model that is not quite the given one: the feed-forward block of its last layer but one is off.
fn worse(context: &Context, file: &std::path::Path, kv: KvType) -> Model {
    let changed = rewrite(file, "worse", |tensors| {
        let mut layers: Vec<String> =
            tensors.iter().map(|t| t.0.clone()).filter(|n| n.ends_with("attn_output.weight")).collect();
        layers.sort();
        let last = layers.last().expect("a layer").clone();
        tensors.iter_mut().filter(|t| t.0 == last).for_each(|t| t.3.fill(0));
    });
    let model = load_fast(context, &changed, kv);
    std::fs::remove_file(&changed).expect("remove");
    model
}

fn families() -> Vec<(String, PathBuf)> {
    let some = if long_tests() { 5 } else { 2 };
    let golden = ["gemma3", "qwen3moe", "llama3", "gpt-oss", "phi3"].into_iter().take(some).filter_map(|f| {
        let file = shared(&format!("golden/{f}"))?.join("model-f16.gguf");
        Some((f.to_string(), file))
    });
    let hearth = shared("models/hearth").map(|d| ("hearth Q4_K_M".to_string(), d.join("hearth-5m-Q4_K_M.gguf")));
    let hearth = hearth.filter(|_| long_tests());
    [("hearth".to_string(), shallow())].into_iter().chain(golden).chain(hearth).collect()
}

#[test]
fn greedy_and_drawn_tokens_are_those_of_plain_decoding() {
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let mut looked_up = 0;
    for (name, file) in families() {
        let model = load_fast(&context, &file, KvType::F16);
        let other = worse(&context, &file, KvType::F16);
        for (p, prompt) in prompts(model.info().n_vocab.min(1000)).into_iter().enumerate() {
            for options in [greedy(24), random(24, 11)] {
                let mut plain = open(&model, 0, 1, None);
                plain.append_tokens(&prompt).unwrap();
                let want = run(&mut plain, &options).tokens;
                let check = |how: Speculation, per_submit: u32| -> SpeculationStats {
                    let what = format!("{name}, prompt {p}, {how:?}, temperature {}", options.sampling.temperature);
                    let mut s = open(&model, 0, per_submit, Some(how));
                    s.append_tokens(&prompt).unwrap();
                    assert_eq!(run(&mut s, &options).tokens, want, "{what}");
                    let stats = s.stats();
                    assert_eq!(stats.generated_tokens, 24, "{what}");
                    assert_eq!(
                        (stats.tokens, stats.cached_tokens),
                        (prompt.len() as u32 + 24, prompt.len() as u32 + 23)
                    );
                    stats.speculation
                };
                // The first prompt's greedy text needs all forms, others some only: rows have the same logits.
                let all = options.sampling.temperature == 0.0 && (p == 0 || long_tests());
                for k in [7, 1, 3, 15].into_iter().take(if all { 4 } else { 1 }) {
                    let found = check(fixed(lookup(1, 3), k), 1);
                    assert!(found.accepted <= found.drafted, "{name}: {found:?}");
                    looked_up += found.accepted;
                }
                for k in [15, 3].into_iter().take(if all { 2 } else { 1 }) {
                    let found = check(fixed(DraftSource::Model(other.clone()), k), 1);
                    println!("{name}, prompt {p}, {k} drafts of a worse model: {found:?}");
                }
                if !all {
                    continue;
                }
                check(Speculation::lookup(3), 4);
                let same = check(fixed(DraftSource::Model(model.clone()), 3), 1);
                assert_eq!((same.accepted, same.verifications), (same.drafted, 6), "{name}: {same:?}");
                check(Speculation::draft_model(&other), 4);
            }
        }
    }
    assert!(looked_up > 0, "no text repeats itself");
}

/// The model of the repository, where something lasts that long that it matters.
fn hearth(guard: Guard) -> Option<(Context, Model)> {
    let context = context(Features::ALL, guard)?;
    let model = load_fast(&context, &asset(), KvType::F16);
    Some((context, model))
}

/// As quick as may be, where what is said does not matter.
fn babbling(guard: Guard) -> Option<(Context, Model)> {
    let context = context(Features::ALL, guard)?;
    let model = load_fast(&context, &shallow(), KvType::F16);
    Some((context, model))
}

/// Draws one token, whatever the model says.
fn forced(token: u32, max_tokens: u32) -> GenerateOptions {
    let mut options = greedy(max_tokens);
    options.sampling.logit_bias = vec![(token, 1000.0)];
    options
}

#[test]
fn figures_are_exact_where_they_can_be_known() {
    let Some((_context, model)) = hearth(Guard::PRODUCTION) else { return };
    let stats = |prompt: &[u32], how: Speculation, options: &GenerateOptions| {
        let mut s = open(&model, 0, 1, Some(how));
        s.append_tokens(prompt).unwrap();
        let before = *s.stats().counters.phase(Phase::Decode);
        run(&mut s, options);
        let stats = s.stats();
        let cost = stats.counters.phase(Phase::Decode).since(&before);
        assert_eq!((cost.buffers, cost.bind_groups, cost.pipelines), (0, 0, 0), "made in decoding");
        (stats.speculation, cost.submits, cost.required_readback_bytes(), stats.summary())
    };
    // Eight tokens a verification after the first.
    let (found, submits, bytes, text) = stats(&[5, 6, 9, 9, 9], fixed(lookup(2, 4), 7), &forced(9, 25));
    let want = SpeculationStats { drafted: 21, accepted: 21, verifications: 3, ..found };
    assert_eq!((found, submits), (want, 3));
    assert!(bytes <= 3 * 8 * 8, "{bytes} bytes read back");
    assert_eq!((found.acceptance(), found.mean_accepted()), (1.0, 7.0));
    assert!(text.contains("drafts: 21 of 21 tokens accepted (100 %) in 3 verifications, 7.00 each"), "{text}");
    // The first draft is what followed in the prompt, and wrong; the others are right.
    let (found, submits, ..) = stats(&[9, 50, 60], fixed(lookup(1, 1), 1), &forced(9, 8));
    assert_eq!((found, submits), (SpeculationStats { drafted: 4, accepted: 3, verifications: 4, ..found }, 4));
    // The last one drafts no more than may be drawn.
    let (found, ..) = stats(&[9, 9, 9], fixed(lookup(1, 1), 7), &forced(9, 12));
    assert_eq!(found, SpeculationStats { drafted: 7 + 2, accepted: 9, verifications: 2, ..found });
    // Nothing to be found.
    let (found, submits, ..) = stats(&[5, 6, 7, 8], fixed(lookup(3, 3), 7), &greedy(3));
    assert_eq!((found, submits), (SpeculationStats { draft_ns: found.draft_ns, ..Default::default() }, 2));
    // A model that drafts for itself is always right; each verification costs a submit and a readback, and so does each draft.
    let (found, submits, ..) = stats(&[5, 6, 7, 8], fixed(DraftSource::Model(model.clone()), 3), &greedy(21));
    assert_eq!((found.drafted, found.accepted, found.verifications, submits), (15, 15, 5, 10));
    assert!(found.draft_ns > 0);
}

/// Events, as they came.
fn heard(s: &mut Session, options: &GenerateOptions, most: usize) -> (Vec<(u32, String)>, Generated) {
    let mut events = Vec::new();
    let generated = s.generate(options, &mut |e| {
        events.push((e.token, e.text.clone()));
        if events.len() == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    (events, generated.expect("generate"))
}

fn kinds(model: &Model) -> Vec<Option<Speculation>> {
    let own = DraftSource::Model(model.clone());
    vec![
        None,
        Some(fixed(lookup(1, 3), 7)),
        Some(fixed(own.clone(), 15)),
        Some(fixed(own, 3)),
        Some(Speculation::lookup(2)),
        Some(Speculation::draft_model(model)),
    ]
}

/// Everything that can end a generation, in the middle of accepted drafts too.
#[test]
fn ends_are_those_of_plain_decoding() {
    let Some((_context, model)) = hearth(Guard::PRODUCTION) else { return };
    let ask = |n_ctx: u32, how: &Option<Speculation>, text: &str| {
        let mut s = open(&model, n_ctx, 1, how.clone());
        s.append_messages(&[Message::new("user", text)], true).unwrap();
        s
    };
    let question = "Tell me a story about a fox and a lantern.";
    let some = |i: &usize| long_tests() || i.is_multiple_of(2);
    let kinds: Vec<_> = kinds(&model).into_iter().enumerate().filter(|(i, _)| some(i)).map(|k| k.1).collect();
    let mut all = Vec::new();
    for how in &kinds {
        let mut seen = Vec::new();
        // An end token, after which the conversation goes on.
        let mut s = ask(0, how, question);
        let said = heard(&mut s, &GenerateOptions { sampling: SamplingOptions::greedy(), ..Default::default() }, 0);
        assert_eq!(said.1.reason, FinishReason::EndToken);
        let text = said.1.text.clone();
        seen.push(said);
        s.append_messages(&[Message::new("user", "And then?")], true).unwrap();
        seen.push(heard(&mut s, &greedy(20), 0));
        // A stop string from the middle.
        let words: Vec<&str> = text.split(' ').collect();
        let stop = words[words.len() / 2..][..2].join(" ");
        let mut options = greedy(200);
        options.stop = vec!["no such text".into(), stop];
        let mut s = ask(0, how, question);
        seen.push(heard(&mut s, &options, 0));
        assert_eq!(seen[2].1.stop_string, Some(1));
        seen.push(heard(&mut s, &greedy(9), 0));
        // The callback, at every place; and on from there.
        for n in if long_tests() { vec![1, 2, 3, 5, 8, 11] } else { vec![1, 3, 8] } {
            let mut s = ask(0, how, question);
            seen.push(heard(&mut s, &greedy(20), n));
            assert_eq!(seen.last().expect("one").1.reason, FinishReason::Callback);
            seen.push(heard(&mut s, &greedy(5), 0));
        }
        // The context's end, and lengths up to a few.
        let full = ask(0, how, question).tokens().len() as u32;
        for room in [1, 2, 3, 9] {
            let mut s = ask(full + room, how, question);
            seen.push(heard(&mut s, &greedy(0), 0));
            assert_eq!(
                (seen.last().expect("one").1.reason, s.tokens().len() as u32),
                (FinishReason::ContextFull, full + room)
            );
        }
        for n in [1, 2, 4, 5] {
            seen.push(heard(&mut ask(0, how, question), &greedy(n), 0));
        }
        all.push(seen);
    }
    for (seen, how) in all.iter().zip(&kinds).skip(1) {
        for (i, (got, want)) in seen.iter().zip(&all[0]).enumerate() {
            assert_eq!(got, want, "{how:?}: generation {i}");
        }
    }
}

#[test]
fn a_request_to_cancel_ends_it_within_a_submit() {
    let Some((_context, model)) = hearth(Guard::default()) else { return };
    for how in kinds(&model).into_iter().flatten() {
        let mut plain = open(&model, 0, 1, None);
        let mut s = open(&model, 0, 1, Some(how.clone()));
        for s in [&mut plain, &mut s] {
            s.append_text("Once upon a time", false).unwrap();
        }
        let cancel = s.cancel_handle();
        let mut n = 0;
        let out = s
            .generate(&greedy(60), &mut |_| {
                n += 1;
                if n == 5 {
                    cancel.cancel();
                }
                ControlFlow::Continue(())
            })
            .expect("generate");
        assert_eq!(out.reason, FinishReason::Cancelled, "{how:?}");
        assert!((5..5 + 16).contains(&out.tokens.len()), "{how:?}: {} tokens", out.tokens.len());
        let want = run(&mut plain, &greedy(out.tokens.len() as u32));
        assert_eq!(out.tokens, want.tokens, "{how:?}");
        assert_eq!(run(&mut s, &greedy(10)).tokens, run(&mut plain, &greedy(10)).tokens, "{how:?}: and on");
    }
}

/// Going back, forks and snapshots: the drafter follows.
#[test]
fn sessions_go_back_and_fork_as_without_drafts() {
    let Some((_context, model)) = hearth(Guard::default()) else { return };
    let story = |s: &mut Session| {
        let mut out = Vec::new();
        s.append_text("The cat sat on the mat. The cat sat on", false).unwrap();
        out.push(run(s, &greedy(12)).tokens);
        s.truncate(s.tokens().len() as u32 - 7).unwrap();
        out.push(run(s, &random(12, 3)).tokens);
        let mut child = s.fork().unwrap();
        let snapshot = s.snapshot().unwrap();
        s.append_text(" the dog sat on", false).unwrap();
        out.push(run(s, &greedy(12)).tokens);
        child.append_text(" The cat", false).unwrap();
        out.push(run(&mut child, &greedy(12)).tokens);
        s.restore(&snapshot).unwrap();
        out.push(run(s, &greedy(12)).tokens);
        s.reset();
        s.append_text("A mouse lived in a clock", false).unwrap();
        out.push(run(s, &greedy(12)).tokens);
        out
    };
    let want = story(&mut open(&model, 0, 1, None));
    for how in kinds(&model).into_iter().flatten() {
        let mut s = open(&model, 0, 1, Some(how.clone()));
        assert_eq!(story(&mut s), want, "{how:?}");
        assert!(how.adaptive || s.stats().speculation.verifications > 0, "{how:?}");
    }
    // Switched on and off between two replies, beside a session that does the same without.
    let (mut s, mut plain) = (open(&model, 0, 1, None), open(&model, 0, 1, None));
    s.set_speculation(Some(&fixed(lookup(1, 3), 7))).unwrap();
    let both = |s: &mut Session| {
        s.append_text("The cat sat on the mat. The cat sat on", false).unwrap();
        run(s, &greedy(12)).tokens
    };
    assert_eq!(both(&mut s), both(&mut plain));
    let verified = s.stats().speculation.verifications;
    assert!(verified > 0);
    s.set_speculation(None).unwrap();
    assert_eq!(both(&mut s), both(&mut plain));
    assert_eq!(s.stats().speculation.verifications, verified);
}

/// Drafts in devices with abilities switched off, under the production guard, when caches are purged and sessions opened in between.
#[test]
fn budgets_hold_whatever_happens_in_between() {
    for (name, features) in feature_sets() {
        let Some(context) = context(features, Guard::PRODUCTION) else { return };
        let model = load_fast(&context, &shallow(), KvType::Q8);
        let mut plain = open(&model, 0, 1, None);
        plain.append_text("Once upon a time there was a little mouse", false).unwrap();
        let want = run(&mut plain, &greedy(20)).tokens;
        for how in kinds(&model).into_iter().flatten() {
            let mut s = open(&model, 0, 1, Some(how.clone()));
            s.append_text("Once upon a time there was a little mouse", false).unwrap();
            let (mut n, mut others) = (0, Vec::new());
            let out = s.generate(&greedy(20), &mut |_| {
                n += 1;
                if n % 7 == 0 {
                    others.push(open(&model, 0, 1, None));
                    context.purge_caches();
                }
                ControlFlow::Continue(())
            });
            assert_eq!(out.unwrap_or_else(|e| panic!("{name}, {how:?}: {e}")).tokens, want, "{name}, {how:?}");
        }
    }
}

#[test]
fn what_cannot_draft_is_refused_with_a_reason() {
    let Some((context, model)) = hearth(Guard::default()) else { return };
    let mut s = open(&model, 0, 1, None);
    let mut refused = |how: Speculation, words: &[&str]| {
        let error = s.set_speculation(Some(&how)).expect_err("refused");
        let text = error.to_string();
        assert!(words.iter().all(|w| text.contains(w)), "{text}");
        error
    };
    refused(fixed(lookup(0, 3), 7), &["n-grams", "0 to 3"]);
    refused(fixed(lookup(4, 3), 7), &["n-grams"]);
    refused(fixed(lookup(1, 65), 7), &["64"]);
    refused(fixed(lookup(1, 3), 16), &["max_draft 16", "15"]);
    // One token of the vocabulary has another text.
    let other = {
        let file = doppler::format::Gguf::open(&asset()).unwrap();
        let tensors =
            file.tensors().iter().map(|t| (t.name.clone(), t.dims.clone(), t.ggml_type, file.data(t).to_vec()));
        let mut writer = doppler::format::GgufWriter::new();
        for (k, v) in file.metadata() {
            let mut v = v.clone();
            if k == "tokenizer.ggml.tokens" {
                let mut tokens = file.require_str_array(k).unwrap().to_vec();
                tokens[1234] = "another".into();
                v = tokens.into();
            }
            writer = writer.key(k, v);
        }
        let writer = tensors.fold(writer, |w, (name, dims, ty, data)| w.tensor(&name, &dims, ty, data));
        let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-vocab.gguf", std::process::id()));
        std::fs::write(&path, writer.to_bytes()).unwrap();
        let model = load_fast(&context, &path, KvType::F16);
        std::fs::remove_file(&path).unwrap();
        model
    };
    let error = refused(Speculation::draft_model(&other), &["token 1234", "\"another\""]);
    assert!(matches!(error, Error::InvalidArgument(_)));
    let Some(golden) = shared("golden") else { return };
    let llama = load_fast(&context, &golden.join("llama3/model-f16.gguf"), KvType::F16);
    refused(Speculation::draft_model(&llama), &["vocabulary"]);
    let hybrid = load_fast(&context, &golden.join("lfm2/model-f16.gguf"), KvType::F16);
    let mut s = open(&hybrid, 0, 1, None);
    for how in [fixed(lookup(1, 3), 7), Speculation::draft_model(&hybrid)] {
        let error = s.set_speculation(Some(&how)).expect_err("refused");
        assert!(matches!(&error, Error::Unsupported(text) if text.contains("lfm2")), "{error}");
    }
    s.append_tokens(&[5, 6, 7]).unwrap();
    assert_eq!(run(&mut s, &greedy(3)).tokens.len(), 3);
}

/// Failures injected at every submit, wait and readback of target and draft model.
#[test]
fn a_failure_at_any_submit_leaves_the_session_where_it_was() {
    let Some((context, model)) = babbling(Guard::default()) else { return };
    let gpu = context.gpu().clone();
    for how in kinds(&model).into_iter().flatten().take(3) {
        let open = || {
            let mut s = open(&model, 0, 1, Some(how.clone()));
            s.append_text("The cat sat on the mat. The cat sat on", false).unwrap();
            s
        };
        let want = run(&mut open(), &random(7, 4)).tokens;
        let mut failures = 0;
        for point in [FaultPoint::Submit, FaultPoint::Wait, FaultPoint::Map] {
            // A regular run takes some of them, a long one all.
            for nth in (1..).step_by(if long_tests() { 1 } else { 3 }) {
                let (mut s, mut first) = (open(), Vec::new());
                let prompt = s.tokens().len();
                gpu.inject_fault(point, nth);
                let outcome = s.generate(&random(7, 4), &mut |e| {
                    first.push(e.token);
                    ControlFlow::Continue(())
                });
                gpu.inject_fault(point, 0);
                let Err(e) = outcome else {
                    assert_eq!(first, want);
                    break;
                };
                failures += 1;
                let what = format!("{how:?}, {point:?} {nth}");
                assert!(matches!(&e, Error::Gpu(m) if m.contains("injected")), "{what}: {e}");
                assert_eq!((s.tokens().len(), &want[..first.len()]), (prompt + first.len(), &first[..]), "{what}");
                let rest = run(&mut s, &random(7 - first.len() as u32, 4)).tokens;
                assert_eq!([first, rest].concat(), want, "{what}");
            }
        }
        assert!(failures >= 6, "{failures} failures were injected");
        assert_eq!(model.stats().kv.used, 0);
    }
}
