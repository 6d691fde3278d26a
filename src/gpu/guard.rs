//! Budgets on the counters, and gates for readbacks.
//!
//! A gate is passed before the work is done, so a refusal loses nothing; a budget is checked after a batch, from
//! the counters. In strict mode both answer with [`Error::Guard`] and its reason; data that was read is whole or absent,
//! never empty.

use crate::error::{Error, Result, bail};
use crate::gpu::counters::{PhaseSnapshot, ReadbackClass};

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

/// Upper limits for one decode batch (one submit) of `sequences` × `tokens`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeBudget {
    /// Submits a batch.
    pub submits: u64,
    /// Required readbacks a batch.
    pub readbacks: u64,
    /// Bytes read back for each sequence and token.
    pub readback_bytes_per_token: u64,
    /// Buffers created a batch.
    pub buffers: u64,
    /// Bind groups created a batch.
    pub bind_groups: u64,
    /// Pipelines created a batch.
    pub pipelines: u64,
}

impl DecodeBudget {
    /// The production budget of steady decode (design.md §2).
    pub const PRODUCTION: Self =
        Self { submits: 1, readbacks: 1, readback_bytes_per_token: 16, buffers: 0, bind_groups: 0, pipelines: 0 };
}

/// A guard: a mode, and the budget it holds decode to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guard {
    /// What happens on a breach.
    pub mode: GuardMode,
    /// Limits of steady decode.
    pub decode: DecodeBudget,
}

impl Default for Guard {
    fn default() -> Self {
        Self { mode: GuardMode::Off, decode: DecodeBudget::PRODUCTION }
    }
}

impl Guard {
    /// Asks leave for a readback, before its work is recorded. `reason` names the place, such as `"decode.token"`.
    ///
    /// # Errors
    /// [`Error::Guard`] for a debug or profile readback in strict mode.
    pub fn gate(&self, class: ReadbackClass, reason: &str) -> Result<()> {
        if class.required() {
            return Ok(());
        }
        match self.mode {
            GuardMode::Off => Ok(()),
            GuardMode::Warn => {
                log::warn!("guard: {} readback at {reason}", class.name());
                Ok(())
            }
            GuardMode::Strict => {
                bail!(Guard, "{} readback at {reason} is blocked in strict mode", class.name())
            }
        }
    }

    /// Compares what a steady decode batch cost with the budget.
    ///
    /// # Errors
    /// [`Error::Guard`] in strict mode, naming the first limit broken.
    pub fn check_decode(&self, cost: &PhaseSnapshot, sequences: u64, tokens: u64) -> Result<()> {
        if self.mode == GuardMode::Off {
            return Ok(());
        }
        let b = &self.decode;
        let rows = [
            ("submits", cost.submits, b.submits),
            ("readbacks", cost.required_readbacks(), b.readbacks),
            ("bytes read back", cost.required_readback_bytes(), b.readback_bytes_per_token * sequences * tokens),
            ("buffers created", cost.buffers, b.buffers),
            ("bind groups created", cost.bind_groups, b.bind_groups),
            ("pipelines created", cost.pipelines, b.pipelines),
        ];
        let Some((what, used, limit)) = rows.into_iter().find(|(_, used, limit)| used > limit) else {
            return Ok(());
        };
        let text = format!("decode batch of {sequences} x {tokens} tokens used {used} {what}, its budget is {limit}");
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

    #[test]
    fn strict_refuses_debug_readbacks_and_broken_budgets_only() {
        let strict = Guard { mode: GuardMode::Strict, ..Guard::default() };
        assert!(strict.gate(ReadbackClass::Token, "decode.token").is_ok());
        let err = strict.gate(ReadbackClass::Debug, "layer.3").unwrap_err();
        assert!(matches!(&err, Error::Guard(m) if m.contains("layer.3")), "{err}");
        let mut cost = PhaseSnapshot { submits: 1, ..Default::default() };
        cost.readbacks[0] = 1;
        cost.readback_bytes[0] = 16;
        assert!(strict.check_decode(&cost, 1, 1).is_ok());
        cost.bind_groups = 1;
        assert!(matches!(strict.check_decode(&cost, 1, 1), Err(Error::Guard(m)) if m.contains("bind groups")));
        assert!(Guard { mode: GuardMode::Warn, ..strict }.check_decode(&cost, 1, 1).is_ok());
        assert!(Guard::default().gate(ReadbackClass::Debug, "x").is_ok());
    }
}
