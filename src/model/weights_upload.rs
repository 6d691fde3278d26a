//! Weights to the device. What a [`LoadPlan`] lists gets its buffers on one thread, which then plans and compiles everything else, while another fills
//! them with the file's rows.

use std::sync::mpsc::{Receiver, Sender};

use super::*;
use crate::kernels::{RowBytes, RowShape, UploadTimes, WeightFill, upload_vector};

/// A weight whose buffers are there, and the tensors that it is to be filled with.
pub(crate) struct Unfilled<'p, 'a> {
    weight: Weight,
    stack: &'p Stack<'a>,
}

/// Makes buffers, and says which are to be filled.
pub(in crate::model) struct Allocator<'g, 'p, 'a> {
    gpu: &'g Gpu,
    scope: &'g Scope,
    file: &'a Gguf,
    unfilled: Sender<Unfilled<'p, 'a>>,
}

impl<'p, 'a> Allocator<'_, 'p, 'a> {
    pub(in crate::model) fn vector(&self, v: &Vector) -> Result<Buffer> {
        upload_vector(self.gpu, self.scope, &v.name, &v.values)
    }

    fn norm(&self, p: &NormPlan) -> Result<NormWeights> {
        Ok(NormWeights { w: self.vector(&p.w)?, bias: p.bias.as_ref().map(|b| self.vector(b)).transpose()? })
    }

    fn optional_norm(&self, p: &Option<NormPlan>) -> Result<Option<NormWeights>> {
        p.as_ref().map(|p| self.norm(p)).transpose()
    }

    fn stack(&self, s: &'p Stack<'a>) -> Result<Weight> {
        let shape = |m: &'p Member<'a>| RowShape { format: m.format, rows: m.rows, bias: m.bias.as_deref() };
        let shapes: Vec<_> = s.members.iter().map(shape).collect();
        let weight = Weight::allocate(self.gpu, self.scope, &s.name, s.k, s.n_expert.unwrap_or(1), &shapes)
            .map_err(|e| e.within(self.file.name()))?;
        match self.unfilled.send(Unfilled { weight: weight.clone(), stack: s }) {
            Ok(()) => Ok(weight),
            // The other thread has the reason.
            Err(_) => bail!(Cancelled, "filling the weights has ended"),
        }
    }

    fn experts(&self, s: &'p Stack<'a>) -> Result<ExpertWeight> {
        Ok(ExpertWeight::of(self.stack(s)?, s.n_expert.unwrap_or(1)))
    }

    fn layer(&self, l: &'p LayerPlan<'a>) -> Result<LayerWeights> {
        Ok(LayerWeights {
            attn_norm: self.optional_norm(&l.attn_norm)?,
            qkv: self.stack(&l.qkv)?,
            qk_norm: match &l.qk_norm {
                Some([q, k]) => Some([self.vector(q)?, self.vector(k)?]),
                None => None,
            },
            sinks: l.sinks.as_ref().map(|v| self.vector(v)).transpose()?,
            recurrent: l.recurrent.as_ref().map(|p| p.upload(self)).transpose()?,
            attn_out: self.stack(&l.attn_out)?,
            attn_post_norm: self.optional_norm(&l.attn_post_norm)?,
            ffn_norm: self.optional_norm(&l.ffn_norm)?,
            feed_forward: self.feed_forward(&l.feed_forward)?,
            ffn_post_norm: self.optional_norm(&l.ffn_post_norm)?,
        })
    }

    fn feed_forward(&self, p: &'p FeedForwardPlan<'a>) -> Result<FeedForwardWeights> {
        let Some(router) = &p.router else {
            return Ok(FeedForwardWeights::Dense { up: self.stack(&p.gate_up)?, down: self.stack(&p.down)? });
        };
        Ok(FeedForwardWeights::Experts(Box::new(ExpertsWeights {
            router: self.stack(router)?,
            gate_up: self.experts(&p.gate_up)?,
            down: self.experts(&p.down)?,
            shared: match &p.shared {
                Some(s) => Some(SharedWeights {
                    gate: s.gate.as_ref().map(|gate| self.stack(gate)).transpose()?,
                    gate_up: self.stack(&s.gate_up)?,
                    down: self.stack(&s.down)?,
                }),
                None => None,
            },
        })))
    }
}

impl<'a> LoadPlan<'a> {
    /// Makes all buffers, and fills those of vectors. The matrices go to `unfilled`, for [`LoadPlan::fill`].
    pub(crate) fn allocate<'p>(
        &'p self,
        gpu: &Gpu,
        spec: &ModelSpec,
        n_ctx: u32,
        scope: &Scope,
        unfilled: Sender<Unfilled<'p, 'a>>,
    ) -> Result<Weights> {
        let to = Allocator { gpu, scope, file: self.file, unfilled };
        let embedding = to.stack(&self.embedding)?;
        let positions = self.positions.as_ref().map(|s| to.stack(s)).transpose()?;
        let layers = self.layers.iter().map(|l| to.layer(l)).collect::<Result<_>>()?;
        let output = self.output.as_ref().map(|s| to.stack(s)).transpose()?;
        let mut angles = Vec::with_capacity(spec.ropes.len());
        for rope in &spec.ropes {
            let table = rope.angles(&self.divisors, n_ctx).map_err(|e| e.within(self.file.name()))?;
            angles.push(upload_vector(gpu, scope, "rope angles", bytemuck::cast_slice(&table.values))?);
        }
        let output_norm = to.norm(&self.output_norm)?;
        Ok(Weights { embedding, positions, layers, output_norm, output, angles })
    }

    /// Uploads the matrices that come, until no more can. `progress` gets the bytes of the file handed over so far and in all; an error from it ends the load.
    pub(crate) fn fill(
        &self,
        unfilled: &Receiver<Unfilled<'_, 'a>>,
        gpu: &Gpu,
        scope: &Scope,
        progress: &mut dyn FnMut(u64, u64) -> Result<()>,
    ) -> Result<UploadTimes> {
        let total = self.file_bytes();
        let mut done = 0;
        let mut step = |bytes| {
            done += bytes;
            progress(done, total)
        };
        let rows = |s: &Stack<'a>, m: &Member<'a>| RowBytes {
            rows: m.rows,
            bytes: self.file.data(m.info),
            from: m.format.row_bytes(s.k as usize) * m.first as usize,
        };
        let mut fills = unfilled.iter().map(|Unfilled { weight, stack }| {
            let rows = stack.members.iter().map(|m| rows(stack, m)).collect();
            WeightFill::new(&weight, stack.n_expert.unwrap_or(1), rows)
        });
        let mut up = WeightUploader::new(gpu, scope, &mut step);
        up.fill(total, &mut fills).and_then(|()| up.finish()).map_err(|e| match e {
            // What the progress callback returned is the caller's own word.
            Error::Cancelled(_) => e,
            e => e.within(self.file.name()),
        })
    }
}
