//! Scores of continuations: how likely each of several texts is after what a session holds.

use std::time::Instant;

use crate::error::{Error, Result, bail};
use crate::gpu::Phase;
use crate::session::state::Session;

/// How likely a continuation is. Logarithms are natural ones.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// `ln p` of each of its tokens, given the session and its tokens before; −∞ for what the model excludes.
    pub log_probs: Vec<f32>,
}

impl Score {
    /// `ln p` of the whole continuation: the sum.
    pub fn log_likelihood(&self) -> f64 {
        self.log_probs.iter().copied().map(f64::from).sum()
    }

    /// The same for each token.
    pub fn mean(&self) -> f64 {
        self.log_likelihood() / self.log_probs.len().max(1) as f64
    }

    /// `ln p` of its first token.
    pub fn first(&self) -> f64 {
        self.log_probs.first().map_or(f64::NEG_INFINITY, |&v| v.into())
    }
}

/// What decides between continuations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ranking {
    /// The whole continuation's likelihood: longer ones are less likely.
    #[default]
    Sum,
    /// The likelihood by token, for continuations of different lengths.
    Mean,
    /// The first token's likelihood.
    First,
}

impl Ranking {
    /// What is compared.
    pub fn of(self, score: &Score) -> f64 {
        match self {
            Self::Sum => score.log_likelihood(),
            Self::Mean => score.mean(),
            Self::First => score.first(),
        }
    }
}

/// Continuations and which of them is best.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The best one's place; the first of several that are equal.
    pub best: usize,
    /// The scores, in the order of the continuations.
    pub scores: Vec<Score>,
}

impl Session {
    /// As [`Session::choose_tokens`], for texts: each is tokenized by itself, as [`Session::append_text`] would append it. So a text that begins a
    /// new word should begin with its space where the tokenizer's words do.
    ///
    /// # Errors
    /// As [`Session::choose_tokens`] and [`crate::text::Tokenizer::encode`].
    pub fn choose(&mut self, texts: &[&str], parse_special: bool, ranking: Ranking) -> Result<Choice> {
        let encode = |text: &&str| self.model.tokenizer().encode(text, false, parse_special);
        let tokens: Vec<Vec<u32>> = texts.iter().map(encode).collect::<Result<_>>()?;
        self.choose_tokens(&tokens.iter().map(Vec::as_slice).collect::<Vec<_>>(), ranking)
    }

    /// Scores continuations of what the session holds. What is not yet evaluated of that is evaluated first, once for all of them; the
    /// continuations share it, and are evaluated together: as many in one submit as fit in a chunk of a prompt, up to 32 (with recurrent layers
    /// one after the other). The session is as before, but that everything in it is evaluated.
    ///
    /// # Errors
    /// [`Error::InvalidState`] in an empty session or while generating; [`Error::InvalidArgument`] without continuations, for one without tokens, or
    /// for a token outside the vocabulary; [`Error::ContextFull`] naming a continuation that does not fit; [`Error::Cancelled`]; [`Error::Guard`] for a
    /// broken budget in strict mode; or what the device reports.
    pub fn choose_tokens(&mut self, continuations: &[&[u32]], ranking: Ranking) -> Result<Choice> {
        self.idle()?;
        if self.tokens.is_empty() {
            bail!(InvalidState, "the session is empty: append a prompt first");
        }
        if continuations.is_empty() {
            bail!(InvalidArgument, "no continuations to choose from");
        }
        for (i, c) in continuations.iter().enumerate() {
            if c.is_empty() {
                bail!(InvalidArgument, "continuation {i} has no tokens");
            }
            let vocab = self.model.spec().n_vocab;
            if let Some(t) = c.iter().find(|&&t| t >= vocab) {
                bail!(InvalidArgument, "continuation {i}: token {t} in a vocabulary of {vocab}");
            }
            // Nothing is evaluated after the last token.
            if self.tokens.len() + c.len() - 1 > self.n_ctx as usize {
                let (n, held, n_ctx) = (c.len(), self.tokens.len(), self.n_ctx);
                bail!(ContextFull, "continuation {i}: {held} tokens and {n} more do not fit in a context of {n_ctx}");
            }
        }
        let first: Vec<u32> = continuations.iter().map(|c| c[0]).collect();
        let mut scores: Vec<Score> =
            self.score_next(&first)?.into_iter().map(|first| Score { log_probs: vec![first] }).collect();
        let longer: Vec<usize> = (0..continuations.len()).filter(|&i| continuations[i].len() > 1).collect();
        let mut at = 0;
        while at < longer.len() {
            at += self.score_some(&longer[at..], continuations, &mut scores)?;
        }
        let key = |i: usize| ranking.of(&scores[i]);
        let best = (1..scores.len()).fold(0, |best, i| if key(i) > key(best) { i } else { best });
        Ok(Choice { best, scores })
    }

    fn not_cancelled(&self) -> Result<()> {
        if self.cancel.take() { Err(Error::Cancelled("scoring was cancelled".into())) } else { Ok(()) }
    }

    /// Evaluates what is not yet evaluated, and the last token in any case. Returns `ln p` of each of `targets` as the next token.
    fn score_next(&mut self, targets: &[u32]) -> Result<Vec<f32>> {
        self.forget_from(self.tokens.len() as u32 - 1);
        let chunk = self.model.0.options_chunk() as usize;
        // A recurrent state cannot be cut: the next call finds the one before the last token.
        let last = match self.model.spec().layers.iter().any(|l| l.recurrent().is_some()) {
            true => 1,
            false => (self.tokens.len() - self.cached as usize - 1) % chunk + 1,
        };
        if !self.catch_up(last)? {
            bail!(Cancelled, "scoring was cancelled");
        }
        self.not_cancelled()?;
        let scope = self.scope(Phase::Prefill);
        let Some(sequence) = &mut self.sequence else { bail!(Internal, "a session without sequence") };
        let mut engine = self.model.0.warm_engine(&scope)?;
        let started = Instant::now();
        let tail = &self.tokens[self.cached as usize..];
        let before = self.counters.phase(Phase::Prefill);
        let scores = engine.prefill_and_score(sequence, tail, self.cached, targets, &scope)?;
        drop(engine);
        let cost = self.counters.phase(Phase::Prefill).since(&before);
        self.guard().check_results(&cost, last as u64, targets.len() as u64 * 4)?;
        self.cached = self.tokens.len() as u32;
        self.tally.prefill_tokens += last as u64;
        self.tally.prefill_ns += started.elapsed().as_nanos() as u64;
        Ok(scores)
    }

    /// Scores as many of the continuations at `places` as go together, behind their first tokens. Returns how many.
    fn score_some(&mut self, places: &[usize], continuations: &[&[u32]], scores: &mut [Score]) -> Result<usize> {
        self.not_cancelled()?;
        self.model.context().gpu().rest_profiler()?;
        let scope = self.scope(Phase::Prefill);
        let (guard, start) = (self.guard(), self.cached);
        let Some(trunk) = &self.sequence else { bail!(Internal, "a session without sequence") };
        let mut engine = self.model.0.warm_engine(&scope)?;
        let started = Instant::now();
        let lens: Vec<u32> = places.iter().map(|&i| continuations[i].len() as u32 - 1).collect();
        let n = engine.wave(start, &lens);
        let runs: Vec<&[u32]> = places[..n].iter().map(|&i| continuations[i]).collect();
        let (counters, cancel) = (&self.counters, &self.cancel);
        let mut before = counters.phase(Phase::Prefill);
        let mut rows = 0;
        let found = engine.score_wave(trunk, start, &runs, &scope, &mut |batch| {
            let now = counters.phase(Phase::Prefill);
            guard.check_results(&now.since(&before), batch.rows.into(), batch.bytes)?;
            before = now;
            rows += u64::from(batch.rows);
            if cancel.take() { Err(Error::Cancelled("scoring was cancelled".into())) } else { Ok(()) }
        });
        drop(engine);
        self.tally.prefill_tokens += rows;
        self.tally.prefill_ns += started.elapsed().as_nanos() as u64;
        let mut found = found?.into_iter();
        for (&i, &len) in places[..n].iter().zip(&lens) {
            scores[i].log_probs.extend(found.by_ref().take(len as usize));
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rankings_look_at_different_things() {
        let [a, b] = [vec![-1.0, -1.0, -1.0], vec![-2.0]].map(|log_probs| Score { log_probs });
        assert!(Ranking::Sum.of(&b) > Ranking::Sum.of(&a));
        assert!(Ranking::Mean.of(&a) > Ranking::Mean.of(&b));
        assert_eq!((a.first(), a.mean(), a.log_likelihood()), (-1.0, -1.0, -3.0));
        let out = Score { log_probs: vec![-1.0, f32::NEG_INFINITY] };
        assert_eq!(Ranking::Sum.of(&out), f64::NEG_INFINITY);
    }
}
