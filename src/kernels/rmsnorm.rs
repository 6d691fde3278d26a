//! Root-mean-square normalisation (Zhang and Sennrich 2019).

use crate::error::{Result, bail};
use crate::gpu::{BufferSlice, Dispatch, Forms, Kernel, linear_grid, params};
use crate::kernels::constants::{THREADS, THREADS_LONG};
use crate::kernels::{ByteRows, Matrix};

pub(super) static RMSNORM: Kernel = Kernel {
    name: "rmsnorm",
    source: include_str!("../../shaders/rmsnorm.wgsl"),
    flags: &["BYTES"],
    constants: &["WG"],
    slots: &[],
    forms: Forms { paths: &[("WG", &[THREADS, THREADS_LONG])], ..Forms::ALL },
    params: RmsNormParams::FIELDS,
};

params!(RmsNormParams {
    rows: u32,
    cols4: u32,
    x_stride4: u32,
    x_offset4: u32,
    y_stride4: u32,
    y_offset4: u32,
    eps: f32
});

/// `y[r, :] = x[r, :] / √(mean(x[r, :]²) + eps) · w`; columns, strides and offsets are multiples of 4.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree.
pub fn rmsnorm<'a>(x: Matrix<'a>, w: BufferSlice<'a>, y: Matrix<'a>, eps: f32) -> Result<Dispatch<'a>> {
    x.check_vec4("rmsnorm: x")?;
    y.check_vec4("rmsnorm: y")?;
    if x.cols != y.cols || x.rows != y.rows || w.size < u64::from(x.cols) * 4 {
        bail!(InvalidArgument, "rmsnorm: x {} x {}, y {} x {}, w {} bytes", x.rows, x.cols, y.rows, y.cols, w.size);
    }
    let params = RmsNormParams {
        rows: x.rows,
        cols4: x.cols / 4,
        x_stride4: x.stride / 4,
        x_offset4: x.offset / 4,
        y_stride4: y.stride / 4,
        y_offset4: y.offset / 4,
        eps,
    };
    Ok(Dispatch::new(&RMSNORM, &params, linear_grid(x.rows.into()))
        .constant("WG", if x.cols > 1024 { THREADS_LONG } else { THREADS })
        .bind("x", x.data)
        .bind("w", w)
        .bind("y", y.data))
}

/// [`rmsnorm`] that writes `y` as bytes as well; columns are a multiple of 32.
///
/// # Errors
/// As [`rmsnorm`].
pub fn rmsnorm_bytes<'a>(
    x: Matrix<'a>,
    w: BufferSlice<'a>,
    y: Matrix<'a>,
    eps: f32,
    bytes: ByteRows<'a>,
) -> Result<Dispatch<'a>> {
    bytes.check("rmsnorm: bytes", y.rows, y.cols)?;
    Ok(bytes.bind_out(rmsnorm(x, w, y, eps)?))
}
