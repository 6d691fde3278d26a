//! Several sequences decoded together: `bench inference --sequences`.
//!
//! Prompts are evaluated one after the other. Decoding is timed from the arrival of the last prompt's first token to the last token of all.

use std::ops::ControlFlow;
use std::time::Instant;

use doppler::gpu::Phase;
use doppler::sample::SamplingOptions;
use doppler::session::{GenerateOptions, Model, Session, SessionOptions, SessionStats, generate_together};
use serde_json::{Value, json};

use super::super::outcome::Outcome;
use super::super::report;
use super::copy::CopySpeed;
use super::inference::{Args, Workload, bytes_per_token, prompt_ids};
use super::stats::{median, percentile, sorted};

/// What one run took.
struct Run {
    /// Of all sequences, one after the other.
    tokens: Vec<u32>,
    prompts_ns: u64,
    decode_ns: u64,
    decoded: u64,
    /// Milliseconds a step, of each delivered batch.
    step_ms: Vec<f64>,
    /// Of the first session, which took part in every submit of the batch.
    stats: SessionStats,
}

fn one_run(sessions: &mut [Session], prompts: &[Vec<u32>], w: &Workload, args: &Args) -> Outcome<Run> {
    for (s, prompt) in sessions.iter_mut().zip(prompts) {
        s.reset();
        s.reset_stats();
        s.append_tokens(prompt)?;
    }
    let options = GenerateOptions {
        max_tokens: w.generate,
        sampling: SamplingOptions::greedy(),
        ignore_eos: true,
        end_tokens: args.end_token.clone(),
        ..Default::default()
    };
    let all_options = vec![options; sessions.len()];
    let mut members: Vec<&mut Session> = sessions.iter_mut().collect();
    let last = members.len() - 1;
    let (mut prompts_ns, mut end_ns, mut of_first) = (0, 0, Vec::new());
    let started = Instant::now();
    let generated = generate_together(&mut members, &all_options, &mut |i, _| {
        let now = started.elapsed().as_nanos() as u64;
        end_ns = now;
        if i == last && prompts_ns == 0 {
            prompts_ns = now;
        }
        if i == 0 {
            of_first.push(now);
        }
        ControlFlow::Continue(())
    })?;
    let mut tokens = Vec::new();
    for g in generated {
        tokens.extend(g?.tokens);
    }
    // Its tokens of a submit come at once; what arrived before the last prompt's first token was no decoding.
    let per_submit = sessions[0].stats().counters.phase(Phase::Decode).submits.max(1);
    let steps = (of_first.len() as u64).saturating_sub(1).div_ceil(per_submit).max(1) as usize;
    let mut before = prompts_ns;
    let mut step_ms = Vec::new();
    for batch in of_first.get(1..).unwrap_or_default().chunks(steps) {
        step_ms.push(report::ms(batch[0].saturating_sub(before)) / batch.len() as f64);
        before = batch[0];
    }
    let decoded = (tokens.len() - sessions.len()) as u64;
    Ok(Run { tokens, prompts_ns, decode_ns: end_ns - prompts_ns, decoded, step_ms, stats: sessions[0].stats() })
}

/// Runs a workload for `n` sequences; the second value says whether all runs gave the same tokens.
pub(super) fn measure(model: &Model, n: u32, w: &Workload, args: &Args, copy: &CopySpeed) -> Outcome<(Value, bool)> {
    let prompts: Vec<Vec<u32>> = (0..n).map(|i| prompt_ids(model, w.prompt, 1 + i)).collect();
    let options = SessionOptions { tokens_per_submit: args.tokens_per_submit, ..Default::default() };
    let mut sessions = (0..n).map(|_| model.open_session(&options)).collect::<doppler::Result<Vec<_>>>()?;
    let mut all = Vec::new();
    for _ in 0..args.warmup + args.runs {
        all.push(one_run(&mut sessions, &prompts, w, args)?);
    }
    let same = all.iter().all(|r| r.tokens == all[0].tokens && !r.tokens.is_empty());
    let timed = &all[args.warmup as usize..];
    let prompt_tokens = u64::from(n) * u64::from(w.prompt);
    let prefill = |r: &Run| report::rate(prompt_tokens, r.prompts_ns).unwrap_or(0.0);
    let decode = |r: &Run| report::rate(r.decoded, r.decode_ns).unwrap_or(0.0);
    let steps = sorted(timed.iter().flat_map(|r| r.step_ms.iter().copied()));
    let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|p| percentile(&steps, p));
    let (weights, kv) = bytes_per_token(model, w);
    let (prefill_rate, decode_rate) = (median(timed.iter().map(prefill)), median(timed.iter().map(decode)));
    // A step reads the weights once, and the keys and values of all.
    let bandwidth = (weights as f64 / f64::from(n) + kv as f64) * decode_rate;
    let share = bandwidth / copy.bytes_per_s;
    args.say(&format!(
        "{n:>4} sequences of {} + {}: prefill {prefill_rate:.1}/s, decode {decode_rate:.1}/s in all, {:.3} ms a step (p90 {:.3}), \
         {:.1} GB/s, {:.1} % of the copy speed",
        w.prompt,
        w.generate,
        p50.unwrap_or_default(),
        p90.unwrap_or_default(),
        bandwidth / 1e9,
        share * 100.0
    ))?;
    if args.verbose {
        eprint!("{}", timed[timed.len() - 1].stats.summary());
    }
    if !same {
        eprintln!("doppler: runs of {n} sequences of {} + {} gave different tokens", w.prompt, w.generate);
    }
    let run_json = |r: &Run| {
        json!({
            "first_token_ms": report::ms(r.prompts_ns), "prefill_ms": report::ms(r.prompts_ns),
            "prefill_tokens_per_s": prefill(r), "decode_ms": report::ms(r.decode_ns), "decode_tokens_per_s": decode(r),
            "batch_ms_per_token": r.step_ms,
            "counters": report::counters_json(&r.stats.counters, r.stats.gpu_timed),
        })
    };
    let value = json!({
        "sequences": n, "prompt_tokens": w.prompt, "gen_tokens": w.generate, "note": w.note, "sampling": "greedy",
        "ignore_eos": true, "end_tokens": args.end_token, "tokens_per_submit": args.tokens_per_submit, "warmup_runs": args.warmup,
        "timed_runs": args.runs, "prompt_ids": prompts, "generated_ids": all[0].tokens, "tokens_agree": same,
        "summary": {
            "prefill_tokens_per_s": prefill_rate, "decode_tokens_per_s": decode_rate,
            "ms_per_token_p50": p50, "ms_per_token_p90": p90, "ms_per_token_p99": p99,
            "weight_bytes_per_step": weights, "kv_bytes_per_token": kv,
            "decode_bytes_per_s": bandwidth, "share_of_copy_speed": share,
        },
        "warmup": all[..args.warmup as usize].iter().map(run_json).collect::<Vec<_>>(),
        "runs": timed.iter().map(run_json).collect::<Vec<_>>(),
    });
    Ok((value, same))
}
