//! Paired bootstrap (Koehn 2004): is the difference between two systems on the same rows more than luck?
use crate::data::random::RowRandom;

/// A difference with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Paired {
    /// After minus before, on all rows.
    pub difference: f64,
    /// 2.5th percentile over the resamples.
    pub low: f64,
    /// 97.5th percentile over the resamples.
    pub high: f64,
    /// Two-sided p-value of no difference: (resamples whose centred difference is at least as large + 1) / (resamples + 1). NaN, and so are the
    /// percentiles, where the difference of all rows or of any resample is none.
    pub p: f64,
}

/// Resamples `n` rows with replacement `samples` times; `statistic` gives (before, after) for a choice of rows.
pub fn paired_by(n: usize, samples: usize, seed: u64, statistic: impl Fn(&[usize]) -> (f64, f64)) -> Paired {
    paired_over(n, 1, samples, seed, |_, indices| statistic(indices))
}

/// The same over `runs` trainings with other seeds, all tested on the same rows: every resample draws rows and, independently, runs with replacement (the
/// crossed two-way bootstrap, Owen 2007), and its difference is the mean over the drawn runs; `statistic` gives (before, after) of a run for a choice of rows.
/// With one run it is [`paired_by`]. Few runs say little of what another seed would change: the interval is then rather too narrow.
pub fn paired_over(
    n: usize,
    runs: usize,
    samples: usize,
    seed: u64,
    statistic: impl Fn(usize, &[usize]) -> (f64, f64),
) -> Paired {
    let mean = |runs: &[usize], indices: &[usize]| {
        let of = |&run: &usize| {
            let (before, after) = statistic(run, indices);
            after - before
        };
        runs.iter().map(of).sum::<f64>() / runs.len().max(1) as f64
    };
    let all: Vec<usize> = (0..runs).collect();
    let whole = mean(&all, &(0..n).collect::<Vec<_>>());
    let mut found: Vec<f64> = (0..if n == 0 { 0 } else { samples })
        .map(|i| {
            let mut random = RowRandom::new(seed, "bootstrap", &i.to_string());
            let indices: Vec<usize> = (0..n).map(|_| random.below(n)).collect();
            let drawn: Vec<usize> = (0..runs).map(|_| random.below(runs)).collect();
            mean(&drawn, &indices)
        })
        .collect();
    if found.is_empty() {
        return Paired { difference: whole, low: whole, high: whole, p: 1.0 };
    }
    // No comparison with NaN is true: it would count as a difference that no resample reaches.
    if whole.is_nan() || found.iter().any(|d| d.is_nan()) {
        return Paired { difference: whole, low: f64::NAN, high: f64::NAN, p: f64::NAN };
    }
    found.sort_by(f64::total_cmp);
    let mean = found.iter().sum::<f64>() / found.len() as f64;
    let extreme = found.iter().filter(|d| (**d - mean).abs() >= whole.abs()).count();
    let at = |q: f64| found[((found.len() - 1) as f64 * q).round() as usize];
    Paired {
        difference: whole,
        low: at(0.025),
        high: at(0.975),
        p: (extreme + 1) as f64 / (found.len() + 1) as f64,
    }
}

/// 95 % percentile interval of the mean over `samples` bootstrap resamples of these values: inside their range and lopsided near its ends,
/// where the normal one is neither.
pub fn bootstrap_interval(values: &[f64], samples: usize, seed: u64) -> Option<(f64, f64)> {
    let mean = |indices: &[usize]| indices.iter().map(|&i| values[i]).sum::<f64>() / indices.len() as f64;
    let whole = paired_by(values.len(), samples, seed, |indices| {
        (0.0, if indices.is_empty() { 0.0 } else { mean(indices) })
    });
    (values.len() > 1 && samples > 0).then_some((whole.low, whole.high))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 95 % interval of the mean of these values (an accuracy, if they are 0 and 1) by the normal approximation: 1.96 standard errors (sample
    /// standard deviation over root n) either way. None for fewer than two values.
    fn normal_interval(values: &[f64]) -> Option<(f64, f64)> {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
        let half = 1.959_963_984_540_054 * (variance / n).sqrt();
        (values.len() > 1).then_some((mean - half, mean + half))
    }

    fn means(before: &[f64], after: &[f64]) -> Paired {
        let mean = |x: &[f64], i: &[usize]| i.iter().map(|&i| x[i]).sum::<f64>() / i.len() as f64;
        paired_by(before.len(), 1000, 1, |i| (mean(before, i), mean(after, i)))
    }

    #[test]
    fn a_clear_gain_is_significant_and_noise_is_not() {
        let before: Vec<f64> = (0..200).map(|i| f64::from(i % 2)).collect();
        let better: Vec<f64> = (0..200).map(|i| if i % 4 == 0 { 1.0 } else { f64::from(i % 2) }).collect();
        let gain = means(&before, &better);
        assert!(
            (gain.difference - 0.25).abs() < 1e-12 && gain.low > 0.15 && gain.high < 0.35 && gain.p < 0.01,
            "{gain:?}"
        );
        let other: Vec<f64> = (0..200).map(|i| f64::from((i + 1) % 2)).collect();
        let noise = means(&before, &other);
        assert!(noise.low < 0.0 && noise.high > 0.0 && noise.p > 0.5, "{noise:?}");
    }

    /// The standard deviation of a mean difference is known: the interval must be about +-1.96 of it.
    #[test]
    fn the_interval_has_the_width_that_theory_gives() {
        let before = vec![0.0; 400];
        let after: Vec<f64> = (0..400).map(|i| f64::from(i % 2)).collect();
        let width = means(&before, &after);
        let expected = 1.96 * (0.25f64 / 400.0).sqrt();
        assert!(((width.high - width.low) / 2.0 / expected - 1.0).abs() < 0.15, "{width:?}");
    }

    #[test]
    fn intervals_of_an_accuracy_agree_and_the_resampled_one_stays_in_range() {
        let values: Vec<f64> = (0..400).map(|i| f64::from(u8::from(i % 5 == 0))).collect();
        let (low, high) = normal_interval(&values).unwrap();
        // 0.2 +- 1.96 sqrt(0.2 * 0.8 / 399)
        assert!((low - 0.160_75).abs() < 1e-5 && (high - 0.239_25).abs() < 1e-5, "{low} {high}");
        let (l, h) = bootstrap_interval(&values, 2000, 1).unwrap();
        assert!((l - low).abs() < 0.006 && (h - high).abs() < 0.006, "{l} {h}");
        let rare: Vec<f64> = (0..50).map(|i| f64::from(u8::from(i == 0))).collect();
        assert!(
            normal_interval(&rare).unwrap().0 < 0.0 && bootstrap_interval(&rare, 500, 1).unwrap().0 >= 0.0
        );
        assert_eq!((normal_interval(&[1.0]), bootstrap_interval(&[], 10, 1)), (None, None));
    }

    /// Differences of a row and of a run add up: the variance of their mean is the sum of both parts', which one run's rows do not see.
    #[test]
    fn runs_widen_the_interval_by_what_they_differ() {
        let (rows, runs) = (200, 8);
        let of_row = |i: usize| f64::from(i as u32 % 2);
        let of_run = |r: usize| 0.2 * f64::from(r as u32 % 2);
        let mean =
            |x: &dyn Fn(usize) -> f64, i: &[usize]| i.iter().map(|&i| x(i)).sum::<f64>() / i.len() as f64;
        let both = paired_over(rows, runs, 2000, 1, |r, i| (0.0, mean(&of_row, i) + of_run(r)));
        let expected = 1.96 * (0.25 / rows as f64 + 0.01 / runs as f64).sqrt();
        assert!((both.difference - 0.6).abs() < 1e-12);
        assert!(((both.high - both.low) / 2.0 / expected - 1.0).abs() < 0.1, "{both:?} {expected}");
        let alone = paired_over(rows, runs, 2000, 1, |_, i| (0.0, mean(&of_row, i)));
        assert!(both.high - both.low > 1.2 * (alone.high - alone.low), "{both:?} {alone:?}");
    }

    #[test]
    fn a_value_that_is_none_is_no_evidence() {
        let before = vec![0.0; 50];
        for bad in [1, 50] {
            let after: Vec<f64> = (0..50).map(|i| if i < bad { f64::NAN } else { 1.0 }).collect();
            let found = means(&before, &after);
            assert!(found.p.is_nan() && found.low.is_nan() && found.high.is_nan(), "{found:?}");
        }
    }

    #[test]
    fn no_rows_are_no_evidence() {
        assert_eq!(
            paired_by(0, 10, 1, |_| (0.0, 0.0)),
            Paired { difference: 0.0, low: 0.0, high: 0.0, p: 1.0 }
        );
    }
}
