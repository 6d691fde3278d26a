//! Causal depthwise convolution along sequences, with a state.

use crate::error::{Result, bail};
use crate::gpu::{BufferSlice, Dispatch, Forms, Kernel, linear_grid, params};
use crate::kernels::Matrix;
use crate::kernels::constants::THREADS;

pub(super) static SHORT_CONV: Kernel = Kernel {
    name: "short_conv",
    source: include_str!("../../shaders/short_conv.wgsl"),
    flags: &["BIAS", "SILU", "GATED"],
    constants: &["WG"],
    slots: &[],
    forms: Forms::ALL,
    params: ShortConvParams::FIELDS,
};

params!(ShortConvParams {
    sequences: u32,
    steps: u32,
    channels: u32,
    kernel: u32,
    x_stride: u32,
    x_at: u32,
    gate_at: u32,
    out_at: u32,
    y_stride: u32
});

/// Where the states of sequences are, and which rows of a batch belong to which.
#[derive(Debug, Clone, Copy)]
pub struct Memory<'a> {
    /// Sequences in the batch.
    pub sequences: u32,
    /// Rows of each, side by side; with several, no sequence may be told to write its state where it reads it.
    pub steps: u32,
    /// [`super::sample::Row`] of each row of the batch.
    pub rows: BufferSlice<'a>,
    /// [`Places`] of each slot.
    pub places: BufferSlice<'a>,
    /// The states.
    pub states: BufferSlice<'a>,
}

/// Where a slot's state is.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Places {
    /// Of the state before the next evaluation; [`NO_PLACE`]: all zeros.
    pub before: u32,
    /// Where the one after it goes; [`NO_PLACE`]: nowhere.
    pub after: u32,
}

/// No place of a state.
pub const NO_PLACE: u32 = u32::MAX;

impl Memory<'_> {
    /// Rows of the batch; fails unless there is row data for them.
    pub(super) fn check(&self, what: &str, rows: u32) -> Result<()> {
        let (sequences, steps) = (self.sequences, self.steps);
        if steps == 0 || sequences.checked_mul(steps) != Some(rows) || self.rows.size < u64::from(rows) * 8 {
            bail!(InvalidArgument, "{what}: {rows} rows of {sequences} sequences x {steps}, {} bytes", self.rows.size);
        }
        Ok(())
    }
}

/// A convolution.
#[derive(Debug, Clone, Copy)]
pub struct ShortConv<'a> {
    /// Rows of a channel's weights, the last one for the row itself; its state has one fewer.
    pub kernel: u32,
    /// `[channels][kernel]`.
    pub w: BufferSlice<'a>,
    /// A summand for each channel.
    pub bias: Option<BufferSlice<'a>>,
    /// The sum goes through SiLU.
    pub silu: bool,
}

/// `y[t, c] = act(Σ_j w[c, j] · in[t − kernel + 1 + j, c] (+ bias[c]))` along each sequence of `memory`, where `in` is `x`. With `gates`, which stand
/// beside `x` in the same rows, `in` is the product of `x` and the first, and the second is a factor of `y`. States are
/// `[kernel − 1][channels]`.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree.
pub fn short_conv<'a>(
    conv: ShortConv<'a>,
    x: Matrix<'a>,
    gates: Option<[Matrix<'a>; 2]>,
    memory: Memory<'a>,
    y: Matrix<'a>,
) -> Result<Dispatch<'a>> {
    x.check("short_conv: x")?;
    y.check("short_conv: y")?;
    memory.check("short_conv", x.rows)?;
    for g in gates.iter().flatten() {
        g.check("short_conv: gate")?;
        if g.data.buffer.id() != x.data.buffer.id() || g.data.offset != x.data.offset || g.stride != x.stride {
            bail!(InvalidArgument, "short_conv: gates must be columns of the matrix that x is of");
        }
    }
    let ShortConv { kernel, w, bias, silu } = conv;
    let (channels, rows) = (x.cols, x.rows);
    let odd = gates.iter().flatten().chain([&y]).any(|m| m.rows != rows || m.cols != channels);
    let words = u64::from(channels) * u64::from(kernel);
    if odd
        || kernel == 0
        || y.offset != 0
        || w.size < words * 4
        || bias.is_some_and(|b| b.size < u64::from(channels) * 4)
    {
        bail!(InvalidArgument, "short_conv: {rows} x {channels} to {} x {}, {kernel} wide", y.rows, y.cols);
    }
    let [gate_at, out_at] = gates.map_or([0; 2], |g| g.map(|g| g.offset));
    let params = ShortConvParams {
        sequences: memory.sequences,
        steps: memory.steps,
        channels,
        kernel,
        x_stride: x.stride,
        x_at: x.offset,
        gate_at,
        out_at,
        y_stride: y.stride,
    };
    let threads = u64::from(rows) * u64::from(channels);
    let d = Dispatch::new(&SHORT_CONV, &params, linear_grid(threads.div_ceil(THREADS.into())))
        .constant("WG", THREADS)
        .flag("BIAS", bias.is_some())
        .flag("SILU", silu)
        .flag("GATED", gates.is_some())
        .bind("x", x.data)
        .bind("w", w);
    let d = match bias {
        Some(bias) => d.bind("bias", bias),
        None => d,
    };
    Ok(d.bind("rows", memory.rows).bind("places", memory.places).bind("memory", memory.states).bind("y", y.data))
}
