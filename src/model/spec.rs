//! What a model is, as data: the pipeline reads a [`ModelSpec`] and knows no architecture by name.

use crate::error::{Result, bail};
use crate::kernels::{Activation, AngleTable, AttentionShape, NormKind, RopePairs};

/// A model's shape and constants, filled by `arch/<name>.rs` from metadata.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// `general.architecture`.
    pub architecture: String,
    /// `general.name`, if the file has one.
    pub name: Option<String>,
    /// Entries of the vocabulary: rows of the embedding table.
    pub n_vocab: u32,
    /// Width of the residual stream.
    pub n_embd: u32,
    /// Longest context the model was trained for.
    pub context_length: u32,
    /// What the normalisations of the residual stream, and of blocks' outputs, do.
    pub norm: NormKind,
    /// ε of all normalisations.
    pub norm_eps: f32,
    /// Factor on embedding rows.
    pub embedding_scale: f32,
    /// A learned row for each position is added to the embedding; positions end with the table.
    pub learned_positions: bool,
    /// Rotary embeddings; layers say which of them is theirs.
    pub ropes: Vec<RopeSpec>,
    /// Factor on logits.
    pub logit_scale: f32,
    /// `l = cap · tanh(l / cap)` of scaled logits; 0 = none.
    pub logit_softcap: f32,
    /// The layers, first to last.
    pub layers: Vec<LayerSpec>,
}

impl ModelSpec {
    /// The first rotary embedding.
    ///
    /// # Errors
    /// [`crate::Error::Internal`] if there is none.
    pub fn rope(&self) -> Result<&RopeSpec> {
        match self.ropes.first() {
            Some(rope) => Ok(rope),
            None => bail!(Internal, "{}: no rotary embedding", self.architecture),
        }
    }

    /// The mixtures of experts among the feed-forward blocks.
    pub fn experts(&self) -> impl Iterator<Item = ExpertsSpec> + '_ {
        self.layers.iter().filter_map(|l| l.feed_forward.experts)
    }
}

/// One transformer block: `x += post(attention(norm(x))); x += post(feed_forward(norm(x)))`, where each normalisation may be missing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerSpec {
    /// Attention.
    pub attention: AttentionSpec,
    /// Feed-forward.
    pub feed_forward: FeedForwardSpec,
    /// Which normalisations there are.
    pub norms: NormNames,
    /// The feed-forward block reads the same normalised input as attention: `x += attention(n) + feed_forward(n)`.
    pub parallel: bool,
}

/// The normalisations of a layer, by the names of their tensors after `blk.<layer>.`; `None`: there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NormNames {
    /// Of what attention reads.
    pub attn: Option<&'static str>,
    /// Of what attention adds to the residual stream.
    pub attn_post: Option<&'static str>,
    /// Of what the feed-forward block reads.
    pub ffn: Option<&'static str>,
    /// Of what it adds.
    pub ffn_post: Option<&'static str>,
}

impl NormNames {
    /// Before each block.
    pub const PRE: Self = Self { attn: Some("attn_norm"), ffn: Some("ffn_norm"), attn_post: None, ffn_post: None };
    /// After each block.
    pub const POST: Self =
        Self { attn: None, ffn: None, attn_post: Some("post_attention_norm"), ffn_post: Some("post_ffw_norm") };
    /// Before and after each block.
    pub const BOTH: Self = Self { attn: Self::PRE.attn, ffn: Self::PRE.ffn, ..Self::POST };
}

/// One layer's attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionSpec {
    /// Query heads.
    pub n_head: u32,
    /// Key/value heads; divides `n_head`.
    pub n_kv: u32,
    /// Dimensions of a head.
    pub head_dim: u32,
    /// Factor on `q · k`.
    pub scale: f32,
    /// Positions a query sees, itself included; 0 = all.
    pub window: u32,
    /// Cap on scores; 0 = none.
    pub softcap: f32,
    /// Which of [`ModelSpec::ropes`] turns q and k; `None`: they are not turned.
    pub rope: Option<usize>,
    /// Normalisation of q and k (`attn_q_norm`, `attn_k_norm`) before they are turned.
    pub qk_norm: Option<QkNorm>,
    /// Each query head has a logit of its own (`attn_sinks`) that takes part in the softmax and has no value.
    pub sinks: bool,
}

/// How far the root mean square reaches in a normalisation of q and k.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// Each head by itself, all with the same weights.
    Heads,
    /// All heads of q together, and all of k.
    Whole,
}

impl AttentionSpec {
    /// What the attention kernels need of it.
    pub fn shape(&self) -> AttentionShape {
        AttentionShape {
            n_head: self.n_head,
            n_kv: self.n_kv,
            head_dim: self.head_dim,
            window: self.window,
            scale: self.scale,
            softcap: self.softcap,
        }
    }

    /// Width of all query heads.
    pub fn q_width(&self) -> u32 {
        self.n_head * self.head_dim
    }
    /// Width of all key heads, and of all value heads.
    pub fn kv_width(&self) -> u32 {
        self.n_kv * self.head_dim
    }
    /// Width of q, k and v together.
    pub fn qkv_width(&self) -> u32 {
        self.q_width() + 2 * self.kv_width()
    }
}

/// One layer's feed-forward block: `down(act(gate(x)) · up(x))`, `down(act(up(x)))` without a gate, or the weighted sum of gated blocks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FeedForwardSpec {
    /// Inner width; of one expert, where there are experts.
    pub n_ff: u32,
    /// Activation of the gate, or of the only first product.
    pub activation: Activation,
    /// Whether there is a gate.
    pub gated: bool,
    /// The mixture, if the block is one.
    pub experts: Option<ExpertsSpec>,
}

impl FeedForwardSpec {
    /// Inner values of a row that are held at a time: those of all experts chosen for it.
    pub fn inner_width(&self) -> u32 {
        let Some(e) = self.experts else { return self.n_ff };
        (self.n_ff * e.n_used).max(e.shared_n_ff.unwrap_or(0))
    }
}

/// A mixture of experts: a router chooses some of them for each row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpertsSpec {
    /// Experts.
    pub n_expert: u32,
    /// Experts in use for a row: those with the largest router logits.
    pub n_used: u32,
    /// Weights are the softmax over the chosen experts' logits (else their part of the softmax over all).
    pub renormalize: bool,
    /// Factor on the weights.
    pub scale: f32,
    /// Inner width of an expert that every row uses beside the chosen ones, with the sigmoid of a product of its own as weight.
    pub shared_n_ff: Option<u32>,
}

/// Rotary position embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeSpec {
    /// Which dimensions turn together.
    pub pairs: RopePairs,
    /// Dimensions that turn, from a head's first on.
    pub n_rot: u32,
    /// Base of the frequencies.
    pub freq_base: f32,
    /// How positions are stretched.
    pub scaling: RopeScaling,
    /// Magnitude factor of the file, multiplied with the scaling's own.
    pub attn_factor: f32,
}

/// How rotary positions are stretched beyond the length a model was first trained for.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Position interpolation (Chen et al. 2023): angles divided by `factor`.
    Linear {
        /// The divisor.
        factor: f32,
    },
    /// YaRN (Peng et al. 2023): low frequencies interpolated, high ones kept, magnitude `1 + 0.1 ln(factor)`.
    Yarn {
        /// How many times longer.
        factor: f32,
        /// Length of the first training.
        original_context: u32,
        /// Rotations within the original context from which on a frequency is kept.
        beta_fast: f32,
        /// Rotations below which it is interpolated.
        beta_slow: f32,
    },
    /// LongRoPE (Ding et al. 2024): a divisor for each pair, one set up to the original context and one beyond, chosen by
    /// the context size in use.
    LongRope {
        /// Length of the first training.
        original_context: u32,
    },
}

/// Tensors of divisors that refine the frequencies: `rope_freqs`, `rope_factors_short`, `rope_factors_long`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RopeDivisors {
    /// For any context (Llama 3.1's scaling, computed by the converter).
    pub any: Option<Vec<f32>>,
    /// LongRoPE, up to the original context.
    pub short: Option<Vec<f32>>,
    /// LongRoPE, beyond.
    pub long: Option<Vec<f32>>,
}

impl RopeSpec {
    /// Angular step of each pair in radians a position, and the factor on cosines and sines, for a context of `n_ctx`.
    ///
    /// # Errors
    /// [`crate::Error::BadFile`] if divisors are missing, of a wrong count, or not positive.
    pub fn steps(&self, divisors: &RopeDivisors, n_ctx: u32) -> Result<(Vec<f64>, f64)> {
        let pairs = self.n_rot as usize / 2;
        let (name, set) = match &self.scaling {
            RopeScaling::LongRope { original_context } if n_ctx > *original_context => {
                ("rope_factors_long.weight", &divisors.long)
            }
            RopeScaling::LongRope { .. } => ("rope_factors_short.weight", &divisors.short),
            _ => ("rope_freqs.weight", &divisors.any),
        };
        if set.is_none() && matches!(self.scaling, RopeScaling::LongRope { .. }) {
            bail!(BadFile, "tensor {name} is missing");
        }
        if let Some(d) = set
            && (d.len() != pairs || d.iter().any(|&x| !(x > 0.0 && x.is_finite())))
        {
            bail!(BadFile, "tensor {name}: {pairs} positive divisors are needed, it has {} values", d.len());
        }
        let base = f64::from(self.freq_base);
        let n_rot = f64::from(self.n_rot);
        let step = |i: usize| {
            let extrapolated = base.powf(-2.0 * i as f64 / n_rot) / set.as_ref().map_or(1.0, |d| f64::from(d[i]));
            match self.scaling {
                RopeScaling::None | RopeScaling::LongRope { .. } => extrapolated,
                RopeScaling::Linear { factor } => extrapolated / f64::from(factor),
                RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow } => {
                    // The pair whose wavelength fits `rotations` times into the original context.
                    let pair = |rotations: f32| {
                        let turns = f64::from(original_context) / (f64::from(rotations) * 2.0 * std::f64::consts::PI);
                        n_rot * turns.ln() / (2.0 * base.ln())
                    };
                    let low = pair(beta_fast).floor().max(0.0);
                    let high = pair(beta_slow).ceil().min(n_rot - 1.0);
                    let ramp = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
                    extrapolated / f64::from(factor) * ramp + extrapolated * (1.0 - ramp)
                }
            }
        };
        let magnitude = match self.scaling {
            RopeScaling::Yarn { factor, .. } => 1.0 + 0.1 * f64::from(factor).ln(),
            _ => 1.0,
        };
        Ok(((0..pairs).map(step).collect(), magnitude * f64::from(self.attn_factor)))
    }

    /// The table of angles for positions below `n_ctx`.
    ///
    /// # Errors
    /// As [`RopeSpec::steps`].
    pub fn angles(&self, divisors: &RopeDivisors, n_ctx: u32) -> Result<AngleTable> {
        let (steps, magnitude) = self.steps(divisors, n_ctx)?;
        Ok(AngleTable::new(&steps, magnitude, n_ctx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(scaling: RopeScaling) -> RopeSpec {
        RopeSpec { pairs: RopePairs::Halves, n_rot: 8, freq_base: 10000.0, scaling, attn_factor: 1.0 }
    }

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() <= 1e-6 * b.abs(), "{a} {b}");
    }

    #[test]
    fn plain_linear_and_divided_steps() {
        let none = RopeDivisors::default();
        let (s, m) = rope(RopeScaling::None).steps(&none, 100).unwrap();
        for (got, want) in s.iter().zip([1.0, 0.1, 0.01, 0.001]) {
            close(*got, want);
        }
        close(m, 1.0);
        let (s, _) = rope(RopeScaling::Linear { factor: 4.0 }).steps(&none, 100).unwrap();
        close(s[1], 0.025);
        let freqs = RopeDivisors { any: Some(vec![1.0, 2.0, 4.0, 8.0]), ..Default::default() };
        close(rope(RopeScaling::None).steps(&freqs, 100).unwrap().0[3], 0.001 / 8.0);
        let short = RopeDivisors { any: Some(vec![1.0; 3]), ..Default::default() };
        assert!(rope(RopeScaling::None).steps(&short, 100).unwrap_err().to_string().contains("rope_freqs"));
    }

    #[test]
    fn longrope_chooses_by_context() {
        let spec = rope(RopeScaling::LongRope { original_context: 256 });
        let d = RopeDivisors { any: None, short: Some(vec![1.0; 4]), long: Some(vec![2.0; 4]) };
        close(spec.steps(&d, 256).unwrap().0[0], 1.0);
        close(spec.steps(&d, 257).unwrap().0[0], 0.5);
        assert!(spec.steps(&RopeDivisors::default(), 10).unwrap_err().to_string().contains("rope_factors_short"));
    }

    #[test]
    fn yarn_keeps_fast_pairs_and_interpolates_slow_ones() {
        // n_rot 64, base 10000, original 4096: pair(32) = 64 ln(4096/64π)/(2 ln 10000) = 10.4 and pair(1) = 22.5, so the ramp runs 10..23.
        let spec = RopeSpec {
            n_rot: 64,
            ..rope(RopeScaling::Yarn { factor: 16.0, original_context: 4096, beta_fast: 32.0, beta_slow: 1.0 })
        };
        let (s, m) = spec.steps(&RopeDivisors::default(), 65536).unwrap();
        let plain = |i: f64| 10000f64.powf(-i / 32.0);
        close(s[0], 1.0);
        close(s[10], plain(10.0));
        close(s[23], plain(23.0) / 16.0);
        let ramp = 3.0 / 13.0;
        close(s[13], plain(13.0) / 16.0 * ramp + plain(13.0) * (1.0 - ramp));
        close(m, 1.0 + 0.1 * 16f64.ln());
    }
}
