//! Flags that say how tokens are drawn and when to stop.

use doppler::sample::SamplingOptions;
use doppler::session::GenerateOptions;

/// How tokens are drawn.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Sampling")]
pub(super) struct SamplingArgs {
    /// Take the most likely token every time; no filters
    #[arg(long, conflicts_with_all = ["temperature", "top_k", "top_p", "min_p"])]
    greedy: bool,
    /// Divides the logits; 0 is greedy [default: 0.8]
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Keep the K most likely tokens; 0 is off [default: 40]
    #[arg(long, value_name = "K")]
    top_k: Option<u32>,
    /// Keep the most likely tokens that have this share together; 1 is off [default: 0.95]
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Drop tokens less likely than this share of the most likely one; 0 is off [default: 0.05]
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,
    /// Divides the logits of tokens in the window; 1 is off
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    repeat_penalty: f32,
    /// Taken off a token's logit for each time it occurs in the window
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    frequency_penalty: f32,
    /// Taken off the logit of a token that occurs in the window
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    presence_penalty: f32,
    /// Newest tokens that the penalties look at
    #[arg(long, value_name = "N", default_value_t = 64)]
    penalty_last_n: u32,
    /// Seed of the random numbers: the same seed gives the same text
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Added to a token's logit; -inf forbids it (repeatable)
    #[arg(long, value_name = "ID=V", value_parser = bias)]
    logit_bias: Vec<(u32, f32)>,
    /// Text that ends the generation (repeatable)
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Do not stop at end-of-generation tokens
    #[arg(long)]
    ignore_eos: bool,
    /// Token that ends the generation, --ignore-eos or not (repeatable)
    #[arg(long, value_name = "ID")]
    end_token: Vec<u32>,
}

fn bias(text: &str) -> Result<(u32, f32), String> {
    let (id, value) = text.split_once('=').ok_or("ID=VALUE is needed")?;
    let id = id.trim().parse().map_err(|e| format!("token id {id:?}: {e}"))?;
    let value = value.trim().parse().map_err(|e| format!("value {value:?}: {e}"))?;
    Ok((id, value))
}

impl SamplingArgs {
    fn options(&self) -> SamplingOptions {
        let base = if self.greedy { SamplingOptions::greedy() } else { SamplingOptions::default() };
        SamplingOptions {
            temperature: self.temperature.unwrap_or(base.temperature),
            top_k: self.top_k.unwrap_or(base.top_k),
            top_p: self.top_p.unwrap_or(base.top_p),
            min_p: self.min_p.unwrap_or(base.min_p),
            repeat_penalty: self.repeat_penalty,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            penalty_last_n: self.penalty_last_n,
            seed: self.seed,
            logit_bias: self.logit_bias.clone(),
        }
    }

    /// Everything that a generation needs to know.
    pub(super) fn generate_options(&self, max_tokens: u32, render_special: bool) -> GenerateOptions {
        GenerateOptions {
            max_tokens,
            sampling: self.options(),
            stop: self.stop.clone(),
            ignore_eos: self.ignore_eos,
            render_special,
            end_tokens: self.end_token.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::bias;

    #[test]
    fn logit_bias_is_an_id_and_a_value() {
        assert_eq!(bias("17=-2.5"), Ok((17, -2.5)));
        assert_eq!(bias("0=-inf"), Ok((0, f32::NEG_INFINITY)));
        assert!(bias("17").is_err() && bias("x=1").is_err() && bias("1=y").is_err());
    }
}
