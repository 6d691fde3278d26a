//! Experts of few rows: gate and up with the activation, and the last product with the weighted sum.

use doppler::Result;
use doppler::kernels::{self, Activation, Matrix, MoeShape, SharedExpert};

use super::bytes::Bytes;
use super::elementwise::{gelu_of, silu_of};
use super::fused::{Left, left_for_next};
use super::input::InputRows;
use super::moe::{Mixture, expert_weight, random_ids};
use super::weights::{format_of, width};
use super::{Lab, Measured, Rng, Want, compare};

/// Experts, and those that a row uses.
const EXPERTS: usize = 5;
const USED: usize = 3;

fn shape(rows: usize) -> MoeShape {
    MoeShape { rows: rows as u32, n_expert: EXPERTS as u32, n_used: USED as u32 }
}

/// `x · w` and the size of its terms. Offsets and quants cancel in part, so that terms are larger.
fn dot<'w>(x: &[f64], w: impl IntoIterator<Item = &'w f32>) -> Want {
    let terms = x.iter().zip(w).map(|(a, &b)| a * f64::from(b));
    terms.fold(Want(0.0, 20.0), |Want(v, size), t| Want(v + t, size + t.abs()))
}

pub(super) fn glu(lab: &Lab) -> Result<Vec<Measured>> {
    let mut all = Vec::new();
    for (i, v) in lab.variants("moe_glu").into_iter().enumerate() {
        let (k, rows, n) = (width(lab, &v, i)?, [1, 4, 7][i % 3], 96);
        let mut rng = Rng::new((k * rows) as u64);
        let (w, values) = expert_weight(lab, format_of(&v)?, (EXPERTS, 2 * n, k), None)?;
        let x = InputRows::with(lab, true, v.has("NORM"), false, &rng.units(rows * k), k)?;
        let ids = random_ids(&mut rng, shape(rows), EXPERTS as u32);
        let m = Mixture::new(lab, shape(rows), [1, 1], &ids)?;
        let which = if v.has("GELU") { Activation::GeluTanh } else { Activation::Silu };
        let out = Bytes::new(lab, ids.len(), n)?;
        lab.run([kernels::moe_glu(&lab.gpu, which, x.operand(), &w, m.routing(), out.operand())?])?;
        let mut want = Vec::new();
        for (e, &id) in ids.iter().enumerate() {
            let x = x.values.chunks_exact(k).nth(e / USED).unwrap_or_default();
            let rows: Vec<Want> =
                values.chunks_exact(k).skip(id as usize * 2 * n).take(2 * n).map(|w| dot(x, w)).collect();
            let (gates, ups) = rows.split_at(n);
            for (&Want(gate, gate_size), &Want(up, up_size)) in gates.iter().zip(ups) {
                let a = if v.has("GELU") { gelu_of(gate) } else { silu_of(gate) };
                // The slope of both functions is below 1.13.
                want.push(Want(a * up, 1.13 * gate_size * (up.abs() + 5e-6 * up_size) + a.abs() * up_size));
            }
        }
        // Bytes are half a step off at most, beside what the products are.
        for block in want.chunks_exact_mut(32) {
            let step = block.iter().fold(0.0f64, |top, w| top.max(w.0.abs())) / 127.0;
            block.iter_mut().for_each(|w| w.1 += 0.502 * step / 5e-6);
        }
        let case = format!("{rows} x {k} by 2 * {n}, {USED} of {EXPERTS}, {v}");
        all.push(compare(case, &out.read(lab)?, &want, 1e-6, 5e-6));
    }
    Ok(all)
}

pub(super) fn down(lab: &Lab) -> Result<Vec<Measured>> {
    let mut all = Vec::new();
    for (i, v) in lab.variants("moe_down").into_iter().enumerate() {
        let (k, rows, n) = (width(lab, &v, i)?, [1, 7, 4][i % 3], 96);
        let mut rng = Rng::new((k * rows) as u64);
        let (w, values) = expert_weight(lab, format_of(&v)?, (EXPERTS, n, k), None)?;
        let xb = lab.floats(&rng.units(rows * USED * k))?;
        let x = Bytes::of(lab, Matrix::new(&xb, (rows * USED) as u32, k as u32))?;
        let x_values: Vec<f64> = x.read(lab)?.into_iter().map(f64::from).collect();
        let ids = random_ids(&mut rng, shape(rows), EXPERTS as u32);
        let (weights, old, gates) = (rng.units(rows * USED), rng.units(rows * n), rng.units(rows));
        let (beside, next_w) = (rng.units(rows * n), rng.units(n));
        let mut m = Mixture::new(lab, shape(rows), [1, 1], &ids)?;
        m.weights = lab.floats(&weights)?;
        let (yb, gb, hb) = (lab.floats(&old)?, lab.floats(&gates)?, lab.floats(&beside)?);
        let wb = lab.floats(&next_w)?;
        let left = Left::new(lab, [true, false], rows, n)?;
        let matrix = |b| Matrix::new(b, rows as u32, n as u32);
        let shared = v.has("SHARED").then(|| SharedExpert { gate: (&gb).into(), y: matrix(&hb) });
        let next = v.has("NEXT").then(|| left.operand(&wb));
        lab.run([kernels::moe_down(&lab.gpu, x.operand(), &w, m.routing(), shared, matrix(&yb), next)?])?;
        let mut want = Vec::new();
        for t in 0..rows {
            for c in 0..n {
                let mut sum: Want = f64::from(old[t * n + c]).into();
                for e in t * USED..(t + 1) * USED {
                    let row = (ids[e] as usize * n + c) * k;
                    let Want(v, size) = dot(&x_values[e * k..(e + 1) * k], &values[row..row + k]);
                    let weight = f64::from(weights[e]);
                    sum = Want(sum.0 + weight * v, sum.1 + weight.abs() * size);
                }
                if v.has("SHARED") {
                    let own = f64::from(beside[t * n + c]) / (1.0 + (-f64::from(gates[t])).exp());
                    sum = Want(sum.0 + own, sum.1 + own.abs());
                }
                want.push(sum);
            }
        }
        let case = format!("{rows} x {k} by {n}, {USED} of {EXPERTS}, {v}");
        let got = lab.read(&yb, want.len())?;
        all.push(compare(case.clone(), &got, &want, 1e-6, 5e-6));
        if v.has("NEXT") {
            all.extend(left_for_next(lab, &case, &got, &next_w, &left)?);
        }
    }
    Ok(all)
}
