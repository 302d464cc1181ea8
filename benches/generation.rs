//! Greedy generation against transformers and llama.cpp: `cargo bench --bench generation -- --python PYTHON [--rounds 3]`.
//!
//! SmolLM2-135M-Instruct (scripts/get_assets.sh), prompts of 64 tokens, 64 new tokens, batches of 1 and 8, weights as f32 and bf16. Each
//! round runs everyone once in a process of its own: a warm-up, then the median of 3. Decode: new tokens behind the first, summed over
//! the batch. PYTHON needs torch, transformers and gguf, and llama-cpp-python for llama.cpp.
mod peer;

use std::{cell::Cell, path::Path, time::Instant};

use peer::{Contestant, interleave, itself, option, peak_mib};
use sdrrl::{
    data::random::RowRandom,
    infer::{
        engine::{Engine, EngineOptions, Request},
        sampler::SamplingParams,
    },
    models::llama::Llama,
    stages::placement::parse_dtype,
};
use serde_json::json;

const MODEL: &str = "assets/downloads/SmolLM2-135M-Instruct.Q4_1.gguf";
const NEW: usize = 64;

fn main() {
    if let Some(case) = option("--worker") {
        return worker(&case);
    }
    if !Path::new(MODEL).exists() {
        return println!("{MODEL} is missing: run scripts/get_assets.sh");
    }
    let rounds = option("--rounds").and_then(|r| r.parse().ok()).unwrap_or(3);
    println!("{} threads, {rounds} interleaved rounds, medians", rayon::current_num_threads());
    println!("{:<30} {:>14} {:>14} {:>12} {:>8}", "", "prefill tok/s", "decode tok/s", "peak MiB", "ratio");
    for case in ["f32:1", "bf16:1", "f32:8", "bf16:8"] {
        let mut all =
            vec![Contestant { name: format!("sdrrl {case}"), command: itself(&["--worker", case]) }];
        if let Some(python) = option("--python") {
            all.extend(["transformers", "llama.cpp"].iter().map(|peer| Contestant {
                name: format!("{peer} {case}"),
                command:
                    [python.as_str(), "scripts/peer_generation.py", peer, case].map(String::from).to_vec(),
            }));
        }
        let results = interleave(&all, rounds);
        let of = |i: usize, key: &str| results[i].as_ref().and_then(|r| r[key].as_f64()).unwrap_or(f64::NAN);
        for (i, contestant) in all.iter().enumerate() {
            let ratio =
                if i > 0 { format!("{:.2}", of(0, "decode") / of(i, "decode")) } else { String::new() };
            println!(
                "{:<30} {:>14.1} {:>14.1} {:>12.0} {ratio:>8}",
                contestant.name,
                of(i, "prefill"),
                of(i, "decode"),
                of(i, "peak_mib")
            );
        }
    }
}

fn worker(case: &str) {
    let (dtype, rows) = case.split_once(':').expect("DTYPE:ROWS");
    let rows: usize = rows.parse().expect("a number of rows");
    let model = Llama::load(Path::new(MODEL), parse_dtype(dtype).expect("f32 or bf16")).expect("the model");
    let mut engine =
        Engine::new(&model, EngineOptions { batch_rows: rows, ..Default::default() }).expect("an engine");
    let mut random = RowRandom::new(1, "bench", "prompts");
    let requests: Vec<Request> = (0..rows)
        .map(|i| Request {
            id: i.to_string(),
            tokens: (0..64).map(|_| 100 + random.below(40_000) as u32).collect(),
        })
        .collect();
    let params =
        |n: usize| SamplingParams { max_new_tokens: n, min_new_tokens: n, eos: vec![], ..Default::default() };
    let mut time = |n: usize| {
        let done = Cell::new(0);
        let start = Instant::now();
        engine.generate(&requests, &params(n), &mut |_, _| done.set(done.get() + 1)).expect("answers");
        start.elapsed().as_secs_f64()
    };
    time(4);
    let mut all: Vec<(f64, f64)> = (0..3)
        .map(|_| {
            let first = time(1);
            let whole = time(NEW);
            ((rows * 64) as f64 / first, (rows * (NEW - 1)) as f64 / (whole - first))
        })
        .collect();
    all.sort_by(|a, b| a.1.total_cmp(&b.1));
    println!("{}", json!({"prefill": all[1].0, "decode": all[1].1, "peak_mib": peak_mib()}));
}
