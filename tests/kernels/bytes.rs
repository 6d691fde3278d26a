//! Activations as signed bytes: written by each operation that does, and read by products.

use doppler::gpu::{Buffer, Dispatch, Gpu};
use doppler::kernels::{
    Activation, ByteRows, Matrix, Norm, NormKind, activate, activate_bytes, byte_rows, glu, glu_bytes, matmul_bytes,
    norm_bytes, rmsnorm,
};
use doppler::quant::{FORMATS, Format, by_name};

use crate::common::*;
use crate::weights::{TestWeight, common_width, weight, widths};

/// Rows as bytes on the device, with room for one block more.
pub(crate) struct Bytes {
    quants: Buffer,
    scales: Buffer,
    rows: usize,
    cols: usize,
}

const FILL: u32 = 0x7b7b_7b7b;

impl Bytes {
    pub(crate) fn new(gpu: &Gpu, rows: usize, cols: usize) -> Self {
        let fill = |n: usize| upload_words(gpu, &vec![FILL; n]);
        let blocks = rows * cols / 32 + 1;
        Self { quants: fill(blocks * 8), scales: fill(blocks * 2), rows, cols }
    }

    pub(crate) fn operand(&self) -> ByteRows<'_> {
        let (rows, cols) = (self.rows as u32, self.cols as u32);
        ByteRows { quants: (&self.quants).into(), scales: (&self.scales).into(), rows, cols }
    }

    /// What the bytes stand for; fails if sums are not those of the bytes, or something beyond the rows was written.
    pub(crate) fn read(&self, gpu: &Gpu) -> Vec<f64> {
        let k_blocks = self.cols / 32;
        let blocks = self.rows * k_blocks;
        let words = download_words(gpu, &self.quants, blocks * 8 + 4);
        let scales = download_words(gpu, &self.scales, blocks * 2 + 1);
        assert_eq!(words[blocks * 8..], [FILL; 4], "quants beyond the rows");
        assert_eq!(scales[blocks * 2], FILL, "scales beyond the rows");
        let mut values = vec![f64::NAN; self.rows * self.cols];
        for (block, values) in values.chunks_exact_mut(32).enumerate() {
            let (row, b) = (block / k_blocks, block % k_blocks);
            let d = f64::from(f32::from_bits(scales[2 * block]));
            for (half, values) in values.chunks_exact_mut(16).enumerate() {
                let at = ((2 * row + half) * k_blocks + b) * 4;
                let bytes: Vec<i8> = words[at..at + 4].iter().flat_map(|w| w.to_le_bytes()).map(|b| b as i8).collect();
                let sum: i32 = bytes.iter().map(|&b| i32::from(b)).sum();
                let stored = (scales[2 * block + 1] >> (16 * half)) as u16 as i16;
                assert_eq!(i32::from(stored), sum, "sum of half {half} of block {block}");
                values.iter_mut().zip(&bytes).for_each(|(v, &b)| *v = d * f64::from(b));
            }
        }
        values
    }
}

/// Fails unless the bytes are what `x` rounds to: each within half a step of the block's scale, the largest all but exactly.
pub(crate) fn rounded(what: &str, got: &[f64], x: &[f32]) {
    assert_eq!(got.len(), x.len(), "{what}");
    for (b, (got, x)) in got.chunks_exact(32).zip(x.chunks_exact(32)).enumerate() {
        let top = x.iter().fold(0.0f64, |m, v| m.max(f64::from(v.abs())));
        for (i, (g, &x)) in got.iter().zip(x).enumerate() {
            let x = f64::from(x);
            let step = if x.abs() == top { 4e-5 } else { 0.50004 / 127.0 };
            assert!((g - x).abs() <= top * step + 1e-35, "{what}: number {i} of block {b} is {g}, not {x} (of {top})");
        }
    }
}

/// Numbers whose blocks differ in size by far, some of them zero.
fn uneven(rng: &mut Rng, n: usize) -> Vec<f32> {
    let sizes: Vec<f32> = (0..n.div_ceil(32)).map(|b| [1.0, 1e-6, 300.0, 0.0, 1e-39, 1e4][b % 6]).collect();
    rng.floats(n).iter().enumerate().map(|(i, v)| v * sizes[i / 32]).collect()
}

#[test]
fn bytes_are_the_rounded_numbers() {
    for v in variants() {
        let gpu: &Gpu = &v.gpu;
        for (rows, cols, gap) in [(1, 32, 0), (3, 96, 4), (2, 4096, 0), (5, 2080, 36)] {
            let x = uneven(&mut Rng(cols as u64), rows * (cols + gap));
            let (xb, out) = (upload(gpu, &x), Bytes::new(gpu, rows, cols));
            let mx = Matrix::new(&xb, rows as u32, (cols + gap) as u32).columns(gap as u32, cols as u32);
            run(gpu, byte_rows(mx, out.operand()));
            let dense: Vec<f32> = x.chunks_exact(cols + gap).flat_map(|r| r[gap..].to_vec()).collect();
            rounded(&format!("{rows} x {cols} ({})", v.name), &out.read(gpu), &dense);
        }
    }
}

#[test]
fn bytes_of_more_rows_than_a_grid_dimension() {
    let Some(v) = full() else { return };
    let gpu: &Gpu = &v.gpu;
    let rows = 65_535 * 64 / 8 + 3;
    let x = Rng(4).floats(rows * 32);
    let (xb, out) = (upload(gpu, &x), Bytes::new(gpu, rows, 32));
    run(gpu, byte_rows(Matrix::new(&xb, rows as u32, 32), out.operand()));
    rounded("many rows", &out.read(gpu), &x);
}

/// Norms and gates write the same f32 as without bytes, and the bytes of it.
#[test]
fn norms_and_gates_write_their_results_as_bytes() {
    for v in variants() {
        let gpu: &Gpu = &v.gpu;
        for (rows, cols) in [(1usize, 32usize), (3, 288), (2, 2080), (1, 4096)] {
            let mut rng = Rng(cols as u64);
            let x = upload(gpu, &rng.floats(rows * cols * 2));
            let w = upload(gpu, &rng.floats(cols));
            let (r, c) = (rows as u32, cols as u32);
            let wide = Matrix::new(&x, r, 2 * c);
            let (left, right) = (wide.columns(0, c), wide.columns(c, c));
            let check = |what: &str, plain: &dyn Fn(Matrix<'_>), bytes: &dyn Fn(Matrix<'_>, ByteRows<'_>)| {
                let (a, b, out) =
                    (untouched(gpu, rows * cols), untouched(gpu, rows * cols), Bytes::new(gpu, rows, cols));
                plain(Matrix::new(&a, r, c));
                bytes(Matrix::new(&b, r, c), out.operand());
                let y = download(gpu, &b, rows * cols);
                let what = format!("{what} {rows} x {cols} ({})", v.name);
                let want: Vec<Want> = download(gpu, &a, rows * cols).iter().map(|&v| f64::from(v).into()).collect();
                close(&what, &y, &want, 1e-9, 1e-6);
                rounded(&what, &out.read(gpu), &y);
            };
            check("norm", &|y| run(gpu, rmsnorm(left, (&w).into(), y, 1e-5)), &|y, b| {
                run(gpu, norm_bytes(Norm { kind: NormKind::Rms, eps: 1e-5, w: (&w).into(), bias: None }, left, y, b));
            });
            for which in [Activation::Silu, Activation::GeluTanh] {
                check("glu", &|y| run(gpu, glu(which, left, right, y)), &|y, b| {
                    run(gpu, glu_bytes(which, left, right, y, b));
                });
                check("activation", &|y| run(gpu, activate(which, left, y)), &|y, b| {
                    run(gpu, activate_bytes(which, left, y, b));
                });
            }
        }
    }
}

struct Case {
    t_rows: usize,
    y_gap: usize,
    accumulate: bool,
}

/// Against the product of what the bytes stand for, closely; and against that of f32, within what rounding may cost.
fn product(v: &Variant, w: &TestWeight, k: usize, case: &Case) {
    let gpu: &Gpu = &v.gpu;
    let (n, t_rows) = (w.weight.rows() as usize, case.t_rows);
    let mut rng = Rng((t_rows * 7 + k) as u64);
    let x = rng.floats(t_rows * k);
    let (xb, bytes) = (upload(gpu, &x), Bytes::new(gpu, t_rows, k));
    run(gpu, byte_rows(Matrix::new(&xb, t_rows as u32, k as u32), bytes.operand()));
    let meant = bytes.read(gpu);
    let stride = n + case.y_gap;
    let old = if case.accumulate { rng.floats(t_rows * stride) } else { vec![UNTOUCHED; t_rows * stride] };
    let y = upload(gpu, &old);
    let my = Matrix::new(&y, t_rows as u32, stride as u32).columns(case.y_gap as u32, n as u32);
    run(gpu, matmul_bytes(gpu, bytes.operand(), &w.weight, my, case.accumulate).unwrap());
    let mut want: Vec<Want> = old.iter().map(|&v| f64::from(v).into()).collect();
    let mut of_f32 = want.clone();
    for t in 0..t_rows {
        for r in 0..n {
            let at = t * stride + case.y_gap + r;
            let (mut sum, mut size, mut exact) = (0.0, 0.0, 0.0);
            for i in 0..k {
                let weight = f64::from(w.values[r * k + i]);
                sum += meant[t * k + i] * weight;
                exact += f64::from(x[t * k + i]) * weight;
                // Numbers are at most 1: a step of the scale is 1/127. Offsets and quants cancel in part, so they count as terms.
                size += weight.abs();
            }
            for extra in [w.bias.as_ref().map(|b| b[r]), case.accumulate.then_some(old[at])].into_iter().flatten() {
                (sum, exact, size) = (sum + f64::from(extra), exact + f64::from(extra), size + f64::from(extra.abs()));
            }
            want[at] = Want { value: sum, magnitude: size + 1.0 };
            of_f32[at] = Want { value: exact, magnitude: size };
        }
    }
    let formats: Vec<_> = w.weight.parts().iter().map(|p| p.format.name).collect();
    let what = format!("{formats:?} x {t_rows} x {k}, n {n} ({})", v.name);
    let got = download(gpu, &y, want.len());
    close(&what, &got, &want, 1e-6, 1e-5);
    close(&format!("{what}, against f32"), &got, &of_f32, 1e-5, 0.51 / 127.0);
}

fn with_bytes() -> impl Iterator<Item = &'static Format> {
    FORMATS.iter().copied().filter(|f| f.has_bytes())
}

#[test]
fn products_of_every_format_with_bytes() {
    for v in variants() {
        for format in with_bytes() {
            let (ks, t_list): (Vec<usize>, &[usize]) = match (v.full, v.own_shaders) {
                (true, _) => (widths(format), &[1, 2, 3, 4, 7]),
                (_, true) => (vec![3 * common_width(format)], &[1, 3]),
                _ => (vec![common_width(format)], &[1]),
            };
            for k in ks {
                let mut rng = Rng(k as u64 + 5);
                let n = if k == 1024 { 131 } else { 13 };
                let plain = weight(&v.gpu, &mut rng, k, &[(format, n)], false);
                let biased = weight(&v.gpu, &mut rng, k, &[(format, n)], true);
                for &t_rows in t_list {
                    if v.full {
                        product(v, &plain, k, &Case { t_rows, y_gap: 0, accumulate: false });
                    }
                    product(v, &biased, k, &Case { t_rows, y_gap: 3, accumulate: true });
                }
            }
        }
    }
}

/// A row's results are the same alone, where a team's threads are neighbours, and among others that are staged, where they are not.
#[test]
fn results_do_not_depend_on_how_many_rows_are_made_together() {
    for v in variants().iter().filter(|v| v.own_shaders) {
        let gpu: &Gpu = &v.gpu;
        // One scale with an offset and without, two scales.
        let cases = [("Q4_0", 544), ("Q4_0", 1312), ("Q4_K", 768), ("Q6_K", 768), ("Q8_0", 2080)];
        // In the last one workgroups make 48 rows of weights.
        for (name, k, n) in cases.map(|(name, k)| (name, k, 1027)).into_iter().chain([("Q4_0", 512, 4201usize)]) {
            let rows = 8usize;
            let mut rng = Rng(k as u64);
            let w = weight(gpu, &mut rng, k, &[(by_name(name).unwrap(), n as u32)], false);
            let x = rng.floats(rows * k);
            let made = |rows: usize, first: usize| {
                let xb = upload(gpu, &x[first * k..][..rows * k]);
                let (bytes, y) = (Bytes::new(gpu, rows, k), untouched(gpu, rows * n));
                run(gpu, byte_rows(Matrix::new(&xb, rows as u32, k as u32), bytes.operand()));
                let my = Matrix::new(&y, rows as u32, n as u32);
                let product = matmul_bytes(gpu, bytes.operand(), &w.weight, my, false).unwrap();
                if rows == 8 && n > 4096 && gpu.features().subgroups && gpu.max_workgroup_threads() >= 1024 {
                    // Two rows of weights for each of a team.
                    let [threads, team] = ["WG", "TEAM"].map(|c| product[0].variant.constant(c).unwrap());
                    assert_eq!(2 * threads / team, 48, "{}", v.name);
                }
                run(gpu, product);
                download(gpu, &y, rows * n)
            };
            let alone: Vec<f32> = (0..rows).flat_map(|row| made(1, row)).collect();
            for together in [2, 3, 4, 7, 8] {
                same_bits(&format!("{name}, {together} rows ({})", v.name), &made(together, 0), &alone[..together * n]);
            }
        }
    }
}

#[test]
fn stacked_formats_and_more_rows_than_a_grid_dimension() {
    let Some(v) = full() else { return };
    let (q4, q8) = (by_name("Q4_0").unwrap(), by_name("Q8_0").unwrap());
    let w = weight(&v.gpu, &mut Rng(8), 96, &[(q4, 5), (q4, 66), (q8, 3)], true);
    product(v, &w, 96, &Case { t_rows: 3, y_gap: 2, accumulate: true });
    let w = weight(&v.gpu, &mut Rng(6), 32, &[(q8, 65_535 * 2 + 11)], false);
    product(v, &w, 32, &Case { t_rows: 1, y_gap: 1, accumulate: false });
}

#[test]
fn bytes_refuse_shapes_that_disagree() {
    let Some(v) = full() else { return };
    let gpu: &Gpu = &v.gpu;
    let (x, y) = (untouched(gpu, 4096), untouched(gpu, 4096));
    let b = Bytes::new(gpu, 2, 64);
    let m = |rows, cols| Matrix::new(&x, rows, cols);
    assert!(byte_rows(m(2, 96), b.operand()).is_err(), "columns");
    assert!(byte_rows(m(3, 64), b.operand()).is_err(), "rows");
    assert!(byte_rows(m(2, 36), ByteRows { cols: 36, ..b.operand() }).is_err(), "no whole blocks");
    assert!(byte_rows(m(8, 64), ByteRows { rows: 8, ..b.operand() }).is_err(), "no room");
    let q8 = weight(gpu, &mut Rng(1), 64, &[(by_name("Q8_0").unwrap(), 12)], false);
    let f16 = weight(gpu, &mut Rng(1), 64, &[(by_name("F16").unwrap(), 12)], false);
    let product = |w: &TestWeight, rows, cols| {
        let d: doppler::Result<Vec<Dispatch<'_>>> =
            matmul_bytes(gpu, b.operand(), &w.weight, Matrix::new(&y, rows, cols), false);
        d.is_ok()
    };
    assert!(product(&q8, 2, 12));
    assert!(!product(&q8, 2, 11) && !product(&q8, 1, 12), "shape of y");
    assert!(!product(&f16, 2, 12), "f16 has no quants");
}
