//! Settings of `filter`.
use serde::{Deserialize, Serialize};

use crate::qe::builtin;

/// Which translations are kept.
#[derive(Clone, Debug, PartialEq, clap::Args, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct FilterSettings {
    /// Keep a translation if the score of each side is at least this [default: 0.8, the paper's value for CometKiwi; 0.35 for engine `builtin`,
    /// which nine out of ten human translations reach with a general dictionary]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tau: Option<f64>,
    /// Alarms to ignore: empty, truncated, loop, length-ratio, wrong-language, copied, mostly-copied, damaged
    #[arg(long, value_delimiter = ',')]
    pub ignore_alarms: Vec<String>,
}

impl FilterSettings {
    /// The threshold for scores of `engine` (a scorer in words, as rows have it).
    pub fn tau_for(&self, engine: &str) -> f64 {
        self.tau.unwrap_or(if engine.split(' ').next() == Some("builtin") { builtin::TAU } else { 0.8 })
    }
}
