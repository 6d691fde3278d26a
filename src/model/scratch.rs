//! Activations: planned once for a model and a number of rows, so that running allocates nothing. What one half of a layer needs
//! shares memory with what the other half needs.

use crate::error::{Result, bail};
use crate::gpu::{ArenaPlan, Buffer, BufferSlice, Gpu, MemoryClass, Region, SWITCH_GRIDS, Scope, Steps};
use crate::kernels::constants::{DECODE_FROM, STAGE_ROWS, TILE_FROM};
use crate::kernels::sample::Chunks;
use crate::kernels::{
    AttentionParts, ByteRows, ChainWidths, HalfRoom, HalfRows, attention_chain_words, attention_splits, decoded_bytes,
    few_parts_bytes,
};
use crate::model::moe::MoeScratch;
use crate::model::spec::{LayerSpec, Mixer, ModelSpec};
use crate::quant::GPU_BLOCK;

/// Rows whose logits are computed together.
pub(crate) const LOGIT_ROWS: u32 = 32;

/// Most rows that are taken as bytes: more go through tiles.
const BYTE_ROWS: u32 = TILE_FROM - 1;

/// Room for a few rows as signed bytes.
#[derive(Debug)]
pub(crate) struct ByteBuffers {
    quants: Buffer,
    scales: Buffer,
    /// Numbers there is room for.
    room: u64,
}

impl ByteBuffers {
    fn new(gpu: &Gpu, name: &str, numbers: u64, scope: &Scope) -> Result<Self> {
        let numbers = numbers.next_multiple_of(GPU_BLOCK as u64);
        let [quants, scales] = ByteRows::sizes(1, numbers as u32);
        let make = |part: &str, size: u64| gpu.storage(&format!("{name}.{part}"), size, MemoryClass::Scratch, scope);
        Ok(Self { quants: make("quants", quants)?, scales: make("scales", scales)?, room: numbers })
    }

    /// `rows` x `cols` numbers here, if they are whole blocks and have room.
    pub(crate) fn rows(&self, rows: u32, cols: u32) -> Option<ByteRows<'_>> {
        let fits = cols.is_multiple_of(GPU_BLOCK as u32) && u64::from(rows) * u64::from(cols) <= self.room;
        fits.then(|| ByteRows { quants: self.quants.whole(), scales: self.scales.whole(), rows, cols })
    }
}

/// Room for the parts of split attention.
#[derive(Debug)]
pub(crate) struct PartBuffers {
    sums: Buffer,
    tops: Buffer,
}

impl PartBuffers {
    fn new(gpu: &Gpu, spec: &ModelSpec, rows: u32, scope: &Scope) -> Result<Self> {
        // Drafted rows are split as a row alone is.
        let few = rows.min(BYTE_ROWS);
        let sizes = |n: u32| {
            spec.attentions().map(move |a| {
                let shape = a.shape();
                let splits = if n <= few { 1 } else { n };
                AttentionParts::sizes(&shape, n, attention_splits(gpu, &shape, splits))
            })
        };
        let [sums, tops] = (1..=rows.min(LOGIT_ROWS))
            .flat_map(sizes)
            .fold([4, 8], |[a, b], [sums, tops]: [u64; 2]| [a.max(sums), b.max(tops)]);
        let make = |name: &str, size: u64| gpu.storage(name, size, MemoryClass::Scratch, scope);
        Ok(Self { sums: make("attn.sums", sums)?, tops: make("attn.tops", tops)? })
    }

    pub(crate) fn whole(&self) -> AttentionParts<'_> {
        AttentionParts { sums: self.sums.whole(), tops: self.tops.whole() }
    }
}

/// Named activation buffers, each for `rows` rows (tokens) but where said otherwise.
#[derive(Debug)]
pub(crate) struct Scratch {
    pub(crate) rows: u32,
    /// Input ids.
    pub(crate) tokens: Buffer,
    /// Slot and position of each row.
    pub(crate) row_data: Buffer,
    /// Residual stream `[rows, n_embd]`.
    pub(crate) x: Buffer,
    /// Normalised input of a block `[rows, n_embd]`.
    pub(crate) normed: Buffer,
    /// It as bytes.
    pub(crate) normed_bytes: ByteBuffers,
    /// Sums of squares of both halves of the residual stream's blocks of 32, for rows whose norm is left to the next product.
    pub(crate) block_sums: Buffer,
    /// Input of a block's second product as bytes.
    pub(crate) inner_bytes: ByteBuffers,
    /// q, k and v before rotation, and gates; or what a recurrence reads.
    pub(crate) qkv: Buffer,
    /// Rotated q, or what a short convolution gives to a scan.
    pub(crate) q: Buffer,
    /// What split attention combines.
    pub(crate) attn_parts: PartBuffers,
    /// What the mixer's last product reads.
    pub(crate) attn: Buffer,
    /// Gate and up, for each expert in use.
    pub(crate) gate_up: Buffer,
    /// Activated product, likewise.
    pub(crate) ff: Buffer,
    /// The rows of one product in f16, and their scales, where products are made by cooperative matrices.
    half: Option<(Buffer, Buffer)>,
    /// Where weights are decoded to f16 for products of many rows.
    decoded: Option<Buffer>,
    /// Where products of few rows leave parts.
    few_parts: Option<Buffer>,
    /// What mixtures of experts need beside, if a layer is one.
    pub(crate) moe: Option<MoeScratch>,
    /// `[LOGIT_ROWS, n_vocab]`.
    pub(crate) logits: Buffer,
    /// Slot and position of the rows of `logits`, where they are not the first rows of the batch.
    pub(crate) tail_rows: Buffer,
    /// First maxima of the rows of `logits`.
    pub(crate) partial: Buffer,
    /// Tokens drawn for the rows of `logits`.
    pub(crate) picked: Buffer,
    /// (token, stop) of the step.
    pub(crate) ring: Buffer,
    /// Workgroups of the dispatches of a step that the device may leave out, and what they are at the moment.
    pub(crate) grids: Buffer,
    pub(crate) live_grids: Buffer,
    /// What stages of a chain pass on, where there are chains; and what it depends on.
    pub(crate) chain_words: Option<Buffer>,
    widths: ChainWidths,
    /// Where in the words the parts of split attention begin.
    pub(crate) chain_parts_at: u64,
    /// Slots of a decode batch.
    pub(crate) batch_slots: Buffer,
    /// Tokens to be verified, and their rows, `[LOGIT_ROWS]`.
    pub(crate) draft_tokens: Buffer,
    pub(crate) draft_rows: Buffer,
}

/// Rows of a prompt that suit a device in one submit. Many rows read the weights seldom and fill a large device; but a submit is
/// not interrupted, and a slow device must be left to others now and then. So many only where matrix units make them short, and the
/// widest buffers can be bound and take no large part of the memory.
pub fn default_chunk(gpu: &Gpu, spec: &ModelSpec) -> u32 {
    const MOST: u32 = 2048;
    const LEAST: u32 = 256;
    if !gpu.features().cooperative_matrix {
        return LEAST;
    }
    let (mut widest, mut sum) = (0, 0);
    for l in &spec.layers {
        let inner = l.feed_forward.inner_width();
        let used = l.feed_forward.experts.map_or(0, |e| e.n_used);
        let widths = [
            2 * spec.n_embd,
            in_width(l),
            q_width(l) + heads_width(l),
            2 * inner,
            inner,
            used * spec.n_embd,
            inner / 2,
        ];
        widest = widths.into_iter().fold(widest, u32::max);
        sum = widths.into_iter().map(u64::from).sum::<u64>().max(sum);
    }
    let budget = gpu.memory().snapshot().budget;
    let room = if budget == 0 { u64::MAX } else { budget / 8 };
    let fits = |rows: u32| {
        let rows = u64::from(rows) * 4;
        rows * u64::from(widest) <= gpu.max_binding_bytes() && rows * sum <= room
    };
    let halves = std::iter::successors(Some(MOST), |n| Some(n / 2)).take_while(|&n| n > LEAST);
    halves.into_iter().find(|&n| fits(n)).unwrap_or(LEAST)
}

/// The steps of a layer, for buffers that share memory: the q/k/v product, rotation, scores, output product; the first product of the
/// feed-forward half (and routing), activation, second product, combination.
const QKV: Steps = 1 << 0;
const ROPE: Steps = 1 << 1;
const SCORES: Steps = 1 << 2;
const OUT: Steps = 1 << 3;
const UP: Steps = 1 << 4;
const ACT: Steps = 1 << 5;
const DOWN: Steps = 1 << 6;
const COMBINE: Steps = 1 << 7;

/// Fails where kernels could not bind a buffer for `rows` rows.
fn check_size(gpu: &Gpu, name: &str, size: u64, rows: u32) -> Result<()> {
    let limit = gpu.max_binding_bytes();
    if size > limit {
        bail!(InvalidArgument, "prefill_chunk {rows}: \"{name}\" takes {size} bytes, this adapter binds up to {limit}");
    }
    Ok(())
}

/// A buffer for `rows` rows, refused here where kernels could not bind it: a mixture's inner values may take a lot for a row.
pub(super) fn buffer(gpu: &Gpu, name: &str, size: u64, rows: u32, scope: &Scope) -> Result<Buffer> {
    check_size(gpu, name, size, rows)?;
    gpu.storage(name, size, MemoryClass::Scratch, scope)
}

/// Columns of what a mixer's first product makes.
fn in_width(l: &LayerSpec) -> u32 {
    match &l.mixer {
        Mixer::Attention(a) => a.in_width(),
        Mixer::Recurrent(m) => m.in_width(),
    }
}

/// Columns between it and the mixer's own operation: rotated q, or what a short convolution gives to a scan.
fn q_width(l: &LayerSpec) -> u32 {
    match &l.mixer {
        Mixer::Attention(a) => a.q_width(),
        Mixer::Recurrent(m) => m.conv_stride(),
    }
}

/// Columns of what its last product reads.
fn heads_width(l: &LayerSpec) -> u32 {
    match &l.mixer {
        Mixer::Attention(a) => a.q_width(),
        Mixer::Recurrent(m) => m.out_width(),
    }
}

impl Scratch {
    /// Plans all buffers for `rows` rows of a model whose weights all have `quants`, or not; with `exact`, none for products in f16.
    pub(crate) fn new(
        gpu: &Gpu,
        spec: &ModelSpec,
        rows: u32,
        exact: bool,
        quants: bool,
        scope: &Scope,
    ) -> Result<Self> {
        let widest = |f: &dyn Fn(&LayerSpec) -> u32| spec.layers.iter().map(f).max().unwrap_or(1);
        let words = |name: &str, n: u64| buffer(gpu, name, n * 4, rows, scope);
        let wide = |name: &str, width: u32| words(name, u64::from(rows) * u64::from(width));
        let n_ff = widest(&|l| l.feed_forward.inner_width());
        let chunks = Chunks::of(spec.n_vocab).chunks;
        let mut plan = ArenaPlan::default();
        let mut region = |name: &str, width: u32, steps: Steps| -> Result<Region> {
            let bytes = u64::from(rows) * u64::from(width) * 4;
            check_size(gpu, name, bytes, rows)?;
            Ok(plan.add(name, bytes, steps))
        };
        // q, k and v, and gates beside them, are used last by attention of single rows, and by what a recurrence makes.
        let heads = widest(&heads_width);
        let qkv = region("qkv", widest(&in_width), QKV | ROPE | SCORES)?;
        let q = region("q", widest(&q_width), ROPE | SCORES)?;
        let attn = region("attn", heads, SCORES | OUT)?;
        // A shared expert uses gate and up, and their activation, again after the chosen experts.
        let gate_up = region("gate_up", 2 * n_ff, UP | ACT | DOWN)?;
        let ff = region("ff", n_ff, UP | ACT | DOWN)?;
        let used = spec.experts().map(|e| e.n_used).max();
        let down = used.map(|n| region("moe.down", n * spec.n_embd, DOWN | COMBINE)).transpose()?;
        let few = u64::from(rows.min(BYTE_ROWS));
        let widest_inner = n_ff.max(heads);
        let half = match gpu.features().cooperative_matrix && !exact {
            true => {
                let inputs = [spec.n_embd, heads, n_ff];
                let of_experts = spec.layers.iter().filter_map(|l| {
                    let f = &l.feed_forward;
                    f.experts.map(|e| HalfRows::data_bytes(u64::from(rows) * u64::from(e.n_used), f.n_ff))
                });
                let bytes = inputs.iter().map(|&cols| HalfRows::data_bytes(rows.into(), cols)).chain(of_experts).max();
                let most = u64::from(rows) * u64::from(used.unwrap_or(1));
                Some((
                    buffer(gpu, "half", bytes.unwrap_or(0), rows, scope)?,
                    buffer(gpu, "half.scales", HalfRows::scales_bytes(most), rows, scope)?,
                ))
            }
            false => None,
        };
        // Widest inputs and outputs of dense products: pieces of them are decoded at a time.
        const DECODED: u64 = 128 << 20;
        let (inputs, outputs) = ([spec.n_embd, heads, n_ff], [2 * n_ff, spec.n_embd, widest(&in_width)]);
        let most = |of: [u32; 3]| of.into_iter().max().unwrap_or(1);
        let decoded = match half.is_some() && rows >= DECODE_FROM {
            true => Some(buffer(gpu, "decoded", decoded_bytes(most(outputs), most(inputs), DECODED), rows, scope)?),
            false => None,
        };
        let few_parts = match half.is_some() && rows >= TILE_FROM {
            true => Some(buffer(gpu, "few_parts", few_parts_bytes(rows), rows, scope)?),
            false => None,
        };
        let attn_parts = PartBuffers::new(gpu, spec, rows, scope)?;
        let experts = spec.experts().map(|e| e.n_expert).max().unwrap_or(0);
        let widths = ChainWidths { n_embd: spec.n_embd, inner: widest_inner, experts, vocab: spec.n_vocab, quants };
        let parts_at = widths.words(rows.min(BYTE_ROWS));
        let chained = parts_at + attention_chain_words(attn_parts.sums.size());
        let arena = plan.build(gpu, MemoryClass::Scratch, scope)?;
        Ok(Self {
            rows,
            tokens: wide("tokens", 1)?,
            row_data: wide("rows", 2)?,
            x: wide("x", spec.n_embd)?,
            normed: wide("normed", spec.n_embd)?,
            normed_bytes: ByteBuffers::new(gpu, "normed", few * u64::from(spec.n_embd), scope)?,
            block_sums: words("block_sums", 2 * (few * u64::from(spec.n_embd)).div_ceil(GPU_BLOCK as u64))?,
            inner_bytes: ByteBuffers::new(gpu, "inner", few * u64::from(widest_inner), scope)?,
            attn_parts,
            qkv: arena.buffer(qkv),
            q: arena.buffer(q),
            attn: arena.buffer(attn),
            gate_up: arena.buffer(gate_up),
            ff: arena.buffer(ff),
            half,
            decoded,
            few_parts,
            moe: down.map(|d| MoeScratch::new(gpu, spec, rows, arena.buffer(d), scope)).transpose()?,
            logits: words("logits", u64::from(LOGIT_ROWS) * u64::from(spec.n_vocab))?,
            tail_rows: words("tail_rows", u64::from(LOGIT_ROWS) * 2)?,
            partial: words("partial", u64::from(LOGIT_ROWS) * u64::from(chunks) * 2)?,
            picked: words("picked", LOGIT_ROWS.into())?,
            ring: words("ring", u64::from(LOGIT_ROWS) * 2)?,
            grids: words("step.grids", SWITCH_GRIDS as u64 * 3)?,
            live_grids: gpu.indirect("step.live_grids", SWITCH_GRIDS as u64 * 12, scope)?,
            chain_words: match gpu.features().chains && !exact {
                true => Some(words("chain_words", chained)?),
                false => None,
            },
            widths,
            chain_parts_at: parts_at,
            batch_slots: words("batch_slots", LOGIT_ROWS.into())?,
            draft_tokens: words("draft.tokens", LOGIT_ROWS.into())?,
            draft_rows: words("draft.rows", u64::from(LOGIT_ROWS) * 2)?,
        })
    }

    /// Most rows that chains of products are worth.
    pub(crate) fn chain_rows(&self) -> u32 {
        if self.widths.quants { STAGE_ROWS } else { BYTE_ROWS }
    }

    /// The words that chains of `rows` rows use, where there are chains.
    pub(crate) fn chain_words(&self, rows: u32) -> Option<BufferSlice<'_>> {
        Some(self.chain_words.as_ref()?.slice(0, self.widths.words(rows) * 4))
    }

    /// Where a product's rows are brought to f16, if they are.
    pub(crate) fn half_room(&self) -> Option<HalfRoom<'_>> {
        self.half.as_ref().map(|(data, scales)| HalfRoom {
            data: data.whole(),
            scales: scales.whole(),
            weights: self.decoded.as_ref().map(Buffer::whole),
            parts: self.few_parts.as_ref().map(Buffer::whole),
        })
    }
}
