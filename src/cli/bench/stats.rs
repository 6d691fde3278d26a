//! Statistics of a few measurements: percentiles, and differences of pairs.

/// Value below which a share `p` of the sorted values lies, interpolated linearly between neighbours.
pub(super) fn percentile(sorted: &[f64], p: f64) -> Option<f64> {
    let at = p * (sorted.len().checked_sub(1)? as f64);
    let (low, high) = (*sorted.get(at.floor() as usize)?, *sorted.get(at.ceil() as usize)?);
    Some(low + (high - low) * at.fract())
}

pub(super) fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut v: Vec<f64> = values.collect();
    v.sort_by(f64::total_cmp);
    v
}

/// The middle value, or 0 of nothing.
pub(super) fn median(values: impl Iterator<Item = f64>) -> f64 {
    percentile(&sorted(values), 0.5).unwrap_or(0.0)
}

/// Quantile 0.975 of Student's t with `df` degrees of freedom: half the width of a 95 % interval in standard errors.
fn t_975(df: usize) -> f64 {
    const TABLE: [f64; 12] =
        [12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788];
    if let Some(&t) = df.checked_sub(1).and_then(|i| TABLE.get(i)) {
        return t;
    }
    // Expansion around the normal quantile (Fisher and Cornish 1960); from here on its error is below 1e-4.
    let (z, n) = (1.959_964f64, df as f64);
    let (z3, z5, z7) = (z.powi(3), z.powi(5), z.powi(7));
    z + (z3 + z) / (4.0 * n)
        + (5.0 * z5 + 16.0 * z3 + 3.0 * z) / (96.0 * n * n)
        + (3.0 * z7 + 19.0 * z5 + 17.0 * z3 - 15.0 * z) / (384.0 * n.powi(3))
}

/// How the second of two series of measurements differs from the first, run by run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Paired {
    /// Pairs: runs that both series have.
    pub(super) n: usize,
    /// Median of the differences.
    pub(super) median: f64,
    /// 95 % confidence interval of the mean difference, by a paired t-test; one pair has none.
    pub(super) interval: Option<(f64, f64)>,
}

/// Differences `new[i] - old[i]`, for as many runs as both have; `None` if that is none.
pub(super) fn paired(old: &[f64], new: &[f64]) -> Option<Paired> {
    let d: Vec<f64> = old.iter().zip(new).map(|(o, n)| n - o).collect();
    let n = d.len() as f64;
    let mean = d.iter().sum::<f64>() / n;
    let interval = (d.len() > 1).then(|| {
        let variance = d.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0);
        let half = t_975(d.len() - 1) * (variance / n).sqrt();
        (mean - half, mean + half)
    });
    (!d.is_empty()).then(|| Paired { n: d.len(), median: median(d.iter().copied()), interval })
}

/// What a comparison says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Faster,
    Slower,
    /// No difference can be told from the noise.
    Same,
    /// Too few runs to say.
    Undecided,
}

impl Verdict {
    pub(super) fn name(self) -> &'static str {
        match self {
            Verdict::Faster => "faster",
            Verdict::Slower => "slower",
            Verdict::Same => "same",
            Verdict::Undecided => "undecided",
        }
    }
}

impl Paired {
    /// Faster or slower if the interval lies on one side of zero.
    pub(super) fn verdict(&self, higher_is_better: bool) -> Verdict {
        match self.interval {
            None => Verdict::Undecided,
            Some((low, high)) if low <= 0.0 && high >= 0.0 => Verdict::Same,
            Some((low, _)) if (low > 0.0) == higher_is_better => Verdict::Faster,
            Some(_) => Verdict::Slower,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_interpolate_between_neighbours() {
        let v = [1.0, 2.0, 3.0, 5.0];
        assert_eq!(percentile(&v, 0.5), Some(2.5));
        assert_eq!(percentile(&v, 0.0), Some(1.0));
        assert_eq!(percentile(&v, 1.0), Some(5.0));
        assert!((percentile(&v, 0.9).unwrap() - 4.4).abs() < 1e-12);
        assert_eq!(percentile(&[], 0.5), None);
        assert_eq!(median([9.0, 1.0, 4.0].into_iter()), 4.0);
    }

    #[test]
    fn quantiles_of_t_agree_with_tables() {
        for (df, t) in [(1, 12.706), (4, 2.776), (12, 2.179), (13, 2.160), (20, 2.086), (30, 2.042), (120, 1.980)] {
            assert!((t_975(df) - t).abs() < 6e-4, "{df}: {}", t_975(df));
        }
    }

    #[test]
    fn pairs_give_median_interval_and_verdict() {
        // Differences 1, 2, 3: mean 2, standard error 1/√3, t of 2 degrees 4.3027.
        let p = paired(&[10.0, 20.0, 30.0, 99.0], &[11.0, 22.0, 33.0]).unwrap();
        let (low, high) = p.interval.unwrap();
        assert_eq!((p.n, p.median), (3, 2.0));
        assert!(
            (low - (2.0 - 4.3027 / 3f64.sqrt())).abs() < 1e-9 && (high - (2.0 + 4.3027 / 3f64.sqrt())).abs() < 1e-9
        );
        assert_eq!(p.verdict(true), Verdict::Same, "the interval reaches below zero");
        let p = paired(&[1.0, 2.0, 3.0, 4.0], &[2.0, 3.01, 4.0, 5.0]).unwrap();
        assert_eq!((p.verdict(true), p.verdict(false)), (Verdict::Faster, Verdict::Slower));
        let p = paired(&[2.0, 3.01, 4.0, 5.0], &[1.0, 2.0, 3.0, 4.0]).unwrap();
        assert_eq!((p.verdict(true), p.verdict(false)), (Verdict::Slower, Verdict::Faster));
        let same = paired(&[5.0, 6.0], &[5.0, 6.0]).unwrap();
        assert_eq!((same.interval, same.verdict(true)), (Some((0.0, 0.0)), Verdict::Same));
        assert_eq!(paired(&[1.0], &[2.0]).unwrap().verdict(true), Verdict::Undecided);
        assert_eq!(paired(&[], &[2.0]), None);
    }
}
