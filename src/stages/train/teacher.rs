//! What the model without its adapters would say at each token of the answers, shown more: computed once, before the first step, and kept in the training's folder.
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::Args;
use crate::{
    data::{
        token_shard::TokenShard,
        top_k::{TopKShard, Writer},
    },
    error::Error,
    models::transformer::{
        train_step::{PackedBatch, TrainStep},
        weights::Transformer,
    },
    pipeline::{
        identity::{Identity, Inputs},
        interrupt::interrupted,
        manifest::Counts,
        placement::Placement,
        stage::{self, Made, Open, Stage},
    },
    report::progress::Progress,
    train::stored::Stored,
};

/// Its folder, in that of the training.
pub(super) const FOLDER: &str = "teacher";
/// Of what is trained on, and of what is held out.
const LOGPROBS: [&str; 2] = ["train.logprobs", "validation.logprobs"];

/// The stage.
pub(super) struct Teacher<'a> {
    args: &'a Args,
    /// The folder of the token shards, and the model's.
    inputs: [&'a Path; 2],
    model: &'a Transformer,
    step: &'a mut TrainStep,
    /// What is trained on, what is held out.
    shards: [Option<&'a TokenShard>; 2],
    k: usize,
    out: PathBuf,
}

/// What the trainer needs of a teacher that has spoken before; none where the objective has none. `inputs` are the folder of the token shards and the model's, `shards` what is
/// trained on and what is held out.
///
/// # Errors
/// More tokens than the vocabulary has; an adapter that replaces modules of the base, so that the base is not there without it; what other documents were said of.
pub(super) fn stored(
    args: &Args,
    inputs: [&Path; 2],
    (model, step): (&Transformer, &mut TrainStep),
    shards: [Option<&TokenShard>; 2],
) -> Result<Option<Stored>> {
    let Some(settings) = args.settings.stored_teacher() else { return Ok(None) };
    let k = settings.k;
    settings.check(model.config.vocab_size)?;
    let replaced = "train.objective: the adapter replaces modules of the base model, so that the model without it is no teacher: merge it first";
    let is_base = step.adapter().is_some_and(|lora| lora.replaced.is_empty());
    ensure!(is_base, Error::setting("train.objective", replaced));
    let out = args.out.join(FOLDER);
    stage::run(&mut Teacher { args, inputs, model, step, shards, k, out: out.clone() })?;
    let budget = args.settings.batch_tokens;
    let open = |i: usize| shards[i].map(|shard| read(&out.join(LOGPROBS[i]), shard, k, budget)).transpose();
    let train = open(0)?.context("there is nothing to train on")?;
    Ok(Some(Stored { train, validation: open(1)?, text: settings.text }))
}

/// Tokens of each unit that are learnt; none of one that no batch has room for, and so no evaluation.
fn rows_of(shard: &TokenShard, budget: usize) -> Vec<usize> {
    let learnt = |unit: usize| {
        let weights = shard.document(shard.unit(unit).start + 1).weights;
        weights.iter().skip(1).filter(|w| **w != 0.0).count()
    };
    let fits = |unit: usize| shard.unit_len(unit) <= budget;
    (0..shard.units()).map(|unit| if fits(unit) { learnt(unit) } else { 0 }).collect()
}

/// What was said of the answers of `shard`.
fn read(path: &Path, shard: &TokenShard, k: usize, budget: usize) -> Result<TopKShard> {
    let found = TopKShard::open(path)?;
    let own: Vec<usize> = (0..found.units()).map(|i| found.rows(i).len()).collect();
    let message = || {
        let path = path.display();
        format!("{path}: it is not of these answers: delete its folder and run the same command again")
    };
    let fits = found.k() == k && own == rows_of(shard, budget);
    ensure!(fits, Error::bad_input(path.display(), message()));
    Ok(found)
}

impl Stage for Teacher<'_> {
    const NAME: &'static str = FOLDER;
    const FILES: &'static [&'static str] = &LOGPROBS;

    fn out(&self) -> &Path {
        &self.out
    }

    fn identity(&self) -> Result<Identity> {
        // Whatever adapter is trained, the teacher is without it.
        Identity::of(&json!({"top-k-logits": self.k}))?.with("batch-tokens", self.args.settings.batch_tokens)
    }

    fn placement(&self) -> Option<Placement> {
        Some(self.args.placement)
    }

    fn inputs(&self) -> Result<Inputs> {
        Ok(Inputs::new().model("model", self.inputs[1])?.file("shards", self.inputs[0]))
    }

    fn run(&mut self, open: &mut Open) -> Result<Made> {
        let units = self.shards.iter().flatten().map(|s| s.units()).sum();
        let mut progress = Progress::new("teacher", units);
        let mut said = Said::default();
        for (shard, file) in self.shards.iter().zip(LOGPROBS) {
            let Some(shard) = shard else { continue };
            let budget = self.args.settings.batch_tokens;
            let rows = rows_of(shard, budget);
            let mut writer = Writer::new(&open.path(file), self.k, &rows)?;
            let how = (self.k, budget);
            speak(self.model, self.step, (shard, &rows), how, &mut writer, &mut said, &mut progress)?;
            writer.finish()?;
        }
        progress.finish();
        let share = 100.0 * said.kept / said.tokens.max(1) as f64;
        let line = format!(
            "teacher: its {} likeliest tokens at {} tokens of {units} answers have {share:.2} % of the probability; written to {}",
            self.k,
            said.tokens,
            self.out.display()
        );
        let summary = json!({"answers": units, "tokens": said.tokens, "kept-probability": share / 100.0});
        Ok(Made::new(summary)?.counting(Counts::all(units)).saying(line))
    }
}

/// What was kept, over all files.
#[derive(Default)]
struct Said {
    tokens: usize,
    /// Σ of the kept tokens' probability.
    kept: f64,
}

/// Writes what the teacher says of the units of a shard that have `rows`.
fn speak(
    model: &Transformer,
    step: &mut TrainStep,
    (shard, rows): (&TokenShard, &[usize]),
    (k, budget): (usize, usize),
    writer: &mut Writer,
    said: &mut Said,
    progress: &mut Progress,
) -> Result<()> {
    let mut units = (0..shard.units()).filter(|&u| rows[u] > 0).peekable();
    while units.peek().is_some() {
        if interrupted() {
            bail!(Error::interrupted("interrupted before the first step: run the same command again"));
        }
        let (mut batch, mut n) = (PackedBatch::default(), 0);
        let teachers = |unit: usize| shard.unit(unit).start + 1;
        while let Some(unit) =
            units.next_if(|&u| batch.tokens.len() + shard.document_len(teachers(u)) <= budget)
        {
            let document = shard.document(teachers(unit));
            batch.push(&document.tokens, &document.weights);
            n += 1;
        }
        let found = step.likeliest(model, &batch, k)?;
        said.tokens += found.rows();
        said.kept += (0..found.rows()).map(|r| 1.0 - f64::from(found.row(r).1[k]).exp()).sum::<f64>();
        writer.add(&found)?;
        progress.advance(n);
    }
    Ok(())
}
