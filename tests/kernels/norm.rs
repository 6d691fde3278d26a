//! Normalisation of rows, of segments of rows, and softmax.

use doppler::gpu::Gpu;
use doppler::kernels::{Matrix, Norm, NormKind, Segments, norm, qk_norm, rmsnorm, softmax};

use crate::common::*;

fn rmsnorm64(x: &[f32], w: &[f32], eps: f32) -> Vec<Want> {
    let mean = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (mean + f64::from(eps)).sqrt();
    x.iter().zip(w).map(|(&x, &w)| (f64::from(x) * scale * f64::from(w)).into()).collect()
}

#[test]
fn rmsnorm_of_odd_row_counts_and_many_widths() {
    for v in variants() {
        let gpu: &Gpu = &v.gpu;
        for cols in [4u32, 36, 64, 1024, 1028, 4096] {
            for (rows, gap) in [(1u32, 0u32), (3, 0), (5, 8)] {
                let mut rng = Rng(u64::from(cols * 8 + rows));
                // Columns in the middle of a larger matrix.
                let (stride, offset) = (cols + gap, gap / 2);
                // Rows of very different size: only the row's own values count.
                let x: Vec<f32> =
                    (0..rows * stride).map(|i| rng.unit() * [1.0, 1e-3, 1e3][(i / stride % 3) as usize]).collect();
                let w = rng.floats(cols as usize);
                let (xb, wb) = (upload(gpu, &x), upload(gpu, &w));
                let y = untouched(gpu, (rows * stride) as usize);
                let mx = Matrix::new(&xb, rows, stride).columns(offset, cols);
                let my = Matrix::new(&y, rows, stride).columns(offset, cols);
                run(gpu, rmsnorm(mx, (&wb).into(), my, 1e-5));
                let want: Vec<Want> = x
                    .chunks(stride as usize)
                    .flat_map(|row| {
                        let mut r = vec![f64::from(UNTOUCHED).into(); offset as usize];
                        r.extend(rmsnorm64(&row[offset as usize..][..cols as usize], &w, 1e-5));
                        r.resize(stride as usize, f64::from(UNTOUCHED).into());
                        r
                    })
                    .collect();
                let got = download(gpu, &y, (rows * stride) as usize);
                close(&format!("rmsnorm {rows} x {cols} ({})", v.name), &got, &want, 1e-30, 3e-6);
            }
        }
    }
}

/// The value, and the size of what it is made of: a mean that is taken away leaves its rounding.
fn norm64(kind: NormKind, x: &[f32], w: &[f32], bias: Option<&[f32]>, old: Option<&[f32]>, eps: f32) -> Vec<Want> {
    let n = x.len() as f64;
    let mean = match kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => x.iter().map(|&v| f64::from(v)).sum::<f64>() / n,
    };
    let square = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
    let scale = 1.0 / (square + f64::from(eps)).sqrt();
    (0..x.len())
        .map(|i| {
            let (x, w) = (f64::from(x[i]), f64::from(w[i]));
            let (b, o) = (bias.map_or(0.0, |b| f64::from(b[i])), old.map_or(0.0, |o| f64::from(o[i])));
            let value = (x - mean) * scale * w + b + o;
            Want { value, magnitude: (x.abs() + mean.abs()) * scale * w.abs() + b.abs() + o.abs() }
        })
        .collect()
}

/// Every kind, with and without bias, written and added; rows about a mean far from zero.
#[test]
fn norms_of_every_kind() {
    for v in variants() {
        let gpu: &Gpu = &v.gpu;
        for cols in [4u32, 36, 1024, 1028] {
            let (rows, gap) = (5u32, 8u32);
            let mut rng = Rng(u64::from(cols));
            let stride = cols + gap;
            let x: Vec<f32> =
                (0..rows * stride).map(|i| rng.unit() + [0.0, 3.0, -0.5][(i / stride % 3) as usize]).collect();
            let (w, b, old) =
                (rng.floats(cols as usize), rng.floats(cols as usize), rng.floats((rows * stride) as usize));
            let (xb, wb, bb) = (upload(gpu, &x), upload(gpu, &w), upload(gpu, &b));
            for (kind, bias, add) in [NormKind::Rms, NormKind::Layer]
                .into_iter()
                .flat_map(|k| [(k, false, false), (k, false, true), (k, true, false), (k, true, true)])
            {
                let y = upload(gpu, &old);
                let n = Norm { kind, eps: 1e-5, w: (&wb).into(), bias: bias.then(|| (&bb).into()) };
                let m = |buffer| Matrix::new(buffer, rows, stride).columns(gap / 2, cols);
                run(gpu, norm(n, m(&xb), m(&y), add));
                let mut want = Vec::new();
                for (x, old) in x.chunks(stride as usize).zip(old.chunks(stride as usize)) {
                    let inside = (gap / 2) as usize..(gap / 2 + cols) as usize;
                    let mut row: Vec<Want> = old.iter().map(|&o| f64::from(o).into()).collect();
                    let old = add.then(|| &old[inside.clone()]);
                    let normed = norm64(kind, &x[inside.clone()], &w, bias.then_some(b.as_slice()), old, 1e-5);
                    row[inside].copy_from_slice(&normed);
                    want.extend(row);
                }
                let what = format!("{kind:?} of {cols}, bias {bias}, add {add} ({})", v.name);
                close(&what, &download(gpu, &y, want.len()), &want, 1e-30, 3e-6);
            }
        }
    }
}

#[test]
fn norm_refuses_weights_that_are_too_few() {
    let Some(v) = full() else { return };
    let gpu: &Gpu = &v.gpu;
    let (x, y, short, long) = (untouched(gpu, 64), untouched(gpu, 64), untouched(gpu, 32), untouched(gpu, 64));
    let m = |b| Matrix::new(b, 1, 64);
    let n = |w, bias| Norm { kind: NormKind::Layer, eps: 1e-5, w, bias };
    assert!(norm(n((&short).into(), None), m(&x), m(&y), false).is_err());
    assert!(norm(n((&long).into(), Some((&short).into())), m(&x), m(&y), false).is_err());
    assert!(norm(n((&long).into(), Some((&long).into())), m(&x), m(&y), false).is_ok());
}

/// Segments in place: heads of different counts, one segment for all, what follows stays.
fn check_qk(v: &Variant, rows: u32, (q_count, q_cols): (u32, u32), (k_count, k_cols): (u32, u32), rest: u32) {
    let gpu: &Gpu = &v.gpu;
    let mut rng = Rng(u64::from(rows + q_cols * 3 + k_cols));
    let cols = q_count * q_cols + k_count * k_cols + rest;
    let (offset, stride) = (4u32, cols + 12);
    let x: Vec<f32> = (0..rows * stride).map(|i| rng.unit() * [1.0, 1e-3, 1e3][(i % 7 % 3) as usize]).collect();
    let (qw, kw) = (rng.floats(q_cols as usize), rng.floats(k_cols as usize));
    let (xb, qb, kb) = (upload(gpu, &x), upload(gpu, &qw), upload(gpu, &kw));
    let q = Segments { count: q_count, cols: q_cols, w: (&qb).into() };
    let k = Segments { count: k_count, cols: k_cols, w: (&kb).into() };
    run(gpu, qk_norm(Matrix::new(&xb, rows, stride).columns(offset, cols), q, k, 1e-6));
    let mut want: Vec<Want> = x.iter().map(|&v| f64::from(v).into()).collect();
    for row in 0..rows {
        let mut at = (row * stride + offset) as usize;
        let segments = (0..q_count).map(|_| &qw).chain((0..k_count).map(|_| &kw));
        for w in segments {
            let here = at..at + w.len();
            want[here.clone()].copy_from_slice(&rmsnorm64(&x[here], w, 1e-6));
            at += w.len();
        }
    }
    let what = format!("{rows} rows of {q_count} x {q_cols} and {k_count} x {k_cols} ({})", v.name);
    close(&what, &download(gpu, &xb, want.len()), &want, 1e-30, 3e-6);
}

#[test]
fn qk_norm_of_heads_and_of_all_heads() {
    for v in variants() {
        check_qk(v, 3, (4, 64), (2, 64), 128);
        check_qk(v, 5, (3, 20), (1, 20), 20);
        check_qk(v, 2, (1, 128), (1, 36), 0);
        check_qk(v, 2, (1, 2052), (1, 516), 516);
    }
    let Some(v) = full() else { return };
    check_qk(v, 65_535 / 3 + 77, (2, 4), (1, 4), 4);
    let b = untouched(&v.gpu, 64);
    let s = |count, cols| Segments { count, cols, w: (&b).into() };
    let m = Matrix::new(&b, 1, 32);
    assert!(qk_norm(m, s(2, 12), s(1, 12), 1e-6).is_err(), "wider than the row");
    assert!(qk_norm(m, s(2, 6), s(1, 12), 1e-6).is_err(), "no multiple of 4");
    assert!(qk_norm(m, s(0, 8), s(1, 8), 1e-6).is_err(), "no segment");
}

#[test]
fn rmsnorm_of_zeros_is_zero_and_refuses_odd_columns() {
    let Some(v) = full() else { return };
    let gpu: &Gpu = &v.gpu;
    let (x, w, y) = (upload(gpu, &[0.0; 64]), upload(gpu, &[1.0; 64]), untouched(gpu, 64));
    run(gpu, rmsnorm(Matrix::new(&x, 1, 64), (&w).into(), Matrix::new(&y, 1, 64), 1e-6));
    assert_eq!(download(gpu, &y, 64), [0.0; 64]);
    assert!(rmsnorm(Matrix::new(&x, 1, 6), (&w).into(), Matrix::new(&y, 1, 6), 1e-6).is_err());
    assert!(rmsnorm(Matrix::new(&x, 2, 32), (&w).into(), Matrix::new(&y, 1, 32), 1e-6).is_err());
}

#[test]
fn rmsnorm_of_more_rows_than_a_grid_dimension() {
    let Some(v) = full() else { return };
    let gpu: &Gpu = &v.gpu;
    let rows = 65_535u32 + 777;
    let mut rng = Rng(5);
    let (x, w) = (rng.floats(rows as usize * 4), rng.floats(4));
    let (xb, wb, y) = (upload(gpu, &x), upload(gpu, &w), untouched(gpu, rows as usize * 4 + 1));
    run(gpu, rmsnorm(Matrix::new(&xb, rows, 4), (&wb).into(), Matrix::new(&y, rows, 4), 1e-5));
    let want: Vec<Want> =
        x.chunks(4).flat_map(|r| rmsnorm64(r, &w, 1e-5)).chain([f64::from(UNTOUCHED).into()]).collect();
    close("rmsnorm of many rows", &download(gpu, &y, want.len()), &want, 1e-30, 3e-6);
}

/// NaN counts as −∞, a row of −∞ gives zeros, +∞ as the largest float.
fn softmax64(x: &[f32], temperature: f32) -> Vec<Want> {
    let value = |v: f32| if v.is_nan() { f64::NEG_INFINITY } else { f64::from(v).min(f64::from(f32::MAX)) };
    let top = x.iter().map(|&v| value(v)).fold(f64::NEG_INFINITY, f64::max);
    if top == f64::NEG_INFINITY {
        return vec![0.0.into(); x.len()];
    }
    let e: Vec<f64> = x.iter().map(|&v| ((value(v) - top) / f64::from(temperature)).exp()).collect();
    let total: f64 = e.iter().sum();
    // An exponent of magnitude m is rounded to m · 2^-24, an error of the same relative size in the result.
    e.iter()
        .zip(x)
        .map(|(e, &v)| {
            let exponent = if *e > 0.0 { (value(v) - top).abs() / f64::from(temperature) } else { 0.0 };
            Want { value: e / total, magnitude: e / total * (1.0 + exponent / 8.0) }
        })
        .collect()
}

fn check_softmax(v: &Variant, what: &str, rows: &[Vec<f32>], temperature: f32) {
    let gpu: &Gpu = &v.gpu;
    let cols = rows[0].len();
    let x: Vec<f32> = rows.concat();
    let (xb, y) = (upload(gpu, &x), untouched(gpu, x.len() + 1));
    let (r, c) = (rows.len() as u32, cols as u32);
    run(gpu, softmax(Matrix::new(&xb, r, c), Matrix::new(&y, r, c), temperature));
    let want: Vec<Want> =
        rows.iter().flat_map(|r| softmax64(r, temperature)).chain([f64::from(UNTOUCHED).into()]).collect();
    let got = download(gpu, &y, x.len() + 1);
    close(&format!("softmax {what}, t = {temperature} ({})", v.name), &got, &want, 1e-37, 1e-5);
}

#[test]
fn softmax_of_ordinary_and_extreme_rows() {
    let inf = f32::INFINITY;
    for v in variants() {
        for cols in [1usize, 3, 255, 256, 257, 1000] {
            let mut rng = Rng(cols as u64);
            let mut rows: Vec<Vec<f32>> = (0..3).map(|_| rng.floats(cols).iter().map(|x| x * 10.0).collect()).collect();
            rows.push(vec![-inf; cols]);
            rows.push(vec![f32::NAN; cols]);
            rows.push(vec![3.0e38; cols]);
            rows.push(vec![-3.4e38; cols]);
            // One live element among −∞ and NaN; a mask in the middle; extremes side by side.
            let dead = |i: usize| if i.is_multiple_of(2) { -inf } else { f32::NAN };
            rows.push((0..cols).map(|i| if i == cols / 2 { -5.0 } else { dead(i) }).collect());
            rows.push((0..cols).map(|i| if i % 3 == 1 { -inf } else { rng.unit() }).collect());
            rows.push((0..cols).map(|i| if i % 2 == 0 { 3.0e38 } else { -3.0e38 }).collect());
            rows.push((0..cols).map(|i| if i == 0 { inf } else { 1.0 }).collect());
            for temperature in [1.0, 0.7, 2.5, 0.01] {
                check_softmax(v, &format!("of {cols}"), &rows, temperature);
            }
        }
    }
}

#[test]
fn softmax_of_long_rows() {
    for v in variants().iter().filter(|v| v.full || v.own_shaders) {
        let mut rng = Rng(151);
        let rows: Vec<Vec<f32>> = (0..2).map(|_| rng.floats(151_937).iter().map(|x| x * 12.0).collect()).collect();
        check_softmax(v, "of a vocabulary", &rows, 0.8);
    }
}

#[test]
fn softmax_of_more_rows_than_a_grid_dimension_and_bad_temperatures() {
    let Some(v) = full() else { return };
    let mut rng = Rng(9);
    let rows: Vec<Vec<f32>> = (0..65_535 + 100).map(|_| rng.floats(3)).collect();
    check_softmax(v, "of many rows", &rows, 1.0);
    let b = untouched(&v.gpu, 8);
    for t in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert!(softmax(Matrix::new(&b, 1, 8), Matrix::new(&b, 1, 8), t).is_err(), "temperature {t}");
    }
}
