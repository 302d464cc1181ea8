//! `train --data`: a file of conversations becomes token shards in OUT/pack, by the stage `pack` itself; settings that were left open are chosen to fit it.
use std::{
    env, fs,
    path::{Path, PathBuf},
    process,
};

use anyhow::{Result, bail, ensure};

use super::{Args, launch::has_packed};
use crate::{
    data::{files::write_error, loader::Loader, questions::preferences::Rows, token_shard::TokenShard},
    error::Error,
    models::weights::{WeightSource, peft::check_adapter, resolve},
    pipeline::{
        manifest::Manifest,
        plan::{Planned, collect, planning},
        work_dir::{Room, TOKENS},
    },
    recipe::{
        objective::Objective,
        pack::PackSettings,
        train::{Method, TrainSettings},
    },
    report::out::{self, note},
    stages::pack::{self, Validation},
};

/// What a folder of token shards holds.
pub(super) struct Shards {
    /// What is trained on.
    pub train: TokenShard,
    /// What the validation loss is measured on.
    pub validation: Option<TokenShard>,
    /// Held-out rows of the source language.
    pub source: Option<TokenShard>,
}

impl Shards {
    /// Opens the shards in `dir`, which must hold what the objective learns from.
    ///
    /// # Errors
    /// A document, or a pair, that is longer than a batch: before a model is loaded and a reference computed.
    pub fn open(dir: &Path, s: &TrainSettings) -> Result<Shards> {
        let rows = s.objective.rows();
        let open = |file: &str, rows: Rows| TokenShard::open(&dir.join(file))?.holding(rows);
        let optional = |file: &str, rows| dir.join(file).exists().then(|| open(file, rows)).transpose();
        let [train, validation, source] = TOKENS.map(|(_, file)| file);
        let train = open(train, rows)?;
        Loader::new(&train, s.seed, s.batch_documents.unwrap_or(STEP_DOCUMENTS), s.batch_tokens)?;
        // What a guard looks at are answers, whatever is trained.
        let source = optional(source, Rows::Answers)?;
        Ok(Shards { train, validation: optional(validation, rows)?, source })
    }
}

/// Tokens of an optimizer step, about, where nothing is said.
const STEP_TOKENS: usize = 4096;
/// Steps of an epoch at least, where there are documents for them.
const EPOCH_STEPS: usize = 10;
/// Documents of a step at most, and where shards are given.
pub(super) const STEP_DOCUMENTS: usize = 128;
/// Steps below which a training rarely settles.
const FEW_STEPS: u64 = 30;
/// Share of the rows that is held out.
const HELD_OUT: f64 = 0.05;

/// What can be wrong with model and adapter, as far as their headers tell: before anything is packed or loaded.
///
/// # Errors
/// A model that is not there or not supported, tensors that are missing, an adapter's fields that are not understood.
pub fn check_headers(model: &str, adapter: Option<&Path>, settings: &TrainSettings) -> Result<()> {
    let path = resolve(model)?;
    if settings.method != Method::Scratch {
        let (config, source) = WeightSource::open(&path)?;
        source.check_leaves(&config.spec()?)?;
    }
    adapter.map_or(Ok(()), check_adapter)
}

/// The arguments with shards, which are made where there is only data, and with every setting that was left open.
pub(super) fn prepare(args: &Args) -> Result<Args> {
    prepare_in(args, &args.out.join(Room::Pack(None).name()), !has_packed())
}

/// The same of a rank that has no folder to write into: its shards are in one of its own, which goes with `packed`.
pub(super) fn of_follower(args: &Args, packed: &mut Option<Temporary>) -> Result<Args> {
    if args.data.is_none() || has_packed() {
        return prepare(args);
    }
    let folder = packed.insert(Temporary::new()?);
    prepare_in(args, &folder.0, true)
}

/// A folder that goes when it is dropped.
pub(super) struct Temporary(PathBuf);

impl Temporary {
    fn new() -> Result<Temporary> {
        let path = env::temp_dir().join(format!("sdrrl-pack-{}", process::id()));
        fs::create_dir(&path).map_err(|e| write_error(&path, e))?;
        Ok(Temporary(path))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// [`prepare`] with the shards of `--data` in a folder where they are, or are to be made (`packs`).
fn prepare_in(args: &Args, shards: &Path, packs: bool) -> Result<Args> {
    let mut args = args.clone();
    let Some(data) = args.data.clone() else {
        let unread = "how rows are packed (--max-length, --template, --system ...) goes with --data; --shards are packed";
        ensure!(args.pack == PackSettings::default(), Error::setting("shards", unread));
        args.settings.batch_documents.get_or_insert(STEP_DOCUMENTS);
        return Ok(args);
    };
    if packs {
        check_headers(&args.model, args.adapter.as_deref(), &args.settings)?;
        let packing = pack::Args {
            model: args.model.clone(),
            examples: data,
            validation: Some(args.validation.clone().unwrap_or(Validation::Share(HELD_OUT))),
            out: shards.into(),
            rows: args.settings.objective.rows(),
            settings: args.pack.clone(),
        };
        keep_finished(&args, &packing)?;
        pack::run(&packing)?;
    }
    let shard = TokenShard::open(&shards.join(TOKENS[0].1))?.holding(args.settings.objective.rows())?;
    let s = &mut args.settings;
    let least = if s.objective == Objective::Kto { 2 } else { 1 };
    s.batch_documents.get_or_insert_with(|| step_documents(shard.units(), shard.tokens()).max(least));
    if s.lr.is_none() && s.method == Method::Lora && s.objective == Objective::Sft {
        s.lr = Some(2e-4);
    }
    // A batch is at least as long as the longest document, or pair.
    let longest = (0..shard.units()).map(|i| shard.unit_len(i)).max().unwrap_or(0);
    s.batch_tokens = s.batch_tokens.max(longest);
    s.warmup_above_zero = true;
    args.shards = Some(shards.into());
    Ok(args)
}

/// A finished training keeps the shards that it learnt from: other data is refused before they are made again.
fn keep_finished(args: &Args, packing: &pack::Args) -> Result<()> {
    let finished = Manifest::load(&args.out)?.is_some_and(|m| m.stage == Room::Train(None).name());
    if !finished || args.restart || args.replace || planning() {
        return Ok(());
    }
    let planned = out::silently(|| collect(|| pack::run(packing)))?;
    let Some(Planned::Again(why)) = planned.into_iter().next().map(|step| step.planned) else {
        return Ok(());
    };
    let message = format!(
        "{} holds a finished train of other data ({}): choose another --out, or --restart to train again and replace it",
        args.out.display(),
        why.join("; ")
    );
    bail!(Error::exists(&args.out, message))
}

/// Documents of a step, so that it has about as many tokens whatever their lengths, and a small set more than a few steps.
fn step_documents(documents: usize, tokens: usize) -> usize {
    let by_tokens = STEP_TOKENS * documents / tokens.max(1);
    by_tokens.min(documents / EPOCH_STEPS).clamp(1, STEP_DOCUMENTS)
}

/// Warns of a training that is over before it has begun.
pub(super) fn warn_of_few_steps(settings: &TrainSettings, documents: usize) {
    let what = settings.objective.rows().units();
    let of_step = settings.batch_documents.unwrap_or(STEP_DOCUMENTS).max(1);
    let per_epoch = documents.div_ceil(of_step) as f64;
    let mut steps = (settings.epochs * per_epoch).ceil().max(1.0) as u64;
    if settings.max_steps > 0 {
        // Somebody has counted.
        return;
    }
    steps = steps.max(1);
    if steps < FEW_STEPS {
        let epochs = (FEW_STEPS as f64 / per_epoch).ceil();
        note!(
            "train: WARNING: {documents} {what} give {steps} steps in all, and with fewer than {FEW_STEPS} little is learned: --epochs {epochs}, or a smaller --batch-documents (now {of_step})"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_has_about_as_many_tokens_whatever_the_documents() {
        for (documents, tokens, wanted) in [
            // Short ones fill a step, up to a limit; long ones are few.
            (10_000, 200_000, 128),
            (10_000, 1_000_000, 40),
            (1_000, 1_000_000, 4),
            (1_000, 100_000_000, 1),
            // A small set has its ten steps an epoch.
            (100, 2_000, 10),
            (15, 300, 1),
            (1, 10, 1),
            (3, 0, 1),
        ] {
            assert_eq!(step_documents(documents, tokens), wanted, "{documents} {tokens}");
        }
    }
}
