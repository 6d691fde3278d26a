//! Sequences: opening, forking, truncating, closing, and the pages they hold.

use std::ops::Range;
use std::sync::Arc;

use crate::error::{Result, bail};
use crate::gpu::{Gpu, Phase, Scope};
use crate::kernels::sample::SeqState;
use crate::model::draw::Choice;
use crate::model::engine::Engine;
use crate::model::kv_blocks::BlockTable;
use crate::model::kv_cache::{KvPool, KvStats};
use crate::model::lora::LoraSet;
use crate::model::probe::{Lens, Probe, ProbeReading};
use crate::model::recurrent::state::{RecurrentStats, Trail};

/// A sequence: its slot and its pages. Made by [`Engine::open`] or [`Engine::fork`], given back with [`Engine::close`].
#[derive(Debug)]
pub struct Sequence {
    pub(super) slot: u32,
    pub(super) n_ctx: u32,
    /// One for each group of the cache.
    pub(super) tables: Vec<BlockTable>,
    /// Its recurrent states.
    pub(super) trail: Trail,
    /// How its tokens are chosen.
    pub(super) choice: Choice,
    /// What ends it when it is drawn.
    pub(super) stop_ids: Vec<u32>,
    pub(super) probe: Option<Probe>,
    /// Drafts of it are verified.
    pub(super) drafts: bool,
    /// Where it stands, if the device does not know yet.
    pub(super) state: Option<SeqState>,
    /// Its adapters, if it has any.
    pub(super) lora: Option<Arc<LoraSet>>,
}

impl Sequence {
    /// Positions this sequence may have.
    pub fn n_ctx(&self) -> u32 {
        self.n_ctx
    }

    /// What its probe has seen and was not taken yet.
    pub fn readings(&self) -> &[ProbeReading] {
        self.probe.as_ref().map(Probe::readings).unwrap_or_default()
    }

    /// What its probe has seen since this was asked last.
    pub fn take_readings(&mut self) -> Vec<ProbeReading> {
        self.probe.as_mut().map(Probe::take).unwrap_or_default()
    }

    /// Its probe, at rows from `position` on.
    pub(super) fn lens(&self, position: u32) -> Option<Lens<'_>> {
        self.probe.as_ref().map(|probe| Lens { probe, slot: self.slot, position })
    }

    /// Whether something looks at its tensors.
    pub fn is_probed(&self) -> bool {
        self.probe.is_some()
    }
}

impl Engine {
    /// State of the KV cache.
    pub fn kv_stats(&self) -> KvStats {
        self.kv.stats()
    }

    /// What recurrent states take.
    pub fn recurrent_stats(&self) -> RecurrentStats {
        self.recurrent.stats()
    }

    /// Does something with the pool; plans that bind buffers it replaced are forgotten, whatever came of it. [`Engine::prewarm`] builds
    /// them again before the next step is counted.
    pub(super) fn with_pool<T>(&mut self, work: impl FnOnce(&mut KvPool, &Gpu) -> Result<T>) -> Result<T> {
        let before = self.kv.version();
        let result = work(&mut self.kv, &self.gpu);
        if self.kv.version() != before {
            self.forget_plans();
        }
        result
    }

    /// As [`Engine::with_pool`], for one more sequence's recurrent states.
    pub(super) fn promise_states(&mut self, scope: &Scope) -> Result<()> {
        let before = self.recurrent.version();
        let result = self.recurrent.promise(&self.gpu, scope);
        if self.recurrent.version() != before {
            self.forget_plans();
        }
        result
    }

    pub(super) fn take_slot(&mut self, scope: &Scope) -> Result<u32> {
        if let Some(slot) = self.slots.take() {
            return Ok(slot);
        }
        self.slots = self.slots.doubled(&self.gpu, scope)?;
        self.forget_plans();
        match self.slots.take() {
            Some(slot) => Ok(slot),
            None => bail!(Internal, "no slot after growing"),
        }
    }

    /// Slot and promise of a new sequence, whose first `shared` positions are another one's.
    fn admit(&mut self, n_ctx: u32, shared: u32, scope: &Scope) -> Result<Sequence> {
        let slot = self.take_slot(scope)?;
        if let Err(e) = self.with_pool(|kv, gpu| kv.promise(gpu, n_ctx, shared, scope)) {
            self.slots.release(slot);
            return Err(e);
        }
        let mut tables = self.kv.tables();
        if let Err(e) = self.promise_states(scope) {
            self.kv.withdraw(&mut tables, n_ctx);
            self.slots.release(slot);
            return Err(e);
        }
        Ok(Sequence {
            slot,
            n_ctx,
            tables,
            trail: Trail::default(),
            choice: Choice::default(),
            stop_ids: Vec::new(),
            probe: None,
            drafts: false,
            state: None,
            lora: None,
        })
    }

    /// Opens a sequence of up to `n_ctx` positions; the cache grows to hold it.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] for a context beyond the model's, [`crate::Error::OutOfMemory`].
    pub fn open(&mut self, n_ctx: u32, scope: &Scope) -> Result<Sequence> {
        if n_ctx == 0 || n_ctx > self.options.n_ctx {
            bail!(
                InvalidArgument,
                "a context of {n_ctx} positions; the model was loaded for 1..={}",
                self.options.n_ctx
            );
        }
        self.admit(n_ctx, 0, scope)
    }

    /// Opens a sequence that begins as `parent` does: with the keys and values of its first tokens, which are `tokens`. Nothing is
    /// evaluated and no page is copied: pages are shared until one of the two writes to them. It has the same adapters; how it draws is to be configured.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] if a window before the end of `tokens` was given up ([`Engine::keeps`]),
    /// [`crate::Error::OutOfMemory`].
    pub fn fork(&mut self, parent: &Sequence, tokens: &[u32], scope: &Scope) -> Result<Sequence> {
        let n = tokens.len() as u32;
        if n > parent.n_ctx || !self.keeps(parent, n) {
            bail!(InvalidArgument, "a fork after {n} tokens: their keys and values are not all there");
        }
        let mut child = self.admit(parent.n_ctx, n, scope)?;
        child.lora = parent.lora.clone();
        if n > 0 {
            child.tables = self.kv.share(&parent.tables, n);
            child.trail = self.recurrent.share(&parent.trail, n);
        }
        match self.slots.set_history(&self.gpu, child.slot, 0, tokens, scope) {
            Ok(()) => Ok(child),
            Err(e) => {
                self.close(child);
                Err(e)
            }
        }
    }

    /// Gives a sequence's slot and pages back.
    pub fn close(&mut self, mut sequence: Sequence) {
        self.kv.withdraw(&mut sequence.tables, sequence.n_ctx);
        self.recurrent.withdraw(&mut sequence.trail);
        self.slots.release(sequence.slot);
        drop(sequence);
        self.drop_stale_batch();
    }

    /// Whether a sequence can go on after the first `tokens` tokens as it is. It cannot if they were not evaluated, or if a layer's window
    /// before that place was given up, or if there is no recurrent state of just that place.
    pub fn keeps(&self, sequence: &Sequence, tokens: u32) -> bool {
        let states = self.recurrent.holds(&sequence.trail, tokens);
        tokens == 0 || (states && self.kv.holds(&sequence.tables, tokens))
    }

    /// Forgets a sequence's positions from `tokens` on. Returns how many of the first `tokens` positions still count: all of them; or none
    /// if a layer's window before that place was given up already; or with recurrent layers as many as there is a state for. The others are to
    /// be evaluated again then.
    pub fn truncate(&mut self, sequence: &mut Sequence, tokens: u32) -> u32 {
        let tokens = self.recurrent.latest(&sequence.trail, tokens);
        let kept = self.kv.keep(&mut sequence.tables, tokens);
        self.recurrent.cut(&mut sequence.trail, kept);
        kept
    }

    /// Takes pages, and a place for recurrent states, for the evaluation of `positions` and tells the device which. Between the tokens of a text (`may_grow` is false)
    /// no buffer is made. Growing, and copying what is shared no longer, is upkeep of the cache: it counts for neither prompts nor decoding.
    pub(super) fn reserve(
        &mut self,
        sequence: &mut Sequence,
        positions: Range<u32>,
        may_grow: bool,
        scope: &Scope,
    ) -> Result<()> {
        if positions.end > sequence.n_ctx {
            bail!(ContextFull, "{} positions in a context of {}", positions.end, sequence.n_ctx);
        }
        let upkeep = scope.clone().in_phase(Phase::Other);
        let start = positions.start;
        let before = self.kv.version();
        self.with_pool(|kv, gpu| kv.reserve(gpu, &mut sequence.tables, positions, may_grow, &upkeep))?;
        if may_grow && self.kv.version() != before {
            self.prewarm(&upkeep)?;
        }
        if !self.recurrent.is_empty() {
            let places = self.recurrent.begin(&mut sequence.trail, start, may_grow)?;
            self.slots.set_places(&self.gpu, sequence.slot, places, scope)?;
        }
        self.send_tables(sequence, scope)
    }

    /// Uploads what the device does not know of a sequence's tables.
    pub(super) fn send_tables(&self, sequence: &mut Sequence, scope: &Scope) -> Result<()> {
        for (group, table) in sequence.tables.iter_mut().enumerate() {
            let (first, blocks) = table.unsent();
            if !blocks.is_empty() {
                self.slots.set_table(&self.gpu, sequence.slot, group, first as usize, blocks, scope)?;
            }
            table.all_sent();
        }
        Ok(())
    }
}
