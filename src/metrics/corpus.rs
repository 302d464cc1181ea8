//! Corpus metrics as one kind of thing: counts of each sentence, and a score that is a function of their sum.
use anyhow::{Result, ensure};
use num_traits::Float;
use rayon::prelude::*;

use super::{
    bleu, chrf, ter,
    tokenize::{MetricTokenizer, TercomOptions},
};

/// A metric of sacrebleu.
pub enum CorpusMetric {
    /// With its tokenizer.
    Bleu(Box<MetricTokenizer>),
    /// chrF; chrF++ with words up to this order.
    Chrf(usize),
    /// Translation edit rate.
    Ter(TercomOptions),
}

/// The counts of each sentence of one system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CorpusCounts {
    width: usize,
    values: Vec<u64>,
}

impl CorpusCounts {
    /// Sentences.
    pub fn len(&self) -> usize {
        self.values.len() / self.width
    }

    /// Whether there are no sentences.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Numbers of a sentence.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Sentence by sentence.
    pub fn rows(&self) -> impl Iterator<Item = &[u64]> {
        self.values.chunks_exact(self.width)
    }
}

/// A score; `single` if it was computed in f32, which then decides how NumPy computes with it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// 0..100 for BLEU and chrF; TER may exceed 100.
    pub value: f64,
    /// Rounded to f32.
    pub single: bool,
}

impl CorpusMetric {
    /// As sacrebleu prints it.
    pub fn name(&self) -> String {
        match self {
            CorpusMetric::Bleu(_) => "BLEU".into(),
            CorpusMetric::Chrf(words) => format!("chrF2{}", "+".repeat(*words)),
            CorpusMetric::Ter(_) => "TER".into(),
        }
    }

    /// sacrebleu's signature.
    pub fn signature(&self) -> String {
        match self {
            CorpusMetric::Bleu(tokenizer) => bleu::signature(tokenizer.kind()),
            CorpusMetric::Chrf(words) => chrf::signature(*words),
            CorpusMetric::Ter(options) => ter::signature(options),
        }
    }

    /// Numbers of a row of counts.
    pub fn width(&self) -> usize {
        match self {
            CorpusMetric::Bleu(_) => bleu::WIDTH,
            CorpusMetric::Chrf(words) => chrf::width(*words),
            CorpusMetric::Ter(_) => ter::WIDTH,
        }
    }

    /// BLEU's tokenizer.
    pub fn tokenizer(&self) -> Option<&MetricTokenizer> {
        if let CorpusMetric::Bleu(tokenizer) = self { Some(tokenizer) } else { None }
    }

    /// Counts all sentences, on all threads.
    ///
    /// # Errors
    /// Not as many references as hypotheses.
    pub fn counts(
        &self,
        hypotheses: &[impl AsRef<str> + Sync],
        references: &[impl AsRef<str> + Sync],
    ) -> Result<CorpusCounts> {
        ensure!(
            hypotheses.len() == references.len(),
            "{} hypotheses for {} references",
            hypotheses.len(),
            references.len()
        );
        let width = self.width();
        let mut values = vec![0; width * hypotheses.len()];
        let texts = hypotheses.par_iter().zip(references);
        values.par_chunks_exact_mut(width).zip(texts).with_min_len(16).for_each(|(out, (h, r))| {
            self.count(h.as_ref(), r.as_ref(), out);
        });
        Ok(CorpusCounts { width, values })
    }

    fn count(&self, hypothesis: &str, reference: &str, out: &mut [u64]) {
        match self {
            CorpusMetric::Bleu(tokenizer) => {
                out.copy_from_slice(&bleu::statistics(hypothesis, reference, tokenizer).row());
            }
            CorpusMetric::Chrf(words) => {
                out.copy_from_slice(chrf::statistics(hypothesis, reference, *words).0.as_flattened());
            }
            CorpusMetric::Ter(options) => {
                out.copy_from_slice(&ter::statistics(hypothesis, reference, options))
            }
        }
    }

    /// The score of summed counts, in their precision where sacrebleu computes in it.
    pub fn of_sums<T: Float + Into<f64>>(&self, sums: &[T]) -> Score {
        let rounded = size_of::<T>() == size_of::<f32>();
        let wide = |value| Score { value, single: false };
        let in_t = |score: Option<T>| score.map(|s| Score { value: s.into(), single: rounded });
        match self {
            CorpusMetric::Bleu(_) => wide(bleu::compute(sums).0),
            CorpusMetric::Chrf(_) => in_t(chrf::compute(sums)).unwrap_or(wide(0.0)),
            CorpusMetric::Ter(_) => in_t(ter::compute(sums)).unwrap_or_else(|| {
                wide(ter::without_reference(sums.first().map_or(0.0, |edits| (*edits).into())))
            }),
        }
    }

    /// The score of all sentences.
    pub fn score(&self, counts: &CorpusCounts) -> f64 {
        let mut sums = vec![0; counts.width];
        for row in counts.rows() {
            sums.iter_mut().zip(row).for_each(|(sum, own)| *sum += own);
        }
        self.of_sums(&sums.iter().map(|x| *x as f64).collect::<Vec<f64>>()).value
    }
}
