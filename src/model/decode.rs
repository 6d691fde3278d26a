//! Decoding: steps recorded once as plans, batches of them submitted, the next one encoded while the device is busy.

use std::sync::Arc;
use std::time::Duration;

use crate::error::{Result, bail};
use crate::gpu::{Encoded, FaultPoint, Gate, Phase, Place, ReadbackClass, Recorder, Scope, Submission};
use crate::kernels::sample::NO_TOKEN;
use crate::model::draw::Choice;
use crate::model::engine::{Drawn, Engine, MAX_SEQUENCES, MAX_TOKENS_PER_SUBMIT};
use crate::model::forward::Batch;
use crate::model::sequence::Sequence;
use crate::model::steps::{LOOK_EVERY, StepPlan, may_end};

/// How long before and after the time at which a batch is likely to be done the device is watched; no more than an eighth of what it takes.
const WATCH: Duration = Duration::from_micros(500);

/// The tokens of a decode batch with their stop flags.
const DECODE_TOKENS: Gate = Gate::new(Place::Pipeline, ReadbackClass::Token, "decode.tokens");

/// What a decode batch's commands depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BatchKind {
    pub(super) sequences: u32,
    pub(super) tokens: u32,
    pub(super) choice: Choice,
    pub(super) steps: Batch,
    /// All of its sequences may end before its last step.
    pub(super) ends: bool,
    /// The number of their [`LoraSet`], or 0.
    pub(super) lora: u64,
}

/// How the tokens of all of them are chosen by one step.
fn together<'a>(sequences: impl IntoIterator<Item = &'a Sequence>) -> Choice {
    sequences.into_iter().map(|s| s.choice).max().unwrap_or_default()
}

/// The decode batch that comes after a prompt.
#[derive(Debug, Clone, Copy)]
pub struct Follows<'a> {
    /// Sequences that are in it beside the prompt's.
    pub others: &'a [&'a Sequence],
    /// Tokens for each.
    pub tokens: u32,
    /// What it is charged to.
    pub scope: &'a Scope,
}

impl Engine {
    /// Most sequences that one [`Engine::decode`] takes.
    pub fn max_sequences(&self) -> u32 {
        MAX_SEQUENCES.min(self.scratch.rows)
    }

    /// Makes everything that decoding these sequences together needs, and the pipelines of smaller batches with it, so that nothing compiles when
    /// some of them have ended. Comes after [`Engine::prewarm`].
    ///
    /// # Errors
    /// What compiling reports.
    pub fn prewarm_batch(&mut self, sequences: &[&mut Sequence], scope: &Scope) -> Result<()> {
        let n = sequences.len() as u32;
        if n > self.max_sequences() {
            bail!(InvalidArgument, "decode of {n} sequences");
        }
        if n > self.batch_compiled {
            let mut survey = self.gpu.survey(scope);
            for smaller in self.batch_compiled + 1..=n {
                self.forward(None).decode_step(&mut survey, smaller, Choice::Changed, Batch::Rows)?;
            }
            self.gpu.compile(&survey.into_survey(), scope)?;
            self.batch_compiled = n;
        }
        self.prepare_decode(n, together(sequences.iter().map(|s| &**s)), scope)
    }

    /// Builds the plan of a decode step ahead of its first use, so that steady decode makes nothing.
    ///
    /// # Errors
    /// What building it reports.
    pub fn prepare_decode(&mut self, sequences: u32, choice: Choice, scope: &Scope) -> Result<()> {
        self.decode_plan(sequences, choice, Batch::Rows, scope).map(drop)
    }

    /// Copies what step `i` of `n` sequences drew to where it is read.
    pub(super) fn hand_out(&self, recorder: &mut Recorder<'_>, n: u32, i: u32) -> Result<()> {
        let step = u64::from(n) * 8;
        recorder.copy(self.scratch.ring.slice(0, step), self.staging.slice(u64::from(i) * step, step))
    }

    /// The plan of a step of a batch, with its adapters if it has any.
    fn batch_plan(&mut self, kind: BatchKind, scope: &Scope) -> Result<Arc<StepPlan>> {
        match kind.lora {
            0 => self.decode_plan(kind.sequences, kind.choice, kind.steps, scope),
            lora => self.lora_plan(kind.sequences, kind.choice, lora, scope),
        }
    }

    fn record_batch(&self, plan: &StepPlan, kind: BatchKind, scope: &Scope) -> Result<Recorder<'_>> {
        let mut recorder = self.recorder("decode", None, None, scope);
        let chained = self.chained(kind).zip(self.slots.states_before.as_ref());
        if let Some((_, before)) = chained {
            recorder.copy(self.slots.states.whole(), before.whole())?;
        }
        let ending = plan.ending.as_ref().filter(|_| kind.ends);
        for i in 0..kind.tokens {
            if let Some(ending) = ending.filter(|_| i.is_multiple_of(LOOK_EVERY)) {
                recorder.replay(&ending.look);
            }
            recorder.replay(ending.map_or(&plan.step, |e| &e.step));
            self.hand_out(&mut recorder, kind.sequences, i)?;
        }
        if let Some((words, _)) = chained {
            let at = u64::from(kind.tokens) * u64::from(kind.sequences) * 8;
            recorder.copy(words.slice(0, 8), self.staging.slice(at, 8))?;
        }
        Ok(recorder)
    }

    fn encode_batch(&mut self, kind: BatchKind, scope: &Scope) -> Result<Encoded> {
        let plan = self.batch_plan(kind, scope)?;
        self.record_batch(&plan, kind, scope)?.encode()
    }

    /// Submits a decode batch, and encodes the one `then` while the device is busy: its commands depend on nothing that this one draws.
    fn submit_batch(&mut self, kind: BatchKind, then: Option<BatchKind>, scope: &Scope) -> Result<Submission> {
        let ahead = self.ahead.take().filter(|(k, _)| *k == kind);
        let plan = self.batch_plan(kind, scope)?;
        if let Some(ending) = plan.ending.as_ref().filter(|_| kind.ends) {
            self.send_grids(ending, scope)?;
        }
        // Time stamps belong to the submit that was encoded last, so none is encoded ahead, and what was has none.
        if self.gpu.profiling() {
            return self.record_batch(&plan, kind, scope)?.submit();
        }
        let encoded = match ahead {
            Some((_, encoded)) => encoded?,
            None => self.record_batch(&plan, kind, scope)?.encode()?,
        };
        let submission = encoded.submit(&self.gpu, scope)?;
        if let Some(then) = then {
            self.encode_ahead(then, scope);
        }
        Ok(submission)
    }

    /// Encodes a decode batch for later, if it is not there yet. What is under way goes on if that fails: the batch reports it when its turn comes.
    fn encode_ahead(&mut self, kind: BatchKind, scope: &Scope) {
        if !self.gpu.profiling() && self.ahead.as_ref().is_none_or(|(k, e)| *k != kind || e.is_err()) {
            self.ahead = Some((kind, self.encode_batch(kind, scope)));
        }
    }

    /// [`Engine::encode_ahead`] for the batch that follows the prompt of `sequence`, if its pipelines are there: the prompt's token does not wait for
    /// a compiler.
    pub(super) fn encode_following(&mut self, sequence: &Sequence, follows: Follows<'_>) {
        let sequences = follows.others.len() as u32 + 1;
        let choice = together(follows.others.iter().copied().chain([sequence]));
        let steps = if sequences == 1 { sequence.steps() } else { Batch::Rows };
        let ends = may_end(follows.others.iter().copied().chain([sequence]), follows.tokens);
        let kind = BatchKind { sequences, tokens: follows.tokens, choice, steps, ends, lora: sequence.lora_id() };
        let compiled = sequences <= self.batch_compiled;
        // What a plan makes is no part of decoding.
        if compiled && self.batch_plan(kind, &follows.scope.clone().in_phase(Phase::Load)).is_ok() {
            self.encode_ahead(kind, follows.scope);
        }
    }

    /// Tells the device which slots the next batch is of.
    pub(super) fn seat(&mut self, slots: Vec<u32>, scope: &Scope) -> Result<()> {
        if self.batch != slots {
            self.gpu.upload(self.scratch.batch_slots.whole(), bytemuck::cast_slice(&slots), scope)?;
            self.batch = slots;
        }
        Ok(())
    }

    /// Pairs of words that a batch left to be read, once it is done.
    fn read_batch(
        &mut self,
        kind: BatchKind,
        submission: &Submission,
        pairs: u32,
        scope: &Scope,
    ) -> Result<Vec<[u32; 2]>> {
        // It takes about as long as the last one.
        if let Some((_, took)) = self.last_batch.filter(|(k, _)| *k == kind) {
            self.gpu.watch(submission, took, WATCH.min(took / 8));
        }
        let mut words = vec![[0u32; 2]; pairs as usize];
        let out = bytemuck::cast_slice_mut(&mut words);
        self.gpu.read_staging(&self.staging, submission, out, DECODE_TOKENS, scope)?;
        self.last_batch = Some((kind, submission.at().elapsed()));
        Ok(words)
    }

    /// Draws `tokens` tokens for each sequence in one submit and one readback. `positions[i]` is how many tokens of sequence `i` are in
    /// the cache. Per step and sequence, in this order: a token, or `None` if the sequence had stopped before. `then` says how many tokens the next
    /// batch will have, if there is one: it is encoded while the device is busy with this one.
    ///
    /// # Errors
    /// [`crate::Error::ContextFull`] if a sequence has no room left, or what the device reports.
    pub fn decode(
        &mut self,
        sequences: &mut [&mut Sequence],
        positions: &[u32],
        tokens: u32,
        then: u32,
        scope: &Scope,
    ) -> Result<Vec<Vec<Option<Drawn>>>> {
        let n = sequences.len() as u32;
        if n == 0 || n > self.max_sequences() || tokens == 0 || tokens > MAX_TOKENS_PER_SUBMIT {
            bail!(InvalidArgument, "decode of {n} sequences x {tokens} tokens");
        }
        self.gpu.gate(&DECODE_TOKENS, scope)?;
        if sequences.iter().any(|s| s.is_probed()) && (n > 1 || tokens > 1) {
            bail!(InvalidArgument, "a probed sequence decodes alone, one token a submit");
        }
        let set = sequences.first().and_then(|s| s.lora.clone());
        let lora = set.as_ref().map_or(0, |set| set.id());
        if sequences.iter().any(|s| s.lora_id() != lora) {
            bail!(InvalidArgument, "sequences with different adapters do not decode together");
        }
        for sequence in sequences.iter() {
            self.pass_gates(sequence, scope)?;
        }
        for (sequence, &pos) in sequences.iter_mut().zip(positions) {
            // Rows of a stopped sequence are computed but not used: they write within its pages.
            let end = (pos + tokens).min(sequence.n_ctx);
            if pos >= sequence.n_ctx {
                bail!(ContextFull, "{pos} positions in a context of {}", sequence.n_ctx);
            }
            self.reserve(sequence, pos..end, false, scope)?;
            self.send_state(sequence, scope)?;
        }
        if let Some(set) = &set {
            self.warm_loras(set, scope)?;
        }
        let choice = together(sequences.iter().map(|s| &**s));
        self.seat(sequences.iter().map(|s| s.slot).collect(), scope)?;
        let lens = sequences.first().zip(positions.first()).and_then(|(s, &pos)| s.lens(pos));
        let steps = if let [one] = &*sequences { one.steps() } else { Batch::Rows };
        let ends = may_end(sequences.iter().map(|s| &**s), tokens);
        let kind = BatchKind { sequences: n, tokens, choice, steps, ends, lora };
        let ends = may_end(sequences.iter().map(|s| &**s), then);
        let then = (then > 0).then_some(BatchKind { tokens: then, ends, ..kind });
        let (submission, seen) = match lens {
            Some(lens) => {
                let mut recorder = self.recorder("decode", Some(lens), None, scope);
                self.forward(Some(lens)).adapted(set.as_deref()).decode_step(&mut recorder, n, choice, steps)?;
                self.hand_out(&mut recorder, n, 0)?;
                let seen = lens.probe.finish(&mut recorder)?;
                (recorder.submit()?, Some(seen))
            }
            None => (self.submit_batch(kind, then, scope)?, None),
        };
        let chained = seen.is_none() && self.chained(kind).is_some();
        let mut words = self.read_batch(kind, &submission, n * tokens + u32::from(chained), scope)?;
        let in_vain = chained && words.pop().is_some_and(|w| w[0] != 0);
        if in_vain || (chained && self.gpu.fault(FaultPoint::Chain).is_err()) {
            self.lose_chains(scope)?;
            self.batch_plan(kind, &scope.clone().in_phase(Phase::Load))?;
            let again = self.submit_batch(kind, None, scope)?;
            words = self.read_batch(kind, &again, n * tokens, scope)?;
        }
        for (i, (sequence, &pos)) in sequences.iter_mut().zip(positions).enumerate() {
            // A sequence's rows count up to the one that stopped it.
            let ran = words.iter().skip(i).step_by(n as usize).filter(|w| w[0] != NO_TOKEN).count();
            self.recurrent.finish(&mut sequence.trail, pos + ran as u32);
        }
        if let Some(first) = sequences.first_mut() {
            self.read_probe(first, seen, &submission, scope)?;
        }
        let vocab = self.spec.n_vocab;
        words.chunks(n as usize).map(|step| step.iter().map(|&w| Drawn::of(w, vocab)).collect()).collect()
    }
}
