//! Corpus chrF and chrF++ (Popović 2015, 2017) as sacrebleu 2.6.0 computes them: character orders 1 to 6, beta 2, effective order.
use std::collections::HashMap;
use std::hash::Hash;

use anyhow::{Result, ensure};

use super::tokenize::split;

const CHAR_ORDERS: usize = 6;
const BETA_SQUARED: f64 = 4.0;
const PUNCTUATION: &str = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~";

/// For each order: n-grams of the hypothesis, of the reference, of both. Those of a corpus are their sum.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChrfStatistics(pub Vec<[u64; 3]>);

/// A corpus score.
#[derive(Clone, Debug, PartialEq)]
pub struct Chrf {
    /// 0..100.
    pub score: f64,
    /// How it was computed, in sacrebleu's words.
    pub signature: String,
}

/// sacrebleu's signature.
pub fn signature(word_order: usize) -> String {
    format!("nrefs:1|case:mixed|eff:yes|nc:6|nw:{word_order}|space:no|version:2.6.0")
}

/// chrF (`word_order` 0) or chrF++ (2) of `hypotheses` against one reference each.
pub fn corpus_chrf(hypotheses: &[&str], references: &[&str], word_order: usize) -> Result<Chrf> {
    ensure!(
        hypotheses.len() == references.len(),
        "{} hypotheses for {} references",
        hypotheses.len(),
        references.len()
    );
    let all: Vec<ChrfStatistics> =
        hypotheses.iter().zip(references).map(|(h, r)| statistics(h, r, word_order)).collect();
    Ok(Chrf { score: from_statistics(all.iter()), signature: signature(word_order) })
}

/// The counts of one sentence.
pub fn statistics(hypothesis: &str, reference: &str, word_order: usize) -> ChrfStatistics {
    let chars = |text: &str| -> Vec<char> { split(text).flat_map(str::chars).collect() };
    let (h, r) = (chars(hypothesis), chars(reference));
    let mut out: Vec<[u64; 3]> = (1..=CHAR_ORDERS).map(|n| matches(&h, &r, n)).collect();
    let (h, r) = (words(hypothesis), words(reference));
    out.extend((1..=word_order).map(|n| matches(&h, &r, n)));
    ChrfStatistics(out)
}

fn matches<T: Hash + Eq>(hypothesis: &[T], reference: &[T], n: usize) -> [u64; 3] {
    let count = |items: &'_ [T]| -> u64 { (items.len() + 1).saturating_sub(n) as u64 };
    let mut known: HashMap<&[T], u64> = HashMap::new();
    reference.windows(n).for_each(|gram| *known.entry(gram).or_default() += 1);
    let mut both = 0;
    for gram in hypothesis.windows(n) {
        if let Some(left) = known.get_mut(gram).filter(|left| **left > 0) {
            *left -= 1;
            both += 1;
        }
    }
    let refs = count(reference);
    [if refs > 0 { count(hypothesis) } else { 0 }, refs, both]
}

/// Words with one punctuation mark split off at the end or, failing that, at the start.
fn words(text: &str) -> Vec<String> {
    let mut out = vec![];
    for word in split(text) {
        let mark = |c: Option<char>| c.filter(|c| PUNCTUATION.contains(*c));
        let many = word.chars().nth(1).is_some();
        match (mark(word.chars().next_back()), mark(word.chars().next())) {
            (Some(last), _) if many => {
                out.push(word[..word.len() - last.len_utf8()].to_string());
                out.push(last.to_string());
            }
            (None, Some(first)) if many => {
                out.push(first.to_string());
                out.push(word[first.len_utf8()..].to_string());
            }
            _ => out.push(word.to_string()),
        }
    }
    out
}

/// The score (0..100) of the sum of these sentences.
pub fn from_statistics<'a>(all: impl Iterator<Item = &'a ChrfStatistics>) -> f64 {
    let mut sums: Vec<[u64; 3]> = vec![];
    for s in all {
        sums.resize(sums.len().max(s.0.len()), [0; 3]);
        for (sum, own) in sums.iter_mut().zip(&s.0) {
            (0..3).for_each(|i| sum[i] += own[i]);
        }
    }
    let used: Vec<_> = sums.iter().filter(|[h, r, _]| *h > 0 && *r > 0).collect();
    if used.is_empty() {
        return 0.0;
    }
    let mean = |of: fn(&[u64; 3]) -> f64| used.iter().map(|s| of(s)).sum::<f64>() / used.len() as f64;
    let (precision, recall) = (mean(|s| s[2] as f64 / s[0] as f64), mean(|s| s[2] as f64 / s[1] as f64));
    if precision + recall == 0.0 {
        return 0.0;
    }
    100.0 * (1.0 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall)
}
