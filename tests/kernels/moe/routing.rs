//! Which experts a row uses, and with what weights.

use doppler::gpu::Gpu;
use doppler::kernels::{Matrix, moe_route};

use super::{Buffers, shape};
use crate::common::*;

/// The experts of one row and their weights, by definition.
pub(super) fn route(logits: &[f32], k: usize, renormalize: bool, scale: f32) -> (Vec<u32>, Vec<f64>) {
    // NaN comes after everything; the sort keeps the lower id first among equals (both zeros are equal).
    let mut ids: Vec<usize> = (0..logits.len()).collect();
    ids.sort_by(|&a, &b| match (logits[a].is_nan(), logits[b].is_nan()) {
        (false, false) => logits[b].partial_cmp(&logits[a]).unwrap(),
        (a_nan, b_nan) => a_nan.cmp(&b_nan),
    });
    let finite = |v: f32| f64::from(v.clamp(f32::MIN, f32::MAX));
    let top = logits.iter().filter(|v| !v.is_nan()).fold(f64::from(f32::MIN), |m, &v| m.max(finite(v)));
    let mass = |v: f32| if v.is_nan() || v == f32::NEG_INFINITY { 0.0 } else { (finite(v) - top).exp() };
    let chosen = &ids[..k];
    let total: f64 =
        if renormalize { chosen.iter().map(|&i| mass(logits[i])).sum() } else { logits.iter().map(|&v| mass(v)).sum() };
    let weight = |&i: &usize| if total == 0.0 { 0.0 } else { f64::from(scale) * mass(logits[i]) / total };
    (chosen.iter().map(|&i| i as u32).collect(), chosen.iter().map(weight).collect())
}

struct Case<'a> {
    n: usize,
    k: usize,
    logits: &'a [f32],
    gap: usize,
    offset: usize,
}

fn check(v: &Variant, case: &Case<'_>, renormalize: bool, scale: f32) {
    let gpu: &Gpu = &v.gpu;
    let (n, k) = (case.n, case.k);
    let rows = case.logits.len() / n;
    let stride = case.offset + n + case.gap;
    let mut spread = vec![f32::INFINITY; rows * stride];
    for (to, from) in spread.chunks_exact_mut(stride).zip(case.logits.chunks_exact(n)) {
        to[case.offset..case.offset + n].copy_from_slice(from);
    }
    let x = upload(gpu, &spread);
    let b = Buffers::new(v, shape(rows as u32, n as u32, k as u32), [1, 1], 0xffff_ffff);
    let m = Matrix::new(&x, rows as u32, stride as u32).columns(case.offset as u32, n as u32);
    run(gpu, [moe_route(gpu, m, b.routing(), renormalize, scale).unwrap()]);
    let (mut ids, mut weights) = (Vec::new(), Vec::new());
    for row in case.logits.chunks_exact(n) {
        let (i, w) = route(row, k, renormalize, scale);
        ids.extend(i);
        weights.extend(w.into_iter().map(Want::from));
    }
    let what = format!("{k} of {n} experts, {rows} rows, renormalize {renormalize} ({})", v.name);
    assert!(download_words(gpu, &b.ids, rows * k) == ids, "{what}: ids");
    close(&what, &download(gpu, &b.weights, rows * k), &weights, 1e-7, 1e-5);
}

/// Logits on a coarse grid, so that many are equal.
fn tied(rng: &mut Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| (rng.unit() * 3.0).round() * 0.5).collect()
}

#[test]
fn every_count_of_experts() {
    for v in variants() {
        let mut rng = Rng(3);
        for n in [1usize, 4, 8, 60, 64, 65, 128, 512, 1024] {
            let counts: Vec<usize> = (1..=8).chain([16, 63, 64]).filter(|&k| k <= n).collect();
            for k in counts {
                let rows = if v.full { 9 } else { 2 };
                let smooth: Vec<f32> = rng.floats(rows * n).iter().map(|x| x * 6.0).collect();
                let ties = tied(&mut rng, rows * n);
                for renormalize in [false, true] {
                    check(v, &Case { n, k, logits: &smooth, gap: 0, offset: 0 }, renormalize, 1.0);
                    check(v, &Case { n, k, logits: &ties, gap: 3, offset: 2 }, renormalize, 2.5);
                }
            }
        }
    }
}

/// Whatever the logits are, different experts come out and no weight is NaN.
#[test]
fn not_a_number_and_infinities() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let negative_nan = f32::from_bits(0xffc0_0001);
    for v in variants() {
        for n in [8usize, 70] {
            let row = |start: &[f32], rest: f32| -> Vec<f32> {
                start.iter().copied().chain(std::iter::repeat(rest)).take(n).collect()
            };
            let logits = [
                row(&[], nan),
                row(&[], negative_nan),
                row(&[], -inf),
                row(&[], inf),
                row(&[], 0.0),
                row(&[0.0, -0.0, -0.0, 0.0], -1.0),
                row(&[nan, 1.0, negative_nan, 2.0], nan),
                row(&[nan, -inf, 3.0], -inf),
                row(&[-inf, nan], -inf),
                row(&[inf, 1.0, inf, nan], -inf),
                row(&[f32::MAX, f32::MIN, f32::MAX], f32::MIN),
                row(&[f32::MIN, -inf, f32::MIN, nan], nan),
                row(&[1e-40, 0.0, -1e-40], -2.0),
            ]
            .concat();
            for k in [1, 2, 5, 8] {
                for renormalize in [false, true] {
                    check(v, &Case { n, k, logits: &logits, gap: 1, offset: 4 }, renormalize, 1.0);
                }
            }
        }
    }
}

#[test]
fn more_rows_than_a_grid_dimension() {
    let Some(v) = full() else { return };
    let logits = Rng(11).floats((65_535 + 4000) * 4);
    check(v, &Case { n: 4, k: 2, logits: &logits, gap: 0, offset: 0 }, true, 1.0);
}

#[test]
fn shapes_are_checked() {
    let Some(v) = full() else { return };
    let gpu: &Gpu = &v.gpu;
    let x = untouched(gpu, 4096);
    for (rows, n, k) in [(2, 8, 0), (2, 8, 9), (2, 2000, 2), (2, 100, 65), (0x8000_0000, 8, 2)] {
        let b = Buffers::new(v, shape(1, 8, 2), [1, 1], 0);
        let routing = doppler::kernels::Routing { shape: shape(rows, n, k), ..b.routing() };
        assert!(moe_route(gpu, Matrix::new(&x, rows.min(2), n), routing, true, 1.0).is_err(), "{rows} {n} {k}");
    }
    let b = Buffers::new(v, shape(4, 8, 2), [1, 1], 0);
    assert!(moe_route(gpu, Matrix::new(&x, 4, 8), b.routing(), true, 1.0).is_ok());
    assert!(moe_route(gpu, Matrix::new(&x, 3, 8), b.routing(), true, 1.0).is_err());
    assert!(moe_route(gpu, Matrix::new(&x, 4, 7), b.routing(), true, 1.0).is_err());
    assert!(moe_route(gpu, Matrix::new(&x, 4, 8).columns(4090, 8), b.routing(), true, 1.0).is_err());
    // The buffers of four rows are too small for forty.
    let routing = doppler::kernels::Routing { shape: shape(40, 8, 2), ..b.routing() };
    assert!(moe_route(gpu, Matrix::new(&x, 40, 8), routing, true, 1.0).is_err());
}
