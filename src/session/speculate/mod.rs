//! Speculative decoding: something cheap drafts tokens, the model verifies them in one submit ([`crate::model::Engine::verify`]). Tokens are those of
//! plain decoding, drawn or greedy; only the number of submits, and the time, differ.
//!
//! A *drafter* proposes; [`Speculator`] holds it with the rule of how much it may propose ([`pace`]). A third kind of drafter is a file here, a
//! variant of [`DraftSource`] and a line in [`DraftSource::drafter`].

mod draft_model;
mod lookup;
mod pace;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Instant;

use crate::error::{Result, bail};
use crate::gpu::{Counters, Guard, Phase};
use crate::model::{DraftRole, MAX_DRAFT};
use crate::session::model::Model;
use crate::session::speculate::draft_model::ModelDrafter;
use crate::session::speculate::lookup::LookupDrafter;
use crate::session::speculate::pace::Pace;
use crate::session::state::Session;

/// Tokens drafted at most where nothing else is said: with the token before them two groups of rows.
const DEFAULT_DRAFT: u32 = 7;
/// Longest n-gram that is looked up where nothing else is said.
pub const DEFAULT_NGRAM: u32 = 4;
/// Longest n-gram that may be looked up.
const MAX_NGRAM: u32 = 64;

/// Who drafts.
#[derive(Clone)]
pub enum DraftSource {
    /// The text so far: what followed the longest earlier occurrence of its last tokens. Needs no second model; good where a reply repeats what
    /// stands before it.
    Lookup {
        /// Shortest occurrence that counts, in tokens; 1 or more.
        min: u32,
        /// Longest one that is looked for; at most 64.
        max: u32,
    },
    /// A smaller model of the same vocabulary, greedily. It gets a session of its own with as long a context as it and the target have. Vocabularies
    /// are the same if all ids that both tokenizers know have the same text, and the numbers of ids differ by 128 at most (rows that only
    /// pad the table).
    Model(Model),
}

impl Debug for DraftSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Lookup { min, max } => write!(f, "Lookup({min}..={max})"),
            Self::Model(model) => write!(f, "Model({:?})", model.spec().name),
        }
    }
}

/// How a session drafts and verifies.
#[derive(Debug, Clone)]
pub struct Speculation {
    /// Who drafts.
    pub source: DraftSource,
    /// Tokens drafted at a time, at most: 1 to 15; 0 = 7. One less than a multiple of eight suits, since rows are evaluated in eights.
    pub max_draft: u32,
    /// Draft less where drafts are wrong, and decode plainly for a while where drafting was measured to be slower. Otherwise always `max_draft`
    /// tokens. The text does not depend on it.
    pub adaptive: bool,
}

impl Speculation {
    /// Lookup of n-grams of two to `max` tokens.
    pub fn lookup(max: u32) -> Self {
        Self { source: DraftSource::Lookup { min: 2.min(max), max }, max_draft: 0, adaptive: true }
    }

    /// Drafts by a model.
    pub fn draft_model(model: &Model) -> Self {
        Self { source: DraftSource::Model(model.clone()), max_draft: 0, adaptive: true }
    }
}

/// What speculation did in a session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpeculationStats {
    /// Tokens drafted and verified.
    pub drafted: u64,
    /// Those of them that were drawn.
    pub accepted: u64,
    /// Submits that verified drafts. Each draws one token more than it accepts.
    pub verifications: u64,
    /// Wall time of drafting, the draft model's evaluation of prompts included, nanoseconds.
    pub draft_ns: u64,
}

impl SpeculationStats {
    /// Share of the drafted tokens that were drawn; 0 where none were drafted.
    pub fn acceptance(&self) -> f64 {
        if self.drafted == 0 { 0.0 } else { self.accepted as f64 / self.drafted as f64 }
    }

    /// Accepted tokens of a verification, on average.
    pub fn mean_accepted(&self) -> f64 {
        if self.verifications == 0 { 0.0 } else { self.accepted as f64 / self.verifications as f64 }
    }
}

/// What proposes tokens. It is told the whole text each time and finds out by itself what has changed.
trait Drafter: Debug + Send {
    /// Does a piece of the work before the first draft (evaluating a piece of prompt); true if there is none left.
    fn prepare(&mut self, tokens: &[u32], guard: Guard) -> Result<bool>;

    /// Appends to `drafts` up to `most` tokens that may follow `tokens`.
    fn draft(&mut self, tokens: &[u32], most: u32, guard: Guard, drafts: &mut Vec<u32>) -> Result<()>;

    /// The same for another session that goes on from the same tokens.
    fn fork(&self, counters: &Arc<Counters>) -> Result<Box<dyn Drafter>>;
}

impl DraftSource {
    /// Makes the drafter of a session of `target`, charged to the session's counters.
    fn drafter(&self, target: &Model, n_ctx: u32, counters: &Arc<Counters>) -> Result<Box<dyn Drafter>> {
        Ok(match self {
            Self::Lookup { min, max } => {
                if *min == 0 || min > max || *max > MAX_NGRAM {
                    bail!(InvalidArgument, "n-grams of {min} to {max} tokens: 1..={MAX_NGRAM}, the shortest first");
                }
                Box::new(LookupDrafter { min: *min as usize, max: *max as usize })
            }
            Self::Model(model) => Box::new(ModelDrafter::open(target, model, n_ctx, counters)?),
        })
    }
}

/// A session's speculation.
#[derive(Debug)]
pub(super) struct Speculator {
    drafter: Box<dyn Drafter>,
    pace: Pace,
    /// The last token and its drafts; kept, so that it is not allocated for each.
    rows: Vec<u32>,
    /// Nothing was found to draft the last time.
    dry: bool,
}

impl Speculator {
    fn new(session: &Session, how: &Speculation) -> Result<Self> {
        let most = if how.max_draft == 0 { DEFAULT_DRAFT } else { how.max_draft };
        if most > MAX_DRAFT {
            bail!(InvalidArgument, "max_draft {most}: at most {MAX_DRAFT} tokens are drafted");
        }
        let drafter = how.source.drafter(&session.model, session.n_ctx, &session.counters)?;
        Ok(Self { drafter, pace: Pace::new(most, how.adaptive), rows: Vec::new(), dry: false })
    }

    /// Whether the next step is likely to be a plain batch.
    pub(super) fn rests(&self) -> bool {
        self.dry || self.pace.length() == 0
    }

    /// A plain batch of so many tokens took that long.
    pub(super) fn decoded(&mut self, tokens: usize, ns: u64) {
        self.pace.plain(tokens, ns);
    }
}

impl Session {
    /// Drafts and verifies from now on, or with `None` no longer. A draft model gets a session here, and its weights are those of the model given.
    ///
    /// # Errors
    /// [`crate::Error::InvalidState`] while generating, [`crate::Error::InvalidArgument`] for sizes out of range or a draft model of another vocabulary,
    /// [`crate::Error::Unsupported`] for models with recurrent layers, [`crate::Error::OutOfMemory`]. The session is then as before.
    pub fn set_speculation(&mut self, how: Option<&Speculation>) -> Result<()> {
        self.idle()?;
        if how.is_some() && !self.loras.is_empty() {
            bail!(Unsupported, "drafts in a session with adapters: take the adapters away first");
        }
        let speculator = how.map(|how| Speculator::new(self, how)).transpose()?;
        // What verifying needs is compiled now: within the first reply it would look like slow drafts.
        let scope = self.scope(Phase::Load);
        let Some(sequence) = &mut self.sequence else { bail!(Internal, "a session without sequence") };
        let mut engine = self.model.0.engine.lock();
        match speculator {
            Some(_) => {
                engine.expect_drafts(sequence, DraftRole::Verifies)?;
                engine.prewarm(&scope)?;
            }
            None => engine.expect_no_drafts(sequence),
        }
        drop(engine);
        self.speculator = speculator;
        Ok(())
    }

    /// Drafts as the session does that this is a fork of.
    pub(super) fn adopt_speculator(&mut self, parent: Option<&Speculator>) -> Result<()> {
        let (Some(parent), Some(sequence)) = (parent, &mut self.sequence) else { return Ok(()) };
        self.model.0.engine.lock().expect_drafts(sequence, DraftRole::Verifies)?;
        let drafter = parent.drafter.fork(&self.counters)?;
        self.speculator = Some(Speculator { drafter, pace: parent.pace.clone(), rows: Vec::new(), dry: false });
        Ok(())
    }

    /// Drafts and verifies, or gets the drafter ready. False if there is nothing to verify: then the next batch is plain.
    pub(super) fn step_drafted(&mut self) -> Result<bool> {
        let Some(mut speculator) = self.speculator.take() else { return Ok(false) };
        let done = self.step_with(&mut speculator);
        self.speculator = Some(speculator);
        done
    }

    fn step_with(&mut self, s: &mut Speculator) -> Result<bool> {
        let Some(g) = &self.generation else { bail!(InvalidState, "no generation is running") };
        // One token more than is accepted is drawn, and each needs a place.
        let left = (g.max_tokens - g.tokens.len() as u32).min(self.n_ctx - self.tokens.len() as u32);
        let most = s.pace.length().min(left.saturating_sub(1));
        let Some(&last) = self.tokens.last() else { bail!(Internal, "drafts for an empty session") };
        if most == 0 || self.sequence.as_ref().is_none_or(|q| q.is_probed()) {
            return Ok(false);
        }
        let (guard, started) = (self.guard(), Instant::now());
        s.rows.clear();
        s.rows.push(last);
        let ready = s.drafter.prepare(&self.tokens, guard)?;
        if ready {
            s.drafter.draft(&self.tokens, most, guard, &mut s.rows)?;
        }
        let drafting = started.elapsed().as_nanos() as u64;
        self.tally.speculation.draft_ns += drafting;
        if !ready {
            // The prompt of a draft model goes by pieces, so that a request to cancel is heard in between.
            return Ok(true);
        }
        let vocab = self.model.spec().n_vocab;
        let known = s.rows.iter().take(most as usize + 1).take_while(|&&t| t < vocab).count();
        s.rows.truncate(known);
        s.dry = s.rows.len() < 2;
        if s.dry {
            return Ok(false);
        }
        let scope = self.scope(Phase::Decode);
        let Some(sequence) = &mut self.sequence else { bail!(Internal, "a session without sequence") };
        let mut engine = self.model.0.warm_engine(&scope)?;
        let (before, verifying) = (self.counters.phase(Phase::Decode), Instant::now());
        // The last token that fits is drawn from the position before it.
        let drawn = engine.verify(sequence, &s.rows, self.cached, self.n_ctx - 1, &scope)?;
        drop(engine);
        let ns = drafting + verifying.elapsed().as_nanos() as u64;
        let cost = self.counters.phase(Phase::Decode).since(&before);
        // Before anything is taken over, as with plain batches.
        guard.check_decode(&cost, 1, s.rows.len() as u64)?;
        let (drafts, count) = (&s.rows[1..], drawn.len());
        let accepted = drawn.iter().zip(drafts).filter(|(d, draft)| d.token == **draft).count();
        self.tally.decode_ns += ns;
        self.tally.decode_tokens += count as u64;
        let total = &mut self.tally.speculation;
        total.verifications += 1;
        total.drafted += drafts.len() as u64;
        total.accepted += accepted as u64;
        s.pace.verified(drafts.len() as u32, accepted as u32, count, ns);
        self.accept(&drawn)?;
        Ok(true)
    }
}
