//! A layer of a decode step in one dispatch: attention and a gated feed-forward block, before both a norm by the root mean square.
//!
//! All workgroups of the dispatch must run at the same time, since they wait for each other: [`decode_capacity`] finds out how many do.
//! Where that goes wrong all the same (a device shared with something that keeps workgroups waiting), the waits end by themselves and the
//! dispatch says so; its results are void then.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::error::{Result, bail};
use crate::gpu::{BufferSlice, Dispatch, Forms, Gpu, Grid, Kernel, Variant, params};
use crate::kernels::activate::Activation;
use crate::kernels::attention::AttentionShape;
use crate::kernels::attention_decode::heads_together;
use crate::kernels::constants::{DECODE_SPLITS, KV_BLOCK_TOKENS, LAYER_TEAM, LAYER_THREADS};
use crate::kernels::weight::{Weight, WeightPart};
use crate::kernels::{KvType, Matrix, Pages, RopePairs, weight_fragment};
use crate::quant::{FORMATS, GPU_BLOCK, by_name};

pub(super) static DECODE_LAYER: Kernel = Kernel {
    name: "decode_layer",
    source: include_str!("../../shaders/decode_layer.wgsl"),
    flags: &["FLOATS"],
    constants: &["WG", "TEAM", "HEAD_DIM", "G", "K_MOST", "ATTENTION_TEAM"],
    slots: &["kv", "first", "second", "out", "up", "down"],
    forms: Forms { paths: &[], exists: one_kind_of_input },
    params: LayerParams::FIELDS,
};

/// Slots that hold weights.
const WEIGHTS: [&str; 5] = ["first", "second", "out", "up", "down"];

/// An input is staged as bytes or as numbers, for all weights of a layer.
fn one_kind_of_input(v: &Variant) -> bool {
    let mut bytes = WEIGHTS.iter().filter_map(|slot| Some(by_name(v.fragment(slot)?)?.has_bytes()));
    bytes.all(|b| b != v.has("FLOATS"))
}

params!(LayerParams {
    tag: u32,
    patience: u32,
    forms: u32,
    n_embd: u32,
    n_first: u32,
    n_second: u32,
    n_ff: u32,
    n_head: u32,
    n_kv: u32,
    parts: u32,
    block_tokens: u32,
    table_stride: u32,
    window: u32,
    n_rot: u32,
    scale: f32,
    softcap: f32,
    eps: f32,
});

// Bits of `forms`, as in the shader.
const CAPACITY: u32 = 1;
const GELU: u32 = 2;
const HALVES: u32 = 4;
const HEAD_NORMS: u32 = 8;
const SINKS: u32 = 16;
const BIAS: u32 = 32;

/// Looks before a wait is given up: each takes the better part of a microsecond, so this is about a fifth of a second, more than a frame that
/// keeps the device busy and less than after what time systems reset a device.
const PATIENCE: u32 = 1 << 18;
/// The same for counting workgroups.
const CAPACITY_PATIENCE: u32 = 1 << 13;
/// Workgroups that are started to find out how many run at once.
const CAPACITY_GROUPS: u32 = 4096;
/// Tags in use: a word has 8 bits for them, and 0 is what a new buffer holds.
const TAGS: u32 = 254;

/// Layers that take turns in one buffer of exchanged words: neighbours, the last and the first among them, must have different tags.
pub const LAYER_TURNS: std::ops::RangeInclusive<usize> = 2..=TAGS as usize;

/// A layer's weights and what its operations are.
#[derive(Debug, Clone, Copy)]
pub struct LayerOperands<'a> {
    /// Width of the residual stream.
    pub n_embd: u32,
    /// Attention.
    pub shape: AttentionShape,
    /// Storage of keys and values.
    pub kv_type: KvType,
    /// q, k and v.
    pub qkv: &'a Weight,
    /// Attention's output.
    pub out: &'a Weight,
    /// Gate over up.
    pub up: &'a Weight,
    /// The last product.
    pub down: &'a Weight,
    /// Of the gate.
    pub activation: Activation,
}

/// What one layer reads and writes beside its weights.
#[derive(Debug, Clone, Copy)]
pub struct LayerStep<'a> {
    /// Place of the layer, from 0.
    pub index: u32,
    /// The residual stream, one row.
    pub x: Matrix<'a>,
    /// Weights of both norms.
    pub norms: [BufferSlice<'a>; 2],
    /// ε of all norms.
    pub eps: f32,
    /// Weights of the norms of q's and k's heads.
    pub head_norms: Option<[BufferSlice<'a>; 2]>,
    /// Which dimensions turn together, how many, and their angles.
    pub rotation: Option<(RopePairs, u32, BufferSlice<'a>)>,
    /// A logit for each query head that has no value.
    pub sinks: Option<BufferSlice<'a>>,
    /// The cache; `rows` has the slot and position of the step.
    pub pages: Pages<'a>,
    /// Words that workgroups exchange: [`LayerOperands::mail_bytes`].
    pub mail: BufferSlice<'a>,
    /// See [`SYNC_BYTES`].
    pub sync: BufferSlice<'a>,
    /// Workgroups: not more than run at once.
    pub groups: u32,
}

/// Bytes of the buffer that says how it went: the first word counts the waits that were given up, the fourth is what [`decode_capacity`] found.
pub const SYNC_BYTES: u64 = 16;

/// The planes' variables by slot: `w_quants_up`.
fn binding(slot: &'static str, plane: &'static str) -> Result<&'static str> {
    static NAMES: LazyLock<HashMap<(&str, &str), &'static str>> = LazyLock::new(|| {
        let planes = FORMATS.iter().flat_map(|f| f.planes).map(|p| p.name);
        let pairs = planes.flat_map(|plane| WEIGHTS.iter().map(move |&slot| (slot, plane)));
        // A few names, made once: bindings are told by static ones.
        pairs.map(|(slot, plane)| ((slot, plane), &*format!("{plane}_{slot}").leak())).collect()
    });
    match NAMES.get(&(slot, plane)) {
        Some(name) => Ok(name),
        None => bail!(Internal, "no variable of plane {plane} in slot {slot}"),
    }
}

/// The parts of q, k and v: one, or two of different formats.
fn pair(w: &Weight) -> Option<[&WeightPart; 2]> {
    match w.parts() {
        [one] => Some([one, one]),
        [first, second] => Some([first, second]),
        _ => None,
    }
}

impl<'a> LayerOperands<'a> {
    fn widest(&self) -> u32 {
        [self.n_embd, self.out.k(), self.down.k()].into_iter().fold(0, u32::max)
    }

    /// The parts in the order of [`WEIGHTS`].
    fn parts(&self) -> Option<[&'a WeightPart; 5]> {
        let one = |w: &'a Weight| match w.parts() {
            [part] => Some(part),
            _ => None,
        };
        let [first, second] = pair(self.qkv)?;
        Some([first, second, one(self.out)?, one(self.up)?, one(self.down)?])
    }

    /// Threads of a workgroup: as many as the device allows and workgroup memory has room for.
    fn threads(&self, gpu: &Gpu) -> u32 {
        let most = LAYER_THREADS.min(1 << gpu.max_workgroup_threads().max(1).ilog2());
        if self.workgroup_bytes(most) <= gpu.workgroup_bytes() { most } else { most / 2 }
    }

    /// How many parts of the positions each group of heads has, with so many workgroups.
    fn splits(&self, gpu: &Gpu, groups: u32) -> u32 {
        let together = heads_together(&self.shape);
        let room = self.threads(gpu).saturating_sub(together * self.shape.head_dim / 4) + 1;
        (groups / (self.shape.n_head / together).max(1)).clamp(1, DECODE_SPLITS.min(room))
    }

    /// Bytes of workgroup memory.
    fn workgroup_bytes(&self, wg: u32) -> u32 {
        let (d, g, floats) = (self.shape.head_dim, heads_together(&self.shape), !self.qkv.has_bytes());
        let staged = if floats { self.widest() * 4 } else { self.widest() / 32 * 44 };
        let kept = match self.kv_type {
            KvType::F32 => 0,
            KvType::F16 => 4 * d,
            KvType::Q8 => 8 * d,
        };
        let attention = g * d * 4 + wg * 16 + 2 * ATTENTION_TILE * 16 + (g + 2) * d * 4 + 16 * (g + 1) * 4 + kept;
        // Sums of a norm, and tops of parts.
        staged + attention + 1024 + DECODE_SPLITS * g * 8
    }

    /// Whether [`decode_layer`] can make this layer on this device, as far as its shape decides.
    pub fn fits(&self, gpu: &Gpu) -> bool {
        let s = &self.shape;
        let Some(parts) = self.parts() else { return false };
        let bytes = parts[0].format.has_bytes();
        let elements = |p: &&WeightPart| p.format.block_len == 1;
        let kinds = parts.iter().all(|p| p.format.has_bytes() == bytes) && (bytes || parts.iter().all(elements));
        let biases = parts[0].bias.is_some() == parts[1].bias.is_some() && parts[2..].iter().all(|p| p.bias.is_none());
        let widths = [self.n_embd, self.out.k(), self.down.k(), self.qkv.rows(), parts[0].rows];
        let whole = widths.iter().all(|w| w.is_multiple_of(GPU_BLOCK as u32));
        let (q, kv) = (s.n_head * s.head_dim, s.n_kv * s.head_dim);
        let shapes = self.qkv.k() == self.n_embd
            && self.qkv.rows() == q + 2 * kv
            && self.out.k() == q
            && self.out.rows() == self.n_embd
            && self.up.k() == self.n_embd
            && self.up.rows() == 2 * self.down.k()
            && self.down.rows() == self.n_embd;
        let wg = self.threads(gpu);
        let heads = s.head_dim.is_multiple_of(4) && wg >= 128 && heads_together(s) * s.head_dim / 4 <= wg;
        gpu.features().exchange
            && matches!(self.activation, Activation::Silu | Activation::GeluTanh)
            && kinds
            && biases
            && whole
            && shapes
            && heads
            && self.workgroup_bytes(wg) <= gpu.workgroup_bytes()
            && gpu.max_storage_bindings() >= MOST_BINDINGS
    }

    /// Bytes of exchanged words for so many workgroups.
    pub fn mail_bytes(&self, gpu: &Gpu, groups: u32) -> u64 {
        let s = &self.shape;
        let vectors = u64::from(self.qkv.rows() + self.out.k() + self.n_embd + self.down.k()) * 4;
        let parts = u64::from(s.n_head * self.splits(gpu, groups)) * u64::from(s.head_dim + 4) * 4;
        vectors + parts
    }
}

/// Positions in a tile of attention: few, so that many workgroups have one in a short text.
const ATTENTION_TILE: u32 = 32;

/// Storage buffers that a layer binds at most: five weights of three planes, and the rest.
const MOST_BINDINGS: u32 = 32;

fn forms(layer: &LayerOperands<'_>, step: &LayerStep<'_>, bias: bool) -> u32 {
    let halves = step.rotation.is_some_and(|r| r.0 == RopePairs::Halves);
    [
        (layer.activation == Activation::GeluTanh, GELU),
        (halves, HALVES),
        (step.head_norms.is_some(), HEAD_NORMS),
        (step.sinks.is_some(), SINKS),
        (bias, BIAS),
    ]
    .into_iter()
    .map(|(on, bit)| if on { bit } else { 0 })
    .sum()
}

/// `x += out(attention(norm(x)))`, then `x += down(act(gate(norm(x))) · up(norm(x)))`, for one row; the newest key and value go to their page.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if shapes disagree, or the layer does not fit ([`LayerOperands::fits`]).
pub fn decode_layer<'a>(gpu: &Gpu, layer: LayerOperands<'a>, step: LayerStep<'a>) -> Result<Dispatch<'a>> {
    let s = layer.shape;
    s.check_heads(1, step.pages)?;
    step.x.check_vec4("decode_layer: x")?;
    let Some(parts) = layer.parts().filter(|_| layer.fits(gpu)) else {
        bail!(InvalidArgument, "decode_layer: {} and its neighbours do not fit", layer.qkv.name());
    };
    let n_embd = u64::from(layer.n_embd) * 4;
    let head = u64::from(s.head_dim) * 4;
    let short = step.x.rows != 1
        || step.x.cols != layer.n_embd
        || step.x.offset != 0
        || step.norms.iter().any(|n| n.size < n_embd)
        || step.head_norms.is_some_and(|n| n.iter().any(|n| n.size < head))
        || step.sinks.is_some_and(|n| n.size < u64::from(s.n_head) * 4)
        || step.mail.size < layer.mail_bytes(gpu, step.groups)
        || step.sync.size < SYNC_BYTES;
    let n_rot = step.rotation.filter(|r| r.0 != RopePairs::None).map_or(0, |r| r.1);
    if short || n_rot > s.head_dim || !n_rot.is_multiple_of(2) || !(1..=65_535).contains(&step.groups) {
        bail!(
            InvalidArgument,
            "decode_layer: layer {} of width {} in {} workgroups with {} bytes of mail: {step:?}",
            step.index,
            layer.n_embd,
            step.groups,
            step.mail.size
        );
    }
    let two = layer.qkv.parts().len() == 2;
    let [first, second, ..] = parts;
    let params = LayerParams {
        tag: step.index % TAGS + 1,
        patience: PATIENCE,
        forms: forms(&layer, &step, first.bias.is_some()),
        n_embd: layer.n_embd,
        n_first: first.rows,
        n_second: if two { second.rows } else { 0 },
        n_ff: layer.down.k(),
        n_head: s.n_head,
        n_kv: s.n_kv,
        parts: layer.splits(gpu, step.groups),
        block_tokens: KV_BLOCK_TOKENS,
        table_stride: step.pages.table_stride,
        window: s.window,
        n_rot,
        scale: s.scale,
        softcap: s.softcap,
        eps: step.eps,
    };
    // What there is not is bound to something that there is.
    let [attn_norm, ffn_norm] = step.norms;
    let bias = |p: &'a WeightPart| p.bias.as_ref().map_or(attn_norm, |b| b.whole());
    let [q_w, k_w] = step.head_norms.unwrap_or([attn_norm; 2]);
    let mut d = Dispatch::new(&DECODE_LAYER, &params, Grid::Direct([step.groups, 1, 1]))
        .constant("WG", layer.threads(gpu))
        .constant("ATTENTION_TEAM", layer.threads(gpu) / ATTENTION_TILE)
        .constant("TEAM", LAYER_TEAM.min(gpu.adapter().subgroup_min))
        .constant("HEAD_DIM", s.head_dim)
        .constant("G", heads_together(&s))
        .constant("K_MOST", layer.widest())
        .flag("FLOATS", !first.format.has_bytes())
        .slot("kv", layer.kv_type.fragment())
        .bind("mail", step.mail)
        .bind("mail_words", step.mail)
        .bind("sync", step.sync)
        .bind("x", step.x.data)
        .bind("attn_norm", attn_norm)
        .bind("ffn_norm", ffn_norm)
        .bind("bias_first", bias(first))
        .bind("bias_second", bias(second))
        .bind("sinks", step.sinks.unwrap_or(attn_norm))
        .bind("q_w", q_w)
        .bind("k_w", k_w)
        .bind("angles", step.rotation.map_or(attn_norm, |r| r.2))
        .bind("rows", step.pages.rows)
        .bind("tables", step.pages.tables)
        .bind("kv_k", step.pages.k)
        .bind("kv_v", step.pages.v);
    for (slot, part) in WEIGHTS.into_iter().zip(parts) {
        d = d.slot(slot, weight_fragment(part.format)?);
        for (plane, slice) in part.planes() {
            d = d.bind(binding(slot, plane)?, slice);
        }
    }
    Ok(d)
}

/// A dispatch that makes nothing but finds out how many workgroups of `d`, one of [`decode_layer`], run at once on this device: the fourth word
/// of `sync` says it, whose words must be 0 before.
pub fn decode_capacity(mut d: Dispatch<'_>) -> Dispatch<'_> {
    let put = |params: &mut [u8], field: &str, value: u32| {
        if let Some(i) = LayerParams::FIELDS.iter().position(|f| f.0 == field) {
            params[i * 4..i * 4 + 4].copy_from_slice(&value.to_ne_bytes());
        }
    };
    put(&mut d.params, "forms", CAPACITY);
    put(&mut d.params, "patience", CAPACITY_PATIENCE);
    d.grid = Grid::Direct([CAPACITY_GROUPS, 1, 1]);
    d.label("decode.capacity")
}
