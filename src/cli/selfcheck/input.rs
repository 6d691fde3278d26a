//! Rows as products take them: numbers or bytes, whole or still to be normalised.

use doppler::Result;
use doppler::gpu::{Buffer, Variant};
use doppler::kernels::{Input, Matrix, RowNorm};

use super::bytes::Bytes;
use super::{Lab, Rng};

const EPS: f32 = 1e-2;

/// Rows on the device, as a variant of a product reads them, and what they mean.
pub(super) struct InputRows {
    x: Buffer,
    bytes: Option<Bytes>,
    /// Weights, and sums of squares where they are in the rows.
    norm: Option<(Buffer, Option<Buffer>)>,
    scaled: bool,
    rows: usize,
    cols: usize,
    /// `[rows, cols]` of what is multiplied.
    pub(super) values: Vec<f64>,
}

impl InputRows {
    /// `x` for a variant with or without BYTES, NORM and SCALED.
    pub(super) fn of(lab: &Lab, v: &Variant, x: &[f32], cols: usize) -> Result<Self> {
        Self::with(lab, v.has("BYTES"), v.has("NORM"), v.has("SCALED"), x, cols)
    }

    /// `x` as bytes or not, still to be normalised or not, with the norm's weights in it or, but for bytes, not.
    pub(super) fn with(lab: &Lab, as_bytes: bool, normed: bool, scaled: bool, x: &[f32], cols: usize) -> Result<Self> {
        let rows = x.len() / cols;
        let mut rng = Rng::new(cols as u64);
        let xb = lab.floats(x)?;
        let bytes = as_bytes.then(|| Bytes::of(lab, Matrix::new(&xb, rows as u32, cols as u32))).transpose()?;
        let mut values: Vec<f64> = match &bytes {
            Some(bytes) => bytes.read(lab)?,
            None => x.to_vec(),
        }
        .into_iter()
        .map(f64::from)
        .collect();
        let mut norm = None;
        if normed {
            let w = rng.units(cols);
            // Of scaled rows any sums will do: what they stand for was multiplied by weights before.
            // Of numbers they are those of halves of blocks.
            let (blocks, halves) = (rows * cols / 32, if scaled { 2 } else { 1 });
            let sums: Option<Vec<f32>> = (bytes.is_some() || scaled)
                .then(|| rng.units(halves * blocks).iter().map(|s| 20.0 * s.abs()).collect());
            for (r, values) in values.chunks_exact_mut(cols).enumerate() {
                let squares: f64 = match &sums {
                    Some(sums) => {
                        let of_row = |half: &[f32]| {
                            half[r * (cols / 32)..][..cols / 32].iter().map(|&s| f64::from(s)).sum::<f64>()
                        };
                        sums.chunks_exact(blocks).map(of_row).sum()
                    }
                    None => values.iter().map(|v| v * v).sum(),
                };
                let scale = 1.0 / (squares / cols as f64 + f64::from(EPS)).sqrt();
                for (v, &w) in values.iter_mut().zip(&w) {
                    *v *= if sums.is_some() { scale } else { scale * f64::from(w) };
                }
            }
            norm = Some((lab.floats(&w)?, sums.map(|s| lab.floats(&s)).transpose()?));
        }
        Ok(Self { x: xb, bytes, norm, scaled, rows, cols, values })
    }

    pub(super) fn operand(&self) -> Input<'_> {
        let norm = self.norm.as_ref().map(|(w, sums)| RowNorm {
            w: w.into(),
            eps: EPS,
            sums: sums.as_ref().map(|s| s.into()),
            scaled: self.scaled,
        });
        let x = Matrix::new(&self.x, self.rows as u32, self.cols as u32);
        Input { x, bytes: self.bytes.as_ref().map(Bytes::operand), norm, half: None }
    }
}
