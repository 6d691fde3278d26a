//! Tensor statistics.

use doppler::kernels::{Matrix, NO_BAD_ELEMENT, STATS_PARTIAL_BYTES, TensorStats, tensor_stats};

use crate::common::*;

/// What the statistics should be, sums in f64.
fn reference(values: &[f32], limit: f32) -> (TensorStats, f64, f64, f64) {
    let mut s = TensorStats { first_bad: NO_BAD_ELEMENT, min: f32::MAX, max: f32::MIN, ..Default::default() };
    let (mut sum, mut magnitude, mut squares) = (0.0, 0.0, 0.0);
    for (i, &v) in values.iter().enumerate() {
        s.count += 1;
        s.nan += u32::from(v.is_nan());
        s.inf += u32::from(v.is_infinite());
        s.over += u32::from(v.is_finite() && v.abs() > limit);
        if (!v.is_finite() || v.abs() > limit) && s.first_bad == NO_BAD_ELEMENT {
            s.first_bad = i as u32;
        }
        if v.is_finite() {
            (s.min, s.max) = (s.min.min(v), s.max.max(v));
            sum += f64::from(v);
            magnitude += f64::from(v).abs();
            squares += f64::from(v) * f64::from(v);
        }
    }
    (s, sum, magnitude, squares)
}

#[test]
fn statistics_match_the_reference() {
    for v in variants() {
        let gpu = &v.gpu;
        let partial = upload_words(gpu, &vec![0xaaaa_aaaa; STATS_PARTIAL_BYTES as usize / 4]);
        let mut rng = Rng(9);
        // rows, columns, stride, offset
        let mut shapes = vec![(1, 1, 1, 0), (1, 1023, 1023, 5), (3, 1025, 1030, 7), (300, 1000, 1000, 0), (2, 4, 4, 0)];
        if v.full {
            // Near the largest binding of a software adapter.
            shapes.push((30, 1_000_003, 1_000_003, 1));
        }
        for (case, (rows, cols, stride, offset)) in shapes.into_iter().enumerate() {
            let mut data = rng.floats(offset + rows * stride);
            let cell = |i: usize| offset + i / cols * stride + i % cols;
            let n = rows * cols;
            let limit = if case == 2 { 0.75 } else { 65500.0 };
            if case == 3 {
                for (i, bad) in [
                    (n - 1, f32::NAN),
                    (n / 2, f32::INFINITY),
                    (n / 3, f32::NEG_INFINITY),
                    (n / 4, 65504.0),
                    (7, 65500.0),
                ] {
                    data[cell(i)] = bad;
                }
            }
            if case == 4 {
                data.fill(f32::NAN);
            }
            let values: Vec<f32> = (0..n).map(|i| data[cell(i)]).collect();
            let x = upload(gpu, &data);
            let out = untouched(gpu, 30);
            let m = Matrix {
                data: (&x).into(),
                rows: rows as u32,
                cols: cols as u32,
                stride: stride as u32,
                offset: offset as u32,
            };
            let twice: Vec<Vec<u32>> = (0..2)
                .map(|_| {
                    run(gpu, tensor_stats(m, limit, (&partial).into(), (&out).into(), 1).unwrap());
                    download_words(gpu, &out, 30)
                })
                .collect();
            assert_eq!(twice[0], twice[1], "the same bits each time");
            assert!(
                twice[0][..10].iter().chain(&twice[0][20..]).all(|&w| f32::from_bits(w) == UNTOUCHED),
                "only entry 1 is written"
            );
            let got: TensorStats = bytemuck::pod_read_unaligned(bytemuck::cast_slice(&twice[0][10..20]));
            let (want, sum, magnitude, squares) = reference(&values, limit);
            let what = format!("{}: {rows} x {cols}", v.name);
            assert_eq!(
                (got.count, got.nan, got.inf, got.over, got.first_bad, got.min, got.max),
                (want.count, want.nan, want.inf, want.over, want.first_bad, want.min, want.max),
                "{what}"
            );
            assert!((f64::from(got.sum) - sum).abs() <= 1e-6 * magnitude, "{what}: sum {} {sum}", got.sum);
            assert!(
                (f64::from(got.sum_sq) - squares).abs() <= 1e-5 * squares,
                "{what}: squares {} {squares}",
                got.sum_sq
            );
            assert_eq!(got.sound(), want.first_bad == NO_BAD_ELEMENT);
        }
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let Some(v) = full() else { return };
    let (x, small) = (untouched(&v.gpu, 64), untouched(&v.gpu, 8));
    let partial = untouched(&v.gpu, STATS_PARTIAL_BYTES as usize / 4);
    let call = |m, limit, p, s, i| tensor_stats(m, limit, p, s, i).map(|_| ());
    let m = Matrix::new(&x, 8, 8);
    let (p, s) = (partial.whole(), x.whole());
    assert!(call(m, 1.0, p, s, 0).is_ok());
    assert!(call(m, 1.0, small.whole(), s, 0).is_err());
    assert!(call(m, 1.0, p, small.whole(), 0).is_err());
    assert!(call(m, 1.0, p, s, 7).is_err());
    assert!(call(m, f32::NAN, p, s, 0).is_err());
    assert!(call(Matrix::new(&x, 9, 8), 1.0, p, s, 0).is_err());
}
