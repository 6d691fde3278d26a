//! Rotary position embedding (Su et al. 2021), fused with the write of keys and values to their pages.

use crate::error::{Result, bail};
use crate::gpu::{BufferSlice, Dispatch, Forms, Kernel, linear_grid, params};
use crate::kernels::constants::{KV_BLOCK_TOKENS, THREADS};
use crate::kernels::{Matrix, Pages};

pub(super) static ROPE: Kernel = Kernel {
    name: "rope",
    source: include_str!("../../shaders/rope.wgsl"),
    flags: &["NEOX", "NOPE"],
    constants: &["WG"],
    slots: &["kv"],
    forms: Forms { paths: &[], exists: |v| !(v.has("NEOX") && v.has("NOPE")) },
    params: RopeParams::FIELDS,
};

params!(RopeParams {
    t_rows: u32,
    n_head: u32,
    n_kv: u32,
    head_dim: u32,
    n_rot: u32,
    head_threads: u32,
    x_stride: u32,
    q_offset: u32,
    k_offset: u32,
    v_offset: u32,
    block_tokens: u32,
    table_stride: u32,
});

/// Which dimensions turn together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopePairs {
    /// `(2i, 2i + 1)`: llama's files.
    Adjacent,
    /// `(i, i + n_rot / 2)`: NeoX and most others.
    Halves,
    /// No rotation: keys and values are only written.
    None,
}

/// Shapes of one layer's q, k and v.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RopeShape {
    /// Query heads.
    pub n_head: u32,
    /// Key/value heads.
    pub n_kv: u32,
    /// Dimensions of a head.
    pub head_dim: u32,
    /// Dimensions that are rotated, from the first on: an even number.
    pub n_rot: u32,
    /// Pairing.
    pub pairs: RopePairs,
}

/// Cosines and sines in two levels: positions 0..=255, then multiples of 256. See `shaders/lib/rotation.wgsl`.
#[derive(Debug)]
pub struct AngleTable {
    /// `[row][pair]` of (cos, sin).
    pub values: Vec<[f32; 2]>,
}

impl AngleTable {
    /// The table for positions below `positions`, from the angular step of each pair (radians a position, in f64); `magnitude` scales
    /// both cosine and sine.
    pub fn new(steps: &[f64], magnitude: f64, positions: u32) -> Self {
        let high = positions.div_ceil(256).max(1);
        let mut values = Vec::with_capacity(steps.len() * (256 + high as usize));
        let mut row = |position: u32, scale: f64| {
            for step in steps {
                let (sin, cos) = (f64::from(position) * step).sin_cos();
                values.push([(cos * scale) as f32, (sin * scale) as f32]);
            }
        };
        (0..256).for_each(|lo| row(lo, magnitude));
        (0..high).for_each(|hi| row(hi * 256, 1.0));
        Self { values }
    }
}

/// Rotates q and k of `qkv` (`[q heads, k heads, v heads]` in each row), writes q densely to `q_out`, and k and v to their pages. `angles`
/// (an [`AngleTable`]) are not looked at where nothing is rotated.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree.
pub fn rope<'a>(
    shape: RopeShape,
    qkv: Matrix<'a>,
    pages: Pages<'a>,
    angles: BufferSlice<'a>,
    q_out: BufferSlice<'a>,
) -> Result<Dispatch<'a>> {
    qkv.check_vec4("rope: qkv")?;
    let RopeShape { n_head, n_kv, head_dim, n_rot, pairs } = shape;
    let width = (n_head + 2 * n_kv) * head_dim;
    if qkv.cols != width || !head_dim.is_multiple_of(4) || n_rot > head_dim || !n_rot.is_multiple_of(2) {
        bail!(InvalidArgument, "rope: {shape:?} on rows of {}", qkv.cols);
    }
    if pages.rows.size < u64::from(qkv.rows) * 8 || q_out.size < u64::from(qkv.rows * n_head * head_dim) * 4 {
        bail!(InvalidArgument, "rope: {} rows, {} bytes of row data, {} of q", qkv.rows, pages.rows.size, q_out.size);
    }
    pages.kv_type.check(head_dim)?;
    let head_threads = pages.kv_type.stored_dims(head_dim) / 2;
    let params = RopeParams {
        t_rows: qkv.rows,
        n_head,
        n_kv,
        head_dim,
        n_rot,
        head_threads,
        x_stride: qkv.stride,
        q_offset: qkv.offset,
        k_offset: qkv.offset + n_head * head_dim,
        v_offset: qkv.offset + (n_head + n_kv) * head_dim,
        block_tokens: KV_BLOCK_TOKENS,
        table_stride: pages.table_stride,
    };
    let threads = u64::from(qkv.rows) * u64::from(n_head + 2 * n_kv) * u64::from(head_threads);
    let d = Dispatch::new(&ROPE, &params, linear_grid(threads.div_ceil(THREADS.into())))
        .constant("WG", THREADS)
        .flag("NEOX", pairs == RopePairs::Halves)
        .flag("NOPE", pairs == RopePairs::None)
        .slot("kv", pages.kv_type.fragment())
        .bind("x", qkv.data)
        .bind("rows", pages.rows)
        .bind("tables", pages.tables);
    let d = if pairs == RopePairs::None { d } else { d.bind("angles", angles) };
    Ok(d.bind("q_out", q_out).bind("kv_k", pages.k).bind("kv_v", pages.v))
}
