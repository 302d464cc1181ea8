//! Training steps against PyTorch + peft: `cargo bench --bench steps -- --python PYTHON [--rounds 5]`, with the options of `sdrrl bench train`.
//!
//! LoRA on all seven linears, ROWS documents of LENGTH tokens, every token trained, AdamW, random weights and tokens. Each round
//! runs everyone once in a process of its own: a warm-up step, then the median of the others. Without --python only this program runs. PYTHON needs
//! torch, transformers and peft. `--dtypes f32,bf16`; on a GPU the default is bf16, for which 8 rows of 2048 tokens of LLaMA-2-7B need about 65 GB here. A peer that runs
//! out of the GPU's memory repeats with gradient checkpointing, and its name says so.
//!
//! A first loss that is not finite and near ln V, or a loss that does not fall on the batch that is repeated, ends a run without a figure.
mod card;
mod options;
mod peer;
mod shapes;

use std::time::Instant;

use clap::Parser;
use options::{PRINTED, Peers};
use peer::{Contestant, interleave, itself, peak_mib};
use sdrrl::{
    bench::{models, train},
    data::random::RowRandom,
    device::DeviceChoice,
    models::{
        transformer::lora::{Lora, LoraConfig},
        transformer::train_step::{PackedBatch, TrainStep, Trainable},
    },
    stages::bench,
    tensor::DType,
    train::optimizer::{Optimizer, OptimizerSettings},
};
use serde_json::{Value, json};

/// What is compared.
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    peers: Peers,
    /// Types of the weights [default: f32,bf16; on a GPU bf16]
    #[arg(long, value_delimiter = ',')]
    dtypes: Vec<String>,
    #[command(flatten)]
    of: bench::Train,
}

/// What is run, as both sides take it on the command line.
struct Case {
    shape: String,
    rows: usize,
    length: usize,
    rank: usize,
    device: DeviceChoice,
}

impl Case {
    fn new(of: &bench::Train) -> Case {
        let device = of.common.placement.device;
        let (rows, length) = if on_gpu(device) { (8, 2048) } else { (4, 256) };
        let (rows, length) = (of.rows.unwrap_or(rows), of.length.unwrap_or(length));
        Case { shape: of.shape.clone(), rows, length, rank: of.lora_rank, device }
    }
    fn arguments(&self) -> Vec<String> {
        let numbers = [self.rows, self.length, self.rank].map(|x| x.to_string());
        let [rows, length, rank] = numbers.each_ref().map(String::as_str);
        let device = self.device.to_string();
        let all = [
            "--shape",
            &self.shape,
            "--rows",
            rows,
            "--length",
            length,
            "--lora-rank",
            rank,
            "--device",
            &device,
        ];
        all.map(String::from).to_vec()
    }
}

fn on_gpu(device: DeviceChoice) -> bool {
    matches!(device, DeviceChoice::Cuda(_))
}

/// FLOP/s of dense bf16 products that NVIDIA states for a card; unknown ones are left out rather than guessed.
fn dense_peak(card: &str) -> Option<f64> {
    ["H100 80GB HBM3", "H200"].iter().any(|known| card.contains(known)).then_some(989e12)
}

fn main() {
    let (Options { peers, dtypes, of }, _) = options::options::<Options>(&[
        ("model", "peers run random weights of a --shape"),
        ("warmup", "one step warms up, here and there"),
        ("runs", "a run is four steps, here and there; --rounds repeats it"),
        ("json", PRINTED),
        ("compare", PRINTED),
        ("dtype", "--dtypes names all that are compared"),
        ("base_dtype", "no quantised base is compared"),
        ("activations", "no quantised base is compared"),
    ]);
    let case = Case::new(&of);
    if let Some(dtype) = &peers.worker {
        return worker(dtype, &case);
    }
    let rounds = peers.rounds(5);
    let usual: &[&str] = if on_gpu(case.device) { &["bf16"] } else { &["f32", "bf16"] };
    let dtypes: Vec<&str> =
        if dtypes.is_empty() { usual.to_vec() } else { dtypes.iter().map(String::as_str).collect() };
    let own = |d: &&str| Contestant {
        name: format!("sdrrl {d}"),
        command: [itself(&["--worker", d]), case.arguments()].concat(),
    };
    let mut all: Vec<Contestant> = dtypes.iter().map(own).collect();
    if let Some(python) = &peers.python {
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
    let (flop, formula) =
        train::model_flop(&config, train::Case { rows, length, rank: case.rank, random: true });
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
    let device = case.device.open().expect("the device");
    let begun = Instant::now();
    let config = models::config(&case.shape).expect("a shape of benches/shapes.json");
    let mut model = models::random_decoder(config, dtype, &device).expect("memory for the model");
    let load = begun.elapsed().as_secs_f64();
    let vocabulary = model.config.vocab_size;
    let lora = LoraConfig { r: case.rank, alpha: 2.0 * case.rank as f64, ..Default::default() };
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
