//! Reading back: what may be read, from where, under which name; and the one place that does it.
//!
//! Every readback passes a [`Gate`] before its work is recorded. The gate knows the *place* (which part of the library asks) and
//! the *class* (a result the caller waits for, or an extra for a person to look at); the guard of the scope decides
//! ([`crate::gpu::Guard::gate`]). Refusals are counted like readbacks, so a summary shows both.

use std::fmt;
use std::time::Duration;

use crate::error::{Error, Result, bail};
use crate::gpu::buffer::{Buffer, BufferSlice};
use crate::gpu::counters::Scope;
use crate::gpu::device::Gpu;
use crate::gpu::fault::FaultPoint;
use crate::gpu::recorder::Submission;

/// What is read back. `Token`, `Logits`, `Embedding`, `State` and `Score` are what a caller asked for (required);
/// `Debug` and `Profile` are extras that a guard may refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReadbackClass {
    /// Sampled tokens and their stop flags.
    Token,
    /// Logits a caller asked for.
    Logits,
    /// Embeddings a caller asked for.
    Embedding,
    /// Sequence state: snapshots, saves.
    State,
    /// Intermediate tensors, looked at by a person.
    Debug,
    /// Timestamps.
    Profile,
    /// Probabilities of given tokens a caller asked for.
    Score,
}

/// How many classes there are.
pub(crate) const CLASSES: usize = 7;

impl ReadbackClass {
    /// All classes, in the order of [`crate::gpu::PhaseSnapshot::readbacks`].
    pub const ALL: [ReadbackClass; CLASSES] = [
        ReadbackClass::Token,
        ReadbackClass::Logits,
        ReadbackClass::Embedding,
        ReadbackClass::State,
        ReadbackClass::Debug,
        ReadbackClass::Profile,
        ReadbackClass::Score,
    ];

    /// Lower-case name.
    pub fn name(self) -> &'static str {
        ["token", "logits", "embedding", "state", "debug", "profile", "score"][self as usize]
    }

    /// True for the classes without which the caller's request cannot be answered.
    pub fn required(self) -> bool {
        !matches!(self, ReadbackClass::Debug | ReadbackClass::Profile)
    }
}

/// Which part of the library reads back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// The token pipeline: tokens drawn after a prompt or in a decode batch.
    Pipeline,
    /// A layer's intermediate tensors.
    Layer,
    /// Logits.
    Logits,
    /// The KV cache.
    KvCache,
    /// GPU times.
    Profiler,
    /// Candidates and choices of the samplers.
    Sample,
    /// State of the stop check.
    CheckStop,
    /// Converted or repacked data, compared with what it was made from.
    Cast,
    /// A buffer, read by a tool or a test.
    Pool,
    /// Scores and embeddings.
    Results,
}

impl Place {
    /// All places, in the order of [`crate::gpu::CounterSnapshot::places`].
    pub const ALL: [Place; PLACES] = [
        Place::Pipeline,
        Place::Layer,
        Place::Logits,
        Place::KvCache,
        Place::Profiler,
        Place::Sample,
        Place::CheckStop,
        Place::Cast,
        Place::Pool,
        Place::Results,
    ];

    /// Lower-case name.
    pub fn name(self) -> &'static str {
        ["pipeline", "layer", "logits", "kv-cache", "profiler", "sample", "check-stop", "cast", "pool", "results"]
            [self as usize]
    }
}

/// How many places there are.
pub(crate) const PLACES: usize = 10;

/// Leave to read something back: asked for before the work is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gate {
    /// Who asks.
    pub place: Place,
    /// For what.
    pub class: ReadbackClass,
    /// The tensor or value, such as `"decode.token"` or `"attn.out"`.
    pub what: &'static str,
    /// Its layer, if it has one.
    pub layer: Option<u32>,
}

impl Gate {
    /// A gate outside the layers.
    pub const fn new(place: Place, class: ReadbackClass, what: &'static str) -> Self {
        Self { place, class, what, layer: None }
    }
}

/// A buffer read by a tool or a test.
impl From<ReadbackClass> for Gate {
    fn from(class: ReadbackClass) -> Self {
        Gate::new(Place::Pool, class, "read")
    }
}

impl fmt::Display for Gate {
    /// `place.what` or `place.what.layer`: the reason that a refusal gives.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.place.name(), self.what)?;
        self.layer.map_or(Ok(()), |l| write!(f, ".{l}"))
    }
}

impl Gpu {
    /// Asks the scope's guard for leave to read back; a refusal is counted.
    ///
    /// # Errors
    /// [`Error::Guard`] with the reason, for a class that is not required in strict mode.
    pub fn gate(&self, gate: &Gate, scope: &Scope) -> Result<()> {
        let answer = scope.guard.gate(gate);
        if answer.is_err() {
            scope.refused(gate);
        }
        answer
    }

    /// Reads a range of a buffer back: passes the gate, copies, submits, waits.
    ///
    /// # Errors
    /// [`Error::Guard`] if the guard refuses the gate; else as [`crate::gpu::Recorder::submit`].
    pub fn download(&self, source: BufferSlice<'_>, gate: impl Into<Gate>, scope: &Scope) -> Result<Vec<u8>> {
        let gate = gate.into();
        self.gate(&gate, scope)?;
        let lease = self.lease_readback(source.size, scope)?;
        let mut recorder = self.recorder("download", scope);
        recorder.copy(source, lease.buffer().slice(0, source.size))?;
        let submission = recorder.submit()?;
        let mut bytes = vec![0; source.size as usize];
        self.read_staging(lease.buffer(), &submission, &mut bytes, gate, scope)?;
        Ok(bytes)
    }

    /// Maps the start of a readback buffer once `submission` is complete and copies it to `out`. One readback is counted. The gate was passed
    /// before the submission was recorded.
    pub(crate) fn read_staging(
        &self,
        staging: &Buffer,
        submission: &Submission,
        out: &mut [u8],
        gate: impl Into<Gate>,
        scope: &Scope,
    ) -> Result<()> {
        let gate = gate.into();
        self.map_staging(staging, submission, out)?;
        scope.read_back(gate.class, &[(gate.place, out.len() as u64)]);
        Ok(())
    }

    /// [`Gpu::read_staging`] without the counting.
    pub(crate) fn map_staging(&self, staging: &Buffer, submission: &Submission, out: &mut [u8]) -> Result<()> {
        if let Err(e) = self.fault(FaultPoint::Map) {
            // As a failing map: the submission runs to its end before its buffers can be used again.
            self.wait(submission)?;
            return Err(e);
        }
        let slice = staging.raw().slice(0..out.len().next_multiple_of(4) as u64);
        let (done, outcome) = std::sync::mpsc::channel();
        slice.map_async(wgpu::MapMode::Read, move |r| {
            // The receiver is gone only if the wait below failed.
            let _ = done.send(r);
        });
        if let Err(e) = self.wait(submission) {
            // Takes the mapping request back, so that the buffer can be used again.
            staging.raw().unmap();
            return Err(e);
        }
        // The submission is complete, but another thread's poll may have taken our callback and not called it yet.
        let outcome = loop {
            match outcome.recv_timeout(Duration::from_millis(1)) {
                Ok(o) => break o,
                Err(_) => {
                    self.completed();
                    self.check()?;
                }
            }
        };
        if outcome.is_err() {
            staging.raw().unmap();
            self.check()?;
            bail!(Gpu, "mapping \"{}\" for reading failed", staging.label());
        }
        let copied = slice.get_mapped_range().map(|view| out.copy_from_slice(&view[..out.len()]));
        staging.raw().unmap();
        copied.map_err(|e| Error::Gpu(format!("mapped range of \"{}\": {e}", staging.label())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_name_place_tensor_and_layer() {
        let gate = Gate { layer: Some(3), ..Gate::new(Place::Layer, ReadbackClass::Debug, "attn.out") };
        assert_eq!(gate.to_string(), "layer.attn.out.3");
        assert_eq!(Gate::from(ReadbackClass::State).to_string(), "pool.read");
        for (i, p) in Place::ALL.iter().enumerate() {
            assert_eq!(*p as usize, i);
        }
    }
}
