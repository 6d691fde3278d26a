//! Chains: the products of a decode step in one dispatch, against the same one after another, which other checks compare with f64.

use std::sync::Arc;

use doppler::Result;
use doppler::gpu::{Buffer, Dispatch};
use doppler::kernels::{
    self, Activation, AttentionParts, ChainWidths, ExpertWeight, Input, Matrix, MoeShape, RowNorm, RowSource, Weight,
    WeightUploader,
};
use doppler::quant::{FORMATS, Format};

use super::attention::split_attention;
use super::bytes::Bytes;
use super::fused::Left;
use super::moe::{Mixture, expert_weight, random_ids};
use super::weights::{random_rows, weight};
use super::{Lab, Measured, Rng};

/// The residual stream, attention's heads, the inner width, and what reads the stream in the end, in two parts.
const EMBD: usize = 256;
const HEADS: usize = 512;
const INNER: usize = 768;
/// One that several rows of numbers are too large with for a workgroup's memory.
const WIDE_INNER: usize = 3072;
const TALL_INNER: usize = 2048;
const LAST: [usize; 2] = [160, 70];
/// Experts, and the inner width of one.
const EXPERTS: usize = 5;
const EXPERT_INNER: usize = 256;

/// Weights of a layer's products, and where they leave what they make.
struct Layer {
    rows: usize,
    kind: Kind,
    quants: bool,
    out: Weight,
    gate_up: Weight,
    down: Weight,
    last: Weight,
    norms: [Buffer; 2],
    heads: Bytes,
    heads_f32: Buffer,
    stream: Buffer,
    ff: Buffer,
    /// What blocks leave: attention for the feed-forward half, that for what comes after.
    left: [Left; 2],
    inner: Bytes,
    y: Buffer,
    experts: Option<Experts>,
}

/// Experts in the place of gate and up, and down. Without a router they are chosen already, and their rows have nothing to do with attention.
struct Experts {
    router: Option<(Weight, Buffer)>,
    gate_up: ExpertWeight,
    down: ExpertWeight,
    chosen: Mixture,
    x: Bytes,
    squares: Buffer,
    inner: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Dense,
    /// Two chains, since not all of it has room.
    Wide,
    /// With rows so long that a workgroup makes half a block of what follows.
    Tall,
    /// With attention's output in two parts, for both of which who comes after waits: so they are no stages.
    Parts,
    /// With so many last rows that a workgroup makes several groups of them.
    Long,
    Experts,
    RoutedExperts,
}

impl Kind {
    fn has_experts(self) -> bool {
        matches!(self, Self::Experts | Self::RoutedExperts)
    }

    fn last(self) -> [usize; 2] {
        if self == Self::Long { [123_000, LAST[1]] } else { LAST }
    }

    fn inner(self) -> usize {
        match self {
            Self::Wide => WIDE_INNER,
            Self::Tall => TALL_INNER,
            _ => INNER,
        }
    }
}

impl Experts {
    fn new(lab: &Lab, format: &'static Format, rows: usize, routed: bool) -> Result<Self> {
        let mut rng = Rng::new(rows as u64 + 7);
        let shape = MoeShape { rows: rows as u32, n_expert: EXPERTS as u32, n_used: 3 };
        let router = || Ok((weight(lab, FORMATS[0], EXPERTS, EMBD, None)?.0, lab.blank(rows * EXPERTS)?));
        let entries = shape.entries() as usize;
        let mut chosen = Mixture::new(lab, shape, [1, 1], &random_ids(&mut rng, shape, EXPERTS as u32))?;
        chosen.weights = lab.floats(&rng.units(entries))?;
        let x = lab.floats(&rng.units(rows * EMBD))?;
        let squares: Vec<f32> = rng.units(rows * EMBD / 32).iter().map(|s| 20.0 * s.abs()).collect();
        Ok(Self {
            router: routed.then(router).transpose()?,
            gate_up: expert_weight(lab, format, (EXPERTS, 2 * EXPERT_INNER, EMBD), None)?.0,
            down: expert_weight(lab, format, (EXPERTS, EMBD, EXPERT_INNER), None)?.0,
            chosen,
            x: Bytes::of(lab, Matrix::new(&x, rows as u32, EMBD as u32))?,
            squares: lab.floats(&squares)?,
            inner: Bytes::new(lab, entries, EXPERT_INNER)?,
        })
    }
}

impl Layer {
    fn new(lab: &Lab, format: &'static Format, rows: usize, kind: Kind) -> Result<Self> {
        let mut rng = Rng::new(rows as u64);
        let (bytes, routed, inner) = (format.has_bytes(), kind == Kind::RoutedExperts, kind.inner());
        let heads_f32 = lab.floats(&rng.units(rows * HEADS))?;
        let heads = Bytes::of(lab, Matrix::new(&heads_f32, rows as u32, HEADS as u32))?;
        let stream = lab.floats(&rng.units(rows * EMBD))?;
        let norms = [lab.floats(&rng.units(EMBD))?, lab.floats(&rng.units(EMBD))?];
        let bias = rng.units(EMBD);
        let mut progress = |_| Ok(());
        let mut uploader = WeightUploader::new(&lab.gpu, &lab.scope, &mut progress);
        // Of one format they would be one part.
        let formats =
            [format, FORMATS.iter().copied().find(|f| *f != format && f.has_bytes() == bytes).unwrap_or(format)];
        let mut in_parts = |rows: [usize; 2], k: usize| {
            let part = |i: usize| random_rows(formats[i], &mut rng, rows[i], k).0;
            let data = [0, 1].map(part);
            let source = |i: usize| RowSource { format: formats[i], rows: rows[i] as u32, data: &data[i], bias: None };
            uploader.upload(format.name, k as u32, &[source(0), source(1)])
        };
        let last = in_parts(kind.last(), EMBD)?;
        let out = match kind {
            Kind::Parts => in_parts([160, EMBD - 160], HEADS)?,
            _ => weight(lab, format, EMBD, HEADS, Some(&bias))?.0,
        };
        uploader.finish()?;
        Ok(Self {
            rows,
            kind,
            quants: format.has_bytes(),
            out,
            gate_up: weight(lab, format, 2 * inner, EMBD, None)?.0,
            down: weight(lab, format, EMBD, inner, None)?.0,
            last,
            norms,
            heads,
            heads_f32,
            stream,
            ff: lab.blank(rows * inner)?,
            left: [
                Left::new(lab, [bytes, !bytes || routed], rows, EMBD)?,
                Left::new(lab, [bytes, !bytes], rows, EMBD)?,
            ],
            inner: Bytes::new(lab, rows, inner)?,
            y: lab.blank(rows * kind.last().iter().sum::<usize>())?,
            experts: kind.has_experts().then(|| Experts::new(lab, format, rows, routed)).transpose()?,
        })
    }

    fn norm<'a>(&'a self, i: usize, sums: &'a Buffer) -> RowNorm<'a> {
        let scaled = self.left[i].numbers.is_some();
        RowNorm { w: (&self.norms[i]).into(), eps: 1e-5, sums: Some(sums.into()), scaled }
    }

    fn dispatches(&self, lab: &Lab) -> Result<Vec<Dispatch<'_>>> {
        let (gpu, rows) = (&lab.gpu, self.rows as u32);
        let x = Matrix::new(&self.stream, rows, EMBD as u32);
        let next = |i: usize| self.left[i].operand(&self.norms[i]);
        let [heads_bytes, inner] = [&self.heads, &self.inner].map(|bytes| self.quants.then(|| bytes.operand()));
        let input = |x, bytes, norm| Input { x, bytes, norm, half: None };
        // What reads the stream; its own numbers have no norm in them.
        let normed = |i: usize| {
            let left = &self.left[i];
            let numbers = left.numbers.as_ref().map_or(x, |n| Matrix::new(n, rows, EMBD as u32));
            input(numbers, left.bytes.as_ref().map(Bytes::operand), Some(self.norm(i, &left.sums)))
        };
        let heads = input(Matrix::new(&self.heads_f32, rows, HEADS as u32), heads_bytes, None);
        let ff = Matrix::new(&self.ff, rows, self.kind.inner() as u32);
        let mut all = Vec::new();
        if let Some(e) = &self.experts {
            let (routing, inner) = (e.chosen.routing(), e.inner.operand());
            let mut taken = input(x, Some(e.x.operand()), Some(self.norm(0, &e.squares)));
            if let Some((router, logits)) = &e.router {
                taken = normed(0);
                let logits = Matrix::new(logits, rows, EXPERTS as u32);
                all.extend(kernels::matmul_next(gpu, heads, &self.out, x, next(0))?);
                all.extend(kernels::matmul(gpu, Input { bytes: None, ..taken }, router, logits, false)?);
                all.push(kernels::moe_route(gpu, logits, routing, rows % 2 == 0, 0.7)?);
            }
            all.push(kernels::moe_glu(gpu, Activation::Silu, taken, &e.gate_up, routing, inner)?);
            all.push(kernels::moe_down(gpu, inner, &e.down, routing, None, x, Some(next(1)))?);
        } else {
            all.extend(kernels::matmul_next(gpu, heads, &self.out, x, next(0))?);
            all.push(kernels::matmul_glu(gpu, Activation::Silu, normed(0), &self.gate_up, ff, inner)?);
            all.extend(kernels::matmul_next(gpu, input(ff, inner, None), &self.down, x, next(1))?);
        }
        let y = Matrix::new(&self.y, rows, self.kind.last().iter().sum::<usize>() as u32);
        all.extend(kernels::matmul(gpu, normed(1), &self.last, y, false)?);
        Ok(all)
    }

    /// The stream and the last results; both begin anew.
    fn results(&self, lab: &Lab, before: &[f32]) -> Result<[Vec<f32>; 2]> {
        let n = self.rows * self.kind.last().iter().sum::<usize>();
        let got = [lab.read(&self.stream, before.len())?, lab.read(&self.y, n)?];
        lab.gpu.upload(self.stream.whole(), bytemuck::cast_slice(before), &lab.scope)?;
        lab.gpu.upload(self.y.whole(), bytemuck::cast_slice(&vec![super::BLANK; n]), &lab.scope)?;
        Ok(got)
    }
}

/// The numbers are the same but where a driver fuses a product with a sum in one form and not in the other; then a byte may be a step off. So the mean
/// error is compared with the mean size.
fn against(case: String, got: &[f32], want: &[f32]) -> Measured {
    let mean =
        |of: &dyn Fn(usize) -> f64| ((0..want.len()).map(|i| of(i).powi(2)).sum::<f64>() / want.len() as f64).sqrt();
    let error = mean(&|i| f64::from(got[i]) - f64::from(want[i]));
    Measured { case, error, bound: 2e-2 * mean(&|i| f64::from(want[i])) }
}

pub(super) fn chain(lab: &Lab) -> Result<Vec<Measured>> {
    if !lab.gpu.features().chains {
        return Ok(vec![Measured::exact("a device without chains".into(), 0)]);
    }
    let mut all = split_attention(lab)?;
    let quants = FORMATS.iter().filter(|f| f.has_bytes());
    // Their stages read formats as the others do: a part of the formats stands for all.
    let experts = quants.zip([Kind::RoutedExperts, Kind::Experts].iter().cycle()).step_by(3).map(|(f, k)| (f, *k));
    let wide =
        FORMATS.iter().filter(|f| f.name == "F16").flat_map(|f| [(f, Kind::Wide), (f, Kind::Tall), (f, Kind::Long)]);
    let long = FORMATS.iter().filter(|f| f.name == "Q4_0").flat_map(|f| [(f, Kind::Long), (f, Kind::Parts)]);
    for (i, (format, kind)) in
        FORMATS.iter().map(|f| (f, Kind::Dense)).chain(experts).chain(wide).chain(long).enumerate()
    {
        // One and two rows at a time; of numbers also four, and more than one such group.
        let rows = match kind {
            Kind::Wide => 8,
            Kind::Long | Kind::Tall => 1,
            _ if format.has_bytes() => 1 + i % 2,
            _ => [1, 2, 3, 8][i % 4],
        };
        let layer = Layer::new(lab, format, rows, kind)?;
        let before = lab.read(&layer.stream, rows * EMBD)?;
        lab.run(layer.dispatches(lab)?)?;
        let want = layer.results(lab, &before)?;
        let experts = if kind.has_experts() { EXPERTS as u32 } else { 0 };
        let widths =
            ChainWidths { n_embd: EMBD as u32, inner: kind.inner() as u32, experts, vocab: 0, quants: layer.quants };
        let end = widths.words(rows as u32);
        let words = lab.words(&vec![0; end as usize])?;
        // Three times: tags tell the words of one chain from those of the last.
        for tag in [1, 255, 2] {
            let mut recorder = lab.gpu.recorder("selfcheck", &lab.scope);
            recorder.hold();
            layer.dispatches(lab)?.into_iter().try_for_each(|d| recorder.record(d))?;
            kernels::record_chain(&mut recorder, &words, end, tag)?;
            let dispatches = recorder.stats().dispatches;
            recorder.submit()?;
            let got = layer.results(lab, &before)?;
            let case = format!("{rows} rows, {}, {kind:?}, tag {tag}", format.name);
            let wanted = match kind {
                Kind::Parts => 3,
                Kind::Wide => 2,
                _ => 1,
            };
            all.push(Measured::exact(format!("{case}: dispatches not {wanted}"), dispatches.abs_diff(wanted) as usize));
            all.push(Measured::exact(format!("{case}: given up"), lab.read_words(&words, 1)?[0] as usize));
            all.push(against(format!("{case}, the stream"), &got[0], &want[0]));
            all.push(against(format!("{case}, the last"), &got[1], &want[1]));
        }
    }
    Ok(all)
}

/// Split attention as a chain, twice: what it makes in `y` is what it made there as two dispatches.
pub(super) fn attention_chain(
    lab: &Lab,
    case: &str,
    dispatches: [Dispatch<'_>; 2],
    parts: AttentionParts<'_>,
    (y, want): (&Buffer, &[f32]),
) -> Result<Vec<Measured>> {
    let mut all = Vec::new();
    let n = 64 + kernels::attention_chain_words(parts.sums.size) as usize;
    let words = lab.words(&vec![0; n])?;
    // Where heads are too small, or not whole blocks, there are two as before.
    let head_dim = dispatches[0].variant.constant("HEAD_DIM").unwrap_or(0);
    let must = head_dim.is_multiple_of(32) && (128..=512).contains(&head_dim);
    let mut recorder = lab.gpu.recorder("selfcheck", &lab.scope);
    recorder.hold();
    dispatches.into_iter().try_for_each(|d| recorder.record(d))?;
    kernels::record_attention_chain(&mut recorder, "attn.scores", &words, 64)?;
    let wrong = must && recorder.stats().dispatches != 1;
    all.push(Measured::exact(format!("{case}, as a chain: dispatches beyond one"), usize::from(wrong)));
    let plan = Arc::new(recorder.into_plan()?);
    for _ in 0..2 {
        lab.gpu.upload(y.whole(), bytemuck::cast_slice(&vec![super::BLANK; want.len()]), &lab.scope)?;
        let mut recorder = lab.gpu.recorder("selfcheck", &lab.scope);
        recorder.replay(&plan);
        recorder.submit()?;
        all.push(against(format!("{case}, as a chain"), &lab.read(y, want.len())?, want));
        let left = lab.read_words(&words, n)?.iter().filter(|w| **w != 0).count();
        all.push(Measured::exact(format!("{case}, as a chain: words that are left, or given up"), left));
    }
    Ok(all)
}
