//! Top-k: the `k` most likely tokens.

use super::options::SamplingOptions;
use super::reference::Candidates;

/// Keeps the first `top_k` candidates.
pub fn apply(candidates: &mut Candidates, options: &SamplingOptions) {
    if options.top_k > 0 {
        candidates.keep(options.top_k as usize);
    }
}
