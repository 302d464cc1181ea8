//! The trainer: interrupted runs, thread counts, accumulation, normalisation, early stopping, logs.
use std::{cell::Cell, path::Path};

use proptest::prelude::*;
use sdrrl::{
    data::{
        random::RowRandom,
        token_shard::{Document, TokenShard, write},
    },
    device::Device,
    infer::{
        engine::{Engine, EngineOptions},
        scoring::ScoreRequest,
    },
    models::{
        transformer::config::Config,
        transformer::lora::{Lora, LoraConfig},
        transformer::train_step::{PackedBatch, TrainStep, Trainable},
        transformer::weights::Transformer,
    },
    train::{
        checkpoint,
        guard::{GuardSettings, Reaction},
        optimizer::OptimizerSettings,
        schedule::{Schedule, ScheduleKind},
        trainer::{Checks, TrainEvent, TrainOutcome, TrainerSettings, train},
    },
};
use serde_json::{Value, json};

use crate::common::{assert_close, with_threads};

const VOCAB: usize = 48;

pub fn config() -> Config {
    serde_json::from_value(json!({
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": VOCAB, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": true, "initializer_range": 0.2
    }))
    .unwrap()
}

/// Documents that count upwards in steps of 1, 2 or 3: something to learn.
fn documents(n: usize, name: &str) -> Vec<Document> {
    let mut random = RowRandom::new(3, "documents", name);
    (0..n)
        .map(|i| {
            let (start, by, len) = (random.below(VOCAB), 1 + random.below(3), 5 + random.below(12));
            let tokens: Vec<u32> = (0..len).map(|k| ((start + by * k) % VOCAB) as u32).collect();
            let weights = (0..len).map(|k| if k < 2 { 0.0 } else { 1.0 }).collect();
            Document { tokens, weights, note: format!("{i} {}", if i % 2 == 0 { "S>S" } else { "T>T" }) }
        })
        .collect()
}

fn shards(dir: &Path) -> (TokenShard, TokenShard) {
    for (name, n) in [("train", 40), ("validation", 8)] {
        write(&dir.join(format!("{name}.tokens")), &documents(n, name)).unwrap();
    }
    let open = |name: &str| TokenShard::open(&dir.join(name)).unwrap();
    (open("train.tokens"), open("validation.tokens"))
}

pub fn settings() -> TrainerSettings {
    TrainerSettings {
        epochs: 3.0,
        max_steps: 0,
        batch_documents: 10,
        batch_tokens: 64,
        lr: 5e-3,
        schedule: Schedule {
            kind: ScheduleKind::Cosine,
            warmup: 0,
            total: 0,
            decay: 0,
            min_ratio: 0.0,
            above_zero: false,
        },
        warmup_ratio: 0.1,
        decay_ratio: 0.1,
        optimizer: OptimizerSettings {
            kind: Default::default(),
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            clip: 1.0,
            lora_plus_ratio: 1.0,
        },
        preference: None,
        fixed_order: false,
        narrow_sums: false,
        shard: Default::default(),
        per_sentence: false,
        eval_every: 3,
        patience: 0,
        min_delta: 0.0,
        guard: GuardSettings { reaction: Reaction::Log, max_rise: 0.1, max_bits: 0.02 },
        checkpoint_every: 2,
        keep_checkpoints: 2,
        seed: 5,
        identity: json!({"lr": 5e-3}),
    }
}

struct Trained {
    values: Vec<f32>,
    metrics: String,
    outcome: TrainOutcome,
}

/// As [`run_checked`], with the validation loss alone.
fn run(dir: &Path, out: &str, s: &TrainerSettings, lora: Option<LoraConfig>, stop_after: usize) -> Trained {
    run_checked(dir, out, s, lora, stop_after, false)
}

/// Trains into `out`, stopping after `stop_after` further steps; `lora` is `None` for all weights. `all_checks`: the guard and a
/// probe that runs the model, too.
fn run_checked(
    dir: &Path,
    out: &str,
    s: &TrainerSettings,
    lora: Option<LoraConfig>,
    stop_after: usize,
    all_checks: bool,
) -> Trained {
    let (shard, validation) = shards(dir);
    let mut model = Transformer::random(config(), 1).unwrap();
    let trainable = match lora {
        Some(c) => Trainable::Lora(Lora::init(&model, c, 2).unwrap()),
        None => Trainable::Full,
    };
    let mut step = TrainStep::new(&model, trainable, 64).unwrap();
    let done = Cell::new(0);
    let count = &mut |event: TrainEvent| {
        if matches!(event, TrainEvent::Step { .. }) {
            done.set(done.get() + 1);
        }
    };
    let mut probe = |model: &Transformer, step: &TrainStep| {
        let mut copy = model.to_device(&Device::Cpu)?;
        if let Some(lora) = step.adapter() {
            copy.apply_adapter(lora)?;
        }
        let request = ScoreRequest { tokens: vec![1, 3, 5, 7], start: 1 };
        let scores = Engine::new(&copy, EngineOptions::default())?.log_probs(&[request], &mut |_| {})?;
        Ok(vec![("probe/score".to_string(), f64::from(scores[0][0]))])
    };
    let out = dir.join(out);
    let outcome = train(
        &mut model,
        &mut step,
        &shard,
        Checks {
            validation: Some(&validation),
            source: all_checks.then_some(&validation),
            text: None,
            probe: all_checks.then_some(&mut probe),
            distillation: None,
            alignment: None,
            team: Default::default(),
        },
        s,
        &out,
        &|| done.get() >= stop_after,
        count,
    )
    .unwrap();
    let values = step.params(&model).iter().flat_map(|p| p.value().to_f32_vec().unwrap()).collect();
    Trained { values, metrics: std::fs::read_to_string(out.join("metrics.jsonl")).unwrap(), outcome }
}

const WHOLE: usize = usize::MAX;

#[test]
fn a_resumed_run_equals_an_uninterrupted_one_bit_for_bit_with_any_thread_count() {
    let lora = LoraConfig { r: 4, ..Default::default() };
    for lora in [None, Some(lora.clone()), Some(LoraConfig { dropout: 0.2, ..lora })] {
        let dir = tempfile::tempdir().unwrap();
        let whole = with_threads(2, || run(dir.path(), "whole", &settings(), lora.clone(), WHOLE));
        assert!(whole.outcome.finished && whole.outcome.steps == 12);
        // Interrupted twice, with other thread counts.
        assert!(!with_threads(1, || run(dir.path(), "parts", &settings(), lora.clone(), 3)).outcome.finished);
        assert!(!with_threads(3, || run(dir.path(), "parts", &settings(), lora.clone(), 4)).outcome.finished);
        // Killed: the newest checkpoint is gone, the log is ahead of what remains.
        let newest = checkpoint::list(&dir.path().join("parts")).pop().unwrap();
        std::fs::remove_dir_all(newest.1).unwrap();
        let parts = with_threads(2, || run(dir.path(), "parts", &settings(), lora.clone(), WHOLE));
        assert_eq!(parts.metrics, whole.metrics);
        assert_eq!(parts.outcome, whole.outcome);
        assert!(
            parts.values.iter().zip(&whole.values).all(|(a, b)| a.to_bits() == b.to_bits()),
            "parameters differ"
        );
        // And once more, when everything is done but nothing was exported.
        let again = run(dir.path(), "parts", &settings(), lora, WHOLE);
        assert_eq!(again.outcome, whole.outcome);
    }
}

#[test]
fn a_checkpoint_of_other_settings_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), "out", &settings(), None, 3);
    let other = TrainerSettings { identity: json!({"lr": 1e-3}), ..settings() };
    let (shard, _) = shards(dir.path());
    let mut model = Transformer::random(config(), 1).unwrap();
    let mut step = TrainStep::new(&model, Trainable::Full, 64).unwrap();
    let out = dir.path().join("out");
    let error = train(&mut model, &mut step, &shard, Checks::default(), &other, &out, &|| false, &mut |_| {})
        .unwrap_err()
        .to_string();
    assert!(error.contains("lr: 0.005 -> 0.001") && error.contains("--restart"), "{error}");
}

fn of_tag(metrics: &str, tag: &str) -> Vec<(u64, f64)> {
    let rows = metrics.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
    rows.filter_map(|v| Some((v["step"].as_u64().unwrap(), v[tag].as_f64()?))).collect()
}

#[test]
fn guard_and_probe_are_logged_and_change_no_bit_of_the_training() {
    for lora in [None, Some(LoraConfig { r: 4, ..Default::default() })] {
        let dir = tempfile::tempdir().unwrap();
        let plain = run(dir.path(), "plain", &settings(), lora.clone(), WHOLE);
        let checked = run_checked(dir.path(), "checked", &settings(), lora, WHOLE, true);
        assert_eq!(plain.values, checked.values);
        let source = of_tag(&checked.metrics, "eval/source_loss");
        assert_eq!(source.iter().map(|p| p.0).collect::<Vec<_>>(), [0, 3, 6, 9, 12]);
        // The same rows as the validation loss here.
        assert_eq!(source, of_tag(&checked.metrics, "eval/loss"));
        let probe = of_tag(&checked.metrics, "eval/probe/score");
        assert!(
            probe.len() == 5 && probe[0].1 != probe[4].1,
            "the probe sees the model in training: {probe:?}"
        );
    }
}

#[test]
fn a_guard_that_reweights_resumes_bit_for_bit_and_one_that_stops_stops() {
    let guarded = |reaction| TrainerSettings {
        // Any loss above this far below the first one counts as a rise.
        guard: GuardSettings { reaction, max_rise: -100.0, max_bits: 0.02 },
        ..settings()
    };
    let dir = tempfile::tempdir().unwrap();
    let reweight = guarded(Reaction::Reweight);
    let whole = run_checked(dir.path(), "whole", &reweight, None, WHOLE, true);
    assert_ne!(
        whole.values,
        run(dir.path(), "plain", &settings(), None, WHOLE).values,
        "source rows weigh more"
    );
    for steps in [1, 4, WHOLE] {
        let part = run_checked(dir.path(), "parts", &reweight, None, steps, true);
        if part.outcome.finished {
            assert_eq!((&part.values, &part.metrics), (&whole.values, &whole.metrics));
        }
    }
    let stopped = run_checked(dir.path(), "stopped", &guarded(Reaction::Stop), None, WHOLE, true);
    assert!(stopped.outcome.finished && stopped.outcome.steps == 3, "{:?}", stopped.outcome);
    assert_eq!(stopped.outcome.best, None, "what the guard stops at is never the best");
}

#[test]
fn accumulated_small_batches_equal_one_large_batch() {
    let dir = tempfile::tempdir().unwrap();
    // Without validation in between; AdamW's root makes tiny differences visible, hence plain tolerance on few steps.
    let of = |batch_tokens, name: &str| {
        let s = TrainerSettings { batch_tokens, max_steps: 3, eval_every: 100, ..settings() };
        let (shard, _) = shards(dir.path());
        let mut model = Transformer::random(config(), 1).unwrap();
        let mut step = TrainStep::new(&model, Trainable::Full, 512).unwrap();
        let out = dir.path().join(name);
        let mut losses = vec![];
        train(&mut model, &mut step, &shard, Checks::default(), &s, &out, &|| false, &mut |e| {
            if let TrainEvent::Step { loss, grad_norm, .. } = e {
                losses.extend([loss as f32, grad_norm as f32]);
            }
        })
        .unwrap();
        losses
    };
    assert_close("losses and gradient norms", of(20, "small"), &of(512, "large"), 1e-5);
}

#[test]
fn per_sentence_every_document_counts_the_same() {
    let model = Transformer::random(config(), 1).unwrap();
    let documents = documents(6, "x");
    let mut step = TrainStep::new(&model, Trainable::Full, 256).unwrap();
    let mut mean_of = |docs: &[&Document], per_sentence: bool| {
        let mut batch = PackedBatch::default();
        for d in docs {
            let n: f32 = d.weights.iter().sum();
            let scale = if per_sentence { 1.0 / n } else { 1.0 };
            batch.push(&d.tokens, &d.weights.iter().map(|w| w * scale).collect::<Vec<_>>());
        }
        step.forward(&model, &batch).unwrap().mean()
    };
    let each: Vec<f64> = documents.iter().map(|d| mean_of(&[d], false)).collect();
    let all: Vec<&Document> = documents.iter().collect();
    let mean = each.iter().sum::<f64>() / each.len() as f64;
    assert!((mean_of(&all, true) - mean).abs() < 1e-5);
    assert!((mean_of(&all, false) - mean).abs() > 1e-4, "by tokens, long documents count more");
}

#[test]
fn every_kind_of_adapter_learns_and_early_stopping_restores_the_best() {
    let dir = tempfile::tempdir().unwrap();
    for (i, lora) in [
        LoraConfig { r: 4, ..Default::default() },
        LoraConfig { r: 4, use_rslora: true, ..Default::default() },
        LoraConfig { r: 4, use_dora: true, ..Default::default() },
    ]
    .into_iter()
    .enumerate()
    {
        let mut s = settings();
        s.optimizer.lora_plus_ratio = if i == 0 { 4.0 } else { 1.0 };
        let t = run(dir.path(), &format!("lora{i}"), &s, Some(lora), WHOLE);
        let losses: Vec<f64> = t
            .metrics
            .lines()
            .filter_map(|l| serde_json::from_str::<Value>(l).unwrap()["train/loss"].as_f64())
            .collect();
        assert!(losses[losses.len() - 1] < losses[0] - 0.1, "{losses:?}");
    }
    // A learning rate that ruins the model: training stops, and the best parameters come back.
    let s = TrainerSettings {
        lr: 3.0,
        patience: 2,
        eval_every: 1,
        epochs: 20.0,
        warmup_ratio: 0.0,
        ..settings()
    };
    let t = run(dir.path(), "ruined", &s, None, WHOLE);
    // Nothing is called the best that is no better than the model before.
    assert!(t.outcome.best.is_none() && t.outcome.warning.is_some(), "{:?}", t.outcome);
    let after = of_tag(&t.metrics, "eval/loss").into_iter().filter(|(step, _)| *step > 0);
    let (at, best) = after.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    assert!(t.outcome.steps == at + 2, "stopped after two evaluations without improvement: {:?}", t.outcome);
    let (shard, validation) = shards(dir.path());
    drop(shard);
    let mut model = Transformer::random(config(), 1).unwrap();
    model.make_trainable().unwrap();
    let mut step = TrainStep::new(&model, Trainable::Full, 64).unwrap();
    let mut from = &t.values[..];
    for mut p in step.params(&model) {
        let (own, rest) = from.split_at(p.value().len());
        p.write(own).unwrap();
        from = rest;
    }
    let loss = sdrrl::train::validation::validation_loss(&model, &mut step, &validation, &s).unwrap();
    assert!((loss - best).abs() < 1e-9, "{loss} is not the best loss {best}");
}

#[test]
fn a_loss_that_is_not_finite_ends_training_with_advice() {
    let dir = tempfile::tempdir().unwrap();
    let (shard, _) = shards(dir.path());
    let mut model = Transformer::random(config(), 1).unwrap();
    let mut step = TrainStep::new(&model, Trainable::Full, 64).unwrap();
    let first = &mut step.params(&model)[0];
    first.write(&vec![f32::NAN; first.value().len()]).unwrap();
    let out = dir.path().join("out");
    let error =
        train(&mut model, &mut step, &shard, Checks::default(), &settings(), &out, &|| false, &mut |_| {})
            .unwrap_err()
            .to_string();
    assert!(error.contains("step 1") && error.contains("NaN") && error.contains("learning rate"), "{error}");
}

/// Reads a TensorBoard file as its specification says: length, masked CRC-32C, payload, masked CRC-32C.
#[test]
fn tensorboard_files_hold_sound_records() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), "out", &settings(), None, WHOLE);
    let events = std::fs::read_dir(dir.path().join("out")).unwrap().flatten().map(|e| e.path());
    let path = events.into_iter().find(|p| p.to_string_lossy().contains("tfevents")).unwrap();
    let bytes = std::fs::read(path).unwrap();
    let crc = |data: &[u8]| {
        // Bit by bit, from the polynomial.
        let mut c = !0u32;
        for b in data {
            c ^= u32::from(*b);
            (0..8).for_each(|_| c = if c & 1 == 1 { (c >> 1) ^ 0x82F6_3B78 } else { c >> 1 });
        }
        let c = !c;
        c.rotate_right(15).wrapping_add(0xA282_EAD8)
    };
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let (mut at, mut records, mut tags) = (0, 0, 0);
    while at < bytes.len() {
        let n = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        assert_eq!(word(at + 8), crc(&bytes[at..at + 8]));
        let payload = &bytes[at + 12..at + 12 + n];
        assert_eq!(word(at + 12 + n), crc(payload));
        tags += usize::from(payload.windows(10).any(|w| w == b"train/loss"));
        records += 1;
        at += 16 + n;
    }
    assert!(tags == 12 && records > 48, "{records} records, {tags} losses");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]
    #[test]
    fn a_damaged_checkpoint_is_passed_over_and_none_that_is_sound_is_named(cut in 0usize..2000) {
        let dir = tempfile::tempdir().unwrap();
        run(dir.path(), "out", &settings(), None, 3);
        let out = dir.path().join("out");
        let name = if cut % 2 == 0 { "state.json" } else { "state.safetensors" };
        let damage = || {
            let file = checkpoint::list(&out).pop().unwrap().1.join(name);
            let bytes = std::fs::read(&file).unwrap();
            std::fs::write(&file, &bytes[..cut.min(bytes.len() - 3)]).unwrap();
            file
        };
        let (shard, _) = shards(dir.path());
        let mut model = Transformer::random(config(), 1).unwrap();
        let mut step = TrainStep::new(&model, Trainable::Full, 64).unwrap();
        let mut again = |stop: bool| {
            let mut resumed = 0;
            let mut see = |event| if let TrainEvent::Resumed { step } = event { resumed = step };
            let end = train(&mut model, &mut step, &shard, Checks::default(), &settings(), &out, &|| stop, &mut see);
            end.map(|_| resumed)
        };
        prop_assert_eq!(checkpoint::list(&out).iter().map(|c| c.0).collect::<Vec<_>>(), [2, 3]);
        damage();
        prop_assert_eq!(again(true).unwrap(), 2, "the older one is sound");
        let file = damage();
        let error = again(false).unwrap_err();
        prop_assert!(format!("{error:#}").contains(&*file.file_name().unwrap().to_string_lossy()), "{error:#}");
    }
}
