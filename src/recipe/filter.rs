//! Settings of `filter`.
use serde::{Deserialize, Serialize};

/// Which translations are kept.
#[derive(Clone, Debug, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct FilterSettings {
    /// Keep a translation if the score of each side is at least this
    #[arg(long, default_value_t = 0.8)]
    pub tau: f64,
    /// Alarms to ignore: empty, truncated, loop, length-ratio, wrong-language, copied
    #[arg(long, value_delimiter = ',')]
    pub ignore_alarms: Vec<String>,
}

impl Default for FilterSettings {
    fn default() -> FilterSettings {
        FilterSettings { tau: 0.8, ignore_alarms: vec![] }
    }
}
