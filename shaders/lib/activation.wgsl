// Activation functions of feed-forward blocks.
fn silu(x: f32) -> f32 { return x / (1.0 + exp(-x)); }

// tanh written so that it neither overflows nor loses small arguments' sign.
fn safe_tanh(x: f32) -> f32 { return tanh(clamp(x, -15.0, 15.0)); }

// GELU in its tanh form (Hendrycks and Gimpel 2016, equation 2's approximation), as Gemma and GPT-2 use it.
fn gelu_tanh(x: f32) -> f32 {
    return 0.5 * x * (1.0 + safe_tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
}
