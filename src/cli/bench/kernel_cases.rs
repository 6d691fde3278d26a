//! The operations that `doppler bench kernels` measures: shapes of common models, and what each moves and computes.
//!
//! Bytes and operations are counted from shapes: each operand read once, each result written once; a product of a matrix with `k` columns
//! takes `2 k` operations for each result. Where an operation reads the same bytes again, its figure is lower for it.

use doppler::Result;
use doppler::gpu::{Buffer, BufferSlice, MemoryClass, Recorder};
use doppler::kernels::sample::{self as kernel, BIAS_ENTRIES, Chunks, Row, SamplingBuffers};
use doppler::kernels::{
    self, Activation, AngleTable, AttentionShape, ByteRows, HalfRoom, HalfRows, KvType, Matrix, Norm, NormKind,
    RopePairs, RopeShape, RowSource, Weight, WeightUploader,
};
use doppler::quant::{FORMATS, Format};
use doppler::sample::{SampleParams, SamplingOptions};

use super::super::selfcheck::{Layout, Rng, random_rows, row_words};
use super::kernels::Bench;

/// Records one operation, the `i`-th of a submit.
pub(super) type Work = Box<dyn Fn(&mut Recorder<'_>, usize) -> Result<()>>;

/// An operation on data of one shape.
pub(super) struct Case {
    pub(super) name: String,
    /// Bytes of operands and results.
    pub(super) bytes: u64,
    /// Additions and multiplications (and functions) on numbers; 0 where nothing is computed.
    pub(super) flops: u64,
    /// Uploads the data.
    pub(super) prepare: Prepare,
}

type Prepare = Box<dyn Fn(&Bench) -> Result<Work>>;

pub(super) fn case(name: String, bytes: u64, flops: u64, prepare: impl Fn(&Bench) -> Result<Work> + 'static) -> Case {
    Case { name, bytes, flops, prepare: Box::new(prepare) }
}

impl Bench {
    pub(super) fn words(&self, words: &[u32]) -> Result<Buffer> {
        let b = self.blank(words.len() as u64)?;
        self.gpu.upload(b.whole(), bytemuck::cast_slice(words), &self.scope)?;
        Ok(b)
    }

    pub(super) fn floats(&self, n: u64) -> Result<Buffer> {
        self.words(bytemuck::cast_slice(&Rng::new(n).units(n as usize)))
    }

    pub(super) fn blank(&self, words: u64) -> Result<Buffer> {
        self.gpu.storage("bench", (words * 4).next_multiple_of(16).max(16), MemoryClass::Other, &self.scope)
    }

    /// How many copies of a weight to take in turn, so that none is still in a cache when it is read again.
    fn copies(&self, bytes: u64) -> u64 {
        const BEYOND_CACHES: u64 = 192 << 20;
        if self.gpu.adapter().is_software() { 1 } else { BEYOND_CACHES.div_ceil(bytes.max(1)).clamp(1, 16) }
    }
}

pub(super) fn rows_of(n: u32) -> String {
    if n == 1 { "1 row".into() } else { format!("{n} rows") }
}

/// Room for rows as bytes.
struct Bytes([Buffer; 2], u32, u32);

impl Bytes {
    fn new(bench: &Bench, rows: u32, cols: u32) -> Result<Self> {
        let [quants, scales] = ByteRows::sizes(rows, cols);
        Ok(Self([bench.floats(quants / 4)?, bench.floats(scales / 4)?], rows, cols))
    }

    fn rows(&self) -> ByteRows<'_> {
        let [quants, scales] = &self.0;
        ByteRows { quants: quants.into(), scales: scales.into(), rows: self.1, cols: self.2 }
    }
}

fn matmul(format: &'static Format, n: u32, k: u32, rows: u32, bytes: bool) -> Case {
    let weight_bytes = format.row_bytes(k as usize) as u64 * u64::from(n);
    let (x, y) = (u64::from(rows) * u64::from(k), u64::from(rows) * u64::from(n));
    let name = format!("matmul {} {n}x{k}, {}{}", format.name, rows_of(rows), if bytes { " of bytes" } else { "" });
    case(name, weight_bytes + (x + y) * 4, 2 * y * u64::from(k), move |bench| {
        // Some random rows again and again: reading them takes the same time.
        let (some, _) = random_rows(format, &mut Rng::new(n.into()), 8, k as usize);
        let data: Vec<u8> = some.iter().copied().cycle().take(weight_bytes as usize).collect();
        let mut progress = |_| Ok(());
        let mut up = WeightUploader::new(&bench.gpu, &bench.scope, &mut progress);
        let source = RowSource { format, rows: n, data: &data, bias: None };
        let weights: Vec<Weight> =
            (0..bench.copies(weight_bytes)).map(|_| up.upload("bench", k, &[source])).collect::<Result<_>>()?;
        up.finish()?;
        let (xb, yb) = (bench.floats(x)?, bench.blank(y)?);
        let x_bytes = Bytes::new(bench, rows, k)?;
        let db = bench.blank(kernels::decoded_bytes(n, k, 128 << 20) / 4)?;
        let pb = bench.blank(kernels::few_parts_bytes(rows))?;
        let (hb, sb) = (bench.blank(HalfRows::data_bytes(rows.into(), k) / 4)?, bench.blank(rows.into())?);
        Ok(Box::new(move |r, i| {
            let room = HalfRoom {
                data: (&hb).into(),
                scales: (&sb).into(),
                weights: Some((&db).into()),
                parts: Some((&pb).into()),
            };
            let w = &weights[i % weights.len()];
            let (x, y) = (Matrix::new(&xb, rows, k), Matrix::new(&yb, rows, n));
            let dispatches = match bytes {
                true => kernels::matmul_bytes(r.gpu(), x_bytes.rows(), w, y, false)?,
                false => kernels::matmul_fast(r.gpu(), Some(room), x, w, y, false)?,
            };
            dispatches.into_iter().try_for_each(|d| r.record(d))
        }))
    })
}

fn rmsnorm(rows: u32, cols: u32, as_bytes: bool) -> Case {
    let n = u64::from(rows) * u64::from(cols);
    let bytes = (2 * n + u64::from(cols)) * 4;
    let name = format!("rmsnorm {rows}x{cols}{}", if as_bytes { " to bytes" } else { "" });
    case(name, bytes, 4 * n, move |bench| {
        let (x, w, y) = (bench.floats(n)?, bench.floats(cols.into())?, bench.blank(n)?);
        let out = Bytes::new(bench, rows, cols)?;
        Ok(Box::new(move |r, _| {
            let (x, y) = (Matrix::new(&x, rows, cols), Matrix::new(&y, rows, cols));
            let norm = Norm { kind: NormKind::Rms, eps: 1e-5, w: (&w).into(), bias: None };
            r.record(match as_bytes {
                true => kernels::norm_bytes(norm, x, y, out.rows())?,
                false => kernels::norm(norm, x, y, false)?,
            })
        }))
    })
}

fn softmax(rows: u32, cols: u32) -> Case {
    let n = u64::from(rows) * u64::from(cols);
    case(format!("softmax {rows}x{cols}"), 8 * n, 5 * n, move |bench| {
        let (x, y) = (bench.floats(n)?, bench.blank(n)?);
        Ok(Box::new(move |r, _| {
            r.record(kernels::softmax(Matrix::new(&x, rows, cols), Matrix::new(&y, rows, cols), 0.8)?)
        }))
    })
}

fn glu(rows: u32, cols: u32) -> Case {
    let n = u64::from(rows) * u64::from(cols);
    case(format!("glu silu {rows}x{cols}"), 12 * n, 5 * n, move |bench| {
        let (x, y) = (bench.floats(2 * n)?, bench.blank(n)?);
        Ok(Box::new(move |r, _| {
            let both = Matrix::new(&x, rows, 2 * cols);
            let (gate, up) = (both.columns(0, cols), both.columns(cols, cols));
            r.record(kernels::glu(Activation::Silu, gate, up, Matrix::new(&y, rows, cols))?)
        }))
    })
}

/// Heads of the attention cases: queries, keys and values, dimensions.
type Heads = (u32, u32, u32);

/// Cache, rows and tables of one sequence on the device.
struct Cache {
    layout: Layout,
    buffers: [Buffer; 4],
}

impl Cache {
    /// A cache of `length` positions in f16; the rows stand at `positions`.
    fn new(bench: &Bench, (_, n_kv, head_dim): Heads, length: u32, positions: &[u32]) -> Result<Self> {
        let mut rng = Rng::new(length.into());
        let layout = Layout::new(&mut rng, length, n_kv, head_dim);
        let half = |v: f32| u32::from(half::f16::from_f32(v).to_bits());
        let words: Vec<u32> =
            rng.units(layout.elements()).chunks_exact(2).map(|p| half(p[0]) | half(p[1]) << 16).collect();
        let (k, v) = (bench.words(&words)?, bench.words(&words)?);
        let buffers = [bench.words(&row_words(positions))?, bench.words(layout.table())?, k, v];
        Ok(Self { layout, buffers })
    }

    fn pages(&self) -> kernels::Pages<'_> {
        let [rows, tables, k, v] = &self.buffers;
        self.layout.bind(KvType::F16, [rows, tables, k, v])
    }
}

/// Bytes of one number of the cache.
const KV_BYTES: u64 = 2;

fn rope(rows: u32, heads: Heads) -> Case {
    let (n_head, n_kv, head_dim) = heads;
    let width = (n_head + 2 * n_kv) * head_dim;
    let (x, q) = (u64::from(rows) * u64::from(width), u64::from(rows) * u64::from(n_head * head_dim));
    let bytes = (x + q) * 4 + (x - q) * KV_BYTES;
    let rotated = u64::from(rows) * u64::from((n_head + n_kv) * head_dim);
    let name = format!("rope {n_head}/{n_kv} heads of {head_dim}, {}", rows_of(rows));
    case(name, bytes, 3 * rotated, move |bench| {
        let positions: Vec<u32> = (0..rows).collect();
        let cache = Cache::new(bench, heads, rows, &positions)?;
        let steps: Vec<f64> = (0..head_dim / 2).map(|i| 0.9f64.powi(i as i32)).collect();
        let angles = bench.words(bytemuck::cast_slice(&AngleTable::new(&steps, 1.0, rows).values))?;
        let (xb, qb) = (bench.floats(x)?, bench.blank(q)?);
        let shape = RopeShape { n_head, n_kv, head_dim, n_rot: head_dim, pairs: RopePairs::Halves };
        Ok(Box::new(move |r, _| {
            let x = Matrix::new(&xb, rows, width);
            r.record(kernels::rope(shape, x, cache.pages(), (&angles).into(), (&qb).into())?)
        }))
    })
}

/// One row at the end of `length` positions (decode), or all of them (prefill).
fn attention(heads: Heads, length: u32, prefill: bool) -> Case {
    let (n_head, n_kv, head_dim) = heads;
    let rows = if prefill { length } else { 1 };
    let n = u64::from(length);
    let q = u64::from(rows) * u64::from(n_head * head_dim);
    let bytes = 2 * q * 4 + 2 * n * u64::from(n_kv * head_dim) * KV_BYTES;
    let seen = if prefill { n * (n + 1) / 2 } else { n };
    let what = if prefill { "prefill" } else { "decode" };
    let name = format!("attention {what} {n_head}/{n_kv} heads of {head_dim}, kv {length}");
    case(name, bytes, 4 * seen * u64::from(n_head * head_dim), move |bench| {
        let positions: Vec<u32> = (length - rows..length).collect();
        let cache = Cache::new(bench, heads, length, &positions)?;
        let (qb, yb) = (bench.floats(q)?, bench.blank(q)?);
        let scale = 1.0 / (head_dim as f32).sqrt();
        let shape = AttentionShape { n_head, n_kv, head_dim, window: 0, scale, softcap: 0.0 };
        let coop = prefill && kernels::attention_coop_fits(bench.gpu.features(), head_dim, KvType::F16);
        let tiled = prefill && kernels::attention_prefill_fits(&bench.gpu, head_dim);
        let splits = kernels::attention_splits(&bench.gpu, &shape, rows);
        let [sums, tops] = kernels::AttentionParts::sizes(&shape, if tiled { 0 } else { rows }, splits);
        let (sums, tops) = (bench.blank(sums / 4)?, bench.blank(tops / 4)?);
        Ok(Box::new(move |r, _| {
            let (pages, q, y): (_, BufferSlice<'_>, BufferSlice<'_>) = (cache.pages(), (&qb).into(), (&yb).into());
            let parts = kernels::AttentionParts { sums: (&sums).into(), tops: (&tops).into() };
            match (coop, tiled, splits) {
                (true, ..) => r.record(kernels::attention_coop(r.gpu(), shape, rows, pages, q, y)?),
                (_, true, _) => r.record(kernels::attention_prefill(r.gpu(), shape, rows, pages, q, y)?),
                (.., 1) => r.record(kernels::attention_decode(r.gpu(), shape, rows, pages, q, y)?),
                _ => {
                    let both = kernels::attention_split(r.gpu(), shape, rows, splits, pages, q, parts, y, None)?;
                    both.into_iter().try_for_each(|d| r.record(d))
                }
            }
        }))
    })
}

/// The choice of one token from a row of logits: the row's maxima, then the draw.
fn sampling(vocab: u32, options: SamplingOptions) -> Case {
    let what = if options.is_greedy() { "greedy" } else { "draw" };
    case(format!("sample {what} of {vocab}"), u64::from(vocab) * 4, 0, move |bench| {
        let cut = Chunks::of(vocab);
        let logits: Vec<f32> = Rng::new(vocab.into()).units(vocab as usize).iter().map(|v| v * 8.0).collect();
        let lb = bench.words(bytemuck::cast_slice(&logits))?;
        let rows = bench.words(bytemuck::cast_slice(&[Row { slot: 0, pos: 7 }]))?;
        let params = bench.words(bytemuck::cast_slice(&[SampleParams::from(&options)]))?;
        let history = bench.words(&[0; 16])?;
        let bias = bench.blank(u64::from(BIAS_ENTRIES) * 2)?;
        let (partial, picked) = (bench.blank(u64::from(cut.chunks) * 2)?, bench.blank(1)?);
        Ok(Box::new(move |r, _| {
            let buffers = SamplingBuffers {
                rows: (&rows).into(),
                sampling: (&params).into(),
                history: (&history).into(),
                history_cap: 16,
                bias: (&bias).into(),
            };
            r.record(kernel::argmax(1, vocab, cut, (&lb).into(), (&partial).into())?)?;
            r.record(kernel::pick(1, vocab, cut, (&lb).into(), buffers, (&partial).into(), (&picked).into())?)
        }))
    })
}

fn copy(mebibytes: u64) -> Case {
    let bytes = mebibytes << 20;
    case(format!("copy {mebibytes} MiB"), 2 * bytes, 0, move |bench| {
        let (a, b) = (bench.floats(bytes / 4)?, bench.blank(bytes / 4)?);
        Ok(Box::new(move |r, _| r.copy(a.whole(), b.whole())))
    })
}

/// Everything measured; `quick` takes small shapes of the same operations.
pub(super) fn cases(quick: bool) -> Vec<Case> {
    let draw = || SamplingOptions { top_p: 0.95, top_k: 40, temperature: 0.8, ..SamplingOptions::greedy() };
    let mut all = Vec::new();
    // Each: out, in.
    let weights: &[(u32, u32)] = if quick { &[(256, 256)] } else { &[(4096, 4096), (14336, 4096), (4096, 14336)] };
    for format in FORMATS.iter().copied() {
        for &(n, k) in weights {
            for rows in if quick { &[1, 16][..] } else { &[1, 8, 16, 32, 64, 512, 4096] } {
                all.push(matmul(format, n, k, *rows, false));
            }
            if format.has_bytes() {
                all.extend([1, 8].map(|rows| matmul(format, n, k, rows, true)));
            }
        }
    }
    let (cols, inner, vocabularies, lengths, mebibytes): (_, _, &[u32], _, _) =
        if quick { (256, 512, &[2048], [32, 64], 1) } else { (4096, 14336, &[32_000, 128_256], [512, 4096], 64) };
    let (heads, batch) = if quick { ((4, 2, 64), 8) } else { ((32, 8, 128), 512) };
    for rows in [1, batch] {
        all.extend([
            rmsnorm(rows, cols, false),
            rmsnorm(rows, cols, true),
            softmax(rows, cols),
            glu(rows, inner),
            rope(rows, heads),
        ]);
    }
    all.extend(lengths.map(|length| attention(heads, length, false)));
    all.extend(lengths.map(|length| attention(heads, length, true)));
    for &vocab in vocabularies {
        all.extend([softmax(1, vocab), sampling(vocab, SamplingOptions::greedy()), sampling(vocab, draw())]);
    }
    all.extend(super::recurrent_cases::cases(quick));
    all.push(copy(mebibytes));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_bytes_and_operations_are_counted_from_shapes() {
        for quick in [false, true] {
            let names: std::collections::BTreeSet<_> = cases(quick).into_iter().map(|c| c.name).collect();
            assert_eq!(names.len(), cases(quick).len());
        }
        let c = matmul(doppler::quant::by_name("Q8_0").unwrap(), 14336, 4096, 1, false);
        assert_eq!((c.bytes, c.flops), (14336 * 4096 / 32 * 34 + (4096 + 14336) * 4, 2 * 14336 * 4096));
        let c = attention((32, 8, 128), 512, false);
        assert_eq!((c.bytes, c.flops), (2 * 4096 * 4 + 2 * 512 * 1024 * 2, 4 * 512 * 4096));
        let c = attention((32, 8, 128), 512, true);
        assert_eq!(c.flops, 4 * (512 * 513 / 2) * 4096);
    }
}
