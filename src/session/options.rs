//! Options of models, sessions and generation.

use crate::gpu::Guard;
use crate::model::KvType;
use crate::model::hf::WeightFormat;
use crate::sample::SamplingOptions;
use crate::session::speculate::Speculation;

/// How to load a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelOptions {
    /// Longest context of a session; 0 = the trained length, at most 4,096.
    pub n_ctx: u32,
    /// Prompt tokens evaluated in one submit; 0 = as many as suit the device, 256 to 2,048.
    pub prefill_chunk: u32,
    /// Storage of keys and values.
    pub kv_type: KvType,
    /// Compile the pipelines of decoding while loading, so that the first token compiles nothing.
    pub prewarm: bool,
    /// Products in f32 alone. By default the products of few rows (decoding) with quantised weights round activations to signed bytes, 32
    /// with a scale, those with weights of f16 or bf16 may round them to 16 bits of mantissa, and those of many rows take matrix units where the device has
    /// them, which round operands to f16.
    pub exact: bool,
    /// What the weights of a folder of safetensors are quantised to; `None` leaves them as they are.
    pub quantize: Option<WeightFormat>,
}

impl Default for ModelOptions {
    fn default() -> Self {
        Self { n_ctx: 0, prefill_chunk: 0, kv_type: KvType::F16, prewarm: true, exact: false, quantize: None }
    }
}

/// How to open a session.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// Context length; 0 = the model's.
    pub n_ctx: u32,
    /// Tokens drawn in one submit; they arrive together. 0 = 1.
    pub tokens_per_submit: u32,
    /// Microseconds that the tokens of a submit may take: as many are drawn as were measured to fit, one to `tokens_per_submit`. 0 = always
    /// `tokens_per_submit`. The text is the same.
    pub submit_time_us: u32,
    /// Guard of this session; `None` = the context's.
    pub guard: Option<Guard>,
    /// Tokens are drafted and verified in one submit; `None`: each is decoded. As [`crate::session::Session::set_speculation`].
    pub speculation: Option<Speculation>,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { n_ctx: 0, tokens_per_submit: 1, submit_time_us: 0, guard: None, speculation: None }
    }
}

/// How to generate.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerateOptions {
    /// Tokens to generate, at most; 0 = as many as the context holds.
    pub max_tokens: u32,
    /// How tokens are drawn.
    pub sampling: SamplingOptions,
    /// Text that ends the generation; it does not appear in the output.
    pub stop: Vec<String>,
    /// Do not stop at end-of-generation tokens.
    pub ignore_eos: bool,
    /// Show control tokens in the text.
    pub render_special: bool,
    /// Tokens that end the generation like the model's own, which they do with `ignore_eos` too; with those there are, 64 at most.
    pub end_tokens: Vec<u32>,
}
