//! Settings of `generate`.
use serde::{Deserialize, Serialize};

use crate::data::{alarms::COPIED_SHARE, tally::OnBadRow};

use super::remote::RemoteSettings;
use crate::infer::{answerer::AnswerOptions, engine::EngineOptions};

/// Who answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum GenerateEngine {
    /// A model in this program
    #[default]
    Local,
    /// A model behind an OpenAI-compatible endpoint (--endpoint), with the chat template that the server has
    Openai,
}

/// Which of several samples becomes the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Best {
    /// Among the samples without an alarm, the one that the others agree with most: the highest mean chrF against them; the first of equals
    #[default]
    SelfConsistency,
    /// The first without an alarm: an answer as the model draws it, asked again where a draw went wrong
    First,
}

fn is_one(samples: &usize) -> bool {
    *samples == 1
}

fn is_usual_share(share: &f64) -> bool {
    *share == COPIED_SHARE
}

fn is_local(engine: &GenerateEngine) -> bool {
    *engine == GenerateEngine::Local
}

fn is_usual(best: &Best) -> bool {
    *best == Best::default()
}

/// How the base model answers.
#[derive(Clone, Debug, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct GenerateSettings {
    /// Who answers (a model in this program unless given)
    #[arg(long, value_enum, default_value = "local")]
    #[serde(skip_serializing_if = "is_local")]
    pub engine: GenerateEngine,
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
    /// Answers drawn for each question, one of which is kept (1 unless given); more than one needs a temperature above 0
    #[arg(long, default_value_t = 1)]
    #[serde(skip_serializing_if = "is_one")]
    pub samples: usize,
    /// Which of several samples is kept (self-consistency unless given)
    #[arg(long, value_enum, default_value = "self-consistency")]
    #[serde(skip_serializing_if = "is_usual")]
    pub best: Best,
    /// An answer of at least 8 words is marked `mostly-copied` where this share of its word 4-grams (0.8 unless given) stands in its prompt: system prompt,
    /// earlier turns, question or context
    #[arg(long, default_value_t = COPIED_SHARE)]
    #[serde(skip_serializing_if = "is_usual_share")]
    pub copied_share: f64,
    /// A row that cannot be read, or is too long for the model: fail, or skip it and count it
    #[arg(long, value_enum, default_value = "fail")]
    pub on_bad_row: OnBadRow,
    /// Use at most this many questions (0: all)
    #[arg(long, default_value_t = 0)]
    pub limit: usize,
    /// Rows generated together; answers do not depend on it
    #[arg(long, default_value_t = 16)]
    pub batch_rows: usize,
    /// Prompt tokens per call; answers do not depend on it
    #[arg(long, default_value_t = 2048)]
    pub batch_tokens: usize,
    /// Seed of sampling, with the row's id and the sample's number
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Of engine `openai`
    #[command(flatten)]
    #[serde(skip_serializing_if = "RemoteSettings::is_unset")]
    pub remote: RemoteSettings,
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
            engine: GenerateEngine::Local,
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
            samples: 1,
            best: Best::SelfConsistency,
            copied_share: COPIED_SHARE,
            on_bad_row: OnBadRow::Fail,
            limit: 0,
            batch_rows: 16,
            batch_tokens: 2048,
            seed: 42,
            remote: RemoteSettings::default(),
        }
    }
}
