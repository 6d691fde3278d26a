//! The engine of one model: slots, cache, scratch and plans, and the three things it does: prefill, decode, logits.
//!
//! The engine holds no policy: which tokens, when to stop and what to show is the session's business. A sequence's length is the
//! caller's to keep; nothing here counts as done before the device has finished it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::error::{Result, bail};
use crate::gpu::{
    BindGroupCache, Buffer, Encoded, Gate, Gpu, Lease, Place, Plan, ReadbackClass, Recorder, Scope, Submission,
};
use crate::kernels::KvType;
use crate::kernels::constants::{COOP_FROM, FEW_TILE, FEW_TO, TILE_FROM};
use crate::kernels::sample::{MAX_STOP_IDS, NO_TOKEN, Row, SeqState};
use crate::model::forward::{Batch, Forward, Left};
use crate::model::kv_cache::KvPool;
use crate::model::moe::grouped_from;
use crate::model::probe::{Lens, Probe, ProbeOptions};
use crate::model::recurrent::state::RecurrentPool;
use crate::model::scratch::{LOGIT_ROWS, Scratch};
use crate::model::sequence::Sequence;
use crate::model::slots::Slots;
use crate::model::spec::ModelSpec;
use crate::model::weights::Weights;
use crate::sample::SamplingOptions;

/// The token drawn after a prompt, and the tokens of a decode batch with their stop flags.
const PROMPT_TOKEN: Gate = Gate::new(Place::Pipeline, ReadbackClass::Token, "prefill.token");
const DECODE_TOKENS: Gate = Gate::new(Place::Pipeline, ReadbackClass::Token, "decode.tokens");
const LOGITS: Gate = Gate::new(Place::Logits, ReadbackClass::Logits, "rows");

/// Sequences that one submit may decode together, at most.
pub const MAX_SEQUENCES: u32 = LOGIT_ROWS;

/// Tokens that one submit may run, at most.
pub const MAX_TOKENS_PER_SUBMIT: u32 = 64;

/// Sizes fixed when a model is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineOptions {
    /// Longest context of a sequence.
    pub n_ctx: u32,
    /// Rows of a prompt evaluated in one submit.
    pub chunk: u32,
    /// Storage of keys and values.
    pub kv_type: KvType,
    /// Products in f32 alone; else activations are rounded to bytes (few rows, quantised weights) or f16 (many rows) where that is faster.
    pub exact: bool,
}

/// Why a sequence stopped drawing, as the device reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// It did not.
    Running,
    /// It drew one of its stop ids.
    Token,
    /// Its positions are used up.
    Limit,
}

/// A token drawn on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drawn {
    /// Its id.
    pub token: u32,
    /// Whether the sequence goes on.
    pub stop: Stop,
}

impl Drawn {
    /// `None` for the no-op of a sequence that had stopped before.
    fn of(words: [u32; 2], vocab: u32) -> Result<Option<Self>> {
        let [token, stop] = words;
        if token == NO_TOKEN {
            return Ok(None);
        }
        let stop = match stop {
            0 => Stop::Running,
            1 => Stop::Token,
            2 => Stop::Limit,
            other => bail!(Gpu, "the device reported stop reason {other}"),
        };
        if token >= vocab {
            bail!(Gpu, "the device drew token {token} of a vocabulary of {vocab}");
        }
        Ok(Some(Self { token, stop }))
    }
}

/// What a decode batch's commands depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct BatchKind {
    sequences: u32,
    tokens: u32,
    penalties: bool,
}

/// See the module's text.
#[derive(Debug)]
pub struct Engine {
    pub(super) gpu: Arc<Gpu>,
    spec: Arc<ModelSpec>,
    weights: Weights,
    pub(super) options: EngineOptions,
    pub(super) slots: Slots,
    pub(super) kv: KvPool,
    pub(super) recurrent: RecurrentPool,
    scratch: Scratch,
    staging: Buffer,
    groups: BindGroupCache,
    /// Decode steps by number of sequences and whether logits are changed before drawing.
    plans: HashMap<(u32, bool), Arc<Plan>>,
    /// The next decode batch, encoded while the device was busy with the last, if it is like that one.
    ahead: Option<(BatchKind, Result<Encoded>)>,
    /// Slots that `scratch.batch_slots` holds.
    batch: Vec<u32>,
    /// [`Engine::prewarm`] was done for the buffers there are.
    warm: bool,
    /// Of the pipeline cache, when `groups` was made.
    purges: u64,
    /// Sequences of a decode batch up to which all pipelines are there.
    batch_compiled: u32,
}

impl Engine {
    /// Plans everything for a loaded model; sequences are opened later.
    pub(crate) fn new(
        gpu: Arc<Gpu>,
        spec: Arc<ModelSpec>,
        weights: Weights,
        options: EngineOptions,
        scope: &Scope,
    ) -> Result<Self> {
        let staging = gpu.staging("tokens", u64::from(MAX_TOKENS_PER_SUBMIT * LOGIT_ROWS) * 8, scope)?;
        let kv = KvPool::new(options.kv_type, &spec.layers, options.chunk.max(MAX_TOKENS_PER_SUBMIT));
        Ok(Self {
            slots: Slots::new(&gpu, 1, options.n_ctx, kv.groups(), scope)?,
            kv,
            recurrent: RecurrentPool::new(&spec.layers),
            scratch: Scratch::new(&gpu, &spec, options.chunk, options.exact, scope)?,
            staging,
            groups: BindGroupCache::default(),
            plans: HashMap::new(),
            ahead: None,
            batch: Vec::new(),
            warm: false,
            purges: gpu.pipelines().purges(),
            batch_compiled: 1,
            gpu,
            spec,
            weights,
            options,
        })
    }

    /// The device.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// Sizes fixed at loading.
    pub fn options(&self) -> EngineOptions {
        self.options
    }

    fn forward<'a>(&'a self, lens: Option<Lens<'a>>) -> Forward<'a> {
        Forward {
            spec: &self.spec,
            weights: &self.weights,
            scratch: &self.scratch,
            slots: &self.slots,
            kv: &self.kv,
            recurrent: &self.recurrent,
            exact: self.options.exact,
            lens,
        }
    }

    /// Looks at a sequence's tensors from now on, or with `None` no longer. Probed decoding runs one token a submit and builds its commands anew
    /// for each.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] for an unknown point or layer, [`crate::Error::OutOfMemory`].
    pub fn set_probe(&self, sequence: &mut Sequence, options: Option<ProbeOptions>, scope: &Scope) -> Result<()> {
        let n_layer = self.spec.layers.len() as u32;
        sequence.probe = options.map(|o| Probe::new(&self.gpu, o, n_layer, scope)).transpose()?;
        Ok(())
    }

    pub(super) fn forget_plans(&mut self) {
        self.plans.clear();
        self.ahead = None;
        self.groups.clear();
        self.batch.clear();
        self.warm = false;
    }

    /// Sets how a sequence draws and what ends it. Takes effect with the next [`Engine::prefill_and_draw`].
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] for options out of range or too many stop ids.
    pub fn configure(
        &self,
        sequence: &mut Sequence,
        options: &SamplingOptions,
        stop_ids: &[u32],
        scope: &Scope,
    ) -> Result<()> {
        options.validate(self.spec.n_vocab)?;
        if stop_ids.len() > MAX_STOP_IDS as usize {
            bail!(InvalidArgument, "{} stop ids, {MAX_STOP_IDS} are possible", stop_ids.len());
        }
        self.slots.configure(&self.gpu, sequence.slot, options, stop_ids, scope)?;
        sequence.penalties = options.has_penalties() || !options.logit_bias.is_empty();
        sequence.n_stop = stop_ids.len() as u32;
        Ok(())
    }

    /// Puts `tokens`, at most [`EngineOptions::chunk`], in place for evaluation at positions from `pos` on.
    fn stage_run(&mut self, sequence: &mut Sequence, tokens: &[u32], pos: u32, scope: &Scope) -> Result<()> {
        let n = tokens.len() as u32;
        if n == 0 || n > self.options.chunk {
            bail!(InvalidArgument, "{n} tokens in a chunk of 1..={}", self.options.chunk);
        }
        if let Some(t) = tokens.iter().find(|&&t| t >= self.spec.n_vocab) {
            bail!(InvalidArgument, "token {t} in a vocabulary of {}", self.spec.n_vocab);
        }
        self.reserve(sequence, pos..pos + n, true, scope)?;
        let rows: Vec<Row> = (pos..pos + n).map(|pos| Row { slot: sequence.slot, pos }).collect();
        self.gpu.upload(self.scratch.tokens.whole(), bytemuck::cast_slice(tokens), scope)?;
        self.gpu.upload(self.scratch.row_data.whole(), bytemuck::cast_slice(&rows), scope)?;
        self.slots.set_history(&self.gpu, sequence.slot, pos, tokens, scope)
    }

    /// A recorder whose bind groups are kept. What a probe binds goes with the probe, so with one nothing is kept.
    fn recorder<'a>(&'a self, label: &'static str, lens: Option<Lens<'_>>, scope: &Scope) -> Recorder<'a> {
        let recorder = self.gpu.recorder(label, scope);
        if lens.is_some() { recorder } else { recorder.with_groups(&self.groups) }
    }

    /// Records the evaluation of `n` staged rows.
    fn record_run<'a>(&'a self, n: u32, lens: Option<Lens<'a>>, scope: &Scope) -> Result<Recorder<'a>> {
        let forward = self.forward(lens);
        let mut recorder = self.recorder("prefill", lens, scope);
        forward.body(&mut recorder, n, Batch::Run)?;
        Ok(recorder)
    }

    /// Evaluates `tokens` (at most a chunk) at positions from `pos` on, for their keys and values only.
    ///
    /// # Errors
    /// [`crate::Error::ContextFull`], [`crate::Error::InvalidArgument`], or what the device reports.
    pub fn prefill(&mut self, sequence: &mut Sequence, tokens: &[u32], pos: u32, scope: &Scope) -> Result<()> {
        self.pass_gates(sequence, scope)?;
        self.stage_run(sequence, tokens, pos, scope)?;
        let lens = sequence.lens(pos);
        let mut recorder = self.record_run(tokens.len() as u32, lens, scope)?;
        let seen = lens.map(|l| l.probe.finish(&mut recorder)).transpose()?;
        let submission = recorder.submit()?;
        self.gpu.wait(&submission)?;
        self.recurrent.finish(&mut sequence.trail, pos + tokens.len() as u32);
        self.read_probe(sequence, seen, &submission, scope)
    }

    /// Asks leave for everything the sequence's probe wants to see.
    fn pass_gates(&self, sequence: &Sequence, scope: &Scope) -> Result<()> {
        sequence.probe.as_ref().map_or(Ok(()), |p| p.pass_gates(&self.gpu, scope))
    }

    fn read_probe(
        &self,
        sequence: &mut Sequence,
        seen: Option<Lease>,
        submission: &Submission,
        scope: &Scope,
    ) -> Result<()> {
        match (sequence.probe.as_mut(), seen) {
            (Some(probe), Some(lease)) => probe.read(&self.gpu, &lease, submission, scope),
            _ => Ok(()),
        }
    }

    /// As [`Engine::prefill`], and draws the next token from the last row's logits, in the same submit. From then on
    /// [`Engine::decode`] goes on from the device's own state, until `limit` positions are filled. While the device is busy, the batch of `then`
    /// tokens that follows is encoded, charged to the scope beside it.
    ///
    /// # Errors
    /// As [`Engine::prefill`].
    pub fn prefill_and_draw(
        &mut self,
        sequence: &mut Sequence,
        tokens: &[u32],
        pos: u32,
        limit: u32,
        then: Option<(u32, &Scope)>,
        scope: &Scope,
    ) -> Result<Drawn> {
        let n = tokens.len() as u32;
        let last = Row { slot: sequence.slot, pos: (pos + n).saturating_sub(1) };
        let state = SeqState {
            token: tokens.last().copied().unwrap_or(0),
            pos: last.pos,
            limit: limit.min(sequence.n_ctx),
            stop: 0,
            n_stop: sequence.n_stop,
            pad: [0; 3],
        };
        let penalties = sequence.penalties;
        self.gpu.gate(&PROMPT_TOKEN, scope)?;
        self.pass_gates(sequence, scope)?;
        self.gpu.upload(self.scratch.tail_rows.whole(), bytemuck::bytes_of(&last), scope)?;
        self.slots.set_state(&self.gpu, sequence.slot, state, scope)?;
        self.stage_run(sequence, tokens, pos, scope)?;
        let lens = sequence.lens(pos);
        let forward = self.forward(lens);
        let mut recorder = self.record_run(n, lens, scope)?;
        forward.logits(&mut recorder, n - 1, 1, Left::Nothing)?;
        forward.sample(&mut recorder, 1, self.scratch.tail_rows.whole(), penalties)?;
        recorder.copy(self.scratch.ring.slice(0, 8), self.staging.slice(0, 8))?;
        let seen = lens.map(|l| l.probe.finish(&mut recorder)).transpose()?;
        let submission = recorder.submit()?;
        if let (None, Some((tokens, scope))) = (lens, then) {
            self.encode_ahead(BatchKind { sequences: 1, tokens, penalties }, scope);
        }
        let mut words = [0u32; 2];
        let out = bytemuck::cast_slice_mut(&mut words);
        self.gpu.read_staging(&self.staging, &submission, out, PROMPT_TOKEN, scope)?;
        self.recurrent.finish(&mut sequence.trail, pos + n);
        self.read_probe(sequence, seen, &submission, scope)?;
        match Drawn::of(words, self.spec.n_vocab)? {
            Some(drawn) => Ok(drawn),
            None => bail!(Internal, "a sequence that was just started had stopped"),
        }
    }

    /// As [`Engine::prefill`], and hands the logits of every row to `sink`, in order: `[rows, n_vocab]` a call.
    ///
    /// # Errors
    /// As [`Engine::prefill`], or what `sink` returns.
    pub fn prefill_logits(
        &mut self,
        sequence: &mut Sequence,
        tokens: &[u32],
        pos: u32,
        scope: &Scope,
        sink: &mut dyn FnMut(&[f32]) -> Result<()>,
    ) -> Result<()> {
        let n = tokens.len() as u32;
        self.gpu.gate(&LOGITS, scope)?;
        self.pass_gates(sequence, scope)?;
        self.stage_run(sequence, tokens, pos, scope)?;
        let lens = sequence.lens(pos);
        let mut recorder = self.record_run(tokens.len() as u32, lens, scope)?;
        let seen = lens.map(|l| l.probe.finish(&mut recorder)).transpose()?;
        let submission = recorder.submit()?;
        self.gpu.wait(&submission)?;
        self.recurrent.finish(&mut sequence.trail, pos + n);
        self.read_probe(sequence, seen, &submission, scope)?;
        let mut first = 0;
        while first < n {
            let rows = (n - first).min(LOGIT_ROWS);
            self.pass_gates(sequence, scope)?;
            let lens = sequence.lens(pos + first);
            let mut recorder = self.recorder("logits", lens, scope);
            self.forward(lens).logits(&mut recorder, first, rows, Left::Nothing)?;
            let seen = lens.map(|l| l.probe.finish(&mut recorder)).transpose()?;
            let submission = recorder.submit()?;
            self.read_probe(sequence, seen, &submission, scope)?;
            let bytes = u64::from(rows) * u64::from(self.spec.n_vocab) * 4;
            let raw = self.gpu.download(self.scratch.logits.slice(0, bytes), LOGITS, scope)?;
            sink(&bytemuck::pod_collect_to_vec::<u8, f32>(&raw))?;
            first += rows;
        }
        Ok(())
    }

    fn decode_plan(&mut self, n: u32, penalties: bool, scope: &Scope) -> Result<Arc<Plan>> {
        if let Some(plan) = self.plans.get(&(n, penalties)) {
            return Ok(plan.clone());
        }
        let mut recorder = self.gpu.recorder("decode", scope).with_groups(&self.groups);
        self.forward(None).decode_step(&mut recorder, n, penalties)?;
        let plan = Arc::new(recorder.into_plan()?);
        self.plans.insert((n, penalties), plan.clone());
        Ok(plan)
    }

    /// Records, to be thrown away, everything that evaluating prompts and starting to decode can need.
    fn record_prompts(&self, recorder: &mut Recorder<'_>) -> Result<()> {
        let forward = self.forward(None);
        // One, two and more columns of the matrix-vector product, the first sizes of both tiled products, and those whose experts are grouped.
        let grouped: BTreeSet<_> = self.spec.experts().map(|e| grouped_from(&e)).collect();
        // Both forms of the product for few rows; long and full pieces of prompts take taller tiles.
        let few = [FEW_TILE.0 / 2 + 1, FEW_TO + 1];
        let long = [COOP_FROM, 8 * COOP_FROM, 32 * COOP_FROM, self.scratch.rows];
        for n in
            [1, 2, 3, TILE_FROM].into_iter().chain(few).chain(long).chain(grouped).filter(|&n| n <= self.scratch.rows)
        {
            forward.body(recorder, n, Batch::Run)?;
            forward.logits(recorder, 0, n.min(LOGIT_ROWS), Left::Nothing)?;
        }
        [false, true].into_iter().try_for_each(|p| forward.sample(recorder, 1, self.scratch.tail_rows.whole(), p))
    }

    /// Makes everything that single-sequence prefill and decode need, so that neither compiles or creates anything later: pipelines (on
    /// several threads), bind groups, plans. Does nothing if it is all there; what growing has made void is made again. A sequence must have been
    /// opened, so that there is a cache to bind.
    ///
    /// # Errors
    /// What compiling reports.
    pub fn prewarm(&mut self, scope: &Scope) -> Result<()> {
        let purges = self.gpu.pipelines().purges();
        if self.purges != purges {
            self.forget_plans();
            self.purges = purges;
            self.batch_compiled = 1;
        }
        if self.warm {
            return Ok(());
        }
        let mut survey = self.gpu.survey(scope);
        self.record_prompts(&mut survey)?;
        [false, true].into_iter().try_for_each(|p| self.forward(None).decode_step(&mut survey, 1, p))?;
        self.gpu.compile(&survey.into_survey(), scope)?;
        let mut recorder = self.gpu.recorder("prewarm", scope).with_groups(&self.groups);
        self.record_prompts(&mut recorder)?;
        recorder.rehearse()?;
        self.prepare_decode(1, false, scope)?;
        self.prepare_decode(1, true, scope)?;
        self.warm = true;
        Ok(())
    }

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
                self.forward(None).decode_step(&mut survey, smaller, true)?;
            }
            self.gpu.compile(&survey.into_survey(), scope)?;
            self.batch_compiled = n;
        }
        self.prepare_decode(n, sequences.iter().any(|s| s.penalties), scope)
    }

    /// Builds the plan of a decode step ahead of its first use, so that steady decode makes nothing.
    ///
    /// # Errors
    /// What building it reports.
    pub fn prepare_decode(&mut self, sequences: u32, penalties: bool, scope: &Scope) -> Result<()> {
        self.decode_plan(sequences, penalties, scope).map(drop)
    }

    /// Copies what step `i` of `n` sequences drew to where it is read.
    fn hand_out(&self, recorder: &mut Recorder<'_>, n: u32, i: u32) -> Result<()> {
        let step = u64::from(n) * 8;
        recorder.copy(self.scratch.ring.slice(0, step), self.staging.slice(u64::from(i) * step, step))
    }

    fn record_batch(&self, plan: &Arc<Plan>, kind: BatchKind, scope: &Scope) -> Result<Recorder<'_>> {
        let mut recorder = self.recorder("decode", None, scope);
        for i in 0..kind.tokens {
            recorder.replay(plan);
            self.hand_out(&mut recorder, kind.sequences, i)?;
        }
        Ok(recorder)
    }

    fn encode_batch(&mut self, kind: BatchKind, scope: &Scope) -> Result<Encoded> {
        let plan = self.decode_plan(kind.sequences, kind.penalties, scope)?;
        self.record_batch(&plan, kind, scope)?.encode()
    }

    /// Submits a decode batch, and encodes one of `then` tokens while the device is busy: its commands depend on nothing that this one draws.
    fn submit_batch(&mut self, kind: BatchKind, then: u32, scope: &Scope) -> Result<Submission> {
        let ahead = self.ahead.take().filter(|(k, _)| *k == kind);
        // Time stamps belong to the submit that was encoded last, so none is encoded ahead, and what was has none.
        if self.gpu.profiling() {
            let plan = self.decode_plan(kind.sequences, kind.penalties, scope)?;
            return self.record_batch(&plan, kind, scope)?.submit();
        }
        let encoded = match ahead {
            Some((_, encoded)) => encoded?,
            None => self.encode_batch(kind, scope)?,
        };
        let submission = encoded.submit(&self.gpu, scope)?;
        if then > 0 {
            self.encode_ahead(BatchKind { tokens: then, ..kind }, scope);
        }
        Ok(submission)
    }

    /// Encodes a decode batch for later, if it is not there yet. What is under way goes on if that fails: the batch reports it when its turn comes.
    fn encode_ahead(&mut self, kind: BatchKind, scope: &Scope) {
        if !self.gpu.profiling() && self.ahead.as_ref().is_none_or(|(k, _)| *k != kind) {
            self.ahead = Some((kind, self.encode_batch(kind, scope)));
        }
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
        }
        let slots: Vec<u32> = sequences.iter().map(|s| s.slot).collect();
        let penalties = sequences.iter().any(|s| s.penalties);
        if self.batch != slots {
            self.gpu.upload(self.scratch.batch_slots.whole(), bytemuck::cast_slice(&slots), scope)?;
            self.batch = slots;
        }
        let lens = sequences.first().zip(positions.first()).and_then(|(s, &pos)| s.lens(pos));
        let kind = BatchKind { sequences: n, tokens, penalties };
        let (submission, seen) = match lens {
            Some(lens) => {
                let mut recorder = self.recorder("decode", Some(lens), scope);
                self.forward(Some(lens)).decode_step(&mut recorder, n, penalties)?;
                self.hand_out(&mut recorder, n, 0)?;
                let seen = lens.probe.finish(&mut recorder)?;
                (recorder.submit()?, Some(seen))
            }
            None => (self.submit_batch(kind, then, scope)?, None),
        };
        let mut words = vec![[0u32; 2]; (n * tokens) as usize];
        let out = bytemuck::cast_slice_mut(&mut words);
        self.gpu.read_staging(&self.staging, &submission, out, DECODE_TOKENS, scope)?;
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
