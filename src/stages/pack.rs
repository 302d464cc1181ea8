//! `sdrrl pack`: examples become token shards, rendered with the model's chat template.
mod preferences;
mod prompts;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    str::FromStr,
};

use crate::error::Error;
use anyhow::{Result, bail, ensure};
use rayon::prelude::*;
use serde_json::json;
use xxhash_rust::xxh3::Xxh3;

use crate::pipeline::{
    identity::{Identity, Inputs},
    manifest::{Counts, Manifest},
    rows::{apart, open_rows},
    stage::{self, Made, Open, Stage},
    work_dir::TOKENS,
};
use crate::{
    data::{
        conversation::Prompt,
        questions::{self, preferences::Rows},
        record::Example,
        row_shard::RowShard,
        tally::{OnBadRow, Tally},
        template::ChatTemplate,
        token_shard::{self, Document},
        tokenizer::Tokenizer,
    },
    models::weights::{embedding_rows, resolve},
    recipe::pack::PackSettings,
    report::out::say,
};

/// Arguments of `pack`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Model whose tokenizer and chat template are used
    #[arg(long)]
    pub model: String,
    /// Examples: a directory written by `assemble`, or a file of questions with answers; - is standard input
    #[arg(long)]
    pub examples: PathBuf,
    /// What the validation loss is measured on: a share of the rows (0: none), or a file of others. Only for a file of questions with answers; `assemble` has
    /// chosen already
    #[arg(long, value_name = "SHARE|FILE", value_parser = str::parse::<Validation>)]
    pub validation: Option<Validation>,
    /// Directory for train.tokens and validation.tokens
    #[arg(long)]
    pub out: PathBuf,
    /// What the rows of the file are (docs/formats.md); `train --objective` says what each is for
    #[arg(long, value_enum, default_value = "answers")]
    pub rows: Rows,
    /// How
    #[command(flatten)]
    pub settings: PackSettings,
}

/// Rows that are held out.
#[derive(Clone, Debug, PartialEq)]
pub enum Validation {
    /// This share of them; rows with the same question stay together.
    Share(f64),
    /// Those of another file.
    File(PathBuf),
}

impl FromStr for Validation {
    type Err = String;
    fn from_str(s: &str) -> Result<Validation, String> {
        match s.parse::<f64>() {
            Ok(share) if (0.0..1.0).contains(&share) => Ok(Validation::Share(share)),
            Ok(share) => Err(format!(
                "{share} is no share: a number of at least 0 and below 1, or a file, was expected"
            )),
            Err(_) => Ok(Validation::File(s.into())),
        }
    }
}

/// Runs the stage.
pub fn run(args: &Args) -> Result<()> {
    args.settings.check(args.rows)?;
    stage::run(&mut Pack { args }).map(drop)
}

struct Pack<'a> {
    args: &'a Args,
}

impl Stage for Pack<'_> {
    const NAME: &'static str = "pack";
    const FILES: &'static [&'static str] = &["train.tokens", "validation.tokens", "source.tokens"];

    fn out(&self) -> &Path {
        &self.args.out
    }

    fn check_folder(&self, _: &Manifest) -> Result<()> {
        apart(&self.args.examples, self.out())
    }

    fn identity(&self) -> Result<Identity> {
        let mut identity = Identity::of(&self.args.settings)?;
        if self.args.rows != Rows::Answers {
            identity = identity.with("rows", self.args.rows)?;
        }
        match self.args.validation {
            Some(Validation::Share(share)) => identity.with("validation", share),
            _ => Ok(identity),
        }
    }

    fn inputs(&self) -> Result<Inputs> {
        let held_out = match &self.args.validation {
            Some(Validation::File(file)) => Some(file.as_path()),
            _ => None,
        };
        let inputs = Inputs::new().file("examples", &self.args.examples).maybe("validation", held_out);
        Ok(inputs.tokenizer("model", &resolve(&self.args.model)?)?.template(&self.args.settings.template))
    }

    fn run(&mut self, open: &mut Open) -> Result<Made> {
        let args = self.args;
        let path = resolve(&args.model)?;
        let tokenizer = Tokenizer::load(&path)?;
        let embedding = embedding_rows(&path);
        let template = ChatTemplate::load(&args.settings.template, &tokenizer)?;
        let encoder = preferences::Encoder { tokenizer: &tokenizer, template: &template, embedding };
        match args.rows {
            Rows::Answers => {}
            Rows::Questions | Rows::Taught => return prompts::pack(args, &encoder, open),
            Rows::Pairs | Rows::Labels => return preferences::pack(args, &encoder, open),
        }
        let (all, mut tally) = read_all(args)?;
        let made = encoded(all, &mut tally, args.settings.on_bad_row, &|e| {
            let document = encode(e, &tokenizer, &template, &args.settings)?;
            within_embedding(document, embedding, &tokenizer)
        })?;
        if !tally.is_whole() {
            say!("pack: {tally}");
        }
        let mut counts = Counts { read: tally.read, ..Counts::default() };
        counts = tally.reasons().fold(counts, |counts, (reason, n)| counts.dropping(reason, n));
        let mut summary = serde_json::Map::new();
        summary.insert("rows".into(), tally.to_json());
        for (split, file) in TOKENS {
            let pairs = || made.iter().filter(|(e, _)| e.split == split);
            let documents: Vec<Document> = pairs().filter_map(|(_, d)| d.clone()).collect();
            let mut by_pair: BTreeMap<&str, usize> = BTreeMap::new();
            pairs().filter(|(_, d)| d.is_some()).for_each(|(e, _)| *by_pair.entry(&e.pair).or_default() += 1);
            let tokens: usize = documents.iter().map(|d| d.tokens.len()).sum();
            let trained: usize = documents.iter().flat_map(|d| &d.weights).filter(|w| **w != 0.0).count();
            let dropped = pairs().filter(|(_, d)| d.is_none()).count();
            counts.written += documents.len();
            counts = counts.dropping("too long", dropped);
            if split == "source" && documents.is_empty() {
                continue;
            }
            token_shard::write(&open.path(file), &documents)?;
            say!(
                "pack: {split}: {} documents, {tokens} tokens, {trained} of them trained, {dropped} too long",
                documents.len()
            );
            if split == "train" {
                let kept = pairs().filter(|(_, d)| d.is_some());
                summary.insert("languages".into(), json!(languages(kept.map(|(e, _)| e))));
                if pairs().any(|(e, _)| e.gold) {
                    summary.insert("gold".into(), json!(true));
                }
            }
            summary.insert(split.into(), json!({"documents": documents.len(), "tokens": tokens, "trained-tokens": trained, "dropped": dropped, "pairs": by_pair}));
        }
        ensure!(
            summary["train"]["documents"] != json!(0),
            "no training document is left in {}",
            args.examples.display()
        );
        Ok(Made::new(summary)?.counting(counts))
    }
}

/// All examples, some of them held out as the arguments say, and what was left out.
fn read_all(args: &Args) -> Result<(Vec<Example>, Tally)> {
    let (mut examples, mut tally) = read_examples(&args.examples, args.settings.on_bad_row)?;
    if let Some(e) = examples.iter().find(|e| TOKENS.iter().all(|(split, _)| *split != e.split)) {
        bail!("example {}: its split `{}` is none of train, validation, source", e.id, e.split);
    }
    let Some(validation) = &args.validation else { return Ok((examples, tally)) };
    let other =
        || format!("the examples in {} are split already: leave --validation out", args.examples.display());
    ensure!(examples.iter().all(|e| e.pair == "file"), Error::setting("validation", other()));
    match validation {
        Validation::Share(share) => hold_out(&mut examples, *share),
        Validation::File(file) => {
            let (others, more) = read_examples(file, args.settings.on_bad_row)?;
            tally.add(&more);
            let renamed =
                |e: Example| Example { id: format!("validation-{}", e.id), split: TOKENS[1].0.into(), ..e };
            examples.extend(others.into_iter().map(renamed));
        }
    }
    Ok((examples, tally))
}

/// Every example with its document, in order. A row of a file whose conversation the template refuses may be left out, and is counted.
fn encoded(
    examples: Vec<Example>,
    tally: &mut Tally,
    on_bad: OnBadRow,
    encode: &(dyn Fn(&Example) -> Result<Option<Document>> + Sync),
) -> Result<Vec<(Example, Option<Document>)>> {
    let results: Vec<Result<Option<Document>>> = examples.par_iter().map(encode).collect();
    let mut made = vec![];
    for (example, result) in examples.into_iter().zip(results) {
        match result {
            Ok(document) => made.push((example, document)),
            Err(e) if on_bad == OnBadRow::Skip && example.pair == "file" => {
                tally.kept -= 1;
                tally.drop(&format!("{e:#}"), &format!("example {}", example.id));
            }
            Err(e) => return Err(e.context(format!("example {}", example.id))),
        }
    }
    Ok(made)
}

/// Holds out a share of the examples, at least one where there is a share and something is left. Which ones depends on the questions alone; equal questions
/// stay on one side.
fn hold_out(examples: &mut [Example], share: f64) {
    let mut groups: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (i, e) in examples.iter().enumerate() {
        let mut hash = Xxh3::with_seed(42);
        e.turns.iter().for_each(|t| hash.update(format!("{}\0{}\0", t.role.name(), t.content).as_bytes()));
        hash.update(format!("{}\0{}", e.instruction, e.input).as_bytes());
        groups.entry(hash.digest()).or_default().push(i);
    }
    let wanted = share * examples.len() as f64;
    let wanted = if share > 0.0 { wanted.round().max(1.0) as usize } else { 0 };
    let (mut held, mut left) = (0, groups.len());
    for group in groups.into_values() {
        if held >= wanted || left == 1 {
            break;
        }
        held += group.len();
        left -= 1;
        group.into_iter().for_each(|i| examples[i].split = TOKENS[1].0.into());
    }
}

/// How many examples each language has, as far as it is known.
fn languages<'a>(examples: impl Iterator<Item = &'a Example>) -> BTreeMap<&'a str, usize> {
    let mut languages: BTreeMap<&str, usize> = BTreeMap::new();
    examples.for_each(|e| *languages.entry(&e.answer_language).or_default() += 1);
    languages.remove("");
    languages
}

/// Examples of a directory, or of a file of questions with answers (all for training), and what was left out of it.
fn read_examples(path: &Path, on_bad: OnBadRow) -> Result<(Vec<Example>, Tally)> {
    let whole = |examples: Vec<Example>| {
        let mut tally = Tally::default();
        (tally.read, tally.kept) = (examples.len(), examples.len());
        (examples, tally)
    };
    if path.is_dir() {
        return Ok(whole(open_rows(path)?.iter().collect::<Result<_>>()?));
    }
    if questions::first_row_has(path, &["pair", "split", "row"])? {
        let shard = RowShard::open(path)?;
        return Ok(whole(shard.iter().collect::<Result<_>>()?));
    }
    let (sources, mut tally) = questions::read(path, "", on_bad)?;
    let mut examples = vec![];
    for source in sources {
        let place = format!("{}:{}", path.display(), source.origin.line);
        match source.into_example(&mut tally, &place) {
            Ok(Some(example)) => examples.push(example),
            Ok(None) => {}
            Err(e) if on_bad == OnBadRow::Skip => tally.drop(&format!("{e:#}"), &place),
            Err(e) => return Err(e.context(Error::bad_input(&place, place.clone()))),
        }
    }
    tally.kept = examples.len();
    let empty = || format!("{}: nothing is left to train on: {tally}", path.display());
    ensure!(!examples.is_empty(), Error::bad_input(path.display(), empty()));
    Ok((examples, tally))
}

/// A document, unless it has a token that the model's embedding has no row for: a tokenizer may have more tokens than are used.
fn within_embedding(
    document: Option<Document>,
    rows: Option<usize>,
    tokenizer: &Tokenizer,
) -> Result<Option<Document>> {
    let Some(rows) = rows else { return Ok(document) };
    let mut tokens = document.iter().flat_map(|d| &d.tokens);
    if let Some(&token) = tokens.find(|&&t| t as usize >= rows) {
        bail!(
            "token {token} ({:?}) is beyond the {rows} rows of the model's embedding: does the tokenizer belong to the model?",
            tokenizer.token_text(token)
        );
    }
    Ok(document)
}

/// The tokens of an example, or `None` where they are too many. A model's own answer is learnt by the very ids that it generated.
fn encode(
    e: &Example,
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    settings: &PackSettings,
) -> Result<Option<Document>> {
    let prompt = Prompt {
        system: settings.system.as_deref(),
        earlier: &e.turns,
        instruction: &e.instruction,
        input: &e.input,
    };
    let generated = !e.output_ids.is_empty() && tokenizer.decode(&e.output_ids)?.trim() == e.output;
    let mut encoded = if generated {
        template.encode_generated(tokenizer, &prompt, &e.output_ids)?
    } else {
        template.encode(tokenizer, &prompt, &e.output, settings.train_on)?
    };
    let start = encoded.answer_start;
    encoded.weights[start..].iter_mut().for_each(|w| *w *= e.weight);
    let mut encoded = encoded.without_tail();
    if settings.train_on_prompt {
        encoded.weights[1..].fill(e.weight);
    }
    if encoded.tokens.len() > settings.max_length {
        if !settings.truncate || start >= settings.max_length {
            return Ok(None);
        }
        encoded.tokens.truncate(settings.max_length);
        encoded.weights.truncate(settings.max_length);
    }
    Ok(Some(Document {
        tokens: encoded.tokens,
        weights: encoded.weights,
        note: format!("{} {}", e.id, e.pair),
    }))
}
