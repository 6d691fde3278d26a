//! Embedding lookup, and decoding of whole weights.

use crate::error::{Result, bail};
use crate::gpu::{BufferSlice, Dispatch, Forms, Kernel, Variant, linear_grid, params};
use crate::kernels::constants::{BINDING_ALIGN, THREADS};
use crate::kernels::sample::StepBegin;
use crate::kernels::weight::Weight;
use crate::kernels::{Matrix, Next, weight_fragment};
use crate::quant::Format;

pub(super) static GATHER: Kernel = Kernel {
    name: "gather",
    source: include_str!("../../shaders/gather.wgsl"),
    flags: &["POSITIONS", "BEGINS", "CHAINS", "OUT_BYTES", "OUT_NUMBERS"],
    constants: &["WG"],
    slots: &["weight"],
    forms: Forms { paths: &[], exists: gather_exists },
    params: GatherParams::FIELDS,
};

/// Positions are added to rows that are there already. The first lookup of a step begins it, and clears what chains need if there are some; only then what comes next
/// is left ready.
fn gather_exists(v: &Variant) -> bool {
    let [positions, begins, next] = [v.has("POSITIONS"), v.has("BEGINS"), v.has("OUT_BYTES") || v.has("OUT_NUMBERS")];
    !(positions && (begins || next)) && (begins || !v.has("CHAINS"))
}

pub(super) static DEQUANT: Kernel = Kernel {
    name: "dequant",
    source: include_str!("../../shaders/dequant.wgsl"),
    flags: &[],
    constants: &["WG"],
    slots: &["weight"],
    forms: Forms::ALL,
    params: DequantParams::FIELDS,
};

params!(GatherParams {
    n_tokens: u32,
    cols: u32,
    k_blocks: u32,
    row_start: u32,
    part_rows: u32,
    y_stride: u32,
    scale: f32,
    groups: u32,
    history_cap: u32,
    words: u32,
});
params!(DequantParams { rows: u32, cols: u32, k_blocks: u32, y_offset: u32 });

/// Where a lookup has its ids from.
#[derive(Debug, Clone, Copy)]
pub enum Ids<'a> {
    /// Token ids, one a row.
    Tokens(BufferSlice<'a>),
    /// The [`crate::kernels::sample::Row`]s of a batch: their positions, and what is looked up is added to `y`.
    Positions(BufferSlice<'a>),
    /// The states of a decode step's sequences, which begins with this ([`crate::kernels::sample::step_begin`]). For tables of one part.
    Begin(StepBegin<'a>),
}

/// `y[t, :] = scale · W[tokens[t], :]`, one dispatch for each part of the table. Ids are not checked here: an id beyond the
/// table leaves its row as it was.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree.
pub fn gather<'a>(table: &'a Weight, tokens: BufferSlice<'a>, y: Matrix<'a>, scale: f32) -> Result<Vec<Dispatch<'a>>> {
    lookup(table, Ids::Tokens(tokens), y, scale, None)
}

/// `y[t, :] += W[position of row t, :]`, where `rows` has the [`crate::kernels::sample::Row`]s of the batch; else as [`gather`].
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree.
pub fn gather_positions<'a>(table: &'a Weight, rows: BufferSlice<'a>, y: Matrix<'a>) -> Result<Vec<Dispatch<'a>>> {
    lookup(table, Ids::Positions(rows), y, 1.0, None)
}

/// [`gather`] from any ids, which also leaves what `next` says of `y`.
///
/// # Errors
/// As [`gather`], and if there is no room for `next`, or a step is to begin with a table of several parts.
pub fn lookup<'a>(
    table: &'a Weight,
    ids: Ids<'a>,
    y: Matrix<'a>,
    scale: f32,
    next: Option<Next<'a>>,
) -> Result<Vec<Dispatch<'a>>> {
    y.check("gather: y")?;
    let n = y.rows;
    let there = match ids {
        Ids::Tokens(ids) => ids.size >= u64::from(n) * 4,
        Ids::Positions(rows) => rows.size >= u64::from(n) * 8 && next.is_none(),
        Ids::Begin(step) => step.fits(n) && table.parts().len() == 1,
    };
    let next_fits = next.is_none_or(|next| next.fits(n, y.cols));
    if y.cols != table.k() || !there || !next_fits || y.offset != 0 {
        bail!(InvalidArgument, "gather from {}: {n} x {} by {ids:?}, {next:?}", table.name(), y.cols);
    }
    let k_blocks = Format::gpu_blocks(table.k() as usize) as u32;
    let groups = n.div_ceil(4) * k_blocks;
    let mut dispatches = Vec::with_capacity(table.parts().len());
    for part in table.parts() {
        let begin = match ids {
            Ids::Begin(step) => Some(step),
            _ => None,
        };
        let params = GatherParams {
            n_tokens: n,
            cols: y.cols,
            k_blocks,
            row_start: part.row_start,
            part_rows: part.rows,
            y_stride: y.stride,
            scale,
            groups,
            history_cap: begin.map_or(0, |s| s.history_cap),
            words: begin.map_or(0, |s| s.words()),
        };
        let mut d = Dispatch::new(&GATHER, &params, linear_grid(groups.into()))
            .constant("WG", THREADS)
            .slot("weight", weight_fragment(part.format)?);
        d = match ids {
            Ids::Tokens(ids) => d.bind("tokens", ids),
            Ids::Positions(rows) => d.flag("POSITIONS", true).bind("rows", rows),
            Ids::Begin(step) => step.bind(d.flag("BEGINS", true)),
        };
        d = part.bind(d.bind("y", y.data));
        if let Some(next) = next {
            d = next.bind(d.flag("OUT_BYTES", next.bytes.is_some()).flag("OUT_NUMBERS", next.numbers.is_some()));
        }
        dispatches.push(d);
    }
    Ok(dispatches)
}

/// `y = W` in f32, one dispatch for each part.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree.
pub fn dequant<'a>(w: &'a Weight, y: BufferSlice<'a>) -> Result<Vec<Dispatch<'a>>> {
    if y.size < u64::from(w.rows()) * u64::from(w.k()) * 4 {
        bail!(InvalidArgument, "dequant of {}: {} bytes are too few", w.name(), y.size);
    }
    let k_blocks = Format::gpu_blocks(w.k() as usize) as u32;
    let mut dispatches = Vec::with_capacity(w.parts().len());
    for part in w.parts() {
        let row_bytes = u64::from(w.k()) * 4;
        // Bound from an aligned byte on, so that a result beyond the largest binding can still be written part by part.
        let start = y.offset + u64::from(part.row_start) * row_bytes;
        let aligned = start & !(BINDING_ALIGN - 1);
        let out = y.buffer.slice(aligned, start - aligned + u64::from(part.rows) * row_bytes);
        let y_offset = ((start - aligned) / 4) as u32;
        let groups = (u64::from(part.rows) * u64::from(k_blocks)).div_ceil(u64::from(THREADS));
        let d = Dispatch::new(
            &DEQUANT,
            &DequantParams { rows: part.rows, cols: w.k(), k_blocks, y_offset },
            linear_grid(groups),
        )
        .constant("WG", THREADS)
        .slot("weight", weight_fragment(part.format)?)
        .bind("y", out);
        dispatches.push(part.bind(d));
    }
    Ok(dispatches)
}
