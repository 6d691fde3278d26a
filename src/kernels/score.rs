//! Log-probabilities of given tokens: `ln p = logit − ln Σ e^logit`, in two dispatches, so that a row of logits is never read back.

use crate::error::{Result, bail};
use crate::gpu::{BufferSlice, Dispatch, Forms, Kernel, linear_grid, params};
use crate::kernels::Matrix;
use crate::kernels::constants::{THREADS, THREADS_LONG};
use crate::kernels::sample::Chunks;

pub(super) static LOG_SUM: Kernel = Kernel {
    name: "log_sum",
    source: include_str!("../../shaders/log_sum.wgsl"),
    flags: &[],
    constants: &["WG"],
    slots: &[],
    forms: Forms::ALL,
    params: LogSumParams::FIELDS,
};

pub(super) static TOKEN_SCORE: Kernel = Kernel {
    name: "token_score",
    source: include_str!("../../shaders/token_score.wgsl"),
    flags: &[],
    constants: &["WG"],
    slots: &[],
    forms: Forms::ALL,
    params: TokenScoreParams::FIELDS,
};

params!(LogSumParams { rows: u32, vocab: u32, chunks: u32, chunk: u32 });
params!(TokenScoreParams { entries: u32, first: u32, row_step: u32, vocab: u32, chunks: u32 });

/// Which tokens of which rows are scored.
#[derive(Debug, Clone, Copy)]
pub struct Scored<'a> {
    /// Token ids; those from `first` on are taken. An id beyond the vocabulary counts as its last one: the caller checks.
    pub targets: BufferSlice<'a>,
    /// Where the results go, from `first` on: f32.
    pub scores: BufferSlice<'a>,
    /// First entry of both.
    pub first: u32,
    /// Entries.
    pub entries: u32,
    /// Entry `e` belongs to row `e` of the logits; else all to row 0.
    pub each_its_row: bool,
}

/// Fails unless the logits are dense, and `partial` has room for what is left of them.
fn check(logits: Matrix<'_>, cut: Chunks, partial: BufferSlice<'_>) -> Result<()> {
    logits.check("scores: logits")?;
    let Chunks { chunk, chunks } = cut;
    let covers = u64::from(chunk) * u64::from(chunks) >= u64::from(logits.cols);
    let dense = logits.stride == logits.cols && logits.offset == 0;
    if !dense || !covers || partial.size < u64::from(logits.rows) * u64::from(chunks) * 8 {
        bail!(InvalidArgument, "scores: {logits:?} in {cut:?}, {} bytes of partial results", partial.size);
    }
    Ok(())
}

/// Largest logit and sum of `e^(logit − largest)`, for each chunk of each row, into `partial` (8 bytes each). NaN counts as −∞.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree.
pub fn log_sum<'a>(logits: Matrix<'a>, cut: Chunks, partial: BufferSlice<'a>) -> Result<Dispatch<'a>> {
    check(logits, cut, partial)?;
    let (rows, Chunks { chunk, chunks }) = (logits.rows, cut);
    let params = LogSumParams { rows, vocab: logits.cols, chunks, chunk };
    Ok(Dispatch::new(&LOG_SUM, &params, linear_grid(u64::from(rows) * u64::from(chunks)))
        .constant("WG", THREADS_LONG)
        .bind("logits", logits.data)
        .bind("partial", partial))
}

/// `ln p` of each entry's token under its row, from what [`log_sum`] left. [`f32::MIN`] stands for −∞: WGSL has no infinities.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree.
pub fn token_score<'a>(
    logits: Matrix<'a>,
    cut: Chunks,
    partial: BufferSlice<'a>,
    scored: Scored<'a>,
) -> Result<Dispatch<'a>> {
    check(logits, cut, partial)?;
    let Scored { targets, scores, first, entries, each_its_row } = scored;
    let end = (u64::from(first) + u64::from(entries)) * 4;
    let rows = if each_its_row { entries } else { entries.min(1) };
    if targets.size.min(scores.size) < end || rows > logits.rows {
        bail!(
            InvalidArgument,
            "scores: entries {first} + {entries} of {} and {} bytes, {} rows of logits",
            targets.size,
            scores.size,
            logits.rows
        );
    }
    let params =
        TokenScoreParams { entries, first, row_step: each_its_row.into(), vocab: logits.cols, chunks: cut.chunks };
    Ok(Dispatch::new(&TOKEN_SCORE, &params, linear_grid(entries.into()))
        .constant("WG", THREADS)
        .bind("logits", logits.data)
        .bind("partial", partial)
        .bind("targets", targets)
        .bind("scores", scores))
}
