//! Products that take the next operation along.

use doppler::Result;
use doppler::gpu::{Buffer, Variant};
use doppler::kernels::{self, Activation, Matrix, Next};
use doppler::quant::GPU_BLOCK;

use super::bytes::Bytes;
use super::elementwise::{gelu_of, silu_of};
use super::input::InputRows;
use super::weights::{format_of, vec_rows, weight, width};
use super::{Lab, Measured, Rng, Want, compare};

/// Width, and rows of `x`, for the `i`-th variant.
fn shape(lab: &Lab, v: &Variant, i: usize) -> Result<[usize; 2]> {
    Ok([width(lab, v, i)?, vec_rows(v).unwrap_or(1)])
}

/// `Σ x · w` for each row of `x` and of `w`, and the size of its terms. Of bytes, offsets and quants cancel in part, so that terms are larger.
fn products(v: &Variant, x: &InputRows, w: &[f32], k: usize) -> Vec<Vec<Want>> {
    let least = if v.has("BYTES") { 20.0 } else { 0.2 };
    let one = |x: &[f64], w: &[f32]| {
        let terms = x.iter().zip(w).map(|(a, &b)| a * f64::from(b));
        terms.fold(Want(0.0, least), |Want(v, size), t| Want(v + t, size + t.abs()))
    };
    x.values.chunks_exact(k).map(|x| w.chunks_exact(k).map(|w| one(x, w)).collect()).collect()
}

pub(super) fn glu(lab: &Lab) -> Result<Vec<Measured>> {
    let mut all = Vec::new();
    for (i, v) in lab.variants("matmul_glu").into_iter().enumerate() {
        let [k, t_rows] = shape(lab, &v, i)?;
        let n = if v.has("OUT_BYTES") { 96 } else { 67 };
        let mut rng = Rng::new((k * t_rows) as u64);
        let (w, values) = weight(lab, format_of(&v)?, 2 * n, k, None)?;
        let x = InputRows::of(lab, &v, &rng.units(t_rows * k), k)?;
        let yb = lab.blank(t_rows * n)?;
        let y = Matrix::new(&yb, t_rows as u32, n as u32);
        let which = if v.has("GELU") { Activation::GeluTanh } else { Activation::Silu };
        let bytes = v.has("OUT_BYTES").then(|| Bytes::new(lab, t_rows, n)).transpose()?;
        let out = bytes.as_ref().map(Bytes::operand);
        lab.run([kernels::matmul_glu(&lab.gpu, which, x.operand(), &w, y, out)?])?;
        let mut want = Vec::new();
        for row in products(&v, &x, &values, k) {
            let (gates, ups) = row.split_at(n);
            for (&Want(gate, gate_size), &Want(up, up_size)) in gates.iter().zip(ups) {
                let a = if v.has("GELU") { gelu_of(gate) } else { silu_of(gate) };
                // The slope of both functions is below 1.13.
                want.push(Want(a * up, 1.13 * gate_size * (up.abs() + 5e-6 * up_size) + a.abs() * up_size));
            }
        }
        let case = format!("{t_rows} x {k} by 2 * {n}, {v}");
        let got = lab.read(&yb, want.len())?;
        // What may be a stage of a chain is shortened.
        let short = if v.has("SCALED") && !v.has("OUT_BYTES") { SHORTENED } else { 0.0 };
        all.push(compare(case.clone(), &got, &want, 1e-6, 5e-6 + short));
        if let Some(bytes) = bytes {
            all.push(bytes.compare(lab, format!("{case}, its bytes"), &got)?);
        }
    }
    Ok(all)
}

/// What rounding to 16 bits of mantissa does to a number, at most, and as much as two products in another order.
const SHORTENED: f64 = 1.0 / 65_536.0 + 1e-6;

/// Room for what is left for the next norm: rows as bytes, as numbers or as both, and sums of squares.
pub(super) struct Left {
    pub(super) bytes: Option<Bytes>,
    pub(super) numbers: Option<Buffer>,
    pub(super) sums: Buffer,
}

impl Left {
    pub(super) fn new(lab: &Lab, [bytes, numbers]: [bool; 2], rows: usize, cols: usize) -> Result<Self> {
        Ok(Self {
            bytes: bytes.then(|| Bytes::new(lab, rows, cols)).transpose()?,
            numbers: numbers.then(|| lab.blank(rows * cols)).transpose()?,
            sums: lab.blank(rows * cols / 32 * if numbers { 2 } else { 1 })?,
        })
    }

    pub(super) fn operand<'a>(&'a self, w: &'a Buffer) -> Next<'a> {
        let (bytes, numbers) = (self.bytes.as_ref().map(Bytes::operand), self.numbers.as_ref().map(|n| n.into()));
        Next { w: w.into(), bytes, numbers, sums: (&self.sums).into() }
    }
}

/// What rows leave for the next norm: themselves with its weights, and sums of squares.
pub(super) fn left_for_next(lab: &Lab, case: &str, rows: &[f32], next_w: &[f32], left: &Left) -> Result<Vec<Measured>> {
    let weighted: Vec<f32> = rows.iter().zip(next_w.iter().cycle()).map(|(y, w)| y * w).collect();
    let mut all = Vec::new();
    if let Some(bytes) = &left.bytes {
        all.push(bytes.compare(lab, format!("{case}, its bytes"), &weighted)?);
    }
    if let Some(numbers) = &left.numbers {
        let want: Vec<Want> = weighted.iter().map(|&v| f64::from(v).into()).collect();
        all.push(compare(format!("{case}, its numbers"), &lab.read(numbers, want.len())?, &want, 1e-7, SHORTENED));
    }
    let squares: Vec<Want> =
        rows.chunks_exact(32).map(|b| b.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().into()).collect();
    let halves = if left.numbers.is_some() { 2 } else { 1 };
    let got = lab.read(&left.sums, halves * squares.len())?;
    let got: Vec<f32> = (0..squares.len()).map(|b| got.iter().skip(b).step_by(squares.len()).sum()).collect();
    all.push(compare(format!("{case}, its squares"), &got, &squares, 1e-6, 2.5e-5));
    Ok(all)
}

pub(super) fn next(lab: &Lab) -> Result<Vec<Measured>> {
    let mut all = Vec::new();
    for (i, v) in lab.variants("matmul_next").into_iter().enumerate() {
        let [k, t_rows] = shape(lab, &v, i)?;
        // More blocks than are staged at a time, and a part of as many.
        let k = if v.has("STAGED") && i % 2 == 0 { 72 * GPU_BLOCK } else { k };
        // Rows so long that teams of a stage make half a block.
        let halves = v.has("QUAD") && !v.has("OUT_BYTES") && lab.gpu.features().chains && i % 2 == 0;
        let k = if halves { 65 * GPU_BLOCK } else { k };
        let n = 96;
        let mut rng = Rng::new((k * t_rows) as u64);
        let (bias, next_w, old) = (rng.units(n), rng.units(n), rng.units(t_rows * n));
        let bias = v.has("BIAS").then_some(bias.as_slice());
        let (w, values) = weight(lab, format_of(&v)?, n, k, bias)?;
        let x = InputRows::of(lab, &v, &rng.units(t_rows * k), k)?;
        let (yb, wb) = (lab.floats(&old)?, lab.floats(&next_w)?);
        let left = Left::new(lab, ["OUT_BYTES", "OUT_NUMBERS"].map(|f| v.has(f)), t_rows, n)?;
        let next = left.operand(&wb);
        let y = Matrix::new(&yb, t_rows as u32, n as u32);
        lab.run(kernels::matmul_next(&lab.gpu, x.operand(), &w, y, next)?)?;
        let mut want = Vec::new();
        for (row, old) in products(&v, &x, &values, k).iter().zip(old.chunks_exact(n)) {
            for (r, (&Want(sum, size), &old)) in row.iter().zip(old).enumerate() {
                let added = [bias.map_or(0.0, |b| b[r]), old].map(f64::from);
                want.push(added.iter().fold(Want(sum, size), |Want(v, size), t| Want(v + t, size + t.abs())));
            }
        }
        let case = format!("{t_rows} x {k} by {n}, {v}");
        let got = lab.read(&yb, want.len())?;
        all.push(compare(case.clone(), &got, &want, 1e-6, 5e-6));
        all.extend(left_for_next(lab, &case, &got, &next_w, &left)?);
    }
    Ok(all)
}
