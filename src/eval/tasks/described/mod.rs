//! Tasks as data: rows of any columns, asked and judged as a [`TaskDescription`] says.
mod answer;
mod template;

use std::{collections::HashMap, path::Path};

use anyhow::{Context, Result, bail, ensure};
use regex::Regex;
use serde_json::{Map, Value};

use self::{answer::Choice, template::Templates};
use super::{Ask, Item};
use crate::{
    data::questions::container,
    eval::sample::Sample,
    metrics::catalog::letter,
    recipe::{
        description::{TaskDescription, WhichMatch},
        eval::{EvalTask, TaskKind},
    },
    report::out::note,
};

/// What stands for a reply in which `extract` finds no answer, as in lm-eval.
const INVALID: &str = "[invalid]";

/// A row with its place.
struct Placed {
    place: String,
    row: Map<String, Value>,
}

/// What can be wrong with a task that has a description, apart from its rows.
///
/// # Errors
/// Keys that do not fit together.
pub fn check(task: &EvalTask) -> Result<()> {
    let Some(description) = &task.description else {
        ensure!(
            task.columns.is_empty() && task.only.is_empty(),
            "`columns` and `only` belong to tasks with a `description`"
        );
        return Ok(());
    };
    let kind = description.0.kind;
    ensure!(
        task.kind.is_none_or(|own| own == kind),
        "`kind` is {}, but its description {} is of kind {}: leave `kind` out",
        task.kind().name(),
        description.0.name,
        kind.name()
    );
    ensure!(task.prompt.is_none(), "`prompt` belongs to tasks without a `description`, which has its own");
    ensure!(task.protocol == Default::default(), "`protocol` belongs to tasks without a `description`");
    ensure!(
        task.reference.is_some() == description.0.join.is_some(),
        "`reference` is needed where the description has `join`, and only there"
    );
    for entry in task.columns.iter().chain(&task.only) {
        ensure!(
            entry.split_once('=').is_some_and(|(name, _)| !name.trim().is_empty()),
            "{entry:?}: expected NAME=VALUE"
        );
    }
    Templates::new(task, &description.0)?;
    ending(task, &description.0)?;
    Ok(())
}

/// Every row of the task, asked.
pub fn items(task: &EvalTask, description: &TaskDescription) -> Result<Vec<Item>> {
    let templates = Templates::new(task, description)?;
    let mut rows = read(&task.file, task, Wants::Questions)?;
    if let (Some(reference), Some(key)) = (&task.reference, &description.join) {
        join(&mut rows, task, reference, key)?;
    }
    let solved = match &task.few_shot_file {
        Some(file) => Some(read(file, task, Wants::Shown)?),
        None => None,
    };
    let own = solved.is_none();
    let solved = solved.as_deref().unwrap_or(&rows);
    let most = solved.len() - usize::from(own && !solved.is_empty());
    ensure!(
        task.few_shot <= most,
        "few-shot is {}, but {} has {} rows{}",
        task.few_shot,
        task.few_shot_file.as_ref().unwrap_or(&task.file).display(),
        solved.len(),
        if own { ", and a row is not shown before itself" } else { "" }
    );
    let needed = task.few_shot + usize::from(own && task.few_shot > 0);
    let shots: Vec<String> = (solved.iter().take(needed))
        .map(|s| shot(&templates, description, &s.row).with_context(|| s.place.clone()))
        .collect::<Result<_>>()?;
    let item = |(i, placed): (usize, &Placed)| {
        let before =
            shots.iter().enumerate().filter(|(at, _)| !own || *at != i).map(|(_, text)| text.as_str());
        let before: String = before.take(task.few_shot).collect();
        ask(&templates, description, (i, &placed.row), &before).with_context(|| placed.place.clone())
    };
    rows.iter().enumerate().map(item).collect()
}

/// Which rows of a file are wanted.
#[derive(Clone, Copy, PartialEq)]
enum Wants {
    /// Those that `only` names.
    Questions,
    /// The same, where the file has its columns.
    Shown,
    /// All of them.
    All,
}

/// The rows of a file under the task's names for columns.
fn read(path: &Path, task: &EvalTask, wants: Wants) -> Result<Vec<Placed>> {
    let (mut out, mut left, mut seen) = (vec![], 0, String::new());
    container::for_each(path, &mut |place, object| {
        let mut row = object.with_context(|| place.to_string())?;
        let names = task.only.iter().filter_map(|entry| entry.split_once('='));
        let chosen = match wants {
            Wants::All => false,
            Wants::Questions => true,
            Wants::Shown => names.into_iter().all(|(name, _)| answer::at(&row, name.trim()).is_some()),
        };
        if chosen && !wanted(&row, &task.only, &mut seen).with_context(|| place.to_string())? {
            left += 1;
            return Ok(());
        }
        for (ours, theirs) in task.columns.iter().filter_map(|entry| entry.split_once('=')) {
            let found = answer::at(&row, theirs.trim()).cloned();
            let missing = || template::missing_columns(&[theirs.trim().to_string()], &row);
            let value = found.ok_or_else(missing).with_context(|| place.to_string())?;
            row.insert(ours.trim().into(), value);
        }
        out.push(Placed { place: place.into(), row });
        Ok(())
    })?;
    ensure!(
        !out.is_empty(),
        "{}: none of its {left} rows has {}{seen}",
        path.display(),
        task.only.join(" and ")
    );
    if left > 0 && wants == Wants::Questions {
        note!("task {}: {left} of {} rows are left out by `only`", task.name, left + out.len());
    }
    Ok(out)
}

/// Whether a row has every value of `only`; `seen` is told what another one has.
fn wanted(row: &Map<String, Value>, only: &[String], seen: &mut String) -> Result<bool> {
    for (column, value) in only.iter().filter_map(|entry| entry.split_once('=')) {
        let column = column.trim();
        let found = answer::at(row, column)
            .ok_or_else(|| template::missing_columns(&[column.to_string()], row))
            .context("`only`")?;
        let text = found.as_str().map_or_else(|| found.to_string(), String::from);
        if text.trim() != value.trim() {
            if seen.is_empty() {
                *seen = format!("; the first one's `{column}` is {found}");
            }
            return Ok(false);
        }
    }
    Ok(true)
}

/// Puts beside each row that of `reference` which has the same key.
fn join(rows: &mut [Placed], task: &EvalTask, reference: &Path, key: &str) -> Result<()> {
    let id = |placed: &Placed| -> Result<String> {
        let found = answer::at(&placed.row, key).filter(|v| !v.is_null());
        let found = found.ok_or_else(|| template::missing_columns(&[key.to_string()], &placed.row));
        found.map(Value::to_string).with_context(|| placed.place.clone())
    };
    let mut others: HashMap<String, Placed> = HashMap::new();
    for other in read(reference, task, Wants::All)? {
        let (id, place) = (id(&other)?, other.place.clone());
        ensure!(others.insert(id.clone(), other).is_none(), "{place}: `{key}` {id} occurred before");
    }
    let n = others.len();
    for placed in rows.iter_mut() {
        let id = id(placed)?;
        let Some(other) = others.remove(&id) else {
            bail!(
                "{}: `{key}` is {id}, which none of the {n} rows of {} has, or an earlier row had",
                placed.place,
                reference.display()
            )
        };
        placed.row.insert("reference".into(), Value::Object(other.row));
    }
    if !others.is_empty() {
        note!("task {}: {} rows of {} belong to no row", task.name, others.len(), reference.display());
    }
    Ok(())
}

/// The choices of a row and the right one.
fn question(
    templates: &Templates,
    description: &TaskDescription,
    row: &Map<String, Value>,
) -> Result<(Vec<Choice>, usize)> {
    let column =
        |path: &str| answer::at(row, path).ok_or_else(|| template::missing_columns(&[path.to_string()], row));
    let choices: Vec<Choice> = match &description.choices_column {
        Some(path) => answer::choices(column(path)?).with_context(|| format!("`{path}`"))?,
        None => (1..=description.choices.len())
            .map(|i| Ok(Choice { text: templates.render(&format!("choice {i}"), row)?, label: None }))
            .collect::<Result<_>>()?,
    };
    ensure!(choices.len() >= 2, "{} choices: a question needs two or more", choices.len());
    let path = description.answer.as_deref().unwrap_or_default();
    let right = answer::right(column(path)?, &choices, description).with_context(|| format!("`{path}`"))?;
    Ok((choices, right))
}

/// A solved question.
fn shot(templates: &Templates, description: &TaskDescription, row: &Map<String, Value>) -> Result<String> {
    let answer = match description.kind {
        TaskKind::MultipleChoice => {
            let (choices, right) = question(templates, description, row)?;
            choices[right].text.clone()
        }
        _ => templates.render("shown", row)?,
    };
    let prompt = templates.render("prompt", row)?;
    Ok(format!("{prompt}{}{answer}{}", description.delimiter, description.separator))
}

fn ask(
    templates: &Templates,
    description: &TaskDescription,
    (doc_id, row): (usize, &Map<String, Value>),
    shots: &str,
) -> Result<Item> {
    let preamble = templates.render("preamble", row)?;
    let prompt = format!("{preamble}{shots}{}", templates.render("prompt", row)?);
    let doc = Value::Object(row.clone());
    if description.kind != TaskKind::MultipleChoice {
        let target = templates.render("target", row)?;
        ensure!(!target.trim().is_empty(), "`target` is empty: the row has no answer");
        return Ok(super::reply(doc_id, prompt, vec![target], doc));
    }
    let (choices, right) = question(templates, description, row)?;
    let texts: Vec<&str> = choices.iter().map(|c| c.text.as_str()).collect();
    let sample = Sample {
        doc_id,
        prompt,
        targets: vec![letter(right)],
        lengths: super::lengths(&texts),
        ..Default::default()
    };
    let continuations = texts.iter().map(|text| format!("{}{text}", description.delimiter)).collect();
    Ok(Item { sample, ask: Ask::Choose(continuations), before: String::new(), doc })
}

/// Where replies end, and what of them is the answer.
pub struct Ending {
    /// Texts that end a reply.
    pub until: Vec<String>,
    extract: Option<Regex>,
    which: WhichMatch,
}

/// The ending of a task's replies.
///
/// # Errors
/// A template that needs a row, an expression that does not parse.
pub fn ending(task: &EvalTask, description: &TaskDescription) -> Result<Ending> {
    let templates = Templates::new(task, description)?;
    let nothing = Map::new();
    let until = (1..=description.until.len()).map(|i| templates.render(&format!("until {i}"), &nothing));
    let extract = match &description.extract {
        Some(_) => {
            let pattern = templates.render("extract", &nothing)?;
            Some(Regex::new(&pattern).with_context(|| format!("`extract`: {pattern}"))?)
        }
        None => None,
    };
    let until = until.collect::<Result<Vec<_>>>()?.into_iter().filter(|text| !text.is_empty()).collect();
    Ok(Ending { until, extract, which: description.which_match })
}

impl Ending {
    /// What of a reply is judged: up to the first text that ends it, and of that what `extract` finds.
    pub fn judged(&self, reply: &str) -> String {
        let end = self.until.iter().filter_map(|text| reply.find(text.as_str())).min();
        let reply = &reply[..end.unwrap_or(reply.len())];
        let Some(pattern) = &self.extract else { return reply.trim().into() };
        let mut matches = pattern.captures_iter(reply);
        let found = match self.which {
            WhichMatch::First => matches.next(),
            WhichMatch::Last => matches.last(),
        };
        let Some(found) = found else { return INVALID.into() };
        // As Python's findall: the groups, where there are any.
        let mut groups = found.iter().skip(usize::from(found.len() > 1)).flatten().map(|m| m.as_str());
        groups.find(|text| !text.is_empty()).unwrap_or(INVALID).trim().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_end_and_give_their_answer_as_lm_evals_filters_do() {
        let mut task = EvalTask::new("t", TaskKind::Qa, "es", "f");
        let description = crate::recipe::description::NamedDescription::open("mgsm").unwrap();
        task.kind = None;
        let numbers = ending(&task, &description.0).unwrap();
        for (reply, answer) in [
            ("Son 3 y 4,500 euros. Pregunta: 7", "4,500"),
            ("-5", "-5"),
            ("$12.", "$12."),
            ("ninguno", "[invalid]"),
            ("18</s>19", "18"),
            ("", "[invalid]"),
        ] {
            assert_eq!(numbers.judged(reply), answer, "{reply}");
        }
        let mut first = (*description.0).clone();
        (first.extract, first.which_match) = (Some("es (\\d+)".into()), WhichMatch::First);
        assert_eq!(ending(&task, &first).unwrap().judged("es 4, es 5"), "4");
        first.extract = Some("(".into());
        assert!(format!("{:#}", ending(&task, &first).err().unwrap()).contains("`extract`: ("));
        task.language = "fi".into();
        let error = format!("{:#}", ending(&task, &description.0).err().unwrap());
        assert!(error.contains("no words of Finnish, but of bn, de, en"), "{error}");
    }
}
