//! On-policy self-distillation: the model in training answers questions, and learns at each token of its own answers what the model without its adapters would say
//! next with more before its eyes. Across languages (COPSD, Liu et al. 2026, arXiv 2605.09548) that is the question in a language that it is strong in, with its own answer;
//! in general (SDFT, Shenfeld et al. 2026, arXiv 2601.19897) any demonstration.
//!
//! The loss is the mean over the tokens of a step of KL(teacher || student) over the whole vocabulary, clipped term by term. Answers count as constants.
//!
//! Several ranks answer a share of the questions each and tell each other the answers, so that all know the weight of the whole step. An answer is drawn by its question's name,
//! whoever draws it.
use std::{collections::VecDeque, fmt, time::Instant};

use anyhow::{Context, Result, ensure};

use super::{
    gradients::{OverRanks, in_rounds},
    run_types::TrainerSettings,
};
use crate::{
    data::{loader::first_fit, token_shard::TokenShard},
    distributed::team::Team,
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
    /// Answers to `questions`, in order: each a function of the model and its question, whatever is asked beside it. `on_done` is told of each.
    ///
    /// # Errors
    /// The model's.
    fn answers(
        &self,
        model: Adapted,
        questions: &[Question],
        on_done: &mut dyn FnMut(),
    ) -> Result<Vec<Answer>>;
}

/// Questions that are answered together at most where sums have a fixed order, and the groups that there are at least for as many ranks: a GPU chooses kernels by the size of a
/// batch, so that it must not depend on the number of ranks.
const GROUP: [usize; 2] = [16, 8];

/// Answers to `questions`, in order, of which each rank draws a share; `on_done` is told of each of its own.
///
/// # Errors
/// The model's.
pub fn drawn(
    answers: &dyn Answers,
    model: Adapted,
    questions: &[Question],
    (team, fixed_order): (&Team, bool),
    on_done: &mut dyn FnMut(),
) -> Result<Vec<Answer>> {
    let (world, [most, groups]) = (team.world(), GROUP);
    let group = if fixed_order { questions.len().div_ceil(groups).clamp(1, most) } else { 1 };
    let of = |i: usize| i / group % world.size();
    let own: Vec<Question> =
        (0..questions.len()).filter(|&i| of(i) == world.rank()).map(|i| questions[i].clone()).collect();
    // Without a fixed order whatever is asked may be answered at once.
    let at_once = if fixed_order { group } else { own.len().max(1) };
    let mut on_done = || {
        team.goes_on();
        on_done();
    };
    let mut words = vec![];
    for questions in own.chunks(at_once) {
        answers.answers(model, questions, &mut on_done)?.iter().for_each(|answer| answer.write(&mut words));
    }
    let mut all: Vec<VecDeque<u32>> = team.gather_lists(&words)?.into_iter().map(VecDeque::from).collect();
    (0..questions.len()).map(|i| Answer::read(&mut all[of(i)])).collect()
}

impl Answer {
    /// Appends what [`Answer::read`] takes.
    fn write(&self, to: &mut Vec<u32>) {
        to.extend([self.tokens.len() as u32, self.ended.into(), self.alarm.into()]);
        to.extend(&self.tokens);
    }

    fn read(from: &mut VecDeque<u32>) -> Result<Answer> {
        let mut word = || from.pop_front().context("the answers of a rank are incomplete");
        let (n, ended, alarm) = (word()?, word()? != 0, word()? != 0);
        let tokens = (0..n).map(|_| word()).collect::<Result<_>>()?;
        Ok(Answer { tokens, ended, alarm })
    }
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

/// Some of the units in micro-batches.
fn batches(units: &[Unit], of: &[usize], s: &TrainerSettings) -> Vec<Distilled> {
    let units: Vec<&Unit> = of.iter().map(|&i| &units[i]).collect();
    let lengths: Vec<usize> = units.iter().map(|unit| unit.len()).collect();
    let batch = |of: Vec<usize>| {
        let mut batch = Distilled::default();
        for unit in of.into_iter().map(|i| units[i]) {
            let weight = if s.per_sentence { 1.0 / unit.learnt().max(1) as f32 } else { 1.0 };
            let [student, teacher] = &unit.prompts;
            batch.push(unit.id, [student, teacher], &unit.answer.tokens, unit.answer.ended, weight);
        }
        batch
    };
    first_fit(&lengths, s.batch_tokens).into_iter().map(batch).collect()
}

impl OnPolicy<'_> {
    /// Answers to the questions of `units`, of the model as it stands before the step, and the gradients of their loss, divided by its whole weight.
    ///
    /// # Errors
    /// The model's.
    pub(super) fn step(
        &self,
        model: &mut Transformer,
        step: &mut TrainStep,
        shard: &TokenShard,
        units: &[usize],
        (settings, over): (&TrainerSettings, OverRanks),
    ) -> Result<Measured> {
        let started = Instant::now();
        let question = |&unit: &usize| {
            let first = shard.unit(unit).start;
            let id = format!("{}/{}", over.number, shard.note(first));
            Question { id, tokens: shard.document(first).tokens }
        };
        let questions: Vec<Question> = units.iter().map(question).collect();
        let adapted = Adapted { model, adapters: step.current_adapter(model)? };
        let how = (over.team, over.fixed_order);
        let answers = drawn(self.answers, adapted, &questions, how, &mut || {})?;
        let answered = measure(&answers, started.elapsed().as_secs_f64());
        let units: Vec<Unit> =
            units.iter().zip(answers).map(|(&u, answer)| Unit::of(shard, u, answer)).collect();
        let weight: f64 = match settings.per_sentence {
            true => units.len() as f64,
            false => units.iter().map(Unit::learnt).sum::<usize>() as f64,
        };
        let all: Vec<usize> = (0..units.len()).collect();
        let batches = batches(&units, &over.own(&all), settings);
        let sum =
            over.gradients(model, step, &batches, &mut |model, step, batch, sum: &mut DistilledSum| {
                sum.add(step.distil(model, batch, Some((1.0 / weight) as f32))?);
                Ok(())
            })?;
        Ok(Measured { sum, answered: Some(answered) })
    }

    /// The divergence on the held-out answers, whose micro-batches the ranks share.
    ///
    /// # Errors
    /// The model's; answers to other questions.
    pub(super) fn evaluate(
        &self,
        model: &Transformer,
        step: &mut TrainStep,
        shard: &TokenShard,
        (settings, team): (&TrainerSettings, &Team),
    ) -> Result<Measured> {
        let (n, path) = (self.held_out.len(), shard.path().display());
        ensure!(n == shard.units(), "{n} answers to the {} questions of {path}", shard.units());
        let unit = |(u, answer): (usize, &Answer)| Unit::of(shard, u, answer.clone());
        let units: Vec<Unit> = self.held_out.iter().enumerate().map(unit).collect();
        let all: Vec<usize> = (0..n).collect();
        let batches = batches(&units, &all, settings);
        let sum =
            in_rounds(model, step, team, &batches, &mut |model, step, batch, sum: &mut DistilledSum| {
                sum.add(step.distil(model, batch, None)?);
                Ok(())
            })?;
        Ok(Measured { sum, answered: None })
    }
}

fn measure(answers: &[Answer], seconds: f64) -> Answered {
    let (n, tokens) = (answers.len().max(1) as f64, answers.iter().map(|a| a.tokens.len()).sum::<usize>());
    let alarms = answers.iter().filter(|a| a.alarm).count() as f64 / n;
    Answered { tokens, seconds, length: tokens as f64 / n, alarms }
}
