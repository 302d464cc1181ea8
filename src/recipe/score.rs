//! Settings of `score`.
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::remote::RemoteSettings;
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
    /// A model behind an OpenAI-compatible endpoint (--endpoint) as a judge: it is asked for a number
    Openai,
}

/// What a judge is asked unless a recipe says otherwise: a whole number for adequacy and fluency together, without a reference, as in GEMBA's direct
/// assessment (Kocmi and Federmann 2023, arXiv 2302.14520).
pub const JUDGE_PROMPT: &str = "How good is this translation from {source} into {target}? Give one number from 0 to {out-of}: 0 if nothing of the meaning \
     is kept, {out-of} if all of it is and the {target} is flawless. Reply with the number alone.\n\n{source}:\n{text}\n\n{target}:\n{translation}";

fn is_usual(prompt: &str) -> bool {
    prompt == JUDGE_PROMPT
}

fn is_percent(out_of: &f64) -> bool {
    *out_of == 100.0
}

fn is_short(tokens: &usize) -> bool {
    *tokens == JUDGE_TOKENS
}

/// Tokens that a judge may take.
const JUDGE_TOKENS: usize = 256;

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
    /// What the judge is asked for each pair; {source} and {target} are the languages' names, {text} and {translation} the pair, {out-of} the best score
    /// (engine `openai`)
    #[arg(long, default_value = JUDGE_PROMPT, hide_default_value = true)]
    #[serde(skip_serializing_if = "is_usual")]
    pub prompt: String,
    /// The best score that the judge can give, which becomes 1 (100 unless given). Its answer must hold one number from 0 to this, but for `/100` or `out of
    /// 100`; a side with another answer gets no score, and is counted (engine `openai`)
    #[arg(long, default_value_t = 100.0)]
    #[serde(skip_serializing_if = "is_percent")]
    pub out_of: f64,
    /// Most new tokens of the judge (256 unless given); an answer that does not end within them counts as none (engine `openai`)
    #[arg(long, default_value_t = JUDGE_TOKENS)]
    #[serde(skip_serializing_if = "is_short")]
    pub max_new_tokens: usize,
    /// Of engine `openai`
    #[command(flatten)]
    #[serde(skip_serializing_if = "RemoteSettings::is_unset")]
    pub remote: RemoteSettings,
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
            prompt: JUDGE_PROMPT.into(),
            out_of: 100.0,
            max_new_tokens: JUDGE_TOKENS,
            remote: RemoteSettings::default(),
        }
    }
}
