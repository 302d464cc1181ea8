//! Scoring speed against transformers: `cargo bench --bench scoring -- --python PYTHON [--rounds 3] [--shape large|tiny] [--pairs 64]`.
//!
//! An encoder of XLM-R large's shape with random weights, pairs of 24 to 120 tokens (translation and source together), f32 and bf16 weights.
//! Ours: packed, no padding, the last layer for first tokens only, the first token's state of every layer read out. transformers: batches of
//! 16 sorted by length and padded, as COMET makes them, all hidden states. Each round runs everyone once in a process of its own: a warm-up,
//! then the median of 3. PYTHON needs torch and transformers.
mod peer;

use std::time::Instant;

use peer::{Contestant, interleave, itself, option, peak_mib};
use sdrrl::{
    models::xlm_roberta::{Encoder, LastLayer, XlmRoberta, XlmRobertaConfig, batches},
    ops::rows::gather_rows,
    pipeline::placement::parse_dtype,
    tensor::{DType, Tensor},
};
use serde_json::json;

const BATCH_TOKENS: usize = 2048;

fn main() {
    peer::only(&["--python", "--rounds", "--shape", "--pairs"]);
    let (shape, pairs) =
        (option("--shape").unwrap_or("large".into()), option("--pairs").unwrap_or("64".into()));
    if let Some(dtype) = option("--worker") {
        return worker(&dtype, &shape, pairs.parse().expect("a number of pairs"));
    }
    let rounds = option("--rounds").and_then(|r| r.parse().ok()).unwrap_or(3);
    println!(
        "{} threads, shape {shape}, {pairs} pairs, {rounds} interleaved rounds, medians",
        rayon::current_num_threads()
    );
    println!("{:<24} {:>10} {:>12} {:>12} {:>8}", "", "pairs/s", "tokens/s", "peak MiB", "ratio");
    for dtype in ["f32", "bf16"] {
        let own = itself(&["--worker", dtype, "--shape", &shape, "--pairs", &pairs]);
        let mut all = vec![Contestant { name: format!("sdrrl {dtype}"), command: own }];
        if let Some(python) = option("--python") {
            let command =
                [&python, "scripts/peer_scoring.py", dtype, &shape, &pairs].map(String::from).to_vec();
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

fn config(shape: &str) -> XlmRobertaConfig {
    let (c, f, layers, heads, vocab) =
        if shape == "large" { (1024, 4096, 24, 16, 250_002) } else { (64, 256, 3, 4, 1000) };
    XlmRobertaConfig::from_value(json!({"model_type": "xlm-roberta", "hidden_size": c, "intermediate_size": f, "num_hidden_layers": layers,
        "num_attention_heads": heads, "vocab_size": vocab, "max_position_embeddings": 514, "layer_norm_eps": 1e-5}))
    .expect("a config")
}

/// Uniform weights of standard deviation 0.02; norms 1 and 0.
fn random(config: XlmRobertaConfig, dtype: DType) -> XlmRoberta {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * 0.035
    };
    XlmRoberta::build(config, &mut |name, dims, matrix| {
        let mut t = Tensor::zeros(name, if matrix { dtype } else { DType::F32 }, dims)?;
        if name.ends_with("LayerNorm.weight") {
            t.write_f32(&vec![1.0; t.len()])?;
        } else if !name.ends_with("bias") {
            t.write_f32(&(0..t.len()).map(|_| next()).collect::<Vec<f32>>())?;
        }
        Ok(t)
    })
    .expect("a model")
}

fn worker(dtype: &str, shape: &str, pairs: usize) {
    let model = random(config(shape), parse_dtype(dtype).expect("f32 or bf16"));
    let (c, vocab) = (model.config.hidden_size, model.config.vocab_size);
    let lengths = lengths(pairs);
    let ids: Vec<Vec<u32>> =
        lengths.iter().map(|&n| (0..n).map(|i| (5 + i * 7919 % (vocab - 5)) as u32).collect()).collect();
    let mut encoder = Encoder::new(&model, BATCH_TOKENS, LastLayer::First).expect("an encoder");
    let mut time = || {
        let start = Instant::now();
        for batch in batches(&lengths, BATCH_TOKENS) {
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
