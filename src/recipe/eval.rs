//! Settings of `eval`.
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{metrics::tokenize::BleuTokenizer, mt::self_translate::TRANSLATION_PROMPT};

/// What a task measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskKind {
    /// Bits per byte of each line of a text file
    Perplexity,
    /// Translations of the lines of one file, against those of another: BLEU, chrF++
    Translation,
    /// The choice with the highest log-likelihood (Belebele or EXAMS JSONL)
    MultipleChoice,
    /// Answers to questions with known answers (JSONL: question, answers): exact match, F1
    Qa,
}

impl TaskKind {
    /// Whether replies are generated (rather than given texts scored).
    pub fn generates(self) -> bool {
        matches!(self, TaskKind::Translation | TaskKind::Qa)
    }
}

/// What stands behind the prompt when a choice is scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choices {
    /// All choices stand in the prompt, their letters are scored (lm-eval's belebele)
    Letters,
    /// The choices' texts are scored
    Texts,
}

/// One task of an evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct EvalTask {
    /// Unique; names the folder of its samples
    pub name: String,
    /// What is measured
    pub kind: TaskKind,
    /// The texts, questions or source sentences
    pub file: PathBuf,
    /// Translation: the reference translations, line by line
    #[serde(default)]
    pub reference: Option<PathBuf>,
    /// Language of the answers (of the text; of the translations)
    pub language: String,
    /// Translation: language of `file`
    #[serde(default = "english")]
    pub source_language: String,
    /// Use at most so many rows (0: all)
    #[serde(default)]
    pub limit: usize,
    /// New tokens at most
    #[serde(default = "max_new_tokens")]
    pub max_new_tokens: usize,
    /// Translation: what the model is asked
    #[serde(default = "prompt")]
    pub prompt: String,
    /// Multiple choice: what is scored
    #[serde(default = "letters")]
    pub choices: Choices,
    /// Multiple choice: solved questions before each (the first rows of the file)
    #[serde(default)]
    pub few_shot: usize,
    /// BLEU's tokenizer; absent: zh and char for languages without spaces, else 13a
    #[serde(default)]
    pub tokenizer: Option<BleuTokenizer>,
}

fn english() -> String {
    "en".into()
}
fn max_new_tokens() -> usize {
    128
}
fn prompt() -> String {
    TRANSLATION_PROMPT.into()
}
fn letters() -> Choices {
    Choices::Letters
}

/// What is evaluated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct EvalSettings {
    /// The tasks
    pub tasks: Vec<EvalTask>,
    /// Rows that are generated together; no result depends on it
    pub batch_rows: usize,
    /// Resamples of the paired bootstrap
    pub bootstrap_samples: usize,
    /// Of the bootstrap
    pub seed: u64,
    /// Rows of each generation task that are also answered at each validation while training (0: none)
    #[serde(skip_serializing_if = "is_zero")]
    pub while_training: usize,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

impl Default for EvalSettings {
    fn default() -> EvalSettings {
        EvalSettings {
            tasks: vec![],
            batch_rows: 16,
            bootstrap_samples: 1000,
            seed: 12345,
            while_training: 0,
        }
    }
}
