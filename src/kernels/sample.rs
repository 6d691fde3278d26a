//! Choosing the next token: penalties and bias, the row's maximum, the draw, and the stop check.
//!
//! They run in one submit and keep everything on the device; `src/sample` says what they compute and holds the reference.
//! Buffers are per sequence *slot*; `rows` says which slot each row of logits belongs to.

use crate::error::{Result, bail};
use crate::gpu::{BufferSlice, Dispatch, Forms, Grid, Kernel, linear_grid, params};
use crate::kernels::constants::THREADS_LONG;

pub(super) static SAMPLE_PENALIZE: Kernel = Kernel {
    name: "sample_penalize",
    source: include_str!("../../shaders/sample_penalize.wgsl"),
    flags: &[],
    constants: &["WG"],
    slots: &[],
    forms: Forms::ALL,
    params: PenalizeParams::FIELDS,
};

pub(super) static SAMPLE_ARGMAX: Kernel = Kernel {
    name: "sample_argmax",
    source: include_str!("../../shaders/sample_argmax.wgsl"),
    flags: &[],
    constants: &["WG"],
    slots: &[],
    forms: Forms::ALL,
    params: ArgmaxParams::FIELDS,
};

pub(super) static SAMPLE_PICK: Kernel = Kernel {
    name: "sample_pick",
    source: include_str!("../../shaders/sample_pick.wgsl"),
    flags: &[],
    constants: &[],
    slots: &[],
    forms: Forms::ALL,
    params: PickParams::FIELDS,
};

pub(super) static SAMPLE_GREEDY: Kernel = Kernel {
    name: "sample_greedy",
    source: include_str!("../../shaders/sample_greedy.wgsl"),
    flags: &[],
    constants: &["WG"],
    slots: &[],
    forms: Forms::ALL,
    params: GreedyParams::FIELDS,
};

pub(super) static CHECK_STOP: Kernel = Kernel {
    name: "check_stop",
    source: include_str!("../../shaders/check_stop.wgsl"),
    flags: &[],
    constants: &["WG"],
    slots: &[],
    forms: Forms::ALL,
    params: CheckStopParams::FIELDS,
};

pub(super) static STEP_BEGIN: Kernel = Kernel {
    name: "step_begin",
    source: include_str!("../../shaders/step_begin.wgsl"),
    flags: &["CHAINS"],
    constants: &["WG"],
    slots: &[],
    forms: Forms::ALL,
    params: StepBeginParams::FIELDS,
};

pub(super) static STEP_SWITCH: Kernel = Kernel {
    name: "step_switch",
    source: include_str!("../../shaders/step_switch.wgsl"),
    flags: &[],
    constants: &["WG"],
    slots: &[],
    forms: Forms::ALL,
    params: StepSwitchParams::FIELDS,
};

params!(PenalizeParams { rows: u32, vocab: u32, history_cap: u32 });
params!(ArgmaxParams { rows: u32, vocab: u32, chunks: u32, chunk: u32 });
params!(PickParams { rows: u32, vocab: u32, chunks: u32, chunk: u32 });
params!(GreedyParams { rows: u32, chunks: u32, out_offset: u32 });
params!(CheckStopParams { rows: u32, out_offset: u32 });
params!(StepBeginParams { rows: u32, history_cap: u32, words: u32 });
params!(StepSwitchParams { rows: u32, words: u32 });

/// Stop ids that a slot's entry holds.
pub const MAX_STOP_IDS: u32 = 64;
/// Logit-bias entries of a slot.
pub const BIAS_ENTRIES: u32 = crate::sample::MAX_LOGIT_BIAS as u32;
/// Bytes of one logit-bias entry: token, value.
pub const BIAS_BYTES: u64 = 8;
/// What the ring holds for a sequence that had stopped before.
pub const NO_TOKEN: u32 = u32::MAX;

/// Sequence state on the device; `SeqState` of `shaders/lib/state.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct SeqState {
    /// Next input token.
    pub token: u32,
    /// Tokens in the KV cache: the position of the next input.
    pub pos: u32,
    /// `pos` never passes it.
    pub limit: u32,
    /// 0 running, 1 end token drawn, 2 limit reached.
    pub stop: u32,
    /// Stop ids of this slot.
    pub n_stop: u32,
    /// Padding.
    pub pad: [u32; 3],
}

/// A row of a batch; `Row` of `shaders/lib/state.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Row {
    /// Sequence slot.
    pub slot: u32,
    /// Position in its sequence.
    pub pos: u32,
}

/// How a row is cut for the first maximum: vocabulary entries a workgroup reduces. Up to 256 chunks, each a multiple of 256, so that the
/// draw knows the best of many small chunks and need not look at most of the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunks {
    /// Entries in each chunk but the last.
    pub chunk: u32,
    /// Chunks of a row; the partial results take 8 bytes for each.
    pub chunks: u32,
}

impl Chunks {
    /// The cut for a vocabulary.
    pub fn of(vocab: u32) -> Self {
        Self::with(vocab, vocab.div_ceil(256).next_multiple_of(256))
    }

    /// A cut with a given chunk (tests force several).
    pub fn with(vocab: u32, chunk: u32) -> Self {
        Self { chunk, chunks: vocab.div_ceil(chunk) }
    }
}

/// The buffers that sampling reads, by slot.
#[derive(Debug, Clone, Copy)]
pub struct SamplingBuffers<'a> {
    /// [`Row`]s of the batch.
    pub rows: BufferSlice<'a>,
    /// [`crate::sample::SampleParams`] by slot.
    pub sampling: BufferSlice<'a>,
    /// Tokens by slot and position.
    pub history: BufferSlice<'a>,
    /// Positions a slot's history has.
    pub history_cap: u32,
    /// Logit-bias entries by slot.
    pub bias: BufferSlice<'a>,
}

fn check(rows: u32, vocab: u32, logits: BufferSlice<'_>) -> Result<()> {
    if logits.size < u64::from(rows) * u64::from(vocab) * 4 || vocab == 0 {
        bail!(InvalidArgument, "sampling: {rows} x {vocab} logits in {} bytes", logits.size);
    }
    Ok(())
}

/// Applies logit bias and penalties in place to `logits` (dense, f32 `[rows, vocab]`).
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree.
pub fn penalize<'a>(rows: u32, vocab: u32, logits: BufferSlice<'a>, b: SamplingBuffers<'a>) -> Result<Dispatch<'a>> {
    check(rows, vocab, logits)?;
    let params = PenalizeParams { rows, vocab, history_cap: b.history_cap };
    Ok(Dispatch::new(&SAMPLE_PENALIZE, &params, linear_grid(rows.into()))
        .constant("WG", THREADS_LONG)
        .bind("logits", logits)
        .bind("rows", b.rows)
        .bind("sampling", b.sampling)
        .bind("history", b.history)
        .bind("bias", b.bias))
}

/// Maximum and its id, for each chunk of each row, into `partial`.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree.
pub fn argmax<'a>(
    rows: u32,
    vocab: u32,
    cut: Chunks,
    logits: BufferSlice<'a>,
    partial: BufferSlice<'a>,
) -> Result<Dispatch<'a>> {
    check(rows, vocab, logits)?;
    let Chunks { chunk, chunks } = cut;
    if partial.size < u64::from(rows) * u64::from(chunks) * 8 {
        bail!(InvalidArgument, "argmax: {} bytes for {rows} x {chunks} partial results", partial.size);
    }
    let params = ArgmaxParams { rows, vocab, chunks, chunk };
    Ok(Dispatch::new(&SAMPLE_ARGMAX, &params, linear_grid(u64::from(rows) * u64::from(chunks)))
        .constant("WG", THREADS_LONG)
        .bind("logits", logits)
        .bind("partial", partial))
}

/// The token of each row into `picked`: the maximum, or a draw.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree.
pub fn pick<'a>(
    rows: u32,
    vocab: u32,
    cut: Chunks,
    logits: BufferSlice<'a>,
    b: SamplingBuffers<'a>,
    partial: BufferSlice<'a>,
    picked: BufferSlice<'a>,
) -> Result<Dispatch<'a>> {
    check(rows, vocab, logits)?;
    let params = PickParams { rows, vocab, chunks: cut.chunks, chunk: cut.chunk };
    Ok(Dispatch::new(&SAMPLE_PICK, &params, linear_grid(rows.into()))
        .bind("logits", logits)
        .bind("rows", b.rows)
        .bind("sampling", b.sampling)
        .bind("partial", partial)
        .bind("picked", picked))
}

/// What a step's tokens are handed to.
#[derive(Debug, Clone, Copy)]
pub struct StepEnd<'a> {
    /// [`Row`]s of the batch.
    pub rows: BufferSlice<'a>,
    /// [`SeqState`] by slot.
    pub states: BufferSlice<'a>,
    /// Stop ids by slot.
    pub stop_ids: BufferSlice<'a>,
    /// (token, stop) of each row, from `out_offset` on.
    pub ring: BufferSlice<'a>,
    /// Where this step begins in the ring, in entries.
    pub out_offset: u32,
}

impl<'a> StepEnd<'a> {
    fn bind(&self, rows: u32, d: Dispatch<'a>) -> Result<Dispatch<'a>> {
        let Self { ring, out_offset, .. } = *self;
        if ring.size < u64::from(out_offset + rows) * 8 {
            bail!(InvalidArgument, "end of a step: entry {out_offset} + {rows} of a ring of {} bytes", ring.size);
        }
        Ok(d.bind("rows", self.rows).bind("states", self.states).bind("stop_ids", self.stop_ids).bind("ring", ring))
    }
}

/// Hands picked tokens to their slots, stops sequences, and writes (token, stop) to the ring.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if the ring is too small.
pub fn check_stop<'a>(rows: u32, picked: BufferSlice<'a>, end: StepEnd<'a>) -> Result<Dispatch<'a>> {
    let params = CheckStopParams { rows, out_offset: end.out_offset };
    let d = Dispatch::new(&CHECK_STOP, &params, linear_grid(u64::from(rows).div_ceil(THREADS_LONG.into())))
        .constant("WG", THREADS_LONG)
        .bind("picked", picked);
    end.bind(rows, d)
}

/// [`pick`] and [`check_stop`] in one, for rows whose tokens are the largest logits, from what [`argmax`] left.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree.
pub fn greedy<'a>(
    rows: u32,
    cut: Chunks,
    partial: BufferSlice<'a>,
    picked: BufferSlice<'a>,
    end: StepEnd<'a>,
) -> Result<Dispatch<'a>> {
    let chunks = cut.chunks;
    if partial.size < u64::from(rows) * u64::from(chunks) * 8 || picked.size < u64::from(rows) * 4 {
        bail!(InvalidArgument, "greedy: {rows} x {chunks} partial results in {} bytes", partial.size);
    }
    let params = GreedyParams { rows, chunks, out_offset: end.out_offset };
    let d = Dispatch::new(&SAMPLE_GREEDY, &params, linear_grid(rows.into()))
        .constant("WG", THREADS_LONG)
        .bind("partial", partial)
        .bind("picked", picked);
    end.bind(rows, d)
}

/// What a decode step of some sequences begins with: rows and input tokens from the slots' states; the history gets the input tokens. With `chain_words`,
/// they are cleared for the step's chains, but for the first.
#[derive(Debug, Clone, Copy)]
pub struct StepBegin<'a> {
    /// The slot of each row.
    pub slots: BufferSlice<'a>,
    /// A [`SeqState`] for each slot.
    pub states: BufferSlice<'a>,
    /// A [`Row`] for each row is written here.
    pub rows: BufferSlice<'a>,
    /// And its token here.
    pub tokens: BufferSlice<'a>,
    /// `[slots, history_cap]`.
    pub history: BufferSlice<'a>,
    /// Tokens of a slot's history.
    pub history_cap: u32,
    /// Words of chains.
    pub chain_words: Option<BufferSlice<'a>>,
}

impl<'a> StepBegin<'a> {
    /// Whether it has `n` rows.
    pub(super) fn fits(&self, n: u32) -> bool {
        let n = u64::from(n);
        self.slots.size >= n * 4 && self.rows.size >= n * 8 && self.tokens.size >= n * 4
    }

    /// Words to be cleared, and the first.
    pub(super) fn words(&self) -> u32 {
        self.chain_words.map_or(0, |w| w.size / 4) as u32
    }

    /// Binds it, in the order of `lib/step_begin.wgsl`.
    pub(super) fn bind(self, d: Dispatch<'a>) -> Dispatch<'a> {
        let d = d
            .bind("slots", self.slots)
            .bind("states", self.states)
            .bind("rows", self.rows)
            .bind("tokens", self.tokens)
            .bind("history", self.history);
        match self.chain_words {
            Some(words) => d.flag("CHAINS", true).bind("chain_words", words),
            None => d,
        }
    }
}

/// Begins a decode step of `n` rows.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if a buffer is too small.
pub fn step_begin(n: u32, step: StepBegin<'_>) -> Result<Dispatch<'_>> {
    if !step.fits(n) {
        bail!(InvalidArgument, "step_begin: {n} rows");
    }
    let params = StepBeginParams { rows: n, history_cap: step.history_cap, words: step.words() };
    let threads = step.words().max(n);
    let d = Dispatch::new(&STEP_BEGIN, &params, linear_grid(u64::from(threads.div_ceil(THREADS_LONG))));
    Ok(step.bind(d.constant("WG", THREADS_LONG)))
}

/// What decides whether the steps that follow are done.
#[derive(Debug, Clone, Copy)]
pub struct StepSwitch<'a> {
    /// The slot of each row.
    pub slots: BufferSlice<'a>,
    /// A [`SeqState`] for each slot.
    pub states: BufferSlice<'a>,
    /// Workgroups of the steps' dispatches.
    pub grids: BufferSlice<'a>,
    /// They, or zeros, are written here.
    pub live: BufferSlice<'a>,
    /// (token, stop) of each row.
    pub ring: BufferSlice<'a>,
}

/// Leaves out the steps that follow if none of `n` rows' sequences still runs: their grids in `live` become zeros, and the ring says of each row that
/// it has stopped; else the grids become what they are in `grids`.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if a buffer is too small.
pub fn step_switch(n: u32, s: StepSwitch<'_>) -> Result<Dispatch<'_>> {
    let rows = u64::from(n);
    if s.slots.size < rows * 4 || s.ring.size < rows * 8 || s.grids.size < s.live.size {
        bail!(InvalidArgument, "step_switch: {n} rows, {} bytes of grids for {}", s.grids.size, s.live.size);
    }
    let params = StepSwitchParams { rows: n, words: (s.live.size / 4) as u32 };
    Ok(Dispatch::new(&STEP_SWITCH, &params, Grid::Direct([1, 1, 1]))
        .constant("WG", THREADS_LONG)
        .bind("slots", s.slots)
        .bind("states", s.states)
        .bind("grids", s.grids)
        .bind("live", s.live)
        .bind("ring", s.ring))
}
