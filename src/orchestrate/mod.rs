//! Recipes through many stages: `run`, `ablate`, and the reports over their folders.
pub mod ablate;
pub mod check;
mod dry_run;
mod expect;
pub mod report;
pub mod run;
