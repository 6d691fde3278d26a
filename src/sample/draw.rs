//! The draw: temperature, then one token by its weight.

use super::options::SamplingOptions;
use super::philox;
use super::reference::{Candidates, Sampled, Survivor};

/// Takes the first token, in order of ids, at which the running sum of weights passes the random target.
pub fn draw(candidates: &Candidates, position: u32, options: &SamplingOptions) -> Sampled {
    let weigh = |c| candidates.weight(c, options.temperature);
    let mut survivors: Vec<Survivor> =
        candidates.list.iter().map(|c| Survivor { token: c.token, weight: weigh(c) }).collect();
    survivors.sort_by_key(|s| s.token);
    let total: u64 = survivors.iter().map(|s| s.weight).sum();
    let word = philox::draw_word(options.seed, position);
    let target = ((u128::from(word) * u128::from(total)) >> 32) as u64;

    let mut before = 0;
    let chosen = survivors.iter().find(|s| {
        let hit = before + s.weight > target;
        before += if hit { 0 } else { s.weight };
        hit
    });
    // The target is below the total, so a survivor is always found.
    let chosen = *chosen.expect("target below the total");
    let after = before + chosen.weight;
    let mut margin = candidates.margin;
    if before > 0 {
        margin = margin.min((target - before) as f64 / total as f64);
    }
    if after < total {
        margin = margin.min((after - target) as f64 / total as f64);
    }
    Sampled { token: chosen.token, survivors, total, target, margin }
}
