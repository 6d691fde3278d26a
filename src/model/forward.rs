//! The forward pass, recorded: embedding, blocks, logits, sampling. Shapes come from the spec, nothing else decides.

use crate::error::Result;
use crate::gpu::{BufferSlice, Dispatch, Recorder};
use crate::kernels::constants::{COOP_FROM, FEW_TO, TILE_FROM};
use crate::kernels::sample::{StepBegin, step_begin};
use crate::kernels::{
    Activation, AttentionShape, ByteRows, Fresh, Ids, Input, Matrix, Pages, Queries, RopePairs, RopeShape, Segments,
    Weight, activate, activate_bytes, activate_half, attention_coop, attention_coop_fits, attention_decode,
    attention_fresh_fits, attention_prefill, attention_prefill_fits, attention_split, attention_splits, byte_rows,
    gather_positions, glu, glu_bytes, lookup, matmul_fast, matmul_few_parts, matmul_glu, matmul_glu_fits, matmul_next,
    matmul_next_fits, norm, qk_norm, record_attention_chain, rope, sigmoid_gate, softcap,
};
use crate::model::draw::Choice;
use crate::model::kv_cache::KvPool;
use crate::model::lora::LoraSet;
use crate::model::norms::{After, Left, Norms};
use crate::model::probe::Lens;
use crate::model::recurrent::state::RecurrentPool;
use crate::model::scratch::{ByteBuffers, LOGIT_ROWS, Scratch};
use crate::model::slots::Slots;
use crate::model::spec::{AttentionSpec, LayerSpec, Mixer, ModelSpec, QkNorm};
use crate::model::weights::{FeedForwardWeights, LayerWeights, NormWeights, Weights};

/// How the rows of a batch belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Batch {
    /// One sequence, consecutive positions: a piece of a prompt.
    Run,
    /// Each row at its own slot and position, one row a sequence: a decode step.
    Rows,
    /// One sequence, a few positions, each computed as a decode step computes its row, bit for bit: drafted tokens that are verified.
    Drafts,
    /// As `Rows`, but several rows may belong to one sequence: all keys and values are kept before attention looks at them. Recurrent layers know
    /// no such batch.
    Mixed,
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
    /// Products take f32 activations always; else those of few rows with quantised weights take bytes.
    pub(crate) exact: bool,
    /// Looks at tensors on the way.
    pub(crate) lens: Option<Lens<'a>>,
    /// What is added to products.
    pub(crate) lora: Option<&'a LoraSet>,
}

impl<'a> Forward<'a> {
    pub(super) fn record_all(r: &mut Recorder<'_>, label: &'static str, dispatches: Vec<Dispatch<'_>>) -> Result<()> {
        dispatches.into_iter().try_for_each(|d| r.record(d.label(label)))
    }

    /// Products of the rows with `w`, by the fastest means that the number of rows, the weight and the device allow.
    pub(super) fn product(
        &self,
        r: &mut Recorder<'_>,
        label: &'static str,
        from: Input<'_>,
        w: &Weight,
        y: Matrix<'_>,
        accumulate: bool,
    ) -> Result<()> {
        let few = from.norm.is_some() || (from.bytes.is_some() && w.has_bytes());
        let room = self.scratch.half_room().filter(|_| !few);
        Self::record_all(r, label, matmul_fast(r.gpu(), room, from, w, y, accumulate)?)?;
        self.adapt(r, from, w, y)
    }

    /// Shows a tensor to the probe, if there is one.
    pub(super) fn look(&self, r: &mut Recorder<'_>, point: &str, layer: Option<usize>, x: Matrix<'_>) -> Result<()> {
        match self.lens {
            Some(lens) => lens.probe.tensor(r, point, layer.map(|l| l as u32), lens.position, x),
            None => Ok(()),
        }
    }

    /// Shows the `n` words at the probed sequence's slot of an array over slots to the probe, if there is one.
    pub(super) fn look_slot(
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

    /// Embedding and all blocks, for the first `n` rows of the scratch. What the last block left to the head.
    pub(crate) fn body(&self, r: &mut Recorder<'_>, n: u32, batch: Batch) -> Result<Left> {
        self.body_of(r, n, batch, Ids::Tokens(self.scratch.tokens.whole()))
    }

    /// The same for tokens that come as `ids`.
    fn body_of(&self, r: &mut Recorder<'_>, n: u32, batch: Batch, ids: Ids<'_>) -> Result<Left> {
        let x = Matrix::new(&self.scratch.x, n, self.spec.n_embd);
        // What the first layer takes, where nothing else is added to rows before.
        let plain = self.weights.positions.is_none() && self.lora.is_none();
        let first = self.spec.layers.first().zip(self.weights.layers.first()).filter(|_| plain);
        let next = first
            .and_then(|(spec, w)| self.next(x, After::of(w.attn_norm.as_ref().filter(|_| !spec.parallel), &w.qkv)));
        let embedding = &self.weights.embedding;
        Self::record_all(r, "embed", lookup(embedding, ids, x, self.spec.embedding_scale, next)?)?;
        self.adapt_embedding(r, x)?;
        if let Some(positions) = &self.weights.positions {
            Self::record_all(r, "embed.positions", gather_positions(positions, self.scratch.row_data.whole(), x)?)?;
        }
        self.look(r, "embed", None, x)?;
        let layers = &self.weights.layers;
        let mut left = if next.is_some() { Left::Rows(n) } else { Left::Nothing };
        for (i, (spec, weights)) in self.spec.layers.iter().zip(layers).enumerate() {
            r.set_layer(Some(i as u32));
            let after = match self.spec.layers.get(i + 1).zip(layers.get(i + 1)) {
                // Blocks side by side share rows that are normalised beforehand.
                Some((spec, w)) => After::of(w.attn_norm.as_ref().filter(|_| !spec.parallel), &w.qkv),
                None => After::of(Some(&self.weights.output_norm), self.weights.head()),
            };
            left = self.layer(r, i, spec, weights, x, batch, left, after)?;
        }
        r.set_layer(None);
        Ok(left)
    }

    /// One layer: `x += attention(x)`, `x += feed_forward(x)`. `left`: what the layer before has left to this one; returns what is left to what
    /// comes `after` it.
    #[allow(clippy::too_many_arguments, reason = "a layer's place, its weights and its neighbours")]
    fn layer(
        &self,
        r: &mut Recorder<'_>,
        i: usize,
        spec: &LayerSpec,
        weights: &LayerWeights,
        x: Matrix<'_>,
        batch: Batch,
        left: Left,
        after: After<'_>,
    ) -> Result<Left> {
        let (takes_norms, middle) = match &weights.feed_forward {
            FeedForwardWeights::Dense { up, .. } => (true, After::of(weights.ffn_norm.as_ref(), up)),
            FeedForwardWeights::Experts(experts) => {
                let (norm, wants_bytes) = (weights.ffn_norm.as_ref(), weights.feed_forward.first_has_bytes());
                let few = self.few_experts(&spec.feed_forward, experts, x.rows).is_some();
                let wants_numbers = wants_bytes && experts.take_numbers();
                let after = After { norm, wants_bytes, wants_numbers, wants_halves: false };
                (few && !experts.adds_shared(), after)
            }
        };
        // Experts one by one take normalised rows; blocks side by side have the same input.
        let plain = !takes_norms || spec.parallel;
        let next = (!plain).then_some(middle);
        let (input, left) = match &spec.mixer {
            Mixer::Attention(a) => self.attention(r, i, spec, a, weights, x, batch, left, next)?,
            Mixer::Recurrent(m) => self.recurrence(r, i, spec, m, weights, x, batch, left, next)?,
        };
        self.look(r, "attn.residual", Some(i), x)?;
        let input = match spec.parallel {
            true => input,
            false => self.norm(r, x, middle, if plain { Norms::Now } else { Norms::Later(left) })?,
        };
        self.look(r, "ffn.norm", Some(i), input.x)?;
        let left = self.feed_forward(r, i, spec, weights, input, x, batch, after)?;
        self.look(r, "ffn.residual", Some(i), x)?;
        Ok(left)
    }

    /// Where `rows` rows of inputs stand as bytes; `wanted` if a product takes them so.
    pub(super) fn bytes(&self, room: &'a ByteBuffers, rows: u32, cols: u32, wanted: bool) -> Option<ByteRows<'a>> {
        if self.exact || !wanted || rows >= TILE_FROM { None } else { room.rows(rows, cols) }
    }

    /// The activation of a first product's result `up` into `inner`, `act(gate) · up` where it is `gated`; as bytes too if they are `wanted`, or
    /// in f16 alone if one product of rows takes those.
    pub(super) fn activate(
        &self,
        r: &mut Recorder<'_>,
        label: &'static str,
        (which, gated): (Activation, bool),
        up: Matrix<'a>,
        inner: Matrix<'a>,
        (wanted, halves): (bool, bool),
    ) -> Result<Input<'a>> {
        let n = inner.cols;
        if let Some(room) = self.halves(inner.rows, halves).filter(|_| n.is_multiple_of(4)) {
            let half = room.product_rows(inner.rows, n);
            r.record(activate_half(r.gpu(), which, gated, up, half)?.label(label))?;
            return Ok(Input { x: inner, bytes: None, norm: None, half: Some(half) });
        }
        let bytes = if self.exact || !wanted { None } else { self.scratch.inner_bytes.rows(inner.rows, n) };
        let halves = || (up.columns(0, n), up.columns(n, n));
        let d = match (gated.then(halves), bytes) {
            (Some((gate, up)), Some(bytes)) => glu_bytes(which, gate, up, inner, bytes)?,
            (Some((gate, up)), None) => glu(which, gate, up, inner)?,
            (None, Some(bytes)) => activate_bytes(which, up, inner, bytes)?,
            (None, None) => activate(which, up, inner)?,
        };
        r.record(d.label(label))?;
        Ok(Input { x: inner, bytes, norm: None, half: None })
    }

    /// `x += post(from · Wᵀ)`: the last product of a block. With a normalisation its result takes the place of the block's input. What it left to
    /// what comes `after`, whose norm is left to do with [`Norms::Later`].
    #[allow(clippy::too_many_arguments, reason = "a product and what stands around it")]
    pub(super) fn add_block(
        &self,
        r: &mut Recorder<'_>,
        label: &'static str,
        from: Input<'_>,
        w: &Weight,
        post: Option<&NormWeights>,
        x: Matrix<'_>,
        batch: Batch,
        after: Option<After<'_>>,
    ) -> Result<Left> {
        if let Some(post) = post {
            let y = Matrix::new(&self.scratch.normed, x.rows, self.spec.n_embd);
            self.product(r, label, from, w, y, false)?;
            r.record(norm(self.norm_of(post), y, x, true)?)?;
            return Ok(Left::Nothing);
        }
        // Of the rows of a prompt the head may take others than the last block leaves parts for.
        if batch == Batch::Rows
            && x.rows <= FEW_TO
            && w.has_halves()
            && after.is_some_and(|a| self.norm_halves(x.rows, a).is_some())
            && let Some(splits) = self.leave_parts(r, label, from, w)?
        {
            return Ok(Left::Parts(splits));
        }
        if let Some(next) = after.and_then(|a| self.next(x, a)).filter(|_| matmul_next_fits(w)) {
            Self::record_all(r, label, matmul_next(r.gpu(), from, w, x, next)?)?;
            return Ok(Left::Rows(x.rows));
        }
        self.product(r, label, from, w, x, true)?;
        Ok(Left::Nothing)
    }

    /// The parts of a product of few rows, without their sum, and how many there are; `None` if it is not made in parts.
    fn leave_parts(
        &self,
        r: &mut Recorder<'_>,
        label: &'static str,
        from: Input<'_>,
        w: &Weight,
    ) -> Result<Option<u32>> {
        let Some((room, parts)) = self.scratch.half_room().and_then(|room| Some((room, room.parts?))) else {
            return Ok(None);
        };
        let Some((dispatches, splits)) = matmul_few_parts(r.gpu(), room, from, w, parts)? else { return Ok(None) };
        Self::record_all(r, label, dispatches)?;
        Ok(Some(splits))
    }

    /// Adds attention to `x`. Returns what it read, for blocks that share their input, and what it left to what comes `after`.
    #[allow(clippy::too_many_arguments, reason = "a block's place, its weights and its neighbours")]
    fn attention<'m>(
        &self,
        r: &mut Recorder<'_>,
        layer: usize,
        spec: &LayerSpec,
        a: &AttentionSpec,
        w: &'m LayerWeights,
        x: Matrix<'m>,
        batch: Batch,
        left: Left,
        after: Option<After<'_>>,
    ) -> Result<(Input<'m>, Left)>
    where
        'a: 'm,
    {
        let (s, n) = (self.scratch, x.rows);
        let wants_bytes = w.qkv.has_bytes() || (spec.parallel && w.feed_forward.first_has_bytes());
        let when = if spec.parallel { Norms::Now } else { Norms::Later(left) };
        let normed = self.norm(r, x, After { wants_bytes, ..After::of(w.attn_norm.as_ref(), &w.qkv) }, when)?;
        self.look(r, "attn.norm", Some(layer), normed.x)?;
        let inputs = Matrix::new(&s.qkv, n, a.in_width());
        self.product(r, "attn.qkv", normed, &w.qkv, inputs, false)?;
        self.end_chain(r, n, layer as u32)?;
        self.look(r, "attn.qkv", Some(layer), inputs)?;
        let qkv = inputs.columns(0, a.qkv_width());
        // Rows of different sequences are rotated and kept by attention itself; who looks at tensors is to find them.
        let alone = (matches!(batch, Batch::Rows | Batch::Drafts) || n == 1) && self.lens.is_none();
        let fresh = alone && attention_fresh_fits(r.gpu(), &a.shape(), self.kv.kv_type());
        let head_norm = w.qk_norm.as_ref().filter(|_| fresh && a.qk_norm == Some(QkNorm::Heads));
        if head_norm.is_none() {
            self.qk_norm(r, a, w, qkv)?;
        }
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
        let queries = if fresh {
            let norm = head_norm.map(|[q, k]| (q.whole(), k.whole(), self.spec.norm_eps));
            Queries::Fresh(Fresh { qkv, angles, n_rot, pairs, norm })
        } else {
            let rotation = RopeShape { n_head: a.n_head, n_kv: a.n_kv, head_dim: a.head_dim, n_rot, pairs };
            r.record(rope(rotation, qkv, pages, angles, q)?.label("attn.rope"))?;
            Queries::Ready(q)
        };
        self.look(r, "attn.q", Some(layer), Matrix::new(&s.q, n, a.q_width()))?;
        self.look_slot(r, "kv.table", Some(layer), pages.tables, pages.table_stride)?;
        let heads = Matrix::new(&s.attn, n, a.q_width());
        let bytes = self.bytes(&s.inner_bytes, n, heads.cols, w.attn_out.has_bytes());
        // Sums depend on the splits: drafted rows have those of a row alone.
        let (shape, drafts) = (a.shape(), batch == Batch::Drafts);
        let splits = attention_splits(r.gpu(), &shape, if drafts { 1 } else { n });
        if drafts && fresh && n > 1 {
            // They see each other, so all of their keys and values are kept before one of them looks: by the same operation with a window of one
            // position. What it makes beside that is made anew; keys and values are written once more, with the same bits.
            let own = AttentionShape { window: 1, ..shape };
            let keep = match splits {
                1 => attention_decode(r.gpu(), own, n, pages, queries, out)?,
                _ => {
                    let [rows, _] =
                        attention_split(r.gpu(), own, n, splits, pages, queries, s.attn_parts.whole(), out, None)?;
                    rows
                }
            };
            r.record(keep.label("attn.keep"))?;
        }
        // Whether the bytes are written with the rows.
        let mut written = bytes.is_none();
        let run = batch == Batch::Run && n > 1;
        let halves_fit = s.half_room().is_some() && n >= COOP_FROM;
        let mut scores = if run && halves_fit && attention_coop_fits(r.gpu().features(), a.head_dim, pages.kv_type) {
            vec![attention_coop(r.gpu(), shape, n, pages, q, out)?]
        } else if run && attention_prefill_fits(r.gpu(), a.head_dim) {
            vec![attention_prefill(r.gpu(), shape, n, pages, q, out)?]
        } else if splits > 1 && n <= LOGIT_ROWS {
            let with_rows = bytes.filter(|_| a.head_dim.is_multiple_of(32) && !a.gated);
            written |= with_rows.is_some();
            attention_split(r.gpu(), shape, n, splits, pages, queries, s.attn_parts.whole(), out, with_rows)?.into()
        } else {
            vec![attention_decode(r.gpu(), shape, n, pages, queries, out)?]
        };
        if let Some(sinks) = &w.sinks
            && let Some(last) = scores.pop()
        {
            scores.push(shape.with_sinks(last, sinks.whole())?);
        }
        match self.chains(batch, n).filter(|_| scores.len() > 1) {
            Some(words) => {
                r.hold();
                Self::record_all(r, "attn.scores", scores)?;
                record_attention_chain(r, "attn.scores", words, s.chain_parts_at)?;
            }
            None => Self::record_all(r, "attn.scores", scores)?,
        }
        if a.gated {
            r.record(sigmoid_gate(heads, inputs.columns(a.qkv_width(), a.q_width()))?.label("attn.gate"))?;
        }
        if let Some(bytes) = bytes.filter(|_| !written) {
            r.record(byte_rows(heads, bytes)?.label("attn.bytes"))?;
        }
        self.look(r, "attn.heads", Some(layer), heads)?;
        let heads = Input { x: heads, bytes, norm: None, half: None };
        let whole = match &w.feed_forward {
            FeedForwardWeights::Dense { .. } => true,
            FeedForwardWeights::Experts(experts) => {
                let few = self.few_experts(&spec.feed_forward, experts, n).is_some();
                few && after.is_some_and(|a| a.wants_numbers) && experts.shared.is_none()
            }
        };
        if whole {
            self.begin_chain(r, spec, batch, n);
        }
        let left = self.add_block(r, "attn.out", heads, &w.attn_out, w.attn_post_norm.as_ref(), x, batch, after)?;
        Ok((normed, left))
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

    /// Adds the feed-forward half to `x`. What it left to what comes `after`.
    #[allow(clippy::too_many_arguments, reason = "a block's place, its weights and its neighbours")]
    fn feed_forward(
        &self,
        r: &mut Recorder<'_>,
        layer: usize,
        spec: &LayerSpec,
        w: &LayerWeights,
        input: Input<'_>,
        x: Matrix<'_>,
        batch: Batch,
        after: After<'_>,
    ) -> Result<Left> {
        let (s, n_ff) = (self.scratch, spec.feed_forward.n_ff);
        let (w_up, w_down) = match &w.feed_forward {
            FeedForwardWeights::Dense { up, down } => (up, down),
            FeedForwardWeights::Experts(experts) => {
                return self.experts(r, layer, spec, experts, input, x, batch, after);
            }
        };
        let inner = Matrix::new(&s.ff, x.rows, n_ff);
        let (which, gated) = (spec.feed_forward.activation, spec.feed_forward.gated);
        let wanted = w_down.has_bytes() && x.rows < TILE_FROM;
        let inner = if gated && x.rows < TILE_FROM && matmul_glu_fits(which, w_up) && !self.adapts(w_up) {
            let bytes = self.bytes(&s.inner_bytes, x.rows, n_ff, wanted);
            r.record(matmul_glu(r.gpu(), which, input, w_up, inner, bytes)?.label("ffn.gate_up"))?;
            Input { x: inner, bytes, norm: None, half: None }
        } else {
            let up = Matrix::new(&s.gate_up, x.rows, w_up.rows());
            self.product(r, "ffn.gate_up", input, w_up, up, false)?;
            self.activate(r, "ffn.act", (which, gated), up, inner, (wanted, w_down.has_halves()))?
        };
        self.look(r, "ffn.inner", Some(layer), inner.x)?;
        self.add_block(r, "ffn.down", inner, w_down, w.ffn_post_norm.as_ref(), x, batch, Some(after))
    }

    /// Logits of rows `first .. first + n` into the first `n` rows of `scratch.logits`. `left`: what the last block has left for these rows.
    pub(crate) fn logits(&self, r: &mut Recorder<'_>, first: u32, n: u32, left: Left) -> Result<()> {
        self.head(r, first, n, left)?;
        self.end_chain(r, n, self.spec.layers.len() as u32)
    }

    /// The same, as a part of the last chain that a choice of tokens may still become part of.
    fn head(&self, r: &mut Recorder<'_>, first: u32, n: u32, left: Left) -> Result<()> {
        let e = self.spec.n_embd;
        let x = Matrix { data: self.scratch.x.whole(), rows: n, cols: e, stride: e, offset: first * e };
        let what = After::of(Some(&self.weights.output_norm), self.weights.head());
        let normed = self.norm(r, x, what, Norms::Later(left))?;
        self.look(r, "output.norm", None, normed.x)?;
        let logits = Matrix::new(&self.scratch.logits, n, self.spec.n_vocab);
        self.product(r, "head", normed, self.weights.head(), logits, false)?;
        if self.spec.logit_softcap > 0.0 {
            r.record(softcap(n * self.spec.n_vocab, self.spec.logit_softcap, self.scratch.logits.whole())?)?;
        }
        self.look(r, "logits", None, logits)
    }

    /// The final normalisation of the first rows, as many as `y` has, into `y`.
    pub(crate) fn final_norm(&self, r: &mut Recorder<'_>, y: Matrix<'_>) -> Result<()> {
        let x = Matrix::new(&self.scratch.x, y.rows, y.cols);
        r.record(norm(self.norm_of(&self.weights.output_norm), x, y, false)?.label("output.norm"))
    }

    /// One whole decode step of `n` sequences, whose slots stand in `scratch.batch_slots`; `batch` is [`Batch::Rows`], or [`Batch::Drafts`] for
    /// one sequence whose drafts are verified between its steps.
    pub(crate) fn decode_step(&self, r: &mut Recorder<'_>, n: u32, choice: Choice, batch: Batch) -> Result<()> {
        let s = self.scratch;
        let (states, history) = (self.slots.states.whole(), self.slots.history.whole());
        let (rows, tokens) = (s.row_data.whole(), s.tokens.whole());
        let cap = self.slots.history_cap();
        let slots = s.batch_slots.whole();
        let chain_words = self.cleared_words(batch, n);
        let step = StepBegin { slots, states, rows, tokens, history, history_cap: cap, chain_words };
        let left = match self.weights.embedding.parts() {
            [_] => self.body_of(r, n, batch, Ids::Begin(step))?,
            _ => {
                r.record(step_begin(n, step)?)?;
                self.body(r, n, batch)?
            }
        };
        self.head(r, 0, n, left)?;
        self.sample(r, n, rows, choice)?;
        self.end_chain(r, n, self.spec.layers.len() as u32)?;
        self.end_recurrent_step(r, n)
    }
}
