//! Root-mean-square normalisation with a gate, and the gate of attention heads.

use crate::error::{Result, bail};
use crate::gpu::{Dispatch, Forms, Kernel, linear_grid, params};
use crate::kernels::constants::{THREADS, THREADS_LONG};
use crate::kernels::{Matrix, Segments};

pub(super) static GATED_NORM: Kernel = Kernel {
    name: "gated_norm",
    source: include_str!("../../shaders/gated_norm.wgsl"),
    flags: &["GATE_FIRST"],
    constants: &["WG"],
    slots: &[],
    forms: Forms { paths: &[("WG", &[THREADS, THREADS_LONG])], ..Forms::ALL },
    params: GatedNormParams::FIELDS,
};

pub(super) static SIGMOID_GATE: Kernel = Kernel {
    name: "sigmoid_gate",
    source: include_str!("../../shaders/sigmoid_gate.wgsl"),
    flags: &[],
    constants: &["WG"],
    slots: &[],
    forms: Forms::ALL,
    params: SigmoidGateParams::FIELDS,
};

params!(GatedNormParams {
    rows: u32,
    segments: u32,
    cols: u32,
    x_stride: u32,
    x_offset: u32,
    z_stride: u32,
    z_offset: u32,
    eps: f32
});

params!(SigmoidGateParams { rows: u32, cols: u32, x_stride: u32, x_offset: u32, g_stride: u32, g_offset: u32 });

/// `s = s / √(mean(s²) + eps) · w · silu(z)` for each segment `s` of each row of `x`, in place; with `gate_first` `s · silu(z)` is normalised instead,
/// and weights are of the whole row: those of one segment after those of another.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree.
pub fn gated_norm<'a>(
    x: Matrix<'a>,
    z: Matrix<'a>,
    segments: Segments<'a>,
    eps: f32,
    gate_first: bool,
) -> Result<Dispatch<'a>> {
    x.check("gated_norm: x")?;
    z.check("gated_norm: z")?;
    let Segments { count, cols, w } = segments;
    let width = u64::from(count) * u64::from(cols);
    let weights = if gate_first { width } else { u64::from(cols) };
    if width == 0 || width != u64::from(x.cols) || z.cols != x.cols || z.rows != x.rows || w.size < weights * 4 {
        bail!(InvalidArgument, "gated_norm: {count} x {cols} in rows of {} and {}", x.cols, z.cols);
    }
    let params = GatedNormParams {
        rows: x.rows,
        segments: count,
        cols,
        x_stride: x.stride,
        x_offset: x.offset,
        z_stride: z.stride,
        z_offset: z.offset,
        eps,
    };
    Ok(Dispatch::new(&GATED_NORM, &params, linear_grid(u64::from(x.rows) * u64::from(count)))
        .constant("WG", if cols > 1024 { THREADS_LONG } else { THREADS })
        .flag("GATE_FIRST", gate_first)
        .bind("x", x.data)
        .bind("z", z.data)
        .bind("w", w))
}

/// `x *= σ(g)`, element by element.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree.
pub fn sigmoid_gate<'a>(x: Matrix<'a>, g: Matrix<'a>) -> Result<Dispatch<'a>> {
    x.check("sigmoid_gate: x")?;
    g.check("sigmoid_gate: g")?;
    if x.rows != g.rows || x.cols != g.cols {
        bail!(InvalidArgument, "sigmoid_gate: {} x {} by {} x {}", x.rows, x.cols, g.rows, g.cols);
    }
    let (rows, cols) = (x.rows, x.cols);
    let params = SigmoidGateParams {
        rows,
        cols,
        x_stride: x.stride,
        x_offset: x.offset,
        g_stride: g.stride,
        g_offset: g.offset,
    };
    let threads = u64::from(rows) * u64::from(cols);
    Ok(Dispatch::new(&SIGMOID_GATE, &params, linear_grid(threads.div_ceil(THREADS.into())))
        .constant("WG", THREADS)
        .bind("x", x.data)
        .bind("g", g.data))
}
