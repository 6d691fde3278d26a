//! Per-sequence data on the device, by slot: state, sampling, history, stop ids, bias, block tables.

use crate::error::{Result, bail};
use crate::gpu::{Buffer, BufferSlice, Gpu, MemoryClass, Scope};
use crate::kernels::Places;
use crate::kernels::constants::KV_BLOCK_TOKENS;
use crate::kernels::sample::{BIAS_BYTES, BIAS_ENTRIES, MAX_STOP_IDS, SeqState};
use crate::sample::{SampleParams, SamplingOptions};

/// The slot arrays of a model.
#[derive(Debug)]
pub(crate) struct Slots {
    n_ctx: u32,
    used: Vec<bool>,
    pub(crate) states: Buffer,
    /// What they were before the last batch, where there are chains.
    pub(crate) states_before: Option<Buffer>,
    pub(crate) sampling: Buffer,
    pub(crate) history: Buffer,
    pub(crate) stop_ids: Buffer,
    pub(crate) bias: Buffer,
    /// Block tables `[slot][table_stride]`, one buffer for each group of the cache.
    pub(crate) tables: Vec<Buffer>,
    /// Where each slot's recurrent states are.
    pub(crate) places: Buffer,
}

impl Slots {
    /// Arrays for `count` slots of contexts up to `n_ctx`, with `groups` block tables each.
    pub(crate) fn new(gpu: &Gpu, count: u32, n_ctx: u32, groups: usize, scope: &Scope) -> Result<Self> {
        let make = |name: &str, bytes: u64, class| gpu.storage(name, u64::from(count) * bytes, class, scope);
        let table = u64::from(n_ctx.div_ceil(KV_BLOCK_TOKENS)) * 4;
        Ok(Self {
            n_ctx,
            used: vec![false; count as usize],
            states: make("slots.state", size_of::<SeqState>() as u64, MemoryClass::Other)?,
            states_before: match gpu.features().chains {
                true => Some(make("slots.state_before", size_of::<SeqState>() as u64, MemoryClass::Other)?),
                false => None,
            },
            sampling: make("slots.sampling", size_of::<SampleParams>() as u64, MemoryClass::Other)?,
            history: make("slots.history", u64::from(n_ctx) * 4, MemoryClass::Other)?,
            stop_ids: make("slots.stop_ids", u64::from(MAX_STOP_IDS) * 4, MemoryClass::Other)?,
            bias: make("slots.bias", u64::from(BIAS_ENTRIES) * BIAS_BYTES, MemoryClass::Other)?,
            places: make("slots.places", size_of::<Places>() as u64, MemoryClass::Other)?,
            tables: (0..groups).map(|_| make("slots.tables", table, MemoryClass::Kv)).collect::<Result<_>>()?,
        })
    }

    /// Positions that a slot's history has.
    pub(crate) fn history_cap(&self) -> u32 {
        self.n_ctx
    }

    /// Entries of a slot's block table.
    pub(crate) fn table_stride(&self) -> u32 {
        self.n_ctx.div_ceil(KV_BLOCK_TOKENS)
    }

    /// A free slot, if any.
    pub(crate) fn take(&mut self) -> Option<u32> {
        let i = self.used.iter().position(|u| !u)?;
        self.used[i] = true;
        Some(i as u32)
    }

    pub(crate) fn release(&mut self, slot: u32) {
        if let Some(u) = self.used.get_mut(slot as usize) {
            *u = false;
        }
    }

    /// Twice the slots, with the old ones' contents. Buffers are replaced: plans that bind them are void.
    pub(crate) fn doubled(&self, gpu: &Gpu, scope: &Scope) -> Result<Self> {
        let mut grown = Self::new(gpu, self.used.len() as u32 * 2, self.n_ctx, self.tables.len(), scope)?;
        let mut recorder = gpu.recorder("slots.grow", scope);
        for (old, new) in self.buffers().zip(grown.buffers()) {
            recorder.copy(old.whole(), new.slice(0, old.size()))?;
        }
        recorder.submit()?;
        grown.used[..self.used.len()].copy_from_slice(&self.used);
        Ok(grown)
    }

    fn buffers(&self) -> impl Iterator<Item = &Buffer> {
        [&self.states, &self.sampling, &self.history, &self.stop_ids, &self.bias, &self.places]
            .into_iter()
            .chain(&self.tables)
    }

    fn entry<'a>(buffer: &'a Buffer, slot: u32, stride: u64, first: u64) -> BufferSlice<'a> {
        buffer.slice(u64::from(slot) * stride + first, stride - first)
    }

    /// Sets a sequence running from `pos` on: its next row is at `pos`, and it stops on `n_stop` ids or at `limit`.
    pub(crate) fn set_state(&self, gpu: &Gpu, slot: u32, state: SeqState, scope: &Scope) -> Result<()> {
        let bytes = size_of::<SeqState>() as u64;
        gpu.upload(Self::entry(&self.states, slot, bytes, 0), bytemuck::bytes_of(&state), scope)
    }

    /// Tells where a sequence's recurrent states are.
    pub(crate) fn set_places(&self, gpu: &Gpu, slot: u32, places: Places, scope: &Scope) -> Result<()> {
        let bytes = size_of::<Places>() as u64;
        gpu.upload(Self::entry(&self.places, slot, bytes, 0), bytemuck::bytes_of(&places), scope)
    }

    /// Sets how a sequence draws, and the ids that end it.
    pub(crate) fn configure(
        &self,
        gpu: &Gpu,
        slot: u32,
        options: &SamplingOptions,
        stop_ids: &[u32],
        scope: &Scope,
    ) -> Result<()> {
        if stop_ids.len() > MAX_STOP_IDS as usize {
            bail!(InvalidArgument, "{} stop ids, {MAX_STOP_IDS} are possible", stop_ids.len());
        }
        let params = SampleParams::from(options);
        let bytes = size_of::<SampleParams>() as u64;
        gpu.upload(Self::entry(&self.sampling, slot, bytes, 0), bytemuck::bytes_of(&params), scope)?;
        let stride = u64::from(MAX_STOP_IDS) * 4;
        gpu.upload(Self::entry(&self.stop_ids, slot, stride, 0), bytemuck::cast_slice(stop_ids), scope)?;
        let bias: Vec<[u32; 2]> = options.logit_bias.iter().map(|&(t, v)| [t, v.to_bits()]).collect();
        let stride = u64::from(BIAS_ENTRIES) * BIAS_BYTES;
        gpu.upload(Self::entry(&self.bias, slot, stride, 0), bytemuck::cast_slice(&bias), scope)
    }

    /// Writes tokens of a sequence from position `pos` on.
    pub(crate) fn set_history(&self, gpu: &Gpu, slot: u32, pos: u32, tokens: &[u32], scope: &Scope) -> Result<()> {
        let target = Self::entry(&self.history, slot, u64::from(self.n_ctx) * 4, u64::from(pos) * 4);
        gpu.upload(target, bytemuck::cast_slice(tokens), scope)
    }

    /// Writes entries of a sequence's block table in a group, from `first` on.
    pub(crate) fn set_table(
        &self,
        gpu: &Gpu,
        slot: u32,
        group: usize,
        first: usize,
        blocks: &[u32],
        scope: &Scope,
    ) -> Result<()> {
        let Some(tables) = self.tables.get(group) else { bail!(Internal, "no block tables of group {group}") };
        let target = Self::entry(tables, slot, u64::from(self.table_stride()) * 4, first as u64 * 4);
        gpu.upload(target, bytemuck::cast_slice(blocks), scope)
    }
}
