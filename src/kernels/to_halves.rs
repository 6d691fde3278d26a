//! What stands between two cooperative products, with the rounding to f16 that the second one needs: a normalisation, an activation.
//!
//! The f32 results are not written: nothing but the product reads them.

use crate::error::{Result, bail};
use crate::gpu::{BufferSlice, Dispatch, Forms, Gpu, Kernel, linear_grid, params};
use crate::kernels::activate::{Activation, activate_exists};
use crate::kernels::constants::{THREADS, THREADS_ROW};
use crate::kernels::{HalfRows, Matrix};

pub(super) static NORM_HALF: Kernel = Kernel {
    name: "norm_half",
    source: include_str!("../../shaders/norm_half.wgsl"),
    flags: &["PARTS"],
    constants: &["WG"],
    slots: &[],
    forms: Forms::ALL,
    params: NormHalfParams::FIELDS,
};

pub(super) static ACTIVATE_HALF: Kernel = Kernel {
    name: "activate_half",
    source: include_str!("../../shaders/activate_half.wgsl"),
    flags: &["GELU", "GATED", "CLAMPED"],
    constants: &["WG"],
    slots: &[],
    forms: Forms { paths: &[], exists: activate_exists },
    params: ActivateHalfParams::FIELDS,
};

params!(NormHalfParams {
    rows: u32,
    cols4: u32,
    padded4: u32,
    x_tiles: u32,
    x_stride4: u32,
    x_offset4: u32,
    splits: u32,
    eps: f32,
});
params!(ActivateHalfParams {
    rows: u32,
    cols4: u32,
    padded4: u32,
    x_tiles: u32,
    x_stride4: u32,
    gate_offset4: u32,
    up_offset4: u32,
    alpha: f32,
    limit: f32
});

/// Threads of a workgroup that walks along a row more than once: what it waits for are loads, so as few rounds as there can be.
pub(super) fn row_threads(gpu: &Gpu, cols: u32) -> u32 {
    let most = 1 << gpu.max_workgroup_threads().min(THREADS_ROW).ilog2();
    (cols / 4).next_power_of_two().clamp(THREADS, most)
}

/// Parts of a product that are still to be added up: `[splits, rows, cols]`.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// Their room.
    pub data: BufferSlice<'a>,
    /// How many.
    pub splits: u32,
}

/// `h[r, :] = x[r, :] / √(mean(x[r, :]²) + eps) · w` in f16, after `parts`, if there are some, were added to `x`. Columns, stride and offset are
/// multiples of 4.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree.
pub fn norm_half<'a>(
    gpu: &Gpu,
    x: Matrix<'a>,
    w: BufferSlice<'a>,
    eps: f32,
    half: HalfRows<'a>,
    parts: Option<Parts<'a>>,
) -> Result<Dispatch<'a>> {
    x.check_vec4("norm_half: x")?;
    half.check("norm_half")?;
    let of_parts = parts.map_or(0, |p| u64::from(p.splits) * u64::from(x.rows) * u64::from(x.cols) * 4);
    let short = parts.is_some_and(|p| p.data.size < of_parts) || w.size < u64::from(x.cols) * 4;
    if (x.rows, x.cols) != (half.rows, half.cols) || short {
        bail!(InvalidArgument, "norm_half: x {} x {}, {half:?}, {parts:?}, w {} bytes", x.rows, x.cols, w.size);
    }
    let params = NormHalfParams {
        rows: x.rows,
        cols4: x.cols / 4,
        padded4: half.padded4(),
        x_tiles: half.tiles(),
        x_stride4: x.stride / 4,
        x_offset4: x.offset / 4,
        splits: parts.map_or(0, |p| p.splits),
        eps,
    };
    let d = Dispatch::new(&NORM_HALF, &params, linear_grid(x.rows.into()))
        .constant("WG", row_threads(gpu, half.cols))
        .flag("PARTS", parts.is_some());
    let d = match parts {
        Some(p) => d.bind("parts", p.data),
        None => d,
    };
    Ok(half.bind_out(d.bind("x", x.data).bind("w", w)))
}

/// `h = act(gate) · up` in f16, or `act(x)`, where gate and up are the halves of the columns of `x`, or all of them are the activation's input.
/// Columns, stride and offset are multiples of 4.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree or the function needs a gate.
pub fn activate_half<'a>(
    gpu: &Gpu,
    which: Activation,
    gated: bool,
    x: Matrix<'a>,
    half: HalfRows<'a>,
) -> Result<Dispatch<'a>> {
    x.check_vec4("activate_half: x")?;
    half.check("activate_half")?;
    let n = half.cols;
    if x.rows != half.rows || !n.is_multiple_of(4) || x.cols != n * (1 + u32::from(gated)) {
        bail!(InvalidArgument, "activate_half: x {} x {} to {} x {n}", x.rows, x.cols, half.rows);
    }
    let clamp = match which {
        Activation::ClampedSwiglu { .. } if !gated => {
            bail!(InvalidArgument, "activate_half: {which:?} without a gate")
        }
        Activation::ClampedSwiglu { alpha, limit } => Some((alpha, limit)),
        Activation::Silu | Activation::GeluTanh => None,
    };
    let (alpha, limit) = clamp.unwrap_or_default();
    let params = ActivateHalfParams {
        rows: x.rows,
        cols4: n / 4,
        padded4: half.padded4(),
        x_tiles: half.tiles(),
        x_stride4: x.stride / 4,
        gate_offset4: x.offset / 4,
        up_offset4: (x.offset + n) / 4,
        alpha,
        limit,
    };
    let d = Dispatch::new(&ACTIVATE_HALF, &params, linear_grid(x.rows.into()))
        .constant("WG", row_threads(gpu, half.cols))
        .flag("GELU", which == Activation::GeluTanh)
        .flag("GATED", gated)
        .flag("CLAMPED", clamp.is_some())
        .bind("x", x.data);
    Ok(half.bind_out(d))
}
