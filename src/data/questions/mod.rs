//! Question files as the field writes them: Alpaca, Dolly, OpenAI messages, ShareGPT, TRL prompt/completion, or question/answer.
pub mod container;
#[cfg(feature = "parquet")]
mod parquet_values;
pub mod preferences;
mod shapes;
mod turns;

use std::path::Path;

use crate::error::Error;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use super::{
    conversation::{Role, Turn},
    languages,
    record::{Example, Origin, Row},
    tally::{OnBadRow, Tally},
};

/// A row of a file: a conversation, whatever shape it had.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Source {
    /// Its own id; may be empty.
    pub id: String,
    /// Its own language; may be empty.
    pub language: String,
    /// Every turn.
    pub turns: Vec<Turn>,
    /// Alpaca's `input`, Dolly's `context`: belongs to the last question.
    pub input: String,
    /// Where it stands.
    pub origin: Origin,
    /// The other columns of the file.
    pub columns: Map<String, Value>,
}

/// Reads the rows of a file (see [`container`]); `language` is theirs where they do not say. A row without an id gets the file's stem and its
/// number.
pub fn read(path: &Path, language: &str, on_bad: OnBadRow) -> Result<(Vec<Source>, Tally)> {
    let stem = stem(path);
    let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut one = |object, notes: &mut Tally, place: &str| parse(object, notes, place).map(Some);
    let (rows, tally) = read_rows(path, on_bad, &mut one)?;
    let named = |(number, mut row): (usize, Source)| {
        if row.id.is_empty() {
            row.id = format!("{stem}-{number}");
        }
        if row.language.is_empty() {
            row.language = language.into();
        }
        row.origin = Origin { file: file.clone(), line: number };
        row
    };
    Ok((rows.into_iter().map(named).collect(), tally))
}

/// What `parse` makes of each row of a file, with its number from 1 on; `None` is a row that it dropped in the tally that it is given.
fn read_rows<T>(
    path: &Path,
    on_bad: OnBadRow,
    parse: &mut dyn FnMut(Map<String, Value>, &mut Tally, &str) -> Result<Option<T>>,
) -> Result<(Vec<(usize, T)>, Tally)> {
    let (mut rows, mut tally, mut number) = (vec![], Tally::default(), 0);
    container::for_each(path, &mut |place, object| {
        number += 1;
        tally.read += 1;
        let mut notes = Tally::default();
        match object.and_then(|object| parse(object, &mut notes, place)) {
            Ok(row) => {
                tally.kept += usize::from(row.is_some());
                tally.add(&notes);
                rows.extend(row.map(|row| (number, row)));
            }
            Err(e) if on_bad == OnBadRow::Skip => tally.drop(&format!("{e:#}"), place),
            Err(e) => {
                let message = format!("{place}: --on-bad-row skip leaves such rows out");
                return Err(e.context(Error::bad_input(place, message)));
            }
        }
        Ok(())
    })?;
    let empty = || format!("{}: no row is left: {tally}", path.display());
    ensure!(!rows.is_empty(), Error::bad_input(path.display(), empty()));
    Ok((rows, tally))
}

/// Whether the first row of a file is an object with all of these columns.
pub fn first_row_has(path: &Path, keys: &[&str]) -> Result<bool> {
    let mut has = None;
    let stopped = container::for_each(path, &mut |_, object| {
        has = Some(object.is_ok_and(|o| keys.iter().all(|k| o.contains_key(*k))));
        bail!("enough was seen")
    });
    match (has, stopped) {
        (Some(has), _) => Ok(has),
        (None, stopped) => stopped.map(|()| false),
    }
}

/// The file's name without its endings.
fn stem(path: &Path) -> String {
    if path == Path::new("-") {
        return "stdin".into();
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let bare = name.strip_suffix(".gz").or(name.strip_suffix(".zst")).unwrap_or(&name);
    bare.rsplit_once('.').map_or(bare, |(stem, _)| stem).to_string()
}

impl Source {
    /// As a row of the method: the last question with what stands before it, and the answer to it, if there is one.
    pub fn into_row(self) -> Result<Row> {
        let at = self.turns.iter().rposition(|t| t.role == Role::User).context("the row has no question")?;
        let mut earlier = self.turns;
        let later = earlier.split_off(at + 1);
        let question = earlier.pop().map(|t| t.content).unwrap_or_default();
        ensure!(!question.trim().is_empty(), "the question is empty");
        let answer = later.into_iter().find(|t| t.role == Role::Assistant);
        Ok(Row {
            id: self.id,
            language: self.language,
            turns: earlier,
            instruction: question,
            input: self.input,
            output: answer.map(|t| t.content).unwrap_or_default(),
            origin: Some(self.origin),
            columns: self.columns,
            ..Row::default()
        })
    }

    /// As an example to train on: up to the last answer. `None` where there is no answer, or nothing to learn: noted in `tally`.
    pub fn into_example(mut self, tally: &mut Tally, place: &str) -> Result<Option<Example>> {
        let Some(last) = self.turns.iter().rposition(|t| t.role == Role::Assistant) else {
            tally.drop("no answer", place);
            return Ok(None);
        };
        if self.turns[last].content.trim().is_empty() {
            tally.drop("an empty answer", place);
            return Ok(None);
        }
        if last + 1 < self.turns.len() {
            tally.note("question behind the last answer left out", place);
        }
        self.turns.truncate(last + 1);
        let empty = |t: &Turn| t.role == Role::Assistant && t.content.trim().is_empty();
        for turn in self.turns.iter_mut().filter(|t| empty(t)) {
            turn.weight = 0.0;
            tally.note("empty earlier answer not learnt", place);
        }
        if self.turns.iter().all(|t| t.role != Role::Assistant || t.weight == 0.0) {
            tally.drop("every answer has weight 0", place);
            return Ok(None);
        }
        let weight = self.turns[last].weight;
        let row = self.into_row()?;
        Ok(Some(Example {
            id: row.id.clone(),
            row: row.id,
            pair: "file".into(),
            split: "train".into(),
            question_language: row.language.clone(),
            answer_language: row.language,
            turns: row.turns,
            instruction: row.instruction,
            input: row.input,
            output: row.output,
            output_ids: vec![],
            gold: false,
            weight,
        }))
    }
}

/// One row of any of the formats; columns that none of them knows are carried along. What is left out is noted in `tally`.
pub fn parse(mut object: Map<String, Value>, tally: &mut Tally, place: &str) -> Result<Source> {
    shapes::refuse(&object)?;
    let mut row = Source::default();
    if let Some(id) = object.remove("id").filter(|v| !v.is_null()) {
        row.id = id.as_str().map_or_else(|| id.to_string(), String::from);
    }
    row.language = language_of(&mut object).unwrap_or_default();
    if let Some((key, list)) = turns::conversation(&mut object, tally, place)? {
        row.turns = turns::of_list(&list, tally, place).with_context(|| key)?;
        system_column(&mut object, &mut row.turns)?;
    } else {
        single(&mut object, &mut row, tally, place)?;
    }
    for key in ["weight", "train"] {
        if object.get(key).is_some_and(|v| v.is_number() || v.is_boolean()) {
            tally.note(&format!("column `{key}` weighs nothing (that of a turn does)"), place);
        }
    }
    row.columns = object;
    Ok(row)
}

/// The language that a row says it is in, taken out of its columns. A column of another meaning, such as the name of a programming language, is the user's.
fn language_of(object: &mut Map<String, Value>) -> Option<String> {
    let code = object.get("language").and_then(Value::as_str).and_then(|l| languages::code(l).ok())?;
    object.remove("language");
    Some(code)
}

/// Columns of a question, of what belongs to it, and of its answer: the first that has a value.
const QUESTION: [&str; 5] = ["instruction", "question", "prompt", "query", "inputs"];
const CONTEXT: [&str; 2] = ["input", "context"];
const ANSWER: [&str; 6] = ["output", "answer", "completion", "response", "target", "targets"];

/// A question with its context, its answer, and Alpaca's `system` and `history`.
fn single(object: &mut Map<String, Value>, row: &mut Source, tally: &mut Tally, place: &str) -> Result<()> {
    let mut take = |keys: &[&str]| take(object, keys, tally, place);
    let (question, input, output) = (take(&QUESTION)?, take(&CONTEXT)?, take(&ANSWER)?);
    let said = |text: &Option<String>| text.as_ref().is_some_and(|t| !t.trim().is_empty());
    ensure!(
        question.is_some() || (said(&input) && output.is_some()),
        "the row has none of `instruction`, `question`, `prompt`, `query`, `messages`, `conversations`{}",
        shapes::hint(object)
    );
    // Without an instruction, what it would be about is what is asked.
    let (question, input) = if said(&question) { (question, input) } else { (input, None) };
    ensure!(said(&question), "the question is empty");
    let question = question.unwrap_or_default();
    row.input = input.unwrap_or_default();
    row.turns.extend(earlier(object)?);
    row.turns.push(Turn::new(Role::User, &question));
    row.turns.extend(output.map(|o| Turn::new(Role::Assistant, &o)));
    system_column(object, &mut row.turns)
}

/// What stands before the question of a row, taken out of its columns: Alpaca's `history`, a list of [question, answer], behind the `turns` of a row of this program.
fn earlier(object: &mut Map<String, Value>) -> Result<Vec<Turn>> {
    let own = object.get("turns").and_then(|v| serde_json::from_value::<Vec<Turn>>(v.clone()).ok());
    if own.is_some() {
        object.remove("turns");
    }
    let mut turns = own.unwrap_or_default();
    let Some(history) = object.remove("history").filter(|v| !v.is_null()) else { return Ok(turns) };
    const EXPECTED: &str = "`history` is not a list of [question, answer]";
    for pair in history.as_array().context(EXPECTED)? {
        let Some([question, answer]) = pair.as_array().map(Vec::as_slice) else { bail!(EXPECTED) };
        for (role, said) in [(Role::User, question), (Role::Assistant, answer)] {
            turns.push(Turn::new(role, &turns::text(said).context("`history`")?));
        }
    }
    Ok(turns)
}

/// A `system` column stands before everything.
fn system_column(object: &mut Map<String, Value>, turns: &mut Vec<Turn>) -> Result<()> {
    for key in ["system", "system_prompt"] {
        let Some(value) = object.remove(key).filter(|v| !v.is_null() && v != "") else { continue };
        let text = turns::content(&value).with_context(|| format!("`{key}`"))?;
        if text.trim().is_empty() {
            continue;
        }
        ensure!(
            turns.first().is_none_or(|t| t.role != Role::System || t.content == text),
            "`{key}` and a system turn of the conversation say different things"
        );
        if turns.first().is_none_or(|t| t.role != Role::System) {
            turns.insert(0, Turn::new(Role::System, &text));
        }
    }
    Ok(())
}

/// The first of these columns that has a value. The others stay the user's own, and are noted where they say something else.
fn take(
    object: &mut Map<String, Value>,
    keys: &[&str],
    tally: &mut Tally,
    place: &str,
) -> Result<Option<String>> {
    let Some(key) = keys.iter().find(|k| object.get(**k).is_some_and(|v| !v.is_null())) else {
        return Ok(None);
    };
    let value = object.remove(*key).unwrap_or_default();
    for other in keys.iter().filter(|k| *k != key) {
        if object.get(*other).is_some_and(|v| v.as_str().is_some_and(|s| !s.is_empty()) && *v != value) {
            tally.note(&format!("column `{other}` beside `{key}` kept apart"), place);
        }
    }
    turns::text(&value).with_context(|| format!("`{key}`")).map(Some)
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod trainers_tests;
