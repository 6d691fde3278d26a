//! Planning scratch memory: regions that are never needed at the same time share a buffer.
//!
//! A region says in which steps it holds something. Regions get whole buffers, not ranges of one: wgpu tracks how a buffer is used as a whole, so
//! a dispatch may not read one range of a buffer and write another.

use crate::error::Result;
use crate::gpu::buffer::{Buffer, MemoryClass};
use crate::gpu::counters::Scope;
use crate::gpu::device::Gpu;

/// The steps in which a region holds something: bit `i` stands for step `i`. Between its first write and its last read all steps belong to it.
pub type Steps = u64;

/// Needed in every step.
pub const ALWAYS: Steps = u64::MAX;

/// Which region of an [`ArenaPlan`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region(usize);

#[derive(Debug)]
struct Wanted {
    name: String,
    bytes: u64,
    steps: Steps,
}

/// Regions to be placed.
#[derive(Debug, Default)]
pub struct ArenaPlan {
    regions: Vec<Wanted>,
}

/// A buffer of the arena before it is made.
#[derive(Debug)]
struct Place {
    bytes: u64,
    steps: Steps,
    regions: Vec<usize>,
}

/// The placed regions.
#[derive(Debug)]
pub struct Arena {
    buffers: Vec<Buffer>,
    requested: u64,
}

impl ArenaPlan {
    /// Adds a region.
    pub fn add(&mut self, name: &str, bytes: u64, steps: Steps) -> Region {
        self.regions.push(Wanted { name: name.to_string(), bytes, steps });
        Region(self.regions.len() - 1)
    }

    /// Largest regions first, each into the first buffer that is free in its steps.
    fn places(&self) -> Vec<Place> {
        let mut order: Vec<usize> = (0..self.regions.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(self.regions[i].bytes));
        let mut places: Vec<Place> = Vec::new();
        for i in order {
            let r = &self.regions[i];
            match places.iter_mut().find(|p| p.steps & r.steps == 0) {
                Some(p) => {
                    p.steps |= r.steps;
                    p.regions.push(i);
                }
                None => places.push(Place { bytes: r.bytes, steps: r.steps, regions: vec![i] }),
            }
        }
        places
    }

    /// Makes the buffers.
    ///
    /// # Errors
    /// As [`Gpu::storage`]; nothing is kept then.
    pub fn build(&self, gpu: &Gpu, class: MemoryClass, scope: &Scope) -> Result<Arena> {
        let mut buffers: Vec<Option<Buffer>> = vec![None; self.regions.len()];
        for place in self.places() {
            let names: Vec<_> = place.regions.iter().map(|&i| self.regions[i].name.as_str()).collect();
            let buffer = gpu.storage(&names.join("+"), place.bytes, class, scope)?;
            for i in place.regions {
                buffers[i] = Some(buffer.clone());
            }
        }
        let requested = self.regions.iter().map(|r| r.bytes).sum();
        Ok(Arena { buffers: buffers.into_iter().flatten().collect(), requested })
    }
}

impl Arena {
    /// The buffer of a region: at least as large as asked for.
    pub fn buffer(&self, region: Region) -> Buffer {
        self.buffers[region.0].clone()
    }

    /// Bytes asked for by all regions; the difference to what the memory account shows is what sharing saved.
    pub fn requested_bytes(&self) -> u64 {
        self.requested
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_share_only_where_their_steps_are_apart() {
        let mut plan = ArenaPlan::default();
        let sizes = [(100, 0b0011), (80, 0b0110), (60, 0b1100), (50, 0b1000), (10, ALWAYS)];
        for (i, (bytes, steps)) in sizes.iter().enumerate() {
            plan.add(&i.to_string(), *bytes, *steps);
        }
        let places = plan.places();
        for p in &places {
            for (n, &a) in p.regions.iter().enumerate() {
                assert!(p.bytes >= sizes[a].0);
                assert!(p.regions[n + 1..].iter().all(|&b| sizes[a].1 & sizes[b].1 == 0));
            }
        }
        // 100 with 60, 80 with 50, and the one that is always needed.
        assert_eq!(places.iter().map(|p| p.bytes).collect::<Vec<_>>(), [100, 80, 10]);
        assert_eq!(places.iter().map(|p| p.regions.len()).sum::<usize>(), sizes.len());
    }
}
