//! Weights to the device: what a [`LoadPlan`] lists, read from the file and handed to the uploader.

use std::borrow::Cow;

use super::*;

impl<'a> LoadPlan<'a> {
    /// Uploads everything. `progress` gets the bytes of the file handed over so far and in all; an error from it ends the load.
    pub(crate) fn upload(
        &self,
        gpu: &Gpu,
        spec: &ModelSpec,
        n_ctx: u32,
        scope: &Scope,
        progress: &mut dyn FnMut(u64, u64) -> Result<()>,
    ) -> Result<Weights> {
        let total = self.file_bytes();
        let mut done = 0;
        progress(0, total)?;
        let mut step = |bytes| {
            done += bytes;
            progress(done, total)
        };
        let mut up = WeightUploader::new(gpu, scope, &mut step);
        let embedding = self.stack(&mut up, &self.embedding)?;
        let positions = self.positions.as_ref().map(|s| self.stack(&mut up, s)).transpose()?;
        let mut layers = Vec::with_capacity(self.layers.len());
        for l in &self.layers {
            layers.push(LayerWeights {
                attn_norm: optional_norm(&mut up, &l.attn_norm)?,
                qkv: self.stack(&mut up, &l.qkv)?,
                qk_norm: match &l.qk_norm {
                    Some([q, k]) => Some([vector(&mut up, q)?, vector(&mut up, k)?]),
                    None => None,
                },
                sinks: l.sinks.as_ref().map(|v| vector(&mut up, v)).transpose()?,
                recurrent: l.recurrent.as_ref().map(|p| p.upload(&mut up)).transpose()?,
                attn_out: self.stack(&mut up, &l.attn_out)?,
                attn_post_norm: optional_norm(&mut up, &l.attn_post_norm)?,
                ffn_norm: optional_norm(&mut up, &l.ffn_norm)?,
                feed_forward: self.feed_forward(&mut up, &l.feed_forward)?,
                ffn_post_norm: optional_norm(&mut up, &l.ffn_post_norm)?,
            });
        }
        let output = self.output.as_ref().map(|s| self.stack(&mut up, s)).transpose()?;
        let mut angles = Vec::with_capacity(spec.ropes.len());
        for rope in &spec.ropes {
            let table = rope.angles(&self.divisors, n_ctx).map_err(|e| e.within(self.file.name()))?;
            angles.push(up.vector("rope angles", bytemuck::cast_slice(&table.values))?);
        }
        let output_norm = norm(&mut up, &self.output_norm)?;
        up.finish()?;
        Ok(Weights { embedding, positions, layers, output_norm, output, angles })
    }

    fn feed_forward(&self, up: &mut WeightUploader<'_>, p: &FeedForwardPlan<'_>) -> Result<FeedForwardWeights> {
        let Some(router) = &p.router else {
            return Ok(FeedForwardWeights::Dense { up: self.stack(up, &p.gate_up)?, down: self.stack(up, &p.down)? });
        };
        Ok(FeedForwardWeights::Experts(Box::new(ExpertsWeights {
            router: self.stack(up, router)?,
            gate_up: self.experts(up, &p.gate_up)?,
            down: self.experts(up, &p.down)?,
            shared: match &p.shared {
                Some(s) => Some(SharedWeights {
                    gate: s.gate.as_ref().map(|gate| self.stack(up, gate)).transpose()?,
                    gate_up: self.stack(up, &s.gate_up)?,
                    down: self.stack(up, &s.down)?,
                }),
                None => None,
            },
        })))
    }

    /// The bytes of a stack's members.
    fn data(&self, s: &Stack<'_>) -> Vec<Cow<'a, [u8]>> {
        s.members.iter().map(|m| self.file.data(m.info)).collect()
    }

    fn stack(&self, up: &mut WeightUploader<'_>, s: &Stack<'_>) -> Result<Weight> {
        up.upload(&s.name, s.k, &sources(s, &self.data(s))).map_err(|e| self.blame(e))
    }

    fn experts(&self, up: &mut WeightUploader<'_>, s: &Stack<'_>) -> Result<ExpertWeight> {
        up.upload_experts(&s.name, s.k, s.n_expert.unwrap_or(1), &sources(s, &self.data(s))).map_err(|e| self.blame(e))
    }

    /// Names the file in an error of uploading.
    fn blame(&self, e: Error) -> Error {
        match e {
            // What the progress callback returned is the caller's own word.
            Error::Cancelled(_) => e,
            e => e.within(self.file.name()),
        }
    }
}

fn sources<'s>(s: &'s Stack<'_>, data: &'s [Cow<'_, [u8]>]) -> Vec<RowSource<'s>> {
    let source = |(m, data): (&'s Member<'_>, &'s Cow<'_, [u8]>)| {
        let from = m.format.row_bytes(s.k as usize) * m.first as usize;
        let data = &data[from..from + s.bytes(m) as usize];
        RowSource { format: m.format, rows: m.rows, data, bias: m.bias.as_deref() }
    };
    s.members.iter().zip(data).map(source).collect()
}

pub(in crate::model) fn vector(up: &mut WeightUploader<'_>, v: &Vector) -> Result<Buffer> {
    up.vector(&v.name, &v.values)
}

fn norm(up: &mut WeightUploader<'_>, p: &NormPlan) -> Result<NormWeights> {
    Ok(NormWeights { w: vector(up, &p.w)?, bias: p.bias.as_ref().map(|b| vector(up, b)).transpose()? })
}

fn optional_norm(up: &mut WeightUploader<'_>, p: &Option<NormPlan>) -> Result<Option<NormWeights>> {
    p.as_ref().map(|p| norm(up, p)).transpose()
}
