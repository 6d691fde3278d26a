//! Attention over the paged cache, decode and prefill.

use doppler::gpu::{Buffer, BufferSlice, FULL_WIDTH, Gpu, GpuOptions};
use doppler::kernels::constants::KV_BLOCK_TOKENS;
use doppler::kernels::{
    AttentionParts, AttentionShape, KvType, Pages, attention_decode, attention_prefill, attention_prefill_fits,
    attention_split, attention_splits,
};

use crate::bytes::{Bytes, rounded};
use crate::common::*;
use crate::rope::{kv_types, kv_values, kv_words, row_words};

/// Keys and values of several sequences, in pages in random order; whatever no query may read is NaN.
struct Cache {
    k: Vec<Vec<f32>>,
    v: Vec<Vec<f32>>,
    kb: Buffer,
    vb: Buffer,
    tables: Buffer,
    table_stride: u32,
}

/// `spans[s]`: the positions of slot `s` that are stored.
fn cache(gpu: &Gpu, rng: &mut Rng, shape: &AttentionShape, kv: KvType, spans: &[std::ops::Range<u32>]) -> Cache {
    let (bt, hd, n_kv) = (KV_BLOCK_TOKENS, shape.head_dim as usize, shape.n_kv);
    let blocks = |s: &std::ops::Range<u32>| s.end.div_ceil(bt) - s.start / bt;
    let n_blocks = spans.iter().map(blocks).sum::<u32>() + 1;
    let table_stride = spans.iter().map(|s| s.end.div_ceil(bt)).max().unwrap() + 2;
    let mut free = rng.permutation(n_blocks);
    let nothing = free.pop().unwrap();
    let mut tables = vec![nothing; spans.len() * table_stride as usize];
    let elements = (n_blocks * n_kv * bt) as usize * hd;
    // What no position has written is NaN, or has a scale of NaN.
    let mut kp = kv_words(kv, shape.head_dim, &vec![f32::NAN; elements]);
    let mut vp = kp.clone();
    let words = row_words(kv, shape.head_dim);
    let mut row = |pages: &mut [u32], at: usize| {
        let stored = kv_words(kv, shape.head_dim, &rng.floats(hd));
        pages[at * words..][..words].copy_from_slice(&stored);
        kv_values(kv, shape.head_dim, &stored)
    };
    let (mut k, mut v) = (Vec::new(), Vec::new());
    for (slot, span) in spans.iter().enumerate() {
        for b in span.start / bt..span.end.div_ceil(bt) {
            tables[slot * table_stride as usize + b as usize] = free.pop().unwrap();
        }
        // [position][head][dimension], from position 0 on.
        let size = (span.end * n_kv) as usize * hd;
        let (mut ks, mut vs) = (vec![f32::NAN; size], vec![f32::NAN; size]);
        for pos in span.clone() {
            let block = tables[slot * table_stride as usize + (pos / bt) as usize];
            for head in 0..n_kv {
                let at = ((block * n_kv + head) * bt + pos % bt) as usize;
                let from = (pos * n_kv + head) as usize * hd;
                ks[from..from + hd].copy_from_slice(&row(&mut kp, at));
                vs[from..from + hd].copy_from_slice(&row(&mut vp, at));
            }
        }
        k.push(ks);
        v.push(vs);
    }
    let (kb, vb) = (upload_words(gpu, &kp), upload_words(gpu, &vp));
    Cache { k, v, kb, vb, tables: upload_words(gpu, &tables), table_stride }
}

/// First position that a query sees.
fn first(shape: &AttentionShape, pos: u32) -> u32 {
    if shape.window == 0 { 0 } else { (pos + 1).saturating_sub(shape.window) }
}

fn attention64(shape: &AttentionShape, c: &Cache, rows: &[(u32, u32)], q: &[f32]) -> Vec<Want> {
    attention_with_sinks64(shape, c, rows, q, None)
}

fn attention_with_sinks64(
    shape: &AttentionShape,
    c: &Cache,
    rows: &[(u32, u32)],
    q: &[f32],
    sinks: Option<&[f32]>,
) -> Vec<Want> {
    let (hd, n_kv) = (shape.head_dim as usize, shape.n_kv as usize);
    let group = (shape.n_head / shape.n_kv) as usize;
    let mut out = Vec::new();
    for (t, &(slot, pos)) in rows.iter().enumerate() {
        let (ks, vs) = (&c.k[slot as usize], &c.v[slot as usize]);
        for h in 0..shape.n_head as usize {
            let qh = &q[(t * shape.n_head as usize + h) * hd..][..hd];
            let at = |p: u32| (p as usize * n_kv + h / group) * hd;
            let span = first(shape, pos)..pos + 1;
            let mut scores: Vec<f64> = span
                .clone()
                .map(|p| {
                    let dot: f64 = qh.iter().zip(&ks[at(p)..]).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                    let s = dot * f64::from(shape.scale);
                    let cap = f64::from(shape.softcap);
                    if cap > 0.0 { cap * (s / cap).tanh() } else { s }
                })
                .collect();
            let sink = sinks.map_or(f64::NEG_INFINITY, |s| f64::from(s[h]));
            let top = scores.iter().copied().fold(sink, f64::max);
            scores.iter_mut().for_each(|s| *s = (*s - top).exp());
            let total: f64 = scores.iter().sum::<f64>() + (sink - top).exp();
            let mut y = vec![Want::from(0.0); hd];
            for (p, s) in span.zip(&scores) {
                for (y, &x) in y.iter_mut().zip(&vs[at(p)..]) {
                    y.value += s / total * f64::from(x);
                    y.magnitude += s / total * f64::from(x.abs());
                }
            }
            out.extend(y);
        }
    }
    out
}

fn shape(n_head: u32, n_kv: u32, head_dim: u32, window: u32, softcap: f32) -> AttentionShape {
    AttentionShape { n_head, n_kv, head_dim, window, scale: 1.0 / (head_dim as f32).sqrt(), softcap }
}

/// Sharp and flat softmaxes.
fn queries(rng: &mut Rng, n: usize) -> Vec<f32> {
    rng.floats(n).iter().map(|q| q * 4.0).collect()
}

fn flat(rows: &[(u32, u32)]) -> Vec<u32> {
    rows.iter().flat_map(|&(s, p)| [s, p]).collect()
}

const LENGTHS: [u32; 9] = [1, 31, 32, 33, 63, 64, 65, 257, 2049];

/// One dispatch: every length, each in its own slot, and a second row in the longest one's past.
fn decode(v: &Variant, shape: AttentionShape, kv: KvType) {
    let gpu: &Gpu = &v.gpu;
    let mut rng = Rng(u64::from(shape.head_dim * 8 + shape.window));
    let mut rows: Vec<(u32, u32)> = LENGTHS.iter().enumerate().map(|(s, n)| (s as u32, n - 1)).collect();
    rows.reverse();
    rows.push((8, 2000));
    // What lies before a window may be gone already.
    let spans: Vec<_> = LENGTHS.iter().map(|&n| first(&shape, if n > 2000 { 2000 } else { n - 1 })..n).collect();
    let c = cache(gpu, &mut rng, &shape, kv, &spans);
    let n = rows.len() * (shape.n_head * shape.head_dim) as usize;
    let q = queries(&mut rng, n);
    let (qb, rb, y) = (upload(gpu, &q), upload_words(gpu, &flat(&rows)), untouched(gpu, n + 1));
    let d = attention_decode(gpu, shape, rows.len() as u32, pages(&c, &rb, kv), BufferSlice::from(&qb), (&y).into());
    run(gpu, d);
    let mut want = attention64(&shape, &c, &rows, &q);
    want.push(f64::from(UNTOUCHED).into());
    close(&format!("decode {shape:?} {kv:?} ({})", v.name), &download(gpu, &y, n + 1), &want, 1e-6, 1e-5);
    // In more splits than there are tiles, in fewer, and in one.
    for splits in [64, 3, 1] {
        let what = format!("decode in {splits} splits {shape:?} {kv:?} ({})", v.name);
        let t = rows.len() as u32;
        let [sums, tops] = AttentionParts::sizes(&shape, t, splits);
        // Parts of splits without a tile must not count: they are NaN.
        let [sums, tops] = [sums, tops].map(|bytes| upload(gpu, &vec![f32::NAN; bytes as usize / 4]));
        let parts = AttentionParts { sums: (&sums).into(), tops: (&tops).into() };
        let (y, width) = (untouched(gpu, n + 1), (shape.n_head * shape.head_dim) as usize);
        let bytes = shape.head_dim.is_multiple_of(32).then(|| Bytes::new(gpu, rows.len(), width));
        let out = bytes.as_ref().map(Bytes::operand);
        let pages = pages(&c, &rb, kv);
        run(
            gpu,
            attention_split(gpu, shape, t, splits, pages, BufferSlice::from(&qb), parts, (&y).into(), out).unwrap(),
        );
        let got = download(gpu, &y, n + 1);
        close(&what, &got, &want, 1e-6, 1e-5);
        if let Some(bytes) = bytes {
            rounded(&what, &bytes.read(gpu), &got[..n]);
        }
    }
}

#[test]
fn splits_are_for_few_rows() {
    let Some(gpu) = open(GpuOptions { width: FULL_WIDTH, ..Default::default() }) else { return };
    let splits = |s: &AttentionShape, rows| attention_splits(&gpu, s, rows);
    let s = shape(32, 8, 128, 0, 0.0);
    assert!(splits(&s, 1) > splits(&s, 4) && splits(&s, 4) > 1);
    assert_eq!(splits(&s, 10_000), 1);
    assert!(splits(&shape(1, 1, 64, 0, 0.0), 1) >= 16);
    // A narrow device is full with less.
    let Some(gpu) = open(GpuOptions { width: 4, ..Default::default() }) else { return };
    assert_eq!((gpu.width(), attention_splits(&gpu, &s, 1)), (4, 1));
}

const HEAD_DIMS: [u32; 5] = [16, 64, 80, 128, 256];

#[test]
fn decode_of_every_length_head_and_option() {
    for v in variants() {
        for (i, head_dim) in HEAD_DIMS.into_iter().enumerate() {
            for kv in kv_types(head_dim) {
                let groups = [(2, 2), (4, 2), (4, 1)];
                if v.full {
                    for (n_head, n_kv) in groups {
                        decode(v, shape(n_head, n_kv, head_dim, 0, 0.0), kv);
                    }
                    for (window, softcap) in [(1, 0.0), (33, 0.0), (100, 2.0), (0, 5.0)] {
                        decode(v, shape(4, 2, head_dim, window, softcap), kv);
                    }
                } else {
                    let (n_head, n_kv) = groups[i % 3];
                    decode(v, shape(n_head, n_kv, head_dim, [0, 64][i % 2], [3.0, 0.0][i % 2]), kv);
                }
            }
        }
    }
}

/// Heads whose fourth is no power of two, and one that needs more threads than the usual workgroup.
#[test]
fn decode_of_unusual_heads() {
    for v in variants().iter().filter(|v| v.full || v.own_shaders) {
        for head_dim in [4, 20, 96, 320, 576] {
            decode(v, shape(2, 1, head_dim, 0, 0.0), KvType::F16);
        }
    }
}

fn prefill(v: &Variant, shape: AttentionShape, kv: KvType, start: u32, t_rows: u32) {
    let gpu: &Gpu = &v.gpu;
    if !attention_prefill_fits(gpu, shape.head_dim) {
        assert!(shape.head_dim > 128, "heads of {} must fit everywhere", shape.head_dim);
        return;
    }
    let mut rng = Rng(u64::from(shape.head_dim + start * 3 + t_rows));
    let rows: Vec<(u32, u32)> = (0..t_rows).map(|i| (1, start + i)).collect();
    // Slot 0 holds something else.
    let c = cache(gpu, &mut rng, &shape, kv, &[0..40, first(&shape, start)..start + t_rows]);
    let n = (t_rows * shape.n_head * shape.head_dim) as usize;
    let q = queries(&mut rng, n);
    let (qb, rb, y) = (upload(gpu, &q), upload_words(gpu, &flat(&rows)), untouched(gpu, n + 1));
    let d = attention_prefill(gpu, shape, t_rows, pages(&c, &rb, kv), (&qb).into(), (&y).into());
    run(gpu, d);
    let mut want = attention64(&shape, &c, &rows, &q);
    want.push(f64::from(UNTOUCHED).into());
    let what = format!("prefill {start}+{t_rows} {shape:?} {kv:?} ({})", v.name);
    close(&what, &download(gpu, &y, n + 1), &want, 1e-6, 1e-5);
}

#[test]
fn prefill_of_every_length_head_and_option() {
    for v in variants() {
        for (i, head_dim) in HEAD_DIMS.into_iter().enumerate() {
            for kv in kv_types(head_dim) {
                if !v.full {
                    prefill(v, shape(4, 2, head_dim, [0, 20][i % 2], [3.0, 0.0][i % 2]), kv, 29, 40);
                    continue;
                }
                for (start, t_rows) in [(0, 1), (0, 15), (0, 17), (2048, 1), (31, 2), (100, 5), (2001, 48)] {
                    prefill(v, shape(4, 2, head_dim, 0, 0.0), kv, start, t_rows);
                }
                for (n_head, n_kv) in [(2, 2), (4, 1)] {
                    prefill(v, shape(n_head, n_kv, head_dim, 0, 0.0), kv, 33, 30);
                }
                for (window, softcap) in [(1, 0.0), (33, 0.0), (100, 2.0), (0, 5.0)] {
                    prefill(v, shape(2, 1, head_dim, window, softcap), kv, 90, 50);
                }
            }
        }
        if v.full {
            for t_rows in LENGTHS.into_iter().filter(|&n| n < 2000) {
                prefill(v, shape(2, 1, 64, 0, 0.0), KvType::F16, 0, t_rows);
            }
            prefill(v, shape(1, 1, 16, 0, 0.0), KvType::F32, 0, 2049);
        }
    }
}

/// A sink far below the scores, among them, above them, and so far above that nothing else counts; both kernels, over lengths of several tiles.
fn sinks(v: &Variant, shape: AttentionShape, kv: KvType) {
    let gpu: &Gpu = &v.gpu;
    let mut rng = Rng(u64::from(shape.head_dim + shape.window));
    let values: Vec<f32> = (0..shape.n_head).map(|h| [-200.0, 0.5, 6.0, 90.0][h as usize % 4] + rng.unit()).collect();
    let sinks = upload(gpu, &values);
    let c = cache(gpu, &mut rng, &shape, kv, &[0..40, 0..301]);
    for (start, t_rows) in [(0u32, 1u32), (0, 21), (257, 44)] {
        let rows: Vec<(u32, u32)> = (0..t_rows).map(|i| (1, start + i)).collect();
        let n = (t_rows * shape.n_head * shape.head_dim) as usize;
        let q = queries(&mut rng, n);
        let (qb, rb) = (upload(gpu, &q), upload_words(gpu, &flat(&rows)));
        let mut want = attention_with_sinks64(&shape, &c, &rows, &q, Some(&values));
        want.push(f64::from(UNTOUCHED).into());
        let [sums, tops] = AttentionParts::sizes(&shape, t_rows, 5).map(|bytes| untouched(gpu, bytes as usize / 4));
        let parts = AttentionParts { sums: (&sums).into(), tops: (&tops).into() };
        let y = untouched(gpu, n + 1);
        let split = attention_split(
            gpu,
            shape,
            t_rows,
            5,
            pages(&c, &rb, kv),
            BufferSlice::from(&qb),
            parts,
            (&y).into(),
            None,
        );
        let [rows, combine] = split.expect("dispatches");
        run(gpu, [rows, shape.with_sinks(combine, (&sinks).into()).expect("sinks")]);
        let what = format!("sinks, {start}+{t_rows}, split, {shape:?} {kv:?} ({})", v.name);
        close(&what, &download(gpu, &y, n + 1), &want, 1e-6, 1e-5);
        for prefill in [false, true] {
            let y = untouched(gpu, n + 1);
            let p = pages(&c, &rb, kv);
            let d = match prefill {
                false => attention_decode(gpu, shape, t_rows, p, BufferSlice::from(&qb), (&y).into()),
                true => attention_prefill(gpu, shape, t_rows, p, (&qb).into(), (&y).into()),
            };
            run(gpu, d.map(|d| shape.with_sinks(d, (&sinks).into()).expect("sinks")));
            let what = format!("sinks, {start}+{t_rows}, prefill {prefill}, {shape:?} {kv:?} ({})", v.name);
            close(&what, &download(gpu, &y, n + 1), &want, 1e-6, 1e-5);
        }
    }
}

#[test]
fn sinks_of_every_size() {
    for v in variants() {
        for kv in kv_types(64) {
            sinks(v, shape(4, 2, 64, 0, 0.0), kv);
            sinks(v, shape(8, 1, 64, 33, 0.0), kv);
        }
        sinks(v, shape(4, 4, 80, 0, 5.0), KvType::F16);
    }
    let Some(v) = full() else { return };
    let b = untouched(&v.gpu, 256);
    let s = || (&b).into();
    let p = Pages { rows: s(), tables: s(), table_stride: 1, kv_type: KvType::F16, k: s(), v: s() };
    let shape = shape(2, 1, 64, 0, 0.0);
    let d = attention_decode(&v.gpu, shape, 1, p, s(), s()).expect("dispatch");
    assert!(shape.with_sinks(d, b.slice(0, 4)).is_err(), "one sink for two heads");
}

/// Lengths around every border that an implementation might have.
const NO_CLIFF: [u32; 10] = [1, 31, 32, 33, 255, 257, 2047, 2048, 2049, 8193];
/// Heads of every size and sharing, windows from one position to more than there are, with and without cap: one case for each type.
const CASES: [(u32, u32, u32, u32, f32); 7] = [
    (2, 2, 64, 0, 0.0),
    (2, 1, 80, 0, 30.0),
    (4, 1, 96, 2048, 0.0),
    (4, 1, 128, 33, 0.0),
    (2, 1, 256, 8192, 0.0),
    (1, 1, 512, 0, 0.0),
    (8, 1, 32, 2047, 50.0),
];

fn pages<'a>(c: &'a Cache, rows: &'a Buffer, kv: KvType) -> Pages<'a> {
    let (tables, k, v) = ((&c.tables).into(), (&c.kb).into(), (&c.vb).into());
    Pages { rows: rows.into(), tables, table_stride: c.table_stride, kv_type: kv, k, v }
}

/// Rows at the end of each length, alone and as a run of 3 rows, in one slot; what lies before the windows is not there.
fn ends(gpu: &Gpu, what: &str, shape: AttentionShape, kv: KvType) {
    let mut rng = Rng(u64::from(shape.head_dim + shape.window));
    for (i, n) in NO_CLIFF.into_iter().enumerate() {
        // The longest rows cost the most: not for every case.
        if n == 8193 && shape.head_dim > 128 && kv == KvType::F32 {
            continue;
        }
        let runs: &[u32] = if attention_prefill_fits(gpu, shape.head_dim) { &[0, 3] } else { &[0] };
        let start = n.saturating_sub(3);
        let c = cache(gpu, &mut rng, &shape, kv, &[first(&shape, start)..n, 0..1 + i as u32]);
        for &run_rows in runs {
            let rows: Vec<(u32, u32)> =
                if run_rows == 0 { vec![(0, n - 1)] } else { (start..n).map(|p| (0, p)).collect() };
            let len = rows.len() * (shape.n_head * shape.head_dim) as usize;
            let q = queries(&mut rng, len);
            let (qb, rb, y) = (upload(gpu, &q), upload_words(gpu, &flat(&rows)), untouched(gpu, len + 1));
            let t = rows.len() as u32;
            let d = if run_rows == 0 {
                attention_decode(gpu, shape, t, pages(&c, &rb, kv), BufferSlice::from(&qb), (&y).into())
            } else {
                attention_prefill(gpu, shape, t, pages(&c, &rb, kv), (&qb).into(), (&y).into())
            };
            run(gpu, d);
            let mut want = attention64(&shape, &c, &rows, &q);
            want.push(f64::from(UNTOUCHED).into());
            let what = format!("{what}: {t} rows up to {n}, {shape:?} {kv:?}");
            close(&what, &download(gpu, &y, len + 1), &want, 1e-6, 1e-5);
        }
    }
}

#[test]
fn no_length_is_a_cliff() {
    for v in variants().iter().filter(|v| v.full || v.own_shaders) {
        for (i, (n_head, n_kv, head_dim, window, softcap)) in CASES.into_iter().enumerate() {
            for (j, kv) in kv_types(head_dim).enumerate() {
                // The variants of the device share the cases; with everything on, all run.
                if v.full || (i + j) % 3 == 0 && head_dim <= 128 {
                    ends(&v.gpu, v.name, shape(n_head, n_kv, head_dim, window, softcap), kv);
                }
            }
        }
    }
}

#[test]
fn attention_refuses_shapes_that_disagree() {
    let Some(v) = full() else { return };
    let gpu: &Gpu = &v.gpu;
    let b = untouched(gpu, 256);
    let s = || (&b).into();
    let pages = || Pages { rows: s(), tables: s(), table_stride: 1, kv_type: KvType::F16, k: s(), v: s() };
    for (shape, rows) in [
        (shape(3, 2, 16, 0, 0.0), 1),
        (shape(2, 0, 16, 0, 0.0), 1),
        (shape(2, 1, 6, 0, 0.0), 1),
        (shape(2, 1, 2048, 0, 0.0), 1),
        (shape(2, 1, 64, 0, 0.0), 3),
    ] {
        assert!(attention_decode(gpu, shape, rows, pages(), s(), s()).is_err(), "{shape:?}");
        let parts = AttentionParts { sums: s(), tops: s() };
        assert!(attention_split(gpu, shape, rows, 1, pages(), s(), parts, s(), None).is_err(), "{shape:?}");
        assert!(attention_prefill(gpu, shape, rows, pages(), s(), s()).is_err(), "{shape:?}");
    }
    assert!(!attention_prefill_fits(gpu, 20), "the tiled kernel wants multiples of 16");
    assert!(!attention_prefill_fits(gpu, 272), "larger heads take the other kernel");
    assert!(attention_prefill(gpu, shape(2, 1, 20, 0, 0.0), 1, pages(), s(), s()).is_err());
}
