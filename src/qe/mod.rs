//! Quality scorers, each behind one small trait: pairs of sentences in, numbers out.
pub mod builtin;
pub mod cometkiwi;
pub mod command;
pub mod file;
pub mod similarity;

use anyhow::Result;
use rayon::prelude::*;

/// A pair's token ids, as its scorer's model reads them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncodedPair {
    /// The sequences: one of the pair, or one of each sentence.
    pub ids: Vec<Vec<u32>>,
    /// Something did not fit and was cut off.
    pub cut: bool,
}

/// What of a scorer works on text alone. It may be at work on another thread while the model computes.
pub trait PairEncoder: Send + Sync {
    /// The ids of a source sentence and its translation.
    fn encode(&self, source: &str, translation: &str) -> Result<EncodedPair>;
}

/// The ids of all pairs.
fn encode_all(encoder: &dyn PairEncoder, pairs: &[(String, String)]) -> Result<Vec<EncodedPair>> {
    pairs.par_iter().map(|(source, translation)| encoder.encode(source, translation)).collect()
}

/// Scores translations without a reference.
pub trait Scorer {
    /// The scorer and its settings, in words (kept with each score).
    fn name(&self) -> String;

    /// The score of each (source, translation), in order; higher is better.
    fn score(&mut self, pairs: &[(String, String)]) -> Result<Vec<f64>>;

    /// The same for pairs that the scorer's [`PairEncoder`] has encoded; scorers without one take the texts.
    fn score_encoded(&mut self, pairs: &[(String, String)], _encoded: &[EncodedPair]) -> Result<Vec<f64>> {
        self.score(pairs)
    }

    /// Pairs so far that were longer than the scorer reads, and were cut.
    fn cut(&self) -> usize {
        0
    }

    /// After the last pair: an error if only now it is seen that scores were not those of their pairs.
    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}
