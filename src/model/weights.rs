//! A model's weights on the device, read from a GGUF file.
//!
//! Every tensor is found, typed and measured before the first byte goes to the device, so a bad file costs nothing.
//! q, k and v are stacked into one product, and gate and up into another, whatever formats they come in; with experts, for each of them.

#[path = "weights_places.rs"]
mod places;
#[path = "weights_upload.rs"]
mod upload;

pub(crate) use places::{Places, Run};
pub(super) use upload::Allocator;

use crate::error::{Error, Result, bail};
use crate::format::{Gguf, TensorInfo, type_name};
use crate::gpu::{Buffer, Gpu, Scope};
use crate::kernels::{ExpertWeight, Weight, WeightUploader};
use crate::model::recurrent::weights::{RecurrentPlan, RecurrentWeights};
use crate::model::spec::{AttentionSpec, FeedForwardSpec, LayerSpec, Mixer, ModelSpec, QkNorm, RopeDivisors};
use crate::quant;

/// Weights of a normalisation.
#[derive(Debug)]
pub(crate) struct NormWeights {
    pub(crate) w: Buffer,
    pub(crate) bias: Option<Buffer>,
}

/// Weights of one block. What its spec has not is absent.
#[derive(Debug)]
pub(crate) struct LayerWeights {
    pub(crate) attn_norm: Option<NormWeights>,
    /// The mixer's first product: q, k, v and gates of attention, or all that a recurrence needs.
    pub(crate) qkv: Weight,
    /// Of q and k.
    pub(crate) qk_norm: Option<[Buffer; 2]>,
    pub(crate) sinks: Option<Buffer>,
    pub(crate) recurrent: Option<RecurrentWeights>,
    /// The mixer's last product.
    pub(crate) attn_out: Weight,
    pub(crate) attn_post_norm: Option<NormWeights>,
    pub(crate) ffn_norm: Option<NormWeights>,
    pub(crate) feed_forward: FeedForwardWeights,
    pub(crate) ffn_post_norm: Option<NormWeights>,
}

/// Weights of a feed-forward block.
#[derive(Debug)]
pub(crate) enum FeedForwardWeights {
    /// `up` has the gate's rows before its own, if there is a gate.
    Dense {
        up: Weight,
        down: Weight,
    },
    Experts(Box<ExpertsWeights>),
}

impl FeedForwardWeights {
    /// Whether the first product takes its input as bytes.
    pub(crate) fn first_has_bytes(&self) -> bool {
        match self {
            Self::Dense { up, .. } => up.has_bytes(),
            Self::Experts(experts) => experts.gate_up.has_bytes(),
        }
    }
}

/// Weights of a mixture of experts.
#[derive(Debug)]
pub(crate) struct ExpertsWeights {
    pub(crate) router: Weight,
    pub(crate) gate_up: ExpertWeight,
    pub(crate) down: ExpertWeight,
    pub(crate) shared: Option<SharedWeights>,
}

impl ExpertsWeights {
    /// Whether an expert that every row uses adds itself to the rows after the others.
    pub(crate) fn adds_shared(&self) -> bool {
        self.shared.as_ref().is_some_and(|s| s.gate.is_none())
    }

    /// Whether rows may come as numbers that have the norm's weights in them, beside bytes: to the router, and to what else takes no bytes.
    pub(crate) fn take_numbers(&self) -> bool {
        let fits = |w: &Weight| w.has_elements() || w.has_bytes();
        let shared = |s: &SharedWeights| s.gate.as_ref().is_none_or(fits) && fits(&s.gate_up);
        self.router.has_elements() && self.shared.as_ref().is_none_or(shared)
    }
}

/// Weights of the expert that every row uses.
#[derive(Debug)]
pub(crate) struct SharedWeights {
    /// One row: its product is the logit of this expert's weight. Absent where that is 1.
    pub(crate) gate: Option<Weight>,
    pub(crate) gate_up: Weight,
    pub(crate) down: Weight,
}

/// All weights.
#[derive(Debug)]
pub(crate) struct Weights {
    pub(crate) embedding: Weight,
    /// A row for each position, where they are learned.
    pub(crate) positions: Option<Weight>,
    pub(crate) layers: Vec<LayerWeights>,
    /// The factor on logits is in it.
    pub(crate) output_norm: NormWeights,
    /// Absent where the head is tied to the embedding.
    pub(crate) output: Option<Weight>,
    /// Tables of angles, one for each of the spec's rotary embeddings.
    pub(crate) angles: Vec<Buffer>,
}

impl Weights {
    /// The head's weight.
    pub(crate) fn head(&self) -> &Weight {
        self.output.as_ref().unwrap_or(&self.embedding)
    }

    /// Whether the products of dense layers, and the head, are all with quants.
    pub(crate) fn all_quants(&self) -> bool {
        let of = |l: &LayerWeights| match &l.feed_forward {
            FeedForwardWeights::Dense { up, down } => l.qkv.has_bytes() && up.has_bytes() && down.has_bytes(),
            FeedForwardWeights::Experts(_) => l.qkv.has_bytes(),
        };
        self.head().has_bytes() && self.layers.iter().all(of)
    }
}

/// One tensor among those stacked into a weight.
pub(super) struct Member<'a> {
    /// As in a GGUF file, without `.weight`.
    name: String,
    info: &'a TensorInfo,
    format: &'static quant::Format,
    /// First row in the tensor.
    first: u32,
    /// Of one expert, where there are experts.
    rows: u32,
    bias: Option<Vec<f32>>,
}

/// Tensors, or runs of their rows, stacked into one weight of width `k`, or into one for each of `n_expert` experts.
pub(super) struct Stack<'a> {
    name: String,
    k: u32,
    n_expert: Option<u32>,
    members: Vec<Member<'a>>,
}

impl<'a> Stack<'a> {
    pub(super) fn new(name: &str, k: u32, members: Vec<Member<'a>>) -> Self {
        Self { name: format!("{name}.weight"), k, n_expert: None, members }
    }

    /// Rows of a member, of all experts.
    fn rows(&self, m: &Member<'_>) -> u64 {
        u64::from(m.rows) * u64::from(self.n_expert.unwrap_or(1))
    }

    /// Bytes of a member in the file.
    fn bytes(&self, m: &Member<'_>) -> u64 {
        m.format.row_bytes(self.k as usize) as u64 * self.rows(m)
    }
}

/// A vector of f32.
pub(super) struct Vector {
    pub(super) name: String,
    pub(super) values: Vec<f32>,
}

struct NormPlan {
    w: Vector,
    bias: Option<Vector>,
}

struct LayerPlan<'a> {
    attn_norm: Option<NormPlan>,
    qkv: Stack<'a>,
    qk_norm: Option<[Vector; 2]>,
    sinks: Option<Vector>,
    recurrent: Option<RecurrentPlan>,
    attn_out: Stack<'a>,
    attn_post_norm: Option<NormPlan>,
    ffn_norm: Option<NormPlan>,
    feed_forward: FeedForwardPlan<'a>,
    ffn_post_norm: Option<NormPlan>,
}

struct FeedForwardPlan<'a> {
    /// Where there are experts.
    router: Option<Stack<'a>>,
    gate_up: Stack<'a>,
    down: Stack<'a>,
    /// The expert that every row uses.
    shared: Option<SharedPlan<'a>>,
}

struct SharedPlan<'a> {
    gate: Option<Stack<'a>>,
    gate_up: Stack<'a>,
    down: Stack<'a>,
}

/// What is going to be uploaded: everything was found and measured.
pub(crate) struct LoadPlan<'a> {
    file: &'a Gguf,
    embedding: Stack<'a>,
    positions: Option<Stack<'a>>,
    layers: Vec<LayerPlan<'a>>,
    output_norm: NormPlan,
    output: Option<Stack<'a>>,
    divisors: RopeDivisors,
}

impl<'a> LoadPlan<'a> {
    /// Finds and measures every tensor that `spec` needs.
    ///
    /// # Errors
    /// [`Error::BadFile`] naming a tensor that is missing or of a wrong shape, [`Error::Unsupported`] naming a type that does
    /// not run.
    pub(crate) fn new(file: &'a Gguf, spec: &ModelSpec) -> Result<Self> {
        let f = Finder { file };
        let e = spec.n_embd;
        let layers = spec.layers.iter().enumerate().map(|(i, l)| f.layer(i, l, e)).collect::<Result<_>>()?;
        let output = match file.tensor("output.weight") {
            Some(_) => Some(f.stack("output", e, &[("output", spec.n_vocab)])?),
            None => None,
        };
        let mut output_norm = f.norm(spec.output_norm, e)?;
        // The head is linear: a factor on its input is one on the logits.
        for v in [Some(&mut output_norm.w), output_norm.bias.as_mut()].into_iter().flatten() {
            v.values.iter_mut().for_each(|x| *x *= spec.logit_scale);
        }
        let positions = match spec.learned_positions {
            true => Some(f.stack("position_embd", e, &[("position_embd", spec.context_length)])?),
            false => None,
        };
        Ok(Self {
            file,
            embedding: f.stack("token_embd", e, &[("token_embd", spec.n_vocab)])?,
            positions,
            layers,
            output_norm,
            output,
            divisors: RopeDivisors {
                any: f.optional_vector("rope_freqs.weight")?,
                short: f.optional_vector("rope_factors_short.weight")?,
                long: f.optional_vector("rope_factors_long.weight")?,
            },
        })
    }

    fn stacks(&self) -> impl Iterator<Item = &Stack<'a>> {
        let layers = self.layers.iter().flat_map(|l| {
            let ff = &l.feed_forward;
            let shared = ff.shared.iter().flat_map(|s| s.gate.iter().chain([&s.gate_up, &s.down]));
            [&l.qkv, &l.attn_out, &ff.gate_up, &ff.down].into_iter().chain(&ff.router).chain(shared)
        });
        [&self.embedding].into_iter().chain(&self.positions).chain(layers).chain(&self.output)
    }

    /// Bytes of the matrices in the file.
    pub(crate) fn file_bytes(&self) -> u64 {
        self.stacks().flat_map(|s| s.members.iter().map(|m| s.bytes(m))).sum()
    }

    /// Bytes of the matrices that one token reads: of the embedding one row unless the head is tied to it, of experts those in use, of
    /// the others everything.
    pub(crate) fn token_bytes(&self, spec: &ModelSpec) -> u64 {
        let bytes = |s: &Stack<'_>| s.members.iter().map(|m| s.bytes(m)).sum::<u64>();
        let idle = self.layers.iter().zip(&spec.layers).filter_map(|(l, s)| {
            let x = s.feed_forward.experts?;
            let idle = u64::from(x.n_expert.saturating_sub(x.n_used));
            Some((bytes(&l.feed_forward.gate_up) + bytes(&l.feed_forward.down)) / u64::from(x.n_expert.max(1)) * idle)
        });
        let table = if self.output.is_some() { bytes(&self.embedding) } else { 0 };
        let row = table / u64::from(spec.n_vocab.max(1));
        let positions = self.positions.as_ref().map_or(0, bytes);
        let position = positions / u64::from(spec.context_length.max(1));
        self.file_bytes() - idle.sum::<u64>() - table + row - positions + position
    }

    /// Weights of all matrices.
    pub(crate) fn parameters(&self) -> u64 {
        self.stacks().flat_map(|s| s.members.iter().map(|m| s.rows(m) * u64::from(s.k))).sum()
    }

    /// The format that holds most of the matrices' bytes, as a name for the whole file.
    pub(crate) fn main_format(&self) -> &'static str {
        let bytes = |name: &str| -> u64 {
            let of =
                |s: &Stack<'_>| s.members.iter().filter(|m| m.format.name == name).map(|m| s.bytes(m)).sum::<u64>();
            self.stacks().map(of).sum()
        };
        quant::FORMATS.iter().map(|f| f.name).max_by_key(|n| bytes(n)).unwrap_or("F32")
    }
}

pub(super) struct Finder<'a> {
    pub(super) file: &'a Gguf,
}

impl<'a> Finder<'a> {
    fn layer(&self, i: usize, l: &LayerSpec, e: u32) -> Result<LayerPlan<'a>> {
        let ff = &l.feed_forward;
        let name = |part: &str| format!("blk.{i}.{part}");
        let norm = |part: Option<&str>| part.map(|part| self.norm(&name(part), e)).transpose();
        let weight = |part: &str, n: u32| self.vector(&format!("{}.weight", name(part)), n);
        let (qkv, recurrent, attn_out) = match &l.mixer {
            Mixer::Attention(a) => {
                let out = name("attn_output");
                (self.qkv(&name, a, e)?, None, self.stack(&out, a.q_width(), &[(&out, e)])?)
            }
            Mixer::Recurrent(m) => {
                let (first, plan, out) = self.recurrent(&name, m, e)?;
                (first, Some(plan), out)
            }
        };
        let widths = l.attention().and_then(|a| {
            a.qk_norm.map(|which| match which {
                QkNorm::Heads => [a.head_dim; 2],
                QkNorm::Whole => [a.q_width(), a.kv_width()],
            })
        });
        let sinks = l.attention().filter(|a| a.sinks).map(|a| a.n_head);
        // The result of a block that is normalised takes the place of its input, and experts add to the stream themselves.
        if (ff.experts.is_some() && l.norms.ffn_post.is_some()) || (l.parallel && l.norms.attn_post.is_some()) {
            bail!(
                Unsupported,
                "{}: layer {i}: normalised experts, or a parallel block that is normalised",
                self.file.name()
            );
        }
        Ok(LayerPlan {
            attn_norm: norm(l.norms.attn)?,
            qkv,
            qk_norm: match widths {
                Some([q, k]) => Some([weight("attn_q_norm", q)?, weight("attn_k_norm", k)?]),
                None => None,
            },
            sinks: sinks.map(|n| weight("attn_sinks", n)).transpose()?,
            recurrent,
            attn_out,
            attn_post_norm: norm(l.norms.attn_post)?,
            ffn_norm: norm(l.norms.ffn)?,
            feed_forward: self.feed_forward(&name, ff, e)?,
            ffn_post_norm: norm(l.norms.ffn_post)?,
        })
    }

    /// q, k and v, and behind them the gates of query heads.
    fn qkv(&self, name: &dyn Fn(&str) -> String, a: &AttentionSpec, e: u32) -> Result<Stack<'a>> {
        let (q, k, v) = (name("attn_q"), name("attn_k"), name("attn_v"));
        // Newer converters fuse q, k and v.
        let fused = name("attn_qkv");
        if a.gated {
            // Each head's query is followed by its gate.
            let (heads, dim, width) = (a.n_head, a.head_dim, a.kv_width());
            let run = |first: u32| (0..heads).map(move |h| (2 * h * dim + first, dim)).collect::<Vec<_>>();
            let mut members = self.pieces(&q, e, 2 * a.q_width(), &run(0))?;
            members.extend(self.pieces(&k, e, width, &[(0, width)])?);
            members.extend(self.pieces(&v, e, width, &[(0, width)])?);
            members.extend(self.pieces(&q, e, 2 * a.q_width(), &run(dim))?);
            return Ok(Stack::new(&fused, e, members));
        }
        if self.has(&format!("{fused}.weight")) {
            return self.stack(&fused, e, &[(&fused, a.qkv_width())]);
        }
        self.stack(&fused, e, &[(&q, a.q_width()), (&k, a.kv_width()), (&v, a.kv_width())])
    }

    fn feed_forward(&self, name: &dyn Fn(&str) -> String, ff: &FeedForwardSpec, e: u32) -> Result<FeedForwardPlan<'a>> {
        let f = ff.n_ff;
        // Gate, up and down whose names end in `suffix`; newer converters fuse gate and up, and some architectures call that up.
        let block = |suffix: &str, f: u32, n_expert: Option<u32>| -> Result<[Stack<'a>; 2]> {
            let name = |part: &str| name(&format!("{part}{suffix}"));
            let (gate, up, down, fused) = (name("ffn_gate"), name("ffn_up"), name("ffn_down"), name("ffn_gate_up"));
            let found = |name: &str| self.file.tensor(&format!("{name}.weight"));
            let both = |t: &TensorInfo| t.dims.get(1) == Some(&(2 * u64::from(f)));
            let gate_up = if !ff.gated {
                self.stack_of(&up, e, n_expert, &[(&up, f)])?
            } else if found(&fused).is_some() {
                self.stack_of(&fused, e, n_expert, &[(&fused, 2 * f)])?
            } else if found(&gate).is_none() && found(&up).is_some_and(both) {
                self.stack_of(&up, e, n_expert, &[(&up, 2 * f)])?
            } else {
                self.stack_of(&fused, e, n_expert, &[(&gate, f), (&up, f)])?
            };
            Ok([gate_up, self.stack_of(&down, f, n_expert, &[(&down, e)])?])
        };
        let Some(x) = ff.experts else {
            let [gate_up, down] = block("", f, None)?;
            return Ok(FeedForwardPlan { router: None, gate_up, down, shared: None });
        };
        let router = name("ffn_gate_inp");
        let router = Some(self.stack(&router, e, &[(&router, x.n_expert)])?);
        let [gate_up, down] = block("_exps", f, Some(x.n_expert))?;
        let shared = match x.shared_n_ff {
            Some(n_ff) => {
                let gate = name("ffn_gate_inp_shexp");
                let gate = x.shared_gated.then(|| self.stack(&gate, e, &[(&gate, 1)])).transpose()?;
                let [gate_up, down] = block("_shexp", n_ff, None)?;
                Some(SharedPlan { gate, gate_up, down })
            }
            None => None,
        };
        Ok(FeedForwardPlan { router, gate_up, down, shared })
    }

    /// Whether the file has a tensor.
    pub(super) fn has(&self, name: &str) -> bool {
        self.file.tensor(name).is_some()
    }

    fn tensor(&self, name: &str) -> Result<&'a TensorInfo> {
        match self.file.tensor(name) {
            Some(t) => Ok(t),
            None => bail!(BadFile, "{}: tensor {name} is missing", self.file.name()),
        }
    }

    fn format(&self, t: &TensorInfo) -> Result<&'static quant::Format> {
        match quant::by_ggml_type(t.ggml_type) {
            Some(f) => Ok(f),
            None => {
                let known: Vec<_> = quant::FORMATS.iter().map(|f| f.name).collect();
                bail!(
                    Unsupported,
                    "{}: tensor {}: type {} (this version runs {})",
                    self.file.name(),
                    t.name,
                    type_name(t.ggml_type),
                    known.join(", ")
                )
            }
        }
    }

    /// The tensors `<name>.weight` of `members`, each `[k, rows]`, with `<name>.bias` where there is one.
    pub(super) fn stack(&self, name: &str, k: u32, members: &[(&str, u32)]) -> Result<Stack<'a>> {
        self.stack_of(name, k, None, members)
    }

    /// As [`Finder::stack`], each `[k, rows, n_expert]` where there are experts.
    fn stack_of(&self, name: &str, k: u32, n_expert: Option<u32>, members: &[(&str, u32)]) -> Result<Stack<'a>> {
        let members =
            members.iter().map(|&(member, rows)| self.member(member, k, n_expert, rows)).collect::<Result<_>>()?;
        Ok(Stack { name: format!("{name}.weight"), k, n_expert, members })
    }

    /// Runs `(first, rows)` of the rows of a tensor that has `all` of them, in this order.
    pub(super) fn pieces(&self, name: &str, k: u32, all: u32, runs: &[(u32, u32)]) -> Result<Vec<Member<'a>>> {
        let whole = self.member(name, k, None, all)?;
        let piece = |&(first, rows): &(u32, u32)| {
            let bias = whole.bias.as_ref().map(|b| b[first as usize..(first + rows) as usize].to_vec());
            Member { name: whole.name.clone(), first, rows, bias, ..whole }
        };
        Ok(runs.iter().map(piece).collect())
    }

    /// The tensor `<name>.weight`, `[k, rows]` or `[k, rows, n_expert]`, with `<name>.bias` where there is one.
    fn member(&self, member: &str, k: u32, n_expert: Option<u32>, rows: u32) -> Result<Member<'a>> {
        let info = self.tensor(&format!("{member}.weight"))?;
        let wanted: Vec<u64> = [k, rows].into_iter().chain(n_expert).map(u64::from).collect();
        // Files leave out trailing dimensions of 1.
        if !info.dims.iter().chain([&1; 3]).take(wanted.len().max(info.dims.len())).eq(&wanted) {
            bail!(BadFile, "{}: tensor {}: shape {:?}, expected {wanted:?}", self.file.name(), info.name, info.dims);
        }
        let bias = self.optional_vector(&format!("{member}.bias"))?;
        let values: u64 = wanted.iter().skip(1).product();
        if let Some(b) = bias.as_ref().filter(|b| b.len() as u64 != values) {
            bail!(BadFile, "{}: tensor {member}.bias: {} values for {values} rows", self.file.name(), b.len());
        }
        Ok(Member { name: member.to_string(), info, format: self.format(info)?, first: 0, rows, bias })
    }

    /// `<name>.weight`, with `<name>.bias` where there is one, as vectors of `n` numbers.
    fn norm(&self, name: &str, n: u32) -> Result<NormPlan> {
        let bias = format!("{name}.bias");
        let bias = self.file.tensor(&bias).map(|_| self.vector(&bias, n)).transpose()?;
        Ok(NormPlan { w: self.vector(&format!("{name}.weight"), n)?, bias })
    }

    /// A tensor as a vector of `n` numbers.
    pub(super) fn vector(&self, name: &str, n: u32) -> Result<Vector> {
        let info = self.tensor(name)?;
        let values = self.values(info)?;
        if values.len() != n as usize {
            bail!(BadFile, "{}: tensor {name}: shape {:?}, expected [{n}]", self.file.name(), info.dims);
        }
        Ok(Vector { name: name.to_string(), values })
    }

    fn optional_vector(&self, name: &str) -> Result<Option<Vec<f32>>> {
        self.file.tensor(name).map(|t| self.values(t)).transpose()
    }

    /// A small tensor in f32.
    fn values(&self, t: &TensorInfo) -> Result<Vec<f32>> {
        let format = self.format(t)?;
        let n = t.elements();
        if n > 1 << 24 {
            bail!(BadFile, "{}: tensor {}: {n} elements where a vector is expected", self.file.name(), t.name);
        }
        let mut values = vec![0.0; n as usize];
        (format.dequantize)(&self.file.data(t), &mut values);
        Ok(values)
    }
}
