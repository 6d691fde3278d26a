//! Scores of given tokens and pooled rows.

use doppler::Result;
use doppler::kernels::sample::Chunks;
use doppler::kernels::{Matrix, Scored, Stretch, log_sum, pool_rows, token_score, unit_rows};

use super::{Lab, Measured, Rng, Want, compare};

/// `ln p` of a token under a row of logits.
fn log_prob(row: &[f32], token: u32) -> f64 {
    let top = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = row.iter().map(|&x| (f64::from(x) - top).exp()).sum();
    f64::from(row[token as usize]) - top - sum.ln()
}

pub(super) fn token_scores(lab: &Lab) -> Result<Vec<Measured>> {
    let mut all = Vec::new();
    for (rows, vocab) in [(1u32, 17u32), (5, 9001)] {
        let mut rng = Rng::new(vocab.into());
        let logits: Vec<f32> = rng.units((rows * vocab) as usize).iter().map(|v| v * 9.0).collect();
        let cut = Chunks::of(vocab);
        let (xb, partial) = (lab.floats(&logits)?, lab.blank((rows * cut.chunks * 2) as usize)?);
        let x = Matrix::new(&xb, rows, vocab);
        for each_its_row in [true, false] {
            let (first, entries) = (3u32, if each_its_row { rows } else { 11 });
            let targets: Vec<u32> = (0..first + entries).map(|_| rng.below(vocab)).collect();
            let (tb, scores) = (lab.words(&targets)?, lab.blank((first + entries) as usize)?);
            let scored = Scored { targets: (&tb).into(), scores: (&scores).into(), first, entries, each_its_row };
            lab.run([log_sum(x, cut, (&partial).into())?, token_score(x, cut, (&partial).into(), scored)?])?;
            let row = |e: usize| {
                if each_its_row { &logits[e * vocab as usize..][..vocab as usize] } else { &logits[..vocab as usize] }
            };
            let want: Vec<Want> =
                targets[first as usize..].iter().enumerate().map(|(e, &t)| Want(log_prob(row(e), t), 20.0)).collect();
            let got = lab.read(&scores, (first + entries) as usize)?;
            let case = format!("{entries} of {rows} rows of {vocab}, each its own: {each_its_row}");
            all.push(compare(case, &got[first as usize..], &want, 0.0, 1e-6));
        }
    }
    Ok(all)
}

pub(super) fn pool(lab: &Lab) -> Result<Vec<Measured>> {
    let mut all = Vec::new();
    for cols in [17usize, 333] {
        let mut rng = Rng::new(cols as u64);
        let rows = 70usize;
        let (x, before) = (rng.units(rows * cols), rng.units(4 * cols));
        let stretches = [(0, 1, 0, 1.0), (1, 0, 1, 1.0), (1, 67, 1, 0.25), (69, 1, 0, -2.0)]
            .map(|(first, rows, add, scale)| Stretch { first, rows, add, scale });
        let (xb, sb, yb) = (lab.floats(&x)?, lab.words(bytemuck::cast_slice(&stretches))?, lab.floats(&before)?);
        let y = Matrix::new(&yb, 4, cols as u32);
        lab.run([pool_rows((&sb).into(), Matrix::new(&xb, rows as u32, cols as u32), y)?])?;
        let mut want = Vec::new();
        for (s, held) in stretches.iter().zip(before.chunks_exact(cols)) {
            for (c, &held) in held.iter().enumerate() {
                let held = if s.add != 0 { f64::from(held) } else { 0.0 };
                let terms = (s.first..s.first + s.rows).map(|r| f64::from(x[r as usize * cols + c]));
                let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), v| (sum + v, size + v.abs()));
                want.push(Want(held + f64::from(s.scale) * sum, held.abs() + f64::from(s.scale).abs() * size));
            }
        }
        all.push(compare(format!("4 stretches of {cols}"), &lab.read(&yb, 4 * cols)?, &want, 1e-7, 5e-6));
    }
    Ok(all)
}

pub(super) fn unit(lab: &Lab) -> Result<Vec<Measured>> {
    [(1usize, 17usize), (7, 333)]
        .into_iter()
        .map(|(rows, cols)| {
            let x: Vec<f32> = Rng::new(cols as u64).units(rows * cols).iter().map(|v| v * 40.0).collect();
            let yb = lab.floats(&x)?;
            lab.run([unit_rows(Matrix::new(&yb, rows as u32, cols as u32))?])?;
            let length = |r: &[f32]| r.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
            let scaled = |r: &[f32]| r.iter().map(|&v| Want::from(f64::from(v) / length(r))).collect::<Vec<_>>();
            let want: Vec<Want> = x.chunks_exact(cols).flat_map(scaled).collect();
            Ok(compare(format!("{rows} x {cols}"), &lab.read(&yb, rows * cols)?, &want, 1e-7, 5e-6))
        })
        .collect()
}
