//! Is the difference between two systems more than luck? Paired bootstrap resampling (Koehn 2004) and paired approximate randomisation
//! (Riezler & Maxwell 2005), to the digit as sacrebleu 2.6.0 computes them with NumPy 2: its random numbers, and its arithmetic, which in
//! the bootstrap is partly in f32.
use rayon::prelude::*;

use super::{
    corpus::{CorpusCounts, CorpusMetric, Score},
    numpy_random::NumpyRandom,
};

/// What a test says of one system.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outcome {
    /// On all sentences.
    pub score: f64,
    /// Mean over the resamples, and half the width of their 95 % interval (bootstrap only).
    pub interval: Option<(f64, f64)>,
    /// Probability of so large a difference from the first system by luck; none for the first.
    pub p: Option<f64>,
}

/// sacrebleu's signature with a test in it: `bs` or `ar` with the number of samples, and the seed.
pub fn signature(signature: &str, test: &str, samples: usize, seed: u64) -> String {
    let (references, rest) = signature.split_once('|').unwrap_or((signature, ""));
    format!("{references}|{test}:{samples}|seed:{seed}|{rest}")
}

/// Resamples drawn at once: bounds the memory.
const BLOCK: usize = 64;

/// Scores of `samples` resamples with replacement for each system, drawn alike.
fn resampled(metric: &CorpusMetric, systems: &[CorpusCounts], samples: usize, seed: u64) -> Vec<Vec<Score>> {
    let n = systems.first().map_or(0, CorpusCounts::len);
    let rows: Vec<Vec<f32>> =
        systems.iter().map(|s| s.rows().flatten().map(|x| *x as f32).collect()).collect();
    let width = systems.first().map_or(0, CorpusCounts::width);
    let mut random = NumpyRandom::new(seed);
    let mut out = vec![Vec::with_capacity(samples); systems.len()];
    for start in (0..samples).step_by(BLOCK) {
        let count = BLOCK.min(samples - start);
        let drawn: Vec<usize> = (0..count * n).map(|_| random.below(n as u32) as usize).collect();
        let jobs: Vec<(usize, usize)> =
            (0..systems.len()).flat_map(|s| (0..count).map(move |i| (s, i))).collect();
        let scores: Vec<Score> = jobs
            .par_iter()
            .map(|&(s, i)| {
                let mut sums = vec![0.0f32; width];
                for &row in &drawn[i * n..(i + 1) * n] {
                    let row = &rows[s][row * width..(row + 1) * width];
                    sums.iter_mut().zip(row).for_each(|(sum, own)| *sum += own);
                }
                metric.of_sums(&sums)
            })
            .collect();
        for (&(s, _), score) in jobs.iter().zip(scores) {
            out[s].push(score);
        }
    }
    out
}

/// Mean and half the width of the 95 % interval of one system's score over bootstrap resamples, as `sacrebleu --confidence` prints them.
pub fn confidence(
    metric: &CorpusMetric,
    system: &CorpusCounts,
    samples: usize,
    seed: u64,
) -> Option<(f64, f64)> {
    if system.is_empty() || samples == 0 {
        return None;
    }
    let scores = resampled(metric, std::slice::from_ref(system), samples, seed);
    scores.first().map(|scores| estimate(&Numbers::of(scores)))
}

/// Paired bootstrap of every system against the first. All have counts of the same sentences.
pub fn paired_bootstrap(
    metric: &CorpusMetric,
    systems: &[CorpusCounts],
    samples: usize,
    seed: u64,
) -> Vec<Outcome> {
    let whole: Vec<f64> = systems.iter().map(|s| metric.score(s)).collect();
    if systems.first().is_none_or(CorpusCounts::is_empty) || samples == 0 {
        return whole.into_iter().map(|score| Outcome { score, ..Default::default() }).collect();
    }
    let scores: Vec<Numbers> =
        resampled(metric, systems, samples, seed).iter().map(|s| Numbers::of(s)).collect();
    let of = |(i, score): (usize, &f64)| {
        let p = (i > 0).then(|| {
            let differences = scores[i].distance(&scores[0]);
            let mean = differences.mean();
            let centred = differences.map(|d| d - mean);
            p_value(&centred, (whole[0] - score).abs())
        });
        Outcome { score: *score, interval: Some(estimate(&scores[i])), p }
    };
    whole.iter().enumerate().map(of).collect()
}

/// Paired approximate randomisation of every system against the first: in each trial every sentence changes sides by the toss of a coin.
pub fn paired_randomisation(
    metric: &CorpusMetric,
    systems: &[CorpusCounts],
    trials: usize,
    seed: u64,
) -> Vec<Outcome> {
    let whole: Vec<f64> = systems.iter().map(|s| metric.score(s)).collect();
    let Some(first) = systems.first() else { return vec![] };
    let n = first.len();
    let tosses = NumpyRandom::new(seed).bits(trials.saturating_mul(n));
    let of = |(i, system): (usize, &CorpusCounts)| {
        let score = whole[i];
        if i == 0 || n == 0 || trials == 0 {
            return Outcome { score, ..Default::default() };
        }
        let mut total = vec![0i64; first.width()];
        let mut base = vec![0i64; first.width()];
        let mut moved = Vec::with_capacity(n * first.width());
        for (a, b) in first.rows().zip(system.rows()) {
            for (k, (a, b)) in a.iter().zip(b).enumerate() {
                base[k] += *b as i64;
                total[k] += (*a + *b) as i64;
                moved.push(*a as i64 - *b as i64);
            }
        }
        let of_sums =
            |sums: &[i64]| metric.of_sums(&sums.iter().map(|x| *x as f64).collect::<Vec<f64>>()).value;
        let trial = |t: usize| {
            let mut sums = base.clone();
            for (row, moved) in moved.chunks_exact(first.width()).enumerate() {
                let at = t * n + row;
                let side = i64::from(tosses[at / 32] >> (at % 32) & 1);
                sums.iter_mut().zip(moved).for_each(|(sum, own)| *sum += side * own);
            }
            let other: Vec<i64> = total.iter().zip(&sums).map(|(all, own)| all - own).collect();
            (of_sums(&sums) - of_sums(&other)).abs()
        };
        let differences = Numbers { values: (0..trials).into_par_iter().map(trial).collect(), single: false };
        Outcome { score, interval: None, p: Some(p_value(&differences, (whole[0] - score).abs())) }
    };
    systems.iter().enumerate().map(of).collect()
}

/// The mean of these numbers to NumPy's last bit; NaN of none.
pub(super) fn mean(values: &[f64]) -> f64 {
    Numbers { values: values.to_vec(), single: false }.mean()
}

/// A NumPy array of f64 or (`single`) f32.
struct Numbers {
    values: Vec<f64>,
    single: bool,
}

impl Numbers {
    fn of(scores: &[Score]) -> Numbers {
        let single = scores.iter().all(|s| s.single);
        Numbers { values: scores.iter().map(|s| s.value).collect(), single }
    }

    fn round(&self, x: f64) -> f64 {
        if self.single { f64::from(x as f32) } else { x }
    }

    fn map(&self, f: impl Fn(f64) -> f64) -> Numbers {
        Numbers { values: self.values.iter().map(|x| self.round(f(*x))).collect(), single: self.single }
    }

    fn distance(&self, other: &Numbers) -> Numbers {
        let pairs = self.values.iter().zip(&other.values).map(|(a, b)| (a - b).abs());
        let out = Numbers { values: pairs.collect(), single: self.single && other.single };
        out.map(|x| x)
    }

    fn mean(&self) -> f64 {
        self.round(self.sum(&self.values) / self.values.len() as f64)
    }

    /// NumPy's pairwise summation: eight running sums over blocks of at most 128, longer arrays halved.
    fn sum(&self, x: &[f64]) -> f64 {
        let n = x.len();
        if n > 128 {
            let half = n / 2 - n / 2 % 8;
            return self.round(self.sum(&x[..half]) + self.sum(&x[half..]));
        }
        let mut eighths = x.chunks_exact(8);
        let Some(first) = eighths.next() else {
            return x.iter().fold(0.0, |sum, x| self.round(sum + x));
        };
        let mut r: [f64; 8] = std::array::from_fn(|k| first[k]);
        for eight in &mut eighths {
            r.iter_mut().zip(eight).for_each(|(r, x)| *r = self.round(*r + x));
        }
        let add = |a: f64, b: f64| self.round(a + b);
        let sum = add(add(add(r[0], r[1]), add(r[2], r[3])), add(add(r[4], r[5]), add(r[6], r[7])));
        eighths.remainder().iter().fold(sum, |sum, x| add(sum, *x))
    }
}

/// Mean, and half the width of the 95 % interval.
fn estimate(scores: &Numbers) -> (f64, f64) {
    let mut sorted = Numbers { values: scores.values.clone(), single: scores.single };
    sorted.values.sort_by(f64::total_cmp);
    let n = sorted.values.len();
    let low = n / 40;
    let width = scores.round(sorted.values[n - low - 1] - sorted.values[low]);
    (sorted.mean(), scores.round(0.5 * width))
}

/// (differences above the real one + 1) / (all + 1).
fn p_value(differences: &Numbers, real: f64) -> f64 {
    let real = differences.round(real);
    let more = differences.values.iter().filter(|d| **d > real).count();
    (more + 1) as f64 / (differences.values.len() + 1) as f64
}
