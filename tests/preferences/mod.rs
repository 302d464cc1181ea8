//! Preference training against TRL's trainers (tests/golden/preferences.safetensors, scripts/golden_preferences.py), and by commands.
mod commands;

use std::{fs, path::Path};

use sdrrl::{
    data::{
        questions::preferences::Rows,
        token_shard::{Document, TokenShard, write},
    },
    device::Device,
    distributed::team::Team,
    models::{
        transformer::{
            lora::{Lora, LoraConfig},
            train_step::{PackedBatch, TrainStep, Trainable},
            weights::Transformer,
        },
        weights::safetensors::Checkpoint,
    },
    tensor::DType,
    train::{
        gradients::OverRanks,
        optimizer::OptimizerSettings,
        preference::{PairLoss, Preference, PreferenceLoss},
        schedule::{Schedule, ScheduleKind},
        trainer::{Checks, TrainEvent, TrainerSettings, train},
    },
};
use serde_json::Value;

use crate::common::{assert_close, with_threads};

const STEPS: u64 = 5;

struct Golden(Checkpoint);

impl Golden {
    fn open() -> Golden {
        Golden(Checkpoint::open_file(Path::new("tests/golden/preferences.safetensors")).unwrap())
    }
    fn get(&self, name: &str) -> Vec<f32> {
        let shape = self.0.shape(name).unwrap_or_else(|| panic!("no golden {name}")).to_vec();
        self.0.tensor(name, &shape, DType::F32).unwrap().to_f32_vec().unwrap()
    }
    /// Documents of `rows` (pairs, labels) with these notes.
    fn documents(&self, rows: &str, note: &dyn Fn(usize) -> String) -> Vec<Document> {
        let integers = |name: &str| self.0.integers(&format!("{rows}.{name}")).unwrap();
        let (tokens, cu, weights) =
            (integers("tokens"), integers("cu_seqlens"), self.get(&format!("{rows}.weights")));
        let spans = cu.windows(2).map(|d| d[0] as usize..d[1] as usize).enumerate();
        spans
            .map(|(i, span)| Document {
                tokens: tokens[span.clone()].to_vec(),
                weights: weights[span].to_vec(),
                note: note(i),
            })
            .collect()
    }
    /// The reference's log-probabilities as TRL's model has them.
    fn reference(&self, rows: &str) -> Vec<f32> {
        self.get(&format!("reference.{rows}"))
    }
}

fn pairs(golden: &Golden, dir: &Path) -> TokenShard {
    let note = |i: usize| format!("r{} {}", i / 2, if i.is_multiple_of(2) { "chosen" } else { "rejected" });
    write(&dir.join("pairs.tokens"), &golden.documents("pairs", &note)).unwrap();
    TokenShard::open(&dir.join("pairs.tokens")).unwrap().holding(Rows::Pairs).unwrap()
}

fn labels(golden: &Golden, dir: &Path) -> TokenShard {
    let good = golden.0.integers("labels.desirable").unwrap();
    let kind = |i: usize| if good[i / 2] == 1 { "desirable" } else { "undesirable" };
    let note = |i: usize| format!("r{} {}", i / 2, if i.is_multiple_of(2) { kind(i) } else { "mismatched" });
    write(&dir.join("labels.tokens"), &golden.documents("labels", &note)).unwrap();
    TokenShard::open(&dir.join("labels.tokens")).unwrap().holding(Rows::Labels).unwrap()
}

fn model(device: &Device) -> Transformer {
    let model = Transformer::load(Path::new("tests/golden/models/llama-tied"), DType::F32).unwrap();
    if *device == Device::Cpu { model } else { model.to_device(device).unwrap() }
}

/// A step with a fresh adapter, which changes nothing yet.
fn fresh(model: &Transformer, max_tokens: usize) -> TrainStep {
    let on_the_cpu = self::model(&Device::Cpu);
    let lora = Lora::init(&on_the_cpu, LoraConfig { r: 2, alpha: 4.0, ..LoraConfig::default() }, 1).unwrap();
    TrainStep::new(model, Trainable::Lora(lora), max_tokens).unwrap()
}

fn set_adapter(golden: &Golden, step: &TrainStep, model: &Transformer) {
    for mut p in step.params(model) {
        p.write(&golden.get(&format!("param.base_model.model.{}", p.name))).unwrap();
    }
}

/// The log-probability of each document's reply.
fn logps(model: &Transformer, step: &mut TrainStep, shard: &TokenShard) -> Vec<f64> {
    let one = |i: usize| {
        let (mut batch, document) = (PackedBatch::default(), shard.document(i));
        batch.push(&document.tokens, &document.weights);
        let losses = step.token_losses(model, &batch).unwrap();
        -losses.iter().map(|x| f64::from(*x)).sum::<f64>()
    };
    (0..shard.len()).map(one).collect()
}

fn settings(preference: Preference, batch_tokens: usize) -> TrainerSettings {
    let schedule = Schedule { kind: ScheduleKind::Constant, ..crate::training::settings().schedule };
    let optimizer = OptimizerSettings { weight_decay: 0.0, ..crate::training::settings().optimizer };
    TrainerSettings {
        epochs: STEPS as f64,
        batch_documents: 6,
        batch_tokens,
        lr: 0.01,
        schedule,
        warmup_ratio: 0.0,
        optimizer,
        preference: Some(preference),
        checkpoint_every: 0,
        ..crate::training::settings()
    }
}

/// Every objective of the golden file with the name of its case.
fn cases() -> Vec<(&'static str, PreferenceLoss)> {
    let dpo = |loss, beta, smoothing| PreferenceLoss::Dpo { loss, beta, smoothing };
    vec![
        ("sigmoid", dpo(PairLoss::Sigmoid, 0.3, 0.0)),
        ("ipo", dpo(PairLoss::Ipo, 0.5, 0.0)),
        ("hinge", dpo(PairLoss::Hinge, 0.2, 0.0)),
        ("robust", dpo(PairLoss::Robust, 0.2, 0.1)),
        ("conservative", dpo(PairLoss::Sigmoid, 0.3, 0.2)),
        ("orpo", PreferenceLoss::Orpo { beta: 0.4 }),
        ("kto", PreferenceLoss::Kto { beta: 0.2, desirable: 1.0, undesirable: 0.7 }),
    ]
}

/// Gradients and measures of the first step, and the losses of five, in micro-batches of `batch_tokens`.
fn equals_trl(case: &str, objective: PreferenceLoss, device: &Device, batch_tokens: usize) {
    let golden = Golden::open();
    let dir = tempfile::tempdir().unwrap();
    let (rows, shard) = match objective {
        PreferenceLoss::Kto { .. } => ("labels", labels(&golden, dir.path())),
        _ => ("pairs", pairs(&golden, dir.path())),
    };
    let mut model = model(device);
    let mut step = fresh(&model, batch_tokens);
    let reference = logps(&model, &mut step, &shard);
    let narrow = |all: &[f64]| all.iter().map(|x| *x as f32).collect::<Vec<_>>();
    assert_close("reference", narrow(&reference), &golden.reference(rows), 1e-5);
    set_adapter(&golden, &step, &model);
    let preference = Preference { objective, train: reference, validation: vec![] };
    let units: Vec<usize> = (0..shard.units()).collect();
    let team = Team::default();
    let over = OverRanks { team: &team, fixed_order: false, number: 1 };
    let measured = preference.step(&mut model, &mut step, &shard, &units, (batch_tokens, over)).unwrap();
    let losses = golden.get(&format!("{case}.losses"));
    assert_close(&format!("{case} loss"), [measured.loss as f32], &losses[..1], 1e-4);
    for p in step.params(&model) {
        let want = golden.get(&format!("{case}.grad.base_model.model.{}", p.name));
        assert_close(&format!("{case} {}", p.name), p.grad().to_f32_vec().unwrap(), &want, 1e-4);
    }
    let named = measured.named(false);
    assert!(named.len() >= 6, "{named:?}");
    for (name, value) in named {
        let name = format!("{case}.{}", name.strip_prefix("train/").unwrap());
        if case != "conservative" {
            assert_close(&name, [value as f32], &golden.get(&name), 1e-4);
        }
    }
    let (s, out) = (settings(preference, batch_tokens), dir.path().join("out"));
    train(&mut model, &mut step, &shard, Checks::default(), &s, &out, &|| false, &mut |_| {}).unwrap();
    let metrics = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let got: Vec<f32> = metrics
        .lines()
        .filter_map(|l| serde_json::from_str::<Value>(l).unwrap()["train/loss"].as_f64())
        .map(|x| x as f32)
        .collect();
    assert_close(&format!("{case} losses"), got, &losses, 1e-4);
}

#[test]
fn losses_rewards_and_gradients_equal_trls() {
    for (case, objective) in cases() {
        // All rows at once, and a pair or two at a time.
        for batch_tokens in [256, 30] {
            equals_trl(case, objective, &Device::Cpu, batch_tokens);
        }
    }
}

#[test]
fn losses_rewards_and_gradients_equal_trls_on_the_emulated_gpu() {
    for (case, objective) in cases() {
        if ["sigmoid", "orpo", "kto"].contains(&case) {
            equals_trl(case, objective, &crate::kernels::emulated(), 256);
        }
    }
}

/// Bits depend neither on threads nor on interruptions, with adapters and with all weights.
#[test]
fn a_resumed_training_equals_an_uninterrupted_one_bit_for_bit() {
    let golden = Golden::open();
    let dir = tempfile::tempdir().unwrap();
    let (paired, judged) = (pairs(&golden, dir.path()), labels(&golden, dir.path()));
    for (full, case) in [(false, 0), (true, 0), (false, 5), (false, 6)] {
        let (name, objective) = cases()[case];
        let shard = if name == "kto" { &judged } else { &paired };
        let run = |out: &str, threads: usize, stop_after: usize| {
            let mut model = model(&Device::Cpu);
            let mut step = match full {
                false => fresh(&model, 64),
                true => {
                    model.make_trainable().unwrap();
                    TrainStep::new(&model, Trainable::Full, 64).unwrap()
                }
            };
            let reference = logps(&model, &mut step, shard);
            let preference = Preference { objective, train: reference.clone(), validation: reference };
            let s = TrainerSettings { batch_documents: 2, eval_every: 2, ..settings(preference, 64) };
            let checks = Checks { validation: Some(shard), ..Checks::default() };
            let done = std::cell::Cell::new(0);
            let out = dir.path().join(format!("{out}-{full}-{name}"));
            let outcome = with_threads(threads, || {
                train(
                    &mut model,
                    &mut step,
                    shard,
                    checks,
                    &s,
                    &out,
                    &|| done.get() >= stop_after,
                    &mut |e| {
                        done.set(done.get() + usize::from(matches!(e, TrainEvent::Step { .. })));
                    },
                )
                .unwrap()
            });
            let values: Vec<Vec<f32>> =
                step.params(&model).iter().map(|p| p.value().to_f32_vec().unwrap()).collect();
            (outcome.finished, values, fs::read_to_string(out.join("metrics.jsonl")).unwrap())
        };
        let whole = run("whole", 2, usize::MAX);
        assert!(!run("parts", 1, 4).0 && !run("parts", 3, 5).0);
        let parts = run("parts", 2, usize::MAX);
        assert_eq!(parts.2, whole.2);
        assert!(parts.1 == whole.1 && whole.0, "parameters differ");
        let margin =
            |line: &str| serde_json::from_str::<Value>(line).unwrap()["eval/rewards/margins"].as_f64();
        let margins: Vec<f64> = whole.2.lines().filter_map(margin).collect();
        assert!(*margins.last().unwrap() > margins[0] + 0.3, "{name}: {margins:?}");
    }
}
