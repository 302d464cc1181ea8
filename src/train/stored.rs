//! Off-policy self-distillation: given answers, and at each of their tokens what a teacher that is shown more would say, computed before the first step. The student learns the forward
//! divergence of the teacher's likeliest tokens, all others being one bucket, beside a share of the cross-entropy of the text.
use anyhow::{Result, ensure};

use super::{batches::packed, run_types::TrainerSettings};
use crate::{
    data::{
        loader::first_fit,
        token_shard::TokenShard,
        top_k::{TopK, TopKShard},
    },
    models::transformer::{
        train_step::{DistilledSum, PackedBatch, TrainStep},
        weights::Transformer,
    },
};

/// What the objective needs beside the documents, whose units are a student's and a teacher's.
pub struct Stored {
    /// Of each unit that is trained on.
    pub train: TopKShard,
    /// The same of those held out.
    pub validation: Option<TopKShard>,
    /// What the cross-entropy of the text counts.
    pub text: f64,
}

/// The student's documents of some units in micro-batches, with the teacher's rows of each.
fn batches(
    (shard, teacher): (&TokenShard, &TopKShard),
    units: &[usize],
    settings: &TrainerSettings,
) -> Result<Vec<(PackedBatch, TopK)>> {
    let (n, path) = (teacher.units(), teacher.path().display());
    ensure!(n == shard.units(), "{path}: {n} units for the {} of {}", shard.units(), shard.path().display());
    let student = |unit: usize| shard.unit(unit).start;
    let lengths: Vec<usize> = units.iter().map(|&u| shard.document_len(student(u))).collect();
    let batch = |of: Vec<usize>| {
        let units = || of.iter().map(|&i| units[i]);
        let mut rows = TopK::default();
        units().for_each(|u| teacher.read(u, &mut rows));
        let documents: Vec<usize> = units().map(student).collect();
        (packed(shard, &documents, settings.per_sentence, 1.0), rows)
    };
    Ok(first_fit(&lengths, settings.batch_tokens).into_iter().map(batch).collect())
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
    /// The gradients of the loss of `units`, divided by its whole weight.
    ///
    /// # Errors
    /// The model's; a teacher of other documents.
    pub(super) fn step(
        &self,
        model: &Transformer,
        step: &mut TrainStep,
        shard: &TokenShard,
        units: &[usize],
        settings: &TrainerSettings,
    ) -> Result<DistilledSum> {
        let batches = batches((shard, &self.train), units, settings)?;
        let weight: f64 = batches.iter().flat_map(|(b, _)| &b.weights).map(|w| f64::from(*w)).sum();
        ensure!(weight > 0.0, "no token of the step's answers has a weight");
        let mut sum = DistilledSum::default();
        step.zero_grads()?;
        for (batch, teacher) in &batches {
            sum.add(step.distil_stored(model, (batch, teacher), self.text, Some((1.0 / weight) as f32))?);
        }
        Ok(sum)
    }

    /// The loss of held-out answers that a batch has room for.
    ///
    /// # Errors
    /// As [`Stored::step`].
    pub(super) fn evaluate(
        &self,
        model: &Transformer,
        step: &mut TrainStep,
        shard: &TokenShard,
        (units, settings): (&[usize], &TrainerSettings),
    ) -> Result<DistilledSum> {
        let mut sum = DistilledSum::default();
        let Some(teacher) = &self.validation else { return Ok(sum) };
        for (batch, teacher) in &batches((shard, teacher), units, settings)? {
            sum.add(step.distil_stored(model, (batch, teacher), self.text, None)?);
        }
        Ok(sum)
    }
}
