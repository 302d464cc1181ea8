//! Translation against CTranslate2: `cargo bench --bench translation -- --python PYTHON --work DIR [--size 600M|tiny|ending] [--rounds 3] [--threads 2]`.
//!
//! A model of NLLB-200-600M's shape with random f32 weights (made once in DIR by scripts/peer_translation.py; 5 GB), 64 sentences of 10 to
//! 50 tokens, 31 new tokens each, greedy and 4 beams. Each round runs everyone once in a process of its own, after a warm-up.
mod options;
mod peer;

use std::{path::Path, process::Command, time::Instant};

use clap::Parser;
use options::{PRINTED, Peers};
use peer::{Contestant, interleave, itself, peak_mib};
use sdrrl::{
    models::m2m100::{BeamParams, GenerateOptions, M2m100, TranslationRequest, generate},
    stages::bench,
    tensor::DType,
};
use serde_json::{Value, json};

/// What is compared.
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    peers: Peers,
    /// Folder of the model, which is made there if it is not there
    #[arg(long)]
    work: Option<String>,
    /// Shape of the model that is made: 600M, tiny or ending
    #[arg(long, default_value = "600M")]
    size: String,
    /// Threads of both sides
    #[arg(long, default_value = "2")]
    threads: String,
    #[command(flatten)]
    of: bench::Translate,
}

fn main() {
    let (Options { peers, work, size, threads, of }, _) = options::options::<Options>(&[
        ("model", "both sides read the model in --work"),
        ("shape", "--size names the shapes that scripts/peer_translation.py makes"),
        ("sentences", "they lie in --work"),
        ("new", "it lies in --work"),
        ("warmup", "one short run warms up, here and there"),
        ("runs", "--rounds repeats everything"),
        ("json", PRINTED),
        ("compare", PRINTED),
        ("dtype", "both sides compute in f32"),
        ("base_dtype", "a translator has no blocks"),
        ("activations", "a translator has no blocks"),
        ("device", "this runs on the processor"),
    ]);
    if let (Some(beams), Some(work)) = (&peers.worker, &work) {
        return worker(work, beams.parse().expect("a number of beams"));
    }
    let (Some(python), Some(work)) = (&peers.python, work) else {
        return println!("give --python PYTHON (with torch, transformers, ctranslate2) and --work DIR");
    };
    let rounds = peers.rounds(3);
    if !Path::new(&work).join("sentences.json").exists() {
        let made = Command::new(python).args(["scripts/peer_translation.py", "make", &work, &size]).status();
        assert!(made.is_ok_and(|s| s.success()), "the model could not be made");
    }
    println!("NLLB {size}, f32, 64 sentences, {threads} threads, {rounds} interleaved rounds, medians");
    println!("{:<24} {:>12} {:>10} {:>10} {:>8}", "", "sentences/s", "tokens", "peak MiB", "ratio");
    for beams in of.beams.iter().map(usize::to_string) {
        let own = itself(&["--worker", &beams, "--work", &work]);
        let env = ["env".to_string(), format!("RAYON_NUM_THREADS={threads}")];
        let peer = [python.as_str(), "scripts/peer_translation.py", "run", &work, &beams, &threads];
        let all = [
            Contestant { name: format!("sdrrl, {beams} beams"), command: [&env[..], &own].concat() },
            Contestant {
                name: format!("CTranslate2, {beams} beams"),
                command: peer.map(String::from).to_vec(),
            },
        ];
        let results = interleave(&all, rounds);
        let of = |i: usize, key: &str| results[i].as_ref().and_then(|r| r[key].as_f64()).unwrap_or(f64::NAN);
        for (i, contestant) in all.iter().enumerate() {
            let ratio = if i > 0 { format!("{:.2}", of(0, "rate") / of(i, "rate")) } else { String::new() };
            let numbers = [of(i, "rate"), of(i, "tokens"), of(i, "peak_mib")];
            println!(
                "{:<24} {:>12.2} {:>10.0} {:>10.0} {ratio:>8}",
                contestant.name, numbers[0], numbers[1], numbers[2]
            );
        }
    }
}

fn worker(work: &str, beams: usize) {
    let text = std::fs::read_to_string(Path::new(work).join("sentences.json")).expect("sentences.json");
    let data: Value = serde_json::from_str(&text).expect("JSON");
    let language = data["language"].as_u64().map(|x| x as u32);
    let sentences: Vec<Vec<u32>> = serde_json::from_value(data["sentences"].clone()).expect("ids");
    let requests: Vec<TranslationRequest> =
        sentences.into_iter().map(|tokens| TranslationRequest { tokens, forced_bos: language }).collect();
    let model = M2m100::load(Path::new(work), DType::F32).expect("the model");
    let new = data["new"].as_u64().expect("a length") as usize;
    let run = |requests: &[TranslationRequest], max_length: usize| {
        let params = BeamParams { num_beams: beams, max_length, ..BeamParams::default() };
        generate(&model, requests, &params, GenerateOptions::default(), &mut |_| {}).expect("translations")
    };
    run(&requests[..2], 4);
    let start = Instant::now();
    let out = run(&requests, new + 1);
    let seconds = start.elapsed().as_secs_f64();
    // Without the start token, as the peer counts.
    let mut lengths: Vec<usize> = out.iter().map(|t| t.tokens.len() - 1).collect();
    let tokens: usize = lengths.iter().sum();
    lengths.sort();
    let quartiles: Vec<usize> = (0..5).map(|q| lengths[q * (lengths.len() - 1) / 4]).collect();
    println!(
        "{}",
        json!({"rate": requests.len() as f64 / seconds, "tokens": tokens, "peak_mib": peak_mib(), "lengths": quartiles})
    );
}
