//! Models with recurrent layers against themselves: whatever a session went through, it goes on as a fresh one with the same tokens does.

use std::ops::ControlFlow;
use std::sync::Arc;

use doppler::Error;
use doppler::format::Gguf;
use doppler::gpu::{AdapterChoice, Budget, Features, GpuOptions, Guard, GuardMode, MemoryClass, Phase, Scope};
use doppler::model::{self, Engine, EngineOptions, KvType, ProbeOptions, Sequence, Stop, arch};
use doppler::sample::SamplingOptions;
use doppler::session::{Context, FinishReason, GenerateOptions, Model, ModelOptions, Session, SessionOptions};

use crate::common::*;

/// One of each kind of recurrence.
const FAMILIES: [&str; 3] = ["lfm2", "qwen35", "granitehybrid"];

/// Margins below which two ways of computing the same may choose differently.
const NEAR: f64 = 2e-3;

/// Places that a sequence is promised.
const PLACES: u32 = 3;

fn models(n_ctx: u32, chunk: u32, guard: Guard) -> Vec<Model> {
    let Some(context) = context(Features::ALL, guard) else { return Vec::new() };
    let dirs = FAMILIES.iter().filter_map(|f| shared(&format!("golden/{f}")));
    dirs.map(|dir| load(&context, &dir.join("model-f16.gguf"), KvType::F32, n_ctx, chunk)).collect()
}

fn ids(n: u32) -> Vec<u32> {
    (0..n).map(|i| 20 + i * 37 % 900).collect()
}

fn open(model: &Model, tokens_per_submit: u32) -> Session {
    model.open_session(&SessionOptions { tokens_per_submit, ..Default::default() }).expect("session")
}

fn told(model: &Model, ids: &[u32]) -> Session {
    let mut s = open(model, 4);
    s.append_tokens(ids).expect("append");
    s
}

#[track_caller]
fn like_fresh(s: &mut Session, n: u32) {
    let (tokens, model) = (s.tokens().to_vec(), s.model().clone());
    let mut fresh = told(&model, &tokens);
    let (a, b) = (generate(s, &greedy(n)), generate(&mut fresh, &greedy(n)));
    assert_eq!(a.len(), n as usize, "{}", model.info().architecture);
    assert_same_greedy(&model, &tokens, &a, &b, NEAR);
}

/// Nothing is left over.
#[track_caller]
fn clean(model: &Model) {
    let stats = model.stats();
    assert_eq!((stats.kv.used, stats.recurrent.used), (0, 0), "{}", model.info().architecture);
}

#[test]
fn sessions_taken_back_to_any_place() {
    for model in models(256, 16, Guard::default()) {
        for (prompt, said) in [(1u32, 3u32), (16, 9), (45, 21)] {
            for place in (0..prompt + said).step_by(if prompt > 20 { 7 } else { 3 }) {
                let mut s = told(&model, &ids(prompt));
                generate(&mut s, &greedy(said));
                s.truncate(place).expect("truncate");
                // What still counts is a state that there was: not more than asked for, and evaluated again from there.
                assert!(s.stats().cached_tokens <= place);
                s.append_tokens(&ids(place + 9)[place as usize..]).expect("append");
                like_fresh(&mut s, 6);
            }
        }
        // The same prompt once more: only its last piece is evaluated again, and nothing of what was there is lost when nothing is said.
        let mut s = told(&model, &ids(45));
        let want = generate(&mut s, &greedy(12));
        let before = s.stats().prefill_tokens;
        s.truncate(45).expect("truncate");
        assert_eq!(generate(&mut s, &greedy(12)), want);
        assert_eq!(s.stats().prefill_tokens - before, 45 - 32, "from the state before the prompt's last chunk");
        // Going on costs no token twice.
        let before = s.stats().prefill_tokens;
        s.append_tokens(&ids(5)).expect("append");
        generate(&mut s, &greedy(2));
        assert_eq!(s.stats().prefill_tokens - before, 6);
        s.reset();
        assert_eq!((s.stats().cached_tokens, model.stats().recurrent.used), (0, 0));
        s.append_tokens(&ids(45)).expect("append");
        assert_eq!(generate(&mut s, &greedy(12)), want);
        drop(s);
        clean(&model);
    }
}

#[test]
fn forks_share_states_and_go_their_own_ways() {
    for model in models(256, 16, Guard { mode: GuardMode::Strict, ..Guard::default() }) {
        for n in [1u32, 16, 45] {
            let mut parent = told(&model, &ids(n));
            generate(&mut parent, &greedy(9));
            let used = model.stats().recurrent.used;
            let mut child = parent.fork().expect("fork");
            assert_eq!(model.stats().recurrent.used, used, "nothing is copied");
            assert_eq!(child.stats().cached_tokens, parent.stats().cached_tokens);
            parent.append_tokens(&ids(5)).expect("append");
            child.append_tokens(&ids(12)[4..]).expect("append");
            like_fresh(&mut parent, 6);
            like_fresh(&mut child, 6);
            let mut third = child.fork().expect("fork");
            third.truncate(n / 2 + 1).expect("truncate");
            like_fresh(&mut third, 6);
            drop(child);
            like_fresh(&mut parent, 3);
            parent.reset();
            like_fresh(&mut third, 3);
        }
        clean(&model);
    }
}

#[test]
fn snapshots_carry_states() {
    for (model, elsewhere) in models(256, 16, Guard::default()).into_iter().zip(models(128, 7, Guard::default())) {
        for n in [1u32, 16, 45] {
            let mut s = told(&model, &ids(n));
            generate(&mut s, &greedy(5));
            let bytes = s.snapshot().expect("snapshot");
            assert_eq!(bytes.len() as u64, s.snapshot_bytes().expect("size"));
            assert!(bytes.len() as u64 > model.stats().recurrent.place_bytes);
            let want = generate(&mut s, &greedy(10));
            s.restore(&bytes).expect("restore");
            let evaluated = s.stats().prefill_tokens;
            assert_eq!(generate(&mut s, &greedy(10)), want, "restored");
            assert_eq!(s.stats().prefill_tokens, evaluated + 1, "only the token that was drawn last");
            let mut other = told(&elsewhere, &ids(33)[12..]);
            generate(&mut other, &greedy(3));
            other.restore(&bytes).expect("restore");
            assert_eq!(generate(&mut other, &greedy(10)), want, "elsewhere");
            like_fresh(&mut other, 3);
            let mut bent = bytes.clone();
            let last = bent.len() - 3;
            bent[last] ^= 1;
            assert!(matches!(other.restore(&bent), Err(Error::InvalidArgument(_))), "a damaged state");
        }
        let mut s = open(&model, 1);
        let empty = s.snapshot().expect("snapshot");
        assert!((empty.len() as u64) < model.stats().recurrent.place_bytes);
        s.restore(&empty).expect("restore");
        assert_eq!(s.stats().cached_tokens, 0);
        drop(s);
        clean(&model);
    }
}

/// Whatever ends a text within a batch of tokens, the states are those of the tokens that count.
#[test]
fn texts_that_end_within_a_batch() {
    for model in models(256, 16, Guard::default()) {
        let prompt = ids(21);
        let want = generate(&mut told(&model, &prompt), &greedy(24));
        for (per_submit, at) in [(1u32, 6usize), (4, 1), (4, 6), (16, 2), (16, 15)] {
            let text = model.tokenizer().decode(&want[at..=at], true).expect("decode");
            let mut s = open(&model, per_submit);
            s.append_tokens(&prompt).expect("append");
            let options = GenerateOptions { stop: vec![text.clone()], render_special: true, ..greedy(24) };
            let out = s.generate(&options, &mut |_| ControlFlow::Continue(())).expect("generate");
            assert_eq!(out.reason, FinishReason::StopString, "{text:?}");
            assert_eq!(out.tokens, want[..out.tokens.len()]);
            let mut fork = s.fork().expect("fork");
            let bytes = s.snapshot().expect("snapshot");
            // With more text behind it, and without.
            s.append_tokens(&ids(3)).expect("append");
            like_fresh(&mut s, 7);
            like_fresh(&mut fork, 7);
            s.restore(&bytes).expect("restore");
            like_fresh(&mut s, 7);
            // The caller has had enough.
            let mut s = open(&model, per_submit);
            s.append_tokens(&prompt).expect("append");
            let mut left = at;
            let mut enough = |_: &_| match left {
                0 => ControlFlow::Break(()),
                _ => {
                    left -= 1;
                    ControlFlow::Continue(())
                }
            };
            let out = s.generate(&greedy(24), &mut enough).expect("generate");
            assert_eq!((out.reason, out.tokens.as_slice()), (FinishReason::Callback, &want[..=at]));
            like_fresh(&mut s, 7);
            // Cancelled from inside: what was drawn is delivered, the batch after it is not begun.
            let mut s = open(&model, per_submit);
            s.append_tokens(&prompt).expect("append");
            let cancel = s.cancel_handle();
            let out = s.generate(&greedy(24), &mut |_| {
                cancel.cancel();
                ControlFlow::Continue(())
            });
            assert_eq!(out.expect("generate").reason, FinishReason::Cancelled);
            like_fresh(&mut s, 7);
        }
        clean(&model);
    }
}

/// A batch that its guard refuses leaves the session where it was.
#[test]
fn refused_batches_leave_states_behind() {
    for model in models(128, 16, Guard::default()) {
        let mut s = told(&model, &ids(21));
        generate(&mut s, &greedy(3));
        let none = Budget { submits: 0, ..Budget::PRODUCTION };
        for guard in [
            Guard { mode: GuardMode::Strict, decode: none, ..Guard::default() },
            Guard { mode: GuardMode::Strict, prefill: none, ..Guard::default() },
        ] {
            s.set_guard(Some(guard));
            let refused = s.generate(&greedy(9), &mut |_| ControlFlow::Continue(()));
            assert!(matches!(refused, Err(Error::Guard(_))), "{refused:?}");
            s.set_guard(None);
            s.fork().expect("what is evaluated can be forked");
            like_fresh(&mut s, 6);
        }
    }
}

fn engine(context: &Context, family: &str) -> Option<Engine> {
    let file = Gguf::open(&shared(&format!("golden/{family}"))?.join("model-f16.gguf")).expect("open");
    let spec = Arc::new(arch::read_spec(&file).expect("spec"));
    let options = EngineOptions { n_ctx: 128, chunk: 16, kv_type: KvType::F32, exact: true };
    Some(model::load(context.gpu(), &file, spec, options, &mut |_, _| Ok(())).expect("load"))
}

/// One sequence of a batch.
struct Speaker {
    sequence: Sequence,
    tokens: Vec<u32>,
    cached: u32,
    stopped: bool,
}

impl Speaker {
    /// With a prompt of its own.
    fn begin(engine: &mut Engine, seed: u32, stop_ids: &[u32], scope: &Scope) -> Self {
        let mut sequence = engine.open(128, scope).expect("open");
        let mut tokens = ids(9 + seed * 5 % 23);
        tokens.iter_mut().for_each(|t| *t = (*t + 101 * seed) % 1000);
        let (n, draws) = (tokens.len() as u32, SamplingOptions::greedy());
        engine.configure(&mut sequence, &draws, stop_ids, scope).expect("configure");
        let last = (n - 1) / 16 * 16;
        if last > 0 {
            engine.prefill(&mut sequence, &tokens[..last as usize], 0, scope).expect("prefill");
        }
        let rest = &tokens[last as usize..];
        let drawn = engine.prefill_and_draw(&mut sequence, rest, last, 127, None, scope).expect("draw");
        tokens.push(drawn.token);
        Self { sequence, tokens, cached: n, stopped: drawn.stop != Stop::Running }
    }
}

fn decode(engine: &mut Engine, speakers: &mut [Speaker], tokens: u32, scope: &Scope) {
    let positions: Vec<u32> = speakers.iter().map(|s| s.cached).collect();
    let mut sequences: Vec<&mut Sequence> = speakers.iter_mut().map(|s| &mut s.sequence).collect();
    let steps = engine.decode(&mut sequences, &positions, tokens, tokens, scope).expect("decode");
    for step in steps {
        for (s, drawn) in speakers.iter_mut().zip(step) {
            let Some(drawn) = drawn else {
                assert!(s.stopped);
                continue;
            };
            s.tokens.push(drawn.token);
            s.cached += 1;
            s.stopped = drawn.stop != Stop::Running;
        }
    }
}

/// Sequences side by side, some of which stop within a batch and before it, say what they say alone; those that stopped go on from there.
#[test]
fn batches_of_sequences_that_stop() {
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let scope = context.gpu().scope(Phase::Other);
    for family in FAMILIES {
        let Some(mut engine) = engine(&context, family) else { return };
        let alone = |engine: &mut Engine, seed: u32| {
            let mut s = [Speaker::begin(engine, seed, &[], &scope)];
            (0..24).for_each(|_| decode(engine, &mut s, 1, &scope));
            let [s] = s;
            engine.close(s.sequence);
            s.tokens
        };
        let texts: Vec<Vec<u32>> = (0..6).map(|seed| alone(&mut engine, seed)).collect();
        let start = |seed: u32| (9 + seed * 5 % 23) as usize;
        for per_submit in [5u32, 16] {
            // Every second one stops at its fifth token, in the first batch.
            let stop = |seed: u32| texts[seed as usize][start(seed) + 4];
            let begin = |engine: &mut Engine, seed: u32| {
                let ids = if seed % 2 == 1 { vec![stop(seed)] } else { vec![] };
                Speaker::begin(engine, seed, &ids, &scope)
            };
            let mut all: Vec<Speaker> = (0..6).map(|seed| begin(&mut engine, seed)).collect();
            decode(&mut engine, &mut all, per_submit, &scope);
            decode(&mut engine, &mut all, 3, &scope);
            for (seed, mut s) in all.into_iter().enumerate() {
                let want = &texts[seed];
                assert_eq!(s.tokens, want[..s.tokens.len()], "{family} {seed}");
                if seed % 2 == 1 {
                    assert!(s.stopped && s.tokens.len() <= start(seed as u32) + 5, "{family} {seed}");
                }
                assert!(engine.keeps(&s.sequence, s.cached), "{family} {seed}: the state is that of the tokens");
                // On from where it is, the last token drawn first.
                engine.configure(&mut s.sequence, &SamplingOptions::greedy(), &[], &scope).expect("configure");
                let last = &s.tokens[s.cached as usize..];
                assert_eq!(last.len(), 1);
                let next = engine.prefill_and_draw(&mut s.sequence, last, s.cached, 127, None, &scope).expect("draw");
                assert_eq!(Some(&next.token), want.get(s.tokens.len()), "{family} {seed}");
                engine.close(s.sequence);
            }
            assert_eq!((engine.kv_stats().used, engine.recurrent_stats().used), (0, 0));
        }
    }
}

/// A state cannot be skipped or used twice: evaluating at another place is refused.
#[test]
fn evaluation_goes_on_from_a_state() {
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let Some(mut engine) = engine(&context, "qwen35") else { return };
    let scope = context.gpu().scope(Phase::Other);
    let mut s = engine.open(128, &scope).expect("open");
    engine.prefill(&mut s, &ids(10), 0, &scope).expect("prefill");
    engine.prefill(&mut s, &ids(10), 10, &scope).expect("prefill");
    assert!(engine.keeps(&s, 20) && engine.keeps(&s, 10) && engine.keeps(&s, 0) && !engine.keeps(&s, 15));
    assert!(engine.prefill(&mut s, &[5], 15, &scope).is_err());
    assert!(engine.fork(&s, &ids(15), &scope).is_err());
    assert_eq!(engine.truncate(&mut s, 15), 10);
    assert!(!engine.keeps(&s, 20));
    engine.prefill(&mut s, &[5], 10, &scope).expect("prefill");
    assert_eq!(engine.truncate(&mut s, 9), 0);
    assert_eq!(engine.recurrent_stats().used, 0);
    engine.close(s);
}

/// States are part of what a model takes on the device, and of the budget.
#[test]
fn states_are_counted() {
    for model in models(128, 16, Guard::default()) {
        let kv = |m: &Model| m.context().stats().memory.current[MemoryClass::Kv as usize];
        let before = kv(&model);
        let sessions: Vec<Session> = (0..5).map(|_| open(&model, 1)).collect();
        let stats = model.stats();
        let r = stats.recurrent;
        assert_eq!((r.places, r.used), (5 * PLACES, 0));
        assert_eq!(r.bytes, u64::from(r.places) * r.place_bytes);
        // Block tables are small beside them.
        let more = kv(&model) - before;
        let cache = r.bytes + stats.kv.bytes;
        assert!((cache..cache + 8192).contains(&more), "{more} bytes, {cache} of states, keys and values");
        drop(sessions);
        let mut s = told(&model, &ids(40));
        generate(&mut s, &greedy(9));
        let r = model.stats().recurrent;
        assert!(r.used <= PLACES && r.high_water <= PLACES, "{r:?}");
        assert!(r.summary().contains(&r.bytes.to_string()), "{}", r.summary());
    }
    // A budget that has room for one sequence.
    let Some(dir) = shared("golden/qwen35") else { return };
    let Some(plain) = context(Features::ALL, Guard::default()) else { return };
    let path = dir.join("model-f16.gguf");
    let one = load(&plain, &path, KvType::F32, 128, 16);
    let s = open(&one, 1);
    let memory_budget = plain.stats().memory.total;
    drop((s, one));
    let options = GpuOptions {
        adapter: AdapterChoice { allow_software: true, ..Default::default() },
        memory_budget,
        ..Default::default()
    };
    let context = Context::open(&options).expect("context");
    let model = load(&context, &path, KvType::F32, 128, 16);
    let mut s = told(&model, &ids(40));
    let want = generate(&mut s, &greedy(4));
    let before = (model.stats().kv, model.stats().recurrent);
    for _ in 0..3 {
        assert!(matches!(s.fork(), Err(Error::OutOfMemory(_))));
    }
    assert_eq!((model.stats().kv, model.stats().recurrent), before);
    s.truncate(40).expect("truncate");
    assert_eq!(generate(&mut s, &greedy(4)), want);
}

/// The production budgets hold: steady decode makes no buffer, bind group or pipeline.
#[test]
fn strict_guards_pass() {
    let Some(context) = context(Features::ALL, Guard::PRODUCTION) else { return };
    for family in FAMILIES {
        let Some(dir) = shared(&format!("golden/{family}")) else { return };
        for prewarm in [true, false] {
            let options = ModelOptions {
                n_ctx: 128,
                prefill_chunk: 8,
                kv_type: KvType::F16,
                prewarm,
                exact: false,
                quantize: None,
            };
            let model = context.load_model(&dir.join("model-f16.gguf"), &options, &mut |_, _| Ok(())).expect("load");
            let mut s = told(&model, &ids(21));
            let want = generate(&mut s, &greedy(9));
            let mut others = Vec::new();
            s.reset();
            s.append_tokens(&ids(21)).expect("append");
            let out = s.generate(&greedy(9), &mut |_| {
                others.push(open(&model, 1));
                context.purge_caches();
                ControlFlow::Continue(())
            });
            assert_eq!(out.expect("generate").tokens, want, "{family}: others came meanwhile");
        }
    }
}

/// Probes see the points of recurrent layers, once each a layer and submit, and change nothing.
#[test]
fn probes_see_recurrent_layers() {
    for model in models(128, 64, Guard::default()) {
        let plain = generate(&mut told(&model, &ids(21)), &greedy(4));
        let mut s = told(&model, &ids(21));
        s.set_probe(Some(ProbeOptions::default())).expect("probe");
        assert_eq!(generate(&mut s, &greedy(4)), plain);
        let readings = s.take_readings();
        let seen = |point: &str| readings.iter().filter(|r| r.point.name == point).count();
        let recurrent = model.spec().layers.iter().filter(|l| l.recurrent().is_some());
        let scans = recurrent.clone().filter(|l| l.recurrent().is_some_and(|m| m.scan.is_some())).count();
        // The prompt and three decode steps.
        assert_eq!(seen("mix.in"), 4 * recurrent.count());
        assert_eq!([seen("mix.conv"), seen("mix.scan")], [4 * scans; 2]);
        assert_eq!(seen("attn.heads"), 4 * model.spec().layers.len());
        assert_eq!(seen("attn.q"), 4 * model.spec().attentions().count());
        assert!(readings.iter().all(|r| r.stats.is_none_or(|s| s.sound())));
    }
}
