//! Settings of `parallel`.
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Which parallel sentences are used.
#[derive(Clone, Debug, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ParallelSettings {
    /// Source side of a Moses pair, or a tab-separated file; {source} and {target} are replaced by the language codes
    #[arg(long)]
    pub file: Option<PathBuf>,
    /// Target side of a Moses pair
    #[arg(long)]
    pub target_file: Option<PathBuf>,
    /// Use at most this many pairs per language (0: all)
    #[arg(long, default_value_t = 1000)]
    pub limit: usize,
    /// Fewest words on either side
    #[arg(long, default_value_t = 3)]
    pub min_words: usize,
    /// Most words on either side
    #[arg(long, default_value_t = 60)]
    pub max_words: usize,
    /// Seed of the selection
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
}

impl Default for ParallelSettings {
    fn default() -> ParallelSettings {
        ParallelSettings { file: None, target_file: None, limit: 1000, min_words: 3, max_words: 60, seed: 42 }
    }
}
