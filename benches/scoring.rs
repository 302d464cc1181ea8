//! Scoring speed against transformers: `cargo bench --bench scoring -- --python PYTHON [--rounds 3] [--shape xlm-r-large] [--pairs 32]`, with the options of
//! `sdrrl bench score`.
//!
//! An encoder of XLM-R large's shape with random weights, pairs of 24 to 120 tokens (translation and source together), f32 and bf16 weights.
//! Ours: packed, no padding, the last layer for first tokens only, the first token's state of every layer read out. transformers: batches of
//! 16 sorted by length and padded, as COMET makes them, all hidden states. Each round runs everyone once in a process of its own: a warm-up,
//! then the median of 3. PYTHON needs torch and transformers.
mod options;
mod peer;

use std::time::Instant;

use clap::Parser;
use options::{PRINTED, Peers};
use peer::{Contestant, interleave, itself, peak_mib};
use sdrrl::{
    bench::models::random_encoder,
    models::xlm_roberta::{Encoder, LastLayer, batches},
    ops::rows::gather_rows,
    pipeline::placement::parse_dtype,
    stages::bench,
    tensor::{DType, Tensor},
};
use serde_json::json;

/// What is compared.
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    peers: Peers,
    #[command(flatten)]
    of: bench::Score,
}

fn main() {
    let (Options { peers, of }, _) = options::options::<Options>(&[
        ("model", "peers run random weights of a --shape"),
        ("warmup", "one run warms up, here and there"),
        ("runs", "a run is the median of three, here and there; --rounds repeats it"),
        ("json", PRINTED),
        ("compare", PRINTED),
        ("dtype", "f32 and bf16 are compared"),
        ("base_dtype", "an encoder has no blocks"),
        ("activations", "an encoder has no blocks"),
        ("device", "this runs on the processor"),
    ]);
    let (shape, pairs, budget) = (&of.shape, of.pairs.to_string(), of.batch_tokens.to_string());
    if let Some(dtype) = &peers.worker {
        return worker(dtype, &of);
    }
    let rounds = peers.rounds(3);
    println!(
        "{} threads, shape {shape}, {pairs} pairs, {rounds} interleaved rounds, medians",
        rayon::current_num_threads()
    );
    println!("{:<24} {:>10} {:>12} {:>12} {:>8}", "", "pairs/s", "tokens/s", "peak MiB", "ratio");
    for dtype in ["f32", "bf16"] {
        let own =
            itself(&["--worker", dtype, "--shape", shape, "--pairs", &pairs, "--batch-tokens", &budget]);
        let mut all = vec![Contestant { name: format!("sdrrl {dtype}"), command: own }];
        if let Some(python) = &peers.python {
            let command =
                [python, "scripts/peer_scoring.py", dtype, shape, &pairs].map(String::from).to_vec();
            all.push(Contestant { name: format!("transformers {dtype}"), command });
        }
        let results = interleave(&all, rounds);
        let of = |i: usize, key: &str| results[i].as_ref().and_then(|r| r[key].as_f64()).unwrap_or(f64::NAN);
        for (i, contestant) in all.iter().enumerate() {
            let ratio = if i > 0 { format!("{:.2}", of(0, "pairs") / of(i, "pairs")) } else { String::new() };
            let (pairs, tokens, peak) = (of(i, "pairs"), of(i, "tokens"), of(i, "peak_mib"));
            println!("{:<24} {pairs:>10.2} {tokens:>12.0} {peak:>12.0} {ratio:>8}", contestant.name);
        }
    }
}

/// As in scripts/peer_scoring.py.
fn lengths(pairs: usize) -> Vec<usize> {
    (0..pairs).map(|i| 24 + i * 7919 % 97).collect()
}

fn worker(dtype: &str, of: &bench::Score) {
    let (pairs, budget) = (of.pairs, of.batch_tokens);
    let dtype = parse_dtype(dtype).expect("f32 or bf16");
    let model = random_encoder(&of.shape, dtype).expect("memory for a shape that there is");
    let (c, vocab) = (model.config.hidden_size, model.config.vocab_size);
    let lengths = lengths(pairs);
    let ids: Vec<Vec<u32>> =
        lengths.iter().map(|&n| (0..n).map(|i| (5 + i * 7919 % (vocab - 5)) as u32).collect()).collect();
    let mut encoder = Encoder::new(&model, budget, LastLayer::First).expect("an encoder");
    let mut time = || {
        let start = Instant::now();
        for batch in batches(&lengths, budget) {
            let sentences: Vec<&[u32]> = batch.iter().map(|&i| ids[i].as_slice()).collect();
            let mut first = Tensor::zeros("first", DType::F32, &[batch.len(), c]).expect("memory");
            let mut read = |s: sdrrl::models::xlm_roberta::States| gather_rows(&mut first, s.states, s.first);
            encoder.forward(&model, &sentences, &mut read).expect("states");
        }
        start.elapsed().as_secs_f64()
    };
    time();
    let mut all = [time(), time(), time()];
    all.sort_by(f64::total_cmp);
    let tokens: usize = lengths.iter().sum();
    println!(
        "{}",
        json!({"pairs": pairs as f64 / all[1], "tokens": tokens as f64 / all[1], "peak_mib": peak_mib()})
    );
}
