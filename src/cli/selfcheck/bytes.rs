//! Activations as signed bytes: what writes them, and their meaning for what reads them.

use doppler::Result;
use doppler::gpu::Buffer;
use doppler::kernels::{self, ByteRows, Matrix};

use super::{Lab, Measured, Rng};

/// Rows as bytes on the device.
pub(super) struct Bytes {
    quants: Buffer,
    scales: Buffer,
    rows: usize,
    cols: usize,
}

impl Bytes {
    pub(super) fn new(lab: &Lab, rows: usize, cols: usize) -> Result<Self> {
        let [quants, scales] = ByteRows::sizes(rows as u32, cols as u32).map(|bytes| bytes as usize / 4);
        Ok(Self { quants: lab.blank(quants)?, scales: lab.blank(scales)?, rows, cols })
    }

    /// `x` as bytes, made on the device.
    pub(super) fn of(lab: &Lab, x: Matrix<'_>) -> Result<Self> {
        let bytes = Self::new(lab, x.rows as usize, x.cols as usize)?;
        lab.run([kernels::byte_rows(x, bytes.operand())?])?;
        Ok(bytes)
    }

    pub(super) fn operand(&self) -> ByteRows<'_> {
        let (rows, cols) = (self.rows as u32, self.cols as u32);
        ByteRows { quants: (&self.quants).into(), scales: (&self.scales).into(), rows, cols }
    }

    /// The numbers that the bytes stand for; NaN where the sums beside a scale are not those of its bytes.
    pub(super) fn read(&self, lab: &Lab) -> Result<Vec<f32>> {
        let k_blocks = self.cols / 32;
        let blocks = self.rows * k_blocks;
        let (words, scales) = (lab.read_words(&self.quants, blocks * 8)?, lab.read_words(&self.scales, blocks * 2)?);
        let mut values = Vec::with_capacity(self.rows * self.cols);
        for (b, scale) in scales.chunks_exact(2).enumerate() {
            let (row, block) = (b / k_blocks, b % k_blocks);
            for half in 0..2 {
                let at = ((2 * row + half) * k_blocks + block) * 4;
                let bytes: Vec<i8> = words[at..at + 4].iter().flat_map(|w| w.to_le_bytes()).map(|b| b as i8).collect();
                let sum: i32 = bytes.iter().map(|&b| i32::from(b)).sum();
                let right = i32::from((scale[1] >> (16 * half)) as u16 as i16) == sum;
                let d = if right { f32::from_bits(scale[0]) } else { f32::NAN };
                values.extend(bytes.iter().map(|&b| d * f32::from(b)));
            }
        }
        Ok(values)
    }

    /// Compares with the numbers that were to be written: each may be off by half a step of its block.
    pub(super) fn compare(&self, lab: &Lab, case: String, x: &[f32]) -> Result<Measured> {
        let mut worst = Measured { case, error: 0.0, bound: 1e-35 };
        for (got, x) in self.read(lab)?.chunks_exact(32).zip(x.chunks_exact(32)) {
            let top = x.iter().fold(0.0f64, |m, &v| m.max(f64::from(v).abs()));
            for (&g, &x) in got.iter().zip(x) {
                let error = (f64::from(g) - f64::from(x)).abs();
                let here = Measured { case: String::new(), error, bound: top * 0.50004 / 127.0 + 1e-35 };
                if here.ratio() > worst.ratio() {
                    worst = Measured { case: worst.case, ..here };
                }
            }
        }
        Ok(worst)
    }
}

pub(super) fn byte_rows(lab: &Lab) -> Result<Vec<Measured>> {
    [(1usize, 32usize), (3, 2080)]
        .into_iter()
        .map(|(rows, cols)| {
            let mut x = Rng::new(cols as u64).units(rows * cols);
            // Blocks of other sizes, and one of zeros.
            x.chunks_exact_mut(32).zip([1.0, 1e4, 0.0, 1e-6].iter().cycle()).for_each(|(block, size)| {
                block.iter_mut().for_each(|v| *v *= size);
            });
            let xb = lab.floats(&x)?;
            let bytes = Bytes::of(lab, Matrix::new(&xb, rows as u32, cols as u32))?;
            bytes.compare(lab, format!("{rows} x {cols}"), &x)
        })
        .collect()
}
