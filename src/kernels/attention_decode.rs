//! Attention of single rows over the paged cache, each at its own slot and position: whole, or split over the length and combined.

use crate::error::{Result, bail};
use crate::gpu::{BufferSlice, Dispatch, Forms, Kernel, linear_grid, params};
use crate::kernels::Pages;
use crate::kernels::attention::AttentionShape;
use crate::kernels::byte_rows::ByteRows;
use crate::kernels::constants::{DECODE_GROUPS, DECODE_SPLITS, KV_BLOCK_TOKENS, THREADS};

pub(super) static ATTENTION_DECODE: Kernel = Kernel {
    name: "attention_decode",
    source: include_str!("../../shaders/attention_decode.wgsl"),
    flags: &["SPLIT", "SINKS"],
    constants: &["WG", "HEAD_DIM", "G"],
    slots: &["kv"],
    forms: Forms {
        paths: &[("WG", &[2 * THREADS, 4 * THREADS]), ("G", &[1, 2, 4])],
        // Sinks of split attention are for what combines it.
        exists: |v| !(v.has("SPLIT") && v.has("SINKS")),
    },
    params: DecodeParams::FIELDS,
};

pub(super) static ATTENTION_COMBINE: Kernel = Kernel {
    name: "attention_combine",
    source: include_str!("../../shaders/attention_combine.wgsl"),
    flags: &["BYTES", "SINKS"],
    constants: &["WG"],
    slots: &[],
    forms: Forms { paths: &[("WG", &[2 * THREADS, 4 * THREADS])], ..Forms::ALL },
    params: CombineParams::FIELDS,
};

params!(DecodeParams {
    groups: u32,
    n_head: u32,
    n_kv: u32,
    block_tokens: u32,
    table_stride: u32,
    window: u32,
    splits: u32,
    scale: f32,
    softcap: f32,
});
params!(CombineParams { groups: u32, n_head: u32, d4: u32, window: u32, splits: u32, tile: u32 });

/// Where the splits of [`attention_split`] leave their parts.
#[derive(Debug, Clone, Copy)]
pub struct AttentionParts<'a> {
    /// Weighted sums, `[row, head, split, head_dim]`.
    pub sums: BufferSlice<'a>,
    /// Largest score and sum of weights, `[row, head, split]`.
    pub tops: BufferSlice<'a>,
}

impl AttentionParts<'_> {
    /// Bytes of `sums` and `tops` for `t_rows` rows.
    pub fn sizes(shape: &AttentionShape, t_rows: u32, splits: u32) -> [u64; 2] {
        let parts = u64::from(t_rows) * u64::from(shape.n_head) * u64::from(splits);
        [parts * u64::from(shape.head_dim) * 4, parts * 8]
    }
}

/// Heads that a workgroup takes: neighbours that share keys and values.
fn heads_together(shape: &AttentionShape) -> u32 {
    let shared = shape.n_head / shape.n_kv.max(1);
    [4, 2].into_iter().find(|g| shared.is_multiple_of(*g)).unwrap_or(1)
}

/// Threads of one position's score: a tile has so many times fewer positions than threads. The shader's `TEAM`.
const TEAM: u32 = 4;

/// Threads: every four dimensions of a value need a thread.
fn threads(shape: &AttentionShape) -> u32 {
    (shape.head_dim / 4).next_power_of_two().max(2 * THREADS)
}

/// How many splits `t_rows` rows are worth: so many that workgroups fill a large device. 1: none.
pub fn attention_splits(shape: &AttentionShape, t_rows: u32) -> u32 {
    let groups = (u64::from(t_rows) * u64::from(shape.n_head / heads_together(shape))).max(1);
    (u64::from(DECODE_GROUPS) / groups).clamp(1, DECODE_SPLITS.into()) as u32
}

#[allow(clippy::too_many_arguments, reason = "one place that makes both forms")]
fn rows_dispatch<'a>(
    shape: AttentionShape,
    t_rows: u32,
    splits: u32,
    pages: Pages<'a>,
    q: BufferSlice<'a>,
    out: BufferSlice<'a>,
    tops: Option<BufferSlice<'a>>,
) -> Result<Dispatch<'a>> {
    shape.check(t_rows, pages, q)?;
    let together = heads_together(&shape);
    let Ok(groups) = u32::try_from(u64::from(t_rows) * u64::from(shape.n_head / together) * u64::from(splits)) else {
        bail!(InvalidArgument, "attention: {t_rows} rows of {shape:?} in {splits} splits");
    };
    let params = DecodeParams {
        groups,
        n_head: shape.n_head,
        n_kv: shape.n_kv,
        block_tokens: KV_BLOCK_TOKENS,
        table_stride: pages.table_stride,
        window: shape.window,
        splits,
        scale: shape.scale,
        softcap: shape.softcap,
    };
    let mut d = Dispatch::new(&ATTENTION_DECODE, &params, linear_grid(groups.into()))
        .constant("WG", threads(&shape))
        .constant("HEAD_DIM", shape.head_dim)
        .constant("G", together)
        .flag("SPLIT", tops.is_some())
        .slot("kv", pages.kv_type.fragment())
        .bind("q", q)
        .bind("rows", pages.rows)
        .bind("tables", pages.tables)
        .bind("y", out);
    if let Some(tops) = tops {
        d = d.bind("tops", tops);
    }
    Ok(d.bind("kv_k", pages.k).bind("kv_v", pages.v))
}

/// Attention of `t_rows` rows, each at its own slot and position: `q` and `y` are dense `[t_rows, n_head, head_dim]`.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree.
pub fn attention_decode<'a>(
    shape: AttentionShape,
    t_rows: u32,
    pages: Pages<'a>,
    q: BufferSlice<'a>,
    y: BufferSlice<'a>,
) -> Result<Dispatch<'a>> {
    shape.check_out(t_rows, y)?;
    rows_dispatch(shape, t_rows, 1, pages, q, y, None)
}

/// [`attention_decode`] split over the length into at most `splits` parts, so that few rows use many workgroups, and combined: two
/// dispatches, to run in this order. With `bytes`, `y` is written there as well, `t_rows` rows of all heads.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree, or heads are not whole blocks of bytes.
#[allow(clippy::too_many_arguments, reason = "an operation's operands")]
pub fn attention_split<'a>(
    shape: AttentionShape,
    t_rows: u32,
    splits: u32,
    pages: Pages<'a>,
    q: BufferSlice<'a>,
    parts: AttentionParts<'a>,
    y: BufferSlice<'a>,
    bytes: Option<ByteRows<'a>>,
) -> Result<[Dispatch<'a>; 2]> {
    shape.check_out(t_rows, y)?;
    let [sums, tops] = AttentionParts::sizes(&shape, t_rows, splits);
    if splits == 0 || splits > DECODE_SPLITS || parts.sums.size < sums || parts.tops.size < tops {
        bail!(
            InvalidArgument,
            "attention: {splits} splits (at most {DECODE_SPLITS}) of {t_rows} rows need {sums} and {tops} bytes, not {} and {}",
            parts.sums.size,
            parts.tops.size
        );
    }
    let rows = rows_dispatch(shape, t_rows, splits, pages, q, parts.sums, Some(parts.tops))?;
    let groups = t_rows * shape.n_head;
    let params = CombineParams {
        groups,
        n_head: shape.n_head,
        d4: shape.head_dim / 4,
        window: shape.window,
        splits,
        tile: threads(&shape) / TEAM,
    };
    let mut combine = Dispatch::new(&ATTENTION_COMBINE, &params, linear_grid(groups.into()))
        .constant("WG", threads(&shape))
        .bind("rows", pages.rows)
        .bind("sums", parts.sums)
        .bind("tops", parts.tops)
        .bind("y", y);
    if let Some(bytes) = bytes {
        bytes.check("attention: bytes", t_rows, shape.n_head * shape.head_dim)?;
        combine = bytes.bind_out(combine);
    }
    Ok([rows, combine])
}
