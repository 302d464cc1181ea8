//! Training steps against PyTorch + peft: `cargo bench --bench steps -- --python PYTHON [--rounds 5]`.
//!
//! LoRA rank 16 on all seven linears, ROWS documents of LENGTH tokens, every token trained, AdamW, random weights and tokens. Each round
//! runs everyone once in a process of its own: a warm-up step, then the median of 4. Without --python only this program runs. PYTHON needs
//! torch, transformers and peft. `--shape smollm2-135m | llama-1b | llama2-7b`, `--rows 4`, `--length 256`, `--dtypes f32,bf16`,
//! `--device cpu | cuda | emulated`; on a GPU the default is 8 rows of 2048 tokens in bf16, for which LLaMA-2-7B needs about 65 GB here. A peer that runs
//! out of the GPU's memory repeats with gradient checkpointing, and its name says so.
//!
//! A first loss that is not finite and near ln V, or a loss that does not fall on the batch that is repeated, ends a run without a figure.
mod card;
mod peer;
mod shapes;

use std::time::Instant;

use peer::{Contestant, interleave, itself, option, peak_mib};
use sdrrl::{
    bench::{models, train},
    data::random::RowRandom,
    device::DeviceChoice,
    models::{
        transformer::lora::{Lora, LoraConfig},
        transformer::train_step::{PackedBatch, TrainStep, Trainable},
    },
    tensor::DType,
    train::optimizer::{Optimizer, OptimizerSettings},
};
use serde_json::{Value, json};

const RANK: usize = 16;

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
        let device = option("--device").unwrap_or_else(|| "cpu".into());
        let (rows, length) = if device.starts_with("cuda") { (8, 2048) } else { (4, 256) };
        Case {
            shape: option("--shape").unwrap_or_else(|| "smollm2-135m".into()),
            rows: number("--rows", rows),
            length: number("--length", length),
            device,
        }
    }
    fn arguments(&self) -> Vec<String> {
        let (rows, length) = (self.rows.to_string(), self.length.to_string());
        let all = ["--shape", &self.shape, "--rows", &rows, "--length", &length, "--device", &self.device];
        all.map(String::from).to_vec()
    }
}

/// FLOP/s of dense bf16 products that NVIDIA states for a card; unknown ones are left out rather than guessed.
fn dense_peak(card: &str) -> Option<f64> {
    ["H100 80GB HBM3", "H200"].iter().any(|known| card.contains(known)).then_some(989e12)
}

fn main() {
    peer::only(&["--python", "--rounds", "--shape", "--rows", "--length", "--dtypes", "--device"]);
    let case = Case::from_options();
    if let Some(dtype) = option("--worker") {
        return worker(&dtype, &case);
    }
    let rounds = option("--rounds").and_then(|r| r.parse().ok()).unwrap_or(5);
    let dtypes = if case.device.starts_with("cuda") { "bf16" } else { "f32,bf16" };
    let dtypes = option("--dtypes").unwrap_or_else(|| dtypes.into());
    let dtypes: Vec<&str> = dtypes.split(',').collect();
    let own = |d: &&str| Contestant {
        name: format!("sdrrl {d}"),
        command: [itself(&["--worker", d]), case.arguments()].concat(),
    };
    let mut all: Vec<Contestant> = dtypes.iter().map(own).collect();
    if let Some(python) = option("--python") {
        all.extend(dtypes.iter().map(|d| {
            let program = [python.as_str(), "scripts/peer_training.py", d].map(String::from).to_vec();
            Contestant { name: format!("torch + peft {d}"), command: [program, case.arguments()].concat() }
        }));
    }
    let results = interleave(&all, rounds);
    print(&case, &all, &results, dtypes.len(), rounds);
}

fn print(case: &Case, all: &[Contestant], results: &[Option<Value>], dtypes: usize, rounds: usize) {
    let card = results.iter().flatten().find_map(|r| r["card"].as_str());
    let (shape, rows, length) = (&case.shape, case.rows, case.length);
    let machine = card::machine(card);
    println!(
        "{shape} of {rows} x {length} tokens on {}: {machine}; random weights and tokens, {rounds} interleaved rounds, medians",
        case.device
    );
    let config = models::config(shape).expect("a shape of benches/shapes.json");
    let (flop, formula) = train::model_flop(&config, train::Case { rows, length, rank: RANK, random: true });
    let peak = card.and_then(dense_peak);
    println!("{formula}");
    if let Some(peak) = peak {
        println!(
            "% of {:.0} TFLOP/s, the card's dense bf16 peak; MiB are what tensors took of the GPU at most",
            peak / 1e12
        );
    }
    println!(
        "{:<32} {:>10} {:>9} {:>7} {:>12} {:>16} {:>14}",
        "", "tokens/s", "TFLOP/s", "of peak", "peak MiB", "tokens/s ratio", "memory ratio"
    );
    let of = |i: usize, key: &str| {
        results.get(i).and_then(|r| r.as_ref()).and_then(|r| r[key].as_f64()).unwrap_or(f64::NAN)
    };
    for (i, contestant) in all.iter().enumerate() {
        // Ours against the peer of the same precision.
        let ratio = |key: &str| {
            let peer = i + dtypes;
            if peer < all.len() { format!("{:.2}", of(i, key) / of(peer, key)) } else { String::new() }
        };
        let name = contestant.name.clone() + &shapes::remarks(results[i].as_ref(), card);
        let rate = of(i, "tokens_per_second") * flop;
        println!(
            "{:<32} {:>10.1} {:>9.3} {:>7} {:>12.0} {:>16} {:>14}",
            name,
            of(i, "tokens_per_second"),
            rate / 1e12,
            peak.map_or("-".into(), |p| format!("{:.1} %", 100.0 * rate / p)),
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
    let begun = Instant::now();
    let config = models::config(&case.shape).expect("a shape of benches/shapes.json");
    let mut model = models::random_decoder(config, dtype, &device).expect("memory for the model");
    let load = begun.elapsed().as_secs_f64();
    let vocabulary = model.config.vocab_size;
    let lora = LoraConfig { r: RANK, alpha: 32.0, ..Default::default() };
    let lora = Lora::init(&model, lora, 1).expect("adapters");
    let mut step = TrainStep::new(&model, Trainable::Lora(lora), rows * length).expect("memory for a step");
    let settings = OptimizerSettings {
        kind: Default::default(),
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
    let (mut times, mut losses) = (vec![], vec![]);
    for number in 1..=5 {
        let start = Instant::now();
        step.zero_grads().expect("gradients");
        let scale = 1.0 / (rows * (length - 1)) as f32;
        losses.push(step.forward_backward(&mut model, &batch, scale).expect("a step").mean());
        optimizer.step(number, 1e-4).expect("an update");
        if let Some(gpu) = device.gpu() {
            gpu.synchronize().expect("no kernel failed");
        }
        times.push(start.elapsed().as_secs_f64());
    }
    let mut rest = times[1..].to_vec();
    rest.sort_by(f64::total_cmp);
    let rate = (rows * length) as f64 / rest[rest.len() / 2];
    let expected = (vocabulary as f64).ln();
    assert!(
        (losses[0] - expected).abs() < 2.0,
        "the first loss is {}, not near ln V = {expected:.2}",
        losses[0]
    );
    assert!(losses[4] < losses[0], "the loss does not fall: {losses:?}");
    let peak = device.gpu().map_or_else(peak_mib, |gpu| gpu.peak_bytes() as f64 / 1048576.0);
    let card = device.gpu().map(|gpu| gpu.name().to_string());
    let (first, last) = (losses[0], losses[4]);
    println!(
        "{}",
        json!({"tokens_per_second": rate, "peak_mib": peak, "first_loss": first, "last_loss": last, "load_seconds": load, "card": card})
    );
}
