//! Generation of several sessions of one model together: each decode submit draws for all that still run.
//!
//! Weights are then read once for all of them, which is most of what decoding costs. Prompts are evaluated one after the other.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use crate::error::{Error, Result, bail};
use crate::gpu::Phase;
use crate::model::Drawn;
use crate::session::generation::{Generated, TokenEvent};
use crate::session::lora::describe;
use crate::session::options::GenerateOptions;
use crate::session::state::Session;

/// [`Session::generate`] for several sessions of one model, session `i` with `options[i]`. A session that ends leaves the others, at the next
/// submit. `on_token` gets each token with its session's place, and can end that session's generation. A submit draws as many tokens as the
/// session with the smallest [`tokens_per_submit`](crate::session::SessionOptions::tokens_per_submit) takes at once. Any number of sessions
/// goes; more than [`MAX_SEQUENCES`](crate::model::MAX_SEQUENCES) take several submits for each batch of tokens.
///
/// A submit is counted by each session that it draws for, and once by the context. Sessions with a probe or with drafts cannot take part, nor those
/// with other adapters than the first.
///
/// Returns what each session's [`Session::generate`] would: one that fails does not end the others.
///
/// # Errors
/// [`Error::InvalidArgument`] if there are not as many options as sessions, or the sessions are of several models.
pub fn generate_together(
    sessions: &mut [&mut Session],
    options: &[GenerateOptions],
    on_token: &mut dyn FnMut(usize, &TokenEvent) -> ControlFlow<()>,
) -> Result<Vec<Result<Generated>>> {
    if options.len() != sessions.len() {
        bail!(InvalidArgument, "{} options for {} sessions", options.len(), sessions.len());
    }
    let first = sessions.first().map(|s| s.model.clone());
    if let Some(i) = sessions.iter().position(|s| first.as_ref().is_none_or(|m| !Arc::ptr_eq(&s.model.0, &m.0))) {
        bail!(InvalidArgument, "session {i} is of another model than session 0");
    }
    let adapters = sessions.first().map(|s| describe(s.loras())).unwrap_or_default();
    let mut results: Vec<Option<Result<Generated>>> = Vec::new();
    for (i, options) in options.iter().enumerate() {
        let (before, rest) = sessions.split_at_mut(i);
        let Some((s, after)) = rest.split_first_mut() else { break };
        // Those that decode with the last.
        let running =
            || before.iter().zip(&results).filter(|(_, r)| r.is_none()).map(|(s, _)| &**s).collect::<Vec<_>>();
        let companions = after.is_empty().then(running);
        let begun = match s.is_probed() {
            true => Err(Error::InvalidArgument("a session with a probe generates alone".into())),
            false if s.speculator.is_some() => {
                Err(Error::InvalidArgument("a session with drafts generates alone".into()))
            }
            false if describe(s.loras()) != adapters => {
                Err(Error::InvalidArgument(format!("session {i} has other adapters than session 0")))
            }
            false => s.begin(options),
        };
        results.push(match begun {
            Ok(()) => prompt(s, companions.as_deref(), &mut |event| on_token(i, event)),
            Err(e) => Some(Err(e)),
        });
    }
    loop {
        for (i, (s, result)) in sessions.iter_mut().zip(&mut results).enumerate() {
            if result.is_none()
                && let Some(cancelled) = s.take_cancel().map(|c| c.then_some(())).transpose()
            {
                *result = ended(s, cancelled, &mut |event| on_token(i, event));
            }
        }
        let mut running: Vec<(usize, &mut Session)> = sessions
            .iter_mut()
            .enumerate()
            .filter(|(i, _)| results[*i].is_none())
            .map(|(i, s)| (i, &mut **s))
            .collect();
        let Some((_, one)) = running.first() else { break };
        let most = one.model.0.engine.lock().max_sequences() as usize;
        for members in running.chunks_mut(most) {
            let mut drawing: Vec<&mut Session> = members.iter_mut().map(|(_, s)| &mut **s).collect();
            let drawn = decode(&mut drawing).unwrap_or_else(|e| vec![Err(e); members.len()]);
            for ((i, s), drawn) in members.iter_mut().zip(drawn) {
                results[*i] = ended(s, drawn, &mut |event| on_token(*i, event));
            }
        }
    }
    Ok(results.into_iter().flatten().collect())
}

/// Delivers what a step of a session has brought. The result, if that was its last.
fn ended(
    s: &mut Session,
    step: Result<()>,
    on_token: &mut dyn FnMut(&TokenEvent) -> ControlFlow<()>,
) -> Option<Result<Generated>> {
    match step {
        Ok(()) => s.deliver(on_token).map(|ended| s.conclude(Ok(ended))),
        Err(e) => Some(s.conclude(Err(e))),
    }
}

/// Evaluates a session's prompt and delivers its first token. The result, if that was all. `companions` as in [`Session::step_prompt`].
fn prompt(
    s: &mut Session,
    companions: Option<&[&Session]>,
    on_token: &mut dyn FnMut(&TokenEvent) -> ControlFlow<()>,
) -> Option<Result<Generated>> {
    // A full context ends a generation before its first token.
    let mut step: Result<()> = Ok(());
    loop {
        if let Some(result) = ended(s, step, on_token) {
            return Some(result);
        }
        if s.is_decoding() {
            return None;
        }
        step = s.take_cancel().and_then(|cancelled| if cancelled { Ok(()) } else { s.step_prompt(companions) });
    }
}

/// Draws the next tokens of sessions of one model, all past their prompts, in one submit and one readback. What came of it for each.
///
/// # Errors
/// What the device reports: nothing was drawn then.
pub(super) fn decode(sessions: &mut [&mut Session]) -> Result<Vec<Result<()>>> {
    let Some(first) = sessions.first() else { return Ok(Vec::new()) };
    let model = first.model.clone();
    let gpu = model.context().gpu();
    gpu.rest_profiler()?;
    let wanted = sessions.iter().map(|s| s.wanted()).collect::<Result<Vec<_>>>()?;
    let least = |f: &dyn Fn(&[u32; 3]) -> u32| wanted.iter().map(f).min().unwrap_or(0);
    let tokens = least(&|&[now, _, left]| now.min(left)).max(1);
    // If nothing ends a generation before; whoever has drawn its last token is not there any more.
    let then = least(&|&[_, next, left]| next.min(left.saturating_sub(tokens)));
    // Nor if drafts come in between.
    let plain = sessions.iter().all(|s| s.speculator.as_ref().is_none_or(|d| d.rests()));
    let then = if plain { then } else { 0 };
    let scope = gpu.scope(Phase::Decode).with_guard(first.guard());
    let scope = sessions.iter().fold(scope, |scope, s| scope.with_session(s.counters.clone()));
    let before: Vec<_> = sessions.iter().map(|s| s.counters.phase(Phase::Decode)).collect();
    let (n, positions) = (sessions.len() as u32, sessions.iter().map(|s| s.cached).collect::<Vec<_>>());
    let (steps, elapsed) = {
        let sequences = sessions.iter_mut().map(|s| s.sequence.as_mut()).collect::<Option<Vec<_>>>();
        let Some(mut sequences) = sequences else { bail!(Internal, "a session without sequence") };
        let mut engine = model.0.warm_engine(&scope)?;
        engine.prewarm_batch(&sequences, &scope.clone().in_phase(Phase::Load))?;
        let started = Instant::now();
        let steps = engine.decode(&mut sequences, &positions, tokens, then, &scope)?;
        (steps, started.elapsed().as_nanos() as u64)
    };
    let whole = steps.last().is_some_and(|step| step.iter().any(Option::is_some));
    let mut outcomes = Vec::new();
    for (i, (s, before)) in sessions.iter_mut().zip(before).enumerate() {
        let drawn: Vec<Drawn> = steps.iter().filter_map(|step| step.get(i).copied().flatten()).collect();
        let cost = s.counters.phase(Phase::Decode).since(&before);
        // Before anything is taken over: a refused batch leaves the session as it was.
        let allowed = s.guard().check_decode(&cost, n.into(), tokens.into());
        outcomes.push(allowed.and_then(|()| {
            if let Some(d) = &mut s.speculator {
                d.decoded(drawn.len(), elapsed);
            }
            s.pace.measured(tokens, elapsed, whole);
            s.tally.decode_ns += elapsed;
            s.tally.decode_tokens += drawn.len() as u64;
            s.accept(&drawn)
        }));
    }
    Ok(outcomes)
}
