//! Training steps against PyTorch + peft: `cargo bench --bench steps -- --python PYTHON [--rounds 5]`.
//!
//! SmolLM2-135M's shape, LoRA rank 16 on all seven linears, 4 documents of 256 tokens, every token trained, AdamW, random weights and
//! tokens. Each round runs everyone once in a process of its own: a warm-up step, then the median of 4. Without --python only this
//! program runs. PYTHON needs torch, transformers and peft.
mod peer;

use std::time::Instant;

use peer::{Contestant, interleave, itself, option, peak_mib};
use sdrrl::{
    data::random::RowRandom,
    models::{
        config::Config,
        llama::Llama,
        lora::{Lora, LoraConfig},
        train_step::{PackedBatch, TrainStep, Trainable},
    },
    tensor::{DType, Tensor},
    train::optimizer::{Optimizer, OptimizerSettings},
};
use serde_json::json;

const ROWS: usize = 4;
const LENGTH: usize = 256;

fn main() {
    if let Some(dtype) = option("--worker") {
        return worker(&dtype);
    }
    let rounds = option("--rounds").and_then(|r| r.parse().ok()).unwrap_or(5);
    let mut all: Vec<Contestant> = ["f32", "bf16"]
        .iter()
        .map(|d| Contestant { name: format!("sdrrl {d}"), command: itself(&["--worker", d]) })
        .collect();
    if let Some(python) = option("--python") {
        all.extend(["f32", "bf16"].iter().map(|d| Contestant {
            name: format!("torch + peft {d}"),
            command: [python.as_str(), "scripts/peer_training.py", d].map(String::from).to_vec(),
        }));
    }
    println!("{} threads, {rounds} interleaved rounds, medians", rayon::current_num_threads());
    println!("{:<20} {:>10} {:>14} {:>16}", "", "tokens/s", "peak MiB", "tokens/s ratio");
    let results = interleave(&all, rounds);
    let of = |i: usize, key: &str| {
        results.get(i).and_then(|r| r.as_ref()).and_then(|r| r[key].as_f64()).unwrap_or(f64::NAN)
    };
    for (i, contestant) in all.iter().enumerate() {
        // Ours against the peer of the same precision.
        let ratio = if i < 2 {
            format!("{:.2}", of(i, "tokens_per_second") / of(i + 2, "tokens_per_second"))
        } else {
            String::new()
        };
        println!(
            "{:<20} {:>10.1} {:>14.0} {ratio:>16}",
            contestant.name,
            of(i, "tokens_per_second"),
            of(i, "peak_mib")
        );
    }
    if all.len() == 4 {
        println!("peak memory, f32: {:.2} of torch's", of(0, "peak_mib") / of(2, "peak_mib"));
    }
}

fn worker(dtype: &str) {
    let config: Config = serde_json::from_value(json!({
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0, "tie_word_embeddings": true
    }))
    .expect("the shape is sound");
    let mut model = Llama::random(config, 1).expect("memory for the model");
    if dtype == "bf16" {
        narrow(&mut model);
    }
    let lora =
        Lora::init(&model, LoraConfig { r: 16, alpha: 32.0, ..Default::default() }, 1).expect("adapters");
    let mut step = TrainStep::new(&model, Trainable::Lora(lora), ROWS * LENGTH).expect("memory for a step");
    let settings = OptimizerSettings {
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.0,
        clip: 1.0,
        lora_plus_ratio: 1.0,
    };
    let params = step.params(&model);
    let mut optimizer = Optimizer::new(&params, settings).expect("memory for the moments");
    let mut random = RowRandom::new(1, "bench", "tokens");
    let mut batch = PackedBatch::default();
    for _ in 0..ROWS {
        let tokens: Vec<u32> = (0..LENGTH).map(|_| random.below(49152) as u32).collect();
        batch.push(&tokens, &[1.0; LENGTH]);
    }
    let mut times = vec![];
    for number in 1..=5 {
        let start = Instant::now();
        step.zero_grads(&model).expect("gradients");
        let scale = 1.0 / (ROWS * (LENGTH - 1)) as f32;
        step.forward_backward(&mut model, &batch, scale).expect("a step");
        optimizer.step(number, 1e-4).expect("an update");
        times.push(start.elapsed().as_secs_f64());
    }
    let mut rest = times[1..].to_vec();
    rest.sort_by(f64::total_cmp);
    let rate = (ROWS * LENGTH) as f64 / rest[rest.len() / 2];
    println!("{}", json!({"tokens_per_second": rate, "peak_mib": peak_mib()}));
}

/// Every matrix in bf16.
fn narrow(model: &mut Llama) {
    let to_bf16 = |t: &Tensor| {
        let mut out = Tensor::zeros(t.name(), DType::Bf16, t.shape()).expect("memory");
        let values = t.f32().expect("f32 weights");
        let narrow = out.bf16_mut().expect("bf16 weights");
        narrow.iter_mut().zip(values).for_each(|(o, x)| *o = half::bf16::from_f32(*x));
        out
    };
    for layer in &mut model.weights.layers {
        for linear in layer.linears_mut() {
            linear.weight = to_bf16(&linear.weight);
        }
    }
    let embedding = to_bf16(&model.weights.embed_tokens);
    model.weights.embed_tokens = embedding.clone();
    model.weights.lm_head = embedding;
}
