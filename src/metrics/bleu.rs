//! Corpus BLEU (Papineni et al. 2002) as sacrebleu 2.6.0 computes it: orders 1 to 4, one reference, exponential smoothing, mixed case.
use anyhow::{Result, ensure};
use num_traits::Float;

use super::{
    ngrams::{WordIds, matches},
    tokenize::{BleuTokenizer, MetricTokenizer, split},
};

const ORDERS: usize = 4;

/// The counts of one sentence; those of a corpus are their sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BleuStatistics {
    /// n-grams of the hypothesis that the reference has.
    pub correct: [u64; ORDERS],
    /// n-grams of the hypothesis.
    pub total: [u64; ORDERS],
    /// Words of the hypothesis.
    pub hypothesis_length: u64,
    /// Words of the reference.
    pub reference_length: u64,
}

/// Numbers of a row of counts.
pub const WIDTH: usize = 2 + 2 * ORDERS;

impl BleuStatistics {
    /// As a row of counts: lengths of hypothesis and reference, correct n-grams, all n-grams.
    pub fn row(&self) -> [u64; WIDTH] {
        let mut out = [0; WIDTH];
        out[0] = self.hypothesis_length;
        out[1] = self.reference_length;
        out[2..2 + ORDERS].copy_from_slice(&self.correct);
        out[2 + ORDERS..].copy_from_slice(&self.total);
        out
    }
}

/// A corpus score.
#[derive(Clone, Debug, PartialEq)]
pub struct BleuScore {
    /// 0..100.
    pub score: f64,
    /// In percent, smoothed, by order.
    pub precisions: [f64; ORDERS],
    /// 0..1.
    pub brevity_penalty: f64,
    /// How it was computed, in sacrebleu's words.
    pub signature: String,
}

/// sacrebleu's signature.
pub fn signature(tokenizer: BleuTokenizer) -> String {
    format!("nrefs:1|case:mixed|eff:no|tok:{}|smooth:exp|version:2.6.0", tokenizer.signature())
}

/// BLEU of `hypotheses` against one reference each.
pub fn corpus_bleu(
    hypotheses: &[&str],
    references: &[&str],
    tokenizer: &MetricTokenizer,
) -> Result<BleuScore> {
    ensure!(
        hypotheses.len() == references.len(),
        "{} hypotheses for {} references",
        hypotheses.len(),
        references.len()
    );
    let all: Vec<BleuStatistics> =
        hypotheses.iter().zip(references).map(|(h, r)| statistics(h, r, tokenizer)).collect();
    let (score, precisions, brevity_penalty) = compute(&sum(all.iter()));
    Ok(BleuScore { score, precisions, brevity_penalty, signature: signature(tokenizer.kind()) })
}

/// The counts of one sentence.
pub fn statistics(hypothesis: &str, reference: &str, tokenizer: &MetricTokenizer) -> BleuStatistics {
    let (hypothesis, reference) = (tokenizer.tokenize(hypothesis), tokenizer.tokenize(reference));
    let mut ids = WordIds::default();
    let (h, r) = (ids.of(split(&hypothesis)), ids.of(split(&reference)));
    let found = matches::<ORDERS>(&h, &r);
    BleuStatistics {
        correct: found.map(|m| m[2]),
        total: found.map(|m| m[0]),
        hypothesis_length: h.len() as u64,
        reference_length: r.len() as u64,
    }
}

fn sum<'a>(all: impl Iterator<Item = &'a BleuStatistics>) -> [f64; WIDTH] {
    let mut sums = [0; WIDTH];
    for s in all {
        sums.iter_mut().zip(s.row()).for_each(|(sum, own)| *sum += own);
    }
    sums.map(|x| x as f64)
}

/// The score (0..100) of the sum of these sentences.
pub fn from_statistics<'a>(all: impl Iterator<Item = &'a BleuStatistics>) -> f64 {
    compute(&sum(all)).0
}

/// Score, precisions, brevity penalty of summed rows of counts. In f32 the precisions are rounded as NumPy 2 rounds them where sacrebleu
/// computes with `float32`; all else is in f64 there too.
pub fn compute<T: Float + Into<f64>>(sums: &[T]) -> (f64, [f64; ORDERS], f64) {
    let at = |i: usize| sums.get(i).copied().unwrap_or(T::zero());
    let (length, reference): (f64, f64) = (at(0).into(), at(1).into());
    let mut precisions = [0.0; ORDERS];
    let penalty = match length {
        n if n >= reference => 1.0,
        0.0 => 0.0,
        _ => (1.0 - reference / length).exp(),
    };
    if (0..ORDERS).all(|n| at(2 + n).is_zero()) {
        return (0.0, precisions, penalty);
    }
    let number = |x: f64| T::from(x).unwrap_or(T::zero());
    let hundred = number(100.0);
    let mut smooth = 1.0;
    for (n, precision) in precisions.iter_mut().enumerate() {
        let (correct, total) = (at(2 + n), at(2 + ORDERS + n));
        if total.is_zero() {
            break;
        }
        *precision = if correct.is_zero() {
            smooth *= 2.0;
            hundred / (number(smooth) * total)
        } else {
            hundred * correct / total
        }
        .into();
    }
    // An order without n-grams has precision 0, and so has the whole.
    let log = |p: f64| if p == 0.0 { -9999999999.0 } else { p.ln() };
    let mean = precisions.iter().map(|p| log(*p)).sum::<f64>() / ORDERS as f64;
    (penalty * mean.exp(), precisions, penalty)
}
