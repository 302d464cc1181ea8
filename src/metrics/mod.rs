//! Metrics: pure functions of text and numbers.
pub mod bleu;
pub mod bootstrap;
pub mod chrf;
pub mod off_target;
pub mod qa;
pub mod tokenize;
