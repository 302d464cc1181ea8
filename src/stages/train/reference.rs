//! What the model before training thinks of every reply: computed once, before the first step, and kept beside the token shards.
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Args;
use crate::{
    data::{files::FileContext, token_shard::TokenShard},
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
    train::preference::Preference,
};

/// Its folder, in that of the training.
pub(super) const FOLDER: &str = "reference";
const FILE: &str = "logps.jsonl";

/// One document.
#[derive(Serialize, Deserialize)]
struct Line {
    /// The document's.
    note: String,
    /// Σ ln p of its reply; none where it is too long for a batch, and so for every evaluation.
    logp: Option<f64>,
}

/// The stage. The model is as it stands before the first step: with new adapters, which change nothing yet, the base itself; with `--adapter` the model with that.
pub(super) struct Reference<'a> {
    args: &'a Args,
    /// The folder of the token shards, and the model's.
    inputs: [&'a Path; 2],
    model: &'a Transformer,
    step: &'a mut TrainStep,
    /// What is trained on, what is held out.
    shards: [Option<&'a TokenShard>; 2],
    out: PathBuf,
}

/// The objective of `args` with the log-probabilities that it compares with; none where answers are learnt. `inputs` are the folder of the token shards and the
/// model's, `shards` what is trained on and what is held out.
pub(super) fn preference(
    args: &Args,
    inputs: [&Path; 2],
    (model, step): (&Transformer, &mut TrainStep),
    shards: [Option<&TokenShard>; 2],
) -> Result<Option<Preference>> {
    let settings = &args.settings;
    let Some(objective) = settings.preference() else { return Ok(None) };
    if !settings.objective.has_reference() {
        return Ok(Some(Preference { objective, train: vec![], validation: vec![] }));
    }
    let out = args.out.join(FOLDER);
    let path = out.join(FILE);
    stage::run(&mut Reference { args, inputs, model, step, shards, out })?;
    let [train, validation] = read(&path, shards).with_context(|| path.display().to_string())?;
    Ok(Some(Preference { objective, train, validation }))
}

/// The log-probabilities of the documents of each shard, in order.
fn read(path: &Path, shards: [Option<&TokenShard>; 2]) -> Result<[Vec<f64>; 2]> {
    // As long as there are replies.
    let text = std::fs::read_to_string(path).reading(path)?;
    let mut lines = text.lines();
    let mut of = |shard: Option<&TokenShard>| -> Result<Vec<f64>> {
        let documents = shard.into_iter().flat_map(|s| (0..s.len()).map(|i| s.note(i)));
        let one = |note: String| {
            let line: Line = serde_json::from_str(lines.next().unwrap_or_default())?;
            ensure!(line.note == note, "{} where {note} was expected", line.note);
            Ok(line.logp.unwrap_or(f64::NAN))
        };
        let damaged = "it is damaged: delete its folder and run the same command again";
        documents.map(one).collect::<Result<_>>().context(damaged)
    };
    Ok([of(shards[0])?, of(shards[1])?])
}

impl Stage for Reference<'_> {
    const NAME: &'static str = FOLDER;
    const FILES: &'static [&'static str] = &[FILE];

    fn out(&self) -> &Path {
        &self.out
    }

    fn identity(&self) -> Result<Identity> {
        let s = &self.args.settings;
        Identity::of(&json!({"method": s.method, "dora": s.dora}))?
            .with("rows", s.objective.rows())?
            .with("batch-tokens", s.batch_tokens)
    }

    fn placement(&self) -> Option<Placement> {
        Some(self.args.placement)
    }

    fn inputs(&self) -> Result<Inputs> {
        let inputs = Inputs::new().model("model", self.inputs[1])?.file("shards", self.inputs[0]);
        match &self.args.adapter {
            Some(adapter) => inputs.model("adapter", adapter),
            None => Ok(inputs),
        }
    }

    fn run(&mut self, open: &mut Open) -> Result<Made> {
        let shards = self.shards.iter().flatten();
        let total = shards.clone().map(|s| s.len()).sum();
        let mut progress = Progress::new("reference", total);
        let mut text = String::new();
        for shard in shards {
            let all = logps(self.model, self.step, shard, self.args.settings.batch_tokens, &mut progress)?;
            for (i, logp) in all.into_iter().enumerate() {
                let line = Line { note: shard.note(i), logp };
                text += &format!("{}\n", serde_json::to_string(&line)?);
            }
        }
        progress.finish();
        open.write(FILE, text.as_bytes())?;
        let line =
            format!("reference: log-probabilities of {total} replies; written to {}", self.out.display());
        Ok(Made::new(json!({"replies": total}))?.counting(Counts::all(total)).saying(line))
    }
}

/// The log-probability of each document's reply.
fn logps(
    model: &Transformer,
    step: &mut TrainStep,
    shard: &TokenShard,
    batch_tokens: usize,
    progress: &mut Progress,
) -> Result<Vec<Option<f64>>> {
    let mut out = vec![None; shard.len()];
    let fits = |u: &usize| shard.unit_len(*u) <= batch_tokens;
    let mut documents = (0..shard.units()).filter(fits).flat_map(|u| shard.unit(u)).peekable();
    while documents.peek().is_some() {
        if interrupted() {
            bail!(Error::interrupted("interrupted before the first step: run the same command again"));
        }
        let (mut batch, mut own) = (PackedBatch::default(), vec![]);
        while let Some(d) = documents.next_if(|&d| batch.tokens.len() + shard.document_len(d) <= batch_tokens)
        {
            let document = shard.document(d);
            batch.push(&document.tokens, &document.weights);
            own.push(d);
        }
        let losses = step.token_losses(model, &batch)?;
        for (d, ends) in own.iter().zip(batch.cu_seqlens.windows(2)) {
            let nll = &losses[ends[0] as usize..ends[1] as usize];
            out[*d] = Some(-nll.iter().map(|x| f64::from(*x)).sum::<f64>());
        }
        progress.advance(own.len());
    }
    Ok(out)
}
