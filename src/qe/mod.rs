//! Quality scorers, each behind one small trait: pairs of sentences in, numbers out.
pub mod builtin;
pub mod cometkiwi;
pub mod command;
pub mod file;
pub mod similarity;

use anyhow::Result;

/// Scores translations without a reference.
pub trait Scorer {
    /// The scorer and its settings, in words (kept with each score).
    fn name(&self) -> String;

    /// The score of each (source, translation), in order; higher is better.
    fn score(&mut self, pairs: &[(String, String)]) -> Result<Vec<f64>>;

    /// Pairs so far that were longer than the scorer reads, and were cut.
    fn cut(&self) -> usize {
        0
    }
}
