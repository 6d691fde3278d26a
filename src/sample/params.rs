//! The options as the GPU reads them: one entry for each sequence slot (`shaders/lib/state.wgsl`).

use super::options::SamplingOptions;

/// `flags`: the window's tokens change logits.
pub const FLAG_PENALTIES: u32 = 1;

/// Twelve words; the logit-bias entries stand in a buffer of their own.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct SampleParams {
    /// 0 is greedy.
    pub temperature: f32,
    /// 0 is off.
    pub top_k: u32,
    /// 1 is off.
    pub top_p: f32,
    /// 0 is off.
    pub min_p: f32,
    /// 1 is off.
    pub repeat_penalty: f32,
    /// 0 is off.
    pub frequency_penalty: f32,
    /// 0 is off.
    pub presence_penalty: f32,
    /// Length of the penalty window in tokens.
    pub penalty_last_n: u32,
    /// Low word of the seed.
    pub seed_lo: u32,
    /// High word of the seed.
    pub seed_hi: u32,
    /// Entries of this slot in the bias buffer.
    pub n_bias: u32,
    /// [`FLAG_PENALTIES`].
    pub flags: u32,
}

const _: () = assert!(size_of::<SampleParams>() == 48);

impl From<&SamplingOptions> for SampleParams {
    /// Of valid options (see [`SamplingOptions::validate`]).
    fn from(options: &SamplingOptions) -> Self {
        Self {
            temperature: if options.is_greedy() { 0.0 } else { options.temperature },
            top_k: options.top_k,
            top_p: options.top_p,
            min_p: options.min_p,
            repeat_penalty: options.repeat_penalty,
            frequency_penalty: options.frequency_penalty,
            presence_penalty: options.presence_penalty,
            penalty_last_n: options.penalty_last_n,
            seed_lo: options.seed as u32,
            seed_hi: (options.seed >> 32) as u32,
            n_bias: options.logit_bias.len() as u32,
            flags: if options.has_penalties() { FLAG_PENALTIES } else { 0 },
        }
    }
}
