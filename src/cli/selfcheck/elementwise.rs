//! Activations, sums, casts, and the reductions over rows.

use doppler::Result;
use doppler::gpu::Dispatch;
use doppler::kernels::{self, Activation, Cast, Matrix, Norm, NormKind, Segments};

use super::bytes::Bytes;
use super::{BLANK, Lab, Measured, Rng, Want, compare};

/// Rows and columns, odd where a kernel allows it.
const ODD: [(usize, usize); 2] = [(1, 17), (7, 333)];

/// Runs a kernel from one matrix to another of the same shape.
fn map(
    lab: &Lab,
    (rows, cols): (usize, usize),
    x: &[f32],
    f: impl for<'a> Fn(Matrix<'a>, Matrix<'a>) -> Result<Dispatch<'a>>,
) -> Result<Vec<f32>> {
    let (xb, yb) = (lab.floats(x)?, lab.blank(rows * cols)?);
    let d = f(Matrix::new(&xb, rows as u32, cols as u32), Matrix::new(&yb, rows as u32, cols as u32))?;
    lab.run([d])?;
    lab.read(&yb, rows * cols)
}

pub(super) fn silu_of(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

pub(super) fn gelu_of(x: f64) -> f64 {
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
    0.5 * x * (1.0 + inner.tanh())
}

/// With alpha 1.75 and a limit of 7.
pub(super) fn clamped_of(g: f64, up: f64) -> f64 {
    silu_of(1.75 * g.min(7.0)) / 1.75 * (up.clamp(-7.0, 7.0) + 1.0)
}

/// Inputs of activations: small ones, and some far out.
fn wide(rng: &mut Rng, n: usize) -> Vec<f32> {
    (0..n).map(|i| rng.unit() * if i % 5 == 0 { 60.0 } else { 4.0 }).collect()
}

fn activation(
    lab: &Lab,
    f: impl for<'a> Fn(Matrix<'a>, Matrix<'a>) -> Result<Dispatch<'a>>,
    reference: fn(f64) -> f64,
) -> Result<Vec<Measured>> {
    ODD.iter()
        .map(|&(rows, cols)| {
            let x = wide(&mut Rng::new(cols as u64), rows * cols);
            let got = map(lab, (rows, cols), &x, &f)?;
            let want: Vec<Want> = x.iter().map(|&v| Want(reference(v.into()), f64::from(v.abs()))).collect();
            Ok(compare(format!("{rows} x {cols}"), &got, &want, 1e-6, 5e-6))
        })
        .collect()
}

pub(super) fn silu(lab: &Lab) -> Result<Vec<Measured>> {
    activation(lab, kernels::silu, silu_of)
}

pub(super) fn gelu(lab: &Lab) -> Result<Vec<Measured>> {
    activation(lab, kernels::gelu, gelu_of)
}

pub(super) fn glu(lab: &Lab) -> Result<Vec<Measured>> {
    let mut all = Vec::new();
    // The factors after clamping, and the product's own function of them.
    type Function = fn(f64, f64) -> f64;
    let cases: [(Activation, Function); 3] = [
        (Activation::Silu, |g, u| silu_of(g) * u),
        (Activation::GeluTanh, |g, u| gelu_of(g) * u),
        (Activation::ClampedSwiglu { alpha: 1.75, limit: 7.0 }, clamped_of),
    ];
    for (which, reference) in cases {
        for (rows, cols) in ODD {
            let x = wide(&mut Rng::new(cols as u64 + 9), rows * cols * 2);
            let (xb, yb) = (lab.floats(&x)?, lab.blank(rows * cols)?);
            let both = Matrix::new(&xb, rows as u32, 2 * cols as u32);
            let c = cols as u32;
            let d = kernels::glu(which, both.columns(0, c), both.columns(c, c), Matrix::new(&yb, rows as u32, c))?;
            lab.run([d])?;
            let mut want = Vec::new();
            for row in x.chunks_exact(2 * cols) {
                let (gate, up) = row.split_at(cols);
                want.extend(gate.iter().zip(up).map(|(&g, &u)| {
                    let (g, u) = (f64::from(g), f64::from(u));
                    Want(reference(g, u), (g * u).abs() + g.abs())
                }));
            }
            all.push(compare(format!("{which:?} {rows} x {cols}"), &lab.read(&yb, rows * cols)?, &want, 1e-6, 5e-6));
        }
        let (rows, cols) = (3, 288);
        let x = lab.floats(&wide(&mut Rng::new(5), rows * cols * 2))?;
        let (r, c) = (rows as u32, cols as u32);
        let both = Matrix::new(&x, r, 2 * c);
        for gated in [true, false] {
            if !gated && matches!(which, Activation::ClampedSwiglu { .. }) {
                continue;
            }
            let (yb, bytes) = (lab.blank(rows * cols)?, Bytes::new(lab, rows, cols)?);
            let (gate, y) = (both.columns(0, c), Matrix::new(&yb, r, c));
            lab.run([match gated {
                true => kernels::glu_bytes(which, gate, both.columns(c, c), y, bytes.operand())?,
                false => kernels::activate_bytes(which, gate, y, bytes.operand())?,
            }])?;
            let case = format!("{which:?} {rows} x {cols} to bytes, gated: {gated}");
            all.push(bytes.compare(lab, case, &lab.read(&yb, rows * cols)?)?);
        }
    }
    Ok(all)
}

pub(super) fn residual(lab: &Lab) -> Result<Vec<Measured>> {
    [17usize, 2331]
        .into_iter()
        .map(|n| {
            let mut rng = Rng::new(n as u64);
            let (a, b) = (rng.units(n), rng.units(n));
            let (ab, bb, yb) = (lab.floats(&a)?, lab.floats(&b)?, lab.blank(n + 1)?);
            lab.run([kernels::residual(n as u32, (&ab).into(), (&bb).into(), (&yb).into(), 0.75)?])?;
            let sum = |(&a, &b): (&f32, &f32)| {
                let (a, b) = (f64::from(a), 0.75 * f64::from(b));
                Want(a + b, a.abs() + b.abs())
            };
            let mut want: Vec<Want> = a.iter().zip(&b).map(sum).collect();
            // What lies beyond the last element stays.
            want.push(f64::from(BLANK).into());
            Ok(compare(format!("{n}"), &lab.read(&yb, n + 1)?, &want, 0.0, 2e-7))
        })
        .collect()
}

pub(super) fn add_bias(lab: &Lab) -> Result<Vec<Measured>> {
    ODD.iter()
        .map(|&(rows, cols)| {
            let mut rng = Rng::new(cols as u64);
            let (x, b) = (rng.units(rows * cols), rng.units(cols));
            let (xb, bb, yb) = (lab.floats(&x)?, lab.floats(&b)?, lab.blank(rows * cols)?);
            let d = kernels::add_bias(rows as u32, cols as u32, (&xb).into(), (&bb).into(), (&yb).into())?;
            lab.run([d])?;
            let want: Vec<Want> = x
                .iter()
                .zip(b.iter().cycle())
                .map(|(&x, &b)| Want(f64::from(x) + f64::from(b), f64::from(x.abs() + b.abs())))
                .collect();
            Ok(compare(format!("{rows} x {cols}"), &lab.read(&yb, rows * cols)?, &want, 0.0, 2e-7))
        })
        .collect()
}

pub(super) fn softmax(lab: &Lab) -> Result<Vec<Measured>> {
    [(1usize, 333usize), (5, 2049)]
        .into_iter()
        .map(|(rows, cols)| {
            let mut x: Vec<f32> = Rng::new(cols as u64).units(rows * cols).iter().map(|v| v * 20.0).collect();
            x[3] = f32::NEG_INFINITY;
            let got = map(lab, (rows, cols), &x, |x, y| kernels::softmax(x, y, 0.7))?;
            let mut want = Vec::new();
            for row in x.chunks_exact(cols) {
                let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let e: Vec<f64> = row.iter().map(|&v| ((f64::from(v) - f64::from(top)) / 0.7).exp()).collect();
                let sum: f64 = e.iter().sum();
                want.extend(e.iter().map(|v| Want::from(v / sum)));
            }
            Ok(compare(format!("{rows} x {cols}"), &got, &want, 1e-7, 2e-5))
        })
        .collect()
}

/// A row, normalised in f64: values and the sizes of what they are made of.
fn normed(kind: NormKind, row: &[f32], w: &[f32]) -> Vec<Want> {
    let n = row.len() as f64;
    let mean = if kind == NormKind::Layer { row.iter().map(|&v| f64::from(v)).sum::<f64>() / n } else { 0.0 };
    let square = row.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
    let scale = 1.0 / (square + 1e-5).sqrt();
    let one = |(&v, &w): (&f32, &f32)| {
        let (v, w) = (f64::from(v), f64::from(w) * scale);
        Want((v - mean) * w, (v.abs() + mean.abs()) * w.abs())
    };
    row.iter().zip(w).map(one).collect()
}

pub(super) fn rmsnorm(lab: &Lab) -> Result<Vec<Measured>> {
    let mut all = Vec::new();
    for v in lab.variants("rmsnorm") {
        // The width chooses the workgroup.
        let long = v.constant("WG") == Some(kernels::constants::THREADS_LONG);
        let (rows, cols) = match (long, v.has("BYTES")) {
            (true, false) => (5, 2052),
            (true, true) => (5, 2080),
            (false, false) => (3, 36),
            (false, true) => (3, 96),
        };
        let kind = if v.has("CENTER") { NormKind::Layer } else { NormKind::Rms };
        let (bias, add) = (v.has("BIAS"), v.has("ADD"));
        let mut rng = Rng::new(cols as u64);
        let (x, w, b, old) = (rng.units(rows * cols), rng.units(cols), rng.units(cols), rng.units(rows * cols));
        let (xb, wb, bb, yb) = (lab.floats(&x)?, lab.floats(&w)?, lab.floats(&b)?, lab.floats(&old)?);
        let m = |buffer| Matrix::new(buffer, rows as u32, cols as u32);
        let norm = Norm { kind, eps: 1e-5, w: (&wb).into(), bias: bias.then(|| (&bb).into()) };
        if v.has("BYTES") {
            let bytes = Bytes::new(lab, rows, cols)?;
            lab.run([kernels::norm_bytes(norm, m(&xb), m(&yb), bytes.operand())?])?;
            all.push(bytes.compare(lab, format!("{rows} x {cols}, {v}, its bytes"), &lab.read(&yb, rows * cols)?)?);
        } else {
            lab.run([kernels::norm(norm, m(&xb), m(&yb), add)?])?;
        }
        let mut want: Vec<Want> = x.chunks_exact(cols).flat_map(|row| normed(kind, row, &w)).collect();
        for (i, want) in want.iter_mut().enumerate() {
            for term in [bias.then(|| b[i % cols]), add.then(|| old[i])].into_iter().flatten() {
                *want = Want(want.0 + f64::from(term), want.1 + f64::from(term.abs()));
            }
        }
        all.push(compare(format!("{rows} x {cols}, {v}"), &lab.read(&yb, rows * cols)?, &want, 1e-7, 5e-6));
    }
    Ok(all)
}

pub(super) fn qk_norm(lab: &Lab) -> Result<Vec<Measured>> {
    let mut all = Vec::new();
    for (rows, heads, cols) in [(5usize, [3usize, 2], [36usize, 36]), (2, [1, 1], [2052, 516])] {
        let mut rng = Rng::new(cols[0] as u64);
        let width = heads[0] * cols[0] + heads[1] * cols[1] + 8;
        let (x, q, k) = (rng.units(rows * width), rng.units(cols[0]), rng.units(cols[1]));
        let (xb, qb, kb) = (lab.floats(&x)?, lab.floats(&q)?, lab.floats(&k)?);
        let segments = |i: usize, w| Segments { count: heads[i] as u32, cols: cols[i] as u32, w };
        let m = Matrix::new(&xb, rows as u32, width as u32);
        lab.run([kernels::qk_norm(m, segments(0, (&qb).into()), segments(1, (&kb).into()), 1e-5)?])?;
        let mut want = Vec::new();
        for row in x.chunks_exact(width) {
            let (qs, rest) = row.split_at(heads[0] * cols[0]);
            let (ks, rest) = rest.split_at(heads[1] * cols[1]);
            want.extend(qs.chunks_exact(cols[0]).flat_map(|s| normed(NormKind::Rms, s, &q)));
            want.extend(ks.chunks_exact(cols[1]).flat_map(|s| normed(NormKind::Rms, s, &k)));
            want.extend(rest.iter().map(|&v| Want::from(f64::from(v))));
        }
        let case = format!("{rows} rows of {heads:?} segments of {cols:?}");
        all.push(compare(case, &lab.read(&xb, want.len())?, &want, 1e-7, 5e-6));
    }
    Ok(all)
}

pub(super) fn softcap(lab: &Lab) -> Result<Vec<Measured>> {
    [(17usize, 30.0f32), (2331, 0.5)]
        .into_iter()
        .map(|(n, cap)| {
            let x: Vec<f32> = Rng::new(n as u64).units(n + 1).iter().map(|v| v * 3.0 * cap).collect();
            let xb = lab.floats(&x)?;
            lab.run([kernels::softcap(n as u32, cap, (&xb).into())?])?;
            let bent = |&v: &f32| f64::from(cap) * (f64::from(v) / f64::from(cap)).tanh();
            // What lies beyond the last element stays.
            let want: Vec<Want> = x[..n].iter().map(bent).chain([f64::from(x[n])]).map(Want::from).collect();
            // A device's tanh may be made of exponentials, whose rounding is one of the cap, not of the result.
            Ok(compare(format!("{n}, cap {cap}"), &lab.read(&xb, n + 1)?, &want, 5e-7 * f64::from(cap), 2e-6))
        })
        .collect()
}

pub(super) fn cast(lab: &Lab) -> Result<Vec<Measured>> {
    let mut all = Vec::new();
    for n in [17usize, 1025] {
        let x: Vec<f32> = Rng::new(n as u64).units(n).iter().map(|v| v * 100.0).collect();
        for which in [Cast::F32ToF16, Cast::F16ToF32, Cast::Bf16ToF32] {
            let pack = |f: fn(f32) -> u16| -> Vec<u32> {
                let half = |p: &[f32], i: usize| p.get(i).map_or(0, |&v| u32::from(f(v)));
                x.chunks(2).map(|p| half(p, 0) | half(p, 1) << 16).collect()
            };
            let f16 = |v: f32| half::f16::from_f32(v).to_bits();
            let bf16 = |v: f32| half::bf16::from_f32(v).to_bits();
            let (from, back): (Vec<u32>, fn(f32) -> f32) = match which {
                Cast::F32ToF16 => (bytemuck::cast_vec(x.clone()), |v| v),
                Cast::F16ToF32 => (pack(f16), |v| half::f16::from_f32(v).to_f32()),
                Cast::Bf16ToF32 => (pack(bf16), |v| half::bf16::from_f32(v).to_f32()),
            };
            let (xb, yb) = (lab.words(&from)?, lab.blank(n + 1)?);
            lab.run([kernels::cast(which, n as u32, (&xb).into(), (&yb).into())?])?;
            let got = if which == Cast::F32ToF16 {
                let words = lab.read_words(&yb, n.div_ceil(2))?;
                let halves = words.iter().flat_map(|w| [*w as u16, (*w >> 16) as u16]);
                halves.map(|h| half::f16::from_bits(h).to_f32()).take(n).collect()
            } else {
                lab.read(&yb, n)?
            };
            let want: Vec<Want> = x.iter().map(|&v| f64::from(back(v)).into()).collect();
            // To f16: half a unit in the last place; widening is exact.
            let rel = if which == Cast::F32ToF16 { 1.0 / 2048.0 } else { 0.0 };
            let abs = if which == Cast::F32ToF16 { 1e-7 } else { 0.0 };
            all.push(compare(format!("{which:?} {n}"), &got, &want, abs, rel));
        }
    }
    Ok(all)
}

pub(super) fn device_width(lab: &Lab) -> Result<Vec<Measured>> {
    [(1u32, 1u32), (3, 2)]
        .into_iter()
        .map(|(groups, rounds)| {
            let n = groups as usize * 256;
            let y = lab.blank(n)?;
            lab.run([kernels::width_work(groups, rounds, (&y).into())?])?;
            let of = |i: usize| 2.0 + ((i % 256) as f64 - 2.0) * 0.5f64.powi(8 * rounds as i32);
            let want: Vec<Want> = (0..n).map(|i| Want(of(i), 2.0)).collect();
            Ok(compare(format!("{groups} workgroups, {rounds} rounds"), &lab.read(&y, n)?, &want, 1e-6, 1e-6))
        })
        .collect()
}
