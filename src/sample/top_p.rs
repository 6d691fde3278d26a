//! Top-p (nucleus): the shortest list of most likely tokens that has a share `p` of the mass left.

use super::options::SamplingOptions;
use super::reference::Candidates;

/// Keeps the shortest prefix whose mass is at least `top_p` of the whole.
pub fn apply(candidates: &mut Candidates, options: &SamplingOptions) {
    if options.top_p >= 1.0 {
        return;
    }
    // In units of 2^-32, which is exact for any f32 from 2^-8 on.
    let share = (f64::from(options.top_p) * f64::from(2).powi(32)) as u128;
    let total: u64 = candidates.list.iter().map(|c| candidates.weight(c, 1.0)).sum();
    let wanted = share * u128::from(total);
    let mut mass = 0u64;
    let mut kept = 0;
    let gap = |mass: u64| (mass as f64 / total as f64 - f64::from(options.top_p)).abs();
    while kept == 0 || u128::from(mass) << 32 < wanted {
        if kept > 0 {
            candidates.margin = candidates.margin.min(gap(mass));
        }
        mass += candidates.weight(&candidates.list[kept], 1.0);
        kept += 1;
    }
    if kept < candidates.list.len() {
        candidates.margin = candidates.margin.min(gap(mass));
    }
    candidates.keep(kept);
}
