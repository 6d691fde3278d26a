//! Products that take the next operation along, and attention that takes the one before, against the operations alone, each of which is
//! compared with references in f64 elsewhere; `doppler test correctness` compares every variant of these with f64.

use doppler::gpu::{Buffer, BufferSlice, Gpu};
use doppler::kernels::{
    Activation, AngleTable, AttentionParts, AttentionShape, Fresh, Input, KvType, Matrix, Next, Norm, NormKind, Pages,
    Queries, RopePairs, RopeShape, RowNorm, Segments, attention_decode, attention_split, glu, matmul, matmul_glu,
    matmul_glu_fits, matmul_next, matmul_next_fits, norm, norm_bytes, qk_norm, rope,
};
use doppler::quant::{Format, by_name};

use crate::bytes::Bytes;
use crate::common::*;
use crate::rope::{kv_types, kv_words};
use crate::weights::{TestWeight, weight};

const EPS: f32 = 1e-5;

fn format(name: &str) -> &'static Format {
    by_name(name).unwrap_or_else(|| panic!("no format {name}"))
}

/// Normalised rows three ways: by the norm, to be normalised by the product, and as bytes to be normalised by it.
struct Rows {
    x: Buffer,
    w: Buffer,
    normed: Buffer,
    weighted: Buffer,
    bytes: Bytes,
    normed_bytes: Bytes,
    sums: Buffer,
    halves: Buffer,
    rows: u32,
    k: u32,
}

impl Rows {
    fn new(gpu: &Gpu, rows: usize, k: usize) -> Self {
        let mut rng = Rng(k as u64 + 3);
        let (x, w) = (rng.floats(rows * k), rng.floats(k));
        let sums: Vec<f32> = x.chunks(32).map(|b| b.iter().map(|v| v * v).sum()).collect();
        let half = |i| x.chunks(16).skip(i).step_by(2).map(|b| b.iter().map(|v| v * v).sum());
        let halves: Vec<f32> = half(0).chain(half(1)).collect();
        let weighted: Vec<f32> = x.chunks_exact(k).flat_map(|r| r.iter().zip(&w).map(|(x, w)| x * w)).collect();
        let this = Self {
            x: upload(gpu, &x),
            w: upload(gpu, &w),
            normed: untouched(gpu, rows * k),
            weighted: upload(gpu, &weighted),
            bytes: Bytes::new(gpu, rows, k.next_multiple_of(32)),
            normed_bytes: Bytes::new(gpu, rows, k.next_multiple_of(32)),
            sums: upload(gpu, &sums),
            halves: upload(gpu, &halves),
            rows: rows as u32,
            k: k as u32,
        };
        run(gpu, norm(this.norm(), this.plain(), this.of(&this.normed), false));
        if k.is_multiple_of(32) {
            run(gpu, doppler::kernels::byte_rows(this.of(&this.weighted), this.bytes.operand()));
            let out = untouched(gpu, rows * k);
            run(gpu, norm_bytes(this.norm(), this.plain(), this.of(&out), this.normed_bytes.operand()));
        }
        this
    }

    fn of<'a>(&self, b: &'a Buffer) -> Matrix<'a> {
        Matrix::new(b, self.rows, self.k)
    }

    fn plain(&self) -> Matrix<'_> {
        self.of(&self.x)
    }

    fn norm(&self) -> Norm<'_> {
        Norm { kind: NormKind::Rms, eps: EPS, w: (&self.w).into(), bias: None }
    }

    /// As numbers that have the norm's weights in them.
    fn scaled(&self) -> Input<'_> {
        let norm = RowNorm { w: (&self.w).into(), eps: EPS, sums: Some((&self.halves).into()), scaled: true };
        Input { norm: Some(norm), ..self.of(&self.weighted).into() }
    }

    /// Beforehand, and by the way.
    fn inputs(&self, as_bytes: bool) -> [Input<'_>; 2] {
        let (w, normed) = ((&self.w).into(), self.of(&self.normed));
        match as_bytes {
            false => {
                let norm = Some(RowNorm { w, eps: EPS, sums: None, scaled: false });
                [normed.into(), Input { norm, ..self.plain().into() }]
            }
            true => {
                let norm = Some(RowNorm { w, eps: EPS, sums: Some((&self.sums).into()), scaled: false });
                [
                    Input { bytes: Some(self.normed_bytes.operand()), ..normed.into() },
                    Input { x: self.plain(), bytes: Some(self.bytes.operand()), norm, half: None },
                ]
            }
        }
    }
}

/// Two results of the same sums in another order. Bytes before and after a factor may round to neighbours: half a step of 127 in each term.
fn alike(what: &str, got: &[f32], want: &[f32], w: &TestWeight, k: usize, as_bytes: bool) {
    let top = w.values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let size = f64::from(top) * (k as f64).sqrt() * if as_bytes { 3.0 / 127.0 } else { 2e-5 };
    let want: Vec<Want> = want.iter().map(|&v| Want { value: v.into(), magnitude: f64::from(v).abs() + 1.0 }).collect();
    close(what, got, &want, size, 1e-4);
}

#[test]
fn norms_in_products() {
    for v in variants() {
        let gpu: &Gpu = &v.gpu;
        let formats = if v.full { &["F32", "F16", "Q8_0", "Q4_0", "Q6_K"][..] } else { &["F16", "Q4_0"] };
        for (f, as_bytes) in formats.iter().flat_map(|f| [(f, false), (f, true)]) {
            let w_format = format(f);
            if as_bytes && !w_format.has_bytes() {
                continue;
            }
            // Three rows and more are staged where teams are long.
            for (rows, k) in [(1usize, 256usize), (3, 1024), (2, 36), (7, 768), (5, 2048)] {
                if k == 36 && w_format.block_len > 1 {
                    continue;
                }
                let w = weight(gpu, &mut Rng(k as u64), k, &[(w_format, 133)], true);
                let input = Rows::new(gpu, rows, k);
                let [want, got] = input.inputs(as_bytes).map(|x| {
                    let y = untouched(gpu, rows * 133 + 1);
                    run(gpu, matmul(gpu, x, &w.weight, Matrix::new(&y, rows as u32, 133), false).unwrap());
                    download(gpu, &y, rows * 133 + 1)
                });
                alike(&format!("{f} {rows} x {k} bytes {as_bytes} ({})", v.name), &got, &want, &w, k, as_bytes);
                if !w_format.has_bytes() && k.is_multiple_of(32) {
                    let y = untouched(gpu, rows * 133 + 1);
                    run(gpu, matmul(gpu, input.scaled(), &w.weight, Matrix::new(&y, rows as u32, 133), false).unwrap());
                    let got = download(gpu, &y, rows * 133 + 1);
                    alike(&format!("{f} {rows} x {k} scaled ({})", v.name), &got, &want, &w, k, false);
                }
            }
        }
    }
}

#[test]
fn gates_in_products() {
    for v in variants() {
        let gpu: &Gpu = &v.gpu;
        let cases = [
            ("F16", 1, 36, 67u32),
            ("Q4_0", 1, 2048, 96),
            ("Q8_0", 4, 96, 64),
            ("Q4_K", 3, 256, 37),
            ("Q8_0", 6, 544, 96),
            ("Q4_0", 5, 544, 51),
        ];
        for (f, rows, k, n) in cases.into_iter().filter(|c| v.full || c.0 == "Q8_0") {
            let w = weight(gpu, &mut Rng(u64::from(n)), k, &[(format(f), 2 * n)], false);
            let input = Rows::new(gpu, rows, k);
            for (as_bytes, which) in [(false, Activation::Silu), (true, Activation::GeluTanh)] {
                if as_bytes && !w.weight.has_bytes() {
                    continue;
                }
                let [plain, by_the_way] = input.inputs(as_bytes);
                let count = rows * n as usize;
                let (both, want, got) = (untouched(gpu, 2 * count), untouched(gpu, count), untouched(gpu, count + 1));
                let wide = Matrix::new(&both, rows as u32, 2 * n);
                run(gpu, matmul(gpu, plain, &w.weight, wide, false).unwrap());
                let y = Matrix::new(&want, rows as u32, n);
                run(gpu, glu(which, wide.columns(0, n), wide.columns(n, n), y));
                let y = Matrix::new(&got, rows as u32, n);
                let bytes = n.is_multiple_of(32).then(|| Bytes::new(gpu, rows, n as usize));
                let out = bytes.as_ref().map(Bytes::operand);
                assert!(matmul_glu_fits(which, &w.weight));
                run(gpu, matmul_glu(gpu, which, by_the_way, &w.weight, y, out));
                let (got, mut want) = (download(gpu, &got, count + 1), download(gpu, &want, count));
                want.push(UNTOUCHED);
                let largest = want.iter().fold(1.0f32, |m, v| m.max(v.abs()));
                let scaled = |v: &[f32]| v.iter().map(|v| v / largest.sqrt()).collect::<Vec<f32>>();
                let what = format!("{f} {rows} x {k} by {n}, {which:?} bytes {as_bytes} ({})", v.name);
                alike(&what, &scaled(&got), &scaled(&want), &w, k, as_bytes);
                if let Some(bytes) = bytes {
                    crate::bytes::rounded(&what, &bytes.read(gpu), &got[..count]);
                }
            }
        }
    }
}

/// What rounding to 16 bits of mantissa does to a number, at most.
const SHORTENED: f64 = 1.0 / 65_536.0;

/// The residual stream, its rows for the next block, and its squares.
fn next_of(v: &Variant, w: &TestWeight, rows: usize, k: usize, as_bytes: bool) {
    let gpu: &Gpu = &v.gpu;
    let n = w.weight.rows() as usize;
    let mut rng = Rng(n as u64);
    let (old, next_w) = (rng.floats(rows * n), rng.floats(n));
    let input = Rows::new(gpu, rows, k);
    let (want, got, wb) = (upload(gpu, &old), upload(gpu, &old), upload(gpu, &next_w));
    let (bytes, numbers) = (Bytes::new(gpu, rows, n), untouched(gpu, rows * n));
    // Beside numbers they are of halves of blocks.
    let blocks = rows * n / 32;
    let n_sums = if as_bytes { blocks } else { 2 * blocks };
    let sums = untouched(gpu, n_sums + 1);
    run(gpu, matmul(gpu, input.plain(), &w.weight, Matrix::new(&want, rows as u32, n as u32), true).unwrap());
    let left = (as_bytes.then(|| bytes.operand()), (!as_bytes).then(|| (&numbers).into()));
    let next = Next { w: (&wb).into(), bytes: left.0, numbers: left.1, sums: (&sums).into() };
    assert!(matmul_next_fits(&w.weight));
    let y = Matrix::new(&got, rows as u32, n as u32);
    run(gpu, matmul_next(gpu, input.plain().into(), &w.weight, y, next).unwrap());
    let (got, want) = (download(gpu, &got, rows * n), download(gpu, &want, rows * n));
    let what = format!("{rows} x {k} by {n} ({})", v.name);
    alike(&what, &got, &want, w, k, false);
    let weighted: Vec<f32> = got.iter().zip(next_w.iter().cycle()).map(|(v, w)| v * w).collect();
    match as_bytes {
        true => crate::bytes::rounded(&what, &bytes.read(gpu), &weighted),
        false => {
            let want: Vec<Want> = weighted.iter().map(|&v| f64::from(v).into()).collect();
            close(&what, &download(gpu, &numbers, rows * n), &want, 0.0, SHORTENED);
        }
    }
    let squares: Vec<Want> =
        got.chunks_exact(32).map(|b| b.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().into()).collect();
    let mut left = download(gpu, &sums, n_sums + 1);
    assert_eq!(left.pop(), Some(UNTOUCHED), "{what}");
    let left: Vec<f32> = (0..blocks).map(|b| left.iter().skip(b).step_by(blocks).sum()).collect();
    close(&what, &left, &squares, 1e-6, 2.5e-5);
}

#[test]
fn the_next_blocks_rows_in_products() {
    for v in variants() {
        let q8 = weight(&v.gpu, &mut Rng(2), 96, &[(format("Q8_0"), 64)], true);
        next_of(v, &q8, 1, 96, true);
        next_of(v, &weight(&v.gpu, &mut Rng(3), 64, &[(format("F16"), 96)], false), 3, 64, false);
        if v.full {
            // Several parts, each of whole blocks.
            let parts = weight(&v.gpu, &mut Rng(5), 256, &[(format("Q4_K"), 96), (format("F16"), 32)], true);
            next_of(v, &parts, 3, 256, true);
            next_of(v, &parts, 2, 256, false);
            next_of(v, &weight(&v.gpu, &mut Rng(7), 36, &[(format("F32"), 2080)], false), 4, 36, true);
            next_of(v, &weight(&v.gpu, &mut Rng(7), 4096, &[(format("Q4_0"), 32)], false), 1, 4096, true);
        }
    }
}

#[test]
fn more_workgroups_than_a_grid_dimension() {
    let Some(v) = full() else { return };
    let gpu: &Gpu = &v.gpu;
    let n = 65_536 * 32;
    let w = weight(gpu, &mut Rng(3), 32, &[(format("Q4_0"), n)], false);
    next_of(v, &w, 1, 32, true);
    next_of(v, &w, 1, 32, false);
    let half = n / 2;
    let input = Rows::new(gpu, 1, 32);
    let [plain, by_the_way] = input.inputs(false);
    let (both, got) = (untouched(gpu, n as usize), untouched(gpu, half as usize));
    run(gpu, matmul(gpu, plain, &w.weight, Matrix::new(&both, 1, n), false).unwrap());
    let y = Matrix::new(&got, 1, half);
    run(gpu, matmul_glu(gpu, Activation::Silu, by_the_way, &w.weight, y, None));
    let both = download(gpu, &both, n as usize);
    let (gate, up) = both.split_at(half as usize);
    let want: Vec<f32> = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
    alike("many rows", &download(gpu, &got, want.len()), &want, &w, 32, false);
}

#[test]
fn what_does_not_fit_is_refused() {
    let Some(v) = full() else { return };
    let gpu: &Gpu = &v.gpu;
    let input = Rows::new(gpu, 1, 64);
    let (y, sums) = (untouched(gpu, 4096), untouched(gpu, 64));
    let biased = weight(gpu, &mut Rng(1), 64, &[(format("Q8_0"), 64)], true);
    let odd = weight(gpu, &mut Rng(1), 64, &[(format("Q8_0"), 33)], false);
    let fine = weight(gpu, &mut Rng(1), 64, &[(format("Q8_0"), 64)], false);
    let glu = |w: &TestWeight, n| {
        matmul_glu(gpu, Activation::Silu, input.plain().into(), &w.weight, Matrix::new(&y, 1, n), None).is_ok()
    };
    assert!(glu(&fine, 32) && !glu(&fine, 64) && !glu(&biased, 32) && !glu(&odd, 16));
    let bytes = Bytes::new(gpu, 1, 64);
    let next = |w: &TestWeight, x: Input<'_>, n: u32| {
        let next = Next { w: (&y).into(), bytes: Some(bytes.operand()), numbers: None, sums: (&sums).into() };
        matmul_next(gpu, x, &w.weight, Matrix::new(&y, 1, n), next).is_ok()
    };
    let [plain, by_the_way] = input.inputs(false);
    assert!(next(&fine, plain, 64) && !next(&odd, plain, 33) && !next(&fine, by_the_way, 64));
    let few = upload(gpu, &[1.0; 8]);
    let short = RowNorm { w: (&few).into(), eps: EPS, sums: None, scaled: false };
    let short = Input { norm: Some(short), ..input.plain().into() };
    assert!(matmul(gpu, short, &fine.weight, Matrix::new(&y, 1, 64), false).is_err(), "weights of the norm");
    let quants = input.scaled();
    assert!(matmul(gpu, quants, &fine.weight, Matrix::new(&y, 1, 64), false).is_err(), "scaled numbers, and quants");
    let missing = RowNorm { w: (&y).into(), eps: EPS, sums: None, scaled: false };
    let missing = Input { x: input.plain(), bytes: Some(input.bytes.operand()), norm: Some(missing), half: None };
    assert!(matmul(gpu, missing, &fine.weight, Matrix::new(&y, 1, 64), false).is_err(), "sums of bytes");
}

/// Rows of several sequences, by attention alone, and by norm, rotation and attention.
fn fresh(v: &Variant, shape: AttentionShape, kv: KvType, pairs: RopePairs, n_rot: u32, normed: bool, splits: u32) {
    const POSITIONS: [u32; 3] = [0, 40, 95];
    let gpu: &Gpu = &v.gpu;
    let AttentionShape { n_head, n_kv, head_dim, .. } = shape;
    let mut rng = Rng(u64::from(head_dim));
    let (rows, width) = (POSITIONS.len() as u32, (n_head + 2 * n_kv) * head_dim);
    let x = rng.floats((rows * width) as usize);
    let steps: Vec<f64> = (0..n_rot / 2).map(|i| 0.3 / f64::from(i + 1)).collect();
    let angles = upload_words(gpu, bytemuck::cast_slice(&AngleTable::new(&steps, 1.0, 96).values));
    let angles = if n_rot == 0 { untouched(gpu, 4) } else { angles };
    let norms = [rng.floats(head_dim as usize), rng.floats(head_dim as usize)].map(|w| upload(gpu, &w));
    let table = upload_words(gpu, &[4, 0, 8, 1, 7, 2, 6, 3, 5]);
    let row_data = upload_words(gpu, &[0, POSITIONS[0], 1, POSITIONS[1], 2, POSITIONS[2]]);
    let elements = (9 * 32 * n_kv * head_dim) as usize;
    let (k, val) = (rng.floats(elements), rng.floats(elements));
    let out = (rows * n_head * head_dim) as usize;
    let [want, got] = [false, true].map(|by_the_way| {
        let (xb, y) = (upload(gpu, &x), untouched(gpu, out + 1));
        let kvs = [&k, &val].map(|values| upload_words(gpu, &kv_words(kv, head_dim, values)));
        let pages = Pages {
            rows: (&row_data).into(),
            tables: (&table).into(),
            table_stride: 3,
            kv_type: kv,
            k: (&kvs[0]).into(),
            v: (&kvs[1]).into(),
        };
        let qkv = Matrix::new(&xb, rows, width);
        let q = untouched(gpu, out);
        let [sums, tops] = AttentionParts::sizes(&shape, rows, splits).map(|bytes| untouched(gpu, bytes as usize / 4));
        let parts = AttentionParts { sums: (&sums).into(), tops: (&tops).into() };
        let queries = if by_the_way {
            let norm = normed.then(|| ((&norms[0]).into(), (&norms[1]).into(), EPS));
            Queries::Fresh(Fresh { qkv, angles: (&angles).into(), n_rot, pairs, norm })
        } else {
            if normed {
                let [q, k] = norms.each_ref().map(BufferSlice::from);
                let segments = |count, w| Segments { count, cols: head_dim, w };
                run(gpu, qk_norm(qkv, segments(n_head, q), segments(n_kv, k), EPS));
            }
            let turn = RopeShape { n_head, n_kv, head_dim, n_rot, pairs };
            run(gpu, rope(turn, qkv, pages, (&angles).into(), (&q).into()));
            Queries::Ready((&q).into())
        };
        match splits {
            1 => run(gpu, attention_decode(gpu, shape, rows, pages, queries, (&y).into())),
            _ => run(gpu, attention_split(gpu, shape, rows, splits, pages, queries, parts, (&y).into(), None).unwrap()),
        }
        let words = kvs.each_ref().map(|b| download_words(gpu, b, b.size() as usize / 4));
        (download(gpu, &y, out + 1), words)
    });
    let what = format!("{shape:?} {kv:?} {pairs:?} {n_rot} norm {normed} splits {splits} ({})", v.name);
    let values: Vec<Want> = want.0.iter().map(|&v| f64::from(v).into()).collect();
    // A key or value at the border of two numbers of its storage may become the other one.
    let [abs, rel] = match kv {
        KvType::F32 => [2e-5, 1e-4],
        KvType::F16 => [2e-3, 2e-3],
        KvType::Q8 => [2e-2, 2e-2],
    };
    close(&what, &got.0, &values, abs, rel);
    for (got, want) in got.1.iter().zip(&want.1) {
        let differ = got.iter().zip(want).filter(|(a, b)| a != b).count();
        let written = (rows * n_kv * kv.row_bytes(head_dim) as u32 / 4) as usize;
        assert!(differ <= written, "{what}: {differ} words of the cache differ, {written} were written");
    }
}

#[test]
fn attention_rotates_and_keeps() {
    let shape =
        |n_head, n_kv, head_dim, window| AttentionShape { n_head, n_kv, head_dim, window, scale: 0.2, softcap: 0.0 };
    for v in variants() {
        for (i, head_dim) in [20u32, 64, 96, 256].into_iter().enumerate().filter(|(i, _)| v.full || *i == 1) {
            for kv in kv_types(head_dim) {
                let window = [0, 33][i % 2];
                let halves = [(RopePairs::Halves, head_dim, true), (RopePairs::Adjacent, head_dim / 2 / 2 * 2, false)];
                for (pairs, n_rot, normed) in halves {
                    fresh(v, shape(4, 2, head_dim, window), kv, pairs, n_rot, normed, 3);
                }
                if v.full {
                    fresh(v, shape(8, 1, head_dim, window), kv, RopePairs::None, 0, false, 1);
                    fresh(v, shape(3, 3, head_dim, 0), kv, RopePairs::Halves, head_dim / 2 / 4 * 4, false, 1);
                }
            }
        }
    }
}
