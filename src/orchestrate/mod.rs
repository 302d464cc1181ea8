//! Recipes through many stages: `run`, `ablate`, and the reports over their folders.
pub mod ablate;
pub mod check;
mod dry_run;
pub mod report;
pub mod run;
