//! Settings of `eval`.
use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::description::NamedDescription;
use crate::{
    infer::{engine::EngineOptions, hidden::Pooling},
    metrics::{catalog::MetricName, metric::Evidence, projection::Projection, tokenize::BleuTokenizer},
    mt::self_translate::TRANSLATION_PROMPT,
};

/// What a task measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskKind {
    /// Bits per byte of each line of a text file
    Perplexity,
    /// Translations of the lines of one file, against those of another: BLEU, chrF++
    Translation,
    /// The choice with the highest log-likelihood (Belebele, EXAMS or plain JSONL; other data sets by a `description`)
    MultipleChoice,
    /// Answers to questions with known answers (JSONL: question, answers): exact match, F1
    Qa,
    /// MKQA's official annotations (mkqa.jsonl.gz): exact match, F1
    Mkqa,
    /// Summaries of articles (XL-Sum JSONL: text, summary): ROUGE-L
    Summary,
    /// Hidden states of parallel sentences (two text files): cosine, linear CKA, retrieval at 1, layer by layer
    Alignment,
}

impl TaskKind {
    /// What the metrics of the kind are computed from.
    pub fn evidence(self) -> Evidence {
        match self {
            TaskKind::Perplexity => Evidence::LogLikelihood,
            TaskKind::MultipleChoice => Evidence::Choices,
            TaskKind::Alignment => Evidence::HiddenStates,
            TaskKind::Translation | TaskKind::Qa | TaskKind::Mkqa | TaskKind::Summary => Evidence::Reply,
        }
    }

    /// Whether replies are generated (rather than given texts scored).
    pub fn generates(self) -> bool {
        self.evidence() == Evidence::Reply
    }

    /// As settings have it.
    pub fn name(self) -> &'static str {
        match self {
            TaskKind::Perplexity => "perplexity",
            TaskKind::Translation => "translation",
            TaskKind::MultipleChoice => "multiple-choice",
            TaskKind::Qa => "qa",
            TaskKind::Mkqa => "mkqa",
            TaskKind::Summary => "summary",
            TaskKind::Alignment => "alignment",
        }
    }
}

/// What is scored after the prompt of a multiple-choice question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choices {
    /// The prompt lists all choices and their letters are scored (lm-eval's belebele)
    Letters,
    /// The choices' texts are scored
    Texts,
}

/// How a multiple-choice question is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChoiceProtocol {
    /// lm-eval's `belebele` template; `few-shot` solved questions before it
    #[default]
    LmEval,
    /// The same after five solved questions (Belebele's authors: English ones, see `few-shot-file`)
    #[serde(rename = "paper-5shot")]
    Paper5shot,
    /// An instruction; the letter is extracted from the reply (Belebele's authors)
    PaperZeroshot,
}

/// The model used by a learned metric.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ScorerModel {
    /// A directory or a name in the local Hugging Face cache; absent, for `cometkiwi`: Unbabel/wmt22-cometkiwi-da
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// `cometkiwi`: where its encoder's config.json and tokenizer are, if not beside the model
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoder: Option<String>,
    /// `similarity`: text to put before each sentence, `query: ` for E5
    #[serde(skip_serializing_if = "String::is_empty")]
    pub prefix: String,
    /// Tokens encoded at once; results do not depend on it
    pub batch_tokens: usize,
}

impl Default for ScorerModel {
    fn default() -> ScorerModel {
        ScorerModel {
            model: None,
            encoder: None,
            prefix: String::new(),
            batch_tokens: EngineOptions::default().batch_tokens,
        }
    }
}

/// One task of an evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct EvalTask {
    /// Unique; names the folder of its samples
    pub name: String,
    /// What is measured; not needed where there is a `description`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<TaskKind>,
    /// A task as data, for rows of any columns: the name of a built-in description (see below), the path of a file, or a table
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<NamedDescription>,
    /// With a description: its columns under other names, `["premise=sentence1"]`
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub columns: Vec<String>,
    /// With a description: only rows whose columns have these values, `["subject_category=STEM"]`
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub only: Vec<String>,
    /// The texts, questions or source sentences
    pub file: PathBuf,
    /// Translation: the reference translations, line by line. Alignment: the translations
    #[serde(default)]
    pub reference: Option<PathBuf>,
    /// Language of the answers (of the text; of the translations)
    #[serde(default)]
    pub language: String,
    /// One task for each of these languages: {language} (the code), {language3} (ISO 639-3) and {flores} (FLORES-200) are filled in wherever the task has a text or
    /// a path [default for `language`: "{language}"]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub languages: Vec<String>,
    /// Translation and alignment: language of `file`
    #[serde(default = "english")]
    pub source_language: String,
    /// Use at most this many rows (0: all)
    #[serde(default)]
    pub limit: usize,
    /// Generate at most this many tokens
    #[serde(default = "max_new_tokens")]
    pub max_new_tokens: usize,
    /// The prompt: {text} is replaced by the sentence, question or article, {source} and {target} by the names of the languages
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Metrics of the replies, listed by `sdrrl eval --help` [default: those of the kind]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<MetricName>,
    /// Models of learned metrics: `scorers.cometkiwi.model = "..."`
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub scorers: BTreeMap<String, ScorerModel>,
    /// Multiple choice: what is scored
    #[serde(default = "letters")]
    pub choices: Choices,
    /// Solved questions before each (the first rows of the file that have an answer): multiple choice, and all kinds that have replies
    #[serde(default)]
    pub few_shot: usize,
    /// Multiple choice: how the question is asked
    #[serde(default)]
    pub protocol: ChoiceProtocol,
    /// File of the solved questions [default: the task's own file]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub few_shot_file: Option<PathBuf>,
    /// Translation: the translations of the lines of `few-shot-file`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub few_shot_reference: Option<PathBuf>,
    /// BLEU: the dictionary or SentencePiece model of tokenizers that need one. ROUGE: the word list (Thai) or MeCab dictionary (Japanese)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dictionary: Option<PathBuf>,
    /// ROUGE: compare stems (Snowball)
    #[serde(default)]
    pub stem: bool,
    /// BLEU's tokenizer [default: chosen by the language, as `sdrrl metric` chooses it]
    #[serde(default)]
    pub tokenizer: Option<BleuTokenizer>,
    /// Alignment: how a sentence's tokens become one vector [default: their mean]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pooling: Option<Pooling>,
    /// Alignment: layer of the headline numbers and the plot (0: embeddings) [default: the middle one]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<usize>,
    /// Alignment: how hidden states are projected for the plot [default: pca]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub projection: Option<Projection>,
}

impl EvalTask {
    /// A task with the defaults of its kind. `file` holds its rows; answers and translations are in `language`.
    pub fn new(name: &str, kind: TaskKind, language: &str, file: impl Into<PathBuf>) -> EvalTask {
        EvalTask {
            name: name.into(),
            kind: Some(kind),
            description: None,
            columns: vec![],
            only: vec![],
            file: file.into(),
            reference: None,
            language: language.into(),
            languages: vec![],
            source_language: english(),
            limit: 0,
            max_new_tokens: max_new_tokens(),
            prompt: None,
            metrics: vec![],
            scorers: BTreeMap::new(),
            choices: letters(),
            few_shot: 0,
            protocol: ChoiceProtocol::default(),
            few_shot_file: None,
            few_shot_reference: None,
            dictionary: None,
            stem: false,
            tokenizer: None,
            pooling: None,
            layer: None,
            projection: None,
        }
    }

    /// What is measured: as the task says, or its description.
    pub fn kind(&self) -> TaskKind {
        let described = self.description.as_ref().map(|d| d.0.kind);
        // A task without either is refused before it is used.
        self.kind.or(described).unwrap_or(TaskKind::Qa)
    }

    /// Tokens of a reply at most.
    pub fn reply_tokens(&self) -> usize {
        let described = self.description.as_ref().and_then(|d| d.0.max_new_tokens);
        described.filter(|_| self.max_new_tokens == max_new_tokens()).unwrap_or(self.max_new_tokens)
    }

    /// What the model is asked; a description has its own template.
    pub fn prompt(&self) -> &str {
        if let Some(description) = &self.description {
            return &description.0.prompt;
        }
        self.prompt.as_deref().unwrap_or(match self.kind() {
            TaskKind::Translation => TRANSLATION_PROMPT,
            TaskKind::Summary => "Summarise the following text in one sentence in {target}.\n\n{text}",
            TaskKind::Mkqa => "Answer the question in {target}, in a few words.\n{text}",
            TaskKind::Qa | TaskKind::Perplexity | TaskKind::MultipleChoice | TaskKind::Alignment => "{text}",
        })
    }

    /// The metrics that are computed of it.
    pub fn metric_names(&self) -> Vec<MetricName> {
        if !self.metrics.is_empty() {
            return self.metrics.clone();
        }
        let described = self.description.iter().flat_map(|d| &d.0.metrics);
        let described: Vec<MetricName> = described.filter_map(|name| MetricName::find(name)).collect();
        if !described.is_empty() {
            return described;
        }
        default_metrics(self.kind(), self.protocol).iter().filter_map(|name| MetricName::find(name)).collect()
    }

    /// The task without what only decides how its samples are measured: equal tasks have equal samples.
    pub fn sampled(&self) -> EvalTask {
        EvalTask {
            metrics: vec![],
            scorers: BTreeMap::new(),
            dictionary: None,
            stem: false,
            tokenizer: None,
            ..self.clone()
        }
    }
}

/// The metrics of a task that names none.
fn default_metrics(kind: TaskKind, protocol: ChoiceProtocol) -> &'static [&'static str] {
    match kind {
        TaskKind::Translation => &["bleu", "chrf++", "off-target"],
        TaskKind::Qa | TaskKind::Mkqa => &["exact-match", "f1", "off-target"],
        TaskKind::Summary => &["rouge-l", "off-target"],
        TaskKind::Perplexity => &["bits-per-byte", "bits-per-byte-rolling"],
        // A reply that is cleaned to a letter has no likelihoods to divide.
        TaskKind::MultipleChoice if protocol == ChoiceProtocol::PaperZeroshot => &["acc"],
        TaskKind::MultipleChoice => &["acc", "acc-norm"],
        TaskKind::Alignment => &["cosine", "cka", "retrieval-forward", "retrieval-backward"],
    }
}

fn english() -> String {
    "en".into()
}
fn max_new_tokens() -> usize {
    128
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
    /// Rows generated together; results do not depend on it
    pub batch_rows: usize,
    /// Tokens of prompts, or of texts to score, per call; results do not depend on it
    #[serde(skip_serializing_if = "is_default_budget")]
    pub batch_tokens: usize,
    /// Resamples of the paired bootstrap
    pub bootstrap_samples: usize,
    /// Seed of the bootstrap
    pub seed: u64,
    /// Rows of each generation task to answer at each validation during training (0: none)
    #[serde(skip_serializing_if = "is_zero")]
    pub while_training: usize,
}

impl EvalSettings {
    /// How much runs at once.
    pub fn batch(&self) -> EngineOptions {
        EngineOptions { batch_rows: self.batch_rows.max(1), batch_tokens: self.batch_tokens.max(1) }
    }
}

fn is_default_budget(n: &usize) -> bool {
    *n == EngineOptions::default().batch_tokens
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

impl Default for EvalSettings {
    fn default() -> EvalSettings {
        EvalSettings {
            tasks: vec![],
            batch_rows: 16,
            batch_tokens: EngineOptions::default().batch_tokens,
            bootstrap_samples: 1000,
            seed: 12345,
            while_training: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_task_is_one_whose_settings_name_nothing_more() {
        let text = "name = \"t\"\nkind = \"qa\"\nlanguage = \"es\"\nfile = \"f\"";
        assert_eq!(toml::from_str::<EvalTask>(text).unwrap(), EvalTask::new("t", TaskKind::Qa, "es", "f"));
    }

    #[test]
    fn every_kinds_metrics_are_in_the_catalog_and_fit_it() {
        use TaskKind::*;
        for kind in [Perplexity, Translation, MultipleChoice, Qa, Mkqa, Summary, Alignment] {
            for protocol in [ChoiceProtocol::LmEval, ChoiceProtocol::PaperZeroshot] {
                for name in default_metrics(kind, protocol) {
                    let metric = MetricName::find(name).unwrap_or_else(|| panic!("{name} is not there"));
                    assert_eq!(metric.about().evidence, kind.evidence(), "{name}");
                }
            }
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
    }
}
