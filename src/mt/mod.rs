//! Translators, behind one small trait.
pub mod command;
pub mod dictionary;
pub mod file;
pub mod segment;
pub mod self_translate;
