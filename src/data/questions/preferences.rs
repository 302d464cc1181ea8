//! Rows of preferences: a prompt with a chosen and a rejected reply, as TRL, UltraFeedback and their like have them.
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{language_of, read_rows, shapes, stem, system_column, turns};
use crate::{
    data::{
        conversation::{Role, Turn},
        record::Example,
        tally::{OnBadRow, Tally},
        token_shard::TokenShard,
    },
    error::Error,
};

/// What a row of training data holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rows {
    /// Answers to learn.
    #[default]
    Answers,
    /// A chosen and a rejected reply to one prompt.
    Pairs,
}

/// The last word of the note of a chosen reply's document.
pub const CHOSEN: &str = "chosen";
/// The same of a rejected reply.
pub const REJECTED: &str = "rejected";

impl Rows {
    /// What is trained on together, as people call it.
    pub fn unit(self) -> &'static str {
        match self {
            Rows::Answers => "document",
            Rows::Pairs => "pair",
        }
    }

    /// Documents of a row in a token shard.
    pub fn documents(self) -> usize {
        if self == Rows::Answers { 1 } else { 2 }
    }

    /// What the documents of a token shard are, by their notes.
    fn of_notes(shard: &TokenShard) -> Rows {
        let word = |i: usize| shard.note(i).rsplit(' ').next().map(String::from);
        let is_pair =
            |i: usize| word(i).as_deref() == Some(CHOSEN) && word(i + 1).as_deref() == Some(REJECTED);
        if shard.len() >= 2 && is_pair(0) { Rows::Pairs } else { Rows::Answers }
    }

    /// Rows of this kind in words, and the objectives that learn from them.
    fn in_words(self) -> (&'static str, &'static str) {
        match self {
            Rows::Answers => ("answers to learn", "sft"),
            Rows::Pairs => ("pairs of a chosen and a rejected reply", "dpo"),
        }
    }
}

impl TokenShard {
    /// The shard with its documents in units of `rows`.
    ///
    /// # Errors
    /// It holds rows of another kind.
    pub fn holding(self, rows: Rows) -> Result<TokenShard> {
        if self.is_empty() {
            return Ok(self);
        }
        let found = Rows::of_notes(&self);
        let ((is, objective), (wanted, _)) = (found.in_words(), rows.in_words());
        let message = || {
            format!(
                "{}: it holds {is}, and {wanted} were expected: --objective {objective} takes it",
                self.path().display()
            )
        };
        ensure!(found == rows, Error::bad_input(self.path().display(), message()));
        let halves: Vec<String> = match rows {
            Rows::Answers => vec![],
            Rows::Pairs => (0..self.len()).map(|i| self.note(i)).collect(),
        };
        let (path, half) =
            (self.path().to_path_buf(), |note: &str, mark: &str| note.strip_suffix(mark).map(String::from));
        let odd = halves.chunks(2).find(|pair| {
            pair.len() < 2
                || half(&pair[0], CHOSEN).is_none()
                || half(&pair[0], CHOSEN) != half(&pair[1], REJECTED)
        });
        if let Some(pair) = odd {
            let message =
                format!("{}: document {} has no partner: run `pack` again", path.display(), pair[0]);
            bail!(Error::bad_input(path.display(), message));
        }
        self.grouped(rows.documents())
    }
}

/// A prompt, whose last turn is the user's, and two replies to it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pair {
    /// Its own id; may be empty.
    pub id: String,
    /// Its own language; may be empty.
    pub language: String,
    /// What stands before the replies.
    pub prompt: Vec<Turn>,
    /// Further context of the question; may be empty.
    pub input: String,
    /// The better reply.
    pub chosen: String,
    /// The worse one.
    pub rejected: String,
}

impl Pair {
    /// The replies as examples to train on, the chosen one first.
    pub fn examples(self) -> [Example; 2] {
        let mut turns = self.prompt;
        let question = turns.pop().map(|t| t.content).unwrap_or_default();
        let of = |mark: &str, reply: String| Example {
            id: self.id.clone(),
            row: self.id.clone(),
            pair: mark.into(),
            split: "train".into(),
            question_language: self.language.clone(),
            answer_language: self.language.clone(),
            turns: turns.clone(),
            instruction: question.clone(),
            input: self.input.clone(),
            output: reply,
            output_ids: vec![],
            weight: 1.0,
        };
        [of(CHOSEN, self.chosen), of(REJECTED, self.rejected)]
    }
}

/// Reads the pairs of a file (see [`super::container`]). What is left out is counted: replies that are equal, and empty ones.
pub fn read(path: &Path, on_bad: OnBadRow) -> Result<(Vec<Pair>, Tally)> {
    let stem = stem(path);
    let (rows, tally) = read_rows(path, on_bad, &mut |object, tally, place| pair(object, tally, place))?;
    let named = |(number, mut pair): (usize, Pair)| {
        if pair.id.is_empty() {
            pair.id = format!("{stem}-{number}");
        }
        pair
    };
    Ok((rows.into_iter().map(named).collect(), tally))
}

/// Columns of the prompt where it is a text.
const PROMPT: [&str; 4] = ["prompt", "question", "instruction", "query"];

/// One row; `None` where it is left out, which `tally` notes.
pub fn pair(mut object: Map<String, Value>, tally: &mut Tally, place: &str) -> Result<Option<Pair>> {
    shapes::refuse_parts(&object)?;
    shapes::refuse_preferences(&object)?;
    let mut pair = Pair::default();
    if let Some(id) = ["id", "prompt_id"].iter().find_map(|key| object.remove(*key).filter(|v| !v.is_null()))
    {
        pair.id = id.as_str().map_or_else(|| id.to_string(), String::from);
    }
    pair.language = language_of(&mut object).unwrap_or_default();
    let mut said = |key: &str| -> Result<Said> {
        let value = object.remove(key).filter(|v| !v.is_null());
        Said::of(&value.with_context(|| format!("the row has no `{key}` reply"))?, tally, place)
            .with_context(|| format!("`{key}`"))
    };
    let (chosen, rejected) = (said("chosen")?, said("rejected")?);
    ensure!(
        chosen.before == rejected.before,
        "`chosen` and `rejected` differ before their last turn: one reply of the assistant to the same conversation was expected of each"
    );
    let given = prompt(&mut object, chosen.before.is_empty(), tally, place)?;
    pair.prompt = joined(given, chosen.before)?;
    system_column(&mut object, &mut pair.prompt)?;
    if let Some(input) =
        ["input", "context"].iter().find_map(|k| object.remove(*k).filter(|v| !shapes::is_empty(v)))
    {
        pair.input = turns::text(&input).context("the prompt's `input`")?;
    }
    let last = pair
        .prompt
        .last()
        .context("the row has no prompt: `prompt`, a text or a list of turns, was expected")?;
    ensure!(
        last.role == Role::User,
        "the prompt ends with a turn of the {}: the user's was expected",
        last.role.name()
    );
    ensure!(!last.content.trim().is_empty(), "the prompt is empty");
    (pair.chosen, pair.rejected) = (chosen.reply, rejected.reply);
    same_conversation(&mut object, &pair, tally, place)?;
    if pair.chosen.trim().is_empty() || pair.rejected.trim().is_empty() {
        tally.drop("an empty reply", place);
        return Ok(None);
    }
    if pair.chosen.trim() == pair.rejected.trim() {
        tally.drop("identical chosen and rejected", place);
        return Ok(None);
    }
    Ok(Some(pair))
}

/// A reply, and the conversation that it was given with.
struct Said {
    before: Vec<Turn>,
    reply: String,
}

impl Said {
    /// A text, a turn of the assistant, or a list of turns whose last is one.
    fn of(value: &Value, tally: &mut Tally, place: &str) -> Result<Said> {
        let turn = |v: &Value, tally: &mut Tally| turns::of_value(v, tally, place);
        let mut before: Vec<Turn> = match value {
            Value::Object(_) => vec![turn(value, tally)?],
            Value::Array(list) => list.iter().map(|v| turn(v, tally)).collect::<Result<_>>()?,
            text => return Ok(Said { before: vec![], reply: turns::text(text)? }),
        };
        let last = before.pop().filter(|t| t.role == Role::Assistant);
        let last = last.context("its last turn is none of the assistant")?;
        ensure!(last.weight == 1.0, "its reply has a weight, which replies of a pair do not have");
        Ok(Said { before, reply: last.content })
    }
}

/// The prompt, where the row gives one apart: a text or turns. `bare` replies were given without a conversation, so that it may stand where rows of answers have
/// theirs.
fn prompt(object: &mut Map<String, Value>, bare: bool, tally: &mut Tally, place: &str) -> Result<Vec<Turn>> {
    let places: &[&str] = if bare { &turns::PLACES } else { &[] };
    let keys = PROMPT.iter().chain(places);
    let found = keys.copied().find(|key| object.get(*key).is_some_and(|v| !shapes::is_empty(v)));
    let Some(key) = found else { return Ok(vec![]) };
    let value = object.remove(key).unwrap_or_default();
    let turns = match &value {
        Value::Array(list) => list.iter().map(|v| turns::of_value(v, tally, place)).collect::<Result<_>>(),
        text => turns::text(text).map(|text| vec![Turn::new(Role::User, &text)]),
    };
    let prompt = turns.with_context(|| format!("`{key}`"))?;
    for other in PROMPT.iter().filter(|other| **other != key) {
        let same = object.get(*other).is_none_or(|v| shapes::is_empty(v) || *v == value);
        ensure!(same, "`{key}` and `{other}` say different things: leave one of them out");
    }
    Ok(prompt)
}

/// The prompt that a row gives and the conversation that its replies were given with are one, or one of them is not there.
fn joined(given: Vec<Turn>, before: Vec<Turn>) -> Result<Vec<Turn>> {
    if given.is_empty() || before.is_empty() {
        return Ok(if given.is_empty() { before } else { given });
    }
    let text =
        |turns: &[Turn]| turns.iter().map(|t| (t.role, t.content.trim().to_string())).collect::<Vec<_>>();
    let (own, all) = (text(&given), text(&before));
    // A question alone is one of the conversation's.
    let is_one = own.len() == 1 && all.contains(&own[0]);
    ensure!(own == all || is_one, "`prompt` and the conversations of the replies say different things");
    Ok(before)
}

/// A further conversation in the row must be the chosen one, or the prompt.
fn same_conversation(
    object: &mut Map<String, Value>,
    pair: &Pair,
    tally: &mut Tally,
    place: &str,
) -> Result<()> {
    for key in turns::PLACES {
        let Some(Value::Array(list)) = object.remove(key).filter(|v| !shapes::is_empty(v)) else { continue };
        let turns: Vec<Turn> =
            list.iter().map(|v| turns::of_value(v, tally, place)).collect::<Result<_>>()?;
        let rest = turns
            .strip_prefix(&pair.prompt[..])
            .with_context(|| format!("`{key}` is another conversation"))?;
        let chosen = rest.iter().all(|t| t.role == Role::Assistant && t.content == pair.chosen);
        ensure!(chosen && rest.len() < 2, "`{key}` is another conversation than that of `chosen`");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
