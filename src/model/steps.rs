//! Decode steps, recorded once. A batch of them is submitted before it is known where its sequences end, so the device looks now and then whether one still
//! runs, and leaves out the steps that follow if none does.

use std::sync::Arc;

use crate::error::Result;
use crate::gpu::{BindGroupCache, Plan, Recorder, Scope};
use crate::kernels::sample::{StepSwitch, step_switch};
use crate::model::engine::Engine;
use crate::model::sequence::Sequence;

/// Steps from one look to the next: as many and one less may be done in vain. A look is a small dispatch between two steps.
pub(super) const LOOK_EVERY: u32 = 4;

/// A decode step.
#[derive(Debug)]
pub(super) struct StepPlan {
    pub(super) step: Arc<Plan>,
    /// For batches whose sequences may end before their last step; absent where the device cannot leave anything out.
    pub(super) ending: Option<Ending>,
}

/// A decode step that the device can leave out. That costs its dispatches a read of their workgroups each.
#[derive(Debug)]
pub(super) struct Ending {
    pub(super) look: Arc<Plan>,
    pub(super) step: Arc<Plan>,
    /// Workgroups of its dispatches.
    grids: Vec<[u32; 3]>,
}

/// Whether all of a batch's sequences may end before its last step: none does that has no end tokens, and some steps too many are cheaper than to look.
pub(super) fn may_end<'a>(sequences: impl IntoIterator<Item = &'a Sequence>, tokens: u32) -> bool {
    tokens > LOOK_EVERY && sequences.into_iter().all(|s| !s.stop_ids.is_empty())
}

impl Engine {
    /// Records a look at `n` sequences.
    pub(super) fn record_look(&self, r: &mut Recorder<'_>, n: u32) -> Result<()> {
        let s = &self.scratch;
        let look = StepSwitch {
            slots: s.batch_slots.whole(),
            states: self.slots.states.whole(),
            grids: s.grids.whole(),
            live: s.live_grids.whole(),
            ring: s.ring.whole(),
        };
        r.record(step_switch(n, look)?.label("step.switch"))
    }

    /// A recorded step of `n` sequences, and the same for batches that may end early.
    pub(super) fn step_plan(
        &self,
        recorder: Recorder<'_>,
        n: u32,
        groups: &BindGroupCache,
        scope: &Scope,
    ) -> Result<Arc<StepPlan>> {
        let step = Arc::new(recorder.into_plan()?);
        let ending = match step.switched(&self.gpu, &self.scratch.live_grids) {
            Some((switched, grids)) => {
                let mut look = self.gpu.recorder("decode", scope).with_groups(groups);
                self.record_look(&mut look, n)?;
                Some(Ending { look: Arc::new(look.into_plan()?), step: Arc::new(switched), grids })
            }
            None => None,
        };
        Ok(Arc::new(StepPlan { step, ending }))
    }

    /// Tells the device the workgroups of a step that it may leave out, if it has others.
    pub(super) fn send_grids(&mut self, ending: &Ending, scope: &Scope) -> Result<()> {
        if self.grids != ending.grids {
            self.gpu.upload(self.scratch.grids.whole(), bytemuck::cast_slice(&ending.grids), scope)?;
            self.grids.clone_from(&ending.grids);
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "steps_tests.rs"]
mod tests;
