//! Quality scorers, behind one small trait.
pub mod builtin;
pub mod command;
pub mod file;
