//! Settings of `translate`.
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{
    data::{dictionary::DictionaryFormat, line_process::Protocol},
    models::m2m100::EarlyStopping,
};

/// Who translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum TranslateEngine {
    /// A phrase table, longest match
    Dictionary,
    /// Any program that maps lines to lines
    Command,
    /// Translations made elsewhere (JSONL by row id)
    File,
    /// NLLB-200, or another M2M100 model (--translator)
    Nllb,
    /// The model itself
    #[value(name = "self")]
    #[serde(rename = "self")]
    Itself,
}

/// How rows are translated. In paths and commands `{source}` and `{target}` stand for the languages' codes, `{source3}` and `{target3}` for
/// those of three letters.
#[derive(Clone, Debug, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct TranslateSettings {
    /// Who translates
    #[arg(long, value_enum, default_value = "dictionary")]
    pub engine: TranslateEngine,
    /// Phrase table of engine `dictionary`, or rows of engine `file`
    #[arg(long)]
    pub file: Option<PathBuf>,
    /// Format of the phrase table
    #[arg(long, value_enum, default_value = "auto")]
    pub format: DictionaryFormat,
    /// Command of engine `command`, e.g. "apertium -z -f none {source3}-{target3}"
    #[arg(long)]
    pub command: Option<String>,
    /// How the command is spoken to
    #[arg(long, value_enum, default_value = "lines")]
    pub protocol: Protocol,
    /// Seconds without a reply after which the command counts as hanging
    #[arg(long, default_value_t = 120.0)]
    pub timeout: f64,
    /// Mark that the command puts before words it does not know; it is removed (Apertium: *)
    #[arg(long)]
    pub unknown_mark: Option<char>,
    /// Model of engine `nllb`: a directory or the name of one in the local Hugging Face cache
    #[arg(long)]
    pub translator: Option<String>,
    /// Hypotheses kept, 1 is greedy (engine `nllb`; else generation_config.json, else 4)
    #[arg(long)]
    pub num_beams: Option<usize>,
    /// Exponent of the length that scores are divided by (engine `nllb`; else generation_config.json, else 1)
    #[arg(long)]
    pub length_penalty: Option<f32>,
    /// When the search stops (engine `nllb`; else generation_config.json, else heuristic)
    #[arg(long, value_enum)]
    pub early_stopping: Option<EarlyStopping>,
    /// N-grams of this size never repeat (engine `nllb`; else generation_config.json, else 0: they may)
    #[arg(long)]
    pub no_repeat_ngram_size: Option<usize>,
    /// Tokens of a translated sentence at most (engine `nllb`; else generation_config.json, else 200)
    #[arg(long)]
    pub max_length: Option<usize>,
    /// Hypotheses that decode together (engine `nllb`)
    #[arg(long, default_value_t = 96)]
    pub batch_rows: usize,
    /// Source tokens encoded together (engine `nllb`)
    #[arg(long, default_value_t = 2048)]
    pub batch_tokens: usize,
    /// New tokens at most for a sentence (engine `self`)
    #[arg(long, default_value_t = 256)]
    pub max_new_tokens: usize,
    /// Chat template (engine `self`)
    #[arg(long, default_value = "auto")]
    pub template: String,
}

impl Default for TranslateSettings {
    fn default() -> TranslateSettings {
        TranslateSettings {
            engine: TranslateEngine::Dictionary,
            file: None,
            format: DictionaryFormat::Auto,
            command: None,
            protocol: Protocol::Lines,
            timeout: 120.0,
            unknown_mark: None,
            translator: None,
            num_beams: None,
            length_penalty: None,
            early_stopping: None,
            no_repeat_ngram_size: None,
            max_length: None,
            batch_rows: 96,
            batch_tokens: 2048,
            max_new_tokens: 256,
            template: "auto".into(),
        }
    }
}
