//! Budgets on the counters, and gates for readbacks.
//!
//! A gate is passed before the work is done, so a refusal loses nothing; a budget is checked after a batch, from
//! the counters. In strict mode both answer with [`Error::Guard`] and its reason; data that was read is whole or absent,
//! never empty. A context has a guard and every session may have its own; both can be replaced at any time.

use crate::error::{Error, Result, bail};
use crate::gpu::counters::PhaseSnapshot;
use crate::gpu::readback::Gate;

/// How broken budgets and debug readbacks are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GuardMode {
    /// Nothing is checked.
    #[default]
    Off,
    /// Allowed, and logged as a warning.
    Warn,
    /// Refused with [`Error::Guard`].
    Strict,
}

/// Upper limits for one batch (one submit): a decode batch of some sequences and tokens, or a chunk of a prompt. A limit of
/// [`Budget::UNLIMITED`] checks nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Submits a batch.
    pub submits: u64,
    /// Required readbacks a batch.
    pub readbacks: u64,
    /// Bytes read back for each sequence and token drawn.
    pub readback_bytes_per_token: u64,
    /// Buffers created a batch.
    pub buffers: u64,
    /// Bind groups created a batch.
    pub bind_groups: u64,
    /// Pipelines created a batch.
    pub pipelines: u64,
}

impl Budget {
    /// A limit that nothing breaks.
    pub const UNLIMITED: u64 = u64::MAX;

    /// The production budget of steady decode and of prefill (design.md §2): one submit, one readback of 16 bytes a token, nothing created.
    pub const PRODUCTION: Self =
        Self { submits: 1, readbacks: 1, readback_bytes_per_token: 16, buffers: 0, bind_groups: 0, pipelines: 0 };

    /// Bytes that may be read back for `drawn` tokens.
    fn bytes(&self, drawn: u64) -> u64 {
        self.readback_bytes_per_token.saturating_mul(drawn)
    }

    /// The first limit that `cost` breaks, with leave to read `bytes` back: what, how much was used, and the limit.
    fn broken(&self, cost: &PhaseSnapshot, bytes: u64) -> Option<(&'static str, u64, u64)> {
        [
            ("submits", cost.submits, self.submits),
            ("readbacks", cost.required_readbacks(), self.readbacks),
            ("bytes read back", cost.required_readback_bytes(), bytes),
            ("buffers created", cost.buffers, self.buffers),
            ("bind groups created", cost.bind_groups, self.bind_groups),
            ("pipelines created", cost.pipelines, self.pipelines),
        ]
        .into_iter()
        .find(|(_, used, limit)| used > limit)
    }
}

/// A guard: a mode, and the budgets it holds work to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guard {
    /// What happens on a breach.
    pub mode: GuardMode,
    /// Limits of a decode batch.
    pub decode: Budget,
    /// Limits of a chunk of a prompt.
    pub prefill: Budget,
}

impl Default for Guard {
    fn default() -> Self {
        Self::BENCHMARK
    }
}

impl Guard {
    /// For shipped programs: debug readbacks and broken budgets are refused.
    pub const PRODUCTION: Self =
        Self { mode: GuardMode::Strict, decode: Budget::PRODUCTION, prefill: Budget::PRODUCTION };
    /// For development: everything is allowed, breaches are logged.
    pub const DEBUG: Self = Self { mode: GuardMode::Warn, ..Self::PRODUCTION };
    /// For measuring: nothing is checked or logged; counters count as always.
    pub const BENCHMARK: Self = Self { mode: GuardMode::Off, ..Self::PRODUCTION };

    /// Asks leave for a readback, before its work is recorded. The engine asks through [`crate::gpu::Gpu::gate`], which counts refusals.
    ///
    /// # Errors
    /// [`Error::Guard`] for a debug or profile readback in strict mode.
    pub fn gate(&self, gate: &Gate) -> Result<()> {
        if gate.class.required() {
            return Ok(());
        }
        match self.mode {
            GuardMode::Off => Ok(()),
            GuardMode::Warn => {
                log::warn!("guard: {} readback at {gate}", gate.class.name());
                Ok(())
            }
            GuardMode::Strict => {
                bail!(Guard, "{} readback at {gate} is blocked in strict mode", gate.class.name())
            }
        }
    }

    /// Compares what a decode batch cost with its budget.
    ///
    /// # Errors
    /// [`Error::Guard`] in strict mode, naming the first limit broken.
    pub fn check_decode(&self, cost: &PhaseSnapshot, sequences: u64, tokens: u64) -> Result<()> {
        self.answer(self.decode.broken(cost, self.decode.bytes(sequences * tokens)), || {
            format!("decode batch of {sequences} x {tokens} tokens")
        })
    }

    /// Compares what a chunk of a prompt cost with its budget; `drawn` is 1 if a token was drawn from it.
    ///
    /// # Errors
    /// As [`Guard::check_decode`].
    pub fn check_prefill(&self, cost: &PhaseSnapshot, tokens: u64, drawn: u64) -> Result<()> {
        self.answer(self.prefill.broken(cost, self.prefill.bytes(drawn)), || format!("prompt chunk of {tokens} tokens"))
    }

    /// Compares what a batch of `rows` tokens cost, evaluated for `bytes` bytes of scores or embeddings, with the budget of prompts. Those bytes may
    /// be read back and no more.
    ///
    /// # Errors
    /// As [`Guard::check_decode`].
    pub fn check_results(&self, cost: &PhaseSnapshot, rows: u64, bytes: u64) -> Result<()> {
        let bytes = if self.prefill.readback_bytes_per_token == Budget::UNLIMITED { Budget::UNLIMITED } else { bytes };
        self.answer(self.prefill.broken(cost, bytes), || format!("batch of {rows} tokens for results"))
    }

    fn answer(&self, broken: Option<(&str, u64, u64)>, batch: impl Fn() -> String) -> Result<()> {
        let Some((what, used, limit)) = broken.filter(|_| self.mode != GuardMode::Off) else { return Ok(()) };
        let text = format!("{} used {used} {what}, its budget is {limit}", batch());
        match self.mode {
            GuardMode::Strict => Err(Error::Guard(text)),
            _ => {
                log::warn!("guard: {text}");
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::readback::{Place, ReadbackClass};

    #[test]
    fn strict_refuses_debug_readbacks_and_broken_budgets_only() {
        let strict = Guard::PRODUCTION;
        let debug = Gate { layer: Some(3), ..Gate::new(Place::Layer, ReadbackClass::Debug, "attn.out") };
        assert!(strict.gate(&Gate::new(Place::Pipeline, ReadbackClass::Token, "decode.token")).is_ok());
        let err = strict.gate(&debug).unwrap_err();
        assert!(matches!(&err, Error::Guard(m) if m.contains("layer.attn.out.3")), "{err}");
        let mut cost = PhaseSnapshot { submits: 1, ..Default::default() };
        cost.readbacks[0] = 1;
        cost.readback_bytes[0] = 16;
        assert!(strict.check_decode(&cost, 1, 1).is_ok());
        assert!(strict.check_prefill(&cost, 40, 1).is_ok());
        // A chunk from which nothing is drawn reads nothing back.
        assert!(matches!(strict.check_prefill(&cost, 40, 0), Err(Error::Guard(m)) if m.contains("bytes read back")));
        assert!(strict.check_results(&cost, 40, 16).is_ok());
        assert!(matches!(strict.check_results(&cost, 40, 12), Err(Error::Guard(m)) if m.contains("12")));
        cost.bind_groups = 1;
        assert!(matches!(strict.check_results(&cost, 40, 16), Err(Error::Guard(m)) if m.contains("bind groups")));
        assert!(matches!(strict.check_decode(&cost, 1, 1), Err(Error::Guard(m)) if m.contains("bind groups")));
        assert!(Guard::DEBUG.check_decode(&cost, 1, 1).is_ok());
        assert!(Guard::BENCHMARK.gate(&debug).is_ok());
        let loose = Guard { decode: Budget { bind_groups: Budget::UNLIMITED, ..Budget::PRODUCTION }, ..strict };
        assert!(loose.check_decode(&cost, 1, 1).is_ok());
    }
}
