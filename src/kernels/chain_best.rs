//! The choice of a token as the last stage of a chain ([`crate::kernels::chain`]): the product that makes logits leaves the best of what its threads have
//! made (`shaders/lib/chain_best.wgsl`), in the place of the best of each chunk of logits.

use crate::gpu::{Grid, Held, Stage};
use crate::kernels::chain::{Joining, is};
use crate::kernels::constants::{CHAIN_BEST_WORDS, CHAIN_BESTS};
use crate::kernels::matmul::MATMUL_VEC;

/// The best of what a product makes, by which a token is chosen.
pub(super) struct Best {
    /// The buffer that would have it.
    partial: u64,
    at: u32,
    entries: u32,
    /// Whether someone chooses.
    pub(super) read: bool,
}

impl Joining {
    /// The best of the one row of logits that a stage makes.
    pub(super) fn best_of(&mut self, h: &Held) -> Option<Best> {
        let logits = h.buffer("logits")?;
        let by = self.stages.iter().position(|s| is(&s.held, &MATMUL_VEC) && s.held.buffer("y") == Some(logits))?;
        let product = &self.stages[by].held;
        let [wg, team, together] = ["WG", "TEAM", "REDUCE"].map(|n| product.variant.constant(n));
        let made = wg? / team? * if product.variant.has("QUAD") { 4 } else { 1 };
        let Grid::Direct([groups, 1, 1]) = product.grid else { return None };
        // Of a row in one part, by workgroups of which each thread has a result of a tile at most; a word has room for an id.
        let whole = product.param("n") == h.param("vocab") && product.param("y_offset") == Some(0);
        let one = [h.param("rows"), product.param("t_rows"), product.variant.constant("NT")] == [Some(1); 3];
        let dense = made.is_multiple_of(together?) && made <= wg? && h.param("vocab")? < 1 << 24;
        let entries = groups * (made / together?);
        if !whole
            || !one
            || !dense
            || entries > CHAIN_BESTS
            || !self.stages[by].flags.contains(&"CHAIN_IN")
            || self.best.is_some()
        {
            return None;
        }
        let at = self.take_words(u64::from(CHAIN_BEST_WORDS * entries)) as u32;
        let by = &mut self.stages[by];
        by.flags.push("CHAIN_BEST_OUT");
        by.constants.extend([("BEST_AT", at), ("BESTS", entries)]);
        Some(Best { partial: h.buffer("partial")?, at, entries, read: false })
    }

    /// The choice of a token by the best that a stage leaves, as the last stage.
    pub(super) fn choose(&mut self, h: &Held) -> Option<()> {
        let best = self.best.as_mut().filter(|b| h.buffer("partial") == Some(b.partial) && !b.read)?;
        best.read = true;
        let mut held = h.clone();
        let threads = self.stages.first()?.held.variant.constant("WG")?;
        held.variant.constants.iter_mut().filter(|c| c.0 == "WG").for_each(|c| c.1 = threads);
        let constants = vec![("BEST_AT", best.at), ("BESTS", best.entries)];
        self.stages.push(Stage { held, flags: vec!["CHAIN_BEST_IN"], constants });
        Some(())
    }
}
