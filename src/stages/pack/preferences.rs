//! Rows of preferences become documents side by side: what belongs together is kept, left out, and held out together.
use std::{collections::BTreeMap, path::Path};

use anyhow::{Result, ensure};
use rayon::prelude::*;
use serde_json::json;

use super::{Args, Validation, encode, hold_out, languages, within_embedding};
use crate::{
    data::{
        questions::preferences::{self, Rows},
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
    let together = args.rows.documents();
    let read = tally.read;
    let units = encoded(examples, together, encoder, &args.settings, &mut tally)?;
    if !tally.is_whole() {
        say!("pack: {tally}");
    }
    let written = units.len();
    let mut counts = Counts { read, written, ..Counts::default() };
    counts = tally.reasons().fold(counts, |counts, (reason, n)| counts.dropping(reason, n));
    let mut summary = serde_json::Map::new();
    summary.insert("rows".into(), tally.to_json());
    for (split, file) in &TOKENS[..2] {
        let own: Vec<&(Example, Document)> =
            units.iter().filter(|u| u[0].0.split == *split).flatten().collect();
        let documents: Vec<Document> = own.iter().map(|(_, d)| d.clone()).collect();
        token_shard::write(&open.path(file), &documents)?;
        let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
        own.iter().for_each(|(e, _)| *kinds.entry(&e.pair).or_default() += 1);
        let tokens: usize = documents.iter().map(|d| d.tokens.len()).sum();
        let compared: usize = documents.iter().flat_map(|d| &d.weights).filter(|w| **w != 0.0).count();
        let (n, kind) = (documents.len() / together, args.rows.unit());
        say!("pack: {split}: {n} {kind}s, {tokens} tokens, {compared} of them compared");
        if *split == "train" {
            ensure!(n > 0, "no {kind} to train on is left in {}: {tally}", args.examples.display());
            summary.insert("languages".into(), json!(languages(own.iter().map(|(e, _)| e))));
        }
        let about = json!({"documents": documents.len(), "tokens": tokens, "trained-tokens": compared, "pairs": kinds});
        summary.insert((*split).into(), about);
    }
    Ok(Made::new(summary)?.counting(counts))
}

/// The examples of the file, those of a unit behind each other, some held out as the arguments say.
fn read_all(args: &Args) -> Result<(Vec<Example>, Tally)> {
    let on_bad = args.settings.on_bad_row;
    let (mut examples, mut tally) = read(&args.examples, on_bad)?;
    match &args.validation {
        None => {}
        Some(Validation::Share(share)) => hold_out(&mut examples, *share),
        Some(Validation::File(file)) => {
            let (others, more) = read(file, on_bad)?;
            tally.add(&more);
            let held_out =
                |e: Example| Example { id: format!("validation-{}", e.id), split: TOKENS[1].0.into(), ..e };
            examples.extend(others.into_iter().map(held_out));
        }
    }
    Ok((examples, tally))
}

fn read(path: &Path, on_bad: OnBadRow) -> Result<(Vec<Example>, Tally)> {
    let folder = || format!("{} is a folder: a file of preference rows was expected", path.display());
    ensure!(!path.is_dir(), Error::bad_input(path.display(), folder()));
    let (pairs, tally) = preferences::read(path, on_bad)?;
    Ok((pairs.into_iter().flat_map(|pair| pair.examples()).collect(), tally))
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
