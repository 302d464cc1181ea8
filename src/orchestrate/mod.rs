//! Recipes through many stages: `run`, `ablate`, and the reports over their folders.
pub mod ablate;
mod alone;
pub mod check;
mod dry_run;
mod expect;
mod recipe_stages;
pub mod report;
pub mod run;
