//! Pooling: stretches of rows become one row each; and rows of length 1.

use crate::error::{Result, bail};
use crate::gpu::{BufferSlice, Dispatch, Forms, Kernel, linear_grid, params};
use crate::kernels::Matrix;
use crate::kernels::constants::THREADS_LONG;

pub(super) static POOL_ROWS: Kernel = Kernel {
    name: "pool_rows",
    source: include_str!("../../shaders/pool_rows.wgsl"),
    flags: &[],
    constants: &[],
    slots: &[],
    forms: Forms::ALL,
    params: PoolParams::FIELDS,
};

pub(super) static UNIT_ROWS: Kernel = Kernel {
    name: "unit_rows",
    source: include_str!("../../shaders/unit_rows.wgsl"),
    flags: &[],
    constants: &["WG"],
    slots: &[],
    forms: Forms::ALL,
    params: UnitParams::FIELDS,
};

params!(PoolParams { stretches: u32, cols: u32, col_groups: u32, x_stride: u32 });
params!(UnitParams { rows: u32, cols: u32 });

/// Columns that a workgroup makes: `COLS` of the shader.
const COLS: u32 = 32;

/// Rows that become one; `Stretch` of the shader.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Stretch {
    /// First row.
    pub first: u32,
    /// Rows.
    pub rows: u32,
    /// Not 0: added to what the result holds.
    pub add: u32,
    /// Factor on their sum.
    pub scale: f32,
}

/// `y[s, :] (+)= scale_s · Σ x[r, :]` over the rows of stretch `s` (a [`Stretch`] in `stretches` for each row of the dense `y`). The caller checks that
/// stretches lie within `x`.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree.
pub fn pool_rows<'a>(stretches: BufferSlice<'a>, x: Matrix<'a>, y: Matrix<'a>) -> Result<Dispatch<'a>> {
    x.check("pool: x")?;
    y.check("pool: y")?;
    let dense = y.stride == y.cols && y.offset == 0 && x.offset == 0;
    if x.cols != y.cols || !dense || stretches.size < u64::from(y.rows) * size_of::<Stretch>() as u64 {
        bail!(InvalidArgument, "pool: {x:?} to {y:?}, {} bytes of stretches", stretches.size);
    }
    let col_groups = x.cols.div_ceil(COLS);
    let params = PoolParams { stretches: y.rows, cols: y.cols, col_groups, x_stride: x.stride };
    Ok(Dispatch::new(&POOL_ROWS, &params, linear_grid(u64::from(y.rows) * u64::from(col_groups)))
        .bind("stretches", stretches)
        .bind("x", x.data)
        .bind("y", y.data))
}

/// `y[r, :] /= max(‖y[r, :]‖₂, 1e−12)`, in place; `y` is dense.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if it is not.
pub fn unit_rows(y: Matrix<'_>) -> Result<Dispatch<'_>> {
    y.check("unit rows")?;
    if y.stride != y.cols || y.offset != 0 {
        bail!(InvalidArgument, "unit rows: {y:?}");
    }
    Ok(Dispatch::new(&UNIT_ROWS, &UnitParams { rows: y.rows, cols: y.cols }, linear_grid(y.rows.into()))
        .constant("WG", THREADS_LONG)
        .bind("y", y.data))
}
