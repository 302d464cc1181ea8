//! The TOML recipe: one settings struct a stage, the same structs that the command line flattens in.
pub mod assemble;
pub mod code_switch;
pub mod eval;
pub mod filter;
pub mod generate;
pub mod pack;
pub mod parallel;
pub mod score;
pub mod source;
pub mod train;
pub mod translate;
