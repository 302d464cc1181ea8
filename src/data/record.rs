//! The row that travels through the stages: one source question with its provenance. Stages add fields and never overwrite.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::conversation::{Prompt, Turn};

/// One source question and everything the stages learned about it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Unique within a data set; siblings made from this row carry it.
    pub id: String,
    /// Language of `instruction`, `input` and `output` (ISO 639-1 where there is one, else 639-3).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub language: String,
    /// What stands before the question: a system prompt, earlier questions and answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub turns: Vec<Turn>,
    /// The question.
    pub instruction: String,
    /// Further context of the question; may be empty.
    #[serde(default)]
    pub input: String,
    /// The data set's own answer ("gold"); may be empty. Only the baselines train on it.
    #[serde(default)]
    pub output: String,
    /// The file and line that the row came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// The base model's own answer in `language` (stage `generate`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
    /// By target language (stage `translate`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub translations: BTreeMap<String, Translation>,
    /// By target language (stage `score`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub scores: BTreeMap<String, Scores>,
    /// By target language (stage `filter`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub verdicts: BTreeMap<String, Verdict>,
    /// By the language mixed in (stage `code-switch`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub code_switched: BTreeMap<String, CodeSwitched>,
    /// Columns of the input file that no stage knows, apart from the stages' own: carried through.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub columns: Map<String, Value>,
}

impl Row {
    /// What the model is asked.
    pub fn prompt(&self) -> Prompt<'_> {
        Prompt { system: None, earlier: &self.turns, instruction: &self.instruction, input: &self.input }
    }

    /// `file:line` of the row in its input, or its id.
    pub fn place(&self) -> String {
        self.origin.as_ref().map_or_else(|| format!("row {}", self.id), |o| format!("{}:{}", o.file, o.line))
    }
}

/// Where a row was read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The input file's name, without its folder (so that a moved work tree gives the same bytes).
    pub file: String,
    /// 1-based.
    pub line: usize,
}

/// A decoded answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The decoded text, trimmed.
    pub text: String,
    /// The model that gave it.
    pub model: String,
    /// Why decoding ended: `stop` (an end token) or `length`.
    pub finish: String,
    /// Tokens generated.
    pub tokens: usize,
    /// Their ids, without the end token: what distillation learns, exactly.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<u32>,
    /// Names of the alarms that fired (`data::alarms`); a row with any is not used.
    #[serde(default)]
    pub alarms: Vec<String>,
    /// How this answer was chosen, where several were drawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choice: Option<Choice>,
}

/// How one of several samples of an answer was chosen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// The sample that became the answer, from 0.
    pub taken: usize,
    /// Alarms of each sample, in the order in which they were drawn.
    pub alarms: Vec<Vec<String>>,
    /// The mean chrF (0..100) of each sample against the other ones that could be chosen; 0 where there was no other, and of samples that
    /// could not be chosen. Empty where agreement did not decide.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub agreement: Vec<f64>,
}

/// The sides of a row in another language. An untranslated side is empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Translation {
    /// The question.
    pub instruction: String,
    /// Its context.
    #[serde(default)]
    pub input: String,
    /// The model's own answer.
    #[serde(default)]
    pub answer: String,
    /// The data set's answer, for the `translate-then-sft` baseline.
    #[serde(default)]
    pub output: String,
    /// The engine and its settings, in words.
    pub engine: String,
    /// Hypothesis scores by side: one a sentence, where the engine has them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub scores: BTreeMap<String, Vec<f64>>,
    /// Alarms by side (`instruction`, `input`, `answer`, `output`); sides without any are absent.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub alarms: BTreeMap<String, Vec<String>>,
}

/// Raw quality scores of one translation; higher is better. Never thresholded here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// The scorer, in words.
    pub engine: String,
    /// By side: the score of each sentence pair, in order.
    pub sentences: BTreeMap<String, Vec<f64>>,
    /// By side: the aggregate over its sentences.
    pub sides: BTreeMap<String, f64>,
}

/// What the filter decided, and why.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The question and the model's answer may both be used in this language.
    pub keep: bool,
    /// The question and the data set's answer may be used (baseline `translate-then-sft`).
    #[serde(default)]
    pub keep_output: bool,
    /// Why not, e.g. `score answer 0.412 < 0.8`, `alarm answer copied`. Empty when both are kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
}

/// A question with some of its tokens replaced by dictionary equivalents.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CodeSwitched {
    /// The source question, mixed with target-language words.
    pub instruction: String,
    /// Its context, mixed likewise.
    #[serde(default)]
    pub input: String,
    /// The translated question, mixed with source-language words (empty unless enabled).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub translated_instruction: String,
    /// The translated context, mixed with source-language words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub translated_input: String,
    /// Word tokens looked at, those with a dictionary entry, and those replaced.
    pub tokens: usize,
    /// Tokens with a dictionary entry.
    pub translatable: usize,
    /// Tokens replaced.
    pub replaced: usize,
}

/// One pair of the parallel corpus (stage `parallel`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ParallelPair {
    /// Unique: corpus name and line.
    pub id: String,
    /// Language of `source`.
    pub source_language: String,
    /// Language of `target`.
    pub target_language: String,
    /// A sentence.
    pub source: String,
    /// Its translation.
    pub target: String,
}

/// One training example (stage `assemble`): what the model is shown and what it must answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Example {
    /// Unique: row id, pair type, language.
    pub id: String,
    /// The source row: siblings share it, and a split never separates siblings.
    pub row: String,
    /// `S>S`, `T>T`, `S>T`, `T>S`, `CS>S`, `CS>T`, `parallel`, `sft` ...
    pub pair: String,
    /// `train` or `validation`.
    pub split: String,
    /// Language of the question.
    pub question_language: String,
    /// Language of the answer.
    pub answer_language: String,
    /// What stands before the question; answers in it are learnt by their own weights.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub turns: Vec<Turn>,
    /// The question; templates that know Alpaca's two-part form receive `input` separately.
    pub instruction: String,
    /// Its context; may be empty.
    #[serde(default)]
    pub input: String,
    /// The answer to learn.
    pub output: String,
    /// The answer's ids as the model generated them; empty where it is no model's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub output_ids: Vec<u32>,
    /// The answer is the data set's in the place of the model's own (variant `gold`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gold: bool,
    /// Loss weight of each answer token.
    #[serde(default = "one")]
    pub weight: f32,
}

fn one() -> f32 {
    1.0
}
