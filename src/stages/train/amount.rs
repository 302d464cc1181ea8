//! How much a training has to do, and about how long that takes here.
use super::{Args, summary::print_memory};
use crate::{
    bench::calibrate,
    data::token_shard::TokenShard,
    models::transformer::{config::Config, train_step::TrainStep, weights::Transformer},
    recipe::{
        objective::Objective,
        train::{KeepSource, Method, TrainSettings},
    },
    report::{
        out::{note, say},
        progress::span,
    },
};

/// Optimizer steps at most, and the tokens of all of them, those of dearer methods counted as the LoRA tokens that take as long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Amount {
    /// Steps.
    pub steps: f64,
    /// Tokens.
    pub tokens: f64,
}

impl Amount {
    /// Of so many documents (or units of preferences) of so many tokens each.
    pub fn of(s: &TrainSettings, documents: f64, tokens: f64) -> Amount {
        let documents = documents.max(1.0);
        let step = (s.batch_documents.unwrap_or(128) as f64).clamp(1.0, documents);
        let all = (s.epochs * (documents / step).ceil()).ceil().max(1.0);
        let steps = if s.max_steps > 0 { all.min(s.max_steps as f64) } else { all };
        // Gradients of all weights are half as much again; so is the reference's pass of preferences; keeping the source adds a pass for its rows.
        let method = if s.method == Method::Lora { 1.0 } else { 1.5 };
        // Of a student's and a teacher's document the first, which is shorter, is run each time.
        let objective = match s.objective {
            Objective::Sft => 1.0,
            Objective::TopK => 0.5,
            _ => 1.5,
        };
        // A pass through half of the layers, both ways, for each sentence of a step.
        let aligned = s.aligning().map_or(0.0, |a| a.batch as f64 * SENTENCE);
        let keeping = if s.keep_source == KeepSource::CrossEntropy { 1.0 } else { 1.3 };
        Amount {
            steps,
            tokens: steps
                * method
                * ((documents / (documents / step).ceil()) * tokens * objective * keeping + aligned),
        }
    }

    /// Seconds, at least and at most: evaluations come on top of steps.
    pub fn seconds(&self, rates: &calibrate::Rates) -> [f64; 2] {
        [self.tokens * rates.train, 1.2 * self.tokens * rates.train]
    }
}

/// Tokens of a sentence that is aligned, about: nobody has counted them.
const SENTENCE: f64 = 30.0;

/// FLOP of a training that is over before its time is worth measuring.
const LITTLE: f64 = 1e12;

/// Prints the memory and the time that training takes on `ranks` devices.
pub(super) fn print(
    args: &Args,
    (model, step): (&Transformer, &TrainStep),
    shard: &TokenShard,
    ranks: usize,
) {
    let sharing = if args.settings.shard.is_usual() { 1 } else { ranks };
    print_memory(model, step, (args.settings.optimizer, sharing));
    print_time(args, &model.config, shard);
}

/// Says about how long the training will take, if it is more than seconds.
fn print_time(args: &Args, config: &Config, shard: &TokenShard) {
    let each = shard.tokens() as f64 / shard.units().max(1) as f64;
    let amount = Amount::of(&args.settings, shard.units() as f64, each);
    // Nobody knows how long the answers that are drawn between steps will be.
    if args.settings.rollouts().is_some() || 6.0 * config.parameters() as f64 * amount.tokens < LITTLE {
        return;
    }
    let length = shard.tokens() / shard.len().max(1);
    match calibrate::decoder(config, args.placement, length, args.settings.lora_rank.max(1), 1) {
        Ok(rates) => {
            let [low, high] = amount.seconds(&rates);
            let time = span([low * calibrate::OFF[0], high * calibrate::OFF[1]]);
            let early = if args.settings.patience > 0 { ", less if it stops early" } else { "" };
            say!("train: {time} for {:.0} steps{early} (from one layer's speed, measured now)", amount.steps);
        }
        Err(e) => note!("train: how long it will take is not known: {e:#}"),
    }
}
