//! One file a subcommand: `struct Args` and `fn run`.
pub mod align;
pub mod assemble;
pub mod code_switch;
pub mod doctor;
pub mod eval;
pub mod filter;
pub mod generate;
pub mod import;
pub mod inspect;
pub mod merge;
pub mod metric;
mod model_card;
pub mod pack;
pub mod parallel;
pub mod score;
pub mod sweep;
pub mod train;
pub mod translate;
