//! Metrics: pure functions of text and numbers. [`metric`] says what a metric is, [`catalog`] lists them; the other files are their arithmetic.
pub mod alignment;
pub mod bleu;
pub mod bootstrap;
pub mod catalog;
pub mod chrf;
pub mod corpus;
pub mod metric;
pub mod mkqa;
pub mod ngrams;
pub mod numpy_random;
pub mod off_target;
pub mod projection;
pub mod qa;
pub mod rouge;
pub mod significance;
pub mod ter;
pub mod tokenize;
