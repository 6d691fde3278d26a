//! Min-p: tokens that are not much less likely than the most likely one.

use super::options::SamplingOptions;
use super::reference::Candidates;

/// Keeps the tokens with at least `min_p` of the largest probability.
pub fn apply(candidates: &mut Candidates, options: &SamplingOptions) {
    if options.min_p <= 0.0 {
        return;
    }
    let floor = f64::from(options.min_p).ln();
    let above = |logit: f32| f64::from(logit) - f64::from(candidates.max) - floor;
    let kept = candidates.list.iter().take_while(|c| above(c.logit) >= 0.0).count().max(1);
    let nearest = candidates.list.iter().skip(1).map(|c| above(c.logit).abs());
    candidates.margin = nearest.fold(candidates.margin, f64::min);
    candidates.keep(kept);
}
