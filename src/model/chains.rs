//! Where decode steps have chains (`src/kernels/chain.rs`), and what happens when a wait in one ends in vain.

use crate::error::Result;
use crate::gpu::{Buffer, BufferSlice, Recorder, Scope};
use crate::kernels::constants::TILE_FROM;
use crate::kernels::{MAX_CHAINS, record_chain};
use crate::model::decode::BatchKind;
use crate::model::engine::Engine;
use crate::model::forward::{Batch, Forward};
use crate::model::spec::{LayerSpec, Mixer};

impl<'a> Forward<'a> {
    /// The words of chains, if a step of `rows` rows has any. Drafts have none: the device does not keep what it would need to go back. Nor have models with
    /// recurrent layers, for the same reason.
    pub(super) fn chains(&self, batch: Batch, rows: u32) -> Option<&'a Buffer> {
        let attends = |l: &LayerSpec| matches!(l.mixer, Mixer::Attention(_));
        let fits = batch == Batch::Rows && rows < TILE_FROM && self.spec.layers.iter().all(attends);
        let watched = self.lens.is_some() || self.lora.is_some();
        self.scratch.chain_words.as_ref().filter(|_| fits && !watched)
    }

    /// From here to [`Self::end_chain`] products may become one chain: from a layer's attention output, or from the products of its experts, to the first
    /// product of what follows.
    pub(super) fn begin_chain(&self, r: &mut Recorder<'_>, layer: &LayerSpec, batch: Batch, rows: u32) {
        let few = rows <= self.scratch.chain_rows();
        let fits = self.spec.layers.len() as u32 <= MAX_CHAINS && !layer.parallel && few;
        if fits && self.chains(batch, rows).is_some() {
            r.hold();
        }
    }

    /// The words that are cleared at the beginning of a step of `rows` rows, if it has chains.
    pub(super) fn cleared_words(&self, batch: Batch, rows: u32) -> Option<BufferSlice<'a>> {
        self.chains(batch, rows).and_then(|_| self.scratch.chain_words(rows))
    }

    /// Records the chain that was begun, if one was, as that of number `i` of a step of `rows` rows, counted from 1.
    pub(super) fn end_chain(&self, r: &mut Recorder<'_>, rows: u32, i: u32) -> Result<()> {
        match self.cleared_words(Batch::Rows, rows) {
            Some(words) if r.holds() => record_chain(r, words.buffer, words.size / 4, i),
            _ => Ok(()),
        }
    }
}

impl Engine {
    /// The chains' words, if a batch has chains.
    pub(super) fn chained(&self, kind: BatchKind) -> Option<&Buffer> {
        self.forward(None).chains(kind.steps, kind.sequences).filter(|_| kind.lora == 0)
    }

    /// After a batch in which a stage of a chain gave up waiting: the sequences are as they were before it, and nothing is chained from now on.
    pub(super) fn lose_chains(&mut self, scope: &Scope) -> Result<()> {
        log::warn!(
            "{}: a dispatch waited in vain for its own workgroups; operations are dispatched one by one from now on",
            self.gpu.adapter().name
        );
        self.scratch.chain_words = None;
        self.forget_plans();
        self.groups.clear();
        let mut recorder = self.recorder("decode.again", None, None, scope);
        if let Some(before) = &self.slots.states_before {
            recorder.copy(before.whole(), self.slots.states.whole())?;
        }
        recorder.submit().map(drop)
    }
}
