//! A task as data: which columns a row has, how it is asked, what is right. The built-in ones are `src/recipe/tasks/*.toml`.
use std::{collections::BTreeMap, fmt, path::Path};

use anyhow::{Context, Result, ensure};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error as _, MapAccess, Visitor, value::MapAccessDeserializer},
};
use toml::Table;

use super::{eval::TaskKind, source};
use crate::{
    data::{files::FileContext, languages, words::nearest},
    metrics::catalog::MetricName,
};

/// What `answer` is, where it could be read in two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AnswerIs {
    /// A number, counted from `first`
    Number,
    /// A letter: A for the first choice
    Letter,
    /// One of the labels: those of the choices themselves, or `labels`
    Label,
    /// The text of a choice
    Text,
}

/// Which of several matches of `extract` is the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhichMatch {
    /// The first
    #[default]
    First,
    /// The last
    Last,
}

/// What a task is, apart from its files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TaskDescription {
    /// What it is called in signatures [default: its built-in name or its file's]
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Another description (a built-in name or a path) whose keys hold where this one has none
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extends: Option<String>,
    /// What it is, and where its words come from
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub about: String,
    /// What is done with a row: multiple-choice, qa (the reply is compared with `target`) or translation
    pub kind: TaskKind,
    /// Jinja template of the prompt. Variables are the row's columns, `row` (all of them), `words`, and `to` and `from`: the task's language and source language with `name`, `code` and `nllb`
    #[serde(default)]
    pub prompt: String,
    /// Multiple choice: a template for each choice
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<String>,
    /// Multiple choice: the column that holds all choices, instead of `choices`: a list of texts, a list of objects with `text` and `label`, an object of two such lists, or an object of texts by label. A point goes into an object: `question.choices`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choices_column: Option<String>,
    /// Multiple choice: the column of the right choice: a number, a letter, a label or the choice's text
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// Multiple choice: what `answer` is, where it could be read in two ways
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer_is: Option<AnswerIs>,
    /// Multiple choice: the number of the first choice
    #[serde(default)]
    pub first: u64,
    /// Multiple choice: names of the choices that `answer` may have instead of their number
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// Replies: template of what is expected
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub target: String,
    /// Replies: template of the answer in solved questions [default: `target`]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shown: Option<String>,
    /// Template of what stands before the prompt and the solved questions; nothing is put between, a line end must stand in it
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub preamble: String,
    /// What stands between a prompt and the choice, and in solved questions the answer
    #[serde(default = "space")]
    pub delimiter: String,
    /// What stands behind each solved question
    #[serde(default = "empty_line")]
    pub separator: String,
    /// Replies: templates of texts that end a reply; they are cut off
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub until: Vec<String>,
    /// Replies: a regular expression (a template before it): the part of the reply that is the answer, or the first group of it that matched. Without a match the answer is `[invalid]`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extract: Option<String>,
    /// Replies: which of several matches of `extract` is the answer
    #[serde(default)]
    pub which_match: WhichMatch,
    /// Replies: how many tokens are generated at most, where the task has the default of `max-new-tokens`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_new_tokens: Option<usize>,
    /// Translation: the column by which rows of `reference` belong to those of `file`; the template variable `reference` is the other row
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<String>,
    /// Metrics [default: those of the kind]; for multiple choice `acc`, `acc-norm`, `acc-bytes`
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<String>,
    /// `words.LANGUAGE.NAME`: texts that differ by language, in templates `words.NAME`; names of letters and digits
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub words: BTreeMap<String, BTreeMap<String, String>>,
}

fn space() -> String {
    " ".into()
}

fn empty_line() -> String {
    "\n\n".into()
}

macro_rules! built_in {
    ($($name:literal)*) => {
        /// The built-in descriptions: name and TOML.
        pub const BUILT_IN: &[(&str, &str)] = &[$(($name, include_str!(concat!("tasks/", $name, ".toml")))),*];
    };
}

built_in! { "arc" "belebele" "exams" "flores-200" "flores-plus" "global-mmlu" "include" "instructions" "instructions-across" "mgsm" "mgsm-cot" "xcopa" "xnli" "xstorycloze" }

/// A description as a task has it: the name of a built-in one, the path of a file, or a table.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct NamedDescription(pub Box<TaskDescription>);

/// Descriptions that extend each other, at most.
const DEPTH: usize = 8;

/// The text of a built-in description, or of a file.
fn text_of(name: &str) -> Result<String> {
    if let Some((_, text)) = BUILT_IN.iter().find(|(known, _)| *known == name) {
        return Ok(text.to_string());
    }
    let names = || BUILT_IN.iter().map(|(known, _)| *known);
    let near = nearest(name, names()).map(|n| format!("; did you mean `{n}`?"));
    let path = Path::new(name);
    ensure!(
        path.exists(),
        "there is no description `{name}`, and no file of that name{} Built in are {}",
        near.unwrap_or_else(|| ".".into()),
        names().collect::<Vec<_>>().join(", ")
    );
    crate::data::json::read_text(path).at(path, || format!("read description {name}"))
}

/// A table with the keys of what it extends where it has none of its own.
fn extended(mut table: Table, depth: usize) -> Result<Table> {
    let Some(name) = table.remove("extends") else { return Ok(table) };
    let name = name.as_str().context("`extends` is the name of a description")?.to_string();
    ensure!(depth < DEPTH, "`extends`: {name} extends itself");
    let base: Table = source::parse(&text_of(&name)?, &name, &[])?;
    let base = extended(base, depth + 1).with_context(|| format!("description {name}"))?;
    for (key, value) in base {
        // The choices are written in one of two ways.
        let other = [("choices", "choices-column"), ("choices-column", "choices")];
        let replaced = other.iter().any(|(a, b)| *a == key && table.contains_key(*b));
        if !replaced && key != "name" && key != "about" {
            table.entry(key).or_insert(value);
        }
    }
    Ok(table)
}

impl NamedDescription {
    /// The built-in description of this name, or that of a file.
    ///
    /// # Errors
    /// Neither is there; a file that is no description.
    pub fn open(name: &str) -> Result<NamedDescription> {
        let text = text_of(name)?;
        let table: Table = source::parse(&text, name, &[])?;
        let task = match table.contains_key("extends") {
            // Only without it do errors carry the line of the file.
            false => source::parse(&text, name, &[])?,
            true => whole(table).with_context(|| format!("description {name}"))?,
        };
        let stem = Path::new(name).file_stem().unwrap_or_default().to_string_lossy();
        named(task, &stem).with_context(|| format!("description {name}"))
    }
}

fn whole(table: Table) -> Result<TaskDescription> {
    let text = toml::to_string(&extended(table, 0)?)?;
    source::parse(&text, "description", &[])
}

fn named(mut task: TaskDescription, name: &str) -> Result<NamedDescription> {
    if task.name.is_empty() {
        task.name = name.into();
    }
    task.check()?;
    Ok(NamedDescription(task.into()))
}

impl TaskDescription {
    /// What can be wrong with it by itself.
    fn check(&self) -> Result<()> {
        let task = self;
        let choice = task.kind == TaskKind::MultipleChoice;
        ensure!(
            choice || matches!(task.kind, TaskKind::Qa | TaskKind::Translation),
            "kind {} is not described by data: multiple-choice, qa and translation are",
            task.kind.name()
        );
        let of_choices = [
            ("choices", !task.choices.is_empty()),
            ("choices-column", task.choices_column.is_some()),
            ("answer", task.answer.is_some()),
            ("answer-is", task.answer_is.is_some()),
            ("labels", !task.labels.is_empty()),
        ];
        let of_replies = [
            ("target", !task.target.is_empty()),
            ("until", !task.until.is_empty()),
            ("extract", task.extract.is_some()),
            ("shown", task.shown.is_some()),
            ("join", task.join.is_some()),
        ];
        for (key, given) in if choice { &of_replies[..] } else { &of_choices[..] } {
            ensure!(!given, "`{key}` does not belong to kind {}", task.kind.name());
        }
        if choice {
            ensure!(
                task.choices.is_empty() != task.choices_column.is_none(),
                "either `choices` (templates) or `choices-column` is needed"
            );
            ensure!(task.choices.len() != 1, "`choices` has one template: two or more are needed");
            ensure!(task.answer.is_some(), "`answer` is needed: the column of the right choice");
        } else {
            ensure!(!task.target.is_empty(), "`target` is needed: what a reply is compared with");
            ensure!(!task.prompt.is_empty(), "`prompt` is needed");
        }
        ensure!(
            task.join.is_none() || task.kind == TaskKind::Translation,
            "`join` belongs to kind translation"
        );
        let plain = |name: &String| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric());
        for (language, words) in &task.words {
            languages::require(language).context("`words`")?;
            let odd = words.keys().find(|name| !plain(name));
            ensure!(odd.is_none(), "`words.{language}`: the name {odd:?} must be of letters and digits");
        }
        for name in &task.metrics {
            let metric = MetricName::find(name).with_context(|| format!("there is no metric `{name}`"))?;
            ensure!(
                metric.about().evidence == task.kind.evidence(),
                "metric `{name}` is not one of kind {}",
                task.kind.name()
            );
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for NamedDescription {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<NamedDescription, D::Error> {
        struct Given;
        impl<'de> Visitor<'de> for Given {
            type Value = NamedDescription;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(f, "the name of a built-in description, the path of a file, or a table")
            }
            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<NamedDescription, E> {
                NamedDescription::open(name).map_err(|e| E::custom(format!("{e:#}")))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<NamedDescription, A::Error> {
                let table = Table::deserialize(MapAccessDeserializer::new(map))?;
                let task = whole(table).and_then(|task| named(task, "own"));
                task.map_err(|e| A::Error::custom(format!("{e:#}")))
            }
        }
        deserializer.deserialize_any(Given)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_description_is_one() {
        for (name, text) in BUILT_IN {
            let found = NamedDescription::open(name).unwrap_or_else(|e| panic!("{name}: {e:#}")).0;
            assert!(!found.about.is_empty() && text.contains("about ="), "{name}");
            let again: TaskDescription = toml::from_str(&source::text(&*found).unwrap()).unwrap();
            assert_eq!(again, *found, "{name}");
        }
        let error = NamedDescription::open("xnly").unwrap_err().to_string();
        assert!(error.contains("did you mean `xnli`?") && error.contains("xcopa"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_description_or_an_error(text in "(kind|prompt|choices|answer|extends|words\\.es|until)? ?=? ?(\"[a-z{}%]{0,8}\"|\\[\"a\", \"b\"\\]|\\{.{0,8}\\}|\\PC{0,12})\n?") {
            if let Ok(table) = toml::from_str::<Table>(&text) {
                let _ = whole(table).and_then(|task| named(task, "own"));
            }
        }
    }

    #[test]
    fn a_description_extends_another_and_never_itself() {
        let parse = |text: &str| whole(toml::from_str(text).unwrap());
        let task = parse("extends = \"arc\"\nprompt = \"Q {{question}}\"\nchoices = [\"a\", \"b\"]").unwrap();
        assert_eq!((task.choices_column, task.answer.as_deref()), (None, Some("answerKey")));
        assert!(task.prompt.starts_with("Q ") && task.name.is_empty() && task.about.is_empty());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("loop.toml").to_string_lossy().into_owned();
        std::fs::write(&path, format!("extends = {path:?}\n")).unwrap();
        let error = format!("{:#}", NamedDescription::open(&path).unwrap_err());
        assert!(error.contains("extends itself"), "{error}");
        assert!(parse("extends = \"ark\"").unwrap_err().to_string().contains("did you mean `arc`?"));
    }

    #[test]
    fn what_does_not_fit_together_is_named() {
        for (text, part) in [
            ("kind = \"summary\"", "kind summary is not described by data"),
            ("kind = \"qa\"\nprompt = \"x\"", "`target` is needed"),
            (
                "kind = \"qa\"\nprompt = \"x\"\ntarget = \"y\"\nlabels = [\"a\"]",
                "`labels` does not belong to kind qa",
            ),
            ("kind = \"multiple-choice\"\nanswer = \"a\"", "either `choices`"),
            ("kind = \"multiple-choice\"\nchoices = [\"a\", \"b\"]", "`answer` is needed"),
            ("kind = \"multiple-choice\"\nchoices = [\"a\"]\nanswer = \"a\"", "one template"),
            (
                "kind = \"multiple-choice\"\nchoices = [\"a\", \"b\"]\nanswer = \"a\"\nuntil = [\"x\"]",
                "`until` does not",
            ),
            (
                "kind = \"multiple-choice\"\nchoices = [\"a\", \"b\"]\nanswer = \"a\"\nmetrics = [\"bleu\"]",
                "metric `bleu`",
            ),
            ("kind = \"qa\"\nprompt = \"x\"\ntarget = \"y\"\njoin = \"id\"", "`join` belongs"),
        ] {
            let task: TaskDescription = toml::from_str(text).unwrap();
            let error = task.check().unwrap_err().to_string();
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
