//! Blocks on loan: for sequences that begin where another one is and end before anything else is evaluated. They take what is free, promised
//! to others or not, so nothing is promised to them; whoever lends keeps the engine until they are back.

use crate::error::{Result, bail};
use crate::gpu::{Gpu, Scope};
use crate::kernels::constants::KV_BLOCK_TOKENS;
use crate::model::kv_blocks::{BlockTable, Group};
use crate::model::kv_cache::{KvPool, Layer};

/// Blocks that a sequence up to `end` needs of its own beyond the full blocks of the first `start` positions.
fn own_blocks(start: u32, end: u32) -> u32 {
    end.div_ceil(KV_BLOCK_TOKENS).saturating_sub(start / KV_BLOCK_TOKENS)
}

impl KvPool {
    /// How many of the first sequences, from `start` up to each of `ends`, find free blocks together, in a pool that is at least as large as for one
    /// sequence of `n_ctx` positions; one of them does at least.
    pub(in crate::model) fn lendable(&self, n_ctx: u32, start: u32, ends: impl Iterator<Item = u32>) -> usize {
        let free = |g: &Group| g.blocks().max(self.cap(g, n_ctx)) - g.used();
        let free = self.groups.iter().map(free).min().unwrap_or(u32::MAX);
        let mut needed = 0u32;
        let fits = |end: u32| {
            needed = needed.saturating_add(own_blocks(start, end));
            needed <= free
        };
        ends.map(fits).take_while(|&f| f).count().max(1)
    }

    /// Tables that share what `trunk` holds of the first `start` positions, and have blocks of their own from there up to each of `ends`. A block
    /// that `start` lies within is copied for each, all of them in one submit. The pool grows only where free blocks are too few, to what one sequence of
    /// `n_ctx` positions takes at least. Nothing is taken on an error. They go back through [`KvPool::take_back`].
    pub(in crate::model) fn lend(
        &mut self,
        gpu: &Gpu,
        n_ctx: u32,
        trunk: &[BlockTable],
        start: u32,
        ends: &[u32],
        scope: &Scope,
    ) -> Result<Vec<Vec<BlockTable>>> {
        if !self.holds(trunk, start) {
            bail!(Internal, "position {start} sees positions whose keys and values are not there");
        }
        let needed: u32 = ends.iter().map(|&end| own_blocks(start, end)).sum();
        let wanted = |g: &Group| match g.used() + needed {
            n if n <= g.blocks() => g.blocks(),
            n => n.max(self.cap(g, n_ctx)),
        };
        let wanted: Vec<u32> = self.groups.iter().map(wanted).collect();
        self.grow(gpu, &wanted, scope)?;
        let mut lent: Vec<Vec<BlockTable>> = Vec::with_capacity(ends.len());
        for &end in ends {
            let mut tables = self.share(trunk, start / KV_BLOCK_TOKENS * KV_BLOCK_TOKENS);
            let mut short = false;
            for (group, table) in self.groups.iter_mut().zip(&mut tables) {
                while !short && table.end() < end.div_ceil(KV_BLOCK_TOKENS) {
                    match group.take() {
                        Some(b) => table.blocks.push(b),
                        None => short = true,
                    }
                }
            }
            lent.push(tables);
            if short {
                self.take_back(&mut lent);
                bail!(Internal, "the KV cache has no block to lend");
            }
        }
        self.high_water = self.high_water.max(self.groups.iter().map(|g| g.used()).sum());
        if !start.is_multiple_of(KV_BLOCK_TOKENS)
            && let Err(e) = self.copy_tails(gpu, trunk, start / KV_BLOCK_TOKENS, &lent, scope)
        {
            self.take_back(&mut lent);
            return Err(e);
        }
        Ok(lent)
    }

    /// Takes lent tables back, and leaves them empty.
    pub(in crate::model) fn take_back(&mut self, lent: &mut [Vec<BlockTable>]) {
        for tables in lent {
            self.keep(tables, 0);
        }
    }

    /// Copies the block at `place` of `trunk` to the same place of each of `lent` that has one, in all layers.
    fn copy_tails(
        &mut self,
        gpu: &Gpu,
        trunk: &[BlockTable],
        place: u32,
        lent: &[Vec<BlockTable>],
        scope: &Scope,
    ) -> Result<()> {
        let block = |t: &BlockTable| t.blocks.get(place.checked_sub(t.first)? as usize).copied();
        let lease = gpu.lease("kv.copy", self.layers.iter().map(Layer::block_bytes).max().unwrap_or(0), scope)?;
        let mut recorder = gpu.recorder("kv.copy", scope);
        for layer in &self.layers {
            let (Some((k, v)), n) = (&layer.buffers, layer.block_bytes()) else { continue };
            let Some(from) = block(&trunk[layer.group]) else {
                bail!(Internal, "a sequence has no block at place {place}")
            };
            for buffer in [k, v] {
                // wgpu copies nothing within one buffer.
                let between = lease.buffer().slice(0, n);
                recorder.copy(buffer.slice(u64::from(from) * n, n), between)?;
                for to in lent.iter().filter_map(|tables| block(&tables[layer.group])) {
                    recorder.copy(between, buffer.slice(u64::from(to) * n, n))?;
                }
            }
        }
        recorder.keep(lease);
        recorder.submit()?;
        self.copies += (lent.len() * self.groups.len()) as u64;
        Ok(())
    }
}
