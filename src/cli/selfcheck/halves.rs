//! Rows in f16 for cooperative products: what writes them. Devices without matrices run these kernels too.

use doppler::Result;
use doppler::gpu::{Buffer, BufferSlice};
use doppler::kernels::{self, Activation, HalfRows, Matrix, Parts};
use doppler::quant::GPU_BLOCK;

use super::elementwise::{clamped_of, gelu_of, silu_of};
use super::{Lab, Measured, Rng, Want, compare};

/// Rows in f16 on the device.
struct Halves {
    data: Buffer,
    scales: Buffer,
    words: usize,
    rows: usize,
    cols: usize,
    tiled: bool,
}

impl Halves {
    fn new(lab: &Lab, rows: usize, cols: usize, tiled: bool) -> Result<Self> {
        let words = HalfRows::data_bytes(rows as u64, cols as u32) as usize / 4;
        Ok(Self { data: lab.blank(words)?, scales: lab.blank(rows)?, words, rows, cols, tiled })
    }

    /// Where number `c` of a row is, and how many of a row were written.
    fn place(&self, tiles: usize) -> (usize, impl Fn(usize, usize) -> usize) {
        // Tiles hold whole steps of four subgroups of two blocks each.
        let padded = self.cols.next_multiple_of(if self.tiled { 8 * GPU_BLOCK } else { GPU_BLOCK });
        let tiled = self.tiled;
        (padded, move |r: usize, c: usize| {
            if !tiled {
                return r * padded + c;
            }
            // Two blocks a step, each of eight units of four; tiles of two units of both.
            let (step, block, unit, i) = (c / 64, c / 32 % 2, c % 32 / 4, c % 4);
            let column = unit % 2 * 8 + block * 4 + i;
            ((step * 4 + unit / 2) * tiles + r / 16) * 256 + r % 16 * 16 + column
        })
    }

    fn operand(&self) -> HalfRows<'_> {
        let (rows, cols) = (self.rows as u32, self.cols as u32);
        HalfRows { data: (&self.data).into(), scales: (&self.scales).into(), rows, cols, tiled: self.tiled }
    }

    /// Compares with the numbers that were to be written, which are known to `near` of the largest in a row: that one within 2^14 to 2^15, or just
    /// beyond, and each number within half a unit of 11 bits, or of the smallest step; rounding either way is allowed to the device.
    fn compare(&self, lab: &Lab, case: String, want: &[f64], near: f64) -> Result<Measured> {
        let rel = 1.001 / 1024.0 + near;
        let (padded, place) = self.place(self.operand().tiles() as usize);
        let words = lab.read_words(&self.data, self.words)?;
        let scales = lab.read(&self.scales, self.rows)?;
        let half = |at: usize| half::f16::from_bits((words[at / 2] >> (16 * (at % 2))) as u16).to_f32();
        let (mut got, mut bounds) = (Vec::new(), Vec::new());
        for (r, (row, scale)) in want.chunks_exact(self.cols).zip(&scales).enumerate() {
            let top = row.iter().fold(0.0f64, |m, v| m.max(v.abs()));
            let filled = top == 0.0 || (16383.9..=32768.1).contains(&(top / f64::from(*scale)));
            for i in 0..padded {
                let (v, h) = (row.get(i).copied().unwrap_or(0.0), half(place(r, i)));
                got.push(if filled { h * scale } else { f32::NAN });
                // A step of 2^-24 at the bottom is 2^-38 of the largest.
                bounds.push(Want(v, v.abs() + top * (2f64.powi(-27) + near / rel)));
            }
        }
        Ok(compare(case, &got, &bounds, 0.0, rel))
    }
}

/// Rows of very different size, one of zeros.
fn uneven(rng: &mut Rng, rows: usize, cols: usize) -> Vec<f32> {
    let mut x = rng.units(rows * cols);
    let size = [1.0, 3e9, 1e-20, 0.0];
    x.iter_mut().enumerate().for_each(|(i, v)| *v *= size[i / cols % size.len()]);
    x
}

fn half_rows(lab: &Lab) -> Result<Vec<Measured>> {
    [(7usize, 36usize, false), (5, 1024, false), (35, 36, true), (5, 1184, true)]
        .into_iter()
        .map(|(rows, cols, tiled)| {
            let x = uneven(&mut Rng::new(cols as u64), rows, cols);
            let (xb, halves) = (lab.floats(&x)?, Halves::new(lab, rows, cols, tiled)?);
            lab.run([kernels::half_rows(&lab.gpu, Matrix::new(&xb, rows as u32, cols as u32), halves.operand())?])?;
            let want: Vec<f64> = x.iter().map(|&v| v.into()).collect();
            halves.compare(lab, format!("rows to f16, {rows} x {cols}, in tiles: {tiled}"), &want, 0.0)
        })
        .collect()
}

/// Norms of whole rows and of rows whose parts are still to be added; the sums are looked at as well.
fn norm_half(lab: &Lab) -> Result<Vec<Measured>> {
    let mut all = Vec::new();
    for v in lab.variants("norm_half") {
        for (rows, cols, tiled) in [(3usize, 36usize, false), (5, 1184, false), (19, 612, true)] {
            let (splits, eps, mut rng) = (3usize, 1e-5, Rng::new(cols as u64));
            let (x, w, parts) = (rng.units(rows * cols), rng.units(cols), rng.units(splits * rows * cols));
            let (xb, wb, pb) = (lab.floats(&x)?, lab.floats(&w)?, lab.floats(&parts)?);
            let halves = Halves::new(lab, rows, cols, tiled)?;
            let data: BufferSlice<'_> = (&pb).into();
            let added = v.has("PARTS").then_some(Parts { data, splits: splits as u32 });
            let m = Matrix::new(&xb, rows as u32, cols as u32);
            lab.run([kernels::norm_half(&lab.gpu, m, (&wb).into(), eps, halves.operand(), added)?])?;
            let sums: Vec<Want> = (0..rows * cols)
                .map(|i| {
                    let more = (0..if v.has("PARTS") { splits } else { 0 }).map(|s| parts[s * rows * cols + i]);
                    let terms = more.map(f64::from);
                    terms.fold(f64::from(x[i]).into(), |Want(v, size), t| Want(v + t, size + t.abs()))
                })
                .collect();
            let mut want = Vec::new();
            for row in sums.chunks_exact(cols) {
                let mean = row.iter().map(|v| v.0 * v.0).sum::<f64>() / cols as f64;
                let scale = 1.0 / (mean + f64::from(eps)).sqrt();
                want.extend(row.iter().zip(&w).map(|(v, &w)| v.0 * scale * f64::from(w)));
            }
            let case = format!("norm to f16, {rows} x {cols}, in tiles: {tiled}, {v}");
            // Where parts cancel, the sum's own rounding shows.
            all.push(halves.compare(lab, case.clone(), &want, 2e-6)?);
            all.push(compare(case, &lab.read(&xb, rows * cols)?, &sums, 1e-9, 1e-6));
        }
    }
    Ok(all)
}

fn activate_half(lab: &Lab) -> Result<Vec<Measured>> {
    let mut all = Vec::new();
    for v in lab.variants("activate_half") {
        let which = match (v.has("CLAMPED"), v.has("GELU")) {
            (true, _) => Activation::ClampedSwiglu { alpha: 1.75, limit: 7.0 },
            (_, true) => Activation::GeluTanh,
            _ => Activation::Silu,
        };
        for (rows, cols, tiled) in [(3usize, 36usize, false), (5, 1184, false), (19, 612, true)] {
            let gated = v.has("GATED");
            let width = cols * (1 + usize::from(gated));
            let x: Vec<f32> = Rng::new(cols as u64).units(rows * width).iter().map(|v| v * 9.0).collect();
            let (xb, halves) = (lab.floats(&x)?, Halves::new(lab, rows, cols, tiled)?);
            let m = Matrix::new(&xb, rows as u32, width as u32);
            lab.run([kernels::activate_half(&lab.gpu, which, gated, m, halves.operand())?])?;
            let mut want = Vec::new();
            for row in x.chunks_exact(width) {
                want.extend((0..cols).map(|i| {
                    let (g, up) = (f64::from(row[i]), f64::from(if gated { row[cols + i] } else { 1.0 }));
                    match which {
                        Activation::ClampedSwiglu { .. } => clamped_of(g, up),
                        Activation::GeluTanh => gelu_of(g) * up,
                        Activation::Silu => silu_of(g) * up,
                    }
                }));
            }
            // Far out gelu is a difference of nearly equal numbers: small beside the row's largest.
            all.push(halves.compare(
                lab,
                format!("{which:?} to f16, {rows} x {cols}, in tiles: {tiled}, {v}"),
                &want,
                5e-6,
            )?);
        }
    }
    Ok(all)
}

/// What brings rows to f16.
pub(super) fn halves(lab: &Lab) -> Result<Vec<Measured>> {
    let mut all = half_rows(lab)?;
    all.extend(norm_half(lab)?);
    all.extend(activate_half(lab)?);
    Ok(all)
}
