//! Rows of preferences become documents side by side: what belongs together is kept, left out, and held out together.
use std::{collections::BTreeMap, path::Path};

use anyhow::{Result, ensure};
use rayon::prelude::*;
use serde_json::json;

use super::{Args, Validation, encode, hold_out, languages, within_embedding};
use crate::{
    data::{
        questions::preferences::{self, Judged, MISMATCHED, Rows},
        record::Example,
        tally::{OnBadRow, Tally},
        template::{ChatTemplate, TrainOn},
        token_shard::{self, Document},
        tokenizer::Tokenizer,
    },
    error::Error,
    pipeline::{
        manifest::Counts,
        stage::{Made, Open},
        work_dir::TOKENS,
    },
    recipe::pack::PackSettings,
    report::out::say,
};

/// What turns examples into documents.
pub(super) struct Encoder<'a> {
    pub tokenizer: &'a Tokenizer,
    pub template: &'a ChatTemplate,
    /// Rows of the model's embedding.
    pub embedding: Option<usize>,
}

/// What is compared or judged together: an example and its document each.
type Unit = Vec<(Example, Document)>;

/// Settings that say nothing about preferences.
///
/// # Errors
/// Learning prompts.
pub(super) fn check(rows: Rows, settings: &PackSettings) -> Result<()> {
    let message = "train-on-prompt is for answers to learn: of preferences the replies alone are compared";
    let apt = rows == Rows::Answers || !settings.train_on_prompt;
    ensure!(apt, Error::setting("pack.train-on-prompt", message));
    Ok(())
}

/// The work of the stage on rows of preferences.
pub(super) fn pack(args: &Args, encoder: &Encoder, open: &mut Open) -> Result<Made> {
    let (examples, mut tally) = read_all(args)?;
    let read = tally.read;
    // A pair is tokenised together, a labelled reply alone.
    let together = if args.rows == Rows::Pairs { 2 } else { 1 };
    let mut units = encoded(examples, together, encoder, &args.settings, &mut tally)?;
    if !tally.is_whole() {
        say!("pack: {tally}");
    }
    let mut counts = Counts { read, written: units.len(), ..Counts::default() };
    counts = tally.reasons().fold(counts, |counts, (reason, n)| counts.dropping(reason, n));
    let mut summary = serde_json::Map::new();
    summary.insert("rows".into(), tally.to_json());
    for (split, file) in &TOKENS[..2] {
        let mut own: Vec<&mut Unit> = units.iter_mut().filter(|u| u[0].0.split == *split).collect();
        if args.rows == Rows::Labels {
            mismatch(&mut own, args.settings.max_length);
        }
        let own: Vec<&(Example, Document)> = own.into_iter().flat_map(|unit| unit.iter()).collect();
        let documents: Vec<Document> = own.iter().map(|(_, d)| d.clone()).collect();
        token_shard::write(&open.path(file), &documents)?;
        let (n, kind) = (documents.len() / args.rows.documents(), args.rows.units());
        let tokens: usize = documents.iter().map(|d| d.tokens.len()).sum();
        let judged = || own.iter().filter(|(e, _)| e.pair != MISMATCHED);
        let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
        judged().for_each(|(e, _)| *kinds.entry(&e.pair).or_default() += 1);
        let compared = judged().flat_map(|(_, d)| &d.weights).filter(|w| **w != 0.0).count();
        let named: Vec<String> = kinds.iter().map(|(name, n)| format!("{n} {name}")).collect();
        say!(
            "pack: {split}: {n} {kind} ({}), {tokens} tokens, {compared} of them compared",
            named.join(", ")
        );
        if *split == "train" {
            let needed = if args.rows == Rows::Labels { 2 } else { 1 };
            let few = || {
                format!(
                    "{}: {n} {kind} are left to train on, {needed} at least are needed: {tally}",
                    args.examples.display()
                )
            };
            ensure!(n >= needed, Error::bad_input(args.examples.display(), few()));
            summary.insert("languages".into(), json!(languages(judged().map(|(e, _)| e))));
        }
        let about = json!({"documents": documents.len(), "tokens": tokens, "trained-tokens": compared, "pairs": kinds});
        summary.insert((*split).into(), about);
    }
    Ok(Made::new(summary)?.counting(counts))
}

/// Puts behind each reply its prompt with the reply to the one before (of the first, the last), cut to `max_length`: what KTO's KL term is estimated on, as TRL
/// does it within a batch.
fn mismatch(units: &mut [&mut Unit], max_length: usize) {
    let start = |d: &Document| d.weights.iter().position(|w| *w != 0.0).unwrap_or(d.tokens.len());
    let reply = |unit: &Unit| unit[0].1.tokens[start(&unit[0].1)..].to_vec();
    let Some(mut before) = units.last().map(|unit| reply(unit)) else { return };
    for unit in units {
        let own = reply(unit);
        let (example, document) = &unit[0];
        let prompt = start(document);
        let mut tokens = [&document.tokens[..prompt], &before[..]].concat();
        tokens.truncate(max_length.max(prompt + 1));
        let weights = (0..tokens.len()).map(|i| if i < prompt { 0.0 } else { 1.0 }).collect();
        let note = format!("{} {MISMATCHED}", example.id);
        let other = Example { pair: MISMATCHED.into(), ..example.clone() };
        unit.push((other, Document { tokens, weights, note }));
        before = own;
    }
}

/// The examples of the file, those of a unit behind each other, some held out as the arguments say.
fn read_all(args: &Args) -> Result<(Vec<Example>, Tally)> {
    let on_bad = args.settings.on_bad_row;
    let (mut examples, mut tally) = read(&args.examples, args.rows, on_bad)?;
    match &args.validation {
        None => {}
        Some(Validation::Share(share)) => hold_out(&mut examples, *share),
        Some(Validation::File(file)) => {
            let (others, more) = read(file, args.rows, on_bad)?;
            tally.add(&more);
            let held_out =
                |e: Example| Example { id: format!("validation-{}", e.id), split: TOKENS[1].0.into(), ..e };
            examples.extend(others.into_iter().map(held_out));
        }
    }
    Ok((examples, tally))
}

fn read(path: &Path, rows: Rows, on_bad: OnBadRow) -> Result<(Vec<Example>, Tally)> {
    let folder = || format!("{} is a folder: a file of preference rows was expected", path.display());
    ensure!(!path.is_dir(), Error::bad_input(path.display(), folder()));
    let (judged, tally) = preferences::read(path, rows, on_bad)?;
    Ok((judged.into_iter().flat_map(Judged::examples).collect(), tally))
}

/// Every unit with its documents, in order; a unit is left out as a whole, and counted.
fn encoded(
    examples: Vec<Example>,
    together: usize,
    encoder: &Encoder,
    settings: &PackSettings,
    tally: &mut Tally,
) -> Result<Vec<Unit>> {
    // Of a conversation the last reply is what is compared.
    let settings = PackSettings { train_on: TrainOn::Last, ..settings.clone() };
    let document = |e: &Example| {
        let document = encode(e, encoder.tokenizer, encoder.template, &settings)?;
        within_embedding(document, encoder.embedding, encoder.tokenizer)
    };
    let results: Vec<Result<Option<Document>>> = examples.par_iter().map(document).collect();
    let (mut units, mut examples, mut results) = (vec![], examples.into_iter(), results.into_iter());
    loop {
        let own: Vec<Example> = examples.by_ref().take(together).collect();
        let Some(id) = own.first().map(|e| e.id.clone()) else { return Ok(units) };
        let made: Result<Option<Vec<Document>>> =
            results.by_ref().take(together).collect::<Vec<_>>().into_iter().collect();
        let mut left_out = |reason: &str| {
            tally.kept -= 1;
            tally.drop(reason, &format!("row {id}"));
        };
        match made {
            Ok(Some(made)) if made.len() > 1 && made[1..].iter().all(|d| d.tokens == made[0].tokens) => {
                left_out("chosen and rejected are the same tokens")
            }
            Ok(Some(made)) => units.push(own.into_iter().zip(made).collect()),
            Ok(None) => left_out("too long"),
            Err(e) if settings.on_bad_row == OnBadRow::Skip => left_out(&format!("{e:#}")),
            Err(e) => return Err(e.context(format!("row {id}"))),
        }
    }
}
