//! Corpus chrF and chrF++ (Popović 2015, 2017) as sacrebleu 2.6.0 computes them: character orders 1 to 6, beta 2, effective order.
use anyhow::{Result, ensure};
use num_traits::Float;

use super::{
    ngrams::{Matches, WordIds, matches},
    tokenize::split,
};

const CHAR_ORDERS: usize = 6;
const WORD_ORDERS: usize = 4;
const BETA_SQUARED: f64 = 4.0;
const PUNCTUATION: &str = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~";

/// For each order: n-grams of the hypothesis, of the reference, of both. Those of a corpus are their sum.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChrfStatistics(pub Vec<[u64; 3]>);

/// A corpus score.
#[derive(Clone, Debug, PartialEq)]
pub struct ChrfScore {
    /// 0..100.
    pub score: f64,
    /// How it was computed, in sacrebleu's words.
    pub signature: String,
}

/// Numbers of a row of counts.
pub fn width(word_order: usize) -> usize {
    3 * (CHAR_ORDERS + word_order.min(WORD_ORDERS))
}

/// sacrebleu's signature.
pub fn signature(word_order: usize) -> String {
    format!("nrefs:1|case:mixed|eff:yes|nc:6|nw:{word_order}|space:no|version:2.6.0")
}

/// chrF (`word_order` 0) or chrF++ (2) of `hypotheses` against one reference each.
pub fn corpus_chrf(hypotheses: &[&str], references: &[&str], word_order: usize) -> Result<ChrfScore> {
    ensure!(
        hypotheses.len() == references.len(),
        "{} hypotheses for {} references",
        hypotheses.len(),
        references.len()
    );
    let all: Vec<ChrfStatistics> =
        hypotheses.iter().zip(references).map(|(h, r)| statistics(h, r, word_order)).collect();
    Ok(ChrfScore { score: from_statistics(all.iter()), signature: signature(word_order) })
}

/// The counts of one sentence. Word orders beyond 4 are not counted.
pub fn statistics(hypothesis: &str, reference: &str, word_order: usize) -> ChrfStatistics {
    let chars = |text: &str| -> Vec<u32> { split(text).flat_map(str::chars).map(u32::from).collect() };
    let mut out: Vec<Matches> = matches::<CHAR_ORDERS>(&chars(hypothesis), &chars(reference)).into();
    if word_order > 0 {
        let mut ids = WordIds::default();
        let (h, r) = (ids.of(words(hypothesis)), ids.of(words(reference)));
        out.extend(matches::<WORD_ORDERS>(&h, &r).into_iter().take(word_order));
    }
    // An order that the reference is too short for does not count.
    out.iter_mut().filter(|m| m[1] == 0).for_each(|m| m[0] = 0);
    ChrfStatistics(out)
}

/// Words with one punctuation mark split off at the end or, failing that, at the start.
fn words(text: &str) -> impl Iterator<Item = &str> {
    split(text).flat_map(|word| {
        let mark = |c: Option<char>| c.filter(|c| PUNCTUATION.contains(*c)).map(char::len_utf8);
        let many = word.chars().nth(1).is_some();
        let cut = match (mark(word.chars().next_back()), mark(word.chars().next())) {
            (Some(last), _) if many => word.len() - last,
            (None, Some(first)) if many => first,
            _ => word.len(),
        };
        let (a, b) = word.split_at(cut);
        [a, b].into_iter().filter(|part| !part.is_empty())
    })
}

/// The score (0..100) of the sum of these sentences.
pub fn from_statistics<'a>(all: impl Iterator<Item = &'a ChrfStatistics>) -> f64 {
    let mut sums: Vec<f64> = vec![];
    for s in all {
        sums.resize(sums.len().max(3 * s.0.len()), 0.0);
        sums.iter_mut().zip(s.0.as_flattened()).for_each(|(sum, own)| *sum += *own as f64);
    }
    compute(&sums).unwrap_or(0.0)
}

/// The score (0..100) of summed rows of counts (hypothesis, reference, both, order by order), in the precision of the sums, as sacrebleu
/// computes it under NumPy 2; none where nothing matches, which is 0.
pub fn compute<T: Float>(sums: &[T]) -> Option<T> {
    let number = |x: f64| T::from(x).unwrap_or(T::zero());
    let (mut precision, mut recall, mut orders) = (T::zero(), T::zero(), 0.0);
    for m in sums.chunks_exact(3).filter(|m| m[0] > T::zero() && m[1] > T::zero()) {
        precision = precision + m[2] / m[0];
        recall = recall + m[2] / m[1];
        orders += 1.0;
    }
    let (precision, recall) = (precision / number(orders), recall / number(orders));
    (precision + recall > T::zero()).then(|| {
        let factor = number(BETA_SQUARED);
        let score = number(1.0 + BETA_SQUARED) * precision * recall / (factor * precision + recall);
        number(100.0) * score
    })
}
