//! Rotary embedding with the write to the paged cache, and attention over it.

use doppler::Result;
use doppler::gpu::{Buffer, Variant};
use doppler::kernels::constants::{KV_BLOCK_TOKENS, THREADS};
use doppler::kernels::{self, AngleTable, AttentionParts, AttentionShape, KvType, Matrix, RopePairs, RopeShape};

use super::bytes::Bytes;
use super::chain::attention_chain;
use super::fresh::fresh;
use super::{BLANK, Lab, Measured, Rng, Want, compare};

/// The types that can store heads of this size.
fn kv_types(head_dim: u32) -> impl Iterator<Item = KvType> {
    KvType::ALL.into_iter().filter(move |kv| kv.check(head_dim).is_ok())
}

fn halves(a: f32, b: f32) -> u32 {
    let half = |v: f32| u32::from(half::f16::from_f32(v).to_bits());
    half(a) | half(b) << 16
}

fn from_halves(w: u32) -> [f32; 2] {
    [w as u16, (w >> 16) as u16].map(|h| half::f16::from_bits(h).to_f32())
}

/// Rows of a cache, each a head at a position, as words of this type.
pub(super) fn pack(kv: KvType, head_dim: u32, values: &[f32]) -> Vec<u32> {
    let row_q8 = |row: &[f32]| {
        let scales: Vec<f32> =
            row.chunks_exact(32).map(|b| b.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0).collect();
        let byte = |(i, v): (usize, &f32)| (v / scales[i / 32].max(f32::MIN_POSITIVE)).round() as i8 as u8;
        let bytes: Vec<u8> = row.iter().enumerate().map(byte).collect();
        let mut words: Vec<u32> = bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect();
        words.extend(scales.chunks(2).map(|s| halves(s[0], s.get(1).copied().unwrap_or(0.0))));
        words
    };
    match kv {
        KvType::F32 => values.iter().map(|v| v.to_bits()).collect(),
        KvType::F16 => values.chunks_exact(2).map(|p| halves(p[0], p[1])).collect(),
        KvType::Q8 => values.chunks_exact(head_dim as usize).flat_map(row_q8).collect(),
    }
}

pub(super) fn unpack(kv: KvType, head_dim: u32, words: &[u32]) -> Vec<f32> {
    let row_q8 = |row: &[u32]| {
        let (bytes, scales) = row.split_at(head_dim as usize / 4);
        let bytes = bytes.iter().flat_map(|w| w.to_le_bytes()).enumerate();
        bytes.map(|(i, b)| from_halves(scales[i / 64])[i / 32 % 2] * f32::from(b as i8)).collect::<Vec<_>>()
    };
    match kv {
        KvType::F32 => words.iter().map(|&w| f32::from_bits(w)).collect(),
        KvType::F16 => words.iter().flat_map(|&w| from_halves(w)).collect(),
        KvType::Q8 => words.chunks_exact((kv.row_bytes(head_dim) / 4) as usize).flat_map(row_q8).collect(),
    }
}

/// How far a number may be off when it is stored: what to relate it to, and the share of that.
pub(super) fn storage_error(kv: KvType, want: &mut [Want]) -> f64 {
    match kv {
        KvType::F32 => 2e-6,
        // Half a unit of an f16.
        KvType::F16 => 1.02 / 2048.0,
        // Half a step of 127 to the largest of the block, and the rounding of the scale.
        KvType::Q8 => {
            for block in want.chunks_exact_mut(32) {
                let largest = block.iter().fold(0.0, |m: f64, w| m.max(w.0.abs()));
                block.iter_mut().for_each(|w| w.1 = largest);
            }
            0.5 / 127.0 + 1.02 / 2048.0
        }
    }
}

/// Blocks of one sequence, in random places.
pub(in crate::cli) struct Layout {
    table: Vec<u32>,
    n_kv: u32,
    head_dim: u32,
}

impl Layout {
    pub(in crate::cli) fn new(rng: &mut Rng, positions: u32, n_kv: u32, head_dim: u32) -> Self {
        Self { table: rng.permutation(positions.div_ceil(KV_BLOCK_TOKENS)), n_kv, head_dim }
    }

    pub(in crate::cli) fn elements(&self) -> usize {
        self.table.len() * (KV_BLOCK_TOKENS * self.n_kv * self.head_dim) as usize
    }

    /// The sequence's block table: which block holds its first positions, its next ones, and so on.
    pub(in crate::cli) fn table(&self) -> &[u32] {
        &self.table
    }

    /// The buffers as kernels take them: rows, block table, keys, values.
    pub(in crate::cli) fn bind<'a>(
        &self,
        kv_type: KvType,
        [rows, tables, k, v]: [&'a Buffer; 4],
    ) -> kernels::Pages<'a> {
        kernels::Pages {
            kv_type,
            rows: rows.into(),
            tables: tables.into(),
            table_stride: self.table.len() as u32,
            k: k.into(),
            v: v.into(),
        }
    }

    /// First element of a head at a position.
    pub(super) fn at(&self, pos: u32, head: u32) -> usize {
        let block = self.table[(pos / KV_BLOCK_TOKENS) as usize];
        (((block * self.n_kv + head) * KV_BLOCK_TOKENS + pos % KV_BLOCK_TOKENS) * self.head_dim) as usize
    }
}

/// Slot and position of each row.
pub(in crate::cli) fn row_words(positions: &[u32]) -> Vec<u32> {
    positions.iter().flat_map(|&p| [0, p]).collect()
}

/// A head after rotation, in f64.
pub(super) fn rotated(head: &[f32], shape: &RopeShape, steps: &[f64], pos: u32) -> Vec<Want> {
    let mut out: Vec<Want> = head.iter().map(|&v| f64::from(v).into()).collect();
    for (i, step) in steps.iter().enumerate() {
        let (a, b) = match shape.pairs {
            RopePairs::Adjacent => (2 * i, 2 * i + 1),
            RopePairs::Halves => (i, i + steps.len()),
            RopePairs::None => return out,
        };
        let (sin, cos) = (f64::from(pos) * step).sin_cos();
        let (x, y) = (f64::from(head[a]), f64::from(head[b]));
        out[a] = Want(x * cos - y * sin, x.abs() + y.abs());
        out[b] = Want(x * sin + y * cos, x.abs() + y.abs());
    }
    out
}

fn rope_case(lab: &Lab, shape: RopeShape, kv: KvType) -> Result<[Measured; 3]> {
    const POSITIONS: [u32; 5] = [0, 31, 255, 256, 9001];
    let RopeShape { n_head, n_kv, head_dim, n_rot, .. } = shape;
    let hd = head_dim as usize;
    let mut rng = Rng::new(u64::from(head_dim + n_rot));
    let pages = Layout::new(&mut rng, 9002, n_kv, head_dim);
    let width = (n_head + 2 * n_kv) * head_dim;
    let x = rng.units(POSITIONS.len() * width as usize);
    let steps: Vec<f64> =
        (0..n_rot / 2).map(|i| 10_000f64.powf(-2.0 * f64::from(i) / f64::from(n_rot.max(1)))).collect();
    let angles = AngleTable::new(&steps, 1.0, 9002);
    let xb = lab.floats(&x)?;
    let (rows, table) = (lab.words(&row_words(&POSITIONS))?, lab.words(&pages.table)?);
    let ab = lab.words(bytemuck::cast_slice(&angles.values))?;
    let q = lab.blank(POSITIONS.len() * (n_head * head_dim) as usize)?;
    let words = pack(kv, head_dim, &vec![BLANK; pages.elements()]);
    let (kb, vb) = (lab.words(&words)?, lab.words(&words)?);
    let binding = pages.bind(kv, [&rows, &table, &kb, &vb]);
    let qkv = Matrix::new(&xb, POSITIONS.len() as u32, width);
    lab.run([kernels::rope(shape, qkv, binding, (&ab).into(), (&q).into())?])?;

    let mut want_q = Vec::new();
    let mut want_k = vec![Want::from(f64::from(BLANK)); pages.elements()];
    let mut want_v = want_k.clone();
    for (row, &pos) in x.chunks_exact(width as usize).zip(&POSITIONS) {
        for (i, head) in row.chunks_exact(hd).enumerate() {
            let i = i as u32;
            if i < n_head {
                want_q.extend(rotated(head, &shape, &steps, pos));
            } else if i < n_head + n_kv {
                let at = pages.at(pos, i - n_head);
                want_k[at..at + hd].copy_from_slice(&rotated(head, &shape, &steps, pos));
            } else {
                let at = pages.at(pos, i - n_head - n_kv);
                for (w, &v) in want_v[at..at + hd].iter_mut().zip(head) {
                    *w = f64::from(v).into();
                }
            }
        }
    }
    let case = |what| format!("{what} {:?}, heads {n_head}/{n_kv} of {head_dim}, {}", shape.pairs, kv.name());
    let rel = storage_error(kv, &mut want_k).max(storage_error(kv, &mut want_v));
    let got_k = unpack(kv, head_dim, &lab.read_words(&kb, words.len())?);
    let got_v = unpack(kv, head_dim, &lab.read_words(&vb, words.len())?);
    Ok([
        compare(case("q"), &lab.read(&q, want_q.len())?, &want_q, 1e-7, 2e-6),
        compare(case("k"), &got_k, &want_k, 1e-7, rel),
        compare(case("v"), &got_v, &want_v, 1e-7, rel),
    ])
}

pub(super) fn rope(lab: &Lab) -> Result<Vec<Measured>> {
    let mut all = Vec::new();
    for pairs in [RopePairs::Adjacent, RopePairs::Halves, RopePairs::None] {
        for (n_head, n_kv, head_dim, n_rot) in [(3, 1, 20, 12), (4, 2, 64, 64), (2, 1, 96, 64)] {
            for kv in kv_types(head_dim) {
                all.extend(rope_case(lab, RopeShape { n_head, n_kv, head_dim, n_rot, pairs }, kv)?);
            }
        }
    }
    Ok(all)
}

/// One row's attention, in f64, of a sequence whose first position stands at `base`.
pub(super) fn attend(
    shape: &AttentionShape,
    pages: &Layout,
    [k, v]: [&[f32]; 2],
    q: &[f32],
    base: u32,
    pos: u32,
    sinks: Option<&[f32]>,
) -> Vec<Want> {
    let hd = shape.head_dim as usize;
    let low = if shape.window == 0 { 0 } else { (pos + 1).saturating_sub(shape.window) };
    let mut out = Vec::new();
    for (h, q) in q.chunks_exact(hd).enumerate() {
        let kv_head = h as u32 / (shape.n_head / shape.n_kv);
        let scores: Vec<f64> = (low..=pos)
            .map(|p| {
                let key = &k[pages.at(base + p, kv_head)..][..hd];
                let dot: f64 = q.iter().zip(key).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                let s = dot * f64::from(shape.scale);
                let cap = f64::from(shape.softcap);
                if cap > 0.0 { cap * (s / cap).tanh() } else { s }
            })
            .collect();
        let sink = sinks.and_then(|s| s.get(h)).map_or(f64::NEG_INFINITY, |&s| f64::from(s));
        let top = scores.iter().copied().fold(sink, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
        let total = weights.iter().sum::<f64>() + (sink - top).exp();
        for d in 0..hd {
            let terms =
                weights.iter().zip(low..).map(|(w, p)| w / total * f64::from(v[pages.at(base + p, kv_head) + d]));
            out.push(terms.fold(Want(0.0, 0.0), |Want(sum, size), t| Want(sum + t, size + t.abs())));
        }
    }
    out
}

/// Which operation is tried: a run of rows, the same by cooperative matrices, rows, or rows in so many splits, as bytes too or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Prefill,
    Coop,
    Decode,
    Split(u32, bool),
}

/// One case; with sinks, they are far below the scores, among and above them.
fn attention(
    lab: &Lab,
    shape: AttentionShape,
    kv: KvType,
    positions: &[u32],
    way: Way,
    with_sinks: bool,
) -> Result<Vec<Measured>> {
    let sinks: Vec<f32> = (0..shape.n_head).map(|h| [-90.0, 0.5, 4.0][h as usize % 3]).collect();
    let sb = lab.floats(&sinks)?;
    let sunk = |d| if with_sinks { shape.with_sinks(d, (&sb).into()) } else { Ok(d) };
    let AttentionShape { n_head, n_kv, head_dim, .. } = shape;
    let mut rng = Rng::new(u64::from(head_dim) + positions.len() as u64);
    let last = positions.iter().copied().max().unwrap_or(0);
    let pages = Layout::new(&mut rng, last + 1, n_kv, head_dim);
    let (kw, vw) = (pack(kv, head_dim, &rng.units(pages.elements())), pack(kv, head_dim, &rng.units(pages.elements())));
    let width = (n_head * head_dim) as usize;
    let q: Vec<f32> = rng.units(positions.len() * width).iter().map(|v| v * 2.0).collect();
    let (qb, yb) = (lab.floats(&q)?, lab.blank(q.len())?);
    let (rows, table) = (lab.words(&row_words(positions))?, lab.words(&pages.table)?);
    let (kb, vb) = (lab.words(&kw)?, lab.words(&vw)?);
    let t = positions.len() as u32;
    let binding = pages.bind(kv, [&rows, &table, &kb, &vb]);
    let (qs, y) = ((&qb).into(), (&yb).into());
    let case = format!(
        "heads {n_head}/{n_kv} of {head_dim}, {t} rows to {last}, window {}, {}, {way:?}, sinks: {with_sinks}",
        shape.window,
        kv.name()
    );
    let mut all = Vec::new();
    match way {
        Way::Prefill => lab.run([sunk(kernels::attention_prefill(&lab.gpu, shape, t, binding, qs, y)?)?])?,
        Way::Coop => lab.run([sunk(kernels::attention_coop(&lab.gpu, shape, t, binding, qs, y)?)?])?,
        Way::Decode => lab.run([sunk(kernels::attention_decode(&lab.gpu, shape, t, binding, qs, y)?)?])?,
        Way::Split(splits, to_bytes) => {
            let [sums, tops] = AttentionParts::sizes(&shape, t, splits);
            // Parts without a tile are not written and must not count.
            let nan = |bytes: u64| lab.floats(&vec![f32::NAN; bytes as usize / 4]);
            let (sums, tops) = (nan(sums)?, nan(tops)?);
            let parts = AttentionParts { sums: (&sums).into(), tops: (&tops).into() };
            let bytes = if to_bytes { Some(Bytes::new(lab, positions.len(), width)?) } else { None };
            let out = bytes.as_ref().map(Bytes::operand);
            let split = || -> Result<_> {
                let [rows, combine] = kernels::attention_split(&lab.gpu, shape, t, splits, binding, qs, parts, y, out)?;
                Ok([rows, sunk(combine)?])
            };
            lab.run(split()?)?;
            if lab.gpu.features().chains {
                let want = lab.read(&yb, q.len())?;
                all.extend(attention_chain(lab, &case, split()?, parts, (&yb, &want))?);
            }
            if let Some(bytes) = &bytes {
                all.push(bytes.compare(lab, format!("{case}, its bytes"), &lab.read(&yb, q.len())?)?);
            }
        }
    }
    let (k, v) = (unpack(kv, head_dim, &kw), unpack(kv, head_dim, &vw));
    let sinks = with_sinks.then_some(sinks.as_slice());
    let want: Vec<Want> = q
        .chunks_exact(width)
        .zip(positions)
        .flat_map(|(q, &pos)| attend(&shape, &pages, [&k, &v], q, 0, pos, sinks))
        .collect();
    // Queries and weights in f16 lose up to 2^-12, and a score's error is that of its weight.
    let rel = if way == Way::Coop { 4e-3 } else { 2e-5 };
    all.push(compare(case, &lab.read(&yb, q.len())?, &want, 1e-6, rel));
    Ok(all)
}

/// Two shapes: plain, and with everything on.
fn shapes(first: u32) -> [AttentionShape; 2] {
    let shape = |n_head, n_kv, head_dim: u32, window, softcap| AttentionShape {
        n_head,
        n_kv,
        head_dim,
        window,
        scale: 1.0 / (head_dim as f32).sqrt(),
        softcap,
    };
    [shape(3, 1, first, 0, 0.0), shape(4, 2, 64, 37, 15.0)]
}

/// Heads of a size that the variant is for: teams of a small subgroup take small heads.
fn head_for(lab: &Lab, v: &Variant, usual: u32) -> u32 {
    match v.constant("WG") {
        Some(threads) if threads > 2 * THREADS => 544,
        _ if v.has("SHUFFLE") => usual.min(kernels::attention_lanes_head(&lab.gpu).max(16)),
        _ => 288,
    }
}

pub(super) fn decode(lab: &Lab) -> Result<Vec<Measured>> {
    let mut all = Vec::new();
    for v in lab.variants("attention_decode") {
        let together = v.constant("G").unwrap_or(1);
        let Some(kv) = KvType::ALL.into_iter().find(|kv| v.fragment("kv").is_some_and(|f| f.ends_with(kv.name())))
        else {
            continue;
        };
        let odd = if kv.check(20).is_ok() { 20 } else { 32 };
        let head_dim = head_for(lab, &v, [odd, 64, 96][together as usize / 2]);
        let shape = AttentionShape { n_head: 3 * together, n_kv: 3, ..shapes(head_dim)[0] };
        let shape = if together == 2 { AttentionShape { window: 37, softcap: 15.0, ..shape } } else { shape };
        if v.has("FRESH") {
            all.extend(fresh(lab, &v, shape, kv)?);
            continue;
        }
        let way = if v.has("SPLIT") { Way::Split(2, false) } else { Way::Decode };
        all.extend(attention(lab, shape, kv, &[0, 7, 64, 331], way, v.has("SINKS"))?);
    }
    for v in lab.variants("attention_combine") {
        for head_dim in if v.has("BYTES") { [96, 544] } else { [80, 540] } {
            let way = Way::Split(4, v.has("BYTES"));
            all.extend(attention(lab, shapes(head_dim)[0], KvType::F16, &[0, 131, 700], way, v.has("SINKS"))?);
        }
    }
    Ok(all)
}

/// Split attention, which runs as a chain as well where there are chains.
pub(super) fn split_attention(lab: &Lab) -> Result<Vec<Measured>> {
    let mut all = Vec::new();
    for (head_dim, bytes, sinks) in [(128, true, false), (80, false, true)] {
        all.extend(attention(lab, shapes(head_dim)[0], KvType::F16, &[0, 131, 700], Way::Split(4, bytes), sinks)?);
    }
    Ok(all)
}

pub(super) fn prefill(lab: &Lab) -> Result<Vec<Measured>> {
    let mut all = Vec::new();
    for shape in shapes(80).into_iter().chain([shapes(128)[0]]) {
        for kv in kv_types(shape.head_dim) {
            if kernels::attention_prefill_fits(&lab.gpu, shape.head_dim) {
                for positions in [0..17u32, 55..96] {
                    for sinks in [false, true] {
                        let positions: Vec<u32> = positions.clone().collect();
                        all.extend(attention(lab, shape, kv, &positions, Way::Prefill, sinks)?);
                    }
                }
            }
            if kernels::attention_coop_fits(lab.gpu.features(), shape.head_dim, kv) {
                for positions in [0..17u32, 55..96, 30..211] {
                    let positions: Vec<u32> = positions.collect();
                    for sinks in [false, true] {
                        all.extend(attention(lab, shape, kv, &positions, Way::Coop, sinks)?);
                    }
                }
            }
        }
    }
    Ok(all)
}
