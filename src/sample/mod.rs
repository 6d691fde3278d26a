//! Samplers: the policy (options and their limits), the form the GPU reads, and a CPU reference.
//!
//! One token is chosen in this order; `reference::CHAIN` is the list of the steps:
//!
//! 1. **logit bias**, then **penalties** over the last `penalty_last_n` tokens ([`penalties`]),
//! 2. **top-k**, **top-p**, **min-p**, each on the probabilities at temperature 1 of what the step
//!    before left,
//! 3. **temperature**, then the **draw** ([`draw`]).
//!
//! Rules that hold everywhere, on both processors:
//!
//! - Ties break to the lower token id. At least one token always survives.
//! - −∞ means "not allowed": such a token has no weight and is drawn only if nothing else exists.
//!   A NaN ranks below −∞. If +∞ occurs, the lowest id that has it is taken.
//! - Random numbers are Philox4x32-10 ([`philox`]) with the seed as key and the position of the drawn
//!   token as counter: the text depends neither on how many tokens a submit runs nor on who shares
//!   the batch.
//! - Probabilities are integers ([`reference::weight`]), so sums do not depend on their order.

pub mod draw;
pub mod min_p;
pub mod options;
pub mod params;
pub mod penalties;
pub mod philox;
pub mod reference;
pub mod top_k;
pub mod top_p;

pub use options::{MAX_LOGIT_BIAS, MAX_VOCAB, SamplingOptions};
pub use params::{FLAG_PENALTIES, SampleParams};
pub use reference::{Sampled, sample_reference};

#[cfg(test)]
mod tests;
