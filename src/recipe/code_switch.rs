//! Settings of `code-switch`.
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::data::dictionary::DictionaryFormat;

/// Which words the rate refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum RateBasis {
    /// All words of a text: dictionary words are drawn more often, so that this share of all words is replaced
    Token,
    /// Only the words in the dictionary, as in CoSDA-ML
    Translatable,
}

/// How questions are code-switched.
#[derive(Clone, Debug, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct CodeSwitchSettings {
    /// Probability that a word is replaced
    #[arg(long, default_value_t = 0.15)]
    pub rate: f64,
    /// Which words the rate refers to
    #[arg(long, value_enum, default_value = "translatable")]
    pub basis: RateBasis,
    /// Source-to-target dictionary; {source} and {target} are replaced by the language codes
    #[arg(long)]
    pub dictionary: Option<PathBuf>,
    /// Format of the dictionary
    #[arg(long, value_enum, default_value = "auto")]
    pub format: DictionaryFormat,
    /// The dictionary is target-to-source: invert it
    #[arg(long)]
    pub invert: bool,
    /// Mix source words into the translated questions too (with the inverted dictionary)
    #[arg(long)]
    pub both_sides: bool,
    /// Seed of all random choices
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
}

impl Default for CodeSwitchSettings {
    fn default() -> CodeSwitchSettings {
        CodeSwitchSettings {
            rate: 0.15,
            basis: RateBasis::Translatable,
            dictionary: None,
            format: DictionaryFormat::Auto,
            invert: false,
            both_sides: false,
            seed: 42,
        }
    }
}
