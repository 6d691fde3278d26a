//! Attention over the paged cache: single rows (decode), and runs of rows of one sequence (prefill).

use crate::error::{Result, bail};
use crate::gpu::{BufferSlice, Dispatch, Gpu, Kernel, linear_grid, params};
use crate::kernels::KvType;
use crate::kernels::constants::{ATTENTION_ROWS, KV_BLOCK_TOKENS, THREADS};

pub(super) static ATTENTION_DECODE: Kernel = Kernel {
    name: "attention_decode",
    source: include_str!("../../shaders/attention_decode.wgsl"),
    flags: &[],
    constants: &["WG", "HEAD_DIM"],
    slots: &["kv"],
    params: DecodeParams::FIELDS,
};

pub(super) static ATTENTION_PREFILL: Kernel = Kernel {
    name: "attention_prefill",
    source: include_str!("../../shaders/attention_prefill.wgsl"),
    flags: &[],
    constants: &["HEAD_DIM", "KT"],
    slots: &["kv"],
    params: PrefillParams::FIELDS,
};

params!(DecodeParams {
    groups: u32,
    n_head: u32,
    n_kv: u32,
    block_tokens: u32,
    table_stride: u32,
    window: u32,
    scale: f32,
    softcap: f32,
});
params!(PrefillParams {
    groups: u32,
    t_rows: u32,
    n_head: u32,
    n_kv: u32,
    block_tokens: u32,
    table_stride: u32,
    window: u32,
    scale: f32,
    softcap: f32,
});

/// One layer's attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    /// Query heads, a multiple of `n_kv`.
    pub n_head: u32,
    /// Key/value heads.
    pub n_kv: u32,
    /// Dimensions of a head, a multiple of 4.
    pub head_dim: u32,
    /// Positions that a query sees, itself included; 0 = all.
    pub window: u32,
    /// Factor on `q · k`.
    pub scale: f32,
    /// `s = cap · tanh(s / cap)` before the softmax; 0 = off.
    pub softcap: f32,
}

impl AttentionShape {
    fn check(&self, t_rows: u32, q: BufferSlice<'_>, rows: BufferSlice<'_>, y: BufferSlice<'_>) -> Result<()> {
        let bytes = u64::from(t_rows) * u64::from(self.n_head) * u64::from(self.head_dim) * 4;
        let heads = self.n_kv > 0 && self.n_head.is_multiple_of(self.n_kv) && self.head_dim > 0;
        if !heads || !self.head_dim.is_multiple_of(4) || self.head_dim > 1024 {
            bail!(InvalidArgument, "attention: {self:?}");
        }
        if q.size < bytes || y.size < bytes || rows.size < u64::from(t_rows) * 8 {
            bail!(InvalidArgument, "attention: {t_rows} rows with {} bytes of q, {} of y", q.size, y.size);
        }
        Ok(())
    }
}

/// Attention of `t_rows` rows, each at its own slot and position.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree.
#[expect(clippy::too_many_arguments, reason = "each buffer is a different thing; a struct would only rename them")]
pub fn attention_decode<'a>(
    shape: AttentionShape,
    kv_type: KvType,
    t_rows: u32,
    q: BufferSlice<'a>,
    rows: BufferSlice<'a>,
    tables: BufferSlice<'a>,
    table_stride: u32,
    kv: (BufferSlice<'a>, BufferSlice<'a>),
    y: BufferSlice<'a>,
) -> Result<Dispatch<'a>> {
    shape.check(t_rows, q, rows, y)?;
    let groups = t_rows * shape.n_head;
    let params = DecodeParams {
        groups,
        n_head: shape.n_head,
        n_kv: shape.n_kv,
        block_tokens: KV_BLOCK_TOKENS,
        table_stride,
        window: shape.window,
        scale: shape.scale,
        softcap: shape.softcap,
    };
    // Every four dimensions of a value need a thread.
    let threads = (shape.head_dim / 4).next_power_of_two().max(THREADS);
    Ok(Dispatch::new(&ATTENTION_DECODE, &params, linear_grid(groups.into()))
        .constant("WG", threads)
        .constant("HEAD_DIM", shape.head_dim)
        .slot("kv", kv_type.fragment())
        .bind("q", q)
        .bind("rows", rows)
        .bind("tables", tables)
        .bind("y", y)
        .bind("kv_k", kv.0)
        .bind("kv_v", kv.1))
}

/// Largest head of the tiled kernel: 16 times `MAX_PIECES` of its shader.
const PREFILL_MAX_HEAD: u32 = 256;

/// Tile of keys that fits this device's workgroup memory beside the queries, if any.
fn key_tile(gpu: &Gpu, head_dim: u32) -> Option<u32> {
    if !head_dim.is_multiple_of(16) || head_dim > PREFILL_MAX_HEAD {
        return None;
    }
    [32, 16, 8].into_iter().find(|kt| {
        let floats = (ATTENTION_ROWS + kt) * head_dim + ATTENTION_ROWS * kt;
        floats * 4 <= gpu.workgroup_bytes()
    })
}

/// True if [`attention_prefill`] can run heads of this size; [`attention_decode`] runs any.
pub fn attention_prefill_fits(gpu: &Gpu, head_dim: u32) -> bool {
    key_tile(gpu, head_dim).is_some()
}

/// Attention of `t_rows` rows of one sequence at consecutive positions.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree, or the head does not fit ([`attention_prefill_fits`]).
#[expect(clippy::too_many_arguments, reason = "each buffer is a different thing; a struct would only rename them")]
pub fn attention_prefill<'a>(
    gpu: &Gpu,
    shape: AttentionShape,
    kv_type: KvType,
    t_rows: u32,
    q: BufferSlice<'a>,
    rows: BufferSlice<'a>,
    tables: BufferSlice<'a>,
    table_stride: u32,
    kv: (BufferSlice<'a>, BufferSlice<'a>),
    y: BufferSlice<'a>,
) -> Result<Dispatch<'a>> {
    shape.check(t_rows, q, rows, y)?;
    let Some(kt) = key_tile(gpu, shape.head_dim) else {
        bail!(InvalidArgument, "attention: heads of {} do not fit the tiled kernel", shape.head_dim);
    };
    let groups = t_rows.div_ceil(ATTENTION_ROWS) * shape.n_head;
    let params = PrefillParams {
        groups,
        t_rows,
        n_head: shape.n_head,
        n_kv: shape.n_kv,
        block_tokens: KV_BLOCK_TOKENS,
        table_stride,
        window: shape.window,
        scale: shape.scale,
        softcap: shape.softcap,
    };
    Ok(Dispatch::new(&ATTENTION_PREFILL, &params, linear_grid(groups.into()))
        .constant("HEAD_DIM", shape.head_dim)
        .constant("KT", kt)
        .slot("kv", kv_type.fragment())
        .bind("q", q)
        .bind("rows", rows)
        .bind("tables", tables)
        .bind("y", y)
        .bind("kv_k", kv.0)
        .bind("kv_v", kv.1))
}
