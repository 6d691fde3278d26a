//! What it takes to end: `bench inference --end-after`. A token that a generation draws ends it when it is drawn again, in the middle of a submit.

use std::ops::ControlFlow;
use std::time::Instant;

use doppler::sample::SamplingOptions;
use doppler::session::{FinishReason, GenerateOptions, Session};
use serde_json::{Value, json};

use super::super::outcome::{Failure, Outcome};
use super::super::report;
use super::inference::{Args, Workload};
use super::stats::median;

/// Milliseconds from the first token to the end, where token number `after` (counted from 1) of `tokens`, a workload's, ends it.
pub(super) fn measure(
    session: &mut Session,
    prompt: &[u32],
    tokens: &[u32],
    after: u32,
    w: &Workload,
    args: &Args,
) -> Outcome<Value> {
    let n = after as usize;
    let before = n.saturating_sub(1);
    let Some(&end) = tokens.get(before).filter(|end| !tokens[..before].contains(end)) else {
        args.say(&format!("{:>10}not ended by token {after}: there is none, or it comes before that, too", ""))?;
        return Ok(Value::Null);
    };
    let options = GenerateOptions {
        max_tokens: w.generate,
        sampling: SamplingOptions::greedy(),
        ignore_eos: true,
        end_tokens: [end].into_iter().chain(args.end_token.iter().copied()).collect(),
        ..Default::default()
    };
    let mut all_ms = Vec::new();
    for _ in 0..args.warmup + args.runs {
        session.reset();
        session.append_tokens(prompt)?;
        let mut first = None;
        let generated = session.generate(&options, &mut |_| {
            first.get_or_insert_with(Instant::now);
            ControlFlow::Continue(())
        })?;
        let took = first.map_or(0, |f| f.elapsed().as_nanos() as u64);
        if generated.tokens != tokens[..n] || generated.reason != FinishReason::EndToken {
            let text = format!("--end-after {after}: ended after {} ({:?})", generated.tokens.len(), generated.reason);
            return Err(Failure::Message(text));
        }
        all_ms.push(report::ms(took));
    }
    let timed = &all_ms[args.warmup as usize..];
    let ms = median(timed.iter().copied());
    args.say(&format!("{:>10}ended by token {after}: {ms:.3} ms after the first", ""))?;
    Ok(json!({ "after": after, "ms_after_first": ms, "runs": timed }))
}
