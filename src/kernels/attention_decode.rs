//! Attention of single rows over the paged cache, each at its own slot and position: whole, or split over the length and combined.

use crate::error::{Result, bail};
use crate::gpu::{BufferSlice, Dispatch, Forms, Gpu, Grid, Kernel, Variant, params};
use crate::kernels::attention::AttentionShape;
use crate::kernels::byte_rows::ByteRows;
use crate::kernels::constants::{DECODE_GROUPS, DECODE_SPLITS, KV_BLOCK_TOKENS, THREADS};
use crate::kernels::{KvType, Matrix, Pages, RopePairs};

pub(super) static ATTENTION_DECODE: Kernel = Kernel {
    name: "attention_decode",
    source: include_str!("../../shaders/attention_decode.wgsl"),
    flags: &["SPLIT", "SINKS", "FRESH", "NEOX", "QK_NORM", "SHUFFLE"],
    constants: &["WG", "HEAD_DIM", "G", "LANES", "AT_ONCE", "LEAST_SUBGROUP", "SHARED", "BLOCK", "N_ROT"],
    slots: &["kv"],
    forms: Forms { paths: &[("WG", &[2 * THREADS, 4 * THREADS]), ("G", &[1, 2, 4])], exists: decode_exists },
    params: DecodeParams::FIELDS,
};

pub(super) static ATTENTION_COMBINE: Kernel = Kernel {
    name: "attention_combine",
    source: include_str!("../../shaders/attention_combine.wgsl"),
    flags: &["BYTES", "SINKS"],
    constants: &["WG", "HEAD_DIM", "SPAN", "TILE", "LEAST_SUBGROUP"],
    slots: &[],
    forms: Forms::ALL,
    params: CombineParams::FIELDS,
};

/// Sinks of split attention are for what combines it; only what comes as the product made it is normalised and rotated; large workgroups are for
/// heads beyond those that teams of a subgroup take.
fn decode_exists(v: &Variant) -> bool {
    let large = v.constant("WG") != Some(2 * THREADS);
    !(v.has("SPLIT") && v.has("SINKS"))
        && (v.has("FRESH") || !(v.has("NEOX") || v.has("QK_NORM")))
        && !(v.has("SHUFFLE") && large)
}

params!(DecodeParams {
    n_head: u32,
    n_kv: u32,
    table_stride: u32,
    window: u32,
    splits: u32,
    scale: f32,
    softcap: f32,
    x_stride4: u32,
    x_offset4: u32,
    eps: f32,
});
params!(CombineParams { n_head: u32, window: u32, splits: u32 });

/// Rows of q, k and v as the product made them, to be rotated, and k and v kept, by the way.
#[derive(Debug, Clone, Copy)]
pub struct Fresh<'a> {
    /// `[q heads, k heads, v heads]` in each row. Rows are of different sequences.
    pub qkv: Matrix<'a>,
    /// An [`crate::kernels::AngleTable`]; not looked at where nothing is rotated.
    pub angles: BufferSlice<'a>,
    /// Dimensions that are rotated, from the first on: an even number.
    pub n_rot: u32,
    /// Pairing.
    pub pairs: RopePairs,
    /// Norm of the heads of q and k by their root mean square: weights of each, and what is added to the mean square.
    pub norm: Option<(BufferSlice<'a>, BufferSlice<'a>, f32)>,
}

/// Queries of attention.
#[derive(Debug, Clone, Copy)]
pub enum Queries<'a> {
    /// Dense `[rows, n_head, head_dim]`; keys and values are in their pages.
    Ready(BufferSlice<'a>),
    /// Not yet rotated, and the newest keys and values beside them.
    Fresh(Fresh<'a>),
}

impl<'a> From<BufferSlice<'a>> for Queries<'a> {
    fn from(q: BufferSlice<'a>) -> Self {
        Self::Ready(q)
    }
}

impl<'a> Queries<'a> {
    /// Fails unless they are `t_rows` rows of this shape.
    fn check(&self, shape: &AttentionShape, t_rows: u32, pages: Pages<'_>) -> Result<()> {
        let f = match self {
            Self::Ready(q) => return shape.check(t_rows, pages, *q),
            Self::Fresh(f) => f,
        };
        shape.check_heads(t_rows, pages)?;
        f.qkv.check_vec4("attention: qkv")?;
        let width = (shape.n_head + 2 * shape.n_kv) * shape.head_dim;
        let turns = f.pairs != RopePairs::None;
        let rotated = !turns || (f.n_rot <= shape.head_dim && f.n_rot.is_multiple_of(2));
        let weights = f.norm.is_none_or(|(q, k, _)| q.size.min(k.size) >= u64::from(shape.head_dim) * 4);
        if f.qkv.rows != t_rows || f.qkv.cols != width || !rotated || !weights {
            bail!(
                InvalidArgument,
                "attention: {t_rows} rows of {shape:?} from {} x {}, {} dimensions rotated",
                f.qkv.rows,
                f.qkv.cols,
                f.n_rot
            );
        }
        Ok(())
    }
}

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
pub(super) fn heads_together(shape: &AttentionShape) -> u32 {
    let shared = shape.n_head / shape.n_kv.max(1);
    [4, 2].into_iter().find(|g| shared.is_multiple_of(*g)).unwrap_or(1)
}

/// A tile has so many times fewer positions than threads. The shader's `ATTENTION_TEAM`.
const TEAM: u32 = 4;

/// Threads: every four dimensions of a value need a thread.
fn threads(shape: &AttentionShape) -> u32 {
    (shape.head_dim / 4).next_power_of_two().max(2 * THREADS)
}

/// Threads that put the splits of a head together: so many groups of those that a value needs.
fn combine_threads(gpu: &Gpu, shape: &AttentionShape) -> u32 {
    let value = (shape.head_dim / 4).next_power_of_two();
    (16 * value).clamp(2 * THREADS, 8 * THREADS).min(gpu.max_workgroup_threads()).max(value)
}

/// A grid of three dimensions: a shader finds its place in it without a division.
fn rows_grid(x: u32, y: u32, z: u32) -> Result<Grid> {
    if x.max(y).max(z) > 65_535 {
        bail!(InvalidArgument, "attention: {x} x {y} x {z} workgroups; a device has 65535 in each direction");
    }
    Ok(Grid::Direct([x, y, z]))
}

/// Threads of a team of `lib/attention_lanes.wgsl`, where subgroups are used at all.
fn team_lanes(gpu: &Gpu) -> Option<u32> {
    let lanes = if gpu.features().subgroups { least_subgroup(gpu).min(16) } else { 16 };
    matches!(lanes, 4 | 8 | 16).then_some(lanes)
}

/// Dimensions of the largest head that teams of a subgroup attend to; 0 if there are none.
pub fn attention_lanes_head(gpu: &Gpu) -> u32 {
    16 * team_lanes(gpu).unwrap_or(0)
}

/// Threads of a team, if heads of this size are for those.
fn lanes(gpu: &Gpu, shape: &AttentionShape) -> Option<u32> {
    team_lanes(gpu).filter(|_| shape.head_dim <= attention_lanes_head(gpu))
}

/// A size that no subgroup of the device is below, and that a workgroup is a multiple of.
fn least_subgroup(gpu: &Gpu) -> u32 {
    gpu.adapter().least_subgroup().min(2 * THREADS)
}

/// Vectors of four numbers in which teams of `lanes` threads put a head together.
pub(super) fn joined_vectors(threads: u32, head_dim: u32, lanes: u32, subgroup: u32) -> u32 {
    threads / subgroup * (head_dim / 4).next_multiple_of(lanes)
}

/// Workgroup memory for them.
fn joined_bytes(shape: &AttentionShape, lanes: u32, subgroup: u32) -> u32 {
    joined_vectors(threads(shape), shape.head_dim, lanes, subgroup) * 16
}

/// Heads that they put together at a time: as many as fit half of the memory that every device has.
fn at_once(shape: &AttentionShape, lanes: u32, subgroup: u32) -> u32 {
    let fits = |n: &u32| n * joined_bytes(shape, lanes, subgroup) <= 8 << 10;
    [4, 2].into_iter().filter(|n| *n <= heads_together(shape)).find(fits).unwrap_or(1)
}

/// True if workgroup memory has room for [`Queries::Fresh`] of this shape; [`crate::kernels::rope`] and [`Queries::Ready`] do the same in two
/// dispatches.
pub fn attention_fresh_fits(gpu: &Gpu, shape: &AttentionShape, kv_type: KvType) -> bool {
    let (together, head) = (heads_together(shape), shape.head_dim);
    // A key and a value as they come back from their storage.
    let kept = match kv_type {
        KvType::F32 => 0,
        KvType::F16 | KvType::Q8 => 4 * head,
    };
    let squares = 17 * (together + 1) * 4;
    let fresh = ((together + 2) * head * 4).max(32 * threads(shape));
    let scores = match lanes(gpu, shape).filter(|_| gpu.features().subgroups) {
        Some(lanes) => {
            joined_bytes(shape, lanes, least_subgroup(gpu)) * at_once(shape, lanes, least_subgroup(gpu)) + 1024
        }
        None => threads(shape) * 16 + 2 * (threads(shape) / TEAM) * 16,
    };
    together * head * 4 + fresh + kept + squares + scores <= gpu.workgroup_bytes()
}

/// How many splits `t_rows` rows are worth: so many that workgroups fill the device. 1: none.
pub fn attention_splits(gpu: &Gpu, shape: &AttentionShape, t_rows: u32) -> u32 {
    let groups = (u64::from(t_rows) * u64::from(shape.n_head / heads_together(shape))).max(1);
    (u64::from(gpu.filling(DECODE_GROUPS)) / groups).clamp(1, DECODE_SPLITS.into()) as u32
}

#[allow(clippy::too_many_arguments, reason = "one place that makes both forms")]
fn rows_dispatch<'a>(
    gpu: &Gpu,
    shape: AttentionShape,
    t_rows: u32,
    splits: u32,
    pages: Pages<'a>,
    q: Queries<'a>,
    out: BufferSlice<'a>,
    tops: Option<BufferSlice<'a>>,
) -> Result<Dispatch<'a>> {
    q.check(&shape, t_rows, pages)?;
    let fresh = match q {
        Queries::Ready(_) => None,
        Queries::Fresh(f) => Some(f),
    };
    let together = heads_together(&shape);
    let grid = rows_grid(splits, shape.n_head / together, t_rows)?;
    let params = DecodeParams {
        n_head: shape.n_head,
        n_kv: shape.n_kv,
        table_stride: pages.table_stride,
        window: shape.window,
        splits,
        scale: shape.scale,
        softcap: shape.softcap,
        x_stride4: fresh.map_or(0, |f| f.qkv.stride / 4),
        x_offset4: fresh.map_or(0, |f| f.qkv.offset / 4),
        eps: fresh.and_then(|f| f.norm).map_or(0.0, |n| n.2),
    };
    let mut d = Dispatch::new(&ATTENTION_DECODE, &params, grid)
        .constant("WG", threads(&shape))
        .constant("HEAD_DIM", shape.head_dim)
        .constant("G", together)
        .constant("SHARED", shape.n_head / shape.n_kv)
        .constant("BLOCK", KV_BLOCK_TOKENS)
        .constant("N_ROT", fresh.filter(|f| f.pairs != RopePairs::None).map_or(0, |f| f.n_rot))
        .flag("SPLIT", tops.is_some())
        .slot("kv", pages.kv_type.fragment());
    if let Some(lanes) = lanes(gpu, &shape) {
        d = d
            .flag("SHUFFLE", true)
            .constant("LANES", lanes)
            .constant("AT_ONCE", at_once(&shape, lanes, least_subgroup(gpu)))
            .constant("LEAST_SUBGROUP", least_subgroup(gpu));
    }
    d = match q {
        Queries::Ready(q) => d.bind("q", q),
        Queries::Fresh(f) => {
            let d = d.flag("FRESH", true).flag("NEOX", f.pairs == RopePairs::Halves).flag("QK_NORM", f.norm.is_some());
            let turns = f.pairs != RopePairs::None;
            let d = d.bind("qkv", f.qkv.data).bind("angles", if turns { f.angles } else { f.qkv.data });
            match f.norm {
                Some((q, k, _)) => d.bind("q_w", q).bind("k_w", k),
                None => d,
            }
        }
    };
    d = d.bind("rows", pages.rows).bind("tables", pages.tables).bind("y", out);
    if let Some(tops) = tops {
        d = d.bind("tops", tops);
    }
    Ok(d.bind("kv_k", pages.k).bind("kv_v", pages.v))
}

/// Attention of `t_rows` rows, each at its own slot and position: `y` is dense `[t_rows, n_head, head_dim]`.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree, or there are more than 65,535 rows.
pub fn attention_decode<'a>(
    gpu: &Gpu,
    shape: AttentionShape,
    t_rows: u32,
    pages: Pages<'a>,
    q: impl Into<Queries<'a>>,
    y: BufferSlice<'a>,
) -> Result<Dispatch<'a>> {
    shape.check_out(t_rows, y)?;
    rows_dispatch(gpu, shape, t_rows, 1, pages, q.into(), y, None)
}

/// [`attention_decode`] split over the length into at most `splits` parts, so that few rows use many workgroups, and combined: two
/// dispatches, to run in this order. With `bytes`, `y` is written there as well, `t_rows` rows of all heads.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree, or heads are not whole blocks of bytes.
#[allow(clippy::too_many_arguments, reason = "an operation's operands")]
pub fn attention_split<'a>(
    gpu: &Gpu,
    shape: AttentionShape,
    t_rows: u32,
    splits: u32,
    pages: Pages<'a>,
    q: impl Into<Queries<'a>>,
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
    let rows = rows_dispatch(gpu, shape, t_rows, splits, pages, q.into(), parts.sums, Some(parts.tops))?;
    let params = CombineParams { n_head: shape.n_head, window: shape.window, splits };
    // Stages of a chain have as many threads, so a workgroup makes a part of a head: a block, or several if threads are left. By the splits alone,
    // not by the rows.
    let vectors = shape.head_dim / 4;
    let (wg, span) = match gpu.features().chains && vectors.is_multiple_of(8) {
        true => {
            let fits = |s: &u32| vectors.is_multiple_of(*s) && threads(&shape) / s >= splits;
            (threads(&shape), [32, 16].into_iter().find(fits).unwrap_or(8))
        }
        false => (combine_threads(gpu, &shape), vectors),
    };
    let mut combine =
        Dispatch::new(&ATTENTION_COMBINE, &params, rows_grid(shape.n_head * (vectors / span), t_rows, 1)?)
            .constant("WG", wg)
            .constant("HEAD_DIM", shape.head_dim)
            .constant("SPAN", span)
            .constant("TILE", threads(&shape) / TEAM)
            .constant("LEAST_SUBGROUP", least_subgroup(gpu))
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
