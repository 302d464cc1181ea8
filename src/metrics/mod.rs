//! Pure functions of text or numbers.
pub mod accuracy;
pub mod bleu;
pub mod bootstrap;
pub mod chrf;
pub mod off_target;
pub mod perplexity;
pub mod qa;
pub mod tokenize;
