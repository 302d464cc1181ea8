//! What is measured of preferences, by the names that TRL's trainers log.
use std::{fmt, ops::AddAssign};

use crate::train::gradients::Sum;

/// A value that is averaged over units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    ChosenReward,
    RejectedReward,
    Accuracy,
    Margin,
    ChosenLogp,
    RejectedLogp,
    Nll,
    LogOddsRatio,
    LogOdds,
    Kl,
}

/// Names in the logs of steps and of evaluations, in the order of [`Value`].
const NAMES: [[&str; 2]; 10] = [
    ["train/rewards/chosen", "eval/rewards/chosen"],
    ["train/rewards/rejected", "eval/rewards/rejected"],
    ["train/rewards/accuracies", "eval/rewards/accuracies"],
    ["train/rewards/margins", "eval/rewards/margins"],
    ["train/logps/chosen", "eval/logps/chosen"],
    ["train/logps/rejected", "eval/logps/rejected"],
    ["train/nll_loss", "eval/nll_loss"],
    ["train/log_odds_ratio", "eval/log_odds_ratio"],
    ["train/log_odds_chosen", "eval/log_odds_chosen"],
    ["train/kl", "eval/kl"],
];

/// Loss and means of a step or an evaluation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measured {
    /// The mean loss.
    pub loss: f64,
    /// Tokens that were run.
    pub tokens: usize,
    /// Sum and number of each value.
    sums: [(f64, f64); NAMES.len()],
}

/// The two numbers that a person looks at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rewards {
    /// Mean reward of chosen replies less that of rejected ones.
    pub margin: f64,
    /// The share of pairs whose chosen reply has the higher reward; none where replies are judged one by one.
    pub accuracy: Option<f64>,
}

impl fmt::Display for Rewards {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "margin {:.3}", self.margin)?;
        self.accuracy.map_or(Ok(()), |x| write!(f, ", accuracy {:.0} %", 100.0 * x))
    }
}

impl Sum for Measured {
    fn numbers(&self) -> Vec<f64> {
        let sums = self.sums.iter().flat_map(|&(sum, n)| [sum, n]);
        [self.loss, self.tokens as f64].into_iter().chain(sums).collect()
    }
    fn of(numbers: &[f64]) -> Measured {
        let mut measured = Measured { loss: numbers[0], tokens: numbers[1] as usize, ..Measured::default() };
        let pairs = numbers[2..].chunks_exact(2).map(|pair| (pair[0], pair[1]));
        measured.sums.iter_mut().zip(pairs).for_each(|(sum, pair)| *sum = pair);
        measured
    }
    fn join(&mut self, other: Measured) {
        self.loss += other.loss;
        self.tokens += other.tokens;
        for ((sum, n), (more, of)) in self.sums.iter_mut().zip(other.sums) {
            *sum += more;
            *n += of;
        }
    }
    fn loss(&self) -> f64 {
        self.loss
    }
}

impl Measured {
    pub(super) fn add(&mut self, value: Value, x: f64) {
        self.add_many(value, x, 1.0);
    }

    /// `more` values with this sum.
    pub(super) fn add_many(&mut self, value: Value, all: f64, more: f64) {
        let (sum, n) = &mut self.sums[value as usize];
        sum.add_assign(all);
        n.add_assign(more);
    }

    /// The reward and the log-probability of a reply that was judged alone.
    pub(super) fn judge(&mut self, is_desirable: bool, reward: f64, logp: f64) {
        let (of_reward, of_logp) = match is_desirable {
            true => (Value::ChosenReward, Value::ChosenLogp),
            false => (Value::RejectedReward, Value::RejectedLogp),
        };
        self.add(of_reward, reward);
        self.add(of_logp, logp);
    }

    /// The rewards and the log-probabilities of a pair.
    pub(super) fn compare(&mut self, [chosen, rejected]: [f64; 2], logps: [f64; 2]) {
        self.judge(true, chosen, logps[0]);
        self.judge(false, rejected, logps[1]);
        self.add(Value::Accuracy, if chosen > rejected { 1.0 } else { 0.0 });
    }

    /// The mean of a value; of the margin the difference of the rewards' means.
    fn mean(&self, value: usize) -> Option<f64> {
        if value == Value::Margin as usize {
            return Some(
                self.mean(Value::ChosenReward as usize)? - self.mean(Value::RejectedReward as usize)?,
            );
        }
        let (sum, n) = self.sums[value];
        (n > 0.0).then_some(sum / n)
    }

    /// Every mean by its name in the logs of steps, or of evaluations.
    pub fn named(&self, evaluation: bool) -> Vec<(&'static str, f64)> {
        let name = |i: usize| NAMES[i][usize::from(evaluation)];
        (0..NAMES.len()).filter_map(|i| Some((name(i), self.mean(i)?))).collect()
    }

    /// Margin and accuracy, where there was anything to compare.
    pub fn rewards(&self) -> Option<Rewards> {
        let margin = self.mean(Value::Margin as usize)?;
        Some(Rewards { margin, accuracy: self.mean(Value::Accuracy as usize) })
    }
}
