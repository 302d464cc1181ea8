//! Corpus BLEU (Papineni et al. 2002) as sacrebleu 2.6.0 computes it: orders 1 to 4, one reference, exponential smoothing, mixed case.
use std::collections::HashMap;

use anyhow::{Result, ensure};

use super::tokenize::{BleuTokenizer, split};

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

/// A corpus score.
#[derive(Clone, Debug, PartialEq)]
pub struct Bleu {
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
    format!("nrefs:1|case:mixed|eff:no|tok:{}|smooth:exp|version:2.6.0", tokenizer.name())
}

/// BLEU of `hypotheses` against one reference each.
pub fn corpus_bleu(hypotheses: &[&str], references: &[&str], tokenizer: BleuTokenizer) -> Result<Bleu> {
    ensure!(
        hypotheses.len() == references.len(),
        "{} hypotheses for {} references",
        hypotheses.len(),
        references.len()
    );
    let all: Vec<BleuStatistics> =
        hypotheses.iter().zip(references).map(|(h, r)| statistics(h, r, tokenizer)).collect();
    let (score, precisions, brevity_penalty) = compute(&sum(all.iter()));
    Ok(Bleu { score, precisions, brevity_penalty, signature: signature(tokenizer) })
}

/// The counts of one sentence.
pub fn statistics(hypothesis: &str, reference: &str, tokenizer: BleuTokenizer) -> BleuStatistics {
    let (hypothesis, reference) = (tokenizer.tokenize(hypothesis), tokenizer.tokenize(reference));
    let (h, r): (Vec<&str>, Vec<&str>) = (split(&hypothesis).collect(), split(&reference).collect());
    let mut out = BleuStatistics {
        hypothesis_length: h.len() as u64,
        reference_length: r.len() as u64,
        ..Default::default()
    };
    for n in 1..=ORDERS {
        let known = counts(&r, n);
        for (gram, count) in counts(&h, n) {
            out.total[n - 1] += count;
            out.correct[n - 1] += count.min(known.get(gram).copied().unwrap_or(0));
        }
    }
    out
}

fn counts<'a, 'b>(words: &'b [&'a str], n: usize) -> HashMap<&'b [&'a str], u64> {
    let mut out = HashMap::new();
    words.windows(n).for_each(|gram| *out.entry(gram).or_insert(0) += 1);
    out
}

fn sum<'a>(all: impl Iterator<Item = &'a BleuStatistics>) -> BleuStatistics {
    all.fold(BleuStatistics::default(), |mut sum, s| {
        for n in 0..ORDERS {
            sum.correct[n] += s.correct[n];
            sum.total[n] += s.total[n];
        }
        sum.hypothesis_length += s.hypothesis_length;
        sum.reference_length += s.reference_length;
        sum
    })
}

/// The score (0..100) of the sum of these sentences.
pub fn from_statistics<'a>(all: impl Iterator<Item = &'a BleuStatistics>) -> f64 {
    compute(&sum(all)).0
}

/// Score, precisions, brevity penalty.
fn compute(s: &BleuStatistics) -> (f64, [f64; ORDERS], f64) {
    let mut precisions = [0.0; ORDERS];
    let ratio = s.reference_length as f64 / s.hypothesis_length.max(1) as f64;
    let penalty = match s.hypothesis_length {
        n if n >= s.reference_length => 1.0,
        0 => 0.0,
        _ => (1.0 - ratio).exp(),
    };
    if s.correct.iter().all(|c| *c == 0) {
        return (0.0, precisions, penalty);
    }
    let mut smooth = 1.0;
    for n in 0..ORDERS {
        if s.total[n] == 0 {
            break;
        }
        precisions[n] = if s.correct[n] == 0 {
            smooth *= 2.0;
            100.0 / (smooth * s.total[n] as f64)
        } else {
            100.0 * s.correct[n] as f64 / s.total[n] as f64
        };
    }
    // An order without n-grams has precision 0, and so has the whole.
    let log = |p: f64| if p == 0.0 { -9999999999.0 } else { p.ln() };
    let mean = precisions.iter().map(|p| log(*p)).sum::<f64>() / ORDERS as f64;
    (penalty * mean.exp(), precisions, penalty)
}
