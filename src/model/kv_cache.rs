//! The paged cache of keys and values.
//!
//! Each layer has two buffers of *blocks* of [`KV_BLOCK_TOKENS`] positions, `[block][kv head][position][dimension]`; a block number
//! means the same block in every layer. A sequence has a table of blocks; blocks are reference-counted, so sequences can share a
//! prefix. The device finds a position through the table of its slot.

use std::ops::Range;

use crate::error::{Result, bail};
use crate::gpu::{Buffer, BufferSlice, Gpu, MemoryClass, Scope};
use crate::kernels::KvType;
use crate::kernels::constants::KV_BLOCK_TOKENS;
use crate::model::spec::LayerSpec;

/// Blocks and their buffers, shared by all sequences of a model.
#[derive(Debug)]
pub(crate) struct KvPool {
    kv_type: KvType,
    /// Elements of one block in one of a layer's two buffers.
    block_elements: Vec<u64>,
    layers: Vec<(Buffer, Buffer)>,
    references: Vec<u32>,
    free: Vec<u32>,
    high_water: u32,
}

/// What the cache holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KvStats {
    /// Blocks there are.
    pub blocks: u32,
    /// Blocks in use.
    pub used: u32,
    /// Most blocks ever in use.
    pub high_water: u32,
    /// Tokens in a block.
    pub block_tokens: u32,
    /// Bytes of one block, all layers, keys and values.
    pub block_bytes: u64,
}

impl KvPool {
    /// An empty pool; [`KvPool::grow`] gives it blocks.
    pub(crate) fn new(kv_type: KvType, layers: &[LayerSpec]) -> Self {
        let block_elements =
            layers.iter().map(|l| u64::from(l.attention.kv_width()) * u64::from(KV_BLOCK_TOKENS)).collect();
        Self { kv_type, block_elements, layers: Vec::new(), references: Vec::new(), free: Vec::new(), high_water: 0 }
    }

    pub(crate) fn kv_type(&self) -> KvType {
        self.kv_type
    }

    pub(crate) fn stats(&self) -> KvStats {
        KvStats {
            blocks: self.references.len() as u32,
            used: self.used(),
            high_water: self.high_water,
            block_tokens: KV_BLOCK_TOKENS,
            block_bytes: self.block_elements.iter().sum::<u64>() * 2 * self.kv_type.bytes(),
        }
    }

    fn used(&self) -> u32 {
        (self.references.len() - self.free.len()) as u32
    }

    /// Brings the pool to at least `blocks` blocks, keeping the contents. Buffers are replaced: plans that bind them are void.
    pub(crate) fn grow(&mut self, gpu: &Gpu, blocks: u32, scope: &Scope) -> Result<()> {
        let have = self.references.len() as u32;
        if blocks <= have {
            return Ok(());
        }
        let mut grown = Vec::with_capacity(self.block_elements.len());
        for (i, &elements) in self.block_elements.iter().enumerate() {
            let bytes = elements * self.kv_type.bytes() * u64::from(blocks);
            if bytes > gpu.max_binding_bytes() {
                bail!(
                    OutOfMemory,
                    "the KV cache of layer {i} would take {bytes} bytes for {} positions; this adapter binds {} at most",
                    u64::from(blocks) * u64::from(KV_BLOCK_TOKENS),
                    gpu.max_binding_bytes()
                );
            }
            let make = |which: &str| gpu.storage(&format!("kv.{i}.{which}"), bytes, MemoryClass::Kv, scope);
            grown.push((make("k")?, make("v")?));
        }
        if !self.layers.is_empty() {
            let mut recorder = gpu.recorder("kv.grow", scope);
            for (old, new) in self.layers.iter().zip(&grown) {
                recorder.copy(old.0.whole(), new.0.slice(0, old.0.size()))?;
                recorder.copy(old.1.whole(), new.1.slice(0, old.1.size()))?;
            }
            recorder.submit()?;
        }
        self.layers = grown;
        self.references.resize(blocks as usize, 0);
        // Lowest numbers are handed out first.
        self.free.splice(0..0, (have..blocks).rev());
        Ok(())
    }

    /// A layer's keys and values.
    pub(crate) fn layer(&self, i: usize) -> Result<(BufferSlice<'_>, BufferSlice<'_>)> {
        match self.layers.get(i) {
            Some((k, v)) => Ok((k.whole(), v.whole())),
            None => bail!(Internal, "layer {i} has no KV cache"),
        }
    }

    fn take(&mut self) -> Option<u32> {
        let block = self.free.pop()?;
        self.references[block as usize] = 1;
        self.high_water = self.high_water.max(self.used());
        Some(block)
    }

    fn release(&mut self, block: u32) {
        let count = &mut self.references[block as usize];
        *count = count.saturating_sub(1);
        if *count == 0 {
            self.free.push(block);
        }
    }
}

/// The blocks of one sequence, in order of position.
#[derive(Debug, Default)]
pub(crate) struct BlockTable {
    blocks: Vec<u32>,
}

impl BlockTable {
    /// Takes blocks until `tokens` positions have a place. Returns which entries are new; nothing changes on an error.
    pub(crate) fn reserve(&mut self, pool: &mut KvPool, tokens: u32) -> Result<Range<usize>> {
        let first = self.blocks.len();
        let wanted = tokens.div_ceil(KV_BLOCK_TOKENS) as usize;
        while self.blocks.len() < wanted {
            match pool.take() {
                Some(b) => self.blocks.push(b),
                None => {
                    let stats = pool.stats();
                    self.truncate(pool, first as u32 * KV_BLOCK_TOKENS);
                    bail!(OutOfMemory, "all {} blocks of the KV cache are in use", stats.blocks);
                }
            }
        }
        Ok(first..self.blocks.len().max(first))
    }

    /// Gives back the blocks that hold nothing of the first `tokens` positions.
    pub(crate) fn truncate(&mut self, pool: &mut KvPool, tokens: u32) {
        let keep = tokens.div_ceil(KV_BLOCK_TOKENS) as usize;
        while self.blocks.len() > keep {
            if let Some(b) = self.blocks.pop() {
                pool.release(b);
            }
        }
    }

    pub(crate) fn blocks(&self) -> &[u32] {
        &self.blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(blocks: u32) -> KvPool {
        let mut p = KvPool::new(KvType::F16, &[]);
        p.references = vec![0; blocks as usize];
        p.free = (0..blocks).rev().collect();
        p
    }

    #[test]
    fn tables_take_and_give_back_whole_blocks() {
        let mut p = pool(4);
        let (mut a, mut b) = (BlockTable::default(), BlockTable::default());
        assert_eq!(a.reserve(&mut p, 1).unwrap(), 0..1);
        assert_eq!(a.reserve(&mut p, 32).unwrap(), 1..1);
        assert_eq!(a.reserve(&mut p, 33).unwrap(), 1..2);
        assert_eq!(b.reserve(&mut p, 64).unwrap(), 0..2);
        assert_eq!(p.stats().used, 4);
        assert!(b.reserve(&mut p, 65).is_err());
        assert_eq!((b.blocks().len(), p.stats().used), (2, 4));
        a.truncate(&mut p, 1);
        assert_eq!((a.blocks().len(), p.stats().used, p.stats().high_water), (1, 3, 4));
        a.truncate(&mut p, 0);
        b.truncate(&mut p, 0);
        assert_eq!(p.stats().used, 0);
        assert!(p.references.iter().all(|&r| r == 0));
    }
}
