//! From a recipe's settings to the trainer's.
use serde_json::Value;

use crate::{
    models::transformer::lora::all_linears,
    recipe::{
        objective::Objective,
        train::{GuardAction, Method, Normalize, TrainSettings},
    },
    train::{
        guard::{GuardSettings, Reaction},
        optimizer::OptimizerSettings,
        schedule::Schedule,
        trainer::TrainerSettings,
    },
};

/// The modules by name; PEFT's `all-linear` is all of them.
pub(super) fn targets(named: &[String]) -> Vec<String> {
    let all = named.iter().any(|name| name.eq_ignore_ascii_case("all-linear"));
    if all { all_linears() } else { named.to_vec() }
}

/// What the loop needs to know.
pub(super) fn trainer_settings(s: &TrainSettings, identity: Value) -> TrainerSettings {
    let preference = s.objective != Objective::Sft;
    let lr = s.lr.unwrap_or(match s.method {
        Method::Lora if preference => 1e-5,
        Method::Lora => 1e-4,
        Method::Full if preference => 1e-6,
        Method::Full => 2e-5,
        Method::Scratch => 1e-3,
    });
    TrainerSettings {
        epochs: s.epochs,
        max_steps: s.max_steps,
        batch_documents: s.batch_documents.unwrap_or(128),
        batch_tokens: s.batch_tokens,
        lr,
        schedule: Schedule {
            kind: s.schedule,
            warmup: 0,
            total: 0,
            decay: 0,
            min_ratio: s.min_lr_ratio,
            above_zero: s.warmup_above_zero,
        },
        warmup_ratio: s.warmup_ratio,
        decay_ratio: s.decay_ratio,
        optimizer: OptimizerSettings {
            beta1: s.beta1,
            beta2: s.beta2,
            eps: s.eps,
            weight_decay: s.weight_decay,
            clip: s.clip,
            lora_plus_ratio: s.lora_plus_ratio,
        },
        // Needs the reference's log-probabilities.
        preference: None,
        per_sentence: s.normalize == Normalize::Sentences,
        eval_every: s.eval_every,
        patience: s.patience,
        min_delta: s.min_delta,
        guard: GuardSettings {
            reaction: match s.guard {
                GuardAction::Log => Reaction::Log,
                GuardAction::Stop => Reaction::Stop,
                GuardAction::Reweight => Reaction::Reweight,
            },
            max_rise: s.guard_max_rise,
        },
        checkpoint_every: s.checkpoint_every,
        keep_checkpoints: s.keep_checkpoints,
        seed: s.seed,
        identity,
    }
}
