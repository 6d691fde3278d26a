//! Models whose rows are no whole blocks of 32.

use std::path::Path;

use doppler::gpu::{Features, Guard};
use doppler::model::KvType;

use crate::common::{context, generate, greedy, load, logits, session};
use crate::llama_file::one_layer;

/// A llama of one layer with random weights in f16, in rows of 48 and 72.
fn narrow_file(path: &Path) {
    let mut seed = 9u32;
    let mut halves = |n: u64| -> Vec<u8> {
        let value = |_| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            half::f16::from_f32((seed >> 8) as f32 / 16_777_216.0 - 0.5)
        };
        (0..n).map(value).flat_map(half::f16::to_le_bytes).collect()
    };
    let (n_embd, n_ff, vocab) = (48u64, 72u64, 300u64);
    let tokens: Vec<String> = (0..vocab).map(|i| format!("t{i}")).collect();
    let w = one_layer(n_embd, n_ff, tokens, "t 1", &mut halves);
    let w = w.tensor("token_embd.weight", &[n_embd, vocab], 1, halves(n_embd * vocab));
    std::fs::write(path, w.to_bytes()).expect("write");
}

/// Decoding, which takes norms by the way where rows allow it, draws what the whole text evaluated at once has as its largest logits.
#[test]
fn rows_of_no_whole_blocks_are_decoded_as_they_are_evaluated() {
    let Some(context) = context(Features::ALL, Guard::default()) else { return };
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-narrow.gguf", std::process::id()));
    narrow_file(&path);
    let model = load(&context, &path, KvType::F32, 64, 0);
    std::fs::remove_file(&path).expect("remove");
    for len in [3usize, 14] {
        let prompt: Vec<u32> = (0..len as u32).map(|i| (i * 37 + 5) % 300).collect();
        let mut s = session(&model);
        s.append_tokens(&prompt).expect("append");
        let drawn = generate(&mut s, &greedy(12));
        let all: Vec<u32> = prompt.iter().chain(&drawn).copied().collect();
        let rows = logits(&mut session(&model), &all[..all.len() - 1]);
        let best = |row: &[f32]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).expect("a row") as u32;
        let want: Vec<u32> = rows.chunks_exact(300).skip(len - 1).map(best).collect();
        assert_eq!(drawn, want, "after {len} tokens");
    }
}
