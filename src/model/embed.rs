//! Embeddings: the rows that the head would read, pooled on the device.

use crate::error::{Result, bail};
use crate::gpu::{BufferSlice, Gate, Phase, Place, ReadbackClass, Recorder, Scope};
use crate::kernels::{Stretch, unit_rows};
use crate::model::engine::Engine;
use crate::model::runs::{Piece, WaveBatch};

const EMBEDDINGS: Gate = Gate::new(Place::Results, ReadbackClass::Embedding, "embeddings");

/// How the rows of a text become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pooling {
    /// They do not: a row for each token.
    None,
    /// Their mean.
    Mean,
    /// The first token's.
    Cls,
    /// The last token's.
    Last,
}

impl Pooling {
    /// Every way.
    pub const ALL: [Self; 4] = [Self::None, Self::Mean, Self::Cls, Self::Last];

    /// Lower-case name.
    pub fn name(self) -> &'static str {
        ["none", "mean", "cls", "last"][self as usize]
    }

    /// What a piece of a text of `len` tokens, whose rows begin at `at`, gives to its pooled row.
    fn stretch(self, p: &Piece, at: u32, len: u32) -> Stretch {
        let (end, last) = (p.from + p.rows, p.from + p.rows == len);
        let (first, rows, scale) = match self {
            Self::None | Self::Mean => (at, p.rows, 1.0 / len as f32),
            Self::Cls => (at, u32::from(p.from == 0), 1.0),
            Self::Last => (at + (end - 1 - p.from), u32::from(last), 1.0),
        };
        Stretch { first, rows, add: u32::from(p.from > 0), scale }
    }
}

impl Engine {
    /// Submits what was recorded, and reads a range of floats.
    fn read_rows(&self, mut recorder: Recorder<'_>, from: BufferSlice<'_>, scope: &Scope) -> Result<Vec<f32>> {
        let lease = self.gpu.lease_readback(from.size, &scope.clone().in_phase(Phase::Load))?;
        recorder.copy(from, lease.buffer().slice(0, from.size))?;
        let submission = recorder.submit()?;
        let mut raw = vec![0; from.size as usize];
        self.gpu.read_staging(lease.buffer(), &submission, &mut raw, EMBEDDINGS, scope)?;
        Ok(bytemuck::pod_collect_to_vec(&raw))
    }

    /// The embeddings of texts, each by itself: `[texts, n_embd]`, or without pooling `[tokens of all texts, n_embd]`; of length 1 if `unit`. A factor
    /// that the model may have on its logits is not in them.
    /// The texts are a wave ([`Engine::wave`] from 0); `on_batch` hears of each submit, and may end it all. No sequence changes.
    ///
    /// # Errors
    /// [`crate::Error::ContextFull`], [`crate::Error::InvalidArgument`], what the device reports or `on_batch` returns.
    pub fn embed_wave(
        &mut self,
        texts: &[&[u32]],
        pooling: Pooling,
        unit: bool,
        scope: &Scope,
        on_batch: &mut dyn FnMut(WaveBatch) -> Result<()>,
    ) -> Result<Vec<f32>> {
        self.gpu.gate(&EMBEDDINGS, scope)?;
        let mut rows = Vec::new();
        self.in_wave(None, 0, texts, scope, &mut |engine, pieces| {
            let Some(end) = pieces.last() else { bail!(Internal, "a batch of nothing") };
            // A text of several batches is pooled in each, and read after the last.
            let done = (end.from + end.rows) as usize == texts[end.run].len();
            let room = engine.room()?;
            let mut at = 0;
            let stretches: Vec<Stretch> = pieces
                .iter()
                .map(|p| {
                    at += p.rows;
                    pooling.stretch(p, at - p.rows, texts[p.run].len() as u32)
                })
                .collect();
            if pooling != Pooling::None {
                engine.gpu.upload(room.stretches.whole(), bytemuck::cast_slice(&stretches), scope)?;
            }
            let (mut recorder, n) = engine.record_wave(pieces, None, scope)?;
            let x = engine.record_final_norm(&mut recorder, n)?;
            let width = u64::from(x.cols) * 4;
            let mut bytes = 0;
            if pooling == Pooling::None {
                if unit {
                    recorder.record(unit_rows(x)?.label("embed.unit"))?;
                }
                bytes = u64::from(n) * width;
                rows.extend(engine.read_rows(recorder, engine.scratch.normed.slice(0, bytes), scope)?);
            } else {
                let count = stretches.len() as u32;
                engine.record_pooled(&mut recorder, room, x, count, unit && done)?;
                if done {
                    bytes = u64::from(count) * width;
                    rows.extend(engine.read_rows(recorder, room.pooled.slice(0, bytes), scope)?);
                } else {
                    let submission = recorder.submit()?;
                    engine.gpu.wait(&submission)?;
                }
            }
            on_batch(WaveBatch { rows: n, bytes })
        })?;
        // The weights of the last norm have the factor on logits in them.
        let scale = 1.0 / self.spec.logit_scale;
        if !unit && scale != 1.0 {
            rows.iter_mut().for_each(|x| *x *= scale);
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_of_a_text_in_pieces() {
        let pieces = [(0, 4), (4, 4), (8, 2)].map(|(from, rows)| Piece { run: 0, from, rows });
        let all =
            |pooling: Pooling| pieces.each_ref().map(|p| pooling.stretch(p, 3, 10)).map(|s| (s.first, s.rows, s.add));
        assert_eq!(all(Pooling::Mean), [(3, 4, 0), (3, 4, 1), (3, 2, 1)]);
        assert_eq!(all(Pooling::Cls), [(3, 1, 0), (3, 0, 1), (3, 0, 1)]);
        assert_eq!(all(Pooling::Last), [(6, 0, 0), (6, 0, 1), (4, 1, 1)]);
        assert_eq!(Pooling::Mean.stretch(&pieces[0], 0, 10).scale, 0.1);
        assert!(Pooling::ALL.iter().enumerate().all(|(i, p)| *p as usize == i));
    }
}
