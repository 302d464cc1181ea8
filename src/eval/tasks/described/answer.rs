//! Choices and the right one among them, in the shapes that data sets have: what is not clear is refused in words.
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use crate::{
    metrics::catalog::letter,
    recipe::description::{AnswerIs, TaskDescription},
};

/// A choice, with its label if the row has one.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Its text.
    pub text: String,
    /// As the row's answer names it.
    pub label: Option<String>,
}

/// The value of a column; a point goes into an object, unless a column has it in its name.
pub fn at<'a>(row: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    if let Some(value) = row.get(path) {
        return Some(value);
    }
    let (head, rest) = path.split_once('.')?;
    at(row.get(head)?.as_object()?, rest)
}

/// A text, or a number as one.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// What a value is, for errors.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// All choices of a column.
///
/// # Errors
/// A shape that is none of those documented, a choice without text.
pub fn choices(value: &Value) -> Result<Vec<Choice>> {
    match value {
        Value::Array(items) => items.iter().enumerate().map(|(i, item)| one(i, item)).collect(),
        Value::Object(map) => match (map.get("text"), map.get("label")) {
            (Some(Value::Array(texts)), labels) => lists(texts, labels),
            _ => by_label(map),
        },
        Value::String(inner) => match serde_json::from_str::<Value>(inner) {
            Ok(value @ (Value::Array(_) | Value::Object(_))) => choices(&value),
            _ if inner.trim_start().starts_with(['[', '{']) => bail!(
                "a Python list or dict written as text: save the data set with `to_json` or as Parquet, where it stays a list"
            ),
            _ => bail!("a text; a list of choices was expected"),
        },
        other => bail!("{}; a list of choices was expected", kind(other)),
    }
}

fn one(i: usize, item: &Value) -> Result<Choice> {
    let named = |key: &str| item.get(key).and_then(text);
    match item {
        Value::Object(_) => Ok(Choice {
            text: named("text").with_context(|| format!("choice {} has no `text`", i + 1))?,
            label: named("label"),
        }),
        other => {
            let text =
                text(other).with_context(|| format!("choice {} is {}, not a text", i + 1, kind(other)))?;
            Ok(Choice { text, label: None })
        }
    }
}

fn lists(texts: &[Value], labels: Option<&Value>) -> Result<Vec<Choice>> {
    let labels = match labels {
        None | Some(Value::Null) => None,
        Some(Value::Array(labels)) => Some(labels),
        Some(other) => bail!("`label` is {}; a list was expected as `text` is", kind(other)),
    };
    if let Some(labels) = labels {
        ensure!(labels.len() == texts.len(), "{} labels for {} texts", labels.len(), texts.len());
    }
    let of = |(i, item): (usize, &Value)| {
        let choice = one(i, item)?;
        let label = labels.and_then(|labels| text(labels.get(i)?));
        Ok(Choice { label: label.or(choice.label), ..choice })
    };
    texts.iter().enumerate().map(of).collect()
}

fn by_label(map: &Map<String, Value>) -> Result<Vec<Choice>> {
    let of = |(label, item): (&String, &Value)| {
        let text = text(item).with_context(|| {
            format!("its `{label}` is {}; an object of texts by label, or of two lists `text` and `label`, was expected", kind(item))
        })?;
        Ok(Choice { text, label: Some(label.clone()) })
    };
    map.iter().map(of).collect()
}

/// The index of the right choice.
///
/// # Errors
/// No answer, several, one that names no choice, or that could name two.
pub fn right(answer: &Value, choices: &[Choice], description: &TaskDescription) -> Result<usize> {
    match answer {
        Value::Null => bail!("it is null: the row has no right answer"),
        Value::Bool(_) => bail!("it is true or false; a number, letter, label or text was expected"),
        Value::Object(_) => bail!("it is an object; a number, letter, label or text was expected"),
        Value::Array(items) => match &items[..] {
            [one] => right(one, choices, description),
            [] => bail!("it is an empty list: the row has no right answer"),
            all => bail!("it lists {} right answers; rows with one are asked", all.len()),
        },
        Value::Number(number) => {
            let labelled = as_label(&number.to_string(), choices, description);
            match (description.answer_is, labelled) {
                (None | Some(AnswerIs::Label), Some(found)) => Ok(found),
                (Some(AnswerIs::Label), None) if !choices.iter().any(|c| c.label.is_none()) => {
                    bail!("{number} is none of the labels {}", labels(choices, description))
                }
                _ => by_number(number.as_f64().unwrap_or(f64::NAN), choices.len(), description.first),
            }
        }
        Value::String(given) => named(given.trim(), choices, description),
    }
}

fn labels(choices: &[Choice], description: &TaskDescription) -> String {
    let own = choices.iter().filter_map(|c| c.label.as_ref());
    own.chain(&description.labels).map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ")
}

fn as_label(given: &str, choices: &[Choice], description: &TaskDescription) -> Option<usize> {
    let own = choices.iter().position(|c| c.label.as_deref().map(str::trim) == Some(given));
    own.or_else(|| description.labels.iter().position(|label| label.eq_ignore_ascii_case(given)))
        .filter(|found| *found < choices.len())
}

fn by_number(number: f64, choices: usize, first: u64) -> Result<usize> {
    let last = first + choices as u64 - 1;
    ensure!(number.fract() == 0.0, "it is {number}: the number of a choice is a whole one");
    ensure!(number != -1.0, "it is -1: the row has no right answer (a test set whose labels are hidden?)");
    ensure!(
        (first as f64..=last as f64).contains(&number),
        "it is {number}: the {choices} choices have the numbers {first} to {last} (`first` says where they begin)"
    );
    Ok((number as u64 - first) as usize)
}

/// A text that names a choice: by its label, or else in one way, or in several that agree.
fn named(given: &str, choices: &[Choice], description: &TaskDescription) -> Result<usize> {
    let as_letter = || (0..choices.len()).find(|&i| letter(i).eq_ignore_ascii_case(given));
    let as_number = || {
        let number: f64 = given.parse().ok()?;
        by_number(number, choices.len(), description.first).ok()
    };
    let as_text = || choices.iter().position(|c| c.text.trim() == given);
    let as_label = || as_label(given, choices, description);
    let readings: [(AnswerIs, &str, &dyn Fn() -> Option<usize>); 4] = [
        (AnswerIs::Label, "label", &as_label),
        (AnswerIs::Letter, "letter", &as_letter),
        (AnswerIs::Number, "number", &as_number),
        (AnswerIs::Text, "text", &as_text),
    ];
    let mut found: Vec<(&str, usize)> = vec![];
    for (kind, word, read) in readings {
        if description.answer_is.is_none_or(|only| only == kind) {
            found.extend(read().map(|i| (word, i)));
        }
    }
    // A label says what it means; other readings of it are chance.
    if let (None, Some(("label", index))) = (description.answer_is, found.first().copied()) {
        return Ok(index);
    }
    // Where rows that are letters at other places have numbers (ARC), or choices that have no labels are named by letters.
    if found.is_empty() && description.answer_is == Some(AnswerIs::Label) {
        found.extend(as_letter().filter(|i| choices[*i].label.is_none()).map(|i| ("letter", i)));
    }
    // A number of another form: 1.5, 7, -1.
    let numbers = matches!(description.answer_is, None | Some(AnswerIs::Number));
    if let (true, Ok(number)) = (numbers && found.is_empty(), given.parse::<f64>()) {
        return by_number(number, choices.len(), description.first);
    }
    let Some((word, index)) = found.first().copied() else {
        let known = labels(choices, description);
        let of_labels =
            if known.is_empty() { String::new() } else { format!(", and the labels are {known}") };
        bail!("it is {given:?}, which names none of the {} choices{of_labels}", choices.len());
    };
    if let Some((other, second)) = found.iter().find(|(_, i)| *i != index) {
        bail!(
            "it is {given:?}: as a {word} that is choice {}, as a {other} choice {}: say which with `answer-is`",
            index + 1,
            second + 1
        );
    }
    Ok(index)
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
