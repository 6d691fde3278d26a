//! Layers that mix positions by a recurrence: a short convolution, and behind it, or not, a matrix state for each head.
//!
//! All of them are one sequence of operations: a product that makes everything the recurrence needs, the convolution, the scan with its gated
//! normalisation, and a product that adds to the stream. What a sequence keeps from one evaluation to the next stands in [`state`].

pub(super) mod state;
pub(super) mod weights;

use crate::error::{Result, bail};
use crate::gpu::Recorder;
use crate::kernels::{
    Input, Matrix, Memory, ScanInputs, ScanShape, Segments, ShortConv, byte_rows, gated_norm, qk_norm, short_conv,
    state_scan, state_step,
};
use crate::model::forward::{Batch, Forward};
use crate::model::norms::{After, Left, Norms};
use crate::model::spec::LayerSpec;
use crate::model::weights::LayerWeights;

/// Added to the sum of squares where q and k of the delta rule are brought to length 1 (the constant of the models' own implementations).
const LENGTH_EPS: f32 = 1e-6;

/// A recurrent layer.
///
/// Its first product makes, side by side: without a scan the two gates and the input of the convolution; with one the input of the convolution, the
/// gate of the result, the strengths of the delta rule, the step sizes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RecurrentSpec {
    /// Channels of the convolution.
    pub channels: u32,
    /// Positions that the convolution sees, the own one included.
    pub conv_kernel: u32,
    /// What follows the convolution; `None`: its gated result is the layer's.
    pub scan: Option<ScanSpec>,
}

/// The recurrence of a matrix state for each head, and the gated normalisation of what it gives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScanSpec {
    /// Which recurrence.
    pub rule: ScanRule,
    /// Heads, and what they share: see [`ScanShape`].
    pub shape: ScanShape,
    /// ε of the gated normalisation.
    pub norm_eps: f32,
}

/// Which recurrence moves a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScanRule {
    /// Gated delta rule (Yang et al. 2024). The convolution makes q, k, v; q and k get length 1, q scaled as in attention; each head is normalised by
    /// itself, then gated.
    GatedDelta,
    /// Mamba-2 (Dao and Gu 2024). The convolution makes x, B, C; the gated heads are normalised together.
    Mamba2,
}

impl ScanSpec {
    /// Width of the heads together: of v, of the gate, of the result.
    pub fn inner(&self) -> u32 {
        self.shape.n_head * self.shape.head_dim
    }
    /// Width of q, and of k.
    pub fn key_width(&self) -> u32 {
        self.shape.n_key * self.shape.key_dim
    }
}

impl RecurrentSpec {
    /// A layer whose convolution makes what a scan needs.
    pub fn scanned(conv_kernel: u32, scan: ScanSpec) -> Self {
        Self { channels: 2 * scan.key_width() + scan.inner(), conv_kernel, scan: Some(scan) }
    }

    /// Columns of the first product.
    pub fn in_width(&self) -> u32 {
        match &self.scan {
            None => 3 * self.channels,
            Some(s) if s.rule == ScanRule::GatedDelta => self.channels + s.inner() + 2 * s.shape.n_head,
            Some(s) => self.channels + s.inner() + s.shape.n_head,
        }
    }

    /// Columns of what the last product reads.
    pub fn out_width(&self) -> u32 {
        self.scan.map_or(self.channels, |s| s.inner())
    }

    /// Columns of a row between convolution and scan, as stored: read four at a time.
    pub(super) fn conv_stride(&self) -> u32 {
        self.scan.map_or(0, |_| self.channels.next_multiple_of(4))
    }

    /// Numbers of a sequence's states: of the convolution, and of the scan.
    pub fn state_sizes(&self) -> [u64; 2] {
        let heads = |s: &ScanSpec| [s.shape.n_head, s.shape.key_dim, s.shape.head_dim].map(u64::from).iter().product();
        [u64::from(self.conv_kernel - 1) * u64::from(self.channels), self.scan.as_ref().map_or(0, heads)]
    }

    /// Shape of its states, as a word.
    pub fn state_name(&self) -> String {
        let scan = self.scan.map_or(String::new(), |s| {
            format!("+{:?}{}x{}x{}", s.rule, s.shape.n_head, s.shape.key_dim, s.shape.head_dim)
        });
        format!("conv{}x{}{scan}", self.conv_kernel - 1, self.channels)
    }
}

impl<'a> Forward<'a> {
    /// Adds a recurrent layer to `x`. Returns what it read, for blocks that share their input, and what it left to what comes
    /// `after`.
    #[allow(clippy::too_many_arguments, reason = "a block's place, its weights and its neighbours")]
    pub(super) fn recurrence<'m>(
        &self,
        r: &mut Recorder<'_>,
        layer: usize,
        spec: &LayerSpec,
        m: &RecurrentSpec,
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
        let Some(own) = &w.recurrent else { bail!(Internal, "layer {layer}: a recurrence without its weights") };
        let wants_bytes = w.qkv.has_bytes() || (spec.parallel && w.feed_forward.first_has_bytes());
        let when = if spec.parallel { Norms::Now } else { Norms::Later(left) };
        let normed = self.norm(r, x, After { wants_bytes, ..After::of(w.attn_norm.as_ref(), &w.qkv) }, when)?;
        self.look(r, "attn.norm", Some(layer), normed.x)?;
        let inputs = Matrix::new(&s.qkv, n, m.in_width());
        self.product(r, "mix.in", normed, &w.qkv, inputs, false)?;
        self.look(r, "mix.in", Some(layer), inputs)?;
        let [conv_states, scan_states] = self.recurrent.layer(layer)?;
        let (sequences, steps) = match batch {
            Batch::Run => (1, n),
            Batch::Rows | Batch::Drafts => (n, 1),
            Batch::Mixed => bail!(Internal, "layer {layer}: a recurrence over runs of several sequences"),
        };
        let (rows, places) = (s.row_data.whole(), self.slots.places.whole());
        let memory = Memory { sequences, steps, rows, places, states: conv_states };
        let bias = own.conv_bias.as_ref().map(|b| b.whole());
        let conv = ShortConv { kernel: m.conv_kernel, w: own.conv.whole(), bias, silu: m.scan.is_some() };
        let c = m.channels;
        let heads = Matrix::new(&s.attn, n, m.out_width());
        match (&m.scan, &own.scan) {
            (None, _) => {
                let gates = Some([inputs.columns(0, c), inputs.columns(c, c)]);
                r.record(short_conv(conv, inputs.columns(2 * c, c), gates, memory, heads)?.label("mix.conv"))?;
            }
            (Some(scan), Some(own)) => {
                let mixed = Matrix { cols: c, ..Matrix::new(&s.q, n, m.conv_stride()) };
                r.record(short_conv(conv, inputs.columns(0, c), None, memory, mixed)?.label("mix.conv"))?;
                self.look(r, "mix.conv", Some(layer), mixed)?;
                let (shape, inner, key) = (scan.shape, scan.inner(), scan.key_width());
                let n_head = shape.n_head;
                let (q, k, v, beta, step) = match scan.rule {
                    ScanRule::GatedDelta => {
                        let segments = |w| Segments { count: shape.n_key, cols: shape.key_dim, w };
                        let (q, k) = (segments(own.lengths[0].whole()), segments(own.lengths[1].whole()));
                        // The kernel takes the mean of squares, not their sum.
                        let eps = LENGTH_EPS / shape.key_dim as f32;
                        let both = Matrix { cols: m.conv_stride(), ..mixed };
                        r.record(qk_norm(both, q, k, eps)?.label("mix.lengths"))?;
                        let beta = Some(inputs.columns(c + inner, n_head));
                        (0, key, 2 * key, beta, inputs.columns(c + inner + n_head, n_head))
                    }
                    ScanRule::Mamba2 => (inner + key, inner, 0, None, inputs.columns(c + inner, n_head)),
                };
                let (q, k, v) = (mixed.columns(q, key), mixed.columns(k, key), mixed.columns(v, inner));
                let driven = ScanInputs { q, k, v, step, beta, heads: own.heads.whole() };
                let memory = Memory { states: scan_states, ..memory };
                r.record(state_scan(shape, driven, memory, heads)?.label("mix.scan"))?;
                self.look(r, "mix.scan", Some(layer), heads)?;
                let w = own.norm.whole();
                let (segments, gate_first) = match scan.rule {
                    ScanRule::GatedDelta => (Segments { count: n_head, cols: shape.head_dim, w }, false),
                    ScanRule::Mamba2 => (Segments { count: shape.n_key, cols: inner / shape.n_key.max(1), w }, true),
                };
                let z = inputs.columns(c, inner);
                r.record(gated_norm(heads, z, segments, scan.norm_eps, gate_first)?.label("mix.norm"))?;
            }
            (Some(_), None) => bail!(Internal, "layer {layer}: a scan without its weights"),
        }
        let bytes = self.bytes(&s.inner_bytes, n, heads.cols, w.attn_out.has_bytes());
        if let Some(bytes) = bytes {
            r.record(byte_rows(heads, bytes)?.label("mix.bytes"))?;
        }
        self.look(r, "attn.heads", Some(layer), heads)?;
        let heads = Input { x: heads, bytes, norm: None, half: None };
        let left = self.add_block(r, "mix.out", heads, &w.attn_out, w.attn_post_norm.as_ref(), x, batch, after)?;
        Ok((normed, left))
    }

    /// Ends a decode step of `n` sequences for their states: see [`state_step`].
    pub(super) fn end_recurrent_step(&self, r: &mut Recorder<'_>, n: u32) -> Result<()> {
        if self.recurrent.is_empty() {
            return Ok(());
        }
        let rows = self.scratch.row_data.whole();
        r.record(state_step(n, rows, self.slots.states.whole(), self.slots.places.whole())?.label("mix.step"))
    }
}
