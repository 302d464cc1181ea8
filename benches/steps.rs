//! Training steps against PyTorch + peft: `cargo bench --bench steps -- --python PYTHON [--rounds 5]`.
//!
//! LoRA rank 16 on all seven linears, ROWS documents of LENGTH tokens, every token trained, AdamW, random weights and tokens. Each round
//! runs everyone once in a process of its own: a warm-up step, then the median of 4. Without --python only this program runs. PYTHON needs
//! torch, transformers and peft. `--shape smollm2-135m | llama-1b | llama2-7b`, `--rows 4`, `--length 256`, `--dtypes f32,bf16`,
//! `--device cpu | cuda | emulated`.
mod peer;

use std::time::Instant;

use half::bf16;
use peer::{Contestant, interleave, itself, option, peak_mib};
use rayon::prelude::*;
use sdrrl::{
    data::random::RowRandom,
    device::{Device, DeviceChoice},
    models::{
        config::Config,
        llama::{Llama, LlamaWeights},
        lora::{Lora, LoraConfig},
        train_step::{PackedBatch, TrainStep, Trainable},
    },
    tensor::{DType, Tensor},
    train::optimizer::{Optimizer, OptimizerSettings},
};
use serde_json::{Value, json};

/// What is run, as both sides take it on the command line.
struct Case {
    shape: String,
    rows: usize,
    length: usize,
    device: String,
}

impl Case {
    fn from_options() -> Case {
        let number = |name: &str, or: usize| option(name).map_or(or, |x| x.parse().expect("a whole number"));
        Case {
            shape: option("--shape").unwrap_or_else(|| "smollm2-135m".into()),
            rows: number("--rows", 4),
            length: number("--length", 256),
            device: option("--device").unwrap_or_else(|| "cpu".into()),
        }
    }
    fn arguments(&self) -> Vec<String> {
        let (rows, length) = (self.rows.to_string(), self.length.to_string());
        let all = ["--shape", &self.shape, "--rows", &rows, "--length", &length, "--device", &self.device];
        all.map(String::from).to_vec()
    }
    fn config(&self) -> Config {
        let text = std::fs::read_to_string("benches/shapes.json").expect("run from the repository's root");
        let shapes: Value = serde_json::from_str(&text).expect("benches/shapes.json is JSON");
        let shape = shapes
            .get(&self.shape)
            .unwrap_or_else(|| panic!("no shape {} in benches/shapes.json", self.shape));
        serde_json::from_value(shape.clone()).expect("the shape is sound")
    }
}

fn main() {
    let case = Case::from_options();
    if let Some(dtype) = option("--worker") {
        return worker(&dtype, &case);
    }
    let rounds = option("--rounds").and_then(|r| r.parse().ok()).unwrap_or(5);
    let dtypes = option("--dtypes").unwrap_or_else(|| "f32,bf16".into());
    let dtypes: Vec<&str> = dtypes.split(',').collect();
    let own = |d: &&str| Contestant {
        name: format!("sdrrl {d}"),
        command: [itself(&["--worker", d]), case.arguments()].concat(),
    };
    let mut all: Vec<Contestant> = dtypes.iter().map(own).collect();
    if let Some(python) = option("--python") {
        all.extend(dtypes.iter().map(|d| {
            Contestant {
                name: format!("torch + peft {d}"),
                command: [
                    [python.as_str(), "scripts/peer_training.py", d].map(String::from).to_vec(),
                    case.arguments(),
                ]
                .concat(),
            }
        }));
    }
    println!(
        "{} of {} x {} tokens on {}, {} threads, {rounds} interleaved rounds, medians",
        case.shape,
        case.rows,
        case.length,
        case.device,
        rayon::current_num_threads()
    );
    println!(
        "{:<20} {:>10} {:>14} {:>16} {:>14}",
        "", "tokens/s", "peak MiB", "tokens/s ratio", "memory ratio"
    );
    let results = interleave(&all, rounds);
    let of = |i: usize, key: &str| {
        results.get(i).and_then(|r| r.as_ref()).and_then(|r| r[key].as_f64()).unwrap_or(f64::NAN)
    };
    for (i, contestant) in all.iter().enumerate() {
        // Ours against the peer of the same precision.
        let ratio = |key: &str| {
            let peer = i + dtypes.len();
            if peer < all.len() { format!("{:.2}", of(i, key) / of(peer, key)) } else { String::new() }
        };
        println!(
            "{:<20} {:>10.1} {:>14.0} {:>16} {:>14}",
            contestant.name,
            of(i, "tokens_per_second"),
            of(i, "peak_mib"),
            ratio("tokens_per_second"),
            ratio("peak_mib")
        );
    }
}

/// One run of this program: a line of JSON with tokens per second and peak memory (of the GPU where there is one), MiB.
fn worker(dtype: &str, case: &Case) {
    let (rows, length) = (case.rows, case.length);
    let dtype = if dtype == "bf16" { DType::Bf16 } else { DType::F32 };
    let device = case.device.parse::<DeviceChoice>().and_then(|d| d.open()).expect("the device");
    let mut model = random_model(case.config(), dtype, &device);
    let vocabulary = model.config.vocab_size;
    let lora = LoraConfig { r: 16, alpha: 32.0, ..Default::default() };
    let lora = Lora::init(&model, lora, 1).expect("adapters");
    let mut step = TrainStep::new(&model, Trainable::Lora(lora), rows * length).expect("memory for a step");
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
    for _ in 0..rows {
        let tokens: Vec<u32> = (0..length).map(|_| random.below(vocabulary) as u32).collect();
        batch.push(&tokens, &vec![1.0; length]);
    }
    let mut times = vec![];
    for number in 1..=5 {
        let start = Instant::now();
        step.zero_grads(&model).expect("gradients");
        let scale = 1.0 / (rows * (length - 1)) as f32;
        step.forward_backward(&mut model, &batch, scale).expect("a step");
        optimizer.step(number, 1e-4).expect("an update");
        if let Some(gpu) = device.gpu() {
            gpu.synchronize().expect("no kernel failed");
        }
        times.push(start.elapsed().as_secs_f64());
    }
    let mut rest = times[1..].to_vec();
    rest.sort_by(f64::total_cmp);
    let rate = (rows * length) as f64 / rest[rest.len() / 2];
    let peak = device.gpu().map_or_else(peak_mib, |gpu| gpu.peak_bytes() as f64 / 1048576.0);
    println!("{}", json!({"tokens_per_second": rate, "peak_mib": peak}));
}

/// Normal weights (sum of four uniforms), from a table that is read on and on: billions of draws would take minutes.
fn random_model(config: Config, dtype: DType, device: &Device) -> Llama {
    let mut random = RowRandom::new(1, "bench", "weights");
    let scale = 0.02 * 3f64.sqrt();
    let table: Vec<f32> = (0..1_000_003)
        .map(|_| (((0..4).map(|_| random.uniform()).sum::<f64>() - 2.0) * scale) as f32)
        .collect();
    let mut next = 0;
    let weights = LlamaWeights::build(&config, &mut |name, dims, matrix| {
        let mut t = Tensor::zeros(name, if matrix { dtype } else { DType::F32 }, dims)?;
        let from = next;
        next = (next + t.len()) % table.len();
        match dtype {
            _ if !matrix => t.f32_mut()?.fill(if name.ends_with("bias") { 0.0 } else { 1.0 }),
            DType::Bf16 => t
                .bf16_mut()?
                .par_iter_mut()
                .enumerate()
                .for_each(|(i, x)| *x = bf16::from_f32(table[(from + i) % table.len()])),
            _ => t
                .f32_mut()?
                .par_iter_mut()
                .enumerate()
                .for_each(|(i, x)| *x = table[(from + i) % table.len()]),
        }
        t.to_device(device)
    });
    Llama { config, weights: weights.expect("memory for the model") }
}
