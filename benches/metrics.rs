//! Corpus metrics and significance tests against sacrebleu: `cargo bench --bench metrics -- [--python PYTHON] [--rounds 5] [--data DIR]`.
//!
//! DIR holds test.es and two translations of it, test.google.es and test.bergamot-tiny.es (FLORES devtest, 1,012 lines; without it the
//! 40 lines in tests/golden). Each round runs everyone once in a process of its own: time from lines in memory to the score, the best of
//! several runs; sacrebleu is made to forget the lines it has tokenized before each. PYTHON needs sacrebleu.
mod options;
mod peer;

use std::{path::Path, time::Instant};

use clap::Parser;
use options::{OF_MODELS, Peers};
use peer::{Contestant, interleave, itself, peak_mib};
use sdrrl::{
    data::text_file::read_lines,
    metrics::{
        corpus::CorpusMetric,
        significance::{paired_bootstrap, paired_randomisation},
        tokenize::{BleuTokenizer, TercomOptions},
    },
    stages::bench::Common,
};
use serde_json::json;

const EXCERPT: &str = "tests/golden/metrics/flores";
const CASES: [&str; 4] = ["bleu_chrf", "ter", "paired_bs", "paired_ar"];

/// What is compared.
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    peers: Peers,
    /// Folder with test.es and two translations of it
    #[arg(long, default_value = EXCERPT)]
    data: String,
    #[command(flatten)]
    _common: Common,
}

fn main() {
    let (Options { peers, data, .. }, _) = options::options::<Options>(OF_MODELS);
    if let Some(case) = &peers.worker {
        return worker(case, &data);
    }
    let rounds = peers.rounds(5);
    println!("{data}: {} threads, {rounds} interleaved rounds, medians", rayon::current_num_threads());
    println!(
        "{:<24} {:>12} {:>12} {:>8} {:>9} {:>9}",
        "milliseconds", "sdrrl", "sacrebleu", "ratio", "MiB", "MiB"
    );
    for case in CASES {
        let mut all = vec![Contestant {
            name: format!("sdrrl {case}"),
            command: itself(&["--worker", case, "--data", &data]),
        }];
        all.extend(peers.python.as_ref().map(|python| Contestant {
            name: format!("sacrebleu {case}"),
            command: [python.as_str(), "scripts/peer_metrics.py", case, &data].map(String::from).to_vec(),
        }));
        let results = interleave(&all, rounds);
        let of = |i: usize, key: &str| {
            results.get(i).and_then(|r| r.as_ref()).and_then(|r| r[key].as_f64()).unwrap_or(f64::NAN)
        };
        let (ours, theirs) = (of(0, "ms"), of(1, "ms"));
        println!(
            "{case:<24} {ours:>12.2} {theirs:>12.2} {:>8.1} {:>9.0} {:>9.0}",
            theirs / ours,
            of(0, "peak_mib"),
            of(1, "peak_mib")
        );
    }
}

fn worker(case: &str, data: &str) {
    let read = |name: &str| read_lines(&Path::new(data).join(name)).expect("FLORES files");
    let (reference, first, second) = (read("test.es"), read("test.bergamot-tiny.es"), read("test.google.es"));
    let bleu = CorpusMetric::Bleu(BleuTokenizer::V13a.load(None).expect("13a").into());
    let (chrf, ter) = (CorpusMetric::Chrf(0), CorpusMetric::Ter(TercomOptions::default()));
    let score = |metric: &CorpusMetric| {
        let counts = metric.counts(&second, &reference).expect("as many lines");
        metric.score(&counts)
    };
    let paired = |bootstrap: bool| {
        let counts = [&first, &second].map(|s| bleu.counts(s, &reference).expect("as many lines"));
        let all = if bootstrap {
            paired_bootstrap(&bleu, &counts, 1000, 12345)
        } else {
            paired_randomisation(&bleu, &counts, 10_000, 12345)
        };
        all[1].p.expect("a second system")
    };
    let mut best = (f64::INFINITY, 0.0);
    for _ in 0..6 {
        let start = Instant::now();
        let value = match case {
            "bleu_chrf" => score(&bleu) + score(&chrf),
            "ter" => score(&ter),
            "paired_bs" => paired(true),
            _ => paired(false),
        };
        best = (best.0.min(start.elapsed().as_secs_f64() * 1000.0), value);
    }
    println!("{}", json!({"ms": best.0, "value": best.1, "peak_mib": peak_mib()}));
}
