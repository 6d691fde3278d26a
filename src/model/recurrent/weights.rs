//! Weights of recurrent layers.

use crate::error::{Result, bail};
use crate::gpu::Buffer;
use crate::kernels::ScanShape;
use crate::model::recurrent::{RecurrentSpec, ScanRule, ScanSpec};
use crate::model::weights::{Allocator, Finder, Stack, Vector};

/// Of one layer, beside the two products.
#[derive(Debug)]
pub(crate) struct RecurrentWeights {
    /// `[channels][kernel]`.
    pub(crate) conv: Buffer,
    pub(crate) conv_bias: Option<Buffer>,
    pub(crate) scan: Option<ScanWeights>,
}

/// Of a scan.
#[derive(Debug)]
pub(crate) struct ScanWeights {
    /// Decay rate, summand of the step, factor of v, nothing: for each head.
    pub(crate) heads: Buffer,
    /// Of the gated normalisation.
    pub(crate) norm: Buffer,
    /// Lengths that q and k get, as weights of a normalisation.
    pub(crate) lengths: [Buffer; 2],
}

/// What is going to be uploaded.
pub(crate) struct RecurrentPlan {
    conv: Vector,
    conv_bias: Option<Vector>,
    scan: Option<ScanPlan>,
}

struct ScanPlan {
    heads: Vector,
    norm: Vector,
    lengths: [Vector; 2],
}

impl RecurrentPlan {
    pub(crate) fn upload(&self, to: &Allocator<'_, '_, '_>) -> Result<RecurrentWeights> {
        Ok(RecurrentWeights {
            conv: to.vector(&self.conv)?,
            conv_bias: self.conv_bias.as_ref().map(|b| to.vector(b)).transpose()?,
            scan: match &self.scan {
                Some(s) => Some(ScanWeights {
                    heads: to.vector(&s.heads)?,
                    norm: to.vector(&s.norm)?,
                    lengths: [to.vector(&s.lengths[0])?, to.vector(&s.lengths[1])?],
                }),
                None => None,
            },
        })
    }
}

impl<'a> Finder<'a> {
    /// First product, everything between, last product of a recurrent layer of width `e`.
    pub(crate) fn recurrent(
        &self,
        name: &dyn Fn(&str) -> String,
        m: &RecurrentSpec,
        e: u32,
    ) -> Result<(Stack<'a>, RecurrentPlan, Stack<'a>)> {
        let c = m.channels;
        let (conv, out) = match m.scan {
            None => ("shortconv.conv", name("shortconv.out_proj")),
            Some(_) => ("ssm_conv1d", name("ssm_out")),
        };
        let first = match &m.scan {
            None => {
                // Gate, gate, input.
                let fused = name("shortconv.in_proj");
                self.stack(&fused, e, &[(&fused, 3 * c)])?
            }
            Some(s) if s.rule == ScanRule::Mamba2 => {
                // The file has the gate first.
                let (fused, inner) = (name("ssm_in"), s.inner());
                let rows = [(inner, c), (0, inner), (inner + c, s.shape.n_head)];
                Stack::new(&fused, e, self.pieces(&fused, e, m.in_width(), &rows)?)
            }
            Some(s) => self.delta_inputs(name, m, s, e)?,
        };
        let conv_bias = format!("{}.bias", name(conv));
        let conv_bias = self.has(&conv_bias).then(|| self.vector(&conv_bias, c)).transpose()?;
        let plan = RecurrentPlan {
            conv: self.vector(&format!("{}.weight", name(conv)), m.conv_kernel * c)?,
            conv_bias,
            scan: m.scan.as_ref().map(|s| self.scan(name, s)).transpose()?,
        };
        Ok((first, plan, self.stack(&out, m.out_width(), &[(&out, e)])?))
    }

    /// q, k and v; gate; strengths; steps.
    fn delta_inputs(
        &self,
        name: &dyn Fn(&str) -> String,
        m: &RecurrentSpec,
        s: &ScanSpec,
        e: u32,
    ) -> Result<Stack<'a>> {
        let (qkv, gate, both, all) = (name("attn_qkv"), name("attn_gate"), name("ssm_ba"), name("ssm_in"));
        let ScanShape { n_head: heads, n_key, key_dim, .. } = s.shape;
        let (inner, share) = (s.inner(), heads / n_key);
        let mut members = Vec::new();
        if self.has(&format!("{all}.weight")) {
            // The first converters left q, k, v and gate of one key head and its heads together.
            let values = inner / n_key;
            let group = 2 * key_dim + 2 * values;
            let run = |first: u32, n: u32| (0..n_key).map(move |k| (k * group + first, n));
            let keys = run(0, key_dim).chain(run(key_dim, key_dim));
            let rows = keys.chain(run(2 * key_dim, values)).chain(run(2 * key_dim + values, values));
            members.extend(self.pieces(&all, e, n_key * group, &rows.collect::<Vec<_>>())?);
        } else {
            members.extend(self.pieces(&qkv, e, m.channels, &[(0, m.channels)])?);
            members.extend(self.pieces(&gate, e, inner, &[(0, inner)])?);
        }
        if self.has(&format!("{both}.weight")) {
            // Strengths and steps of the heads of one key head stand together.
            let run = |first: u32| (0..n_key).map(move |k| (2 * k * share + first, share));
            let rows: Vec<_> = run(0).chain(run(share)).collect();
            members.extend(self.pieces(&both, e, 2 * heads, &rows)?);
        } else {
            for part in ["ssm_beta", "ssm_alpha"] {
                members.extend(self.pieces(&name(part), e, heads, &[(0, heads)])?);
            }
        }
        Ok(Stack::new(&qkv, e, members))
    }

    fn scan(&self, name: &dyn Fn(&str) -> String, s: &ScanSpec) -> Result<ScanPlan> {
        let n = s.shape.n_head;
        let rate = self.vector(&name("ssm_a"), n)?;
        if let Some(a) = rate.values.iter().find(|a| !(a.is_finite() && **a <= 0.0)) {
            bail!(BadFile, "{}: tensor {}: {a} (a decay rate is negative)", self.file.name(), rate.name);
        }
        let summand = self.vector(&name("ssm_dt.bias"), n)?.values;
        let (skip, norm) = match s.rule {
            ScanRule::GatedDelta => (vec![0.0; n as usize], s.shape.head_dim),
            ScanRule::Mamba2 => (self.vector(&name("ssm_d"), n)?.values, s.inner()),
        };
        let heads = rate.values.iter().zip(summand).zip(skip).flat_map(|((&a, b), d)| [a, b, d, 0.0]).collect();
        // s / √(mean of squares) has length √dim: q is to have 1 / √dim, k 1.
        let dim = s.shape.key_dim;
        let length = |part: &str, w: f64| Vector { name: name(part), values: vec![w as f32; dim as usize] };
        Ok(ScanPlan {
            heads: Vector { name: name("ssm_heads"), values: heads },
            norm: self.vector(&format!("{}.weight", name("ssm_norm")), norm)?,
            lengths: [
                length("ssm_q_length", 1.0 / f64::from(dim)),
                length("ssm_k_length", 1.0 / f64::from(dim).sqrt()),
            ],
        })
    }
}
