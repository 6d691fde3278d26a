//! Scores: how likely given tokens are after a sequence, and each after those before it. One number a token is read back, never its logits.

use crate::error::{Result, bail};
use crate::gpu::{Gate, Phase, Place, ReadbackClass, Recorder, Scope};
use crate::model::engine::Engine;
use crate::model::runs::{Piece, WaveBatch};
use crate::model::sequence::Sequence;

const SCORES: Gate = Gate::new(Place::Results, ReadbackClass::Score, "scores");

/// Scores as they come from the device, which has no −∞.
fn from_device(raw: &[u8]) -> impl Iterator<Item = f32> + '_ {
    let words = raw.chunks_exact(4).map(bytemuck::pod_read_unaligned::<f32>);
    words.map(|v| if v <= f32::MIN { f32::NEG_INFINITY } else { v })
}

impl Engine {
    /// Submits what was recorded, and reads the first `n` scores.
    fn read_scores(&self, mut recorder: Recorder<'_>, n: u32, scope: &Scope) -> Result<Vec<f32>> {
        let bytes = u64::from(n) * 4;
        let lease = self.gpu.lease_readback(bytes, &scope.clone().in_phase(Phase::Load))?;
        recorder.copy(self.room()?.scores.slice(0, bytes), lease.buffer().slice(0, bytes))?;
        let submission = recorder.submit()?;
        let mut raw = vec![0; bytes as usize];
        self.gpu.read_staging(lease.buffer(), &submission, &mut raw, SCORES, scope)?;
        Ok(from_device(&raw).collect())
    }

    /// Evaluates `tokens` (at most a chunk) at positions from `pos` on, as [`Engine::prefill`] does, and returns `ln p` of each of `targets` as the
    /// token after them, in the same submit.
    ///
    /// # Errors
    /// As [`Engine::prefill`].
    pub fn prefill_and_score(
        &mut self,
        sequence: &mut Sequence,
        tokens: &[u32],
        pos: u32,
        targets: &[u32],
        scope: &Scope,
    ) -> Result<Vec<f32>> {
        let n = tokens.len() as u32;
        let Ok(entries) = u32::try_from(targets.len()) else { bail!(InvalidArgument, "{} targets", targets.len()) };
        self.check_targets(targets)?;
        self.gpu.gate(&SCORES, scope)?;
        self.stage_run(sequence, tokens, pos, scope)?;
        self.warm_results(entries, scope)?;
        let room = self.room()?;
        self.gpu.upload(room.targets.whole(), bytemuck::cast_slice(targets), scope)?;
        let mut recorder = self.record_run(n, None, sequence.lora(), scope)?;
        self.record_scores(&mut recorder, room, (n - 1, 1), Some(entries), sequence.lora())?;
        let scores = self.read_scores(recorder, entries, scope)?;
        self.recurrent.finish(&mut sequence.trail, pos + n);
        Ok(scores)
    }

    /// `ln p` of each token of each run but its first, given `trunk` up to `start` and the run's tokens before it: all runs together, one after the
    /// other in the result. The runs are a wave ([`Engine::wave`], of one token less each); `on_batch` hears of each submit, and may end it all.
    ///
    /// # Errors
    /// [`crate::Error::ContextFull`], [`crate::Error::InvalidArgument`], what the device reports or `on_batch` returns. The trunk is as before in
    /// any case.
    pub fn score_wave(
        &mut self,
        trunk: &Sequence,
        start: u32,
        runs: &[&[u32]],
        scope: &Scope,
        on_batch: &mut dyn FnMut(WaveBatch) -> Result<()>,
    ) -> Result<Vec<f32>> {
        self.gpu.gate(&SCORES, scope)?;
        runs.iter().try_for_each(|r| self.check_targets(r))?;
        // Nothing follows the last token.
        let inputs: Vec<&[u32]> = runs.iter().map(|r| &r[..r.len().saturating_sub(1)]).collect();
        let mut scores = Vec::new();
        self.in_wave(Some(trunk), start, &inputs, scope, &mut |engine, pieces| {
            let after = |p: &Piece| &runs[p.run][p.from as usize + 1..][..p.rows as usize];
            let targets: Vec<u32> = pieces.iter().flat_map(after).copied().collect();
            let room = engine.room()?;
            engine.gpu.upload(room.targets.whole(), bytemuck::cast_slice(&targets), scope)?;
            let (mut recorder, n) = engine.record_wave(pieces, trunk.lora(), scope)?;
            engine.record_scores(&mut recorder, room, (0, n), None, trunk.lora())?;
            scores.extend(engine.read_scores(recorder, n, scope)?);
            on_batch(WaveBatch { rows: n, bytes: u64::from(n) * 4 })
        })?;
        Ok(scores)
    }

    fn check_targets(&self, targets: &[u32]) -> Result<()> {
        match targets.iter().find(|&&t| t >= self.spec.n_vocab) {
            Some(t) => bail!(InvalidArgument, "token {t} in a vocabulary of {}", self.spec.n_vocab),
            None => Ok(()),
        }
    }
}
