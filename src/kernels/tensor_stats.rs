//! Statistics of a float tensor by GPU reduction: what is not finite, extrema, sums. For probes and finiteness checks.

use crate::error::{Result, bail};
use crate::gpu::{BufferSlice, Dispatch, Forms, Kernel, linear_grid, params};
use crate::kernels::Matrix;
use crate::kernels::constants::THREADS_LONG;

pub(super) static TENSOR_STATS: Kernel = Kernel {
    name: "tensor_stats",
    source: include_str!("../../shaders/tensor_stats.wgsl"),
    flags: &["COMBINE"],
    constants: &["WG"],
    slots: &[],
    forms: Forms::ALL,
    params: StatsParams::FIELDS,
};

params!(StatsParams {
    rows: u32,
    cols: u32,
    stride: u32,
    offset: u32,
    chunk: u32,
    parts: u32,
    target_index: u32,
    limit: f32,
});

/// `first_bad` where every element is finite and within the limit.
pub const NO_BAD_ELEMENT: u32 = u32::MAX;

/// What [`tensor_stats`] writes; `Stats` of its shader. Elements are numbered in order of row and column; those that are not finite are in
/// no extremum and no sum.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct TensorStats {
    /// Elements.
    pub count: u32,
    /// NaN among them.
    pub nan: u32,
    /// Infinities among them.
    pub inf: u32,
    /// Finite ones whose magnitude is beyond the limit.
    pub over: u32,
    /// The first element that is not finite or beyond the limit, or [`NO_BAD_ELEMENT`].
    pub first_bad: u32,
    /// Smallest; the largest float if there is none.
    pub min: f32,
    /// Largest; the lowest float if there is none.
    pub max: f32,
    /// Sum, added up in f32 in a fixed order.
    pub sum: f32,
    /// Sum of squares, likewise.
    pub sum_sq: f32,
    /// Padding.
    pub pad: u32,
}

impl TensorStats {
    /// Elements in the sums.
    pub fn finite(&self) -> u32 {
        self.count - self.nan - self.inf
    }

    /// Mean of the finite elements.
    pub fn mean(&self) -> f64 {
        f64::from(self.sum) / f64::from(self.finite().max(1))
    }

    /// Root of the mean square of the finite elements.
    pub fn rms(&self) -> f64 {
        (f64::from(self.sum_sq) / f64::from(self.finite().max(1))).sqrt()
    }

    /// True if every element is finite and within the limit.
    pub fn sound(&self) -> bool {
        self.first_bad == NO_BAD_ELEMENT
    }
}

/// Chunks that a tensor is cut into, at most.
const MAX_PARTS: u32 = 256;
/// Bytes of the workspace of [`tensor_stats`].
pub const STATS_PARTIAL_BYTES: u64 = MAX_PARTS as u64 * size_of::<TensorStats>() as u64;

/// The statistics of `x` into entry `index` of `stats`; `limit` is the magnitude beyond which a finite element counts as bad
/// (`f32::MAX`: none). Two dispatches, by way of `partial` ([`STATS_PARTIAL_BYTES`]).
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree.
pub fn tensor_stats<'a>(
    x: Matrix<'a>,
    limit: f32,
    partial: BufferSlice<'a>,
    stats: BufferSlice<'a>,
    index: u32,
) -> Result<[Dispatch<'a>; 2]> {
    x.check("tensor_stats: x")?;
    let n = u64::from(x.rows) * u64::from(x.cols);
    let entry = size_of::<TensorStats>() as u64;
    if n == 0
        || n > u64::from(u32::MAX)
        || partial.size < STATS_PARTIAL_BYTES
        || stats.size < (u64::from(index) + 1) * entry
    {
        bail!(
            InvalidArgument,
            "tensor_stats: {} x {} elements into entry {index} of {} bytes",
            x.rows,
            x.cols,
            stats.size
        );
    }
    if limit.is_nan() || limit < 0.0 {
        bail!(InvalidArgument, "tensor_stats: limit {limit}");
    }
    let chunk = (n.div_ceil(MAX_PARTS.into()) as u32).max(THREADS_LONG * 4);
    let parts = n.div_ceil(chunk.into()) as u32;
    let first = StatsParams {
        rows: x.rows,
        cols: x.cols,
        stride: x.stride,
        offset: x.offset,
        chunk,
        parts,
        target_index: 0,
        limit: limit.min(f32::MAX),
    };
    let second = StatsParams { chunk: parts, parts: 1, target_index: index, ..first };
    Ok([
        Dispatch::new(&TENSOR_STATS, &first, linear_grid(parts.into()))
            .constant("WG", THREADS_LONG)
            .bind("x", x.data)
            .bind("stats", partial),
        Dispatch::new(&TENSOR_STATS, &second, linear_grid(1))
            .flag("COMBINE", true)
            .constant("WG", THREADS_LONG)
            .bind("partial", partial)
            .bind("stats", stats),
    ])
}
