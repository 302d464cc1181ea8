//! On-policy self-distillation: the model in training answers questions, and learns at each token of its own answers what the model without its adapters would say
//! next with more before its eyes. Across languages (COPSD, Liu et al. 2026, arXiv 2605.09548) that is the question in a language that it is strong in, with its own answer;
//! in general (SDFT, Shenfeld et al. 2026, arXiv 2601.19897) any demonstration.
//!
//! The loss is the mean over the tokens of a step of KL(teacher || student) over the whole vocabulary, clipped term by term. Answers count as constants.
use std::{fmt, time::Instant};

use anyhow::{Result, ensure};

use super::run_types::TrainerSettings;
use crate::{
    data::{loader::first_fit, token_shard::TokenShard},
    models::transformer::{
        decode::Adapted,
        train_step::{Distilled, DistilledSum, TrainStep},
        weights::Transformer,
    },
};

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Seeds the draws of its answer.
    pub id: String,
    /// The prompt's ids.
    pub tokens: Vec<u32>,
}

/// What is answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Its ids, without the end token.
    pub tokens: Vec<u32>,
    /// By an end token, not for its length.
    pub ended: bool,
    /// Without words, or a loop.
    pub alarm: bool,
}

/// Who answers.
pub trait Answers {
    /// Answers to `questions`, in order: each a function of the model and its question, whatever is asked beside it.
    ///
    /// # Errors
    /// The model's.
    fn answers(&self, model: Adapted, questions: &[Question]) -> Result<Vec<Answer>>;
}

/// What the objective needs beside the documents, whose units are a prompt of the student and one of the teacher.
pub struct OnPolicy<'a> {
    /// Draws answers.
    pub answers: &'a dyn Answers,
    /// An answer to each held-out question, drawn once: evaluations measure the divergence on them.
    pub held_out: Vec<Answer>,
}

/// What a person looks at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answered {
    /// Tokens of the answers.
    pub tokens: usize,
    /// What drawing them took.
    pub seconds: f64,
    /// Their mean length, tokens.
    pub length: f64,
    /// The share of them with an alarm.
    pub alarms: f64,
}

impl fmt::Display for Answered {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let rate = self.tokens as f64 / self.seconds.max(1e-9);
        write!(f, "answers of {:.1} tokens ({rate:.0} drawn/s", self.length)?;
        if self.alarms > 0.0 {
            write!(f, ", {:.0} % empty or looping", 100.0 * self.alarms)?;
        }
        write!(f, ")")
    }
}

/// A step, or an evaluation.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Measured {
    sum: DistilledSum,
    answered: Option<Answered>,
}

impl Measured {
    /// What is minimised: the mean clipped divergence, nats.
    pub fn loss(&self) -> f64 {
        self.sum.clipped / self.sum.weight
    }
    /// Tokens that were run.
    pub fn tokens(&self) -> usize {
        self.sum.tokens
    }
    pub fn answered(&self) -> Option<Answered> {
        self.answered
    }
    /// By the names in the logs of steps, or of evaluations.
    pub fn named(&self, evaluation: bool) -> Vec<(&'static str, f64)> {
        let s = &self.sum;
        let (kl, clipped) = (s.divergence / s.weight, s.limited as f64 / s.rows.max(1) as f64);
        if evaluation {
            return vec![("eval/kl", kl), ("eval/clipped_tokens", clipped)];
        }
        let mut named = vec![("train/kl", kl), ("train/clipped_tokens", clipped)];
        if let Some(a) = self.answered {
            named.extend([("train/answer_tokens", a.length), ("train/answer_alarms", a.alarms)]);
        }
        named
    }
}

/// The prompts of a unit with an answer.
struct Unit {
    id: u32,
    prompts: [Vec<u32>; 2],
    answer: Answer,
}

impl Unit {
    fn of(shard: &TokenShard, unit: usize, answer: Answer) -> Unit {
        let first = shard.unit(unit).start;
        let prompts = [first, first + 1].map(|d| shard.document(d).tokens);
        Unit { id: unit as u32, prompts, answer }
    }
    /// Tokens that are learnt, the end token among them.
    fn learnt(&self) -> usize {
        self.answer.tokens.len() + usize::from(self.answer.ended)
    }
    /// Tokens of the longer of its two documents.
    fn len(&self) -> usize {
        self.prompts.iter().map(Vec::len).max().unwrap_or(0) + self.answer.tokens.len()
    }
}

/// Units in micro-batches.
fn batches(units: &[Unit], s: &TrainerSettings) -> Vec<Distilled> {
    let lengths: Vec<usize> = units.iter().map(Unit::len).collect();
    let batch = |of: Vec<usize>| {
        let mut batch = Distilled::default();
        for unit in of.into_iter().map(|i| &units[i]) {
            let weight = if s.per_sentence { 1.0 / unit.learnt().max(1) as f32 } else { 1.0 };
            let [student, teacher] = &unit.prompts;
            batch.push(unit.id, [student, teacher], &unit.answer.tokens, unit.answer.ended, weight);
        }
        batch
    };
    first_fit(&lengths, s.batch_tokens).into_iter().map(batch).collect()
}

impl OnPolicy<'_> {
    /// Answers to the questions of `units`, of the model as it stands before step `number`, and the gradients of their loss, divided by its whole weight.
    ///
    /// # Errors
    /// The model's.
    pub(super) fn step(
        &self,
        model: &Transformer,
        step: &mut TrainStep,
        shard: &TokenShard,
        (units, number): (&[usize], u64),
        settings: &TrainerSettings,
    ) -> Result<Measured> {
        let started = Instant::now();
        let question = |&unit: &usize| {
            let first = shard.unit(unit).start;
            Question { id: format!("{number}/{}", shard.note(first)), tokens: shard.document(first).tokens }
        };
        let questions: Vec<Question> = units.iter().map(question).collect();
        let adapters = step.current_adapter(model)?;
        let answers = self.answers.answers(Adapted { model, adapters }, &questions)?;
        let answered = measure(&answers, started.elapsed().as_secs_f64());
        let units: Vec<Unit> =
            units.iter().zip(answers).map(|(&u, answer)| Unit::of(shard, u, answer)).collect();
        let weight: f64 = match settings.per_sentence {
            true => units.len() as f64,
            false => units.iter().map(Unit::learnt).sum::<usize>() as f64,
        };
        let mut measured = Measured { answered: Some(answered), ..Measured::default() };
        step.zero_grads()?;
        for batch in batches(&units, settings) {
            measured.sum.add(step.distil(model, &batch, Some((1.0 / weight) as f32))?);
        }
        Ok(measured)
    }

    /// The divergence on the held-out answers.
    ///
    /// # Errors
    /// The model's; answers to other questions.
    pub(super) fn evaluate(
        &self,
        model: &Transformer,
        step: &mut TrainStep,
        shard: &TokenShard,
        settings: &TrainerSettings,
    ) -> Result<Measured> {
        let (n, path) = (self.held_out.len(), shard.path().display());
        ensure!(n == shard.units(), "{n} answers to the {} questions of {path}", shard.units());
        let unit = |(u, answer): (usize, &Answer)| Unit::of(shard, u, answer.clone());
        let units: Vec<Unit> = self.held_out.iter().enumerate().map(unit).collect();
        let mut measured = Measured::default();
        for batch in batches(&units, settings) {
            measured.sum.add(step.distil(model, &batch, None)?);
        }
        Ok(measured)
    }
}

fn measure(answers: &[Answer], seconds: f64) -> Answered {
    let (n, tokens) = (answers.len().max(1) as f64, answers.iter().map(|a| a.tokens.len()).sum::<usize>());
    let alarms = answers.iter().filter(|a| a.alarm).count() as f64 / n;
    Answered { tokens, seconds, length: tokens as f64 / n, alarms }
}
