//! Decode steps of one sequence with a dispatch for each layer, whose workgroups hand each other what they make ([`decode_layer`]). The other way,
//! an operation a dispatch, is there for everything else: several rows, prompts, layers of another kind, devices that cannot.
//!
//! Whether a model's layers are of that kind is known when it is loaded; how many workgroups the device runs at once is tried out before the
//! first plan is made. If a wait is ever given up, the step and those behind it change nothing, and the model goes on the other way.

use crate::error::{Result, bail};
use crate::gpu::{Buffer, BufferSlice, Dispatch, Gate, Gpu, MemoryClass, Place, ReadbackClass, Recorder, Scope};
use crate::kernels::{
    LAYER_TURNS, LayerOperands, LayerStep, Matrix, NormKind, Pages, RopePairs, SYNC_BYTES, decode_capacity,
    decode_layer,
};
use crate::model::engine::Engine;
use crate::model::forward::Forward;
use crate::model::kv_cache::KvPool;
use crate::model::spec::{AttentionSpec, LayerSpec, ModelSpec, QkNorm};
use crate::model::weights::{FeedForwardWeights, LayerWeights, Weights};

const CAPACITY: Gate = Gate::new(Place::Pipeline, ReadbackClass::State, "decode.capacity");
const FAILED: Gate = Gate::new(Place::Pipeline, ReadbackClass::State, "decode.failed");

/// Whether layers of single rows are made by one dispatch each. An experiment: see docs/performance-log.md for what is not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LayerFusion {
    /// No.
    #[default]
    Never,
    /// Where the layers are of a kind that can and the adapter lets workgroups exchange data.
    Always,
}

/// Buffers of fused layers, and how many workgroups they have.
#[derive(Debug)]
pub(crate) struct Fused {
    groups: u32,
    mail: Buffer,
    sync: Buffer,
}

impl Fused {
    fn new(
        gpu: &Gpu,
        groups: u32,
        spec: &ModelSpec,
        weights: &Weights,
        kv: &KvPool,
        scope: &Scope,
    ) -> Result<Option<Self>> {
        let first = spec.layers.first().zip(weights.layers.first());
        let Some((_, layer)) = first.and_then(|(l, w)| operands(spec, l, w, kv)) else { return Ok(None) };
        let buffer = |name: &str, size: u64| gpu.storage(name, size, MemoryClass::Scratch, scope);
        let mail = buffer("fused.mail", layer.mail_bytes(gpu, groups))?;
        Ok(Some(Self { groups, mail, sync: buffer("fused.sync", SYNC_BYTES)? }))
    }

    /// Its first word is not 0 after a step that failed.
    pub(crate) fn failed(&self) -> BufferSlice<'_> {
        self.sync.whole()
    }
}

/// How far an engine has come with it.
#[derive(Debug)]
pub(crate) enum Fusion {
    /// The model, the device or the caller does without, or it failed.
    Off,
    /// How many workgroups run at once is not known yet.
    Open(Fused),
    /// In use.
    On(Fused),
}

impl Fusion {
    /// What is there when a model has been loaded.
    pub(crate) fn of(
        choice: LayerFusion,
        gpu: &Gpu,
        spec: &ModelSpec,
        weights: &Weights,
        kv: &KvPool,
        scope: &Scope,
    ) -> Result<Self> {
        if choice == LayerFusion::Never || !fits(gpu, spec, weights, kv) {
            return Ok(Self::Off);
        }
        Ok(Fused::new(gpu, 1, spec, weights, kv, scope)?.map_or(Self::Off, Self::Open))
    }

    /// For recording what will run.
    pub(crate) fn on(&self) -> Option<&Fused> {
        match self {
            Self::On(fused) => Some(fused),
            Self::Open(_) | Self::Off => None,
        }
    }

    /// For finding out which pipelines will run.
    pub(crate) fn planned(&self) -> Option<&Fused> {
        match self {
            Self::On(fused) | Self::Open(fused) => Some(fused),
            Self::Off => None,
        }
    }
}

/// The operands of a layer that is attention and a gated block, each after a norm and with nothing else around.
fn operands<'a>(
    spec: &ModelSpec,
    l: &LayerSpec,
    w: &'a LayerWeights,
    kv: &KvPool,
) -> Option<(AttentionSpec, LayerOperands<'a>)> {
    let a = *l.attention()?;
    let FeedForwardWeights::Dense { up, down } = &w.feed_forward else { return None };
    let plain_norms = [&w.attn_norm, &w.ffn_norm].iter().all(|n| n.as_ref().is_some_and(|n| n.bias.is_none()))
        && w.attn_post_norm.is_none()
        && w.ffn_post_norm.is_none();
    let heads = matches!(a.qk_norm, None | Some(QkNorm::Heads));
    if !plain_norms || !heads || a.gated || l.parallel || !l.feed_forward.gated || spec.norm != NormKind::Rms {
        return None;
    }
    let (qkv, out, activation) = (&w.qkv, &w.attn_out, l.feed_forward.activation);
    let kv_type = kv.kv_type();
    let layer = LayerOperands { n_embd: spec.n_embd, shape: a.shape(), kv_type, qkv, out, up, down, activation };
    Some((a, layer))
}

/// Whether all layers can be made so. They exchange words in one buffer, each word by all layers, so they are of one shape.
fn fits(gpu: &Gpu, spec: &ModelSpec, weights: &Weights, kv: &KvPool) -> bool {
    let all = || spec.layers.iter().zip(&weights.layers).map(|(l, w)| operands(spec, l, w, kv));
    let widths = |o: &LayerOperands<'_>| (o.shape.n_head, o.shape.n_kv, o.shape.head_dim, o.down.k());
    let first = all().next().flatten().map(|(_, o)| widths(&o));
    LAYER_TURNS.contains(&spec.layers.len())
        && all().all(|o| o.is_some_and(|(_, o)| o.fits(gpu) && Some(widths(&o)) == first))
}

impl<'a> Forward<'a> {
    /// All layers of the step whose row stands in the scratch.
    pub(super) fn fused_layers(&self, r: &mut Recorder<'_>, fused: &Fused) -> Result<()> {
        for i in 0..self.spec.layers.len() {
            r.set_layer(Some(i as u32));
            r.record(self.fused_layer(i, fused)?)?;
        }
        r.set_layer(None);
        Ok(())
    }

    fn fused_layer<'m>(&self, i: usize, fused: &'m Fused) -> Result<Dispatch<'m>>
    where
        'a: 'm,
    {
        let (l, w) = (&self.spec.layers[i], &self.weights.layers[i]);
        let (Some((a, layer)), Some(attn_norm), Some(ffn_norm)) =
            (operands(self.spec, l, w, self.kv), &w.attn_norm, &w.ffn_norm)
        else {
            bail!(Internal, "layer {i} is no layer to be fused");
        };
        let (k, v) = self.kv.layer(i)?;
        let rotation = a.rope.and_then(|i| Some((self.spec.ropes.get(i)?, self.weights.angles.get(i)?)));
        let rotation = rotation.filter(|(r, _)| r.pairs != RopePairs::None);
        let step = LayerStep {
            index: i as u32,
            x: Matrix::new(&self.scratch.x, 1, self.spec.n_embd),
            norms: [attn_norm.w.whole(), ffn_norm.w.whole()],
            eps: self.spec.norm_eps,
            head_norms: w.qk_norm.as_ref().map(|[q, k]| [q.whole(), k.whole()]),
            rotation: rotation.map(|(r, t)| (r.pairs, r.n_rot, t.whole())),
            sinks: w.sinks.as_ref().map(Buffer::whole),
            pages: Pages {
                rows: self.scratch.row_data.whole(),
                tables: self.slots.tables[self.kv.group_of(i)].whole(),
                table_stride: self.slots.table_stride(),
                kv_type: self.kv.kv_type(),
                k,
                v,
            },
            mail: fused.mail.whole(),
            sync: fused.sync.whole(),
            groups: fused.groups,
        };
        Ok(decode_layer(self.gpu, layer, step)?.label("layer"))
    }
}

impl Engine {
    /// Finds out how many workgroups run at once, if layers are to be fused and that is not known yet. A cache must be there to be bound.
    pub(super) fn try_fusion(&mut self, scope: &Scope) -> Result<()> {
        let Fusion::Open(trial) = &self.fusion else { return Ok(()) };
        // Layers of the same formats are the same pipeline.
        let mut variants = Vec::new();
        let mut groups = u32::MAX;
        let forward = self.forward(None);
        for i in 0..self.spec.layers.len() {
            let d = forward.fused_layer(i, trial)?;
            if variants.contains(&d.variant) {
                continue;
            }
            variants.push(d.variant.clone());
            self.gpu.upload(trial.sync.whole(), &[0; SYNC_BYTES as usize], scope)?;
            decode_capacity(d).run(&self.gpu, scope)?;
            let words = self.gpu.download(trial.sync.whole(), CAPACITY, scope)?;
            let words: Vec<u32> = bytemuck::pod_collect_to_vec(&words);
            groups = groups.min(words.get(3).copied().unwrap_or(0));
        }
        log::info!("fused layers: {groups} workgroups run at once");
        // A software device counts on threads that may be busy elsewhere: one workgroup waits for no other.
        let groups = if self.gpu.adapter().is_software() { 1 } else { groups.max(1) };
        let fused = Fused::new(&self.gpu, groups, &self.spec, &self.weights, &self.kv, scope)?;
        self.fusion = fused.map_or(Fusion::Off, Fusion::On);
        Ok(())
    }

    /// After a step that drew nothing: if workgroups waited in vain, goes on without fused layers. That step and those behind it changed nothing.
    pub(super) fn check_fusion(&mut self, scope: &Scope) -> Result<()> {
        let Fusion::On(fused) = &self.fusion else { return Ok(()) };
        let words = self.gpu.download(fused.sync.whole(), FAILED, scope)?;
        if words.iter().take(4).any(|&b| b != 0) {
            log::warn!("workgroups of a decode step waited for each other in vain; layers are no longer fused");
            self.fusion = Fusion::Off;
            self.forget_plans();
        }
        Ok(())
    }

    /// Whether layers of single rows are made by one dispatch each.
    pub fn fuses_layers(&self) -> bool {
        self.fusion.on().is_some()
    }
}

#[cfg(test)]
#[path = "fused_tests.rs"]
mod tests;
