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
    let mut others = vec![];
    for (split, file) in &TOKENS[..2] {
        let mut own: Vec<&mut Unit> = units.iter_mut().filter(|u| u[0].0.split == *split).collect();
        if args.rows == Rows::Labels {
            others = mismatch(&mut own, &others, args.settings.max_length);
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

/// The tokens of a document up to its reply, and those of the reply.
type Parts = (Vec<u32>, Vec<u32>);

fn parts(document: &Document) -> Parts {
    let start = document.weights.iter().position(|w| *w != 0.0).unwrap_or(document.tokens.len());
    let (prompt, reply) = document.tokens.split_at(start);
    (prompt.to_vec(), reply.to_vec())
}

/// Puts behind each reply its prompt with another's reply, cut to `max_length`: what KTO's KL term is estimated on, as TRL does it within a batch. It is the
/// reply of the nearest row before (of the first ones, from the end on) whose prompt is another: the other reply of a pair is no foreign one. Where all have
/// one prompt, one of `others` is taken, and without any the reply of the row before. The parts of the documents.
fn mismatch(units: &mut [&mut Unit], others: &[Parts], max_length: usize) -> Vec<Parts> {
    let own: Vec<Parts> = units.iter().map(|unit| parts(&unit[0].1)).collect();
    let n = own.len();
    let differ = |i: usize, j: usize| own[i].0 != own[j].0;
    let mut from: Option<usize> = (1..n).rev().find(|&j| differ(0, j));
    let other = others.iter().rev().find(|other| own.first().is_some_and(|(prompt, _)| other.0 != *prompt));
    for (i, unit) in units.iter_mut().enumerate() {
        if i > 0 && differ(i, i - 1) {
            from = Some(i - 1);
        }
        let (prompt, _) = &own[i];
        let (_, reply) = from.map(|j| &own[j]).or(other).unwrap_or(&own[(i + n - 1) % n]);
        let mut tokens = [&prompt[..], &reply[..]].concat();
        tokens.truncate(max_length.max(prompt.len() + 1));
        let weights = (0..tokens.len()).map(|i| if i < prompt.len() { 0.0 } else { 1.0 }).collect();
        let example = &unit[0].0;
        let note = format!("{} {MISMATCHED}", example.id);
        let other = Example { pair: MISMATCHED.into(), ..example.clone() };
        unit.push((other, Document { tokens, weights, note }));
    }
    own
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of a prompt and a reply with their mismatched documents, each as (prompt, reply).
    fn mismatched(rows: &[(u32, u32)], others: &[Parts]) -> Vec<Vec<u32>> {
        let unit = |&(prompt, reply): &(u32, u32)| {
            let example = Example { id: format!("r{reply}"), pair: "desirable".into(), ..Example::default() };
            let document = Document {
                tokens: vec![1, prompt, reply],
                weights: vec![0.0, 0.0, 1.0],
                note: format!("r{reply} desirable"),
            };
            vec![(example, document)]
        };
        let mut units: Vec<Unit> = rows.iter().map(unit).collect();
        mismatch(&mut units.iter_mut().collect::<Vec<_>>(), others, 10);
        units.iter().for_each(|u| assert_eq!(u[1].1.weights, u[0].1.weights));
        units.into_iter().map(|u| u[1].1.tokens[1..].to_vec()).collect()
    }

    #[test]
    fn a_mismatched_reply_is_one_to_another_prompt() {
        // Single replies: that of the row before, as TRL has them.
        assert_eq!(mismatched(&[(2, 20), (3, 30), (4, 40)], &[]), [[2, 40], [3, 20], [4, 30]]);
        // Pairs taken apart: never the other reply of the pair.
        let pairs = [(2, 20), (2, 21), (3, 30), (3, 31), (4, 40), (4, 41)];
        assert_eq!(mismatched(&pairs, &[]), [[2, 41], [2, 41], [3, 21], [3, 21], [4, 31], [4, 31]]);
        // The last has the first one's prompt.
        assert_eq!(mismatched(&[(2, 20), (3, 30), (2, 21)], &[]), [[2, 30], [3, 20], [2, 30]]);
        // One held-out pair: a reply that is trained on, to another prompt.
        let others = [(vec![1, 9], vec![90]), (vec![1, 2], vec![22])];
        assert_eq!(mismatched(&pairs[..2], &others), [[2, 90], [2, 90]]);
        // Nothing but one prompt.
        assert_eq!(mismatched(&pairs[..2], &[]), [[2, 21], [2, 20]]);
    }
}
