//! Greedy generation against transformers and llama.cpp: `cargo bench --bench generation -- --python PYTHON [--rounds 3]`, with the options of `sdrrl bench generate`.
//!
//! SmolLM2-135M-Instruct (scripts/get_assets.sh), or another `--model FILE.gguf`, prompts of 64 tokens, 64 new tokens, batches of 1 and 8, weights as f32 and bf16.
//! `--dtypes stored` compares the file's own blocks, here with `--activations int8`, in llama.cpp as it takes them. Each round runs everyone once in a process of its own: a warm-up, then the median of 3. Decode: new tokens behind the first, summed over
//! the batch. PYTHON needs torch, transformers and gguf, and llama-cpp-python for llama.cpp.
//!
//! `--shape llama-1b | llama2-7b` (benches/shapes.json) with `--device cpu | cuda | emulated`: random weights, against transformers with weights alike on
//! the same device; `--dtypes bf16`, `--batches 1,8,64`, `--prompt 128`, `--new 128`. GB/s of a decode step: the weights of all products once and the
//! cached keys and values of each row at its mean length.
//!
//! Tokens beyond the vocabulary, fewer tokens than asked for, or equal prompts of one batch that go on differently end a run without a figure.
mod card;
mod options;
mod peer;
mod shapes;

use std::{path::Path, time::Instant};

use clap::{CommandFactory, Parser, error::ErrorKind};
use options::{PRINTED, Peers, given};
use peer::{Contestant, interleave, itself, peak_mib};
use sdrrl::{
    bench::{generate, models},
    data::random::RowRandom,
    device::DeviceChoice,
    infer::{
        engine::{Engine, EngineOptions, Generated, Request},
        sampler::SamplingParams,
    },
    models::{transformer::config::Config, transformer::weights::Transformer},
    pipeline::placement::parse_dtype,
    stages::bench,
    tensor::{Activations, DType},
};
use serde_json::{Value, json};

const MODEL: &str = "assets/downloads/SmolLM2-135M-Instruct.Q4_1.gguf";

/// The file's own blocks, with activations in int8.
const STORED: &str = "stored";

/// What is compared.
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    peers: Peers,
    /// Types of the weights: f32, bf16, or stored for a file's own blocks [default: f32,bf16; with --shape bf16]
    #[arg(long, value_delimiter = ',')]
    dtypes: Vec<String>,
    #[command(flatten)]
    of: bench::Generate,
}

/// What is run: of a shape with random weights, or of the downloaded model.
struct Case {
    shape: Option<String>,
    /// The file, without a shape.
    model: String,
    device: DeviceChoice,
    prompt: usize,
    new: usize,
    dtypes: Vec<String>,
    batches: Vec<usize>,
}

impl Case {
    fn new(of: &bench::Generate, shaped: bool, dtypes: Vec<String>) -> Case {
        let usual: &[&str] = if shaped { &["bf16"] } else { &["f32", "bf16"] };
        let dtypes = if dtypes.is_empty() { usual.iter().map(|d| d.to_string()).collect() } else { dtypes };
        Case {
            shape: shaped.then(|| of.shape.clone()),
            model: of.model.clone().unwrap_or_else(|| MODEL.into()),
            device: of.common.placement.device,
            prompt: of.prompt,
            new: of.new,
            dtypes,
            batches: of.batches.clone(),
        }
    }
    /// `dtype:rows` of everything that is run.
    fn all(&self) -> Vec<String> {
        self.batches.iter().flat_map(|b| self.dtypes.iter().map(move |d| format!("{d}:{b}"))).collect()
    }
    fn peers(&self, run: &str) -> &[&str] {
        match (&self.shape, split(run).0) {
            (Some(_), _) => &["transformers-random"],
            (None, STORED) => &["llama.cpp"],
            (None, _) => &["transformers", "llama.cpp"],
        }
    }
    fn arguments(&self) -> Vec<String> {
        let (prompt, new, device) = (self.prompt.to_string(), self.new.to_string(), self.device.to_string());
        let what = self.shape.as_ref().map_or(["--model", &self.model], |shape| ["--shape", shape]);
        let all = what.into_iter().chain(["--device", &device, "--prompt", &prompt, "--new", &new]);
        all.map(String::from).collect()
    }
    /// Bytes that a decode step of `rows` must read.
    fn step_bytes(&self, config: &Config, dtype: &str, rows: usize) -> f64 {
        let weights = parse_dtype(dtype).expect("f32 or bf16");
        let cached = if self.device == DeviceChoice::Cpu { DType::F32 } else { weights };
        let case = generate::Case { rows, prompt: self.prompt, new: self.new };
        generate::step_bytes(config, weights, cached, case)
    }
}

fn main() {
    let (Options { peers, dtypes, of }, matches) = options::options::<Options>(&[
        ("warmup", "one short run warms up, here and there"),
        ("runs", "a run is the median of three, here and there; --rounds repeats it"),
        ("json", PRINTED),
        ("compare", PRINTED),
        ("dtype", "--dtypes names all that are compared"),
        ("base_dtype", "--dtypes stored compares a file's own blocks"),
        ("activations", "--dtypes stored compares activations in int8, as llama.cpp has them"),
    ]);
    let case = Case::new(&of, given(&matches, "shape"), dtypes);
    if case.shape.is_some() && case.dtypes.iter().any(|d| d == STORED) {
        let message = "--dtypes stored compares a file's own blocks: leave --shape out\n";
        Options::command().error(ErrorKind::ArgumentConflict, message).exit();
    }
    if let Some(run) = &peers.worker {
        return worker(run, &case);
    }
    if case.shape.is_none() && !Path::new(&case.model).exists() {
        return println!("{} is missing: run scripts/get_assets.sh", case.model);
    }
    let rounds = peers.rounds(3);
    let mut headed = false;
    for run in case.all() {
        let own = [itself(&["--worker", &run]), case.arguments()].concat();
        let mut all = vec![Contestant { name: format!("sdrrl {run}"), command: own }];
        if let Some(python) = &peers.python {
            all.extend(case.peers(&run).iter().map(|peer| {
                let program =
                    [python.as_str(), "scripts/peer_generation.py", peer, &run].map(String::from).to_vec();
                Contestant { name: format!("{peer} {run}"), command: [program, case.arguments()].concat() }
            }));
        }
        let results = interleave(&all, rounds);
        if !std::mem::replace(&mut headed, true) {
            let card = results.iter().flatten().find_map(|r| r["card"].as_str());
            print_head(&case, card, rounds);
        }
        print(&case, &run, &all, &results);
    }
}

fn print_head(case: &Case, card: Option<&str>, rounds: usize) {
    let model = case.shape.as_ref().map_or(case.model.clone(), |s| {
        format!("{s} of random weights, {} tokens behind random prompts of {}, greedy", case.new, case.prompt)
    });
    println!("{model} on {}: {}; {rounds} interleaved rounds, medians", case.device, card::machine(card));
    println!(
        "{:<44} {:>14} {:>14} {:>10} {:>12} {:>8}",
        "", "prefill tok/s", "decode tok/s", "GB/s", "peak MiB", "ratio"
    );
}

fn print(case: &Case, run: &str, all: &[Contestant], results: &[Option<Value>]) {
    let (dtype, rows) = split(run);
    let bytes = |shape: &String| {
        let config = models::config(shape).expect("a shape of benches/shapes.json");
        case.step_bytes(&config, dtype, rows) / rows as f64
    };
    let step = case.shape.as_ref().map(bytes);
    let of = |i: usize, key: &str| results[i].as_ref().and_then(|r| r[key].as_f64()).unwrap_or(f64::NAN);
    let card = results[0].as_ref().and_then(|r| r["card"].as_str());
    for (i, contestant) in all.iter().enumerate() {
        let name = contestant.name.clone() + &shapes::remarks(results[i].as_ref(), card);
        let ratio = if i > 0 { format!("{:.2}", of(0, "decode") / of(i, "decode")) } else { String::new() };
        println!(
            "{:<44} {:>14.1} {:>14.1} {:>10} {:>12.0} {ratio:>8}",
            name,
            of(i, "prefill"),
            of(i, "decode"),
            step.map_or("-".into(), |bytes| format!("{:.1}", bytes * of(i, "decode") / 1e9)),
            of(i, "peak_mib")
        );
    }
}

fn split(run: &str) -> (&str, usize) {
    let (dtype, rows) = run.split_once(':').expect("DTYPE:ROWS");
    (dtype, rows.parse().expect("a number of rows"))
}

fn worker(run: &str, case: &Case) {
    let (dtype, rows) = split(run);
    let (dtype, blocks) = match dtype {
        STORED => (DType::F32, Some(Activations::Int8)),
        dense => (parse_dtype(dense).expect("f32, bf16 or stored"), None),
    };
    let compute = dtype.try_into().expect("a type of weights");
    let device = case.device.open().expect("the device");
    let model = match &case.shape {
        Some(shape) => models::config(shape)
            .and_then(|config| models::random_decoder(config, dtype, &device))
            .expect("memory for a shape of benches/shapes.json"),
        None => Transformer::load_as(Path::new(&case.model), compute, blocks).expect("the model"),
    };
    let vocabulary = model.config.vocab_size;
    let batch_tokens = if device.gpu().is_some() { 8192 } else { EngineOptions::default().batch_tokens };
    let mut engine =
        Engine::new(&model, EngineOptions { batch_rows: rows, batch_tokens }).expect("an engine");
    let mut random = RowRandom::new(1, "bench", "prompts");
    let mut prompts: Vec<Vec<u32>> = (0..rows)
        .map(|_| (0..case.prompt).map(|_| 100 + random.below(vocabulary.min(40_100) - 100) as u32).collect())
        .collect();
    prompts[rows - 1] = prompts[0].clone();
    let requests: Vec<Request> =
        prompts.into_iter().enumerate().map(|(i, tokens)| Request { id: i.to_string(), tokens }).collect();
    let params =
        |n: usize| SamplingParams { max_new_tokens: n, min_new_tokens: n, eos: vec![], ..Default::default() };
    let mut time = |n: usize| {
        let start = Instant::now();
        let found = engine.generate(&requests, &params(n), &mut |_, _| ()).expect("answers");
        (start.elapsed().as_secs_f64(), found)
    };
    time(4);
    let mut before: Option<Vec<Generated>> = None;
    let mut all: Vec<(f64, f64)> = (0..3)
        .map(|_| {
            let (first, _) = time(1);
            let (whole, found) = time(case.new);
            check(&found, case.new, vocabulary);
            assert!(before.as_ref().is_none_or(|b| *b == found), "the same prompts go on differently");
            before = Some(found);
            let decoded = rows * (case.new - 1);
            ((rows * case.prompt) as f64 / first, decoded as f64 / (whole - first))
        })
        .collect();
    all.sort_by(|a, b| a.1.total_cmp(&b.1));
    let peak = device.gpu().map_or_else(peak_mib, |gpu| gpu.peak_bytes() as f64 / 1048576.0);
    let card = device.gpu().map(|gpu| gpu.name().to_string());
    println!("{}", json!({"prefill": all[1].0, "decode": all[1].1, "peak_mib": peak, "card": card}));
}

/// The first and the last prompt are the same.
fn check(found: &[Generated], new: usize, vocabulary: usize) {
    for row in found {
        assert_eq!(row.tokens.len(), new, "a row is shorter than it was asked to be");
        assert!(row.tokens.iter().all(|&t| (t as usize) < vocabulary), "a token beyond the vocabulary");
    }
    let (first, last) = (&found[0].tokens, &found[found.len() - 1].tokens);
    assert_eq!(first, last, "equal prompts of one batch go on differently");
}
