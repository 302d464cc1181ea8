//! Rows of preferences: a prompt with a chosen and a rejected reply, as TRL, UltraFeedback and their like have them, or with one reply and whether it is
//! desirable.
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{earlier, language_of, read_rows, shapes, stem, system_column, turns};
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
    /// One reply to a prompt, and whether it is desirable; of a pair, both.
    Labels,
    /// Questions that the model answers while it is trained, each with what its teacher is shown; made of a folder of `assemble`.
    Questions,
    /// The same questions with their translated answers, each behind the question and behind what its teacher is shown.
    Taught,
}

/// The last word of the note of a chosen reply's document.
pub const CHOSEN: &str = "chosen";
/// The same of a rejected reply.
pub const REJECTED: &str = "rejected";
/// The same of a desirable reply.
pub const DESIRABLE: &str = "desirable";
/// The same of a reply that is none.
pub const UNDESIRABLE: &str = "undesirable";
/// The same of a prompt with the reply to another, which stands behind each labelled reply.
pub const MISMATCHED: &str = "mismatched";

/// The same of the prompt that a model in training answers.
pub const STUDENT: &str = "student";
/// The same of the prompt behind which its teacher reads the answer.
pub const TEACHER: &str = "teacher";

/// The same of a question with the answer to learn.
pub const STUDENT_ANSWER: &str = "student-answer";
/// The same of that answer behind what a teacher is shown.
pub const TEACHER_ANSWER: &str = "teacher-answer";

/// Whether a document of labelled replies, by its note, is a desirable one.
pub fn is_desirable(note: &str) -> bool {
    note.rsplit(' ').next() == Some(DESIRABLE)
}

impl Rows {
    /// What is trained on together, as people call it.
    pub fn units(self) -> &'static str {
        match self {
            Rows::Answers => "documents",
            Rows::Pairs => "pairs",
            Rows::Labels => "replies",
            Rows::Questions => "questions",
            Rows::Taught => "answers",
        }
    }

    /// What the documents of a unit are, each by the last word of its note.
    fn marks(self) -> &'static [&'static [&'static str]] {
        match self {
            Rows::Answers => &[&[]],
            Rows::Pairs => &[&[CHOSEN], &[REJECTED]],
            Rows::Labels => &[&[DESIRABLE, UNDESIRABLE], &[MISMATCHED]],
            Rows::Questions => &[&[STUDENT], &[TEACHER]],
            Rows::Taught => &[&[STUDENT_ANSWER], &[TEACHER_ANSWER]],
        }
    }

    /// Whether a teacher is shown more than the student.
    pub fn has_teacher(self) -> bool {
        matches!(self, Rows::Questions | Rows::Taught)
    }

    /// Documents of a unit in a token shard.
    pub fn documents(self) -> usize {
        self.marks().len()
    }

    /// Whether the documents of a shard from `first` on are one unit of these rows.
    fn is_unit(self, shard: &TokenShard, first: usize) -> bool {
        let split = |i: usize| {
            let note = (i < shard.len()).then(|| shard.note(i))?;
            note.rsplit_once(' ').map(|(id, mark)| (id.to_string(), mark.to_string()))
        };
        let Some((own, _)) = split(first) else { return self == Rows::Answers };
        self.marks().iter().enumerate().all(|(i, marks)| {
            split(first + i)
                .is_some_and(|(id, mark)| marks.is_empty() || (id == own && marks.contains(&mark.as_str())))
        })
    }

    /// What the documents of a token shard are, by the notes of the first.
    fn of_notes(shard: &TokenShard) -> Rows {
        let found = [Rows::Pairs, Rows::Labels, Rows::Questions, Rows::Taught]
            .into_iter()
            .find(|rows| rows.is_unit(shard, 0));
        found.unwrap_or(Rows::Answers)
    }

    /// Rows of this kind in words, and the objectives that learn from them.
    fn in_words(self) -> (&'static str, &'static str) {
        match self {
            Rows::Answers => ("answers to learn", "sft"),
            Rows::Pairs => ("pairs of a chosen and a rejected reply", "dpo or orpo"),
            Rows::Labels => ("replies that are desirable or not", "kto"),
            Rows::Questions => ("questions without answers", "on-policy"),
            Rows::Taught => ("answers with what a teacher is shown", "top-k"),
        }
    }
}

impl TokenShard {
    /// The shard with its documents in units of `rows`.
    ///
    /// # Errors
    /// It holds rows of another kind, or documents without their partners.
    pub fn holding(self, rows: Rows) -> Result<TokenShard> {
        let path = self.path().display().to_string();
        if self.is_empty() {
            return Ok(self);
        }
        let found = Rows::of_notes(&self);
        let ((is, objective), (wanted, _)) = (found.in_words(), rows.in_words());
        let message =
            || format!("{path}: it holds {is}, and {wanted} were expected: --objective {objective} takes it");
        ensure!(found == rows, Error::bad_input(&path, message()));
        let mut firsts = (0..self.len()).step_by(rows.documents());
        if rows != Rows::Answers
            && let Some(first) = firsts.find(|&first| !rows.is_unit(&self, first))
        {
            let message = format!("{path}: document {} has no partner: run `pack` again", self.note(first));
            bail!(Error::bad_input(&path, message));
        }
        self.grouped(rows.documents())
    }
}

/// A prompt, whose last turn is the user's, and what is said to it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Judged {
    /// Its own id; may be empty.
    pub id: String,
    /// Its own language; may be empty.
    pub language: String,
    /// What stands before the replies.
    pub prompt: Vec<Turn>,
    /// Further context of the question; may be empty.
    pub input: String,
    /// The replies, each with what it is.
    pub replies: Vec<(&'static str, String)>,
}

impl Judged {
    /// The replies as examples to train on, in order.
    pub fn examples(self) -> Vec<Example> {
        let mut turns = self.prompt;
        let question = turns.pop().map(|t| t.content).unwrap_or_default();
        let of = |(mark, reply): (&'static str, String)| Example {
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
            gold: false,
        };
        self.replies.into_iter().map(of).collect()
    }
}

/// Reads the rows of a file (see [`super::container`]), of which [`Rows::Labels`] takes pairs too, each as two. What is left out is counted: replies that are equal,
/// and empty ones.
pub fn read(path: &Path, rows: Rows, on_bad: OnBadRow) -> Result<(Vec<Judged>, Tally)> {
    let stem = stem(path);
    let mut split = 0;
    let mut one = |object: Map<String, Value>, tally: &mut Tally, place: &str| {
        let labelled = rows == Rows::Labels && !is_pair(&object);
        let mut judged = if labelled { label(object, tally, place)? } else { pair(object, tally, place)? };
        if let Some(judged) = judged.as_mut().filter(|_| rows == Rows::Labels && !labelled) {
            split += 1;
            tally.note("pair taken as two rows, a desirable and an undesirable reply", place);
            judged.replies[0].0 = DESIRABLE;
            judged.replies[1].0 = UNDESIRABLE;
        }
        Ok(judged)
    };
    let (found, mut tally) = read_rows(path, on_bad, &mut one)?;
    tally.read += split;
    tally.kept += split;
    let named = |(number, mut judged): (usize, Judged)| {
        if judged.id.is_empty() {
            judged.id = format!("{stem}-{number}");
        }
        judged
    };
    Ok((found.into_iter().map(named).collect(), tally))
}

fn is_pair(object: &Map<String, Value>) -> bool {
    ["chosen", "rejected"].iter().any(|key| object.get(*key).is_some_and(|v| !v.is_null()))
}

/// Columns of the prompt where it is a text.
const PROMPT: [&str; 4] = ["prompt", "question", "instruction", "query"];

/// A row of a chosen and a rejected reply; `None` where it is left out, which `tally` notes.
pub fn pair(mut object: Map<String, Value>, tally: &mut Tally, place: &str) -> Result<Option<Judged>> {
    let mut judged = begin(&mut object)?;
    let chosen = Said::take(&mut object, "chosen", tally, place)?;
    let rejected = Said::take(&mut object, "rejected", tally, place)?;
    ensure!(
        chosen.before == rejected.before,
        "`chosen` and `rejected` differ before their last turn: one reply of the assistant to the same conversation was expected of each"
    );
    ask(&mut judged, &mut object, chosen.before, tally, place)?;
    same_conversation(&mut object, &judged, &chosen.reply, tally, place)?;
    if chosen.reply.trim().is_empty() || rejected.reply.trim().is_empty() {
        tally.drop("an empty reply", place);
        return Ok(None);
    }
    if chosen.reply.trim() == rejected.reply.trim() {
        tally.drop("identical chosen and rejected", place);
        return Ok(None);
    }
    judged.replies = vec![(CHOSEN, chosen.reply), (REJECTED, rejected.reply)];
    Ok(Some(judged))
}

/// A row of a `completion` and a true or false `label`; `None` where it is left out, which `tally` notes.
pub fn label(mut object: Map<String, Value>, tally: &mut Tally, place: &str) -> Result<Option<Judged>> {
    let mut judged = begin(&mut object)?;
    let label = object.remove("label").unwrap_or_default();
    let is_good =
        label.as_bool().with_context(|| format!("its `label` is {label}, true or false was expected"))?;
    let said = Said::take(&mut object, "completion", tally, place)?;
    ask(&mut judged, &mut object, said.before, tally, place)?;
    same_conversation(&mut object, &judged, &said.reply, tally, place)?;
    if said.reply.trim().is_empty() {
        tally.drop("an empty reply", place);
        return Ok(None);
    }
    judged.replies = vec![(if is_good { DESIRABLE } else { UNDESIRABLE }, said.reply)];
    Ok(Some(judged))
}

/// What every row may have; what cannot be trained on is refused.
fn begin(object: &mut Map<String, Value>) -> Result<Judged> {
    shapes::refuse_parts(object)?;
    shapes::refuse_preferences(object)?;
    let mut judged = Judged { language: language_of(object).unwrap_or_default(), ..Judged::default() };
    let id = ["id", "prompt_id"].iter().find_map(|key| object.remove(*key).filter(|v| !v.is_null()));
    if let Some(id) = id {
        judged.id = id.as_str().map_or_else(|| id.to_string(), String::from);
    }
    Ok(judged)
}

/// The prompt of a row, whose replies were given with the conversation `before`, if with any.
fn ask(
    judged: &mut Judged,
    object: &mut Map<String, Value>,
    before: Vec<Turn>,
    tally: &mut Tally,
    place: &str,
) -> Result<()> {
    let mut given = prompt(object, before.is_empty(), tally, place)?;
    let earlier = earlier(object)?;
    ensure!(
        earlier.is_empty() || (before.is_empty() && given.len() == 1),
        "`history` or `turns` beside a conversation: put everything that stands before the replies into one of them"
    );
    given.splice(0..0, earlier);
    judged.prompt = joined(given, before)?;
    system_column(object, &mut judged.prompt)?;
    let input = ["input", "context"].iter().find_map(|k| object.remove(*k).filter(|v| !shapes::is_empty(v)));
    if let Some(input) = input {
        judged.input = turns::text(&input).context("the prompt's `input`")?;
    }
    let last = judged.prompt.last();
    let last = last.context("the row has no prompt: `prompt`, a text or a list of turns, was expected")?;
    let role = last.role.name();
    ensure!(last.role == Role::User, "the prompt ends with a turn of the {role}: the user's was expected");
    ensure!(!last.content.trim().is_empty(), "the prompt is empty");
    Ok(())
}

/// A reply, and the conversation that it was given with.
struct Said {
    before: Vec<Turn>,
    reply: String,
}

impl Said {
    /// The reply in column `key`.
    fn take(object: &mut Map<String, Value>, key: &str, tally: &mut Tally, place: &str) -> Result<Said> {
        let value = object.remove(key).filter(|v| !v.is_null());
        let value = value.with_context(|| format!("the row has no `{key}` reply"))?;
        Said::of(&value, tally, place).with_context(|| format!("`{key}`"))
    }

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
        ensure!(last.weight == 1.0, "its reply has a weight, which replies that are judged do not have");
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

/// A further conversation in the row must be the prompt, or the prompt with `reply`.
fn same_conversation(
    object: &mut Map<String, Value>,
    judged: &Judged,
    reply: &str,
    tally: &mut Tally,
    place: &str,
) -> Result<()> {
    for key in turns::PLACES {
        let Some(Value::Array(list)) = object.remove(key).filter(|v| !shapes::is_empty(v)) else { continue };
        let turns: Vec<Turn> =
            list.iter().map(|v| turns::of_value(v, tally, place)).collect::<Result<_>>()?;
        let rest = turns.strip_prefix(&judged.prompt[..]);
        let same = |t: &Turn| t.role == Role::Assistant && t.content == reply;
        let is_same = rest.is_some_and(|rest| rest.len() < 2 && rest.iter().all(same));
        ensure!(is_same, "`{key}` is another conversation than that of the prompt and the better reply");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
