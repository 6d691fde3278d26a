//! Cooperative products of many rows: weights are decoded to f16 once, some thousand rows at a time, and multiplied from there.
//!
//! Where weights are decoded on their way to the matrices, each tile of rows of activations decodes them again. The arithmetic is the same.

use crate::error::{Result, bail};
use crate::gpu::{BufferSlice, Dispatch, Forms, Gpu, Kernel, linear_grid, params};
use crate::kernels::constants::{COOP_TILE, THREADS};
use crate::kernels::matmul_coop::{CoopTile, HalfRows, Operand, check_product, not_f32, one_part};
use crate::kernels::weight::{Weight, WeightPart};
use crate::kernels::{Matrix, weight_fragment};
use crate::quant::{Format, GPU_BLOCK, by_name};

pub(super) static HALF_WEIGHTS: Kernel = Kernel {
    name: "half_weights",
    source: include_str!("../../shaders/half_weights.wgsl"),
    flags: &[],
    constants: &[],
    slots: &["weight"],
    forms: Forms { paths: &[], exists: not_f32 },
    params: HalfWeightsParams::FIELDS,
};

params!(HalfWeightsParams { row_start: u32, rows: u32, k_blocks: u32 });

/// Bytes of a row of width `k` in f16.
fn row_bytes(k: u32) -> u64 {
    (Format::gpu_blocks(k as usize) * GPU_BLOCK * 2) as u64
}

/// Bytes of room with which [`matmul_decoded`] takes a weight of `rows` rows of width `k` at once, or in pieces of about `most` bytes.
pub fn decoded_bytes(rows: u32, k: u32, most: u64) -> u64 {
    (u64::from(rows) * row_bytes(k)).min(most.max(u64::from(COOP_TILE.1) * row_bytes(k)))
}

/// As [`crate::kernels::matmul_coop`], by way of `room`, which is overwritten; it has room for one tile of weight rows at least.
///
/// # Errors
/// As [`crate::kernels::matmul_coop`], and [`crate::Error::InvalidArgument`] if the room is too small.
pub fn matmul_decoded<'a>(
    gpu: &Gpu,
    x: HalfRows<'a>,
    w: &'a Weight,
    y: Matrix<'a>,
    accumulate: bool,
    room: BufferSlice<'a>,
) -> Result<Vec<Dispatch<'a>>> {
    check_product(gpu, x, w, y, false)?;
    let fit = (room.size / row_bytes(w.k())).min(u32::MAX.into()) as u32;
    let mut all = Vec::new();
    for part in w.parts() {
        if part.format.name == "F16" {
            all.push(one_part(x, Operand::of(part), y, accumulate, CoopTile::Auto)?);
            continue;
        }
        // Pieces of about the same size, in whole tiles.
        let pieces = part.rows.div_ceil((fit / COOP_TILE.1 * COOP_TILE.1).max(1));
        let rows = part.rows.div_ceil(pieces).next_multiple_of(COOP_TILE.1);
        if rows.min(part.rows) > fit {
            bail!(InvalidArgument, "matmul_decoded by {}: room of {} bytes", w.name(), room.size);
        }
        for start in (0..part.rows).step_by(rows as usize) {
            let n = rows.min(part.rows - start);
            all.push(half_weights(part, start, n, w.k(), room)?);
            let bias = part.bias.as_ref().map(|b| b.slice(u64::from(start) * 4, u64::from(n) * 4));
            let piece = Operand { rows: n, row_start: part.row_start + start, bias, planes: Err(room) };
            all.push(one_part(x, piece, y, accumulate, CoopTile::Auto)?);
        }
    }
    Ok(all)
}

/// Rows `start .. start + n` of a part, whose width is `k`, in f16: whole blocks, with the zeros that fill the last one.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if the part has not so many rows, or the room is too small.
pub fn half_weights<'a>(
    part: &'a WeightPart,
    start: u32,
    n: u32,
    k: u32,
    room: BufferSlice<'a>,
) -> Result<Dispatch<'a>> {
    if start.checked_add(n).is_none_or(|end| end > part.rows) || room.size < u64::from(n) * row_bytes(k) {
        bail!(InvalidArgument, "half_weights: {n} of {} rows from {start} on, {} bytes of room", part.rows, room.size);
    }
    let k_blocks = Format::gpu_blocks(k as usize) as u32;
    let params = HalfWeightsParams { row_start: start, rows: n, k_blocks };
    let groups = (u64::from(n) * u64::from(k_blocks)).div_ceil(THREADS.into());
    let d = Dispatch::new(&HALF_WEIGHTS, &params, linear_grid(groups))
        .slot("weight", weight_fragment(part.format)?)
        .bind("h", room);
    Ok(part.bind(d))
}

/// Weights in f16 as a fragment reads them.
pub(super) fn f16() -> Result<&'static Format> {
    by_name("F16").ok_or_else(|| crate::Error::Internal("no format F16".into()))
}
