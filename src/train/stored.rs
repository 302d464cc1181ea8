//! Off-policy self-distillation: given answers, and at each of their tokens what a teacher that is shown more would say, computed before the first step. The student learns the forward
//! divergence of the teacher's likeliest tokens, all others being one bucket, beside a share of the cross-entropy of the text.
use anyhow::{Context, Result, ensure};

use super::{
    batches::packed,
    gradients::{OverRanks, in_rounds},
    run_types::TrainerSettings,
};
use crate::{
    data::{
        loader::first_fit,
        token_shard::TokenShard,
        top_k::{TopK, TopKShard},
    },
    distributed::team::Team,
    models::transformer::{
        train_step::{DistilledSum, PackedBatch, TrainStep},
        weights::Transformer,
    },
};

/// What the objective needs beside the documents, whose units are a student's and a teacher's. Of several ranks the first has what is stored, and tells the others.
pub struct Stored {
    /// Of each unit that is trained on.
    pub train: Option<TopKShard>,
    /// The same of those held out.
    pub validation: Option<TopKShard>,
    /// What the cross-entropy of the text counts.
    pub text: f64,
}

/// The student's documents of some units in micro-batches, by their places in `units`.
fn cut(shard: &TokenShard, units: &[usize], settings: &TrainerSettings) -> Vec<Vec<usize>> {
    let lengths: Vec<usize> = units.iter().map(|&u| shard.document_len(student(shard, u))).collect();
    first_fit(&lengths, settings.batch_tokens)
}

/// The student's document of a unit.
fn student(shard: &TokenShard, unit: usize) -> usize {
    shard.unit(unit).start
}

/// What the teacher says of each of `units`.
fn rows(team: &Team, shard: &TokenShard, teacher: Option<&TopKShard>, units: &[usize]) -> Result<Vec<TopK>> {
    let own = |&unit: &usize| {
        let mut rows = TopK::default();
        teacher.into_iter().for_each(|teacher| teacher.read(unit, &mut rows));
        rows
    };
    if let Some(teacher) = teacher {
        let (n, path) = (teacher.units(), teacher.path().display());
        let all = shard.units();
        ensure!(n == all, "{path}: {n} units for the {all} of {}", shard.path().display());
    }
    let own: Vec<TopK> = units.iter().map(own).collect();
    if team.world().size() == 1 {
        return Ok(own);
    }
    let k = own.first().map_or(0, |rows| rows.k) as u32;
    let lengths = own.iter().map(|rows| rows.rows() as u32);
    let words = [k].into_iter().chain(lengths).chain(own.iter().flat_map(TopK::to_words)).collect();
    let words = team.words_of_first(words)?;
    let (k, words) = words.split_first().context("rank 0 has said nothing of the teacher")?;
    let (lengths, mut words) =
        words.split_at_checked(units.len()).context("rank 0 has said too little of the teacher")?;
    let rows = |rows: &u32| {
        let n = *rows as usize * TopK::words_of_row(*k as usize);
        let (own, rest) = words.split_at_checked(n).context("rank 0 has said too little of the teacher")?;
        words = rest;
        TopK::from_words(*k as usize, own)
    };
    lengths.iter().map(rows).collect()
}

/// A micro-batch of the units at `places`, with the teacher's rows.
fn batch(
    shard: &TokenShard,
    (units, rows): (&[usize], &[TopK]),
    places: &[usize],
    per_sentence: bool,
) -> (PackedBatch, TopK) {
    let mut teacher = TopK::default();
    places.iter().for_each(|&i| teacher.append(&rows[i]));
    let documents: Vec<usize> = places.iter().map(|&i| student(shard, units[i])).collect();
    (packed(shard, &documents, per_sentence, 1.0), teacher)
}

/// By the names in the logs of steps, or of evaluations.
pub(super) fn named(sum: &DistilledSum, evaluation: bool) -> Vec<(&'static str, f64)> {
    let (kl, nll) = (sum.divergence / sum.weight, sum.nll / sum.weight);
    if evaluation {
        vec![("eval/kl", kl), ("eval/nll", nll)]
    } else {
        vec![("train/kl", kl), ("train/nll", nll)]
    }
}

impl Stored {
    /// Sets the gradients to those of the loss of `units`, divided by its whole weight.
    ///
    /// # Errors
    /// The model's; a teacher of other documents.
    pub(super) fn step(
        &self,
        model: &mut Transformer,
        step: &mut TrainStep,
        shard: &TokenShard,
        units: &[usize],
        (settings, over): (&TrainerSettings, OverRanks),
    ) -> Result<DistilledSum> {
        let rows = rows(over.team, shard, self.train.as_ref(), units)?;
        let batch = |places: &Vec<usize>| batch(shard, (units, &rows), places, settings.per_sentence);
        let whole: Vec<Vec<usize>> = cut(shard, units, settings);
        let all: Vec<(PackedBatch, TopK)> = whole.iter().map(batch).collect();
        let weight: f64 = all.iter().flat_map(|(b, _)| &b.weights).map(|w| f64::from(*w)).sum();
        ensure!(weight > 0.0, "no token of the step's answers has a weight");
        let places: Vec<usize> = (0..units.len()).collect();
        let own = over.own(&places);
        let own = if own.len() == units.len() {
            all
        } else {
            let of: Vec<usize> = own.iter().map(|&i| units[i]).collect();
            let of_step = |places: Vec<usize>| places.into_iter().map(|i| own[i]).collect();
            cut(shard, &of, settings).into_iter().map(of_step).map(|places| batch(&places)).collect()
        };
        over.gradients(model, step, &own, &mut |model, step, (batch, teacher), sum: &mut DistilledSum| {
            let scale = Some((1.0 / weight) as f32);
            sum.add(step.distil_stored(model, (batch, teacher), self.text, scale)?);
            Ok(())
        })
    }

    /// The loss of held-out answers that a batch has room for, whose micro-batches the ranks share.
    ///
    /// # Errors
    /// As [`Stored::step`].
    pub(super) fn evaluate(
        &self,
        model: &Transformer,
        step: &mut TrainStep,
        shard: &TokenShard,
        units: &[usize],
        (settings, team): (&TrainerSettings, &Team),
    ) -> Result<DistilledSum> {
        let mut sum = DistilledSum::default();
        if team.is_first() && self.validation.is_none() {
            return Ok(sum);
        }
        for round in cut(shard, units, settings).chunks(team.world().size()) {
            let of: Vec<usize> = round.iter().flatten().map(|&i| units[i]).collect();
            let rows = rows(team, shard, self.validation.as_ref(), &of)?;
            let mut at = 0;
            let batches = round.iter().map(|places| {
                at += places.len();
                let places: Vec<usize> = (at - places.len()..at).collect();
                batch(shard, (&of, &rows), &places, settings.per_sentence)
            });
            let batches: Vec<(PackedBatch, TopK)> = batches.collect();
            sum.add(in_rounds(
                model,
                step,
                team,
                &batches,
                &mut |model, step, (batch, teacher), sum: &mut DistilledSum| {
                    sum.add(step.distil_stored(model, (batch, teacher), self.text, None)?);
                    Ok(())
                },
            )?);
        }
        Ok(sum)
    }
}
