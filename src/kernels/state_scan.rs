//! Recurrences of matrix states along sequences: Mamba-2 (Dao and Gu 2024) and the gated delta rule (Yang et al. 2024).

use crate::error::{Result, bail};
use crate::gpu::{BufferSlice, Dispatch, Forms, Kernel, linear_grid, params};
use crate::kernels::Matrix;
use crate::kernels::constants::THREADS;
use crate::kernels::short_conv::Memory;

pub(super) static STATE_SCAN: Kernel = Kernel {
    name: "state_scan",
    source: include_str!("../../shaders/state_scan.wgsl"),
    flags: &["DELTA", "TILED"],
    constants: &["WG", "PARTS", "PER", "ROWS"],
    slots: &[],
    forms: Forms::ALL,
    params: StateScanParams::FIELDS,
};

pub(super) static STATE_STEP: Kernel = Kernel {
    name: "state_step",
    source: include_str!("../../shaders/state_step.wgsl"),
    flags: &[],
    constants: &["WG"],
    slots: &[],
    forms: Forms::ALL,
    params: StateStepParams::FIELDS,
};

params!(StateScanParams {
    groups: u32,
    steps: u32,
    n_head: u32,
    n_key: u32,
    key_dim: u32,
    head_dim: u32,
    column_groups: u32,
    x_stride: u32,
    q_at: u32,
    k_at: u32,
    v_at: u32,
    g_stride: u32,
    step_at: u32,
    beta_at: u32,
    y_stride: u32
});

params!(StateStepParams { rows: u32 });

/// Rows of a state that a thread keeps, at most, in fours (`state_scan.wgsl` names them).
const MOST: u32 = 8;

/// Numbers of keys that a workgroup reads at a time, in all rows: 8 KiB with their queries.
const KEYS: u32 = 1024;
/// Rows that it reads at a time, at most.
const MOST_ROWS: u32 = 16;

/// Largest `key_dim` that [`state_scan`] takes.
pub const MAX_KEY_DIM: u32 = 1024;

/// Shapes of a recurrence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScanShape {
    /// Heads: states.
    pub n_head: u32,
    /// Heads of q and k; divides `n_head`.
    pub n_key: u32,
    /// Rows of a state: dimensions of q and k.
    pub key_dim: u32,
    /// Columns of a state: dimensions of v and of the result.
    pub head_dim: u32,
    /// Neighbouring heads take neighbouring key heads, over and over; else runs of heads share one.
    pub tiled: bool,
}

/// What drives a recurrence, in columns.
#[derive(Debug, Clone, Copy)]
pub struct ScanInputs<'a> {
    /// `[rows, n_key · key_dim]`.
    pub q: Matrix<'a>,
    /// Likewise, in the same matrix.
    pub k: Matrix<'a>,
    /// `[rows, n_head · head_dim]`, in the same matrix.
    pub v: Matrix<'a>,
    /// Raw step sizes `[rows, n_head]`.
    pub step: Matrix<'a>,
    /// Raw strengths of the delta rule `[rows, n_head]`, in the same matrix as the steps; `None`: Mamba-2.
    pub beta: Option<Matrix<'a>>,
    /// For each head four numbers: decay rate A (negative), what is added to its steps, the factor of v in the result (Mamba-2), nothing.
    pub heads: BufferSlice<'a>,
}

fn same(a: &Matrix<'_>, b: &Matrix<'_>) -> bool {
    a.data.buffer.id() == b.data.buffer.id()
        && a.data.offset == b.data.offset
        && a.stride == b.stride
        && a.rows == b.rows
}

/// For each head, along each sequence of `memory`, with `d = softplus(step + heads.y)` and decay `a = exp(heads.x · d)`:
/// `S = a S + k uᵀ`, `y = Sᵀ q`, where `u = d v` and `y` gets `heads.z · v` besides, or with `beta` `u = σ(beta) (v − a Sᵀ k)`. States are
/// `[n_head][key_dim][head_dim]`.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree.
pub fn state_scan<'a>(
    shape: ScanShape,
    inputs: ScanInputs<'a>,
    memory: Memory<'a>,
    y: Matrix<'a>,
) -> Result<Dispatch<'a>> {
    let ScanShape { n_head, n_key, key_dim, head_dim, tiled } = shape;
    let ScanInputs { q, k, v, step, beta, heads } = inputs;
    for (what, m) in [("q", &q), ("k", &k), ("v", &v), ("step", &step), ("y", &y)] {
        m.check(&format!("state_scan: {what}"))?;
    }
    beta.as_ref().map_or(Ok(()), |b| b.check("state_scan: beta"))?;
    memory.check("state_scan", y.rows)?;
    let one = same(&q, &k) && same(&q, &v) && beta.is_none_or(|b| same(&b, &step) && b.cols == n_head);
    let fits = n_head > 0
        && n_key > 0
        && n_head.is_multiple_of(n_key)
        && (1..=MAX_KEY_DIM).contains(&key_dim)
        && q.cols == n_key * key_dim
        && k.cols == q.cols
        && v.cols == n_head * head_dim
        && y.cols == v.cols
        && step.cols == n_head
        && y.offset == 0
        && [q.rows, step.rows].iter().all(|&r| r == y.rows)
        && heads.size >= u64::from(n_head) * 16;
    if !one || !fits {
        bail!(InvalidArgument, "state_scan: {shape:?} on q {}, v {}, step {} columns", q.cols, v.cols, step.cols);
    }
    // At least four threads a column, so that a group's columns are few enough to fill a device with one sequence.
    let parts = key_dim.div_ceil(4 * MOST).next_power_of_two().max(4);
    let per = key_dim.div_ceil(4 * parts);
    let column_groups = head_dim.div_ceil(THREADS / parts);
    let Some(groups) = memory.sequences.checked_mul(n_head).and_then(|n| n.checked_mul(column_groups)) else {
        bail!(InvalidArgument, "state_scan: {} sequences of {shape:?}", memory.sequences);
    };
    let params = StateScanParams {
        groups,
        steps: memory.steps,
        n_head,
        n_key,
        key_dim,
        head_dim,
        column_groups,
        x_stride: q.stride,
        q_at: q.offset,
        k_at: k.offset,
        v_at: v.offset,
        g_stride: step.stride,
        step_at: step.offset,
        beta_at: beta.map_or(0, |b| b.offset),
        y_stride: y.stride,
    };
    Ok(Dispatch::new(&STATE_SCAN, &params, linear_grid(groups.into()))
        .constant("WG", THREADS)
        .constant("PARTS", parts)
        .constant("PER", per)
        .constant("ROWS", (KEYS / (4 * parts * per)).clamp(1, MOST_ROWS))
        .flag("DELTA", beta.is_some())
        .flag("TILED", tiled)
        .bind("x", q.data)
        .bind("g", step.data)
        .bind("heads", heads)
        .bind("rows", memory.rows)
        .bind("places", memory.places)
        .bind("memory", memory.states)
        .bind("y", y.data))
}

/// Ends a step of a decode batch of `rows` sequences: where each wrote its state it reads it next, and those that have stopped write none
/// any more.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if a buffer is too small.
pub fn state_step<'a>(
    rows: u32,
    row_data: BufferSlice<'a>,
    states: BufferSlice<'a>,
    places: BufferSlice<'a>,
) -> Result<Dispatch<'a>> {
    if row_data.size < u64::from(rows) * 8 {
        bail!(InvalidArgument, "state_step: {rows} rows, {} bytes of row data", row_data.size);
    }
    Ok(Dispatch::new(&STATE_STEP, &StateStepParams { rows }, linear_grid(u64::from(rows).div_ceil(THREADS.into())))
        .constant("WG", THREADS)
        .bind("rows", row_data)
        .bind("states", states)
        .bind("places", places))
}
