//! Split attention and its combination as one dispatch, a chain (`src/gpu/chain.rs`): parts go from one to the other by words that their one reader clears.

use crate::error::Result;
use crate::gpu::{Buffer, Chain, Gpu, Held, Recorder, Stage};
use crate::kernels::attention_decode::{ATTENTION_COMBINE, ATTENTION_DECODE, joined_vectors};
use crate::kernels::chain::{fits, is, whole};
use crate::kernels::constants::CHAIN_PART_WORDS;

/// Words for the parts of split attention that becomes a chain, where a buffer for its sums has `sums_bytes`.
pub fn attention_chain_words(sums_bytes: u64) -> u64 {
    u64::from(CHAIN_PART_WORDS) * (sums_bytes / 16)
}

/// Split attention and its combination as a chain, `None` if what is held is something else; the parts stand in `words` from word `at` on.
fn join_attention(gpu: &Gpu, held: &[Held], words: &Buffer, at: u64) -> Option<Chain> {
    let [rows, combine] = held else { return None };
    let split = is(rows, &ATTENTION_DECODE) && rows.variant.has("SPLIT") && is(combine, &ATTENTION_COMBINE);
    if !split || rows.buffer("y") != combine.buffer("sums") {
        return None;
    }
    let room = attention_chain_words(rows.bindings.iter().find(|b| b.0 == "y")?.3);
    let parts = room as u32 / CHAIN_PART_WORDS;
    let stage = |held: &Held, flag, old: &str| {
        let mut held = held.clone();
        let place = held.bindings.iter().position(|b| b.0 == old)?;
        held.bindings[place] = whole(words);
        held.bindings.retain(|b| b.0 != "tops");
        Some(Stage { held, flags: vec![flag], constants: vec![("PARTS_AT", at as u32), ("PARTS", parts)] })
    };
    let stages = vec![stage(rows, "CHAIN_OUT", "y")?, stage(combine, "CHAIN_IN", "sums")?];
    // The combination takes what attention lays out.
    let [wg, head] = ["WG", "HEAD_DIM"].map(|n| rows.variant.constant(n).unwrap_or(0));
    let vectors = match (rows.variant.has("SHUFFLE") && gpu.features().subgroups).then_some(rows) {
        Some(r) => {
            let [lanes, at_once, least] =
                ["LANES", "AT_ONCE", "LEAST_SUBGROUP"].map(|n| r.variant.constant(n).unwrap_or(1));
            at_once * joined_vectors(wg, head, lanes, least)
        }
        None => wg,
    };
    if vectors < wg {
        return None;
    }
    let chain = Chain { stages, shared: &["scratch", "fresh"], ahead: |_| false };
    fits(gpu, &chain, words, at + room).then_some(chain)
}

/// Records what `r` holds back, [`crate::kernels::attention_split`]: as one dispatch if it can be. `words` have [`attention_chain_words`] from word
/// `at` on, all 0, and they are 0 again afterwards.
///
/// # Errors
/// As [`Recorder::record`].
pub fn record_attention_chain(r: &mut Recorder<'_>, label: &'static str, words: &Buffer, at: u64) -> Result<()> {
    let held = r.take_held();
    match join_attention(r.gpu(), &held, words, at) {
        // These words have no tag.
        Some(chain) => r.record_chain(label, chain, 1),
        None => r.record_held(&held),
    }
}
