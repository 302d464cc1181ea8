//! Settings of `translate`.
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::remote::RemoteSettings;
use crate::{
    data::{dictionary::DictionaryFormat, line_process::Protocol},
    models::m2m100::BeamStopping,
    mt::self_translate::TRANSLATION_PROMPT,
};

/// The translation engines.
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
    /// A model behind an OpenAI-compatible endpoint (--endpoint), asked as engine `self` asks
    Openai,
}

fn is_usual(prompt: &str) -> bool {
    prompt == TRANSLATION_PROMPT
}

/// How rows are translated. In paths and commands `{source}` and `{target}` stand for the languages' codes, `{source3}` and `{target3}` for
/// those of three letters.
#[derive(Clone, Debug, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct TranslateSettings {
    /// Translation engine
    #[arg(long, value_enum, default_value = "dictionary")]
    pub engine: TranslateEngine,
    /// Phrase table of engine `dictionary`, or rows of engine `file`
    #[arg(long)]
    pub file: Option<PathBuf>,
    /// Format of the phrase table
    #[arg(long, value_enum, default_value = "auto")]
    pub format: DictionaryFormat,
    /// Command of engine `command`, e.g. "apertium -z -f none {source3}-{target3}". It is also sent check lines (seven-digit
    /// numbers), whose replies show that no reply was assigned to the wrong line
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
    /// Mark that the command puts before unknown words, which is removed (Apertium: *)
    #[arg(long)]
    pub unknown_mark: Option<char>,
    /// Model of engine `nllb`: a directory or the name of one in the local Hugging Face cache
    #[arg(long)]
    pub translator: Option<String>,
    /// Beams; 1 is greedy search (engine `nllb`; else generation_config.json, else 4)
    #[arg(long)]
    pub num_beams: Option<usize>,
    /// Length penalty: the exponent of the length that scores are divided by (engine `nllb`; else generation_config.json, else 1)
    #[arg(long)]
    pub length_penalty: Option<f32>,
    /// When beam search stops (engine `nllb`; else generation_config.json, else heuristic)
    #[arg(long, value_enum)]
    pub early_stopping: Option<BeamStopping>,
    /// No n-gram of this size may repeat (engine `nllb`; else generation_config.json, else 0: off)
    #[arg(long)]
    pub no_repeat_ngram_size: Option<usize>,
    /// Most tokens per translated sentence (engine `nllb`; else generation_config.json, else 200)
    #[arg(long)]
    pub max_length: Option<usize>,
    /// Hypotheses decoded together (engine `nllb`)
    #[arg(long, default_value_t = 96)]
    pub batch_rows: usize,
    /// Source tokens encoded together (engine `nllb`)
    #[arg(long, default_value_t = 2048)]
    pub batch_tokens: usize,
    /// What is asked for each sentence; {source} and {target} are the languages' names, {text} is the sentence (engines `self` and `openai`)
    #[arg(long, default_value = TRANSLATION_PROMPT)]
    #[serde(skip_serializing_if = "is_usual")]
    pub prompt: String,
    /// Most new tokens per sentence (engines `self` and `openai`)
    #[arg(long, default_value_t = 256)]
    pub max_new_tokens: usize,
    /// Chat template (engine `self`)
    #[arg(long, default_value = "auto")]
    pub template: String,
    /// Of engine `openai`
    #[command(flatten)]
    #[serde(skip_serializing_if = "RemoteSettings::is_unset")]
    pub remote: RemoteSettings,
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
            command_env: vec![],
            version_command: None,
            unknown_mark: None,
            translator: None,
            num_beams: None,
            length_penalty: None,
            early_stopping: None,
            no_repeat_ngram_size: None,
            max_length: None,
            batch_rows: 96,
            batch_tokens: 2048,
            prompt: TRANSLATION_PROMPT.into(),
            max_new_tokens: 256,
            template: "auto".into(),
            remote: RemoteSettings::default(),
        }
    }
}
