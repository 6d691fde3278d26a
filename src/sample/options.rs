//! What a caller may ask of the sampler, and its limits.

use crate::error::{Result, bail};

/// Most logit-bias entries of one sequence.
pub const MAX_LOGIT_BIAS: usize = 256;
/// Largest vocabulary: sums of 13-bit limbs over this many tokens fit 32 bits.
pub const MAX_VOCAB: u32 = 1 << 19;
/// A temperature below this is greedy: the largest logit, without a draw.
pub const MIN_TEMPERATURE: f32 = 1e-5;

const MAX_TEMPERATURE: f32 = 100.0;
const MIN_REPEAT: f32 = 0.01;
const MAX_PENALTY: f32 = 100.0;

/// How the next token is chosen. See the [module](super) for the order of the steps.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingOptions {
    /// Divides the logits before the draw; 0 takes the most likely token.
    pub temperature: f32,
    /// Keeps the `top_k` most likely tokens; 0 is off.
    pub top_k: u32,
    /// Keeps the shortest list of most likely tokens that has this share of the probability; 1 is off.
    pub top_p: f32,
    /// Drops tokens less likely than this share of the most likely one; 0 is off.
    pub min_p: f32,
    /// Divides the positive logits of tokens in the window, multiplies the negative ones; 1 is off.
    pub repeat_penalty: f32,
    /// Subtracted from a token's logit once for each time it occurs in the window; 0 is off.
    pub frequency_penalty: f32,
    /// Subtracted from the logit of a token that occurs in the window; 0 is off.
    pub presence_penalty: f32,
    /// How many of the newest tokens, prompt included, the penalties look at; 0 turns them off.
    pub penalty_last_n: u32,
    /// Key of the random numbers: the same seed gives the same text.
    pub seed: u64,
    /// Added to the logits of single tokens; −∞ forbids a token.
    pub logit_bias: Vec<(u32, f32)>,
}

impl Default for SamplingOptions {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            penalty_last_n: 64,
            seed: 0,
            logit_bias: Vec::new(),
        }
    }
}

impl SamplingOptions {
    /// The most likely token every time; no filters, penalties or random numbers.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..Self::default() }
    }

    /// Whether the token is the largest logit, without a draw.
    pub fn is_greedy(&self) -> bool {
        self.temperature < MIN_TEMPERATURE
    }

    /// Whether the tokens of the window change any logit.
    pub fn has_penalties(&self) -> bool {
        let changes = self.repeat_penalty != 1.0 || self.frequency_penalty != 0.0 || self.presence_penalty != 0.0;
        self.penalty_last_n > 0 && changes
    }

    /// Checks every field against its limits; the error names the field at fault.
    pub fn validate(&self, vocab: u32) -> Result<()> {
        if vocab == 0 || vocab > MAX_VOCAB {
            bail!(Unsupported, "vocabulary of {vocab} tokens: the sampler takes 1 to {MAX_VOCAB}");
        }
        within("temperature", self.temperature, 0.0, MAX_TEMPERATURE)?;
        within("top_p", self.top_p, 0.0, 1.0)?;
        within("min_p", self.min_p, 0.0, 1.0)?;
        within("repeat_penalty", self.repeat_penalty, MIN_REPEAT, MAX_PENALTY)?;
        within("frequency_penalty", self.frequency_penalty, -MAX_PENALTY, MAX_PENALTY)?;
        within("presence_penalty", self.presence_penalty, -MAX_PENALTY, MAX_PENALTY)?;
        self.validate_bias(vocab)
    }

    fn validate_bias(&self, vocab: u32) -> Result<()> {
        if self.logit_bias.len() > MAX_LOGIT_BIAS {
            let n = self.logit_bias.len();
            bail!(InvalidArgument, "logit_bias has {n} entries, at most {MAX_LOGIT_BIAS} are allowed");
        }
        let mut tokens: Vec<u32> = Vec::with_capacity(self.logit_bias.len());
        for &(token, value) in &self.logit_bias {
            if token >= vocab {
                bail!(InvalidArgument, "logit_bias names token {token}, the vocabulary has {vocab}");
            }
            if value.is_nan() || value == f32::INFINITY {
                bail!(InvalidArgument, "logit_bias of token {token} is {value}: finite or −inf only");
            }
            tokens.push(token);
        }
        tokens.sort_unstable();
        if let Some(pair) = tokens.windows(2).find(|pair| pair[0] == pair[1]) {
            bail!(InvalidArgument, "logit_bias names token {} twice", pair[0]);
        }
        Ok(())
    }
}

fn within(field: &str, value: f32, low: f32, high: f32) -> Result<()> {
    // Written so that a NaN fails.
    if !(low..=high).contains(&value) {
        bail!(InvalidArgument, "{field} is {value}, allowed are {low} to {high}");
    }
    Ok(())
}
