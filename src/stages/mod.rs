//! One file a subcommand: `struct Args` and `fn run`.
pub mod assemble;
pub mod bench;
pub mod code_switch;
pub mod doctor;
pub mod eval;
pub mod filter;
pub mod generate;
pub mod inspect;
pub mod merge;
pub mod pack;
pub mod parallel;
pub mod rows;
pub mod run;
pub mod score;
pub mod train;
pub mod translate;
