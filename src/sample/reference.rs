//! The sampler on the CPU, by sorting: what the GPU's choice is tested against.

use std::cmp::Ordering;

use super::options::SamplingOptions;
use super::{draw, min_p, penalties, top_k, top_p};

/// The filters, in order: a new one is a file with such a function, and a line here.
pub const CHAIN: &[fn(&mut Candidates, &SamplingOptions)] = &[top_k::apply, top_p::apply, min_p::apply];

/// The weight of the most likely token.
pub const WEIGHT_MAX: u64 = (1 << 26) - 1;

/// A token that may still be drawn.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    /// Its id.
    pub token: u32,
    /// Its logit after bias and penalties.
    pub logit: f32,
}

/// The tokens a filter works on: logits descending, ids ascending among equals, never empty.
#[derive(Debug)]
pub struct Candidates {
    /// The tokens left.
    pub list: Vec<Candidate>,
    /// The largest logit.
    pub max: f32,
    /// The smallest distance so far of a decision from going the other way, as a share of probability.
    pub margin: f64,
}

impl Candidates {
    /// Drops all but the first `n`.
    pub fn keep(&mut self, n: usize) {
        self.list.truncate(n.max(1));
    }

    /// The weight of a candidate at a temperature.
    pub fn weight(&self, candidate: &Candidate, temperature: f32) -> u64 {
        weight(candidate.logit, self.max, temperature)
    }
}

/// `exp((logit − max) / temperature)` as an integer of 26 bits.
pub fn weight(logit: f32, max: f32, temperature: f32) -> u64 {
    let exponent = (f64::from(logit) - f64::from(max)) / f64::from(temperature);
    ((exponent.exp() * f64::from(1 << 26)).round() as u64).min(WEIGHT_MAX)
}

/// A token that took part in the draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Survivor {
    /// Its id.
    pub token: u32,
    /// Its share of `Sampled::total`.
    pub weight: u64,
}

/// The chosen token, and what a test needs to judge another choice.
#[derive(Debug, Clone)]
pub struct Sampled {
    /// The choice.
    pub token: u32,
    /// The tokens that took part in the draw, by id; only the choice itself where nothing was drawn.
    pub survivors: Vec<Survivor>,
    /// Sum of their weights.
    pub total: u64,
    /// What the running sum of weights had to pass.
    pub target: u64,
    /// How far the nearest decision (filters and draw) was from going the other way, as a share of
    /// probability; infinite where nothing could.
    pub margin: f64,
}

impl Sampled {
    fn certain(token: u32) -> Self {
        let survivors = vec![Survivor { token, weight: WEIGHT_MAX }];
        Self { token, survivors, total: WEIGHT_MAX, target: 0, margin: f64::INFINITY }
    }

    /// How far the draw was from choosing `token`, as a share of probability: 0 for the choice itself,
    /// `None` for a token that did not take part.
    pub fn distance(&self, token: u32) -> Option<f64> {
        let mut before = 0;
        for survivor in &self.survivors {
            let after = before + survivor.weight;
            if survivor.token == token {
                let gap = before.saturating_sub(self.target) + (self.target + 1).saturating_sub(after);
                return Some(gap as f64 / self.total as f64);
            }
            before = after;
        }
        None
    }
}

/// Chooses the token at `position` of a sequence whose tokens so far are `history`.
///
/// # Panics
/// If there are no logits.
pub fn sample_reference(logits: &[f32], history: &[u32], position: u32, options: &SamplingOptions) -> Sampled {
    let mut logits = logits.to_vec();
    penalties::apply(&mut logits, history, options);
    let best = argmax(&logits);
    let max = logits[best as usize];
    if options.is_greedy() || !max.is_finite() {
        return Sampled::certain(best);
    }
    let ids = 0..logits.len() as u32;
    let mut list: Vec<Candidate> =
        ids.zip(logits).map(|(token, logit)| Candidate { token, logit }).filter(|c| c.logit.is_finite()).collect();
    list.sort_by(|a, b| compare(b.logit, a.logit).then(a.token.cmp(&b.token)));
    let mut candidates = Candidates { list, max, margin: f64::INFINITY };
    for step in CHAIN {
        step(&mut candidates, options);
    }
    draw::draw(&candidates, position, options)
}

/// The lowest id of the largest logit; a NaN is less than −∞.
fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, &logit) in logits.iter().enumerate() {
        if compare(logit, logits[best]) == Ordering::Greater {
            best = id;
        }
    }
    best as u32
}

/// Order of logits in which a NaN is less than everything else and zeros of both signs are equal.
fn compare(a: f32, b: f32) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| b.is_nan().cmp(&a.is_nan()))
}
