//! Multiple choice against lm-eval with transformers: `cargo bench --bench multiple_choice -- --python PYTHON [--rounds 3] [--rows 64]
//! [--batches 1,8,16,64]`.
//!
//! SmolLM2-135M-Instruct and EXAMS' Spanish test questions (scripts/get_assets.sh), the first rows of them, both ways to ask: letters (all
//! choices stand in the prompt, one token is scored) and texts (each choice is scored). Both sides get the same prompts and choices; tokenizing
//! is part of the time. Each round runs everyone once in a process of its own, after a warm-up of 4 rows. lm-eval runs with batches of 1, 8, 16
//! and 64 (where its `auto` ends, without the search); the ratio is to its fastest. The choices must be the same on every row in f32. PYTHON
//! needs torch, transformers, gguf and lm_eval.
mod options;
mod peer;

use std::{fs, path::Path, time::Instant};

use clap::Parser;
use options::{OF_MODELS, Peers};
use peer::{Contestant, interleave, itself, peak_mib};
use sdrrl::{
    eval::{
        sample::Sample,
        tasks::{self, Ask, Item},
    },
    infer::answerer::Answerer,
    infer::engine::EngineOptions,
    pipeline::placement::{Placement, parse_dtype},
    recipe::eval::EvalTask,
    stages::bench::Common,
};
use serde_json::json;

const MODEL: &str = "assets/downloads/SmolLM2-135M-Instruct.Q4_1.gguf";
const ROWS: &str = "assets/downloads/eval/es.test.jsonl";

/// What is compared.
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    peers: Peers,
    /// Questions
    #[arg(long, default_value = "64")]
    rows: String,
    /// Batches of the peer
    #[arg(long, value_delimiter = ',', default_value = "1,8,16,64")]
    batches: Vec<String>,
    /// Of a worker: where its choices go
    #[arg(long, hide = true)]
    out: Option<String>,
    #[command(flatten)]
    _common: Common,
}

fn main() {
    let (Options { peers, rows: count, batches, out, .. }, _) = options::options::<Options>(OF_MODELS);
    if let (Some(case), Some(out)) = (&peers.worker, &out) {
        return worker(case, &count, out);
    }
    for file in [MODEL, ROWS] {
        if !Path::new(file).exists() {
            return println!("{file} is missing: run scripts/get_assets.sh");
        }
    }
    let rounds = peers.rounds(3);
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    println!("{} threads, {count} rows, {rounds} interleaved rounds, medians", rayon::current_num_threads());
    println!("{:<28} {:>10} {:>12}", "", "rows/s", "peak MiB");
    for case in ["f32:letters", "f32:texts", "bf16:letters", "bf16:texts"] {
        let (dtype, form) = case.split_once(':').expect("DTYPE:FORM");
        let asked = at(&format!("{form}.jsonl"));
        fs::write(&asked, questions(&items(form, &count))).expect("the questions");
        let own = itself(&["--worker", case, "--rows", &count, "--out", &at("ours")]);
        let mut all = vec![Contestant { name: format!("sdrrl {case}"), command: own }];
        if let Some(python) = &peers.python {
            all.extend(batches.iter().map(|batch| {
                Contestant {
                    name: format!("lm-eval {case} batch {batch}"),
                    command: [python.as_str(), "scripts/peer_lm_eval.py", dtype, batch, &asked, &at(batch)]
                        .map(String::from)
                        .to_vec(),
                }
            }));
        }
        let results = interleave(&all, rounds);
        let of = |i: usize, key: &str| results[i].as_ref().and_then(|r| r[key].as_f64()).unwrap_or(f64::NAN);
        for (i, contestant) in all.iter().enumerate() {
            println!("{:<28} {:>10.2} {:>12.0}", contestant.name, of(i, "rows"), of(i, "peak_mib"));
        }
        let best = (1..all.len()).map(|i| of(i, "rows")).fold(f64::NAN, f64::max);
        if all.len() > 1 {
            println!("{:<28} {:>10.2}", "ratio to its fastest", of(0, "rows") / best);
            compare(&at("ours"), &at(&batches[0]), dtype == "f32");
        }
    }
}

/// The choices of one side against the other's, row by row, a line `CHOICE LOG-LIKELIHOODS` each.
fn compare(ours: &str, theirs: &str, must: bool) {
    let read = |path: &str| -> Vec<(String, Vec<f64>)> {
        let text = fs::read_to_string(path).expect("the choices of both sides");
        let line = |l: &str| {
            let mut words = l.split(' ').map(String::from);
            let choice = words.next().expect("a choice");
            (choice, words.map(|x| x.parse().expect("a log-likelihood")).collect())
        };
        text.lines().map(line).collect()
    };
    let (ours, theirs) = (read(ours), read(theirs));
    assert_eq!(ours.len(), theirs.len(), "both sides choose once a row");
    let different: Vec<usize> = (0..ours.len()).filter(|&i| ours[i].0 != theirs[i].0).collect();
    let likelihoods = ours.iter().zip(&theirs).flat_map(|(a, b)| a.1.iter().zip(&b.1));
    let furthest = likelihoods.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    println!(
        "{:<28} {:>10} (log-likelihoods differ by up to {furthest:.1e})",
        "rows with another choice",
        different.len()
    );
    assert!(!must || different.is_empty(), "other choices than lm-eval's in rows {different:?}");
}

fn task(form: &str, count: &str) -> EvalTask {
    let limit: usize = count.parse().expect("a number of rows");
    let task = json!({"name": "exams", "kind": "multiple-choice", "language": "es", "file": ROWS, "choices": form, "limit": limit});
    serde_json::from_value(task).expect("a task")
}

fn items(form: &str, count: &str) -> Vec<Item> {
    tasks::load(&task(form, count)).expect("the questions")
}

/// For the peer: prompt and choices of each row.
fn questions(items: &[Item]) -> String {
    let line = |item: &Item| {
        let Ask::Choose(choices) = &item.ask else { panic!("not a multiple-choice task") };
        json!({"prompt": item.sample.prompt, "choices": choices}).to_string() + "\n"
    };
    items.iter().map(line).collect()
}

fn worker(case: &str, count: &str, out: &str) {
    let (dtype, form) = case.split_once(':').expect("DTYPE:FORM");
    let placement = Placement { dtype: parse_dtype(dtype).expect("f32 or bf16"), ..Placement::default() };
    let answerer = Answerer::load(MODEL, None, placement, "plain").expect("the model");
    let (task, items) = (task(form, count), items(form, count));
    let run = |items: &[Item]| {
        tasks::run(&answerer, &task, None, EngineOptions::default(), items).expect("log-likelihoods")
    };
    run(&items[..items.len().min(4)]);
    let start = Instant::now();
    let samples = run(&items);
    let rows = items.len() as f64 / start.elapsed().as_secs_f64();
    let line = |s: &Sample| {
        let numbers: Vec<String> = s.log_likelihoods.iter().map(f64::to_string).collect();
        format!("{} {}\n", s.response, numbers.join(" "))
    };
    fs::write(out, samples.iter().map(line).collect::<String>()).expect("the choices");
    println!("{}", json!({"rows": rows, "peak_mib": peak_mib()}));
}
