//! Logit bias and penalties: the steps that change logits.

use std::collections::BTreeMap;

use super::options::SamplingOptions;

/// Adds the logit bias, then punishes each distinct token of the window once.
///
/// A bias of −∞ forbids the token whatever its logit; otherwise logits that are not finite stay.
pub fn apply(logits: &mut [f32], history: &[u32], options: &SamplingOptions) {
    for &(token, value) in &options.logit_bias {
        if let Some(logit) = logits.get_mut(token as usize) {
            if value == f32::NEG_INFINITY {
                *logit = value;
            } else if logit.is_finite() {
                *logit += value;
            }
        }
    }
    if !options.has_penalties() {
        return;
    }
    let window = &history[history.len().saturating_sub(options.penalty_last_n as usize)..];
    let mut counts = BTreeMap::<u32, u32>::new();
    for &token in window {
        *counts.entry(token).or_default() += 1;
    }
    for (token, count) in counts {
        match logits.get_mut(token as usize) {
            Some(logit) if logit.is_finite() => *logit = penalized(*logit, count, options),
            _ => {}
        }
    }
}

fn penalized(logit: f32, count: u32, options: &SamplingOptions) -> f32 {
    let repeat = options.repeat_penalty;
    let scaled = if logit > 0.0 { logit / repeat } else { logit * repeat };
    scaled - (options.frequency_penalty * count as f32 + options.presence_penalty)
}
