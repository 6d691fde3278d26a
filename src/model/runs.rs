//! Runs: stretches of tokens that each begin where a sequence is (or nowhere), evaluated together for what comes out of them, and forgotten.
//!
//! A *wave* is as many runs as one batch of rows takes, each with a slot and blocks on loan; a run longer than a batch is a wave of its own, in
//! several batches. In a batch of several runs each row stands at its own slot and position, and attention reads the pages after all rows'
//! keys and values are there. Recurrent layers walk one sequence at a time, so models that have some take one run a wave.

use std::collections::BTreeSet;

use crate::error::{Result, bail};
use crate::gpu::{Buffer, Gpu, MemoryClass, Phase, Recorder, Scope};
use crate::kernels::constants::{COOP_FROM, TILE_FROM};
use crate::kernels::sample::{Chunks, Row};
use crate::kernels::{Matrix, Scored, Stretch, log_sum, pool_rows, token_score, unit_rows};
use crate::model::draw::Choice;
use crate::model::engine::Engine;
use crate::model::forward::Batch;
use crate::model::lora::LoraSet;
use crate::model::moe::grouped_from;
use crate::model::norms::Left;
use crate::model::recurrent::state::Trail;
use crate::model::scratch::{LOGIT_ROWS, buffer};
use crate::model::sequence::Sequence;

/// Runs of a wave, at most: each takes a slot.
pub(super) const MAX_RUNS: usize = 32;

/// A part of a run that one batch evaluates.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    /// Its run, by its place in the wave.
    pub(super) run: usize,
    /// Tokens of the run that come before.
    pub(super) from: u32,
    /// Tokens.
    pub(super) rows: u32,
}

/// What one batch of a wave was, for those who keep account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaveBatch {
    /// Tokens evaluated.
    pub rows: u32,
    /// Bytes of results read back.
    pub bytes: u64,
}

/// Room for results, made when they are first asked for.
#[derive(Debug)]
pub(super) struct ResultRoom {
    /// Token ids to score.
    pub(super) targets: Buffer,
    /// Their scores.
    pub(super) scores: Buffer,
    /// Which rows are pooled: a [`Stretch`] a run.
    pub(super) stretches: Buffer,
    /// Pooled rows, one a run.
    pub(super) pooled: Buffer,
    /// Entries of `targets`.
    entries: u32,
}

impl ResultRoom {
    fn new(gpu: &Gpu, rows: u32, entries: u32, n_embd: u32, scope: &Scope) -> Result<Self> {
        let words = |name: &str, n: u64| buffer(gpu, name, n * 4, rows, scope);
        let runs = MAX_RUNS as u64;
        Ok(Self {
            targets: words("results.targets", entries.into())?,
            scores: words("results.scores", entries.into())?,
            stretches: gpu.storage(
                "results.stretches",
                runs * size_of::<Stretch>() as u64,
                MemoryClass::Scratch,
                scope,
            )?,
            pooled: words("results.pooled", runs * u64::from(n_embd))?,
            entries,
        })
    }
}

/// What an engine has for results, and whether everything that they need was compiled and bound.
#[derive(Debug, Default)]
pub(super) struct Results {
    pub(super) room: Option<ResultRoom>,
    pub(super) warm: bool,
}

impl Engine {
    /// How many of the first runs of `lens` tokens after position `start` make a wave; one at least.
    pub fn wave(&self, start: u32, lens: &[u32]) -> usize {
        if !self.recurrent.is_empty() {
            return 1;
        }
        let mut rows = 0u32;
        let fits = |&&n: &&u32| {
            rows = rows.saturating_add(n);
            rows <= self.options.chunk
        };
        let n = lens.iter().take(MAX_RUNS).take_while(fits).count().max(1);
        self.kv.lendable(self.options.n_ctx, start, lens.iter().take(n).map(|l| start.saturating_add(*l)))
    }

    /// Evaluates `runs` after the first `start` positions of `trunk` (0 without one), a batch at a time: `work` records and submits what it wants of
    /// the rows it is told of, which stand in the scratch in this order once [`Engine::record_wave`] has recorded them.
    pub(super) fn in_wave(
        &mut self,
        trunk: Option<&Sequence>,
        start: u32,
        runs: &[&[u32]],
        scope: &Scope,
        work: &mut dyn FnMut(&mut Self, &[Piece]) -> Result<()>,
    ) -> Result<()> {
        if runs.is_empty() || runs.len() > MAX_RUNS || runs.iter().any(|r| r.is_empty()) {
            bail!(Internal, "a wave of {} runs", runs.len());
        }
        if let Some(t) = runs.iter().copied().flatten().find(|&&t| t >= self.spec.n_vocab) {
            bail!(InvalidArgument, "token {t} in a vocabulary of {}", self.spec.n_vocab);
        }
        let chunk = self.options.chunk as usize;
        let batches: Vec<Vec<Piece>> = match runs {
            [one] => (0..one.len())
                .step_by(chunk)
                .map(|from| vec![Piece { run: 0, from: from as u32, rows: (one.len() - from).min(chunk) as u32 }])
                .collect(),
            all if all.iter().map(|r| r.len()).sum::<usize>() <= chunk && self.recurrent.is_empty() => {
                vec![all.iter().enumerate().map(|(run, r)| Piece { run, from: 0, rows: r.len() as u32 }).collect()]
            }
            _ => bail!(Internal, "{} runs do not fit in a batch of {chunk} rows", runs.len()),
        };
        let mut branches = self.branch(trunk, start, runs, scope)?;
        let mut evaluate = |engine: &mut Self| -> Result<()> {
            for pieces in &batches {
                engine.stage_wave(&mut branches, start, runs, pieces, scope)?;
                work(engine, pieces)?;
                for p in pieces {
                    engine.recurrent.finish(&mut branches[p.run].trail, start + p.from + p.rows);
                }
            }
            Ok(())
        };
        let result = evaluate(self);
        branches.into_iter().for_each(|b| self.fold(b));
        result
    }

    /// Sequences on loan: as long as `runs` after what `trunk` has up to `start`. Nothing stays of them on an error.
    fn branch(
        &mut self,
        trunk: Option<&Sequence>,
        start: u32,
        runs: &[&[u32]],
        scope: &Scope,
    ) -> Result<Vec<Sequence>> {
        let ends: Vec<u32> = runs.iter().map(|r| start + r.len() as u32).collect();
        let most = trunk.map_or(self.options.n_ctx, Sequence::n_ctx);
        if let Some(end) = ends.iter().find(|&&e| e > most) {
            bail!(ContextFull, "{end} positions in a context of {most}");
        }
        if trunk.is_some_and(|t| !self.keeps(t, start)) || (trunk.is_none() && start > 0) {
            bail!(Internal, "runs after {start} tokens: their keys and values are not all there");
        }
        // Upkeep of the cache, as where sessions fork.
        let upkeep = scope.clone().in_phase(Phase::Other);
        let none = self.kv.tables();
        let tables = trunk.map_or(&none[..], |t| &t.tables);
        let n_ctx = self.options.n_ctx;
        let mut lent = self.with_pool(|kv, gpu| kv.lend(gpu, n_ctx, tables, start, &ends, &upkeep))?;
        let mut branches: Vec<Sequence> = Vec::with_capacity(runs.len());
        let admitted = lent.iter_mut().zip(&ends).try_for_each(|(tables, &n_ctx)| {
            let (slot, trail) = self.admit_branch(trunk, start, &upkeep)?;
            let tables = std::mem::take(tables);
            branches.push(Sequence {
                slot,
                n_ctx,
                tables,
                trail,
                choice: Choice::default(),
                stop_ids: Vec::new(),
                probe: None,
                drafts: false,
                state: None,
                lora: trunk.and_then(|t| t.lora.clone()),
            });
            Ok(())
        });
        self.kv.take_back(&mut lent);
        let warmed = admitted.and_then(|()| self.warm_results(0, scope));
        let sent = warmed.and_then(|()| branches.iter_mut().try_for_each(|b| self.send_tables(b, scope)));
        match sent {
            Ok(()) => Ok(branches),
            Err(e) => {
                branches.into_iter().for_each(|b| self.fold(b));
                Err(e)
            }
        }
    }

    /// A slot, and the states that a branch begins with.
    fn admit_branch(&mut self, trunk: Option<&Sequence>, start: u32, scope: &Scope) -> Result<(u32, Trail)> {
        let slot = self.take_slot(scope)?;
        if let Err(e) = self.promise_states(scope) {
            self.slots.release(slot);
            return Err(e);
        }
        let trail = trunk.filter(|_| start > 0).map(|t| self.recurrent.share(&t.trail, start));
        Ok((slot, trail.unwrap_or_default()))
    }

    /// Takes a branch back.
    fn fold(&mut self, mut branch: Sequence) {
        self.kv.keep(&mut branch.tables, 0);
        self.recurrent.withdraw(&mut branch.trail);
        self.slots.release(branch.slot);
    }

    /// Puts the tokens of a batch in place.
    fn stage_wave(
        &mut self,
        branches: &mut [Sequence],
        start: u32,
        runs: &[&[u32]],
        pieces: &[Piece],
        scope: &Scope,
    ) -> Result<()> {
        let (mut tokens, mut rows) = (Vec::new(), Vec::new());
        for p in pieces {
            let (branch, first) = (&mut branches[p.run], start + p.from);
            tokens.extend_from_slice(&runs[p.run][p.from as usize..][..p.rows as usize]);
            rows.extend((first..first + p.rows).map(|pos| Row { slot: branch.slot, pos }));
            if !self.recurrent.is_empty() {
                let places = self.recurrent.begin(&mut branch.trail, first, true)?;
                self.slots.set_places(&self.gpu, branch.slot, places, scope)?;
            }
        }
        self.gpu.upload(self.scratch.tokens.whole(), bytemuck::cast_slice(&tokens), scope)?;
        self.gpu.upload(self.scratch.row_data.whole(), bytemuck::cast_slice(&rows), scope)
    }

    /// Records the evaluation of a staged batch. Returns its rows.
    pub(super) fn record_wave<'a>(
        &'a self,
        pieces: &[Piece],
        lora: Option<&'a LoraSet>,
        scope: &Scope,
    ) -> Result<(Recorder<'a>, u32)> {
        let n = pieces.iter().map(|p| p.rows).sum();
        let mut recorder = self.recorder("results", None, lora, scope);
        self.forward(None).adapted(lora).body(
            &mut recorder,
            n,
            if pieces.len() == 1 { Batch::Run } else { Batch::Mixed },
        )?;
        Ok((recorder, n))
    }

    /// Records the scores of the staged targets under the first `n` rows of the scratch, each its own; or of all `entries` under row `first`.
    pub(super) fn record_scores(
        &self,
        recorder: &mut Recorder<'_>,
        room: &ResultRoom,
        (first, n): (u32, u32),
        entries: Option<u32>,
        lora: Option<&LoraSet>,
    ) -> Result<()> {
        let (vocab, partial) = (self.spec.n_vocab, self.scratch.partial.whole());
        let (cut, end) = (Chunks::of(vocab), first + n);
        for at in (first..end).step_by(LOGIT_ROWS as usize) {
            let rows = (end - at).min(LOGIT_ROWS);
            self.forward(None).adapted(lora).logits(recorder, at, rows, Left::Nothing)?;
            let logits = Matrix::new(&self.scratch.logits, rows, vocab);
            let scored = Scored {
                targets: room.targets.whole(),
                scores: room.scores.whole(),
                first: if entries.is_some() { 0 } else { at },
                entries: entries.unwrap_or(rows),
                each_its_row: entries.is_none(),
            };
            recorder.record(log_sum(logits, cut, partial)?.label("score.sums"))?;
            recorder.record(token_score(logits, cut, partial, scored)?.label("score.tokens"))?;
        }
        Ok(())
    }

    /// The final normalisation of the first `n` rows.
    pub(super) fn record_final_norm(&self, recorder: &mut Recorder<'_>, n: u32) -> Result<Matrix<'_>> {
        let normed = Matrix::new(&self.scratch.normed, n, self.spec.n_embd);
        self.forward(None).final_norm(recorder, normed)?;
        Ok(normed)
    }

    /// The rows that `stretches` staged stretches of `x` become; of length 1 if `unit` says so, but for those it leaves out.
    pub(super) fn record_pooled(
        &self,
        recorder: &mut Recorder<'_>,
        room: &ResultRoom,
        x: Matrix<'_>,
        stretches: u32,
        unit: bool,
    ) -> Result<()> {
        let y = Matrix::new(&room.pooled, stretches, x.cols);
        recorder.record(pool_rows(room.stretches.whole(), x, y)?.label("embed.pool"))?;
        if unit {
            recorder.record(unit_rows(y)?.label("embed.unit"))?;
        }
        Ok(())
    }

    /// The room for results.
    pub(super) fn room(&self) -> Result<&ResultRoom> {
        match &self.results.room {
            Some(room) => Ok(room),
            None => bail!(Internal, "results without room for them"),
        }
    }

    /// Records, to be thrown away, everything that results can need.
    fn record_results(&self, recorder: &mut Recorder<'_>) -> Result<()> {
        let room = self.room()?;
        let grouped: BTreeSet<_> = self.spec.experts().map(|e| grouped_from(&e)).collect();
        let long = [LOGIT_ROWS + 1, COOP_FROM, 8 * COOP_FROM, 32 * COOP_FROM, self.scratch.rows];
        let sizes = [1, 2, 3, TILE_FROM].into_iter().chain(long).chain(grouped);
        for n in sizes.filter(|&n| n <= self.scratch.rows) {
            // What a run alone takes beside is what prompts take.
            if n > 1 && self.recurrent.is_empty() {
                self.forward(None).body(recorder, n, Batch::Mixed)?;
            }
            self.record_scores(recorder, room, (0, n), None, None)?;
            let x = self.record_final_norm(recorder, n)?;
            self.record_pooled(recorder, room, x, 1, true)?;
            recorder.record(unit_rows(x)?.label("embed.unit"))?;
        }
        self.record_scores(recorder, room, (0, 1), Some(1), None)
    }

    /// Makes everything that results need: room for `entries` targets, pipelines, bind groups. Does nothing if it is there.
    pub(super) fn warm_results(&mut self, entries: u32, scope: &Scope) -> Result<()> {
        let scope = &scope.clone().in_phase(Phase::Load);
        let entries = entries.max(self.scratch.rows).next_power_of_two();
        if self.results.room.as_ref().is_none_or(|r| r.entries < entries) {
            let room = ResultRoom::new(&self.gpu, self.scratch.rows, entries, self.spec.n_embd, scope)?;
            if self.results.room.replace(room).is_some() {
                self.forget_plans();
            }
            self.results.warm = false;
        }
        self.prewarm(scope)?;
        if self.results.warm {
            return Ok(());
        }
        let mut survey = self.gpu.survey(scope);
        self.record_results(&mut survey)?;
        self.gpu.compile(&survey.into_survey(), scope)?;
        let mut recorder = self.gpu.recorder("prewarm", scope).with_groups(&self.groups);
        self.record_results(&mut recorder)?;
        recorder.rehearse()?;
        self.results.warm = true;
        Ok(())
    }
}
