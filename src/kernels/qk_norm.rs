//! Root-mean-square normalisation of queries and keys in place, head by head or all heads together.

use crate::error::{Result, bail};
use crate::gpu::{BufferSlice, Dispatch, Forms, Kernel, linear_grid, params};
use crate::kernels::Matrix;
use crate::kernels::constants::{THREADS, THREADS_LONG};

pub(super) static QK_NORM: Kernel = Kernel {
    name: "qk_norm",
    source: include_str!("../../shaders/qk_norm.wgsl"),
    flags: &[],
    constants: &["WG"],
    slots: &[],
    forms: Forms { paths: &[("WG", &[THREADS, THREADS_LONG])], ..Forms::ALL },
    params: QkNormParams::FIELDS,
};

params!(QkNormParams {
    rows: u32,
    x_stride4: u32,
    x_offset4: u32,
    q_segments: u32,
    q_cols4: u32,
    k_segments: u32,
    k_cols4: u32,
    eps: f32
});

/// Runs of columns that are normalised each by itself, all with the same weights.
#[derive(Debug, Clone, Copy)]
pub struct Segments<'a> {
    /// How many, side by side.
    pub count: u32,
    /// Columns of one, a multiple of 4.
    pub cols: u32,
    /// A factor for each column of one.
    pub w: BufferSlice<'a>,
}

/// `s = s / √(mean(s²) + eps) · w` for each segment `s` of each row of `x`: first those of `q`, then those of `k`, in place; what follows in the row
/// stays.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree.
pub fn qk_norm<'a>(x: Matrix<'a>, q: Segments<'a>, k: Segments<'a>, eps: f32) -> Result<Dispatch<'a>> {
    x.check_vec4("qk_norm: x")?;
    let width = |s: &Segments<'_>| u64::from(s.count) * u64::from(s.cols);
    let bad =
        |s: &Segments<'_>| s.count == 0 || s.cols == 0 || !s.cols.is_multiple_of(4) || s.w.size < u64::from(s.cols) * 4;
    if bad(&q) || bad(&k) || width(&q) + width(&k) > u64::from(x.cols) {
        bail!(InvalidArgument, "qk_norm: {} x {} and {} x {} in rows of {}", q.count, q.cols, k.count, k.cols, x.cols);
    }
    let params = QkNormParams {
        rows: x.rows,
        x_stride4: x.stride / 4,
        x_offset4: x.offset / 4,
        q_segments: q.count,
        q_cols4: q.cols / 4,
        k_segments: k.count,
        k_cols4: k.cols / 4,
        eps,
    };
    let groups = u64::from(x.rows) * (u64::from(q.count) + u64::from(k.count));
    Ok(Dispatch::new(&QK_NORM, &params, linear_grid(groups))
        .constant("WG", if q.cols.max(k.cols) > 1024 { THREADS_LONG } else { THREADS })
        .bind("x", x.data)
        .bind("q_w", q.w)
        .bind("k_w", k.w))
}
