//! Failures on demand, so that error paths can be run: nothing is left to chance that a driver decides.
//!
//! [`Gpu::inject_fault`] makes the n-th operation of a kind fail from now on, once. Where nothing is injected this is one relaxed
//! load an operation.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::error::{Error, Result};
use crate::gpu::device::Gpu;

/// Where a failure can be injected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultPoint {
    /// Making a buffer.
    Buffer,
    /// Compiling a pipeline.
    Pipeline,
    /// Recording a dispatch, copy or clear.
    Record,
    /// Handing commands to the queue: nothing of them runs.
    Submit,
    /// Waiting for work that runs all the same.
    Wait,
    /// Mapping a buffer to read it.
    Map,
    /// A wait within a chain: it ends in vain, and what was computed is computed again without chains.
    Chain,
}

impl FaultPoint {
    /// All points.
    pub const ALL: [FaultPoint; 7] = [
        FaultPoint::Buffer,
        FaultPoint::Pipeline,
        FaultPoint::Record,
        FaultPoint::Submit,
        FaultPoint::Wait,
        FaultPoint::Map,
        FaultPoint::Chain,
    ];
}

/// How many operations are left before the one that fails; 0 = none fails.
#[derive(Debug, Default)]
pub(crate) struct Faults([AtomicU64; FaultPoint::ALL.len()]);

impl Faults {
    fn due(&self, point: FaultPoint) -> bool {
        let left = &self.0[point as usize];
        if left.load(Relaxed) == 0 {
            return false;
        }
        left.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1)) == Ok(1)
    }
}

impl Gpu {
    /// Makes the `nth` (from 1) operation of a kind from now on fail, once; 0 takes it back. For tests of error paths.
    pub fn inject_fault(&self, point: FaultPoint, nth: u64) {
        self.faults().0[point as usize].store(nth, Relaxed);
    }

    /// Fails if a failure is due here.
    pub(crate) fn fault(&self, point: FaultPoint) -> Result<()> {
        match self.faults().due(point) {
            true => Err(Error::Gpu(format!("injected failure: {point:?}"))),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_operation_fails_once() {
        let f = Faults::default();
        f.0[FaultPoint::Map as usize].store(2, Relaxed);
        let map: Vec<bool> = (0..4).map(|_| f.due(FaultPoint::Map)).collect();
        assert_eq!(map, [false, true, false, false]);
        assert!(!f.due(FaultPoint::Submit));
    }
}
