//! Products of few rows by cooperative matrices: the rows of a batch of sequences, or a short prompt's. Weights are read once, at the speed at
//! which they come in, for up to 32 rows.
//!
//! The arithmetic is that of [`matmul_coop`]. A workgroup makes few rows of weights; where even so there are too few workgroups for a
//! large device, k is split among several, which leave parts that are added up afterwards, always in the same order.
//!
//! [`matmul_coop`]: crate::kernels::matmul_coop

use crate::error::{Result, bail};
use crate::gpu::{BufferSlice, Dispatch, Forms, Gpu, Kernel, linear_grid, params};
use crate::kernels::constants::{FEW_GROUPS, FEW_ROUND, FEW_TILE, FEW_TO, THREADS};
use crate::kernels::matmul_coop::{HalfRoom, HalfRows, check_product, not_f32};
use crate::kernels::weight::{Weight, WeightPart};
use crate::kernels::{Input, Matrix, Parts, weight_fragment};
use crate::quant::Format;

pub(super) static MATMUL_FEW: Kernel = Kernel {
    name: "matmul_few",
    source: include_str!("../../shaders/matmul_few.wgsl"),
    flags: &["BIAS", "ACCUMULATE", "ROWS_16"],
    constants: &[],
    slots: &["weight"],
    forms: Forms { paths: &[], exists: not_f32 },
    params: FewParams::FIELDS,
};

pub(super) static SUM_PARTS: Kernel = Kernel {
    name: "sum_parts",
    source: include_str!("../../shaders/sum_parts.wgsl"),
    flags: &["ACCUMULATE"],
    constants: &["WG"],
    slots: &[],
    forms: Forms::ALL,
    params: SumParams::FIELDS,
};

params!(FewParams {
    groups: u32,
    row_groups: u32,
    n: u32,
    t_rows: u32,
    x_tiles: u32,
    k_blocks: u32,
    y_stride: u32,
    y_offset: u32,
    splits: u32,
    split_blocks: u32,
    split_stride: u32,
});
params!(SumParams { rows: u32, cols: u32, splits: u32, y_stride: u32, y_offset: u32 });

/// Parts of k that [`matmul_few`] makes by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FewSplits {
    /// As many as fill a large device.
    Auto,
    /// So many, or as many as there are rounds of [`FEW_ROUND`] blocks (tests force each way).
    Most(u32),
}

/// How the k of a product is split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Splits {
    count: u32,
    /// Blocks of 32 in each, but for the last.
    blocks: u32,
}

impl Splits {
    /// By the weight alone, so that results do not depend on how many rows are made together.
    fn of(gpu: &Gpu, splits: FewSplits, n: u32, k: u32) -> Self {
        let k_blocks = Format::gpu_blocks(k as usize) as u32;
        let steps = k_blocks.div_ceil(FEW_ROUND).max(1);
        let most = match splits {
            FewSplits::Auto => gpu.filling(FEW_GROUPS) / n.div_ceil(FEW_TILE.1).max(1),
            FewSplits::Most(n) => n,
        };
        let wanted = most.clamp(1, steps);
        let blocks = steps.div_ceil(wanted) * FEW_ROUND;
        Self { count: k_blocks.div_ceil(blocks).max(1), blocks }
    }
}

/// Rows of activations in a tile.
pub(super) fn few_rows(rows: u32) -> u32 {
    if rows <= FEW_TILE.0 / 2 { FEW_TILE.0 / 2 } else { FEW_TILE.0 }
}

/// Bytes of room with which [`matmul_few`] makes any product of `rows` rows, split as it sees fit.
pub fn few_parts_bytes(rows: u32) -> u64 {
    // Workgroups in all, if k is split.
    u64::from(rows.min(FEW_TO)) * u64::from(FEW_GROUPS) * u64::from(FEW_TILE.1) * 4
}

/// As [`crate::kernels::matmul_coop`], for few rows; `parts` is overwritten ([`few_parts_bytes`]).
///
/// # Errors
/// As [`crate::kernels::matmul_coop`], and [`crate::Error::InvalidArgument`] if the room for parts is too small.
pub fn matmul_few<'a>(
    gpu: &Gpu,
    splits: FewSplits,
    x: HalfRows<'a>,
    w: &'a Weight,
    y: Matrix<'a>,
    accumulate: bool,
    parts: BufferSlice<'a>,
) -> Result<Vec<Dispatch<'a>>> {
    check_product(gpu, x, w, y, true)?;
    let splits = Splits::of(gpu, splits, w.rows(), w.k());
    if splits.count == 1 {
        return products(x, w, y, accumulate, splits);
    }
    let mut all = products(x, w, split_rows(x, w, splits, parts)?, false, splits)?;
    all.push(sum_parts(Parts { data: parts, splits: splits.count }, y, accumulate)?);
    Ok(all)
}

/// The parts of [`matmul_few`] without their sum, and how many there are; `None` if k is not split.
///
/// # Errors
/// As [`matmul_few`].
pub fn matmul_few_parts<'a>(
    gpu: &Gpu,
    room: HalfRoom<'a>,
    x: Input<'a>,
    w: &'a Weight,
    parts: BufferSlice<'a>,
) -> Result<Option<(Vec<Dispatch<'a>>, u32)>> {
    let splits = Splits::of(gpu, FewSplits::Auto, w.rows(), w.k());
    if splits.count == 1 {
        return Ok(None);
    }
    let (half, mut all) = x.in_halves(gpu, room)?;
    let y = split_rows(half, w, splits, parts)?;
    check_product(gpu, half, w, y, true)?;
    all.extend(products(half, w, y, false, splits)?);
    Ok(Some((all, splits.count)))
}

/// Where the first of the parts stands.
fn split_rows<'a>(x: HalfRows<'a>, w: &Weight, splits: Splits, parts: BufferSlice<'a>) -> Result<Matrix<'a>> {
    let n = w.rows();
    if parts.size < u64::from(splits.count) * u64::from(x.rows) * u64::from(n) * 4 {
        bail!(InvalidArgument, "matmul_few by {}: room of {} bytes for {splits:?}", w.name(), parts.size);
    }
    Ok(Matrix { data: parts, rows: x.rows, cols: n, stride: n, offset: 0 })
}

fn products<'a>(
    x: HalfRows<'a>,
    w: &'a Weight,
    y: Matrix<'a>,
    accumulate: bool,
    splits: Splits,
) -> Result<Vec<Dispatch<'a>>> {
    let tile_t = few_rows(x.rows);
    let product = |part: &'a WeightPart| {
        let row_groups = part.rows.div_ceil(FEW_TILE.1);
        let groups = row_groups * x.rows.div_ceil(tile_t) * splits.count;
        let params = FewParams {
            groups,
            row_groups,
            n: part.rows,
            t_rows: x.rows,
            x_tiles: x.tiles(),
            k_blocks: Format::gpu_blocks(x.cols as usize) as u32,
            y_stride: y.stride,
            y_offset: y.offset + part.row_start,
            splits: splits.count,
            split_blocks: splits.blocks,
            split_stride: x.rows * y.stride,
        };
        let mut d = Dispatch::new(&MATMUL_FEW, &params, linear_grid(groups.into()))
            .flag("BIAS", part.bias.is_some())
            .flag("ACCUMULATE", accumulate)
            .flag("ROWS_16", tile_t < FEW_TILE.0)
            .slot("weight", weight_fragment(part.format)?)
            .bind("x", x.data)
            .bind("scales", x.scales)
            .bind("y", y.data);
        if let Some(bias) = &part.bias {
            d = d.bind("bias", bias);
        }
        Ok(part.bind(d))
    };
    w.parts().iter().map(product).collect()
}

/// `y = Σ_s parts[s]` for `[splits, rows, cols]` of parts, added to `y` if `accumulate`.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree.
pub fn sum_parts<'a>(parts: Parts<'a>, y: Matrix<'a>, accumulate: bool) -> Result<Dispatch<'a>> {
    y.check("sum_parts: y")?;
    let elements = u64::from(y.rows) * u64::from(y.cols);
    if parts.data.size < u64::from(parts.splits) * elements * 4 {
        bail!(InvalidArgument, "sum_parts: {parts:?} of {} x {}", y.rows, y.cols);
    }
    let params = SumParams { rows: y.rows, cols: y.cols, splits: parts.splits, y_stride: y.stride, y_offset: y.offset };
    Ok(Dispatch::new(&SUM_PARTS, &params, linear_grid(elements.div_ceil(THREADS.into())))
        .constant("WG", THREADS)
        .flag("ACCUMULATE", accumulate)
        .bind("parts", parts.data)
        .bind("y", y.data))
}
