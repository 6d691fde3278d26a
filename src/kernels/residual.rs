//! Sums of matrices, and of a matrix and a row.

use crate::error::{Result, bail};
use crate::gpu::{BufferSlice, Dispatch, Forms, Kernel, linear_grid, params};
use crate::kernels::constants::THREADS;

pub(super) static RESIDUAL: Kernel = Kernel {
    name: "residual",
    source: include_str!("../../shaders/residual.wgsl"),
    flags: &[],
    constants: &["WG"],
    slots: &[],
    forms: Forms::ALL,
    params: ResidualParams::FIELDS,
};

params!(ResidualParams { n: u32, period: u32, scale: f32 });

fn dispatch<'a>(
    n: u32,
    period: u32,
    a: BufferSlice<'a>,
    b: BufferSlice<'a>,
    y: BufferSlice<'a>,
    scale: f32,
) -> Result<Dispatch<'a>> {
    let bytes = u64::from(n) * 4;
    if a.size < bytes || y.size < bytes || b.size < u64::from(period) * 4 || (period == 0 && n > 0) {
        bail!(InvalidArgument, "residual of {n} elements: {}, {} and {} bytes", a.size, b.size, y.size);
    }
    let params = ResidualParams { n, period, scale };
    Ok(Dispatch::new(&RESIDUAL, &params, linear_grid(u64::from(n).div_ceil(THREADS.into())))
        .constant("WG", THREADS)
        .bind("a", a)
        .bind("b", b)
        .bind("y", y))
}

/// `y = a + scale · b`, over `n` elements.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if a buffer is too small.
pub fn residual<'a>(
    n: u32,
    a: BufferSlice<'a>,
    b: BufferSlice<'a>,
    y: BufferSlice<'a>,
    scale: f32,
) -> Result<Dispatch<'a>> {
    dispatch(n, n, a, b, y, scale)
}

/// `y[r, :] = x[r, :] + bias`, for `rows` rows of `cols`.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if a buffer is too small.
pub fn add_bias<'a>(
    rows: u32,
    cols: u32,
    x: BufferSlice<'a>,
    bias: BufferSlice<'a>,
    y: BufferSlice<'a>,
) -> Result<Dispatch<'a>> {
    dispatch(rows * cols, cols, x, bias, y, 1.0)
}
