//! Settings of `pack`.
use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::{
    data::{placeholders, questions::preferences::Rows, tally::OnBadRow, template::TrainOn},
    error::Error,
};

/// The teacher's prompt of an objective with one that is a conversation: the source question, its answer, then the student's question.
pub const TURNS: &str = "turns";

/// What a teacher is asked where nothing is said, in the order of COPSD's (Liu et al. 2026): question, its translation, an answer to that, and how to use it.
const TEACHER_PROMPT: &str = "{question}\n\nThe same question in {source}:\n{source-question}\n\nA good answer in {source}:\n{source-answer}\n\n\
    Understand this answer, and do not merely translate it. Now answer the first question in {target}, in your own words.";

fn is_usual(prompt: &str) -> bool {
    prompt == TEACHER_PROMPT
}

/// How examples become tokens.
#[derive(Clone, Debug, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct PackSettings {
    /// Chat template: auto (the model's own), auto:NAME (a named template of the model), alpaca, alpaca-llamafactory, llama2, chatml, seallm-v2,
    /// plain, or a .jinja file. A BOS token is added only if the template writes one, or if +bos is appended to the name
    #[arg(long, default_value = "auto")]
    pub template: String,
    /// System prompt
    #[arg(long)]
    pub system: Option<String>,
    /// Longest document in tokens; longer ones are dropped (and counted), or cut with --truncate
    #[arg(long, default_value_t = 512)]
    pub max_length: usize,
    /// Cut documents that are too long instead of dropping them
    #[arg(long)]
    pub truncate: bool,
    /// Which answers of a conversation to train on: all, or the last
    #[arg(long, value_enum, default_value = "all")]
    pub train_on: TrainOn,
    /// A row that cannot be read: fail, or skip it and count it
    #[arg(long, value_enum, default_value = "fail")]
    pub on_bad_row: OnBadRow,
    /// Train on the prompts too (for training from scratch)
    #[arg(long)]
    pub train_on_prompt: bool,
    /// With objective on-policy or top-k: what a teacher is asked, a text with {question}, {source-question}, {source-answer}, {source} and {target} (languages; docs/method.md
    /// has the one that stands where nothing is said); or `turns`, the source question and its answer as earlier turns of the conversation
    #[arg(long, default_value = TEACHER_PROMPT, hide_default_value = true)]
    #[serde(skip_serializing_if = "is_usual")]
    pub teacher_prompt: String,
}

/// What [`PackSettings::teacher_prompt`] may have in braces.
const PLACEHOLDERS: [&str; 5] = ["question", "source-question", "source-answer", "source", "target"];

impl Default for PackSettings {
    fn default() -> PackSettings {
        PackSettings {
            template: "auto".into(),
            system: None,
            max_length: 512,
            truncate: false,
            train_on: TrainOn::All,
            on_bad_row: OnBadRow::Fail,
            train_on_prompt: false,
            teacher_prompt: TEACHER_PROMPT.into(),
        }
    }
}

impl PackSettings {
    /// Settings that say nothing about these rows.
    ///
    /// # Errors
    /// Learning prompts of preferences and questions, cutting questions; a teacher's prompt for other rows, or without question and answer.
    pub fn check(&self, rows: Rows) -> Result<()> {
        let message = "train-on-prompt is for answers to learn: of preferences the replies alone are compared, and questions are asked";
        ensure!(
            rows == Rows::Answers || !self.train_on_prompt,
            Error::setting("pack.train-on-prompt", message)
        );
        let key = "pack.teacher-prompt";
        if !rows.has_teacher() {
            let message =
                "teacher-prompt belongs to objective on-policy or top-k, and to their rows: leave it out";
            ensure!(is_usual(&self.teacher_prompt), Error::setting(key, message));
            return Ok(());
        }
        let cut = "truncate cuts answers, and questions cannot be asked by halves: leave it out";
        ensure!(!self.truncate, Error::setting("pack.truncate", cut));
        let needed = ["{question}", "{source-answer}"];
        let missing = needed
            .into_iter()
            .find(|name| self.teacher_prompt != TURNS && !self.teacher_prompt.contains(name));
        if let Some(name) = missing {
            let message = format!(
                "teacher-prompt: {name} does not stand in it; without it a teacher knows nothing of its own ({{source-question}}, {{source}} and {{target}} may stand in it, \
                 too; `{TURNS}` makes a conversation)"
            );
            bail!(Error::setting(key, message));
        }
        let unknown = placeholders::names(&self.teacher_prompt).find(|name| !PLACEHOLDERS.contains(name));
        if let Some(name) = unknown {
            let known = PLACEHOLDERS.map(|name| format!("{{{name}}}")).join(", ");
            let message = format!("teacher-prompt: there is no {{{name}}}: {known} may stand in it");
            bail!(Error::setting(key, message));
        }
        Ok(())
    }
}
