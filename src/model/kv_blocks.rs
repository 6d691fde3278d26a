//! Bookkeeping of the cache's blocks: who holds which, and how many there must be. It touches no device.

use crate::kernels::constants::KV_BLOCK_TOKENS;

/// Positions before its window that a group keeps, so that a sequence can take that many tokens back without evaluating it all again.
pub(crate) const WINDOW_SLACK: u32 = 64;

/// First position that the query at `pos` sees; a window of 0 sees everything.
pub(super) fn first_visible(window: u32, pos: u32) -> u32 {
    if window == 0 { 0 } else { (u64::from(pos) + 1).saturating_sub(window.into()) as u32 }
}

/// First block that a group keeps when `pos` is the next position to be evaluated.
pub(super) fn first_kept(window: u32, pos: u32) -> u32 {
    first_visible(window, pos).saturating_sub(WINDOW_SLACK) / KV_BLOCK_TOKENS
}

/// The blocks of the layers with one window.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) window: u32,
    /// How many tables hold each block.
    pub(super) references: Vec<u32>,
    free: Vec<u32>,
    /// Sum of `references`: entries of all tables.
    held: u32,
    /// Entries that the tables of all open sequences may come to have.
    pub(super) promised: u32,
    pub(super) high_water: u32,
}

impl Group {
    pub(super) fn new(window: u32) -> Self {
        Self { window, ..Self::default() }
    }

    pub(super) fn blocks(&self) -> u32 {
        self.references.len() as u32
    }

    pub(super) fn used(&self) -> u32 {
        self.blocks() - self.free.len() as u32
    }

    /// Blocks that this group must have to keep its promises after `copies` shared blocks were copied.
    ///
    /// Sharing saves blocks only where sharing lasts: sequences slide out of a window without asking.
    pub(super) fn wanted(&self, copies: u32) -> u32 {
        let saved = if self.window == 0 { self.held - self.used() } else { 0 };
        (self.promised + copies).saturating_sub(saved)
    }

    pub(super) fn take(&mut self) -> Option<u32> {
        let block = self.free.pop()?;
        self.references[block as usize] = 1;
        self.held += 1;
        self.high_water = self.high_water.max(self.used());
        Some(block)
    }

    pub(super) fn share(&mut self, block: u32) {
        self.references[block as usize] += 1;
        self.held += 1;
    }

    pub(super) fn is_shared(&self, block: u32) -> bool {
        self.references[block as usize] > 1
    }

    pub(super) fn release(&mut self, block: u32) {
        let count = &mut self.references[block as usize];
        *count -= 1;
        self.held -= 1;
        if *count == 0 {
            self.free.push(block);
        }
    }

    pub(super) fn grow(&mut self, blocks: u32) {
        let have = self.blocks();
        self.references.resize(blocks as usize, 0);
        // Lowest numbers are handed out first.
        self.free.splice(0..0, (have..blocks).rev());
    }
}

/// The blocks of one sequence in one group, in order of position.
#[derive(Debug, Default)]
pub(crate) struct BlockTable {
    /// Place of the first block: those before it fell out of the window.
    pub(super) first: u32,
    pub(super) blocks: Vec<u32>,
    /// Places below this are on the device.
    pub(super) sent: u32,
}

impl BlockTable {
    pub(super) fn end(&self) -> u32 {
        self.first + self.blocks.len() as u32
    }

    /// Place and number of the blocks that the device does not know yet.
    pub(crate) fn unsent(&self) -> (u32, &[u32]) {
        let from = self.sent.clamp(self.first, self.end());
        (from, &self.blocks[(from - self.first) as usize..])
    }

    /// The device knows all blocks.
    pub(crate) fn all_sent(&mut self) {
        self.sent = self.end();
    }

    pub(super) fn drop_before(&mut self, group: &mut Group, place: u32) {
        let n = place.saturating_sub(self.first).min(self.blocks.len() as u32);
        self.blocks.drain(..n as usize).for_each(|b| group.release(b));
        self.first += n;
    }

    pub(super) fn drop_from(&mut self, group: &mut Group, place: u32) {
        let keep = place.saturating_sub(self.first) as usize;
        while self.blocks.len() > keep {
            if let Some(b) = self.blocks.pop() {
                group.release(b);
            }
        }
        if self.blocks.is_empty() {
            self.first = self.first.min(place);
        }
        self.sent = self.sent.min(self.end());
    }
}

/// Which blocks of a group hold a sequence: `blocks` of them, the first at place `first`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvExtent {
    /// The group's window; 0 = all positions.
    pub window: u32,
    /// Place of the first block: it holds positions from `first` times [`KvStats::block_tokens`] on.
    pub first: u32,
    /// Blocks.
    pub blocks: u32,
}

#[cfg(test)]
#[path = "kv_blocks_tests.rs"]
mod tests;
