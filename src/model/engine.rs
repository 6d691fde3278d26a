//! The engine of one model: slots, cache, scratch and plans, and the three things it does: prefill, decode, logits.
//!
//! The engine holds no policy: which tokens, when to stop and what to show is the session's business. A sequence's length is the
//! caller's to keep; nothing here counts as done before the device has finished it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Result, bail};
use crate::gpu::{
    BindGroupCache, Buffer, Encoded, Gate, Gpu, Lease, Place, ReadbackClass, Recorder, Scope, Submission,
};
use crate::kernels::KvType;
use crate::kernels::constants::{COOP_FROM, EIGHT_FROM, FEW_TILE, FEW_TO, TILE_FROM};
use crate::kernels::sample::{MAX_STOP_IDS, NO_TOKEN, Row, SeqState};
use crate::model::decode::{BatchKind, Follows};
use crate::model::draw::Choice;
use crate::model::forward::{Batch, Forward};
use crate::model::kv_cache::KvPool;
use crate::model::lora::{LoraPool, LoraSet};
use crate::model::moe::grouped_from;
use crate::model::norms::Left;
use crate::model::probe::{Lens, Probe, ProbeOptions};
use crate::model::recurrent::state::RecurrentPool;
use crate::model::runs::Results;
use crate::model::scratch::{LOGIT_ROWS, Scratch};
use crate::model::sequence::Sequence;
use crate::model::slots::Slots;
use crate::model::spec::ModelSpec;
use crate::model::steps::StepPlan;
use crate::model::verify_draft::Drafts;
use crate::model::weights::Weights;
use crate::sample::SamplingOptions;

/// The token drawn after a prompt.
const PROMPT_TOKEN: Gate = Gate::new(Place::Pipeline, ReadbackClass::Token, "prefill.token");
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
    /// Products in f32 alone; else activations are rounded to bytes (few rows, quantised weights), 16 bits of mantissa (few rows, weights in f16 or bf16) or
    /// f16 (many rows) where that is faster.
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
    pub(super) fn of(words: [u32; 2], vocab: u32) -> Result<Option<Self>> {
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

/// See the module's text.
#[derive(Debug)]
pub struct Engine {
    pub(super) gpu: Arc<Gpu>,
    pub(super) spec: Arc<ModelSpec>,
    pub(super) weights: Weights,
    pub(super) options: EngineOptions,
    pub(super) slots: Slots,
    pub(super) kv: KvPool,
    pub(super) recurrent: RecurrentPool,
    pub(super) scratch: Scratch,
    pub(super) staging: Buffer,
    pub(super) groups: BindGroupCache,
    /// Decode steps by number of sequences, how tokens are chosen, and how rows belong together.
    plans: HashMap<(u32, Choice, Batch), Arc<StepPlan>>,
    /// What `scratch.grids` holds.
    pub(super) grids: Vec<[u32; 3]>,
    pub(super) lora: LoraPool,
    /// The next decode batch, encoded while the device was busy with the last, if it is like that one.
    pub(super) ahead: Option<(BatchKind, Result<Encoded>)>,
    /// What the last batch was, and how long it took from its submit to its tokens.
    pub(super) last_batch: Option<(BatchKind, Duration)>,
    /// Slots that `scratch.batch_slots` holds.
    pub(super) batch: Vec<u32>,
    /// What verifying drafts, and drafting, need.
    pub(super) drafts: Drafts,
    /// [`Engine::prewarm`] was done for the buffers there are.
    pub(super) warm: bool,
    /// What scores and embeddings need.
    pub(super) results: Results,
    /// Of the pipeline cache, when `groups` was made.
    purges: u64,
    /// Sequences of a decode batch up to which all pipelines are there.
    pub(super) batch_compiled: u32,
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
        let staging = gpu.staging("tokens", u64::from(MAX_TOKENS_PER_SUBMIT * LOGIT_ROWS + 1) * 8, scope)?;
        let kv = KvPool::new(options.kv_type, &spec.layers, options.chunk.max(MAX_TOKENS_PER_SUBMIT));
        Ok(Self {
            slots: Slots::new(&gpu, 1, options.n_ctx, kv.groups(), scope)?,
            kv,
            recurrent: RecurrentPool::new(&spec.layers),
            lora: LoraPool::default(),
            scratch: Scratch::new(&gpu, &spec, options.chunk, options.exact, weights.all_quants(), scope)?,
            staging,
            groups: BindGroupCache::default(),
            plans: HashMap::new(),
            grids: Vec::new(),
            ahead: None,
            last_batch: None,
            batch: Vec::new(),
            drafts: Drafts::default(),
            warm: false,
            results: Results::default(),
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

    pub(super) fn forward<'a>(&'a self, lens: Option<Lens<'a>>) -> Forward<'a> {
        Forward {
            spec: &self.spec,
            weights: &self.weights,
            scratch: &self.scratch,
            slots: &self.slots,
            kv: &self.kv,
            recurrent: &self.recurrent,
            exact: self.options.exact,
            lens,
            lora: None,
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
        self.drafts.forget();
        self.groups.clear();
        self.lora.forget_plans();
        self.batch.clear();
        self.warm = false;
        self.results.warm = false;
    }

    /// Forgets a batch encoded for adapters that no sequence has any more.
    pub(super) fn drop_stale_batch(&mut self) {
        self.ahead.take_if(|(kind, _)| kind.lora != 0 && self.lora.get(kind.lora).is_none());
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
        sequence.choice = Choice::of(options);
        sequence.stop_ids = stop_ids.to_vec();
        Ok(())
    }

    /// Puts `tokens`, at most [`EngineOptions::chunk`], in place for evaluation at positions from `pos` on.
    pub(super) fn stage_run(&mut self, sequence: &mut Sequence, tokens: &[u32], pos: u32, scope: &Scope) -> Result<()> {
        let n = tokens.len() as u32;
        if n == 0 || n > self.options.chunk {
            bail!(InvalidArgument, "{n} tokens in a chunk of 1..={}", self.options.chunk);
        }
        if let Some(t) = tokens.iter().find(|&&t| t >= self.spec.n_vocab) {
            bail!(InvalidArgument, "token {t} in a vocabulary of {}", self.spec.n_vocab);
        }
        self.reserve(sequence, pos..pos + n, true, scope)?;
        if let Some(set) = &sequence.lora {
            self.warm_loras(set, scope)?;
        }
        let rows: Vec<Row> = (pos..pos + n).map(|pos| Row { slot: sequence.slot, pos }).collect();
        self.gpu.upload(self.scratch.tokens.whole(), bytemuck::cast_slice(tokens), scope)?;
        self.gpu.upload(self.scratch.row_data.whole(), bytemuck::cast_slice(&rows), scope)?;
        self.slots.set_history(&self.gpu, sequence.slot, pos, tokens, scope)
    }

    /// A recorder whose bind groups are kept. What a probe binds goes with the probe, so with one nothing is kept; what adapters bind is kept
    /// with them.
    pub(super) fn recorder<'a>(
        &'a self,
        label: &'static str,
        lens: Option<Lens<'_>>,
        lora: Option<&'a LoraSet>,
        scope: &Scope,
    ) -> Recorder<'a> {
        let recorder = self.gpu.recorder(label, scope);
        if lens.is_some() { recorder } else { recorder.with_groups(lora.map_or(&self.groups, |set| &set.groups)) }
    }

    /// Records the evaluation of `n` staged rows.
    pub(super) fn record_run<'a>(
        &'a self,
        n: u32,
        lens: Option<Lens<'a>>,
        lora: Option<&'a LoraSet>,
        scope: &Scope,
    ) -> Result<Recorder<'a>> {
        let forward = self.forward(lens).adapted(lora);
        let mut recorder = self.recorder("prefill", lens, lora, scope);
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
        let mut recorder = self.record_run(tokens.len() as u32, lens, sequence.lora(), scope)?;
        let seen = lens.map(|l| l.probe.finish(&mut recorder)).transpose()?;
        let submission = recorder.submit()?;
        self.gpu.wait(&submission)?;
        self.recurrent.finish(&mut sequence.trail, pos + tokens.len() as u32);
        self.read_probe(sequence, seen, &submission, scope)
    }

    /// Asks leave for everything the sequence's probe wants to see.
    pub(super) fn pass_gates(&self, sequence: &Sequence, scope: &Scope) -> Result<()> {
        sequence.probe.as_ref().map_or(Ok(()), |p| p.pass_gates(&self.gpu, scope))
    }

    pub(super) fn read_probe(
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
    /// [`Engine::decode`] goes on from the device's own state, until `limit` positions are filled. While the device is busy, the batch that follows is
    /// encoded.
    ///
    /// # Errors
    /// As [`Engine::prefill`].
    pub fn prefill_and_draw(
        &mut self,
        sequence: &mut Sequence,
        tokens: &[u32],
        pos: u32,
        limit: u32,
        then: Option<Follows<'_>>,
        scope: &Scope,
    ) -> Result<Drawn> {
        let n = tokens.len() as u32;
        let last = Row { slot: sequence.slot, pos: (pos + n).saturating_sub(1) };
        let state = SeqState {
            token: tokens.last().copied().unwrap_or(0),
            pos: last.pos,
            limit: limit.min(sequence.n_ctx),
            stop: 0,
            n_stop: sequence.stop_ids.len() as u32,
            pad: [0; 3],
        };
        sequence.state = None;
        let choice = sequence.choice;
        self.gpu.gate(&PROMPT_TOKEN, scope)?;
        self.pass_gates(sequence, scope)?;
        self.gpu.upload(self.scratch.tail_rows.whole(), bytemuck::bytes_of(&last), scope)?;
        self.slots.set_state(&self.gpu, sequence.slot, state, scope)?;
        self.stage_run(sequence, tokens, pos, scope)?;
        let lens = sequence.lens(pos);
        let lora = sequence.lora();
        let forward = self.forward(lens).adapted(lora);
        let mut recorder = self.record_run(n, lens, lora, scope)?;
        forward.logits(&mut recorder, n - 1, 1, Left::Nothing)?;
        forward.sample(&mut recorder, 1, self.scratch.tail_rows.whole(), choice)?;
        recorder.copy(self.scratch.ring.slice(0, 8), self.staging.slice(0, 8))?;
        let seen = lens.map(|l| l.probe.finish(&mut recorder)).transpose()?;
        let submission = recorder.submit()?;
        if let (None, Some(follows)) = (lens, then) {
            self.encode_following(sequence, follows);
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
        let mut recorder = self.record_run(tokens.len() as u32, lens, sequence.lora(), scope)?;
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
            let lora = sequence.lora();
            let mut recorder = self.recorder("logits", lens, lora, scope);
            self.forward(lens).adapted(lora).logits(&mut recorder, first, rows, Left::Nothing)?;
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

    /// The plan of a decode step of `n` sequences.
    pub(super) fn decode_plan(&mut self, n: u32, choice: Choice, steps: Batch, scope: &Scope) -> Result<Arc<StepPlan>> {
        if let Some(plan) = self.plans.get(&(n, choice, steps)) {
            return Ok(plan.clone());
        }
        let mut recorder = self.gpu.recorder("decode", scope).with_groups(&self.groups);
        self.forward(None).decode_step(&mut recorder, n, choice, steps)?;
        let plan = self.step_plan(recorder, n, &self.groups, scope)?;
        self.plans.insert((n, choice, steps), plan.clone());
        Ok(plan)
    }

    /// Records, to be thrown away, everything that evaluating prompts and starting to decode can need.
    pub(super) fn record_prompts(&self, recorder: &mut Recorder<'_>, lora: Option<&LoraSet>) -> Result<()> {
        let forward = self.forward(None).adapted(lora);
        // One, two, four and eight columns of the matrix-vector product, the first sizes of both tiled products, and those whose experts are grouped.
        let grouped: BTreeSet<_> = self.spec.experts().map(|e| grouped_from(&e)).collect();
        // Both forms of the product for few rows; long and full pieces of prompts take taller tiles.
        let few = [FEW_TILE.0 / 2 + 1, FEW_TO + 1];
        let long = [COOP_FROM, 8 * COOP_FROM, 32 * COOP_FROM, self.scratch.rows];
        for n in [1, 2, 3, EIGHT_FROM, TILE_FROM]
            .into_iter()
            .chain(few)
            .chain(long)
            .chain(grouped)
            .filter(|&n| n <= self.scratch.rows)
        {
            forward.body(recorder, n, Batch::Run)?;
            forward.logits(recorder, 0, n.min(LOGIT_ROWS), Left::Nothing)?;
        }
        Choice::ALL.into_iter().try_for_each(|p| forward.sample(recorder, 1, self.scratch.tail_rows.whole(), p))
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
        self.record_prompts(&mut survey, None)?;
        let step = |choice| self.forward(None).decode_step(&mut survey, 1, choice, Batch::Rows);
        Choice::ALL.into_iter().try_for_each(step)?;
        self.record_look(&mut survey, 1)?;
        self.survey_drafts(&mut survey)?;
        self.gpu.compile(&survey.into_survey(), scope)?;
        let mut recorder = self.gpu.recorder("prewarm", scope).with_groups(&self.groups);
        self.record_prompts(&mut recorder, None)?;
        recorder.rehearse()?;
        Choice::ALL.into_iter().try_for_each(|choice| self.prepare_decode(1, choice, scope))?;
        self.prepare_drafts(scope)?;
        self.warm = true;
        Ok(())
    }
}
