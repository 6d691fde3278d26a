//! A llama file of one layer, but for its embedding table.

use doppler::format::GgufWriter;

/// Weights are in f16, `halves(n)` the bytes of so many; norms are ones. `merge` joins two of the `tokens`.
pub fn one_layer(
    n_embd: u64,
    n_ff: u64,
    tokens: Vec<String>,
    merge: &str,
    mut halves: impl FnMut(u64) -> Vec<u8>,
) -> GgufWriter {
    let layer: [(&str, u64, u64); 7] = [
        ("attn_q", n_embd, n_embd),
        ("attn_k", n_embd, n_embd),
        ("attn_v", n_embd, n_embd),
        ("attn_output", n_embd, n_embd),
        ("ffn_gate", n_embd, n_ff),
        ("ffn_up", n_embd, n_ff),
        ("ffn_down", n_ff, n_embd),
    ];
    let mut w = GgufWriter::new()
        .key("general.architecture", "llama")
        .key("llama.block_count", 1u32)
        .key("llama.embedding_length", n_embd as u32)
        .key("llama.feed_forward_length", n_ff as u32)
        .key("llama.context_length", 64u32)
        .key("llama.attention.head_count", 4u32)
        .key("llama.attention.layer_norm_rms_epsilon", 1e-5f32)
        .key("tokenizer.ggml.model", "gpt2")
        .key("tokenizer.ggml.tokens", tokens)
        .key("tokenizer.ggml.merges", vec![merge.to_string()]);
    for (name, k, rows) in layer {
        w = w.tensor(&format!("blk.0.{name}.weight"), &[k, rows], 1, halves(k * rows));
    }
    for norm in ["blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"] {
        w = w.tensor(norm, &[n_embd], 0, 1f32.to_le_bytes().repeat(n_embd as usize));
    }
    w
}
