//! What the model before training thinks of every reply: computed once, before the first step, by all ranks together, and kept in the training's folder.
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Args, together};
use crate::{
    data::{files::FileContext, loader::in_order, token_shard::TokenShard},
    distributed::team::Team,
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
        stage::{Made, Open, Stage},
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
    team: &'a Team,
    out: PathBuf,
}

/// The objective of `args` with the log-probabilities that it compares with; none where answers are learnt. `inputs` are the folder of the token shards and the
/// model's, `shards` what is trained on and what is held out.
pub(super) fn preference(
    args: &Args,
    inputs: [&Path; 2],
    (model, step): (&Transformer, &mut TrainStep),
    shards: [Option<&TokenShard>; 2],
    team: &Team,
) -> Result<Option<Preference>> {
    let settings = &args.settings;
    let Some(objective) = settings.preference() else { return Ok(None) };
    if !settings.objective.has_reference() {
        return Ok(Some(Preference { objective, train: vec![], validation: vec![] }));
    }
    let out = args.out.join(FOLDER);
    let path = out.join(FILE);
    let mut reference = Reference { args, inputs, model, step, shards, team, out };
    together::stage(team, &mut reference, |reference| {
        shards.into_iter().flatten().try_for_each(|shard| reference.logps(shard, &mut |_, _| Ok(())))
    })?;
    let read = || read(&path, shards).with_context(|| path.display().to_string());
    let own = if team.is_first() { read()? } else { vec![] };
    let words = team.words_of_first(bytemuck::cast_slice::<f64, u32>(&own).to_vec())?;
    let logps = bytemuck::pod_collect_to_vec::<u32, f64>(&words);
    let (train, validation) = logps
        .split_at_checked(shards[0].map_or(0, TokenShard::len))
        .context("rank 0 has said too little of the reference")?;
    Ok(Some(Preference { objective, train: train.to_vec(), validation: validation.to_vec() }))
}

/// The log-probabilities of the documents of all shards, in order.
fn read(path: &Path, shards: [Option<&TokenShard>; 2]) -> Result<Vec<f64>> {
    // As long as there are replies.
    let text = std::fs::read_to_string(path).reading(path)?;
    let mut lines = text.lines();
    let documents = shards.into_iter().flatten().flat_map(|s| (0..s.len()).map(|i| s.note(i)));
    let one = |note: String| {
        let line: Line = serde_json::from_str(lines.next().unwrap_or_default())?;
        ensure!(line.note == note, "{} where {note} was expected", line.note);
        Ok(line.logp.unwrap_or(f64::NAN))
    };
    let damaged = "it is damaged: delete its folder and run the same command again";
    documents.map(one).collect::<Result<_>>().context(damaged)
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
        together::begins(self.team)?;
        let shards: Vec<&TokenShard> = self.shards.iter().flatten().copied().collect();
        let total = shards.iter().map(|s| s.len()).sum();
        let mut progress = Progress::new(FOLDER, total);
        let mut text = String::new();
        for shard in shards {
            let mut all = vec![None; shard.len()];
            self.logps(shard, &mut |document, logp| {
                all[document] = Some(logp);
                progress.advance(1);
                Ok(())
            })?;
            for (i, logp) in all.into_iter().enumerate() {
                let line = Line { note: shard.note(i), logp };
                text += &format!("{}\n", serde_json::to_string(&line)?);
            }
        }
        progress.finish();
        self.team.alone(|| open.write(FILE, text.as_bytes()))?;
        let line =
            format!("reference: log-probabilities of {total} replies; written to {}", self.out.display());
        Ok(Made::new(json!({"replies": total}))?.counting(Counts::all(total)).saying(line))
    }
}

impl Reference<'_> {
    /// The log-probability of each document's reply, of those that a batch has room for; each rank computes every size-th batch.
    fn logps(&mut self, shard: &TokenShard, found: &mut dyn FnMut(usize, f64) -> Result<()>) -> Result<()> {
        let batch_tokens = self.args.settings.batch_tokens;
        let fits = |u: &usize| shard.unit_len(*u) <= batch_tokens;
        let documents = (0..shard.units()).filter(fits).flat_map(|u| shard.unit(u));
        let batches = in_order(documents.map(|d| (d, shard.document_len(d))), batch_tokens);
        for round in batches.chunks(self.team.world().size()) {
            if self.team.any(interrupted())? {
                bail!(Error::interrupted("interrupted before the first step: run the same command again"));
            }
            let own = round.get(self.team.world().rank()).map(|documents| self.of_batch(shard, documents));
            let own = own.transpose()?.unwrap_or_default();
            let all = self.team.gather_lists(bytemuck::cast_slice::<f64, u32>(&own))?;
            for (documents, words) in round.iter().zip(all) {
                let logps = bytemuck::pod_collect_to_vec::<u32, f64>(&words);
                documents.iter().zip(logps).try_for_each(|(document, logp)| found(*document, logp))?;
            }
        }
        Ok(())
    }

    fn of_batch(&mut self, shard: &TokenShard, documents: &[usize]) -> Result<Vec<f64>> {
        let mut batch = PackedBatch::default();
        for document in documents.iter().map(|&d| shard.document(d)) {
            batch.push(&document.tokens, &document.weights);
        }
        let losses = self.step.token_losses(self.model, &batch)?;
        let of = |ends: &[u32]| {
            let nll = &losses[ends[0] as usize..ends[1] as usize];
            -nll.iter().map(|x| f64::from(*x)).sum::<f64>()
        };
        Ok(batch.cu_seqlens.windows(2).map(of).collect())
    }
}
