//! The forward pass, recorded: embedding, blocks, logits, sampling. Shapes come from the spec, nothing else decides.

use crate::error::Result;
use crate::gpu::{BufferSlice, Dispatch, Recorder};
use crate::kernels::sample::{Chunks, SamplingBuffers, SeqState, argmax, check_stop, penalize, pick, step_begin};
use crate::kernels::{
    AttentionShape, Matrix, Norm, Pages, RopePairs, RopeShape, Segments, Weight, activate, attention_decode,
    attention_prefill, attention_prefill_fits, gather, gather_positions, glu, matmul, norm, qk_norm, rope,
    sigmoid_gate, softcap,
};
use crate::model::kv_cache::KvPool;
use crate::model::probe::Lens;
use crate::model::recurrent::state::RecurrentPool;
use crate::model::scratch::Scratch;
use crate::model::slots::Slots;
use crate::model::spec::{AttentionSpec, LayerSpec, Mixer, ModelSpec, QkNorm};
use crate::model::weights::{FeedForwardWeights, LayerWeights, NormWeights, Weights};

/// How the rows of a batch belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Batch {
    /// One sequence, consecutive positions: a piece of a prompt.
    Run,
    /// Each row at its own slot and position: a decode step.
    Rows,
}

/// What the pass reads and writes.
#[derive(Clone, Copy)]
pub(crate) struct Forward<'a> {
    pub(crate) spec: &'a ModelSpec,
    pub(crate) weights: &'a Weights,
    pub(crate) scratch: &'a Scratch,
    pub(crate) slots: &'a Slots,
    pub(crate) kv: &'a KvPool,
    pub(crate) recurrent: &'a RecurrentPool,
    /// Looks at tensors on the way.
    pub(crate) lens: Option<Lens<'a>>,
}

impl<'a> Forward<'a> {
    pub(super) fn record_all(r: &mut Recorder<'_>, label: &'static str, dispatches: Vec<Dispatch<'_>>) -> Result<()> {
        dispatches.into_iter().try_for_each(|d| r.record(d.label(label)))
    }

    /// Shows a tensor to the probe, if there is one.
    pub(super) fn look(&self, r: &mut Recorder<'_>, point: &str, layer: Option<usize>, x: Matrix<'_>) -> Result<()> {
        match self.lens {
            Some(lens) => lens.probe.tensor(r, point, layer.map(|l| l as u32), lens.position, x),
            None => Ok(()),
        }
    }

    /// Shows the `n` words at the probed sequence's slot of an array over slots to the probe, if there is one.
    fn look_slot(
        &self,
        r: &mut Recorder<'_>,
        point: &str,
        layer: Option<usize>,
        data: BufferSlice<'_>,
        n: u32,
    ) -> Result<()> {
        let Some(lens) = self.lens else { return Ok(()) };
        let bytes = u64::from(n) * 4;
        let words = data.buffer.slice(data.offset + u64::from(lens.slot) * bytes, bytes);
        lens.probe.words(r, point, layer.map(|l| l as u32), lens.position, words, n)
    }

    /// Embedding and all blocks, for the first `n` rows of the scratch.
    pub(crate) fn body(&self, r: &mut Recorder<'_>, n: u32, batch: Batch) -> Result<()> {
        let x = Matrix::new(&self.scratch.x, n, self.spec.n_embd);
        let tokens = self.scratch.tokens.whole();
        Self::record_all(r, "embed", gather(&self.weights.embedding, tokens, x, self.spec.embedding_scale)?)?;
        if let Some(positions) = &self.weights.positions {
            Self::record_all(r, "embed.positions", gather_positions(positions, self.scratch.row_data.whole(), x)?)?;
        }
        self.look(r, "embed", None, x)?;
        for (i, (spec, weights)) in self.spec.layers.iter().zip(&self.weights.layers).enumerate() {
            r.set_layer(Some(i as u32));
            let input = match &spec.mixer {
                Mixer::Attention(a) => self.attention(r, i, a, weights, x, batch)?,
                Mixer::Recurrent(_) => self.recurrence(r, i, spec, weights, x, batch)?,
            };
            self.look(r, "attn.residual", Some(i), x)?;
            let input = if spec.parallel { input } else { self.norm(r, x, weights.ffn_norm.as_ref())? };
            self.look(r, "ffn.norm", Some(i), input)?;
            self.feed_forward(r, i, spec, weights, input, x)?;
            self.look(r, "ffn.residual", Some(i), x)?;
        }
        r.set_layer(None);
        Ok(())
    }

    fn norm_of<'w>(&self, w: &'w NormWeights) -> Norm<'w> {
        let bias = w.bias.as_ref().map(|b| b.whole());
        Norm { kind: self.spec.norm, eps: self.spec.norm_eps, w: w.w.whole(), bias }
    }

    /// What a block reads: the normalised residual stream, or without weights the stream itself.
    pub(super) fn norm<'m>(&self, r: &mut Recorder<'_>, x: Matrix<'m>, w: Option<&NormWeights>) -> Result<Matrix<'m>>
    where
        'a: 'm,
    {
        let Some(w) = w else { return Ok(x) };
        let normed = Matrix::new(&self.scratch.normed, x.rows, self.spec.n_embd);
        r.record(norm(self.norm_of(w), x, normed, false)?)?;
        Ok(normed)
    }

    /// `x += post(from · Wᵀ)`: the last product of a block. With a normalisation its result takes the place of the block's input.
    pub(super) fn add_block(
        &self,
        r: &mut Recorder<'_>,
        label: &'static str,
        from: Matrix<'_>,
        w: &Weight,
        post: Option<&NormWeights>,
        x: Matrix<'_>,
    ) -> Result<()> {
        let Some(post) = post else { return Self::record_all(r, label, matmul(r.gpu(), from, w, x, true)?) };
        let y = Matrix::new(&self.scratch.normed, x.rows, self.spec.n_embd);
        Self::record_all(r, label, matmul(r.gpu(), from, w, y, false)?)?;
        r.record(norm(self.norm_of(post), y, x, true)?)
    }

    /// Adds attention to `x`. Returns what it read, for blocks that share their input.
    fn attention<'m>(
        &self,
        r: &mut Recorder<'_>,
        layer: usize,
        a: &AttentionSpec,
        w: &LayerWeights,
        x: Matrix<'m>,
        batch: Batch,
    ) -> Result<Matrix<'m>>
    where
        'a: 'm,
    {
        let (s, n) = (self.scratch, x.rows);
        let normed = self.norm(r, x, w.attn_norm.as_ref())?;
        self.look(r, "attn.norm", Some(layer), normed)?;
        let inputs = Matrix::new(&s.qkv, n, a.in_width());
        Self::record_all(r, "attn.qkv", matmul(r.gpu(), normed, &w.qkv, inputs, false)?)?;
        self.look(r, "attn.qkv", Some(layer), inputs)?;
        let qkv = inputs.columns(0, a.qkv_width());
        self.qk_norm(r, a, w, qkv)?;
        let (k, v) = self.kv.layer(layer)?;
        let pages = Pages {
            rows: s.row_data.whole(),
            tables: self.slots.tables[self.kv.group_of(layer)].whole(),
            table_stride: self.slots.table_stride(),
            kv_type: self.kv.kv_type(),
            k,
            v,
        };
        let (q, out) = (s.q.whole(), s.attn.whole());
        let own = a.rope.and_then(|i| Some((self.spec.ropes.get(i)?, self.weights.angles.get(i)?)));
        // Without rotation no angles are looked at.
        let (pairs, n_rot, angles) = own.map_or((RopePairs::None, 0, q), |(r, t)| (r.pairs, r.n_rot, t.whole()));
        let rotation = RopeShape { n_head: a.n_head, n_kv: a.n_kv, head_dim: a.head_dim, n_rot, pairs };
        r.record(rope(rotation, qkv, pages, angles, q)?.label("attn.rope"))?;
        self.look(r, "attn.q", Some(layer), Matrix::new(&s.q, n, a.q_width()))?;
        self.look_slot(r, "kv.table", Some(layer), pages.tables, pages.table_stride)?;
        let shape = AttentionShape {
            n_head: a.n_head,
            n_kv: a.n_kv,
            head_dim: a.head_dim,
            window: a.window,
            scale: a.scale,
            softcap: a.softcap,
        };
        let scores = if batch == Batch::Run && n > 1 && attention_prefill_fits(r.gpu(), a.head_dim) {
            attention_prefill(r.gpu(), shape, n, pages, q, out)?
        } else {
            attention_decode(shape, n, pages, q, out)?
        };
        let scores = match &w.sinks {
            Some(sinks) => shape.with_sinks(scores, sinks.whole())?,
            None => scores,
        };
        r.record(scores.label("attn.scores"))?;
        let heads = Matrix::new(&s.attn, n, a.q_width());
        if a.gated {
            r.record(sigmoid_gate(heads, inputs.columns(a.qkv_width(), a.q_width()))?.label("attn.gate"))?;
        }
        self.look(r, "attn.heads", Some(layer), heads)?;
        self.add_block(r, "attn.out", heads, &w.attn_out, w.attn_post_norm.as_ref(), x)?;
        Ok(normed)
    }

    /// Normalises q and k where they stand, if the layer does that.
    fn qk_norm(&self, r: &mut Recorder<'_>, a: &AttentionSpec, w: &LayerWeights, qkv: Matrix<'_>) -> Result<()> {
        let (Some(which), Some([q, k])) = (a.qk_norm, &w.qk_norm) else { return Ok(()) };
        let segments = |heads: u32, w| match which {
            QkNorm::Heads => Segments { count: heads, cols: a.head_dim, w },
            QkNorm::Whole => Segments { count: 1, cols: heads * a.head_dim, w },
        };
        let (q, k) = (segments(a.n_head, q.whole()), segments(a.n_kv, k.whole()));
        r.record(qk_norm(qkv, q, k, self.spec.norm_eps)?.label("attn.qk_norm"))
    }

    fn feed_forward(
        &self,
        r: &mut Recorder<'_>,
        layer: usize,
        spec: &LayerSpec,
        w: &LayerWeights,
        input: Matrix<'_>,
        x: Matrix<'_>,
    ) -> Result<()> {
        let (s, n_ff) = (self.scratch, spec.feed_forward.n_ff);
        let (w_up, w_down) = match &w.feed_forward {
            FeedForwardWeights::Dense { up, down } => (up, down),
            FeedForwardWeights::Experts(experts) => {
                return self.experts(r, layer, &spec.feed_forward, experts, input, x);
            }
        };
        let up = Matrix::new(&s.gate_up, x.rows, w_up.rows());
        Self::record_all(r, "ffn.gate_up", matmul(r.gpu(), input, w_up, up, false)?)?;
        let inner = Matrix::new(&s.ff, x.rows, n_ff);
        let which = spec.feed_forward.activation;
        let act = match spec.feed_forward.gated {
            true => glu(which, up.columns(0, n_ff), up.columns(n_ff, n_ff), inner)?,
            false => activate(which, up, inner)?,
        };
        r.record(act.label("ffn.act"))?;
        self.look(r, "ffn.inner", Some(layer), inner)?;
        self.add_block(r, "ffn.down", inner, w_down, w.ffn_post_norm.as_ref(), x)
    }

    /// Logits of rows `first .. first + n` into the first `n` rows of `scratch.logits`.
    pub(crate) fn logits(&self, r: &mut Recorder<'_>, first: u32, n: u32) -> Result<()> {
        let e = self.spec.n_embd;
        let x = Matrix { data: self.scratch.x.whole(), rows: n, cols: e, stride: e, offset: first * e };
        let normed = self.norm(r, x, Some(&self.weights.output_norm))?;
        self.look(r, "output.norm", None, normed)?;
        let logits = Matrix::new(&self.scratch.logits, n, self.spec.n_vocab);
        Self::record_all(r, "head", matmul(r.gpu(), normed, self.weights.head(), logits, false)?)?;
        if self.spec.logit_softcap > 0.0 {
            r.record(softcap(n * self.spec.n_vocab, self.spec.logit_softcap, self.scratch.logits.whole())?)?;
        }
        self.look(r, "logits", None, logits)
    }

    /// Draws a token from each of the first `n` rows of logits, whose slots and positions stand in `rows`, and moves the sequences on.
    pub(crate) fn sample(&self, r: &mut Recorder<'_>, n: u32, rows: BufferSlice<'_>, penalties: bool) -> Result<()> {
        let (s, vocab) = (self.scratch, self.spec.n_vocab);
        let buffers = SamplingBuffers {
            rows,
            sampling: self.slots.sampling.whole(),
            history: self.slots.history.whole(),
            history_cap: self.slots.history_cap(),
            bias: self.slots.bias.whole(),
        };
        let cut = Chunks::of(vocab);
        let (logits, partial, picked) = (s.logits.whole(), s.partial.whole(), s.picked.whole());
        if penalties {
            r.record(penalize(n, vocab, logits, buffers)?.label("sample.penalize"))?;
        }
        r.record(argmax(n, vocab, cut, logits, partial)?.label("sample.argmax"))?;
        r.record(pick(n, vocab, cut, logits, buffers, partial, picked)?.label("sample.pick"))?;
        let (states, stops, ring) = (self.slots.states.whole(), self.slots.stop_ids.whole(), s.ring.whole());
        r.record(check_stop(n, 0, picked, rows, states, stops, ring)?.label("sample.stop"))?;
        if let Some(lens) = self.lens {
            lens.probe.words(r, "sample.picked", None, lens.position, picked, n)?;
        }
        self.look_slot(r, "stop.state", None, states, (size_of::<SeqState>() / 4) as u32)
    }

    /// One whole decode step of `n` sequences, whose slots stand in `scratch.batch_slots`.
    pub(crate) fn decode_step(&self, r: &mut Recorder<'_>, n: u32, penalties: bool) -> Result<()> {
        let s = self.scratch;
        let (states, history) = (self.slots.states.whole(), self.slots.history.whole());
        let (rows, tokens) = (s.row_data.whole(), s.tokens.whole());
        let cap = self.slots.history_cap();
        r.record(step_begin(n, s.batch_slots.whole(), states, rows, tokens, history, cap)?)?;
        self.body(r, n, Batch::Rows)?;
        self.logits(r, 0, n)?;
        self.sample(r, n, rows, penalties)?;
        self.end_recurrent_step(r, n)
    }
}
