//! How a step chooses tokens: which kernels that takes.

use crate::error::Result;
use crate::gpu::{BufferSlice, Recorder};
use crate::kernels::sample::{Chunks, SamplingBuffers, SeqState, StepEnd, argmax, check_stop, greedy, penalize, pick};
use crate::model::forward::Forward;
use crate::sample::SamplingOptions;

/// How the tokens of a step are chosen, from the least work to the most: sequences that decode together take the most that one of them wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Choice {
    /// All are the largest logits, as they come.
    Greedy,
    /// As each slot's sampling says.
    #[default]
    Drawn,
    /// That, after penalties and bias.
    Changed,
}

impl Choice {
    pub(super) const ALL: [Self; 3] = [Self::Greedy, Self::Drawn, Self::Changed];

    /// What these options want.
    pub(super) fn of(options: &SamplingOptions) -> Self {
        match options.has_penalties() || !options.logit_bias.is_empty() {
            true => Self::Changed,
            false if options.is_greedy() || options.top_k == 1 => Self::Greedy,
            false => Self::Drawn,
        }
    }
}

impl<'a> Forward<'a> {
    /// Logits, changed first if that is wanted, to the best of each chunk.
    fn best_of_chunks(&self, r: &mut Recorder<'_>, n: u32, b: SamplingBuffers<'a>, choice: Choice) -> Result<Chunks> {
        let (s, vocab) = (self.scratch, self.spec.n_vocab);
        let cut = Chunks::of(vocab);
        if choice == Choice::Changed {
            r.record(penalize(n, vocab, s.logits.whole(), b)?.label("sample.penalize"))?;
        }
        r.record(argmax(n, vocab, cut, s.logits.whole(), s.partial.whole())?.label("sample.argmax"))?;
        Ok(cut)
    }

    fn sampling_buffers(&self, rows: BufferSlice<'a>) -> SamplingBuffers<'a> {
        SamplingBuffers {
            rows,
            sampling: self.slots.sampling.whole(),
            history: self.slots.history.whole(),
            history_cap: self.slots.history_cap(),
            bias: self.slots.bias.whole(),
        }
    }

    /// Chooses a token of each of the first `n` rows of logits, whose slots and positions stand in `rows`, into `scratch.picked`.
    pub(crate) fn draw(&self, r: &mut Recorder<'_>, n: u32, rows: BufferSlice<'a>, choice: Choice) -> Result<()> {
        let (s, buffers) = (self.scratch, self.sampling_buffers(rows));
        let cut = self.best_of_chunks(r, n, buffers, choice)?;
        let (logits, partial, picked) = (s.logits.whole(), s.partial.whole(), s.picked.whole());
        r.record(pick(n, self.spec.n_vocab, cut, logits, buffers, partial, picked)?.label("sample.pick"))
    }

    /// As [`Forward::draw`], of rows of different sequences, and moves these on.
    pub(crate) fn sample(&self, r: &mut Recorder<'_>, n: u32, rows: BufferSlice<'a>, choice: Choice) -> Result<()> {
        let (s, picked, states) = (self.scratch, self.scratch.picked.whole(), self.slots.states.whole());
        let (stop_ids, ring) = (self.slots.stop_ids.whole(), s.ring.whole());
        let end = StepEnd { rows, states, stop_ids, ring, out_offset: 0 };
        if choice == Choice::Greedy {
            let cut = self.best_of_chunks(r, n, self.sampling_buffers(rows), choice)?;
            r.record(greedy(n, cut, s.partial.whole(), picked, end)?.label("sample.greedy"))?;
        } else {
            self.draw(r, n, rows, choice)?;
            r.record(check_stop(n, picked, end)?.label("sample.stop"))?;
        }
        if let Some(lens) = self.lens {
            lens.probe.words(r, "sample.picked", None, lens.position, picked, n)?;
        }
        self.look_slot(r, "stop.state", None, states, (size_of::<SeqState>() / 4) as u32)
    }
}
