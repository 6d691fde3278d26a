//! Embedding lookup, and decoding of whole weights.

use crate::error::{Result, bail};
use crate::gpu::{BufferSlice, Dispatch, Forms, Kernel, linear_grid, params};
use crate::kernels::constants::{BINDING_ALIGN, THREADS};
use crate::kernels::weight::Weight;
use crate::kernels::{Matrix, weight_fragment};
use crate::quant::Format;

pub(super) static GATHER: Kernel = Kernel {
    name: "gather",
    source: include_str!("../../shaders/gather.wgsl"),
    flags: &["POSITIONS"],
    constants: &["WG"],
    slots: &["weight"],
    forms: Forms::ALL,
    params: GatherParams::FIELDS,
};

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
    scale: f32
});
params!(DequantParams { rows: u32, cols: u32, k_blocks: u32, y_offset: u32 });

/// `y[t, :] = scale · W[tokens[t], :]`, one dispatch for each part of the table. Ids are not checked here: an id beyond the
/// table leaves its row as it was.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree.
pub fn gather<'a>(table: &'a Weight, tokens: BufferSlice<'a>, y: Matrix<'a>, scale: f32) -> Result<Vec<Dispatch<'a>>> {
    lookup(table, false, tokens, y, scale)
}

/// `y[t, :] += W[position of row t, :]`, where `rows` has the [`crate::kernels::sample::Row`]s of the batch; else as [`gather`].
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree.
pub fn gather_positions<'a>(table: &'a Weight, rows: BufferSlice<'a>, y: Matrix<'a>) -> Result<Vec<Dispatch<'a>>> {
    lookup(table, true, rows, y, 1.0)
}

fn lookup<'a>(
    table: &'a Weight,
    positions: bool,
    ids: BufferSlice<'a>,
    y: Matrix<'a>,
    scale: f32,
) -> Result<Vec<Dispatch<'a>>> {
    y.check("gather: y")?;
    let id_bytes = if positions { 8 } else { 4 };
    if y.cols != table.k() || ids.size < u64::from(y.rows) * id_bytes || y.offset != 0 {
        bail!(
            InvalidArgument,
            "gather from {}: {} x {} from {} ids",
            table.name(),
            y.rows,
            y.cols,
            ids.size / id_bytes
        );
    }
    let k_blocks = Format::gpu_blocks(table.k() as usize) as u32;
    let groups = (u64::from(y.rows) * u64::from(k_blocks)).div_ceil(u64::from(THREADS));
    let mut dispatches = Vec::with_capacity(table.parts().len());
    for part in table.parts() {
        let params = GatherParams {
            n_tokens: y.rows,
            cols: y.cols,
            k_blocks,
            row_start: part.row_start,
            part_rows: part.rows,
            y_stride: y.stride,
            scale,
        };
        let d = Dispatch::new(&GATHER, &params, linear_grid(groups))
            .constant("WG", THREADS)
            .flag("POSITIONS", positions)
            .slot("weight", weight_fragment(part.format)?)
            .bind(if positions { "rows" } else { "tokens" }, ids)
            .bind("y", y.data);
        dispatches.push(part.bind(d));
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
