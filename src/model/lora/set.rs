//! Sequences' lists of adapters, and how a product is recorded with them.

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use crate::error::{Result, bail};
use crate::gpu::{BindGroupCache, Mutex, Phase, Recorder, Scope};
use crate::kernels::{HalfRows, Input, Matrix, Weight, gather, matmul, matmul_fast, residual};
use crate::model::draw::Choice;
use crate::model::engine::Engine;
use crate::model::forward::{Batch, Forward};
use crate::model::lora::weights::{Lora, LowRank, load};
use crate::model::sequence::Sequence;
use crate::model::steps::StepPlan;
use crate::model::weights::Places;

/// Lists that are kept ready though no sequence has them at the moment, so that changing to and fro costs nothing.
const KEPT: usize = 4;

/// See the module's text. Factors are neither 0 nor not finite, and there is at least one adapter.
#[derive(Debug)]
pub(crate) struct LoraSet {
    /// Handed out once; 0 stands for no list.
    id: u64,
    list: Vec<(Arc<Lora>, f32)>,
    pub(crate) groups: BindGroupCache,
    /// Decode steps by number of sequences and whether logits are changed before drawing.
    plans: Mutex<HashMap<(u32, Choice), Arc<StepPlan>>>,
    /// Everything that single-sequence prompts and decoding need is there.
    warm: AtomicBool,
}

impl LoraSet {
    /// Its number.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    fn is(&self, list: &[(Arc<Lora>, f32)]) -> bool {
        type Entry = (Arc<Lora>, f32);
        let same = |(a, b): (&Entry, &Entry)| a.0.id == b.0.id && a.1.to_bits() == b.1.to_bits();
        self.list.len() == list.len() && self.list.iter().zip(list).all(same)
    }

    fn forget_plans(&self) {
        self.plans.lock().clear();
        self.groups.clear();
        self.warm.store(false, Ordering::Relaxed);
    }

    /// Whether a product with this weight is changed.
    pub(crate) fn changes(&self, w: &Weight) -> bool {
        self.list.iter().any(|(lora, _)| lora.products.contains_key(w.name()))
    }
}

/// The lists of an engine's sequences.
#[derive(Debug, Default)]
pub(crate) struct LoraPool {
    pub(crate) places: Arc<Places>,
    made: u64,
    sets: Vec<Weak<LoraSet>>,
    /// Latest first.
    kept: VecDeque<Arc<LoraSet>>,
}

impl LoraPool {
    pub(crate) fn new(places: Places) -> Self {
        Self { places: Arc::new(places), ..Self::default() }
    }

    fn living(&self) -> impl Iterator<Item = Arc<LoraSet>> {
        self.sets.iter().filter_map(Weak::upgrade)
    }

    /// The set with a number, if it is still in use.
    pub(crate) fn get(&self, id: u64) -> Option<Arc<LoraSet>> {
        self.living().find(|s| s.id == id)
    }

    fn set(&mut self, list: Vec<(Arc<Lora>, f32)>) -> Arc<LoraSet> {
        self.sets.retain(|s| s.strong_count() > 0);
        let known = self.living().find(|s| s.is(&list));
        let set = known.unwrap_or_else(|| {
            self.made += 1;
            let set = Arc::new(LoraSet {
                id: self.made,
                list,
                groups: BindGroupCache::default(),
                plans: Mutex::default(),
                warm: AtomicBool::new(false),
            });
            self.sets.push(Arc::downgrade(&set));
            set
        });
        self.kept.retain(|s| s.id != set.id);
        self.kept.push_front(set.clone());
        self.kept.truncate(KEPT);
        set
    }

    /// Buffers that plans bind were replaced.
    pub(crate) fn forget_plans(&self) {
        self.living().for_each(|s| s.forget_plans());
    }
}

impl Sequence {
    /// Its adapters.
    pub(in crate::model) fn lora(&self) -> Option<&LoraSet> {
        self.lora.as_deref()
    }

    /// The number of their list, 0 without.
    pub(in crate::model) fn lora_id(&self) -> u64 {
        self.lora.as_ref().map_or(0, |s| s.id)
    }
}

impl Engine {
    /// Where adapters of this model find its tensors, and how many rows a batch has at most.
    pub(crate) fn lora_places(&self) -> (Arc<Places>, u32) {
        (self.lora.places.clone(), self.options.chunk)
    }

    /// Loads an adapter: a GGUF file, or a folder as PEFT writes it.
    ///
    /// # Errors
    /// [`crate::Error::Io`]; [`crate::Error::BadFile`] or [`crate::Error::Unsupported`] naming file and key or tensor; [`crate::Error::OutOfMemory`].
    pub fn load_lora(&self, path: &Path) -> Result<Arc<Lora>> {
        load(&self.gpu, path, &self.spec, &self.lora.places, self.options.chunk, &self.gpu.scope(Phase::Load))
            .map(Arc::new)
    }

    /// Changes what is added to a sequence's products: `list` has adapters of this model, each with a factor (0: as if it were not there). Everything
    /// that the next evaluation needs is made here. True if the list is another one than before: keys and values that were made with the old one
    /// are then the caller's to forget.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] for a factor that is not finite; what compiling and recording report. The sequence is then as it was.
    pub fn set_loras(&mut self, sequence: &mut Sequence, list: &[(Arc<Lora>, f32)], scope: &Scope) -> Result<bool> {
        if let Some((_, scale)) = list.iter().find(|(_, scale)| !scale.is_finite()) {
            bail!(InvalidArgument, "an adapter with the factor {scale}");
        }
        let list: Vec<_> = list.iter().filter(|(_, scale)| *scale != 0.0).cloned().collect();
        let before = sequence.lora_id();
        let set = if list.is_empty() { None } else { Some(self.lora.set(list)) };
        if let Some(set) = &set {
            self.warm_loras(set, scope)?;
        }
        sequence.lora = set;
        self.drop_stale_batch();
        Ok(sequence.lora_id() != before)
    }

    /// Forgets what was kept ready for an adapter. Sequences that have it go on with it.
    pub fn forget_lora(&mut self, lora: &Lora) {
        self.lora.kept.retain(|s| s.list.iter().all(|(l, _)| l.id != lora.id));
        self.drop_stale_batch();
    }

    /// The plan of a decode step with the adapters of a number: see [`Engine::prepare_decode`].
    pub(in crate::model) fn lora_plan(
        &self,
        n: u32,
        choice: Choice,
        lora: u64,
        scope: &Scope,
    ) -> Result<Arc<StepPlan>> {
        let Some(set) = self.lora.get(lora) else { bail!(Internal, "adapters {lora} are gone") };
        let mut plans = set.plans.lock();
        if let Some(plan) = plans.get(&(n, choice)) {
            return Ok(plan.clone());
        }
        let mut recorder = self.gpu.recorder("decode", scope).with_groups(&set.groups);
        self.forward(None).adapted(Some(&set)).decode_step(&mut recorder, n, choice, Batch::Rows)?;
        let plan = self.step_plan(recorder, n, &set.groups, scope)?;
        plans.insert((n, choice), plan.clone());
        Ok(plan)
    }

    /// Makes what evaluation of single sequences with these adapters needs, as [`Engine::prewarm`] does without.
    pub(in crate::model) fn warm_loras(&mut self, set: &Arc<LoraSet>, scope: &Scope) -> Result<()> {
        if set.warm.load(Ordering::Relaxed) {
            return Ok(());
        }
        // No part of what prompts or decoding cost.
        let scope = scope.clone().in_phase(Phase::Load);
        let mut survey = self.gpu.survey(&scope);
        self.record_prompts(&mut survey, Some(set))?;
        Choice::ALL
            .into_iter()
            .try_for_each(|p| self.forward(None).adapted(Some(set)).decode_step(&mut survey, 1, p, Batch::Rows))?;
        self.gpu.compile(&survey.into_survey(), &scope)?;
        let mut recorder = self.gpu.recorder("prewarm", &scope).with_groups(&set.groups);
        self.record_prompts(&mut recorder, Some(set))?;
        recorder.rehearse()?;
        Choice::ALL.into_iter().try_for_each(|p| self.lora_plan(1, p, set.id, &scope).map(drop))?;
        set.warm.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl<'a> Forward<'a> {
    /// The pass with a sequence's adapters.
    pub(crate) fn adapted(self, lora: Option<&'a LoraSet>) -> Self {
        Self { lora, ..self }
    }

    /// Whether adapters change products with this weight: those are then made one by one, from f32 rows.
    pub(in crate::model) fn adapts(&self, w: &Weight) -> bool {
        self.lora.is_some_and(|set| set.changes(w))
    }

    /// `y += scale · B · (A · x)`, for each adapter that changes the weight of this product.
    pub(in crate::model) fn adapt(
        &self,
        r: &mut Recorder<'_>,
        from: Input<'_>,
        w: &Weight,
        y: Matrix<'_>,
    ) -> Result<()> {
        for (lora, scale) in self.lora.iter().flat_map(|set| &set.list) {
            let Some(low) = lora.products.get(w.name()) else { continue };
            if from.norm.is_some() {
                bail!(Internal, "an adapter of {}: its rows are not normalised yet", w.name());
            }
            let x = Matrix::new(&lora.rows[0], from.x.rows, low.b.k());
            let room = self.scratch.half_room();
            Self::record_all(r, "lora.a", matmul_fast(r.gpu(), room, from.x, &low.a, x, false)?)?;
            self.add_ranks(r, lora, low, *scale, x, y)?;
        }
        Ok(())
    }

    /// The embedding's part: a row of A for each token.
    pub(in crate::model) fn adapt_embedding(&self, r: &mut Recorder<'_>, y: Matrix<'_>) -> Result<()> {
        for (lora, scale) in self.lora.iter().flat_map(|set| &set.list) {
            let Some(low) = &lora.embedding else { continue };
            let x = Matrix::new(&lora.rows[0], y.rows, low.b.k());
            let tokens = self.scratch.tokens.whole();
            Self::record_all(r, "lora.a", gather(&low.a, tokens, x, scale * self.spec.embedding_scale)?)?;
            self.add_ranks(r, lora, low, 1.0, x, y)?;
        }
        Ok(())
    }

    /// `y += scale · B · x`.
    fn add_ranks<'b>(
        &self,
        r: &mut Recorder<'_>,
        lora: &'b Lora,
        low: &LowRank,
        scale: f32,
        mut x: Matrix<'b>,
        y: Matrix<'_>,
    ) -> Result<()> {
        let scaled = Matrix::new(&lora.rows[1], x.rows, x.cols);
        if scale != 1.0 {
            let n = x.rows * x.cols;
            r.record(residual(n, x.data, x.data, scaled.data, scale - 1.0)?.label("lora.scale"))?;
            x = scaled;
        }
        // Ranks may be more than what the room for f16 rows was made for; and there is no use in decoding so narrow a weight first.
        let fits = HalfRows::data_bytes(x.rows.into(), x.cols);
        let room = self.scratch.half_room().filter(|h| h.data.size >= fits).map(|h| h.without_weights());
        let dispatches = match room {
            Some(room) => matmul_fast(r.gpu(), Some(room), x, &low.b, y, true)?,
            None => matmul(r.gpu(), x, &low.b, y, true)?,
        };
        Self::record_all(r, "lora.b", dispatches)
    }
}
