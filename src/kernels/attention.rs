//! Attention over the paged cache: shapes, and runs of rows of one sequence (prefill).

use crate::error::{Result, bail};
use crate::gpu::{BufferSlice, Dispatch, Features, Forms, Gpu, Kernel, linear_grid, params};
use crate::kernels::constants::{ATTENTION_ROWS, COOP_ATTENTION_ROWS, KV_BLOCK_TOKENS};
use crate::kernels::{KvType, Pages};

pub(super) static ATTENTION_PREFILL: Kernel = Kernel {
    name: "attention_prefill",
    source: include_str!("../../shaders/attention_prefill.wgsl"),
    flags: &["SINKS"],
    constants: &["HEAD_DIM", "KT"],
    slots: &["kv"],
    forms: Forms::ALL,
    params: AttentionParams::FIELDS,
};

pub(super) static ATTENTION_COOP: Kernel = Kernel {
    name: "attention_coop",
    source: include_str!("../../shaders/attention_coop.wgsl"),
    flags: &["SINKS"],
    constants: &["HEAD_DIM"],
    slots: &["kv"],
    // Who keeps keys and values in f32 wants them so.
    forms: Forms { exists: |v| v.fragment("kv") != Some("kv/f32"), ..Forms::ALL },
    params: AttentionParams::FIELDS,
};

params!(AttentionParams {
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
    /// The same attention with one more logit for each query head, `sinks[head]`, that takes part in the softmax as it is and has no value. Of
    /// split attention, this goes with the dispatch that combines.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] if there are too few of them.
    pub fn with_sinks<'a>(&self, d: Dispatch<'a>, sinks: BufferSlice<'a>) -> Result<Dispatch<'a>> {
        if sinks.size < u64::from(self.n_head) * 4 {
            bail!(InvalidArgument, "attention: {} bytes of sinks for {} heads", sinks.size, self.n_head);
        }
        Ok(d.flag("SINKS", true).bind("sinks", sinks))
    }

    /// Fails unless the shape is one that kernels know, and queries and row data are there.
    pub(super) fn check(&self, t_rows: u32, pages: Pages<'_>, q: BufferSlice<'_>) -> Result<()> {
        let heads = self.n_kv > 0 && self.n_head.is_multiple_of(self.n_kv) && self.head_dim > 0;
        if !heads || !self.head_dim.is_multiple_of(4) || self.head_dim > 1024 {
            bail!(InvalidArgument, "attention: {self:?}");
        }
        if q.size < self.bytes(t_rows) || pages.rows.size < u64::from(t_rows) * 8 {
            bail!(InvalidArgument, "attention: {t_rows} rows, {} bytes of q, {} of rows", q.size, pages.rows.size);
        }
        pages.kv_type.check(self.head_dim)
    }

    /// Fails unless the result has room.
    pub(super) fn check_out(&self, t_rows: u32, y: BufferSlice<'_>) -> Result<()> {
        if y.size < self.bytes(t_rows) {
            bail!(InvalidArgument, "attention: {t_rows} rows with {} bytes of y", y.size);
        }
        Ok(())
    }

    /// A dispatch of one of the kernels for runs of rows.
    fn run_of_rows<'a>(
        &self,
        kernel: &'static Kernel,
        groups: u32,
        t_rows: u32,
        pages: Pages<'a>,
        q: BufferSlice<'a>,
        y: BufferSlice<'a>,
    ) -> Result<Dispatch<'a>> {
        self.check(t_rows, pages, q)?;
        self.check_out(t_rows, y)?;
        let params = AttentionParams {
            groups,
            t_rows,
            n_head: self.n_head,
            n_kv: self.n_kv,
            block_tokens: KV_BLOCK_TOKENS,
            table_stride: pages.table_stride,
            window: self.window,
            scale: self.scale,
            softcap: self.softcap,
        };
        Ok(Dispatch::new(kernel, &params, linear_grid(groups.into()))
            .constant("HEAD_DIM", self.head_dim)
            .slot("kv", pages.kv_type.fragment())
            .bind("q", q)
            .bind("rows", pages.rows)
            .bind("tables", pages.tables)
            .bind("y", y)
            .bind("kv_k", pages.k)
            .bind("kv_v", pages.v))
    }

    /// Bytes of q, and of y.
    fn bytes(&self, t_rows: u32) -> u64 {
        u64::from(t_rows) * u64::from(self.n_head) * u64::from(self.head_dim) * 4
    }
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

/// True if [`attention_prefill`] can run heads of this size; [`crate::kernels::attention_decode`] runs any.
pub fn attention_prefill_fits(gpu: &Gpu, head_dim: u32) -> bool {
    key_tile(gpu, head_dim).is_some()
}

/// Attention of `t_rows` rows of one sequence at consecutive positions; else as [`crate::kernels::attention_decode`].
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree, or the head does not fit ([`attention_prefill_fits`]).
pub fn attention_prefill<'a>(
    gpu: &Gpu,
    shape: AttentionShape,
    t_rows: u32,
    pages: Pages<'a>,
    q: BufferSlice<'a>,
    y: BufferSlice<'a>,
) -> Result<Dispatch<'a>> {
    let Some(kt) = key_tile(gpu, shape.head_dim) else {
        bail!(InvalidArgument, "attention: heads of {} do not fit the tiled kernel", shape.head_dim);
    };
    let groups = t_rows.div_ceil(ATTENTION_ROWS) * shape.n_head;
    Ok(shape.run_of_rows(&ATTENTION_PREFILL, groups, t_rows, pages, q, y)?.constant("KT", kt))
}

/// Largest head of the cooperative kernel.
const COOP_MAX_HEAD: u32 = 128;

/// True if [`attention_coop`] can run heads of this size, stored so, on a device with these abilities.
pub fn attention_coop_fits(features: Features, head_dim: u32, kv_type: KvType) -> bool {
    features.cooperative_matrix && head_dim.is_multiple_of(16) && head_dim <= COOP_MAX_HEAD && kv_type != KvType::F32
}

/// As [`attention_prefill`], by cooperative matrices: queries, keys, weights and values are rounded to f16.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree, or the device, the head or its storage is not fit ([`attention_coop_fits`]).
pub fn attention_coop<'a>(
    gpu: &Gpu,
    shape: AttentionShape,
    t_rows: u32,
    pages: Pages<'a>,
    q: BufferSlice<'a>,
    y: BufferSlice<'a>,
) -> Result<Dispatch<'a>> {
    if !attention_coop_fits(gpu.features(), shape.head_dim, pages.kv_type) {
        bail!(InvalidArgument, "attention: heads of {} in {} by matrices", shape.head_dim, pages.kv_type.name());
    }
    let groups = t_rows.div_ceil(COOP_ATTENTION_ROWS) * shape.n_head;
    shape.run_of_rows(&ATTENTION_COOP, groups, t_rows, pages, q, y)
}
