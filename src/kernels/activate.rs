//! Activation functions, plain and gated.

use crate::error::{Result, bail};
use crate::gpu::{Dispatch, Forms, Kernel, Variant, linear_grid, params};
use crate::kernels::constants::THREADS;
use crate::kernels::{ByteRows, Matrix};

pub(super) static ACTIVATE: Kernel = Kernel {
    name: "activate",
    source: include_str!("../../shaders/activate.wgsl"),
    flags: &["GELU", "GATED", "CLAMPED", "BYTES"],
    constants: &["WG"],
    slots: &[],
    forms: Forms { paths: &[], exists: activate_exists },
    params: ActivateParams::FIELDS,
};

params!(ActivateParams {
    rows: u32,
    cols: u32,
    x_stride: u32,
    gate_offset: u32,
    up_offset: u32,
    y_stride: u32,
    alpha: f32,
    limit: f32
});

/// What is clamped is gated, and no GELU.
pub(super) fn activate_exists(v: &Variant) -> bool {
    !v.has("CLAMPED") || (v.has("GATED") && !v.has("GELU"))
}

/// The function.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// `x · σ(x)`.
    Silu,
    /// GELU in its tanh form.
    GeluTanh,
    /// `min(x, limit) · σ(alpha · min(x, limit))`, times one more than the other factor clamped to `±limit`. Only gated.
    ClampedSwiglu {
        /// Steepness of the sigmoid.
        alpha: f32,
        /// Where both factors are cut.
        limit: f32,
    },
}

fn dispatch<'a>(
    which: Activation,
    gate: Matrix<'a>,
    up: Option<u32>,
    y: Matrix<'a>,
    bytes: Option<ByteRows<'a>>,
) -> Result<Dispatch<'a>> {
    gate.check("activation: gate")?;
    y.check("activation: y")?;
    if gate.rows != y.rows || gate.cols != y.cols || y.offset != 0 {
        bail!(InvalidArgument, "activation: {} x {} to {} x {}", gate.rows, gate.cols, y.rows, y.cols);
    }
    let clamp = match which {
        Activation::ClampedSwiglu { .. } if up.is_none() => {
            bail!(InvalidArgument, "activation: {which:?} without a gate")
        }
        Activation::ClampedSwiglu { alpha, limit } => Some((alpha, limit)),
        Activation::Silu | Activation::GeluTanh => None,
    };
    let (alpha, limit) = clamp.unwrap_or_default();
    let params = ActivateParams {
        rows: y.rows,
        cols: y.cols,
        x_stride: gate.stride,
        gate_offset: gate.offset,
        up_offset: up.unwrap_or(0),
        y_stride: y.stride,
        alpha,
        limit,
    };
    let elements = u64::from(y.rows) * u64::from(y.cols);
    let threads = if bytes.is_some() { elements / 4 } else { elements };
    let d = Dispatch::new(&ACTIVATE, &params, linear_grid(threads.div_ceil(THREADS.into())))
        .constant("WG", THREADS)
        .flag("GELU", which == Activation::GeluTanh)
        .flag("GATED", up.is_some())
        .flag("CLAMPED", clamp.is_some())
        .bind("x", gate.data)
        .bind("y", y.data);
    match bytes {
        Some(bytes) => {
            bytes.check("activation: bytes", y.rows, y.cols)?;
            Ok(bytes.bind_out(d))
        }
        None => Ok(d),
    }
}

/// `y = act(x)`.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree or the function needs a gate.
pub fn activate<'a>(which: Activation, x: Matrix<'a>, y: Matrix<'a>) -> Result<Dispatch<'a>> {
    dispatch(which, x, None, y, None)
}

/// [`activate`] that writes `y` as bytes as well; columns are a multiple of 32.
///
/// # Errors
/// As [`activate`].
pub fn activate_bytes<'a>(
    which: Activation,
    x: Matrix<'a>,
    y: Matrix<'a>,
    bytes: ByteRows<'a>,
) -> Result<Dispatch<'a>> {
    dispatch(which, x, None, y, Some(bytes))
}

/// `y = silu(x)`.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree.
pub fn silu<'a>(x: Matrix<'a>, y: Matrix<'a>) -> Result<Dispatch<'a>> {
    dispatch(Activation::Silu, x, None, y, None)
}

/// `y = gelu(x)`, tanh form.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree.
pub fn gelu<'a>(x: Matrix<'a>, y: Matrix<'a>) -> Result<Dispatch<'a>> {
    dispatch(Activation::GeluTanh, x, None, y, None)
}

/// `y = act(gate) · up`, where gate and up are columns of one matrix (same buffer and stride).
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree.
pub fn glu<'a>(which: Activation, gate: Matrix<'a>, up: Matrix<'a>, y: Matrix<'a>) -> Result<Dispatch<'a>> {
    gated(which, gate, up, y, None)
}

/// [`glu`] that writes `y` as bytes as well; columns are a multiple of 32.
///
/// # Errors
/// As [`glu`].
pub fn glu_bytes<'a>(
    which: Activation,
    gate: Matrix<'a>,
    up: Matrix<'a>,
    y: Matrix<'a>,
    bytes: ByteRows<'a>,
) -> Result<Dispatch<'a>> {
    gated(which, gate, up, y, Some(bytes))
}

fn gated<'a>(
    which: Activation,
    gate: Matrix<'a>,
    up: Matrix<'a>,
    y: Matrix<'a>,
    bytes: Option<ByteRows<'a>>,
) -> Result<Dispatch<'a>> {
    up.check("activation: up")?;
    let same = gate.data.buffer.id() == up.data.buffer.id() && gate.data.offset == up.data.offset;
    if !same || gate.stride != up.stride || gate.cols != up.cols || gate.rows != up.rows {
        bail!(InvalidArgument, "activation: gate and up must be columns of one matrix");
    }
    dispatch(which, gate, Some(up.offset), y, bytes)
}
