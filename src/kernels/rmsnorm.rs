//! Normalisation of rows: root mean square (Zhang and Sennrich 2019), and layer normalisation (Ba et al. 2016).

use crate::error::{Result, bail};
use crate::gpu::{BufferSlice, Dispatch, Forms, Kernel, linear_grid, params};
use crate::kernels::constants::{THREADS, THREADS_LONG};
use crate::kernels::{ByteRows, Matrix};

pub(super) static RMSNORM: Kernel = Kernel {
    name: "rmsnorm",
    source: include_str!("../../shaders/rmsnorm.wgsl"),
    flags: &["CENTER", "BIAS", "ADD", "BYTES"],
    constants: &["WG"],
    slots: &[],
    forms: Forms {
        paths: &[("WG", &[THREADS, THREADS_LONG])],
        // What is added to something is no input of a product.
        exists: |v| !(v.has("ADD") && v.has("BYTES")),
    },
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

/// Which normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// By the root mean square.
    Rms,
    /// By the standard deviation, about the mean.
    Layer,
}

/// A normalisation with its weights.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    /// Which one.
    pub kind: NormKind,
    /// Added to the mean square.
    pub eps: f32,
    /// A factor for each column.
    pub w: BufferSlice<'a>,
    /// A summand for each column.
    pub bias: Option<BufferSlice<'a>>,
}

/// `y[r, :] = (x[r, :] − m) / √(mean((x[r, :] − m)²) + eps) · w (+ bias)`, where `m` is 0 or the row's mean; added to `y` if `add`. Columns,
/// strides and offsets are multiples of 4.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree.
pub fn norm<'a>(norm: Norm<'a>, x: Matrix<'a>, y: Matrix<'a>, add: bool) -> Result<Dispatch<'a>> {
    x.check_vec4("norm: x")?;
    y.check_vec4("norm: y")?;
    let (w, bias) = (norm.w.size, norm.bias.map_or(u64::MAX, |b| b.size));
    if x.cols != y.cols || x.rows != y.rows || w.min(bias) < u64::from(x.cols) * 4 {
        bail!(InvalidArgument, "norm: x {} x {}, y {} x {}, w {w} bytes", x.rows, x.cols, y.rows, y.cols);
    }
    let params = RmsNormParams {
        rows: x.rows,
        cols4: x.cols / 4,
        x_stride4: x.stride / 4,
        x_offset4: x.offset / 4,
        y_stride4: y.stride / 4,
        y_offset4: y.offset / 4,
        eps: norm.eps,
    };
    let d = Dispatch::new(&RMSNORM, &params, linear_grid(x.rows.into()))
        .constant("WG", if x.cols > 1024 { THREADS_LONG } else { THREADS })
        .flag("CENTER", norm.kind == NormKind::Layer)
        .flag("BIAS", norm.bias.is_some())
        .flag("ADD", add)
        .bind("x", x.data)
        .bind("w", norm.w)
        .bind("y", y.data);
    Ok(match norm.bias {
        Some(bias) => d.bind("bias", bias),
        None => d,
    })
}

/// `y[r, :] = x[r, :] / √(mean(x[r, :]²) + eps) · w`; columns, strides and offsets are multiples of 4.
///
/// # Errors
/// As [`norm`].
pub fn rmsnorm<'a>(x: Matrix<'a>, w: BufferSlice<'a>, y: Matrix<'a>, eps: f32) -> Result<Dispatch<'a>> {
    norm(Norm { kind: NormKind::Rms, eps, w, bias: None }, x, y, false)
}

/// [`norm`], not added, that writes `y` as bytes as well; columns are a multiple of 32.
///
/// # Errors
/// As [`norm`].
pub fn norm_bytes<'a>(n: Norm<'a>, x: Matrix<'a>, y: Matrix<'a>, bytes: ByteRows<'a>) -> Result<Dispatch<'a>> {
    bytes.check("norm: bytes", y.rows, y.cols)?;
    Ok(bytes.bind_out(norm(n, x, y, false)?))
}
