//! Settings of `score`.
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::data::{dictionary::DictionaryFormat, line_process::Protocol};

/// The scoring engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ScoreEngine {
    /// Dictionary coverage, untranslated words, numbers, lengths: sees gross errors only
    Builtin,
    /// Any program that reads `source TAB translation` and writes a number
    Command,
    /// Scores made elsewhere (source TAB translation TAB score)
    File,
    /// CometKiwi (wmt22-cometkiwi-da), a learned estimator
    Cometkiwi,
    /// Cosine of an XLM-R sentence encoder's embeddings (multilingual E5 and the like): sees gross errors only
    Similarity,
}

/// How sentence scores become the score of a side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Aggregate {
    /// The mean
    Mean,
    /// The worst sentence
    Min,
}

/// How translations are scored.
#[derive(Clone, Debug, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ScoreSettings {
    /// Scoring engine
    #[arg(long, value_enum, default_value = "builtin")]
    pub engine: ScoreEngine,
    /// Dictionary of engine `builtin`, or scores of engine `file`; {source} and {target} are replaced by the language codes
    #[arg(long)]
    pub file: Option<PathBuf>,
    /// Format of the dictionary
    #[arg(long, value_enum, default_value = "auto")]
    pub format: DictionaryFormat,
    /// Command of engine `command`. It is also sent check pairs, whose scores show that no score was assigned to the wrong pair
    #[arg(long)]
    pub command: Option<String>,
    /// Protocol for talking to the command
    #[arg(long, value_enum, default_value = "lines")]
    pub protocol: Protocol,
    /// Give up on the command after this many seconds without a reply
    #[arg(long, default_value_t = 120.0)]
    pub timeout: f64,
    /// Environment variables to pass to the command besides PATH, HOME and those for languages, threads and devices (MT_* matches a prefix)
    #[arg(long, value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub command_env: Vec<String>,
    /// A command that prints the version of `command`; the stage is run again if it changes. Files named in `command` are tracked anyway
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version_command: Option<String>,
    /// How the sentence scores of a side are combined
    #[arg(long, value_enum, default_value = "mean")]
    pub aggregate: Aggregate,
    /// Model of engines `cometkiwi` (default: Unbabel/wmt22-cometkiwi-da in the Hugging Face cache) and `similarity`
    #[arg(long)]
    pub model: Option<String>,
    /// For `cometkiwi`: where its encoder's config.json and tokenizer are, if not beside the model
    #[arg(long)]
    pub encoder: Option<String>,
    /// For `similarity`: text to put before each sentence, `query: ` for E5
    #[arg(long, default_value = "")]
    pub prefix: String,
    /// For `cometkiwi` and `similarity`: tokens per encoder call; results do not depend on it
    #[arg(long, default_value_t = 2048)]
    pub batch_tokens: usize,
}

impl Default for ScoreSettings {
    fn default() -> ScoreSettings {
        ScoreSettings {
            engine: ScoreEngine::Builtin,
            file: None,
            format: DictionaryFormat::Auto,
            command: None,
            protocol: Protocol::Lines,
            timeout: 120.0,
            command_env: vec![],
            version_command: None,
            aggregate: Aggregate::Mean,
            model: None,
            encoder: None,
            prefix: String::new(),
            batch_tokens: 2048,
        }
    }
}
