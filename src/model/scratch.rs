//! Activations: planned once for a model and a number of rows, so that running allocates nothing. What one half of a layer needs
//! shares memory with what the other half needs.

use crate::error::{Result, bail};
use crate::gpu::{ArenaPlan, Buffer, Gpu, MemoryClass, Region, Scope, Steps};
use crate::kernels::sample::Chunks;
use crate::model::moe::MoeScratch;
use crate::model::spec::{AttentionSpec, LayerSpec, Mixer, ModelSpec, RecurrentSpec};

/// Rows whose logits are computed together.
pub(crate) const LOGIT_ROWS: u32 = 16;

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
    /// q, k and v before rotation, and gates; or what a recurrence reads.
    pub(crate) qkv: Buffer,
    /// Rotated q, or what a short convolution gives to a scan.
    pub(crate) q: Buffer,
    /// What the mixer's last product reads.
    pub(crate) attn: Buffer,
    /// Gate and up, for each expert in use.
    pub(crate) gate_up: Buffer,
    /// Activated product, likewise.
    pub(crate) ff: Buffer,
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
    /// Slots of a decode batch.
    pub(crate) batch_slots: Buffer,
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

fn by_mixer(l: &LayerSpec, attention: fn(&AttentionSpec) -> u32, recurrent: fn(&RecurrentSpec) -> u32) -> u32 {
    match &l.mixer {
        Mixer::Attention(a) => attention(a),
        Mixer::Recurrent(m) => recurrent(m),
    }
}

impl Scratch {
    /// Plans all buffers for `rows` rows.
    pub(crate) fn new(gpu: &Gpu, spec: &ModelSpec, rows: u32, scope: &Scope) -> Result<Self> {
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
        // Gates stand beside q, k and v, or what a recurrence reads, and are used last.
        let gated = spec.layers.iter().any(|l| l.attention().is_none_or(|a| a.gated));
        let qkv_steps = if gated { QKV | ROPE | SCORES } else { QKV | ROPE };
        let qkv = region("qkv", widest(&|l| by_mixer(l, AttentionSpec::in_width, RecurrentSpec::in_width)), qkv_steps)?;
        let q = widest(&|l| by_mixer(l, AttentionSpec::q_width, RecurrentSpec::conv_stride));
        let q = region("q", q, ROPE | SCORES)?;
        let attn = widest(&|l| by_mixer(l, AttentionSpec::q_width, RecurrentSpec::out_width));
        let attn = region("attn", attn, SCORES | OUT)?;
        // A shared expert uses gate and up, and their activation, again after the chosen experts.
        let gate_up = region("gate_up", 2 * n_ff, UP | ACT | DOWN)?;
        let ff = region("ff", n_ff, ACT | DOWN)?;
        let used = spec.experts().map(|e| e.n_used).max();
        let down = used.map(|n| region("moe.down", n * spec.n_embd, DOWN | COMBINE)).transpose()?;
        let arena = plan.build(gpu, MemoryClass::Scratch, scope)?;
        Ok(Self {
            rows,
            tokens: wide("tokens", 1)?,
            row_data: wide("rows", 2)?,
            x: wide("x", spec.n_embd)?,
            normed: wide("normed", spec.n_embd)?,
            qkv: arena.buffer(qkv),
            q: arena.buffer(q),
            attn: arena.buffer(attn),
            gate_up: arena.buffer(gate_up),
            ff: arena.buffer(ff),
            moe: down.map(|d| MoeScratch::new(gpu, spec, rows, arena.buffer(d), scope)).transpose()?,
            logits: words("logits", u64::from(LOGIT_ROWS) * u64::from(spec.n_vocab))?,
            tail_rows: words("tail_rows", u64::from(LOGIT_ROWS) * 2)?,
            partial: words("partial", u64::from(LOGIT_ROWS) * u64::from(chunks) * 2)?,
            picked: words("picked", LOGIT_ROWS.into())?,
            ring: words("ring", u64::from(LOGIT_ROWS) * 2)?,
            batch_slots: words("batch_slots", LOGIT_ROWS.into())?,
        })
    }
}
