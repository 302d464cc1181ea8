//! Keeping the source language by the divergence from the base model: what a training step makes of it.
use sdrrl::{
    data::random::RowRandom,
    models::transformer::{
        lora::{Lora, LoraConfig},
        train_step::{LossSum, PackedBatch, Param, TrainStep, Trainable},
        weights::Transformer,
    },
    ops::kl_divergence::{Mixed, reference},
    recipe::train::{KeepSource, Method, TrainSettings},
    tensor::DType,
};

use crate::training::config;

const KL: Mixed = Mixed { hard: 0.0, soft: 1.0 };

fn document(i: usize, n: usize) -> (Vec<u32>, Vec<f32>) {
    let mut random = RowRandom::new(1, "keeping", &i.to_string());
    let tokens = (0..n).map(|_| random.below(config().vocab_size) as u32).collect();
    (tokens, (0..n).map(|t| if t < 3 { 0.0 } else { 1.0 }).collect())
}

/// Documents of 5 to 12 tokens; the even ones are of the source language.
fn batch(documents: impl IntoIterator<Item = usize>) -> PackedBatch {
    let mut batch = PackedBatch::default();
    for i in documents {
        let (tokens, weights) = document(i, 5 + i % 8);
        batch.push(&tokens, &weights);
        if i % 2 == 0 {
            batch.mark_source();
        }
    }
    batch
}

fn step(mixed: Option<Mixed>) -> (Transformer, TrainStep) {
    let model = Transformer::random(config(), 1).unwrap();
    let lora = Lora::init(&model, LoraConfig { r: 4, ..Default::default() }, 2).unwrap();
    let step = TrainStep::new(&model, Trainable::Lora(lora), 128).unwrap();
    let step = step.keep_source(&model, mixed).unwrap();
    (model, step)
}

/// Moves every adapter away from 0.
fn disturb(params: &mut [Param]) {
    for p in params {
        let mut random = RowRandom::new(3, "disturb", &p.name);
        let values = p.value().to_f32_vec().unwrap();
        p.write(&values.iter().map(|x| x + 0.1 * (random.uniform() as f32 - 0.5)).collect::<Vec<_>>())
            .unwrap();
    }
}

fn gradient(model: &Transformer, step: &TrainStep) -> Vec<f32> {
    step.params(model).iter().flat_map(|p| p.grad().to_f32_vec().unwrap()).collect()
}

fn run(model: &mut Transformer, step: &mut TrainStep, batch: &PackedBatch) -> LossSum {
    step.zero_grads().unwrap();
    step.forward_backward(model, batch, 1.0).unwrap()
}

#[test]
fn a_model_that_is_its_base_has_no_divergence_and_no_gradient_of_it() {
    let (mut model, mut step) = step(Some(KL));
    let loss = run(&mut model, &mut step, &batch([0, 2, 4]));
    assert_eq!(loss.kept_mean(), Some(0.0));
    assert!(
        gradient(&model, &step).iter().all(|g| *g == 0.0),
        "source rows are learnt by the divergence alone"
    );
    let other = run(&mut model, &mut step, &batch([0, 1, 2]));
    assert_eq!(other.kept_mean(), Some(0.0));
    assert!(gradient(&model, &step).iter().any(|g| *g != 0.0), "the other rows by their text");
}

/// Σ w KL from the hidden states of two models of their own, in f64.
#[test]
fn the_divergence_is_that_of_the_model_without_its_adapters() {
    let documents = batch([0, 2, 4, 6]);
    let (mut base, mut plain) = step(None);
    plain.forward(&base, &documents).unwrap();
    let n = documents.tokens.len();
    let states = plain.hidden(n).unwrap().to_f32_vec().unwrap();
    let untrained = plain.forward(&base, &documents).unwrap();
    disturb(&mut plain.params(&base));
    let trained = run(&mut base, &mut plain, &documents);
    let own = plain.hidden(n).unwrap().to_f32_vec().unwrap();
    let (mut model, mut keeping) = step(Some(KL));
    disturb(&mut keeping.params(&model));
    let got = run(&mut model, &mut keeping, &documents);
    // What is reported as the loss is the text's, as without the divergence.
    assert!(
        (got.mean() - trained.mean()).abs() < 1e-6 * trained.mean() && trained.mean() != untrained.mean()
    );
    let head = model.weights.head().to_f32_vec().unwrap();
    let [c, v] = [config().hidden_size, config().vocab_size];
    let (_, kl, ..) = reference::forward_backward(
        [&own, &states, &head],
        &documents.targets,
        &documents.weights,
        &documents.source,
        [n, c, v],
        [0.0, 1.0],
        None,
        None,
    );
    let want = kl.iter().sum::<f64>() / documents.source.len() as f64;
    let kept = got.kept_mean().unwrap();
    assert!(want > 1e-4 && (kept - want).abs() < 1e-5 * want, "{kept} {want}");
}

/// Along the gradient the objective rises as the gradient's length says.
#[test]
fn the_gradient_of_adapters_is_the_objectives() {
    for (mixed, documents) in
        [(KL, batch([0, 2, 4])), (Mixed { hard: 1.0, soft: 0.5 }, batch([0, 1, 2, 3, 4, 5]))]
    {
        let (mut model, mut step) = step(Some(mixed));
        disturb(&mut step.params(&model));
        let objective = |loss: LossSum| {
            let nll = if mixed.hard == 0.0 { 0.0 } else { loss.weighted_nll };
            nll + mixed.soft as f64 * loss.kept[0]
        };
        run(&mut model, &mut step, &documents);
        let gradient = gradient(&model, &step);
        let length = gradient.iter().map(|g| (*g as f64).powi(2)).sum::<f64>().sqrt();
        let before: Vec<Vec<f32>> =
            step.params(&model).iter().map(|p| p.value().to_f32_vec().unwrap()).collect();
        let mut at = |distance: f64| {
            let mut rest = &gradient[..];
            for (p, values) in step.params(&model).iter_mut().zip(&before) {
                let (own, others) = rest.split_at(values.len());
                rest = others;
                let moved = values.iter().zip(own).map(|(x, g)| x + (distance * *g as f64 / length) as f32);
                p.write(&moved.collect::<Vec<_>>()).unwrap();
            }
            objective(run(&mut model, &mut step, &documents))
        };
        let slope = (at(0.01) - at(-0.01)) / 0.02;
        assert!((slope / length - 1.0).abs() < 0.01, "{mixed:?}: {slope} {length}");
    }
}

/// What source rows contribute does not depend on what is packed with them.
#[test]
fn packing_does_not_change_a_divergence() {
    let (mut model, mut step) = step(Some(Mixed { hard: 1.0, soft: 1.0 }));
    disturb(&mut step.params(&model));
    let whole = run(&mut model, &mut step, &batch(0..8));
    let mut parts = LossSum::default();
    for i in 0..8 {
        parts.add(run(&mut model, &mut step, &batch([i])));
    }
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-12 * a.abs();
    assert!(
        near(whole.kept[0], parts.kept[0]) && near(whole.weighted_nll, parts.weighted_nll),
        "{whole:?} {parts:?}"
    );
    assert_eq!(whole.kept[1], parts.kept[1]);
    let plain = batch([1, 3]);
    assert_eq!(run(&mut model, &mut step, &plain).kept_mean(), None);
    assert!(TrainStep::new(&model, Trainable::Full, 64).unwrap().keep_source(&model, Some(KL)).is_err());
    assert_eq!(model.activation_dtype(), DType::F32);
}

#[test]
fn a_source_that_cannot_be_kept_is_refused_before_anything_is_loaded() {
    let refused = |s: TrainSettings, part: &str| {
        let error = format!("{:#}", s.check().unwrap_err());
        assert!(error.contains(part), "{error}");
    };
    let kl = TrainSettings { keep_source: KeepSource::Kl, ..TrainSettings::default() };
    refused(TrainSettings { method: Method::Full, ..kl.clone() }, "keep-source compares with the base model");
    refused(TrainSettings { method: Method::Scratch, ..kl.clone() }, "it goes with method lora");
    let weighed = TrainSettings { keep_source_weight: 3.0, ..TrainSettings::default() };
    refused(weighed, "keep-source-weight belongs to keep-source kl or both");
    TrainSettings { keep_source_weight: 3.0, ..kl }.check().unwrap();
    // A guard's text that every evaluation would take hours for.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("long.txt");
    std::fs::File::create(&path).unwrap().set_len(100 << 20).unwrap();
    refused(TrainSettings { guard_file: Some(path), ..TrainSettings::default() }, "long.txt has 100 MiB");
}
