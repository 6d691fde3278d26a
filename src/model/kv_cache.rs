//! The paged cache of keys and values.
//!
//! Each layer has two buffers of *blocks* of [`KV_BLOCK_TOKENS`] positions, `[block][kv head][position][dimension]`. Layers whose queries
//! see the same number of positions form a *group*: a block number means the same block in every layer of its group. A sequence has a
//! table of blocks for each group; the device finds a position through the table of its slot. Blocks are reference-counted: sequences
//! share a prefix, and a shared block is copied before it is written. A group with a window gives back the blocks that fell out of it.
//!
//! Every open sequence is *promised* the blocks it may come to hold, and the pool is never smaller than its promises, so evaluation
//! does not fail for want of a block in the middle of a text. Blocks that sequences share need to be there once only; when they stop
//! sharing, the pool grows with the next evaluation of a prompt.

mod lend;

use std::ops::Range;

use crate::error::{Result, bail};
use crate::gpu::{Buffer, BufferSlice, Gpu, MemoryClass, Scope};
use crate::kernels::KvType;
use crate::kernels::constants::KV_BLOCK_TOKENS;
use crate::model::kv_blocks::{BlockTable, Group, KvExtent, WINDOW_SLACK, first_kept, first_visible};
use crate::model::spec::LayerSpec;

/// One layer's keys and values.
#[derive(Debug)]
struct Layer {
    /// Its number in the model, where other layers may have no attention.
    number: usize,
    group: usize,
    n_kv: u32,
    /// Bytes of one head at one position.
    row_bytes: u64,
    /// Keys and values; absent while the pool is empty.
    buffers: Option<(Buffer, Buffer)>,
}

impl Layer {
    /// Bytes of one block in one of the two buffers.
    fn block_bytes(&self) -> u64 {
        u64::from(self.n_kv) * u64::from(KV_BLOCK_TOKENS) * self.row_bytes
    }
}

/// Blocks and their buffers, shared by all sequences of a model.
#[derive(Debug)]
pub(crate) struct KvPool {
    kv_type: KvType,
    /// Positions that one evaluation writes, at most.
    run: u32,
    layers: Vec<Layer>,
    groups: Vec<Group>,
    high_water: u32,
    copies: u64,
    /// Changes when buffers are replaced.
    version: u64,
}

/// One block of keys or values in one layer.
#[derive(Debug)]
pub(crate) struct Piece<'a> {
    pub(crate) slice: BufferSlice<'a>,
    /// Bytes of one head at one position.
    pub(crate) row_bytes: u64,
    /// No later position follows in this layer.
    pub(crate) is_last: bool,
}

/// What the cache holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KvStats {
    /// Blocks there are, in all groups.
    pub blocks: u32,
    /// Blocks in use.
    pub used: u32,
    /// Most blocks ever in use.
    pub high_water: u32,
    /// Blocks in use that several sequences share.
    pub shared: u32,
    /// Blocks copied because a sequence wrote to one that it shared.
    pub copies: u64,
    /// Tokens in a block.
    pub block_tokens: u32,
    /// Bytes of one block of every group, keys and values: what that many tokens take as long as no window is full.
    pub block_bytes: u64,
    /// Bytes of all blocks.
    pub bytes: u64,
    /// Bytes of the blocks in use.
    pub used_bytes: u64,
    /// The groups of layers, in the order of their first layers.
    pub groups: Vec<KvGroupStats>,
}

/// What the cache of the layers with one window holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KvGroupStats {
    /// Positions that a query of these layers sees; 0 = all.
    pub window: u32,
    /// Layers.
    pub layers: u32,
    /// Blocks there are.
    pub blocks: u32,
    /// Blocks in use.
    pub used: u32,
    /// Most blocks ever in use.
    pub high_water: u32,
    /// Blocks in use that several sequences share.
    pub shared: u32,
    /// Bytes of one block, all layers of the group, keys and values.
    pub block_bytes: u64,
}

impl KvPool {
    /// Fails unless the heads of all layers can be stored as this type.
    pub(crate) fn check(kv_type: KvType, layers: &[LayerSpec]) -> Result<()> {
        let bad = |(i, l): (usize, &LayerSpec)| match l.attention() {
            Some(a) => kv_type.check(a.head_dim).map_err(|e| e.within(&format!("layer {i}"))),
            None => Ok(()),
        };
        layers.iter().enumerate().try_for_each(bad)
    }

    /// An empty pool for evaluations of up to `run` positions; it grows with its promises.
    pub(crate) fn new(kv_type: KvType, layers: &[LayerSpec], run: u32) -> Self {
        let mut groups: Vec<Group> = Vec::new();
        let layer = |(number, l): (usize, &LayerSpec)| {
            let a = l.attention()?;
            let group = groups.iter().position(|g| g.window == a.window).unwrap_or_else(|| {
                groups.push(Group::new(a.window));
                groups.len() - 1
            });
            Some(Layer { number, group, n_kv: a.n_kv, row_bytes: kv_type.row_bytes(a.head_dim), buffers: None })
        };
        let layers = layers.iter().enumerate().filter_map(layer).collect();
        Self { kv_type, run, layers, groups, high_water: 0, copies: 0, version: 0 }
    }

    pub(crate) fn kv_type(&self) -> KvType {
        self.kv_type
    }

    pub(crate) fn groups(&self) -> usize {
        self.groups.len()
    }

    /// Counts the replacements of buffers: plans that were made at another version are void.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Tables without blocks.
    pub(crate) fn tables(&self) -> Vec<BlockTable> {
        self.groups.iter().map(|_| BlockTable::default()).collect()
    }

    pub(crate) fn stats(&self) -> KvStats {
        let group = |(i, g): (usize, &Group)| {
            let layers = || self.layers.iter().filter(|l| l.group == i);
            KvGroupStats {
                window: g.window,
                layers: layers().count() as u32,
                blocks: g.blocks(),
                used: g.used(),
                high_water: g.high_water,
                shared: g.references.iter().filter(|&&r| r > 1).count() as u32,
                block_bytes: layers().map(|l| l.block_bytes() * 2).sum(),
            }
        };
        let groups: Vec<KvGroupStats> = self.groups.iter().enumerate().map(group).collect();
        KvStats {
            blocks: groups.iter().map(|g| g.blocks).sum(),
            used: groups.iter().map(|g| g.used).sum(),
            high_water: self.high_water,
            shared: groups.iter().map(|g| g.shared).sum(),
            copies: self.copies,
            block_tokens: KV_BLOCK_TOKENS,
            block_bytes: groups.iter().map(|g| g.block_bytes).sum(),
            bytes: groups.iter().map(|g| g.block_bytes * u64::from(g.blocks)).sum(),
            used_bytes: groups.iter().map(|g| g.block_bytes * u64::from(g.used)).sum(),
            groups,
        }
    }

    /// Blocks that a sequence of up to `n_ctx` positions holds at most in a group.
    fn cap(&self, group: &Group, n_ctx: u32) -> u32 {
        let all = n_ctx.div_ceil(KV_BLOCK_TOKENS);
        if group.window == 0 {
            return all;
        }
        // From the first position kept to the last one written; a run of positions that begins anywhere touches one block more.
        let span = u64::from(group.window) + u64::from(WINDOW_SLACK) + u64::from(self.run) - 1;
        (span.div_ceil(KV_BLOCK_TOKENS.into()) + 1).min(all.into()) as u32
    }

    /// Makes room for a sequence of up to `n_ctx` positions that begins with the blocks of another one's first `shared` positions.
    /// Nothing is promised on an error.
    pub(crate) fn promise(&mut self, gpu: &Gpu, n_ctx: u32, shared: u32, scope: &Scope) -> Result<()> {
        let caps: Vec<u32> = self.groups.iter().map(|g| self.cap(g, n_ctx)).collect();
        let saved = |g: &Group| if g.window == 0 { shared / KV_BLOCK_TOKENS } else { 0 };
        let wanted: Vec<u32> =
            self.groups.iter().zip(&caps).map(|(g, cap)| g.wanted(0) + cap.saturating_sub(saved(g))).collect();
        self.grow(gpu, &wanted, scope)?;
        self.groups.iter_mut().zip(caps).for_each(|(g, cap)| g.promised += cap);
        Ok(())
    }

    /// Takes a promise back, and the blocks of its tables.
    pub(crate) fn withdraw(&mut self, tables: &mut [BlockTable], n_ctx: u32) {
        self.keep(tables, 0);
        let caps: Vec<u32> = self.groups.iter().map(|g| self.cap(g, n_ctx)).collect();
        self.groups.iter_mut().zip(caps).for_each(|(g, cap)| g.promised -= cap);
    }

    /// Brings each group to at least so many blocks, keeping the contents: all of them, or none on an error.
    fn grow(&mut self, gpu: &Gpu, wanted: &[u32], scope: &Scope) -> Result<()> {
        let mut grown = Vec::new();
        for (i, layer) in self.layers.iter().enumerate() {
            let blocks = wanted[layer.group];
            if blocks <= self.groups[layer.group].blocks() {
                continue;
            }
            let bytes = layer.block_bytes() * u64::from(blocks);
            if bytes > gpu.max_binding_bytes() {
                bail!(
                    OutOfMemory,
                    "the KV cache of layer {} would take {bytes} bytes for {} positions; this adapter binds {} at most",
                    layer.number,
                    u64::from(blocks) * u64::from(KV_BLOCK_TOKENS),
                    gpu.max_binding_bytes()
                );
            }
            let make =
                |which: &str| gpu.storage(&format!("kv.{}.{which}", layer.number), bytes, MemoryClass::Kv, scope);
            grown.push((i, (make("k")?, make("v")?)));
        }
        if grown.is_empty() {
            return Ok(());
        }
        let mut recorder = gpu.recorder("kv.grow", scope);
        let mut contents = false;
        for (i, new) in &grown {
            if let Some(old) = &self.layers[*i].buffers {
                recorder.copy(old.0.whole(), new.0.slice(0, old.0.size()))?;
                recorder.copy(old.1.whole(), new.1.slice(0, old.1.size()))?;
                contents = true;
            }
        }
        if contents {
            recorder.submit()?;
        }
        for (i, new) in grown {
            self.layers[i].buffers = Some(new);
        }
        for (group, &blocks) in self.groups.iter_mut().zip(wanted) {
            group.grow(blocks.max(group.blocks()));
        }
        self.version += 1;
        Ok(())
    }

    /// What there is of a layer of the model.
    fn find(&self, layer: usize) -> Option<&Layer> {
        self.layers.iter().find(|l| l.number == layer)
    }

    /// Which group a layer belongs to.
    pub(crate) fn group_of(&self, layer: usize) -> usize {
        self.find(layer).map_or(0, |l| l.group)
    }

    /// A layer's keys and values.
    pub(crate) fn layer(&self, i: usize) -> Result<(BufferSlice<'_>, BufferSlice<'_>)> {
        match self.find(i).and_then(|l| l.buffers.as_ref()) {
            Some((k, v)) => Ok((k.whole(), v.whole())),
            None => bail!(Internal, "layer {i} has no KV cache"),
        }
    }

    /// Prepares tables for the evaluation of `positions`: gives back what is out of the windows, copies shared blocks that will be
    /// written, and takes the blocks that are missing. Everything submitted for these tables before must be complete. With `may_grow` the
    /// pool grows to what it promised, should sequences have stopped sharing; steady decode does without, since the prompt before it
    /// saw to that. On an error every position that the evaluation would see is still there.
    pub(crate) fn reserve(
        &mut self,
        gpu: &Gpu,
        tables: &mut [BlockTable],
        positions: Range<u32>,
        may_grow: bool,
        scope: &Scope,
    ) -> Result<()> {
        if !self.holds(tables, positions.start) {
            bail!(Internal, "position {} sees positions whose keys and values are not there", positions.start);
        }
        let places = positions.start / KV_BLOCK_TOKENS..positions.end.div_ceil(KV_BLOCK_TOKENS);
        for (group, table) in self.groups.iter_mut().zip(tables.iter_mut()) {
            table.drop_before(group, first_kept(group.window, positions.start));
        }
        let mut shared = Vec::new();
        for (g, (group, table)) in self.groups.iter().zip(tables.iter()).enumerate() {
            let written = places.start.max(table.first)..places.end.min(table.end());
            shared
                .extend(written.filter(|p| group.is_shared(table.blocks[(p - table.first) as usize])).map(|p| (g, p)));
        }
        if may_grow {
            let copies = |g: usize| shared.iter().filter(|s| s.0 == g).count() as u32;
            let wanted: Vec<u32> = self.groups.iter().enumerate().map(|(g, group)| group.wanted(copies(g))).collect();
            self.grow(gpu, &wanted, scope)?;
        }
        self.unshare(gpu, tables, &shared, positions.start, scope)?;
        for (group, table) in self.groups.iter_mut().zip(tables.iter_mut()) {
            let had = table.end();
            while table.end() < places.end {
                match group.take() {
                    Some(b) => table.blocks.push(b),
                    None => {
                        table.drop_from(group, had);
                        bail!(Internal, "all {} blocks of the KV cache are in use", group.blocks());
                    }
                }
            }
        }
        self.high_water = self.high_water.max(self.groups.iter().map(Group::used).sum());
        Ok(())
    }

    /// Gives tables blocks of their own at the places `shared` (group, place), with the contents before position `start`.
    fn unshare(
        &mut self,
        gpu: &Gpu,
        tables: &mut [BlockTable],
        shared: &[(usize, u32)],
        start: u32,
        scope: &Scope,
    ) -> Result<()> {
        let mut moves = Vec::with_capacity(shared.len());
        for &(g, place) in shared {
            let old = tables[g].blocks[(place - tables[g].first) as usize];
            match self.groups[g].take() {
                Some(new) => moves.push((g, place, old, new)),
                None => {
                    moves.into_iter().for_each(|(g, _, _, new)| self.groups[g].release(new));
                    bail!(Internal, "no block is left to copy a shared one to");
                }
            }
        }
        // A block that is written from its beginning needs no contents.
        let copied: Vec<_> = moves.iter().copied().filter(|m| m.1 * KV_BLOCK_TOKENS < start).collect();
        if !copied.is_empty()
            && let Err(e) = self.copy_blocks(gpu, &copied, scope)
        {
            moves.into_iter().for_each(|(g, _, _, new)| self.groups[g].release(new));
            return Err(e);
        }
        self.copies += copied.len() as u64;
        for (g, place, old, new) in moves {
            let table = &mut tables[g];
            table.blocks[(place - table.first) as usize] = new;
            table.sent = table.sent.min(place);
            self.groups[g].release(old);
        }
        Ok(())
    }

    /// Copies blocks (group, place, from, to) in all layers. wgpu copies nothing within one buffer: each goes through a transient one.
    fn copy_blocks(&self, gpu: &Gpu, copies: &[(usize, u32, u32, u32)], scope: &Scope) -> Result<()> {
        let largest = self.layers.iter().map(Layer::block_bytes).max().unwrap_or(0);
        let lease = gpu.lease("kv.copy", largest, scope)?;
        let mut recorder = gpu.recorder("kv.copy", scope);
        for &(g, _, from, to) in copies {
            for layer in self.layers.iter().filter(|l| l.group == g) {
                let (Some((k, v)), n) = (&layer.buffers, layer.block_bytes()) else { continue };
                for buffer in [k, v] {
                    let between = lease.buffer().slice(0, n);
                    recorder.copy(buffer.slice(u64::from(from) * n, n), between)?;
                    recorder.copy(between, buffer.slice(u64::from(to) * n, n))?;
                }
            }
        }
        recorder.keep(lease);
        recorder.submit().map(drop)
    }

    /// True if the tables reach up to `pos` and hold everything that the query there sees before itself.
    pub(crate) fn holds(&self, tables: &[BlockTable], pos: u32) -> bool {
        let group = |(g, t): (&Group, &BlockTable)| {
            t.first.saturating_mul(KV_BLOCK_TOKENS) <= first_visible(g.window, pos)
                && pos <= t.end().saturating_mul(KV_BLOCK_TOKENS)
        };
        self.groups.iter().zip(tables).all(group)
    }

    /// Forgets positions from `tokens` on. Returns how many of the others still count: `tokens`, or 0 if they are not all there or a window
    /// before that place was given up; then everything is forgotten.
    pub(crate) fn keep(&mut self, tables: &mut [BlockTable], tokens: u32) -> u32 {
        let kept = if self.holds(tables, tokens) { tokens } else { 0 };
        for (group, table) in self.groups.iter_mut().zip(tables) {
            table.drop_from(group, kept.div_ceil(KV_BLOCK_TOKENS));
        }
        kept
    }

    /// Tables that share the blocks of the first `tokens` positions of `tables`, which must hold them.
    pub(crate) fn share(&mut self, tables: &[BlockTable], tokens: u32) -> Vec<BlockTable> {
        let end = tokens.div_ceil(KV_BLOCK_TOKENS);
        let share = |(group, table): (&mut Group, &BlockTable)| {
            let n = end.saturating_sub(table.first).min(table.blocks.len() as u32);
            let blocks = table.blocks[..n as usize].to_vec();
            blocks.iter().for_each(|&b| group.share(b));
            BlockTable { first: table.first, blocks, sent: 0 }
        };
        self.groups.iter_mut().zip(tables).map(share).collect()
    }

    /// The blocks that a sequence needs to go on after `tokens` positions.
    pub(crate) fn extents(&self, tables: &[BlockTable], tokens: u32) -> Vec<KvExtent> {
        let end = tokens.div_ceil(KV_BLOCK_TOKENS);
        let extent = |(g, t): (&Group, &BlockTable)| {
            let first = first_kept(g.window, tokens).max(t.first).min(end);
            KvExtent { window: g.window, first, blocks: end - first }
        };
        self.groups.iter().zip(tables).map(extent).collect()
    }

    /// Fails unless extents can hold the first `tokens` positions of a sequence of this pool.
    pub(crate) fn check_extents(&self, extents: &[KvExtent], tokens: u32, n_ctx: u32) -> Result<()> {
        let fits = |(g, e): (&Group, &KvExtent)| {
            e.window == g.window
                && e.first.checked_add(e.blocks) == Some(tokens.div_ceil(KV_BLOCK_TOKENS))
                && u64::from(e.first) * u64::from(KV_BLOCK_TOKENS) <= first_visible(g.window, tokens).into()
                && e.blocks <= self.cap(g, n_ctx)
        };
        if extents.len() != self.groups.len() || !self.groups.iter().zip(extents).all(fits) {
            bail!(InvalidArgument, "blocks {extents:?} do not hold {tokens} tokens of this model");
        }
        Ok(())
    }

    /// Empties tables and gives them blocks at the places of `extents`, which were checked.
    pub(crate) fn place(
        &mut self,
        gpu: &Gpu,
        tables: &mut [BlockTable],
        extents: &[KvExtent],
        scope: &Scope,
    ) -> Result<()> {
        self.keep(tables, 0);
        let wanted: Vec<u32> = self.groups.iter().map(|g| g.wanted(0)).collect();
        self.grow(gpu, &wanted, scope)?;
        for ((group, table), extent) in self.groups.iter_mut().zip(tables.iter_mut()).zip(extents) {
            table.first = extent.first;
            table.sent = extent.first;
            for _ in 0..extent.blocks {
                match group.take() {
                    Some(b) => table.blocks.push(b),
                    None => bail!(Internal, "all {} blocks of the KV cache are in use", group.blocks()),
                }
            }
        }
        self.high_water = self.high_water.max(self.groups.iter().map(Group::used).sum());
        Ok(())
    }

    /// Bytes of the blocks of `extents` in all layers.
    pub(crate) fn extent_bytes(&self, extents: &[KvExtent]) -> u64 {
        let layer = |l: &Layer| l.block_bytes() * 2 * extents.get(l.group).map_or(0, |e| u64::from(e.blocks));
        self.layers.iter().map(layer).sum()
    }

    /// Each block of `extents`, in the order of a snapshot: by layer, keys before values, by position.
    pub(crate) fn pieces<'a>(
        &'a self,
        tables: &'a [BlockTable],
        extents: &'a [KvExtent],
    ) -> impl Iterator<Item = Piece<'a>> + 'a {
        self.layers.iter().filter_map(|l| l.buffers.as_ref().map(|b| (l, b))).flat_map(move |(layer, (k, v))| {
            let (table, extent) = (&tables[layer.group], &extents[layer.group]);
            let from = (extent.first - table.first) as usize;
            let blocks = &table.blocks[from..from + extent.blocks as usize];
            let (n, row_bytes) = (layer.block_bytes(), layer.row_bytes);
            [k, v].into_iter().flat_map(move |buffer| {
                blocks.iter().enumerate().map(move |(i, &b)| Piece {
                    slice: buffer.slice(u64::from(b) * n, n),
                    row_bytes,
                    is_last: i + 1 == blocks.len(),
                })
            })
        })
    }
}
