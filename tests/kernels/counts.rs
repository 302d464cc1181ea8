//! What a training micro-step asks of the driver, counted on the emulated GPU with arenas in one allocation each, as on a real one.
//!
//! The limits are what is reached today, so that it does not grow unseen; what it is to become: at most 1,000 launches for 32 layers.
use std::sync::Arc;

use sdrrl::{
    device::{Counts, Gpu},
    models::transformer::{
        config::Config,
        lora::{Lora, LoraConfig},
        train_step::{PackedBatch, TrainStep, Trainable},
        weights::Transformer,
    },
};

use super::*;

/// A bf16 model of so many layers, wide enough for Hopper's kernels.
fn model(layers: usize) -> Transformer {
    let config: Config = serde_json::from_value(serde_json::json!({
        "model_type": "llama", "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": layers, "num_attention_heads": 2,
        "vocab_size": 96, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "tie_word_embeddings": true
    }))
    .unwrap();
    Transformer::build(config, &mut |leaf| {
        let dtype = if leaf.dims.len() == 2 { DType::Bf16 } else { DType::F32 };
        let mut t = Tensor::zeros(&leaf.name, dtype, &leaf.dims)?;
        t.write_f32(&uniform(&leaf.name, t.len()).iter().map(|x| 0.1 * x).collect::<Vec<_>>())?;
        Ok(t)
    })
    .unwrap()
}

/// Ragged documents of 150 tokens together.
fn batch() -> PackedBatch {
    let mut batch = PackedBatch::default();
    for length in [70usize, 1, 48, 31] {
        let tokens: Vec<u32> = (0..length).map(|i| (i * 37 % 96) as u32).collect();
        batch.push(&tokens, &vec![1.0; length]);
    }
    batch
}

/// The third micro-step's calls, and the loss.
fn micro_step(layers: usize) -> (Counts, f64) {
    let gpu = Arc::new(Gpu::emulated_in_arenas());
    let on_cpu = model(layers);
    let lora = Lora::init(&on_cpu, LoraConfig::default(), 3).unwrap();
    let mut model = on_cpu.to_device(&Device::Cuda(gpu.clone())).unwrap();
    let mut step = TrainStep::new(&model, Trainable::Lora(lora), 160).unwrap();
    let mut run = || step.forward_backward(&mut model, &batch(), 0.01).unwrap().mean();
    run();
    run();
    let before = gpu.counts();
    let loss = run();
    (gpu.counts() - before, loss)
}

#[test]
fn a_micro_step_allocates_nothing_and_its_calls_do_not_grow() {
    let ((two, loss), (three, _)) = (micro_step(2), micro_step(3));
    let layer = three - two;
    println!("2 layers: {two}\n3 layers: {three}\na layer:  {layer}");
    assert_eq!((two.allocations, three.allocations), (0, 0), "scratch is used again");
    assert_eq!((layer.memsets, layer.copies_in, layer.waits), (0, 0, 0), "none of a layer");
    assert!(layer.launches <= LAUNCHES_OF_A_LAYER, "{} launches of a layer", layer.launches);
    let rest = two.launches - 2 * layer.launches;
    assert!(rest <= 4, "{rest} launches beside the layers");
    assert!(two.memsets <= 1 && two.copies_in <= 6 && two.waits <= 1, "{two}");
    // Ragged documents on Hopper's kernels, against the CPU, which never rounds activations.
    let mut own = model(2);
    let lora = Lora::init(&own, LoraConfig::default(), 3).unwrap();
    let mut step = TrainStep::new(&own, Trainable::Lora(lora), 160).unwrap();
    let want = step.forward_backward(&mut own, &batch(), 0.01).unwrap().mean();
    assert!((loss / want - 1.0).abs() < 1e-2, "{loss} {want}");
}

/// With LoRA on all seven linears, and a batch that is not cut into parts (14 launches more where it is).
const LAUNCHES_OF_A_LAYER: u64 = 56;
