//! Failures injected at every step of generating: nothing leaks, nothing is counted that did not happen, and the session goes on.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use doppler::Error;
use doppler::gpu::{FaultPoint, Features, Guard, Phase};
use doppler::model::KvType;
use doppler::sample::SamplingOptions;
use doppler::session::{Context, GenerateOptions, Model, ModelOptions, Session, SessionOptions};

use crate::common::*;

const TOKENS: u32 = 6;

/// Tokens delivered, and how it ended.
fn generate(session: &mut Session, n: u32) -> (Vec<u32>, doppler::Result<()>) {
    let sampling = SamplingOptions { temperature: 0.9, repeat_penalty: 1.1, seed: 5, ..SamplingOptions::default() };
    let options = GenerateOptions { max_tokens: n, sampling, ignore_eos: true, ..Default::default() };
    let mut tokens = Vec::new();
    let outcome = session.generate(&options, &mut |e| {
        tokens.push(e.token);
        ControlFlow::Continue(())
    });
    (tokens, outcome.map(drop))
}

/// The model of the repository, and one of each kind of recurrent layers if present.
fn files() -> Vec<PathBuf> {
    let families = ["lfm2", "qwen35", "granitehybrid"].into_iter();
    let recurrent = families.filter_map(|f| Some(shared(&format!("golden/{f}"))?.join("model-f16.gguf")));
    [shallow()].into_iter().chain(recurrent).collect()
}

#[test]
fn a_failure_at_any_step_of_generating_leaves_everything_consistent() {
    let without = (Features { immediates: false, ..Features::ALL }, shallow());
    for (features, file) in files().into_iter().map(|f| (Features::ALL, f)).chain([without]) {
        let Some(context) = context(features, Guard::default()) else { return };
        let gpu = context.gpu().clone();
        let options = ModelOptions {
            n_ctx: 96,
            prefill_chunk: 8,
            kv_type: KvType::F16,
            prewarm: true,
            exact: false,
            quantize: None,
        };
        let model = context.load_model(&file, &options, &mut |_, _| Ok(())).unwrap();
        let open = || {
            let mut s = model.open_session(&SessionOptions { tokens_per_submit: 2, ..Default::default() }).unwrap();
            s.append_text("Once upon a time there was a little mouse who", false).unwrap();
            s
        };
        let (want, ended) = generate(&mut open(), TOKENS);
        ended.unwrap();
        let prompt = open().tokens().len();
        assert!(prompt > 8, "more than one chunk");
        let live = gpu.memory().snapshot().live_buffers;
        let used = || (model.stats().kv.used, model.stats().recurrent.used);
        assert_eq!(used(), (0, 0));
        let mut failures = 0;
        for point in [FaultPoint::Record, FaultPoint::Submit, FaultPoint::Wait, FaultPoint::Map, FaultPoint::Buffer] {
            // Recording has hundreds of steps, alike in every layer: each seventh meets them all.
            for nth in (1..).step_by(if point == FaultPoint::Record { 7 } else { 1 }) {
                let mut s = open();
                gpu.inject_fault(point, nth);
                let (first, outcome) = generate(&mut s, TOKENS);
                gpu.inject_fault(point, 0);
                let Err(e) = outcome else {
                    assert_eq!(first, want);
                    break;
                };
                failures += 1;
                let what = format!("{point:?} {nth}");
                assert!(matches!(&e, Error::Gpu(m) if m.contains("injected")), "{what}: {e}");
                assert!(gpu.pool().leaks().is_empty(), "{what}: {:?}", gpu.pool().leaks());
                // What was delivered is right, and nothing else is in the session.
                assert_eq!(first, want[..first.len()], "{what}");
                assert_eq!(s.tokens().len(), prompt + first.len(), "{what}");
                let c = s.stats();
                assert!(c.cached_tokens as usize <= s.tokens().len(), "{what}");
                let d = c.counters.phase(Phase::Decode);
                assert!(d.readbacks.iter().sum::<u64>() <= d.submits, "{what}: a readback for each submit at most");
                // The same call from the same place gives the rest: a draw depends on seed and position alone.
                let (rest, outcome) = generate(&mut s, TOKENS - first.len() as u32);
                outcome.unwrap_or_else(|e| panic!("{what}: {e}"));
                assert_eq!([first, rest].concat(), want, "{what}: the session goes on where it was");
                drop(s);
                assert_eq!(used(), (0, 0), "{what}: all blocks and states came back");
                gpu.pool().trim();
                assert!(gpu.memory().snapshot().live_buffers <= live, "{what}: no buffer is left over");
            }
        }
        // At least: a prompt of two chunks and three decode batches, each with a submit and a wait, and four readbacks.
        assert!(failures >= 2 * 5 + 4, "{failures} failures were injected");
    }
}

/// Everything else that takes blocks, slots and buffers: opening, growing, forking, ending to share, snapshots, profiles, evaluating.
fn errand(context: &Context, model: &Model) -> doppler::Result<Vec<u32>> {
    let open = || model.open_session(&SessionOptions::default());
    let mut first = open()?;
    first.append_text("Once upon a time there was a little mouse", false)?;
    generate(&mut first, 3).1?;
    let mut fork = first.fork()?;
    // Writes to a shared block, and asks for blocks that were promised to both.
    fork.append_text(" who", false)?;
    generate(&mut fork, 40).1?;
    let profiled = context.start_profile().is_ok();
    let bytes = fork.snapshot()?;
    let mut third = open()?;
    third.append_text("Another text", false)?;
    third.eval(&[5, 6], &mut |_| Ok(()))?;
    third.restore(&bytes)?;
    assert_eq!(third.tokens(), fork.tokens());
    let (tokens, ended) = generate(&mut third, 4);
    ended?;
    if profiled {
        context.stop_profile()?;
    }
    fork.truncate(7)?;
    generate(&mut fork, 1).1?;
    Ok(tokens)
}

#[test]
fn a_failure_at_any_step_of_forks_and_snapshots_leaves_everything_consistent() {
    // With keys and values alone, and with recurrent states.
    files().iter().take(3).step_by(2).for_each(|file| fail_errands(file));
}

fn fail_errands(file: &Path) {
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let gpu = context.gpu().clone();
    let load = || {
        let options = ModelOptions {
            n_ctx: 96,
            prefill_chunk: 8,
            kv_type: KvType::F16,
            prewarm: false,
            exact: false,
            quantize: None,
        };
        context.load_model(file, &options, &mut |_, _| Ok(())).unwrap()
    };
    let settle = || {
        gpu.pool().trim();
        (gpu.memory().snapshot().live_buffers, gpu.memory().snapshot().total)
    };
    errand(&context, &load()).unwrap();
    let empty = settle();
    let want = errand(&context, &load()).unwrap();
    let mut failures = 0;
    // Thousands of steps are recorded. A regular run takes some of each kind, a long one all that differ.
    let (record, others) = if long_tests() { (97, 1) } else { (997, 7) };
    for point in [FaultPoint::Record, FaultPoint::Submit, FaultPoint::Wait, FaultPoint::Map, FaultPoint::Buffer] {
        for nth in (1..).step_by(if point == FaultPoint::Record { record } else { others }) {
            let model = load();
            gpu.inject_fault(point, nth);
            let outcome = errand(&context, &model);
            gpu.inject_fault(point, 0);
            if let Ok(tokens) = outcome {
                assert_eq!(tokens, want);
                break;
            }
            failures += 1;
            let what = format!("{point:?} {nth}: {outcome:?}");
            // A profile that could not be ended goes on; none is no error here.
            let _ended = context.stop_profile();
            assert!(gpu.pool().leaks().is_empty(), "{what}: {:?}", gpu.pool().leaks());
            let (kv, states) = (model.stats().kv, model.stats().recurrent);
            assert_eq!((kv.used, kv.shared, states.used), (0, 0, 0), "{what}");
            // The model is as good as new.
            assert_eq!(errand(&context, &model).unwrap(), want, "{what}");
            drop(model);
            assert_eq!(settle(), empty, "{what}: buffers and bytes");
        }
    }
    println!("{failures} failures were injected");
    assert!(failures > 20, "{failures} failures were injected");
}
