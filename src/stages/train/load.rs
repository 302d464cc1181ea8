//! The model and what of it is trained, as the arguments have them.
use std::path::Path;

use anyhow::{Result, ensure};

use super::{
    Args,
    settings::{lora_config, says_dropout},
};
use crate::{
    data::token_shard::TokenShard,
    error::Error,
    models::transformer::{
        config::Config,
        lora::Lora,
        train_step::{TrainStep, Trainable},
        weights::Transformer,
    },
    ops::kl_divergence::Mixed,
    pipeline::placement::Placement,
    recipe::train::{Method, TrainSettings},
    report::out::note,
    tensor::DType,
    train::validation::largest_batch,
};

/// Refuses what training reads of no base model.
pub(super) fn check_placement(args: &Args) -> Result<()> {
    args.placement.stored_if(args.settings.method == Method::Lora, "training of all weights")?;
    let only = "training reads activations in f32: leave --activations out";
    ensure!(args.placement == args.placement.in_f32(), Error::setting("activations", only));
    Ok(())
}

/// The model at `path`, on the CPU, and its trainable parts.
///
/// # Errors
/// Weights or an adapter that are missing, damaged or do not belong together; too little memory.
pub(super) fn load(args: &Args, path: &Path) -> Result<(Transformer, Trainable)> {
    let s = &args.settings;
    let other = "--adapter starts LoRA training; it does not go with another --method";
    ensure!(args.adapter.is_none() || s.method == Method::Lora, Error::setting("train.method", other));
    if s.method == Method::Scratch {
        let config = Config::from_dir(path)?;
        return Ok((Transformer::random(config, s.seed)?, Trainable::Full));
    }
    let dtype = if s.method == Method::Full { DType::F32 } else { args.placement.dtype };
    let mut model = Transformer::load_for(path, Placement { dtype, ..args.placement })?;
    if s.method == Method::Full {
        model.make_trainable()?;
        return Ok((model, Trainable::Full));
    }
    if let Some(dir) = &args.adapter {
        let lora = Lora::load(dir, &model)?;
        ensure!(
            lora.parameters() > 0,
            "the adapter {} adapts no linear of the layers, so there is nothing to train on: merge it first",
            dir.display()
        );
        says_dropout(s, &lora, dir)?;
        model.replace(&lora)?;
        for setting in lora.untrained_settings() {
            note!("train: {setting} of {} is not used in training, and stays as it is", dir.display());
        }
        return Ok((model, Trainable::Lora(lora)));
    }
    let lora = Lora::init(&model, lora_config(s), s.seed)?;
    Ok((model, Trainable::Lora(lora)))
}

/// Tokens of the longest batch of these shards, the first of which is trained on, and of its longest document.
pub(super) fn room([train, validation, source]: [Option<&TokenShard>; 3], batch_tokens: usize) -> usize {
    let longest = |shard: &TokenShard| (0..shard.len()).map(|i| shard.document_len(i)).max();
    let all = [train, validation, source].into_iter().flatten();
    largest_batch(all, batch_tokens).max(train.and_then(longest).unwrap_or(0))
}

/// What a training step needs, for documents of up to `longest` tokens.
///
/// # Errors
/// Too little memory.
pub(super) fn step_of(
    s: &TrainSettings,
    model: &Transformer,
    trainable: Trainable,
    mixed: Option<Mixed>,
    longest: usize,
) -> Result<TrainStep> {
    let rollouts = s.rollouts();
    // Answers come on top of what is packed.
    let room = if rollouts.is_some() { longest.max(s.batch_tokens) } else { longest };
    let step = TrainStep::new(model, trainable, room)?.keep_source(model, mixed)?;
    match rollouts {
        Some(rollouts) => step.distilling(model, rollouts.clip),
        None if s.stored_teacher().is_some() => step.distilling_stored(model),
        None => Ok(step),
    }
}
