//! Keys and values of a sequence, and its recurrent states, as bytes: written to a snapshot, and taken from one.

use crate::error::{Result, bail};
use crate::gpu::{Gate, Place, ReadbackClass, Scope};
use crate::kernels::constants::KV_BLOCK_TOKENS;
use crate::model::engine::Engine;
use crate::model::kv_blocks::KvExtent;
use crate::model::sequence::Sequence;

const SNAPSHOT: Gate = Gate::new(Place::KvCache, ReadbackClass::State, "snapshot");

/// Bytes that are handed to the queue before they are flushed: its own copy of them is bounded by this.
const UPLOAD_BATCH: u64 = 64 << 20;

impl Engine {
    /// The blocks that a snapshot of a sequence's first `tokens` positions holds.
    pub fn kv_extents(&self, sequence: &Sequence, tokens: u32) -> Vec<KvExtent> {
        self.kv.extents(&sequence.tables, tokens)
    }

    /// Bytes of such blocks, and of recurrent states.
    pub fn kv_bytes(&self, extents: &[KvExtent], tokens: u32) -> u64 {
        let states = if tokens > 0 { self.recurrent.place_bytes() } else { 0 };
        self.kv.extent_bytes(extents) + states
    }

    /// Reads the keys and values of `extents` back, by layer, keys before values, by position, and then the recurrent states, by layer; in one
    /// submit and one readback. Positions from `tokens` on are zeros: what stood there before is nobody's business.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] unless `extents` are those of [`Engine::kv_extents`], [`crate::Error::OutOfMemory`] if there is no
    /// room for reading them, or what the device reports.
    pub fn save(&self, sequence: &Sequence, extents: &[KvExtent], tokens: u32, scope: &Scope) -> Result<Vec<u8>> {
        if !self.keeps(sequence, tokens) || extents != self.kv_extents(sequence, tokens) {
            bail!(InvalidArgument, "saving {tokens} tokens whose keys and values are not all there");
        }
        let size = self.kv_bytes(extents, tokens);
        if size == 0 {
            return Ok(Vec::new());
        }
        self.gpu.gate(&SNAPSHOT, scope)?;
        let staging = self.gpu.staging("snapshot", size, scope)?;
        let mut recorder = self.gpu.recorder("snapshot", scope);
        let mut at = 0;
        let blocks = self.kv.pieces(&sequence.tables, extents).map(|p| p.slice);
        for slice in blocks.chain(self.recurrent.pieces(&sequence.trail, tokens)) {
            recorder.copy(slice, staging.slice(at, slice.size))?;
            at += slice.size;
        }
        let submission = recorder.submit()?;
        let mut bytes = vec![0; size as usize];
        self.gpu.read_staging(&staging, &submission, &mut bytes, SNAPSHOT, scope)?;
        let rows = (tokens % KV_BLOCK_TOKENS) as usize;
        let mut rest = bytes.as_mut_slice();
        for piece in self.kv.pieces(&sequence.tables, extents) {
            let (block, behind) = rest.split_at_mut(piece.slice.size as usize);
            rest = behind;
            if piece.is_last && rows > 0 {
                let row = piece.row_bytes as usize;
                block.chunks_exact_mut(row * KV_BLOCK_TOKENS as usize).for_each(|head| head[rows * row..].fill(0));
            }
        }
        Ok(bytes)
    }

    /// Fails unless extents with so many bytes can be loaded into a sequence as its first `tokens` positions. Touches nothing.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] if they do not belong to as many tokens of this model, [`crate::Error::ContextFull`] if the tokens
    /// do not fit.
    pub fn check_kv(&self, sequence: &Sequence, tokens: u32, extents: &[KvExtent], bytes: u64) -> Result<()> {
        if tokens > sequence.n_ctx {
            bail!(ContextFull, "{tokens} tokens in a context of {}", sequence.n_ctx);
        }
        self.kv.check_extents(extents, tokens, sequence.n_ctx)?;
        let wanted = self.kv_bytes(extents, tokens);
        if bytes != wanted {
            bail!(InvalidArgument, "{bytes} bytes of keys and values for {tokens} tokens, {wanted} are wanted");
        }
        Ok(())
    }

    /// Replaces what a sequence holds by the keys and values that [`Engine::save`] gave for `tokens`. On an error the sequence is empty.
    ///
    /// # Errors
    /// As [`Engine::check_kv`], or what the device reports.
    pub fn load(
        &mut self,
        sequence: &mut Sequence,
        tokens: &[u32],
        extents: &[KvExtent],
        bytes: &[u8],
        scope: &Scope,
    ) -> Result<()> {
        let checked = self.check_kv(sequence, tokens.len() as u32, extents, bytes.len() as u64);
        let loaded = checked.and_then(|()| self.place_bytes(sequence, tokens, extents, bytes, scope));
        if loaded.is_err() {
            self.truncate(sequence, 0);
        }
        loaded
    }

    fn place_bytes(
        &mut self,
        sequence: &mut Sequence,
        tokens: &[u32],
        extents: &[KvExtent],
        bytes: &[u8],
        scope: &Scope,
    ) -> Result<()> {
        self.with_pool(|kv, gpu| kv.place(gpu, &mut sequence.tables, extents, scope))?;
        let n = tokens.len() as u32;
        self.recurrent.place(&mut sequence.trail, n)?;
        let (mut rest, mut pending) = (bytes, 0);
        let blocks = self.kv.pieces(&sequence.tables, extents).map(|p| p.slice);
        for slice in blocks.chain(self.recurrent.pieces(&sequence.trail, n)) {
            let (block, behind) = rest.split_at(slice.size as usize);
            rest = behind;
            self.gpu.upload(slice, block, scope)?;
            pending += slice.size;
            if pending >= UPLOAD_BATCH {
                self.gpu.flush(scope)?;
                pending = 0;
            }
        }
        self.slots.set_history(&self.gpu, sequence.slot, 0, tokens, scope)?;
        self.send_tables(sequence, scope)
    }
}
