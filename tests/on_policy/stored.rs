//! The off-policy form: given answers, and what the teacher would say at each of their tokens. With the whole vocabulary kept it is the on-policy loss of the same tokens.
use std::{cell::Cell, fs, path::Path};

use sdrrl::{
    data::{
        questions::preferences::Rows,
        token_shard::{Document, TokenShard, write},
        top_k::{TopK, TopKShard, Writer},
    },
    device::Device,
    models::transformer::{
        lora::{Lora, LoraConfig},
        train_step::{PackedBatch, TrainStep, Trainable},
        weights::Transformer,
    },
    train::{
        distillation::Distillation,
        stored::Stored,
        trainer::{Checks, TrainEvent, TrainerSettings, train},
    },
};

use super::{Golden, PARITY, lora, model, settings, values};
use crate::common::{assert_close, with_threads};

/// The golden answers behind either prompt; an end that was reached is a token.
fn answers(dir: &Path, golden: &Golden) -> TokenShard {
    let prompts = [golden.texts("student"), golden.texts("teacher")];
    let mut documents = vec![];
    for (i, answer) in golden.answers().into_iter().enumerate() {
        for (prompts, mark) in prompts.iter().zip(["student-answer", "teacher-answer"]) {
            let end = answer.ended.then_some(2);
            let tokens: Vec<u32> = prompts[i].iter().chain(&answer.tokens).copied().chain(end).collect();
            let mut weights = vec![0.0; prompts[i].len()];
            weights.resize(tokens.len(), 1.0);
            documents.push(Document { tokens, weights, note: format!("q{i} {mark}") });
        }
    }
    write(&dir.join("answers.tokens"), &documents).unwrap();
    TokenShard::open(&dir.join("answers.tokens")).unwrap().holding(Rows::Taught).unwrap()
}

fn step(model: &Transformer, config: LoraConfig) -> TrainStep {
    let lora = Lora::init(&self::model(&Device::Cpu), config, 1).unwrap();
    TrainStep::new(model, Trainable::Lora(lora), 256).unwrap().distilling_stored(model).unwrap()
}

/// What the model says of every answer, unit by unit.
fn said(dir: &Path, model: &Transformer, step: &mut TrainStep, shard: &TokenShard, k: usize) -> TopKShard {
    let of = |unit: usize| {
        let mut batch = PackedBatch::default();
        let document = shard.document(shard.unit(unit).start + 1);
        batch.push(&document.tokens, &document.weights);
        step.likeliest(model, &batch, k).unwrap()
    };
    let all: Vec<TopK> = (0..shard.units()).map(of).collect();
    let path = dir.join(format!("{k}.logprobs"));
    let mut writer = Writer::new(&path, k, &all.iter().map(TopK::rows).collect::<Vec<_>>()).unwrap();
    all.iter().for_each(|rows| writer.add(rows).unwrap());
    writer.finish().unwrap();
    TopKShard::open(&path).unwrap()
}

/// Losses of a training by PyTorch over the whole vocabulary, and gradients of its first step, from stored distributions over all of it.
fn equals_pytorch(device: &Device, batch_tokens: usize) {
    let golden = Golden::open();
    let dir = tempfile::tempdir().unwrap();
    let shard = answers(dir.path(), &golden);
    let mut model = model(device);
    let mut step = step(&model, lora());
    for mut p in step.params(&model) {
        p.write(&golden.get(&format!("param.base_model.model.{}", p.name))).unwrap();
    }
    let vocab = model.config.vocab_size;
    let teacher = said(dir.path(), &model, &mut step, &shard, vocab);
    let (mut batch, mut rows) = (PackedBatch::default(), TopK::default());
    for unit in 0..shard.units() {
        let document = shard.document(shard.unit(unit).start);
        batch.push(&document.tokens, &document.weights);
        teacher.read(unit, &mut rows);
    }
    step.zero_grads().unwrap();
    let weight: f32 = batch.weights.iter().sum();
    let found = step.distil_stored(&model, (&batch, &rows), 0.0, Some(1.0 / weight)).unwrap();
    let mean = (found.clipped / found.weight) as f32;
    assert_close("loss", [mean], &golden.get("whole.losses")[..1], PARITY);
    for p in step.params(&model) {
        let want = golden.get(&format!("whole.grad.base_model.model.{}", p.name));
        assert_close(&p.name, p.grad().to_f32_vec().unwrap(), &want, PARITY);
    }
    // The text's own loss counts by its weight, and is measured in any case.
    let both = step.distil_stored(&model, (&batch, &rows), 0.5, None).unwrap();
    assert!((both.clipped - found.divergence - 0.5 * found.nll).abs() < 1e-9 && both.nll == found.nll);
    let stored = Stored { train: Some(teacher), validation: None, text: 0.0 };
    let checks = Checks { distillation: Some(Distillation::Stored(stored)), ..Checks::default() };
    let (s, out) = (settings(batch_tokens), dir.path().join("out"));
    train(&mut model, &mut step, &shard, checks, &s, &out, &|| false, &mut |_| {}).unwrap();
    let metrics = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let got: Vec<f32> = values(&metrics, "train/loss").into_iter().map(|x| x as f32).collect();
    assert_close("losses", got, &golden.get("whole.losses"), PARITY);
    assert_eq!(values(&metrics, "train/kl"), values(&metrics, "train/loss"));
}

#[test]
fn with_every_token_kept_it_is_the_on_policy_loss_of_the_same_answers() {
    // All answers at once, and one or two at a time.
    for batch_tokens in [256, 50] {
        equals_pytorch(&Device::Cpu, batch_tokens);
    }
}

#[test]
fn with_every_token_kept_it_is_the_on_policy_loss_on_the_emulated_gpu() {
    equals_pytorch(&crate::kernels::emulated(), 256);
}

/// Bits depend neither on threads nor on interruptions, and the divergence falls.
#[test]
fn a_resumed_training_equals_an_uninterrupted_one_bit_for_bit() {
    let golden = Golden::open();
    let dir = tempfile::tempdir().unwrap();
    let shard = answers(dir.path(), &golden);
    let config = LoraConfig { dropout: 0.2, ..lora() };
    let run = |out: &str, threads: usize, stop_after: usize| {
        let mut model = model(&Device::Cpu);
        let mut step = step(&model, config.clone());
        let mut open = || said(dir.path(), &model, &mut step, &shard, 5);
        let stored = Stored { train: Some(open()), validation: Some(open()), text: 0.25 };
        let distillation = Some(Distillation::Stored(stored));
        let checks = Checks { validation: Some(&shard), distillation, ..Checks::default() };
        let s = TrainerSettings { batch_documents: 2, eval_every: 4, epochs: 10.0, ..settings(64) };
        let (done, out) = (Cell::new(0), dir.path().join(out));
        let mut count = |e| done.set(done.get() + usize::from(matches!(e, TrainEvent::Step { .. })));
        let stop = || done.get() >= stop_after;
        let outcome = with_threads(threads, || {
            train(&mut model, &mut step, &shard, checks, &s, &out, &stop, &mut count).unwrap()
        });
        let params: Vec<Vec<f32>> =
            step.params(&model).iter().map(|p| p.value().to_f32_vec().unwrap()).collect();
        (outcome.finished, params, fs::read_to_string(out.join("metrics.jsonl")).unwrap())
    };
    let whole = run("whole", 2, usize::MAX);
    assert!(!run("parts", 1, 4).0 && !run("parts", 3, 9).0);
    let parts = run("parts", 2, usize::MAX);
    assert_eq!(parts.2, whole.2);
    assert!(parts.1 == whole.1 && whole.0, "parameters differ");
    for tag in ["eval/loss", "eval/kl"] {
        let held_out = values(&whole.2, tag);
        assert!(*held_out.last().unwrap() < 0.85 * held_out[0], "{tag}: {held_out:?}");
    }
}
