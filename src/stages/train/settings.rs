//! From a recipe's settings to the trainer's.
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    data::{token_shard::TokenShard, tokenizer::Tokenizer},
    device::DeviceChoice,
    error::Error,
    models::{
        transformer::{
            config::Config,
            lora::{Lora, LoraConfig, all_linears},
            spec::Spec,
            train_step::{Param, Trainable, outline::Outline},
        },
        weights::WeightSource,
    },
    ops::kl_divergence::Mixed,
    pipeline::placement::Placement,
    recipe::train::{GuardAction, KeepSource, Method, Normalize, Reduce, TrainSettings},
    report::out::note,
    tensor::DType,
    train::{
        guard::{GuardSettings, Reaction, is_source},
        held_out_text::{HeldOutText, texts},
        optimizer::{OptimizerKind, OptimizerSettings, state_bytes},
        schedule::Schedule,
        trainer::TrainerSettings,
    },
};

/// The guard's plain text as the model takes it; before the weights are loaded.
///
/// # Errors
/// A file that cannot be read or holds no text; a tokenizer or config.json that is missing or not understood.
pub(super) fn guard_text(s: &TrainSettings, model: &Path) -> Result<Option<HeldOutText>> {
    let Some(file) = &s.guard_file else { return Ok(None) };
    let context = match s.method {
        Method::Scratch => Config::from_dir(model)?,
        _ => WeightSource::open(model)?.0,
    };
    let tokenizer = Tokenizer::load(model)?;
    let text = HeldOutText::new(&texts(file)?, &tokenizer, context.max_position_embeddings, file);
    text.context("train.guard-file").map(Some)
}

/// A guard that is to react needs something to look at, and to weigh.
pub(super) fn check_guard(s: &TrainSettings, source: Option<&TokenShard>, train: &TokenShard) -> Result<()> {
    if s.guard == GuardAction::Log {
        return Ok(());
    }
    let rise = s.guard_max_rise;
    let message = || format!("train.guard-max-rise is {rise}: nats, 0 or more, were expected");
    ensure!(rise >= 0.0 && rise.is_finite(), Error::setting("train.guard-max-rise", message()));
    ensure!(
        s.guard_file.is_some() || source.is_some_and(|v| !v.is_empty()),
        "train.guard is on, but there are no held-out source rows (source.tokens beside {}): name a guard-file, or assemble with a `validation` share above 0",
        train.path().display()
    );
    let any = (0..train.len()).any(|i| is_source(&train.document(i).note));
    ensure!(
        s.guard != GuardAction::Reweight || any,
        "train.guard = reweight, but {} holds no source row (pair S>S): add S>S to assemble.pairs, or use guard = stop",
        train.path().display()
    );
    Ok(())
}

/// How source rows keep the base model, if they do.
///
/// # Errors
/// No source row is trained on; an adapter that replaces modules of the base, so that the base is not there without it.
pub(super) fn kept(s: &TrainSettings, train: &TokenShard, trainable: &Trainable) -> Result<Option<Mixed>> {
    let hard = match s.keep_source {
        KeepSource::CrossEntropy => return Ok(None),
        KeepSource::Kl => 0.0,
        KeepSource::Both => 1.0,
    };
    let none = || {
        let shard = train.path().display();
        format!("train.keep-source: {shard} holds no source row (pair S>S): add S>S to assemble.pairs")
    };
    let any = (0..train.len()).any(|i| is_source(&train.document(i).note));
    ensure!(any, Error::setting("train.keep-source", none()));
    let replaced = "train.keep-source: the adapter replaces modules of the base model, so that there is no base to keep: merge it first";
    let is_base = matches!(trainable, Trainable::Lora(lora) if lora.replaced.is_empty());
    ensure!(is_base, Error::setting("train.keep-source", replaced));
    Ok(Some(Mixed { hard, soft: s.keep_source_weight as f32 }))
}

/// What training would take in memory, by purpose, as it says itself before its first step: of the model that lies in `source` (none from scratch), in batches of up to
/// `max_tokens` tokens.
///
/// # Errors
/// Adapter settings that adapt nothing; a tensor that is missing.
pub fn memory(
    spec: &Spec,
    source: Option<&WeightSource>,
    s: &TrainSettings,
    placement: Placement,
    max_tokens: usize,
) -> Result<Vec<(String, usize)>> {
    let on_gpu = placement.device != DeviceChoice::Cpu;
    let lora = (s.method == Method::Lora).then(|| lora_config(s));
    let source = source.filter(|_| lora.is_some());
    let of_base = |source: &WeightSource| {
        source.bytes_loaded(spec, placement.dtype.try_into()?, placement.keeps_blocks())
    };
    let weights = source.map_or(Ok(spec.parameters() * DType::F32.bytes()), of_base)?;
    let acts = if on_gpu && lora.is_some() { placement.dtype } else { DType::F32 };
    let keeps_source = s.keep_source != KeepSource::CrossEntropy;
    let distils = s.rollouts().is_some();
    let outline = Outline { spec, weights, lora, max_tokens, acts, on_gpu, keeps_source, distils };
    let (mut memory, params) = outline.measure()?;
    memory.push(state_of(&params, s.optimizer));
    Ok(memory)
}

/// The optimizer's part of the memory.
pub(super) fn state_of(params: &[Param], optimizer: OptimizerKind) -> (String, usize) {
    (format!("state of {}", optimizer.name()), state_bytes(params, optimizer))
}

/// New adapters as the settings have them.
pub(super) fn lora_config(s: &TrainSettings) -> LoraConfig {
    LoraConfig {
        r: s.lora_rank,
        alpha: s.lora_alpha,
        target_modules: targets(&s.lora_targets).into(),
        use_rslora: s.rslora,
        use_dora: s.dora,
        dropout: s.lora_dropout,
        ..LoraConfig::default()
    }
}

/// The modules by name; PEFT's `all-linear` is all of them.
fn targets(named: &[String]) -> Vec<String> {
    let all = named.iter().any(|name| name.eq_ignore_ascii_case("all-linear"));
    if all { all_linears() } else { named.to_vec() }
}

/// An adapter that is trained on brings its dropout: it is said, and an error if the settings ask for another.
pub(super) fn says_dropout(s: &TrainSettings, lora: &Lora, dir: &Path) -> Result<()> {
    let (own, asked) = (lora.config.dropout, s.lora_dropout);
    let range = || format!("lora_dropout of {} is {own}: from 0 to below 1 was expected", dir.display());
    ensure!((0.0..1.0).contains(&own), Error::bad_input(dir.display(), range()));
    let message = format!(
        "lora-dropout is {asked}, but {} was made with lora_dropout {own}, which counts: leave the setting out, or change adapter_config.json",
        dir.display()
    );
    ensure!(asked == 0.0 || asked == own, Error::setting("train.lora-dropout", message));
    if own != 0.0 {
        note!("train: lora_dropout {own} of {} counts here, too", dir.display());
    }
    Ok(())
}

/// What the loop needs to know.
pub(super) fn trainer_settings(s: &TrainSettings, identity: Value) -> TrainerSettings {
    let preference = s.preference().is_some();
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
            kind: s.optimizer,
            beta1: s.beta1,
            beta2: s.beta2,
            eps: s.eps,
            weight_decay: s.weight_decay,
            clip: s.clip,
            lora_plus_ratio: s.lora_plus_ratio,
        },
        // Needs the reference's log-probabilities.
        preference: None,
        fixed_order: s.reduce == Reduce::Fixed,
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
            max_bits: s.guard_max_bits,
        },
        checkpoint_every: s.checkpoint_every,
        keep_checkpoints: s.keep_checkpoints,
        seed: s.seed,
        identity,
    }
}
