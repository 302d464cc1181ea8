//! DoRA in training: the norms of W + s B A are kept from one change of the parameters to the next, with the bits of norms computed at every use.
use sdrrl::{
    device::Device,
    models::transformer::{
        config::Config,
        lora::{Lora, LoraConfig},
        train_step::{PackedBatch, Param, TrainStep, Trainable},
        weights::Transformer,
    },
    train::{
        checkpoint,
        optimizer::{Optimizer, OptimizerSettings},
    },
};

use crate::common::uniform;

fn model(device: &Device) -> Transformer {
    let config: Config = serde_json::from_value(serde_json::json!({
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 40, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": true, "initializer_range": 0.2
    }))
    .unwrap();
    Transformer::random(config, 1).unwrap().to_device(device).unwrap()
}

fn config() -> LoraConfig {
    LoraConfig { r: 3, use_dora: true, ..LoraConfig::default() }
}

/// A training step whose parameters have these values, and which has computed nothing yet.
fn step(device: &Device, values: Option<&[Vec<f32>]>) -> TrainStep {
    let lora = Lora::init(&model(&Device::Cpu), config(), 1).unwrap();
    let model = model(device);
    let step = TrainStep::new(&model, Trainable::Lora(lora), 32).unwrap();
    for (mut p, values) in step.params(&model).into_iter().zip(values.into_iter().flatten()) {
        p.write(values).unwrap();
    }
    step
}

/// Values above 0 for every parameter, so that each has a gradient.
fn start(device: &Device) -> Vec<Vec<f32>> {
    let values = |p: &Param| uniform(&p.name, p.value().len()).into_iter().map(|x| x.abs() + 0.1).collect();
    all(&step(device, None).params(&model(device)), values)
}

fn batch(i: u32) -> PackedBatch {
    let mut batch = PackedBatch::default();
    let tokens: Vec<u32> = (0..9).map(|j| (7 * i + 3 * j + i * j) % 40).collect();
    batch.push(&tokens, &[1.0; 9]);
    batch.push(&tokens[..5], &[0.5; 5]);
    batch
}

fn all(params: &[Param], of: impl Fn(&Param) -> Vec<f32>) -> Vec<Vec<f32>> {
    params.iter().map(of).collect()
}

/// Loss and gradients of two micro-batches, as bits.
fn micro_batches(model: &mut Transformer, step: &mut TrainStep, at: u32) -> Vec<u64> {
    step.zero_grads().unwrap();
    let mut found = vec![step.forward(model, &batch(at)).unwrap().weighted_nll.to_bits()];
    for i in [at, at + 1] {
        found.push(step.forward_backward(model, &batch(i), 0.25).unwrap().weighted_nll.to_bits());
    }
    let grads = all(&step.params(model), |p| p.grad().to_f32_vec().unwrap());
    assert!(grads.iter().all(|g| g.iter().any(|&x| x != 0.0)));
    found.extend(grads.concat().into_iter().map(|x| x.to_bits() as u64));
    found
}

fn every_step_has_the_bits_of_a_fresh_one(device: &Device) {
    let mut model = model(device);
    let mut trained = step(device, Some(&start(device)));
    let settings = OptimizerSettings {
        kind: Default::default(),
        beta1: 0.9,
        beta2: 0.99,
        eps: 1e-8,
        weight_decay: 0.01,
        clip: 1.0,
        lora_plus_ratio: 2.0,
    };
    let mut optimizer = Optimizer::new(&trained.params(&model), settings).unwrap();
    let mut before = vec![];
    for at in 1..4 {
        let now = all(&trained.params(&model), |p| p.value().to_f32_vec().unwrap());
        assert_ne!(now, before, "the optimizer changes parameters");
        let mut fresh = step(device, Some(&now));
        let want = micro_batches(&mut model, &mut fresh, at);
        assert!(micro_batches(&mut model, &mut trained, at) == want, "step {at} on {device:?}");
        // Nothing is summed twice when nothing has changed.
        assert!(micro_batches(&mut model, &mut trained, at) == want, "step {at} again on {device:?}");
        optimizer.step(at as u64, 0.1).unwrap();
        before = now;
    }
}

#[test]
fn kept_norms_have_the_bits_of_norms_computed_at_every_use() {
    every_step_has_the_bits_of_a_fresh_one(&Device::Cpu);
}

#[test]
fn kept_norms_have_the_bits_of_norms_computed_at_every_use_on_the_emulated_gpu() {
    every_step_has_the_bits_of_a_fresh_one(&crate::kernels::emulated());
}

#[test]
fn parameters_that_a_file_brings_have_norms_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = model(&Device::Cpu);
    let mut step = step(&Device::Cpu, Some(&start(&Device::Cpu)));
    let first = micro_batches(&mut model, &mut step, 1);
    checkpoint::save_best(dir.path(), &step.params(&model)).unwrap();
    for mut p in step.params(&model) {
        p.write(&uniform("others", p.value().len())).unwrap();
    }
    assert!(micro_batches(&mut model, &mut step, 1) != first, "norms follow what is written");
    checkpoint::load_best(dir.path(), &step.params(&model)).unwrap();
    assert!(micro_batches(&mut model, &mut step, 1) == first);
}
