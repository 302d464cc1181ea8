//! Settings of `generate`.
use serde::{Deserialize, Serialize};

use crate::data::tally::OnBadRow;

use crate::infer::{answerer::AnswerOptions, engine::EngineOptions};

/// How the base model answers.
#[derive(Clone, Debug, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct GenerateSettings {
    /// Chat template: auto (the model's own), auto:NAME (a named template of the model), alpaca, alpaca-llamafactory, llama2, chatml, seallm-v2,
    /// plain, or a .jinja file. A BOS token is added only if the template writes one, or if +bos is appended to the name
    #[arg(long, default_value = "auto")]
    pub template: String,
    /// System prompt
    #[arg(long)]
    pub system: Option<String>,
    /// Generate at most this many tokens [default: from the model's generation_config.json (max_new_tokens, or max_length with the prompt), else 256]
    #[arg(long)]
    pub max_new_tokens: Option<usize>,
    /// Generate at least this many tokens [default: from the model's generation_config.json]
    #[arg(long)]
    pub min_new_tokens: Option<usize>,
    /// Sampling temperature; 0 is greedy [default: from the model's generation_config.json, else greedy]
    #[arg(long)]
    pub temperature: Option<f32>,
    /// Sample from the k most likely tokens (0: all)
    #[arg(long)]
    pub top_k: Option<usize>,
    /// Sample from the fewest most likely tokens whose probabilities sum to at least this
    #[arg(long)]
    pub top_p: Option<f32>,
    /// Sample from the tokens that are at least this fraction as likely as the likeliest
    #[arg(long)]
    pub min_p: Option<f32>,
    /// Repetition penalty: above 1, tokens that have occurred become less likely
    #[arg(long)]
    pub repetition_penalty: Option<f32>,
    /// No n-gram of this length may repeat (0: off)
    #[arg(long)]
    pub no_repeat_ngram_size: Option<usize>,
    /// A row that cannot be read, or is too long for the model: fail, or skip it and count it
    #[arg(long, value_enum, default_value = "fail")]
    pub on_bad_row: OnBadRow,
    /// Use at most this many questions (0: all)
    #[arg(long, default_value_t = 0)]
    pub limit: usize,
    /// Rows generated together; greedy answers do not depend on it
    #[arg(long, default_value_t = 16)]
    pub batch_rows: usize,
    /// Prompt tokens per call; greedy answers do not depend on it
    #[arg(long, default_value_t = 2048)]
    pub batch_tokens: usize,
    /// Seed of sampling
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
}

impl From<&GenerateSettings> for AnswerOptions {
    fn from(s: &GenerateSettings) -> AnswerOptions {
        AnswerOptions {
            stop_strings: vec![],
            system: s.system.clone(),
            max_new_tokens: s.max_new_tokens,
            min_new_tokens: s.min_new_tokens,
            temperature: s.temperature,
            top_k: s.top_k,
            top_p: s.top_p,
            min_p: s.min_p,
            repetition_penalty: s.repetition_penalty,
            no_repeat_ngram_size: s.no_repeat_ngram_size,
            batch: EngineOptions { batch_rows: s.batch_rows, batch_tokens: s.batch_tokens },
            seed: s.seed,
        }
    }
}

impl Default for GenerateSettings {
    fn default() -> GenerateSettings {
        GenerateSettings {
            template: "auto".into(),
            system: None,
            max_new_tokens: None,
            min_new_tokens: None,
            temperature: None,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: None,
            no_repeat_ngram_size: None,
            on_bad_row: OnBadRow::Fail,
            limit: 0,
            batch_rows: 16,
            batch_tokens: 2048,
            seed: 42,
        }
    }
}
