//! Tensor statistics.

use doppler::Result;
use doppler::kernels::{Matrix, NO_BAD_ELEMENT, STATS_PARTIAL_BYTES, TensorStats, tensor_stats};

use super::{Lab, Measured, Rng, Want, compare};

pub(super) fn tensor_stats_check(lab: &Lab) -> Result<Vec<Measured>> {
    let mut rng = Rng::new(31);
    let partial = lab.blank(STATS_PARTIAL_BYTES as usize / 4)?;
    let mut cases = Vec::new();
    for (rows, cols) in [(1, 5), (3, 2047), (40, 1000)] {
        let mut values = rng.units(rows * cols);
        let n = values.len();
        (values[n - 1], values[n / 2], values[n / 3]) = (f32::NAN, f32::NEG_INFINITY, 65504.0);
        let (x, out) = (lab.floats(&values)?, lab.blank(10)?);
        let m = Matrix::new(&x, rows as u32, cols as u32);
        lab.run(tensor_stats(m, 65500.0, partial.whole(), out.whole(), 0)?)?;
        let got: TensorStats = bytemuck::pod_read_unaligned(bytemuck::cast_slice(&lab.read_words(&out, 10)?));
        let finite: Vec<f64> = values.iter().filter(|v| v.is_finite()).map(|&v| f64::from(v)).collect();
        let case = format!("{rows} x {cols}");
        let wanted = (n as u32, 1, 1, 1, (n / 3) as u32);
        let counted = (got.count, got.nan, got.inf, got.over, got.first_bad);
        cases.push(Measured::exact(
            format!("{case} counts"),
            usize::from(counted != wanted || NO_BAD_ELEMENT == got.first_bad),
        ));
        let sum = |f: &dyn Fn(f64) -> f64| finite.iter().map(|&v| f(v)).sum::<f64>();
        let want = [
            Want(sum(&|v| v), sum(&f64::abs)),
            Want::from(sum(&|v| v * v)),
            Want::from(finite.iter().copied().fold(f64::INFINITY, f64::min)),
            Want::from(65504.0),
        ];
        cases.push(compare(format!("{case} sums"), &[got.sum, got.sum_sq, got.min, got.max], &want, 0.0, 1e-5));
    }
    Ok(cases)
}
