//! Failures injected at every step of generating: nothing leaks, nothing is counted that did not happen, and the session goes on.

use std::ops::ControlFlow;

use doppler::Error;
use doppler::gpu::{FaultPoint, Features, Guard, Phase};
use doppler::model::KvType;
use doppler::sample::SamplingOptions;
use doppler::session::{GenerateOptions, ModelOptions, Session, SessionOptions};

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

#[test]
fn a_failure_at_any_step_of_generating_leaves_everything_consistent() {
    for features in [Features::ALL, Features { immediates: false, ..Features::ALL }] {
        let Some(context) = context(features, Guard::default()) else { return };
        let gpu = context.gpu().clone();
        let options = ModelOptions { n_ctx: 96, prefill_chunk: 8, kv_type: KvType::F16, prewarm: true };
        let model = context.load_model(&asset(), &options, &mut |_, _| Ok(())).unwrap();
        let open = || {
            let mut s = model.open_session(&SessionOptions { tokens_per_submit: 2, ..Default::default() }).unwrap();
            s.append_text("Once upon a time there was a little mouse who", false).unwrap();
            s
        };
        let (want, ended) = generate(&mut open(), TOKENS);
        ended.unwrap();
        let prompt = open().tokens().len();
        assert!(prompt > 8, "more than one chunk");
        let (live, used) = (gpu.memory().snapshot().live_buffers, model.stats().kv.used);
        assert_eq!(used, 0);
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
                assert_eq!(model.stats().kv.used, 0, "{what}: all blocks came back");
                gpu.pool().trim();
                assert!(gpu.memory().snapshot().live_buffers <= live, "{what}: no buffer is left over");
            }
        }
        // At least: a prompt of two chunks and three decode batches, each with a submit and a wait, and four readbacks.
        assert!(failures >= 2 * 5 + 4, "{failures} failures were injected");
    }
}
