//! Drafts: tokens that something cheaper than the model proposes, and that the model verifies in one submit.
//!
//! Verification evaluates the last token and the drafts behind it as rows of one sequence, draws a token at each row, and keeps the draws up to
//! the first that is not what was drafted. A row's logits have the bits that a decode step has there: rows are evaluated at most [`ROWS`] at a time, by
//! the products of few rows, whose results do not depend on how many there are, and by attention with the splits of a single row
//! ([`Batch::Drafts`]). Since a draw depends on nothing but logits, history, seed and position, tokens are the same with drafts as without.
//!
//! A draft model's own side is here too: drafting some tokens in one submit.

use std::collections::HashMap;
use std::sync::Arc;

use crate::error::{Result, bail};
use crate::gpu::{Encoded, Gate, Place, Plan, ReadbackClass, Recorder, Scope, Submission};
use crate::kernels::constants::TILE_FROM;
use crate::kernels::sample::{NO_TOKEN, Row, SeqState};
use crate::model::draw::Choice;
use crate::model::engine::{Drawn, Engine, Stop};
use crate::model::forward::Batch;
use crate::model::scratch::LOGIT_ROWS;
use crate::model::sequence::Sequence;

/// The tokens drawn at verified rows, and those that a draft model proposes.
const VERIFIED: Gate = Gate::new(Place::Pipeline, ReadbackClass::Token, "verify.tokens");
const DRAFTED: Gate = Gate::new(Place::Pipeline, ReadbackClass::Token, "draft.tokens");

/// Tokens that are drafted at most.
pub const MAX_DRAFT: u32 = 15;
// With the token before them they are no more rows than there is room for logits.
const _: () = assert!(MAX_DRAFT < LOGIT_ROWS);

/// Rows that are evaluated together: as many as take the products of few rows.
const ROWS: u32 = TILE_FROM - 1;

/// Tokens before the first draft that a drafting sequence may not know yet: with more it evaluates a piece of prompt first. After drafts that were
/// all right it knows neither the last of them nor what was drawn behind it.
const LEAD: u32 = 2;

/// One submit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Job {
    Verify { rows: u32, choice: Choice },
    Draft { lead: bool, tokens: u32, choice: Choice },
}

/// What a sequence is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DraftRole {
    /// Its drafts are verified.
    Verifies,
    /// It drafts.
    Drafts,
}

/// What verifying and drafting need, once a sequence was opened for it.
#[derive(Debug, Default)]
pub(super) struct Drafts {
    verifies: bool,
    drafts: bool,
    /// Rows evaluated and drawn, by their number and how.
    verify: HashMap<(u32, Choice), Arc<Plan>>,
    /// [`LEAD`] rows, and a draw from the first, which is the latest.
    lead: HashMap<Choice, Arc<Plan>>,
    /// The last job's commands once more, encoded while the device was busy with it.
    ahead: Option<(Job, Encoded)>,
}

impl Drafts {
    /// Forgets what binds buffers.
    pub(super) fn forget(&mut self) {
        self.verify.clear();
        self.lead.clear();
        self.ahead = None;
    }
}

impl Sequence {
    /// How its single decode steps are evaluated. This is the place that decides it: where drafts are verified between them, steps must have the bits
    /// that verified rows have.
    pub(super) fn steps(&self) -> Batch {
        if self.drafts { Batch::Drafts } else { Batch::Rows }
    }
}

impl Engine {
    /// Says that drafts of a sequence will be verified, or that it drafts; what that needs is made with [`Engine::prewarm`].
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] for a model with recurrent layers: their states cannot be taken back to the last token that counts.
    pub fn expect_drafts(&mut self, sequence: &mut Sequence, role: DraftRole) -> Result<()> {
        if !self.recurrent.is_empty() {
            let name = &self.spec.architecture;
            bail!(
                Unsupported,
                "drafts with {name}: the states of its recurrent layers cannot be taken back when a draft is wrong"
            );
        }
        let known = match role {
            DraftRole::Verifies => {
                sequence.drafts = true;
                &mut self.drafts.verifies
            }
            DraftRole::Drafts => &mut self.drafts.drafts,
        };
        if !std::mem::replace(known, true) {
            self.warm = false;
        }
        Ok(())
    }

    /// The opposite of [`Engine::expect_drafts`] for a sequence; what was made for it stays.
    pub fn expect_no_drafts(&mut self, sequence: &mut Sequence) {
        sequence.drafts = false;
    }

    /// Rows evaluated together here.
    fn rows_together(&self) -> u32 {
        ROWS.min(self.scratch.rows)
    }

    fn record_verify(&self, r: &mut Recorder<'_>, rows: u32, choice: Choice) -> Result<()> {
        let forward = self.forward(None);
        let ready = forward.body(r, rows, Batch::Drafts)?;
        forward.logits(r, 0, rows, ready)?;
        forward.draw(r, rows, self.scratch.row_data.whole(), choice)
    }

    fn record_lead(&self, r: &mut Recorder<'_>, choice: Choice) -> Result<()> {
        let forward = self.forward(None);
        let ready = forward.body(r, LEAD, Batch::Drafts)?;
        forward.logits(r, 0, 1, ready)?;
        forward.sample(r, 1, self.scratch.row_data.whole(), choice)
    }

    /// Tokens that [`Engine::draft`] may be given.
    pub(crate) fn lead(&self) -> u32 {
        LEAD.min(self.rows_together())
    }

    /// Records, for a survey of pipelines, what is expected.
    pub(super) fn survey_drafts(&self, survey: &mut Recorder<'_>) -> Result<()> {
        for choice in Choice::ALL {
            if self.drafts.verifies {
                self.forward(None).decode_step(survey, 1, choice, Batch::Drafts)?;
            }
            // Greedy rows are verified as drawn ones.
            if self.drafts.verifies && choice != Choice::Greedy {
                (1..=self.rows_together()).try_for_each(|n| self.record_verify(survey, n, choice))?;
            }
            if self.drafts.drafts && self.lead() == LEAD {
                self.record_lead(survey, choice)?;
            }
        }
        Ok(())
    }

    /// Builds the plans of what is expected, so that verifying and drafting make nothing.
    pub(super) fn prepare_drafts(&mut self, scope: &Scope) -> Result<()> {
        for choice in Choice::ALL {
            if self.drafts.verifies {
                self.decode_plan(1, choice, Batch::Drafts, scope)?;
                (1..=self.rows_together()).try_for_each(|n| self.verify_plan(n, choice, scope).map(drop))?;
            }
            if self.drafts.drafts && self.lead() == LEAD {
                self.lead_plan(choice, scope)?;
            }
        }
        Ok(())
    }

    fn verify_plan(&mut self, rows: u32, choice: Choice, scope: &Scope) -> Result<Arc<Plan>> {
        // These rows end no step, so a greedy one is drawn as any.
        let choice = choice.max(Choice::Drawn);
        if let Some(plan) = self.drafts.verify.get(&(rows, choice)) {
            return Ok(plan.clone());
        }
        let mut recorder = self.recorder("verify", None, None, scope);
        self.record_verify(&mut recorder, rows, choice)?;
        let plan = Arc::new(recorder.into_plan()?);
        self.drafts.verify.insert((rows, choice), plan.clone());
        Ok(plan)
    }

    fn lead_plan(&mut self, choice: Choice, scope: &Scope) -> Result<Arc<Plan>> {
        if let Some(plan) = self.drafts.lead.get(&choice) {
            return Ok(plan.clone());
        }
        let mut recorder = self.recorder("draft", None, None, scope);
        self.record_lead(&mut recorder, choice)?;
        let plan = Arc::new(recorder.into_plan()?);
        self.drafts.lead.insert(choice, plan.clone());
        Ok(plan)
    }

    /// Records a job from its plans.
    fn record_job(&mut self, job: Job, scope: &Scope) -> Result<Recorder<'_>> {
        match job {
            Job::Verify { rows, choice } => {
                let together = self.rows_together();
                let pieces: Vec<(u32, u32)> =
                    (0..rows).step_by(together as usize).map(|first| (first, together.min(rows - first))).collect();
                let plans = pieces.iter().map(|p| self.verify_plan(p.1, choice, scope)).collect::<Result<Vec<_>>>()?;
                let s = &self.scratch;
                let mut recorder = self.recorder("verify", None, None, scope);
                for (&(first, n), plan) in pieces.iter().zip(&plans) {
                    let (first, n) = (u64::from(first), u64::from(n));
                    recorder.copy(s.draft_tokens.slice(first * 4, n * 4), s.tokens.slice(0, n * 4))?;
                    recorder.copy(s.draft_rows.slice(first * 8, n * 8), s.row_data.slice(0, n * 8))?;
                    recorder.replay(plan);
                    recorder.copy(s.picked.slice(0, n * 4), self.staging.slice(first * 4, n * 4))?;
                }
                Ok(recorder)
            }
            Job::Draft { lead, tokens, choice } => {
                let first = if lead { Some(self.lead_plan(choice, scope)?) } else { None };
                let step = self.decode_plan(1, choice, Batch::Rows, scope)?.step.clone();
                let mut recorder = self.recorder("draft", None, None, scope);
                for i in 0..tokens {
                    recorder.replay(first.as_ref().filter(|_| i == 0).unwrap_or(&step));
                    self.hand_out(&mut recorder, 1, i)?;
                }
                Ok(recorder)
            }
        }
    }

    /// Submits a job, and encodes it once more while the device is busy: the next one is likely to be the same, and its commands depend on nothing
    /// that this one draws.
    fn submit_job(&mut self, job: Job, scope: &Scope) -> Result<Submission> {
        let ahead = self.drafts.ahead.take().filter(|(j, _)| *j == job);
        if self.gpu.profiling() {
            return self.record_job(job, scope)?.submit();
        }
        let encoded = match ahead {
            Some((_, encoded)) => encoded,
            None => self.record_job(job, scope)?.encode()?,
        };
        let submission = encoded.submit(&self.gpu, scope)?;
        // If that fails, it fails again, and is reported, when its turn comes.
        self.drafts.ahead = self.record_job(job, scope).and_then(Recorder::encode).ok().map(|encoded| (job, encoded));
        Ok(submission)
    }

    /// Tells the device where a sequence stands, if it does not know.
    pub(super) fn send_state(&self, sequence: &mut Sequence, scope: &Scope) -> Result<()> {
        match sequence.state.take() {
            Some(state) => self.slots.set_state(&self.gpu, sequence.slot, state, scope),
            None => Ok(()),
        }
    }

    fn check_tokens(&self, sequence: &Sequence, tokens: &[u32]) -> Result<()> {
        if let Some(t) = tokens.iter().find(|&&t| t >= self.spec.n_vocab) {
            bail!(InvalidArgument, "token {t} in a vocabulary of {}", self.spec.n_vocab);
        }
        if sequence.is_probed() {
            bail!(InvalidArgument, "a probed sequence decodes alone, one token a submit");
        }
        Ok(())
    }

    /// Verifies drafts in one submit and one readback: evaluates `tokens` (the sequence's last token, then 1 to [`MAX_DRAFT`] drafts) at positions
    /// from `pos` on, and draws a token after each. Returns the draws that count: up to the first that is not the draft at its place, that stops the
    /// sequence, or that follows the last draft. So there is one at least, and all but the last one are drafts. Keys and values count
    /// up to the row of the last draw that does; [`Engine::decode`] goes on from there. `limit` as in [`Engine::prefill_and_draw`].
    ///
    /// # Errors
    /// [`crate::Error::ContextFull`], [`crate::Error::InvalidArgument`], or what the device reports.
    pub fn verify(
        &mut self,
        sequence: &mut Sequence,
        tokens: &[u32],
        pos: u32,
        limit: u32,
        scope: &Scope,
    ) -> Result<Vec<Drawn>> {
        let n = tokens.len() as u32;
        if !(2..=MAX_DRAFT + 1).contains(&n) || !sequence.drafts {
            bail!(InvalidArgument, "verifying {} drafts of 1..={MAX_DRAFT}", i64::from(n) - 1);
        }
        self.check_tokens(sequence, tokens)?;
        self.gpu.gate(&VERIFIED, scope)?;
        self.reserve(sequence, pos..pos + n, false, scope)?;
        let rows: Vec<Row> = (pos..pos + n).map(|pos| Row { slot: sequence.slot, pos }).collect();
        self.gpu.upload(self.scratch.draft_tokens.whole(), bytemuck::cast_slice(tokens), scope)?;
        self.gpu.upload(self.scratch.draft_rows.whole(), bytemuck::cast_slice(&rows), scope)?;
        // Penalties at a row look at the drafts before it.
        self.slots.set_history(&self.gpu, sequence.slot, pos, tokens, scope)?;
        let submission = self.submit_job(Job::Verify { rows: n, choice: sequence.choice }, scope)?;
        let mut words = vec![0u32; n as usize];
        let out = bytemuck::cast_slice_mut(&mut words);
        self.gpu.read_staging(&self.staging, &submission, out, VERIFIED, scope)?;
        let limit = limit.min(sequence.n_ctx);
        let mut drawn = Vec::with_capacity(words.len());
        for (i, token) in words.into_iter().enumerate() {
            if token >= self.spec.n_vocab {
                bail!(Gpu, "the device drew token {token} of a vocabulary of {}", self.spec.n_vocab);
            }
            let next = pos + i as u32 + 1;
            let stop = if sequence.stop_ids.contains(&token) {
                Stop::Token
            } else if next >= limit {
                Stop::Limit
            } else {
                Stop::Running
            };
            drawn.push(Drawn { token, stop });
            sequence.state = Some(SeqState {
                token,
                pos: next,
                limit,
                stop: stop as u32,
                n_stop: sequence.stop_ids.len() as u32,
                pad: [0; 3],
            });
            if stop != Stop::Running || tokens.get(i + 1) != Some(&token) {
                break;
            }
        }
        Ok(drawn)
    }

    /// Drafts in one submit and one readback: draws `n` tokens, as the sequence was configured, after one or two `tokens` at positions from `pos` on, which
    /// are the first that are not in the cache. Afterwards all but the last drawn are.
    ///
    /// # Errors
    /// As [`Engine::verify`].
    pub fn draft(
        &mut self,
        sequence: &mut Sequence,
        tokens: &[u32],
        pos: u32,
        n: u32,
        scope: &Scope,
    ) -> Result<Vec<u32>> {
        let known = tokens.len() as u32;
        let (Some(&token), true) = (tokens.last(), known <= self.lead() && (1..=MAX_DRAFT).contains(&n)) else {
            bail!(InvalidArgument, "drafting {n} tokens after {known}");
        };
        self.check_tokens(sequence, tokens)?;
        self.gpu.gate(&DRAFTED, scope)?;
        // After a fork the sequence may share the block that it writes to: no prompt has seen to that.
        self.reserve(sequence, pos..pos + known + n - 1, true, scope)?;
        if known > 1 {
            // The latest first: it is drawn from.
            let rows: Vec<Row> = (pos..pos + known).rev().map(|pos| Row { slot: sequence.slot, pos }).collect();
            let inputs: Vec<u32> = tokens.iter().rev().copied().collect();
            self.gpu.upload(self.scratch.tokens.whole(), bytemuck::cast_slice(&inputs), scope)?;
            self.gpu.upload(self.scratch.row_data.whole(), bytemuck::cast_slice(&rows), scope)?;
        }
        self.slots.set_history(&self.gpu, sequence.slot, pos, tokens, scope)?;
        // Nothing stops a draft: what is drawn after an end is not accepted.
        let state = SeqState { token, pos: pos + known - 1, limit: u32::MAX, stop: 0, n_stop: 0, pad: [0; 3] };
        self.slots.set_state(&self.gpu, sequence.slot, state, scope)?;
        self.seat(vec![sequence.slot], scope)?;
        let job = Job::Draft { lead: known > 1, tokens: n, choice: sequence.choice };
        let submission = self.submit_job(job, scope)?;
        let mut words = vec![[0u32; 2]; n as usize];
        let out = bytemuck::cast_slice_mut(&mut words);
        self.gpu.read_staging(&self.staging, &submission, out, DRAFTED, scope)?;
        // A token that is none would be refused by whoever verifies it.
        Ok(words.into_iter().map(|w| w[0]).take_while(|&t| t != NO_TOKEN && t < self.spec.n_vocab).collect())
    }
}

#[cfg(test)]
#[path = "verify_draft_tests.rs"]
pub(super) mod tests;
