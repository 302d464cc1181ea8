//! The rows of a task, and running them: prompts, replies, log-likelihoods.
pub mod alignment;
pub mod choices;
pub mod described;
mod likelihoods;
mod shots;
mod summaries;

use std::{collections::HashSet, iter, ops::Range, path::Path};

use crate::error::Error;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use super::sample::Sample;
use crate::{
    data::{
        conversation::Prompt,
        row_shard::{RowShard, ShardWriter},
        text_file::read_lines,
    },
    infer::{
        answerer::{AnswerOptions, Answerer},
        engine::EngineOptions,
    },
    metrics::mkqa,
    mt::self_translate::translation_prompt,
    pipeline::{
        devices::{Computing, Job},
        interrupt::interrupted,
    },
    recipe::{
        description::TaskDescription,
        eval::{EvalTask, TaskKind},
    },
    report::progress::Progress,
};

/// What a model does with a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Ask {
    /// The prompt is answered.
    Reply,
    /// The prompt is answered with the letter of one of so many choices.
    Letter(usize),
    /// These continuations of the prompt are scored.
    Choose(Vec<String>),
    /// The prompt itself is scored.
    Score,
    /// Its hidden states are compared with those of its translation.
    Align,
}

/// One row before a model has seen it.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// Without reply and likelihoods.
    pub sample: Sample,
    /// What is done with it.
    pub ask: Ask,
    /// The solved questions before its prompt, where they are not part of it.
    pub before: String,
    /// The row as it stands in its file.
    pub doc: Value,
}

/// Every row of `task`, in the file's order. Whatever is wrong with its files is an error here.
pub fn load(task: &EvalTask) -> Result<Vec<Item>> {
    let mut items = rows_of(task)?;
    ensure!(!items.is_empty(), "{} has no rows", task.file.display());
    if task.description.is_none() {
        shots::put_before(task, &mut items)?;
    }
    if task.limit > 0 {
        items.truncate(task.limit);
    }
    Ok(items)
}

fn rows_of(task: &EvalTask) -> Result<Vec<Item>> {
    match task.kind() {
        _ if task.description.is_some() => described::items(task, description(task)?),
        TaskKind::Perplexity => texts(task),
        TaskKind::Translation => translations(task),
        TaskKind::Qa => questions(task),
        TaskKind::Mkqa => mkqa_questions(task),
        TaskKind::Summary => summaries::articles(task),
        TaskKind::MultipleChoice => choices::items(task),
        TaskKind::Alignment => alignment::items(task),
    }
}

fn description(task: &EvalTask) -> Result<&TaskDescription> {
    Ok(&task.description.as_ref().context("there is no description")?.0)
}

/// What [`Sample::lengths`] has of choices: the characters of each, then the bytes of each.
fn lengths(choices: &[&str]) -> Vec<usize> {
    choices.iter().map(|c| c.chars().count()).chain(choices.iter().map(|c| c.len())).collect()
}

/// Some rows of a task: what is computed at once.
pub struct Piece {
    /// The task's number.
    pub task: usize,
    /// Which.
    pub rows: Range<usize>,
}

/// Runs `items`, those of task `number`, from where `writer` stands (`done` rows) to the end, some at a time, so that a killed task goes on where it was.
pub fn run_into(
    computing: &mut Computing<Piece, Vec<Sample>>,
    (number, task): (usize, &EvalTask),
    batch: EngineOptions,
    items: &[Item],
    (mut writer, done): (ShardWriter, usize),
    label: &str,
) -> Result<()> {
    let mut progress = Progress::new(label, items.len());
    progress.skip(done.min(items.len()));
    let mut next = done;
    let mut jobs = iter::from_fn(|| {
        let rest = items.get(next..).filter(|rest| !rest.is_empty())?;
        let rows = match task.kind() {
            // Each sentence is looked for among all: what a killed run wrote of them is left as it is.
            TaskKind::Alignment => 0..items.len(),
            _ => next..next + chunk_length(rest, batch),
        };
        next = rows.end;
        let stopped = "stopped: run the same command again to resume";
        let piece = Piece { task: number, rows: rows.clone() };
        let job = if interrupted() { Err(Error::interrupted(stopped).into()) } else { Ok(piece) };
        Some(Job { rows, about: (), job })
    });
    computing.each(&mut jobs, &mut |rows, (), samples| {
        let new = done.max(rows.start);
        samples?.iter().skip(new - rows.start).try_for_each(|sample| writer.push(sample))?;
        writer.flush()?;
        progress.advance(rows.end - new);
        Ok(())
    })?;
    progress.finish();
    writer.finish()
}

/// Rows that are run between two writes: four times those that decode together, or about sixteen budgets of tokens to score (at four bytes a
/// token), so that batches are full and little is lost to a kill.
fn chunk_length(items: &[Item], batch: EngineOptions) -> usize {
    let mut bytes = 0;
    let fits = |(i, item): &(usize, &Item)| {
        let prompt = item.sample.prompt.len();
        bytes += match &item.ask {
            Ask::Choose(continuations) => continuations.iter().map(|c| prompt + c.len()).sum(),
            Ask::Score => prompt,
            Ask::Reply | Ask::Letter(_) | Ask::Align => return *i < batch.batch_rows * 4,
        };
        bytes <= 64 * batch.batch_tokens
    };
    items.iter().enumerate().take_while(fits).count().max(1)
}

/// The samples of some rows.
pub fn run(
    answerer: &Answerer,
    task: &EvalTask,
    system: Option<&str>,
    batch: EngineOptions,
    items: &[Item],
) -> Result<Vec<Sample>> {
    match items.first().map(|i| &i.ask) {
        None => Ok(vec![]),
        Some(Ask::Score) => likelihoods::of_texts(answerer, batch, items),
        Some(Ask::Choose(_)) => likelihoods::of_choices(answerer, batch, items),
        Some(Ask::Reply | Ask::Letter(_)) => replies(answerer, task, system, batch, items),
        Some(Ask::Align) => alignment::run(answerer, task, batch, items),
    }
}

fn replies(
    answerer: &Answerer,
    task: &EvalTask,
    system: Option<&str>,
    batch: EngineOptions,
    items: &[Item],
) -> Result<Vec<Sample>> {
    let ending = match &task.description {
        Some(description) => Some(described::ending(task, &description.0)?),
        None => None,
    };
    let shown = |item: &Item| (!item.before.is_empty()).then(|| vec![shots::SEPARATOR.to_string()]);
    let options = AnswerOptions {
        stop_strings: match &ending {
            Some(ending) => ending.until.clone(),
            None => items.first().and_then(shown).unwrap_or_default(),
        },
        max_new_tokens: Some(task.reply_tokens()),
        temperature: Some(0.0),
        repetition_penalty: Some(1.0),
        no_repeat_ngram_size: Some(0),
        system: system.map(String::from),
        batch,
        ..Default::default()
    };
    let mut samples: Vec<Sample> = items.iter().map(|i| i.sample.clone()).collect();
    if task.kind() == TaskKind::Summary {
        let mut rows = samples.iter_mut().zip(items);
        rows.try_for_each(|(s, item)| summaries::fit_article(answerer, task, (system, &item.before), s))?;
    }
    samples.iter_mut().zip(items).for_each(|(s, item)| s.prompt.insert_str(0, &item.before));
    let ids: Vec<String> = samples.iter().map(|s| s.doc_id.to_string()).collect();
    let asked: Vec<_> =
        samples.iter().zip(&ids).map(|(s, id)| (id.as_str(), Prompt::new(None, &s.prompt, ""))).collect();
    let replies = answerer.answer(&asked, &options, &mut |_| {})?;
    for ((sample, item), reply) in samples.iter_mut().zip(items).zip(replies) {
        if let Some(ending) = &ending {
            // Spaces at its beginning may be what ends it.
            let whole = answerer.tokenizer.decode(&reply.ids)?;
            sample.response = ending.judged(&whole);
            sample.reply = (whole != sample.response).then_some(whole);
            continue;
        }
        let text = reply.text;
        sample.response = match (&item.ask, task.kind()) {
            (Ask::Letter(choices), _) => choices::named_letter(&text, *choices),
            // A translation of one line is one line.
            (_, TaskKind::Translation) => first_line(&text).into(),
            (_, TaskKind::Mkqa) => {
                first_line(&text).trim_matches(|c| "\"'“”„«»‘’`".contains(c)).trim().into()
            }
            _ => text.clone(),
        };
        sample.reply = (text != sample.response).then_some(text);
    }
    Ok(samples)
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default().trim()
}

fn texts(task: &EvalTask) -> Result<Vec<Item>> {
    let lines = read_lines(&task.file)?;
    let text = |(doc_id, prompt): (usize, String)| Item {
        doc: json!({"text": prompt}),
        sample: Sample { doc_id, prompt, ..Default::default() },
        ask: Ask::Score,
        before: String::new(),
    };
    Ok(lines.into_iter().enumerate().filter(|(_, l)| !l.trim().is_empty()).map(text).collect())
}

fn translations(task: &EvalTask) -> Result<Vec<Item>> {
    let reference = task.reference.as_deref().context("`reference` is missing")?;
    let (sources, references) = (read_lines(&task.file)?, read_lines(reference)?);
    ensure!(
        sources.len() == references.len(),
        "{} has {} lines, {} has {}: they must be parallel",
        task.file.display(),
        sources.len(),
        reference.display(),
        references.len()
    );
    let pairs = sources.iter().zip(references).enumerate();
    Ok(pairs
        .map(|(doc_id, (source, reference))| {
            let prompt = translation_prompt(task.prompt(), &task.source_language, &task.language, source);
            let doc = json!({"source": source, "reference": reference});
            reply(doc_id, prompt, vec![reference], doc)
        })
        .collect())
}

/// Refuses an id (`id` or `example_id`) that occurred before.
fn unique(row: &Value, place: &str, seen: &mut HashSet<String>) -> Result<()> {
    let id = ["id", "example_id"].iter().map(|key| &row[*key]).find(|v| !v.is_null());
    if let Some(id) = id {
        ensure!(seen.insert(id.to_string()), "{place}: the id {id} occurred before");
    }
    Ok(())
}

/// Rows of a JSONL file, their ids checked.
fn rows(path: &Path) -> Result<Vec<(String, Map<String, Value>)>> {
    let shard = RowShard::open(path)?;
    ensure!(!shard.is_empty(), "{} has no rows", path.display());
    let mut seen = HashSet::new();
    let mut out = vec![];
    for i in 0..shard.len() {
        let row: Map<String, Value> = shard.get(i)?;
        let row = Value::Object(row);
        unique(&row, &shard.place(i), &mut seen)?;
        if let Value::Object(row) = row {
            out.push((shard.place(i), row));
        }
    }
    Ok(out)
}

fn questions(task: &EvalTask) -> Result<Vec<Item>> {
    let mut out = vec![];
    for (doc_id, (place, row)) in rows(&task.file)?.into_iter().enumerate() {
        let text = |key: &str| row.get(key).and_then(Value::as_str).map(String::from);
        let list = |key: &str| {
            row.get(key)
                .and_then(Value::as_array)
                .map(|a| a.iter().filter_map(Value::as_str).map(String::from).collect())
        };
        let prompt = text("question").or_else(|| text("instruction"));
        let answers: Option<Vec<String>> =
            list("answers").or_else(|| text("answer").or_else(|| text("output")).map(|a| vec![a]));
        let (Some(question), Some(targets)) = (prompt, answers.filter(|a| !a.is_empty())) else {
            bail!("{place}: expected `question` (a text) and `answers` (texts)")
        };
        let prompt = translation_prompt(task.prompt(), &task.source_language, &task.language, &question);
        out.push(reply(doc_id, prompt, targets, Value::Object(row)));
    }
    Ok(out)
}

/// MKQA's official annotations: `queries` and `answers` by language.
fn mkqa_questions(task: &EvalTask) -> Result<Vec<Item>> {
    let golds = mkqa::read_gold(&task.file, &task.language)?;
    let mut out = vec![];
    for (doc_id, (line, gold)) in
        read_lines(&task.file)?.iter().filter(|l| !l.trim().is_empty()).zip(golds).enumerate()
    {
        let row: Value = serde_json::from_str(line)
            .with_context(|| format!("{}: question {}", task.file.display(), gold.id))?;
        let queries = &row["queries"];
        let code = crate::data::languages::without_script(&task.language);
        let query =
            queries[&task.language].as_str().or_else(|| queries[code].as_str()).with_context(|| {
                format!("{}: question {}: no text `queries.{code}`", task.file.display(), gold.id)
            })?;
        let prompt = translation_prompt(task.prompt(), &task.source_language, &task.language, query);
        out.push(reply(doc_id, prompt, gold.answers, row));
    }
    Ok(out)
}

/// A row whose prompt is answered.
fn reply(doc_id: usize, prompt: String, targets: Vec<String>, doc: Value) -> Item {
    let sample = Sample { doc_id, prompt, targets, ..Default::default() };
    Item { sample, ask: Ask::Reply, before: String::new(), doc }
}
