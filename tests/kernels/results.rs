//! Scores of given tokens, pooled rows, rows of length 1.

use doppler::kernels::sample::Chunks;
use doppler::kernels::{Matrix, Scored, Stretch, log_sum, pool_rows, token_score, unit_rows};

use crate::common::*;

/// `ln p` of a token, in f64; NaN counts as −∞.
fn log_prob(row: &[f32], token: u32) -> f64 {
    let value = |x: f32| if x.is_nan() { f64::NEG_INFINITY } else { f64::from(x) };
    let top = row.iter().map(|&x| value(x)).fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = row.iter().map(|&x| (value(x) - top).exp()).sum();
    value(row[token as usize]) - top - sum.ln()
}

#[test]
fn scores_match_the_reference() {
    for v in variants() {
        let gpu = &v.gpu;
        // Rows, vocabulary, chunk of it.
        for (rows, vocab, cut) in [
            (1, 1, Chunks::of(1)),
            (3, 255, Chunks::of(255)),
            (16, 1009, Chunks::with(1009, 300)),
            (2, 65_537, Chunks::of(65_537)),
            (2, 65_537, Chunks::with(65_537, 70_000)),
        ] {
            let mut rng = Rng(vocab as u64 + 1);
            let mut logits: Vec<f32> = rng.floats((rows * vocab) as usize).iter().map(|x| x * 12.0).collect();
            if vocab > 1000 {
                // What is excluded, and what a broken row has.
                (logits[5], logits[vocab as usize - 1]) = (f32::NEG_INFINITY, f32::NAN);
                logits[vocab as usize..2 * vocab as usize].iter_mut().for_each(|x| *x += 300.0);
            }
            let (xb, partial) = (upload(gpu, &logits), untouched(gpu, (rows * cut.chunks * 2) as usize + 2));
            let x = Matrix::new(&xb, rows, vocab);
            for each_its_row in [true, false] {
                let (first, entries) = (2u32, if each_its_row { rows } else { 301 });
                let mut targets: Vec<u32> = (0..first + entries).map(|_| rng.below(vocab)).collect();
                targets[2] = vocab - 1;
                let (tb, sb) = (upload_words(gpu, &targets), untouched(gpu, targets.len() + 1));
                let scored = Scored { targets: (&tb).into(), scores: (&sb).into(), first, entries, each_its_row };
                run(
                    gpu,
                    [
                        log_sum(x, cut, (&partial).into()).unwrap(),
                        token_score(x, cut, (&partial).into(), scored).unwrap(),
                    ],
                );
                let got = download(gpu, &sb, targets.len() + 1);
                assert!([got[0], got[1], got[targets.len()]].iter().all(|&g| g == UNTOUCHED), "only the entries");
                for (e, &t) in targets[2..].iter().enumerate() {
                    let row = if each_its_row { e * vocab as usize } else { 0 };
                    let (got, want) = (got[e + 2], log_prob(&logits[row..][..vocab as usize], t));
                    let what = format!("{}: entry {e} of {rows} x {vocab}: {got}, wanted {want}", v.name);
                    match want {
                        f64::NEG_INFINITY => assert_eq!(got, f32::MIN, "{what}"),
                        // Logits around 300 have steps of 3e-5.
                        _ => assert!((f64::from(got) - want).abs() <= if row > 0 { 1e-4 } else { 1e-5 }, "{what}"),
                    }
                }
            }
        }
        if v.full {
            // More workgroups than a grid is wide.
            let (rows, vocab, n) = (1u32, 40u32, 70_001u32);
            let logits = Rng(3).floats(vocab as usize);
            let (xb, partial) = (upload(gpu, &logits), untouched(gpu, 2));
            let targets: Vec<u32> = (0..n).map(|i| i % vocab).collect();
            let (tb, sb) = (upload_words(gpu, &targets), untouched(gpu, n as usize));
            let x = Matrix::new(&xb, rows, vocab);
            let scored =
                Scored { targets: (&tb).into(), scores: (&sb).into(), first: 0, entries: n, each_its_row: false };
            let cut = Chunks::of(vocab);
            run(
                gpu,
                [log_sum(x, cut, (&partial).into()).unwrap(), token_score(x, cut, (&partial).into(), scored).unwrap()],
            );
            let want: Vec<Want> =
                targets.iter().map(|&t| Want { value: log_prob(&logits, t), magnitude: 4.0 }).collect();
            close("many entries", &download(gpu, &sb, n as usize), &want, 0.0, 1e-6);
            // 33,001 rows of two chunks each.
            let rows = 33_001u32;
            let logits = Rng(4).floats((rows * vocab) as usize);
            let (xb, partial) = (upload(gpu, &logits), untouched(gpu, rows as usize * 4));
            let (tb, sb) = (upload_words(gpu, &targets[..rows as usize]), untouched(gpu, rows as usize));
            let (x, cut) = (Matrix::new(&xb, rows, vocab), Chunks::with(vocab, 23));
            let scored =
                Scored { targets: (&tb).into(), scores: (&sb).into(), first: 0, entries: rows, each_its_row: true };
            run(
                gpu,
                [log_sum(x, cut, (&partial).into()).unwrap(), token_score(x, cut, (&partial).into(), scored).unwrap()],
            );
            let row = |r: usize| &logits[r * vocab as usize..][..vocab as usize];
            let want: Vec<Want> = targets[..rows as usize]
                .iter()
                .enumerate()
                .map(|(r, &t)| Want { value: log_prob(row(r), t), magnitude: 4.0 })
                .collect();
            close("many rows", &download(gpu, &sb, rows as usize), &want, 0.0, 1e-6);
        }
    }
}

#[test]
fn scores_check_their_shapes() {
    let Some(v) = full() else { return };
    let b = untouched(&v.gpu, 64);
    let (x, cut) = (Matrix::new(&b, 2, 32), Chunks::of(32));
    let scored =
        |entries, each_its_row| Scored { targets: (&b).into(), scores: (&b).into(), first: 60, entries, each_its_row };
    assert!(token_score(x, cut, (&b).into(), scored(5, false)).is_err(), "past the end");
    assert!(token_score(x, cut, (&b).into(), scored(3, true)).is_err(), "three of two rows");
    assert!(token_score(x, cut, (&b).into(), scored(2, true)).is_ok());
    assert!(log_sum(Matrix { offset: 1, rows: 1, ..x }, cut, (&b).into()).is_err(), "not dense");
}

/// What stretches of rows become, and the sizes of the sums' terms.
fn pooled(x: &[f32], stride: usize, cols: usize, stretches: &[Stretch], held: &[f32]) -> Vec<Want> {
    let one = |s: &Stretch, c: usize, held: f32| {
        let held = if s.add != 0 { f64::from(held) } else { 0.0 };
        let terms = (s.first..s.first + s.rows).map(|r| f64::from(x[r as usize * stride + c]));
        let (sum, size) = terms.fold((0.0, 0.0), |(sum, size): (f64, f64), v| (sum + v, size + v.abs()));
        let scale = f64::from(s.scale);
        Want { value: held + scale * sum, magnitude: held.abs() + scale.abs() * size }
    };
    let rows = stretches.iter().zip(held.chunks_exact(cols));
    rows.flat_map(|(s, held)| (0..cols).map(move |c| one(s, c, held[c]))).collect()
}

#[test]
fn pooling_matches_the_reference() {
    for v in variants() {
        let gpu = &v.gpu;
        let mut shapes = vec![(70, 1, 1), (70, 33, 40), (70, 96, 96), (2100, 129, 129)];
        if v.full {
            // 66,001 stretches of one group of columns each.
            shapes.push((66_001, 3, 3));
        }
        for (rows, cols, stride) in shapes {
            let mut rng = Rng(cols as u64);
            let x = rng.floats(rows * stride);
            let n = rows as u32;
            let stretches: Vec<Stretch> = if rows > 60_000 {
                (0..n).map(|first| Stretch { first, rows: 1, add: first % 2, scale: 0.5 }).collect()
            } else {
                [
                    (0, 1, 0, 1.0),
                    (n - 1, 1, 0, 3.0),
                    (0, n, 0, 1.0 / n as f32),
                    (1, 7, 1, 0.5),
                    (5, 0, 1, 1.0),
                    (5, 0, 0, 1.0),
                    (3, 9, 1, -2.0),
                ]
                .map(|(first, rows, add, scale)| Stretch { first, rows, add, scale })
                .to_vec()
            };
            let held = rng.floats(stretches.len() * cols);
            let (xb, yb) = (upload(gpu, &x), upload(gpu, &[&held[..], &[UNTOUCHED]].concat()));
            let sb = upload_words(gpu, bytemuck::cast_slice(&stretches));
            let x_matrix = Matrix { stride: stride as u32, ..Matrix::new(&xb, n, cols as u32) };
            let y = Matrix::new(&yb, stretches.len() as u32, cols as u32);
            run(gpu, [pool_rows((&sb).into(), x_matrix, y).unwrap()]);
            let mut got = download(gpu, &yb, held.len() + 1);
            assert_eq!(got.pop(), Some(UNTOUCHED), "past the end");
            close(
                &format!("{}: {rows} x {cols}", v.name),
                &got,
                &pooled(&x, stride, cols, &stretches, &held),
                1e-7,
                5e-6,
            );
        }
    }
}

#[test]
fn rows_get_length_one() {
    for v in variants() {
        let gpu = &v.gpu;
        let mut shapes = vec![(1, 1), (7, 33), (3, 1025)];
        if v.full {
            shapes.push((65_601, 3));
        }
        for (rows, cols) in shapes {
            let mut x = Rng(rows as u64).floats(rows * cols);
            // Squares that overflow, squares that vanish, and nothing at all.
            if rows == 7 {
                x[..cols].iter_mut().for_each(|x| *x *= 1e30);
                x[cols..2 * cols].iter_mut().for_each(|x| *x = (*x * 1e-20).abs() + 1e-21);
                x[2 * cols..3 * cols].fill(0.0);
            }
            let yb = upload(gpu, &[&x[..], &[UNTOUCHED]].concat());
            run(gpu, [unit_rows(Matrix::new(&yb, rows as u32, cols as u32)).unwrap()]);
            let mut got = download(gpu, &yb, x.len() + 1);
            assert_eq!(got.pop(), Some(UNTOUCHED), "past the end");
            let length = |r: &[f32]| r.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt().max(1e-12);
            let scaled = |r: &[f32]| {
                let length = length(r);
                r.iter()
                    .map(|&v| f64::from(v) / length)
                    .map(|value| Want { value, magnitude: value.abs() })
                    .collect::<Vec<_>>()
            };
            let want: Vec<Want> = x.chunks_exact(cols).flat_map(scaled).collect();
            close(&format!("{}: {rows} x {cols}", v.name), &got, &want, 1e-12, 5e-6);
        }
    }
}
