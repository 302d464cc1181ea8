//! Finds where the two sides of a corpus stopped being translations of each other, line by line: their lengths then agree with a neighbour's.

/// In fewer lines a shift has no place.
const FEW: usize = 20;
/// Lines that are looked at together.
const WINDOW: usize = 100;
/// How far a side may have moved.
const FARTHEST: isize = 3;
/// A window is suspicious where its own lengths correlate less than this, and a neighbour's more than [`AGREES`].
const DISAGREES: f64 = 0.3;
const AGREES: f64 = 0.6;

/// Lines that seem to belong to others.
#[derive(Clone, Debug, PartialEq)]
pub struct Shift {
    /// The first of them (1-based), about.
    pub line: usize,
    /// The target of line `n` stands at line `n + by`.
    pub by: isize,
    /// Correlation of the lengths as they stand, and moved.
    pub correlations: (f64, f64),
}

/// The first shift, by the lengths of both sides of every line (`None` where a side is empty).
pub(super) fn find(lengths: &[(f64, f64)]) -> Option<Shift> {
    let n = lengths.len();
    let mut start = 0;
    while start < n {
        let end = (start + WINDOW).min(n);
        // A short rest is judged with the lines before it.
        let from = if end == n { n.saturating_sub(WINDOW) } else { start };
        if let Some((by, correlations)) = judge(lengths, from, end) {
            // Of few lines it cannot be said where.
            let begins = from.saturating_sub(WINDOW / 2);
            let line = if n < FEW { 1 } else { first_line(lengths, begins, end, by) + 1 };
            return Some(Shift { line, by, correlations });
        }
        if end == n {
            break;
        }
        start += WINDOW / 2;
    }
    None
}

fn judge(lengths: &[(f64, f64)], from: usize, to: usize) -> Option<(isize, (f64, f64))> {
    let own = correlation(lengths, from, to, 0)?;
    if own >= DISAGREES {
        return None;
    }
    let moved = (-FARTHEST..=FARTHEST).filter(|by| *by != 0);
    let best = moved.filter_map(|by| Some((by, correlation(lengths, from, to, by)?)));
    let (by, best) = best.max_by(|a, b| a.1.total_cmp(&b.1))?;
    (best > AGREES && best > own + 0.4).then_some((by, (own, best)))
}

/// Correlation of the source's lengths in these lines with the target's `by` lines on; none of fewer than three lines or of equal lengths.
fn correlation(lengths: &[(f64, f64)], from: usize, to: usize, by: isize) -> Option<f64> {
    let pairs: Vec<(f64, f64)> = (from..to)
        .filter_map(|i| {
            Some((
                lengths[i].0,
                lengths.get(i.checked_add_signed(by)?).filter(|_| within(i, by, from, to))?.1,
            ))
        })
        .collect();
    let n = pairs.len() as f64;
    let mean = pairs.iter().fold((0.0, 0.0), |m, p| (m.0 + p.0 / n, m.1 + p.1 / n));
    let sum = |f: &dyn Fn(&(f64, f64)) -> f64| pairs.iter().map(f).sum::<f64>();
    let (a, b) = (sum(&|p| (p.0 - mean.0).powi(2)), sum(&|p| (p.1 - mean.1).powi(2)));
    let both = sum(&|p| (p.0 - mean.0) * (p.1 - mean.1));
    (pairs.len() >= 3 && a > 1e-9 && b > 1e-9).then(|| both / (a * b).sqrt())
}

fn within(i: usize, by: isize, from: usize, to: usize) -> bool {
    i.checked_add_signed(by).is_some_and(|j| (from..to).contains(&j))
}

/// The line from which on the lengths agree better with those `by` lines on.
fn first_line(lengths: &[(f64, f64)], from: usize, to: usize, by: isize) -> usize {
    let off = |i: usize, j: usize| (lengths[i].0 - lengths[j].1).powi(2).min(1.0);
    let gain = |i: usize| match i.checked_add_signed(by).filter(|j| *j < lengths.len()) {
        Some(j) => off(i, i) - off(i, j),
        None => 0.0,
    };
    // The beginning of the run with the largest sum of gains.
    let (mut best, mut best_start, mut sum, mut start) = (f64::NEG_INFINITY, from, 0.0, from);
    for i in from..to {
        if sum <= 0.0 {
            (sum, start) = (0.0, i);
        }
        sum += gain(i);
        if sum > best {
            (best, best_start) = (sum, start);
        }
    }
    best_start
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::random::RowRandom;

    /// Logarithms of the lengths of translations, with some noise.
    fn corpus(n: usize) -> Vec<(f64, f64)> {
        let mut random = RowRandom::new(1, "shift", "test");
        (0..n)
            .map(|_| {
                let length = 3.0 + 2.0 * random.uniform();
                (length, length + 0.2 * (random.uniform() - 0.5))
            })
            .collect()
    }

    #[test]
    fn a_shift_is_found_where_it_begins_and_none_where_there_is_none() {
        for seed in 0..20 {
            assert_eq!(find(&corpus(37 + 50 * seed)), None);
        }
        for (at, by) in [(0, 1), (120, 1), (333, -1), (250, 2)] {
            let good = corpus(600);
            let mut lengths = good.clone();
            for i in at..lengths.len() {
                let from = (i as isize - by).clamp(0, 599) as usize;
                lengths[i].1 = good[from].1;
            }
            let found = find(&lengths).unwrap();
            assert_eq!(found.by, by);
            assert!(found.line.abs_diff(at + 1) <= 3, "line {} for {}", found.line, at + 1);
        }
        assert_eq!(find(&[]), None);
        assert_eq!(find(&[(1.0, 2.0); 50]), None, "equal lengths say nothing");
    }
}
