//! Alignment of parallel sentences in the middle of a model, by commands and by recipes, on the quickstart's world.
use std::{fs, path::Path, process::Stdio, thread, time::Duration};

use serde_json::{Value, json};

use super::{MODEL, manifest, ok};
use crate::{cli::fails, common::program};

const PAIRS: &str = "assets/quickstart/world/parallel.en-es.tsv";

fn of_tag(dir: &Path, tag: &str) -> Vec<f64> {
    let metrics = fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
    metrics.lines().filter_map(|l| serde_json::from_str::<Value>(l).unwrap()[tag].as_f64()).collect()
}

const ALIGNED: [&str; 2] = ["train.alignment-weight=0.5", "train.alignment-batch=16"];

/// The quickstart with a few rows and steps.
fn recipe(work: &str, more: &[&str]) -> Vec<String> {
    let mut args = vec!["run".to_string(), "recipes/quickstart.toml".to_string()];
    let usual = [
        "generate.limit=40",
        "variants=[\"sdrrl\"]",
        "assemble.use-parallel=false",
        "train.batch-documents=16",
        "train.max-steps=12",
        "train.eval-every=6",
        "train.checkpoint-every=3",
        "eval.tasks=[]",
    ];
    for kv in usual.iter().chain(more) {
        args.extend(["--set".to_string(), kv.to_string()]);
    }
    args.extend(["--set".to_string(), format!("work={work}")]);
    args
}

fn run(args: &[String]) -> String {
    ok(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

const HOW: &str = "--alignment-weight 0.5 --alignment-batch 16 --batch-documents 16 --max-steps 12 --eval-every 6 --lr 0.002 --lora-rank 8 --epochs 12 --patience 5";

#[test]
fn a_recipe_aligns_the_sentences_of_its_own_stage_and_by_hand_it_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let args = recipe(&at("w"), &ALIGNED);
    let told = run(&args);
    assert!(
        told.contains("train: aligns") && told.contains("16 a step, temperature 0.1, weight 0.5"),
        "{told}"
    );
    let trained = dir.path().join("w/train-sdrrl");
    for tag in ["train/alignment_loss", "train/alignment_retrieval", "train/loss"] {
        assert_eq!(of_tag(&trained, tag).len(), 12, "{tag}");
    }
    let loss = of_tag(&trained, "train/alignment_loss");
    assert!(loss[9..].iter().sum::<f64>() < 0.8 * loss[..3].iter().sum::<f64>(), "{loss:?}");
    let page = fs::read_to_string(trained.join("training.html")).unwrap();
    assert!(page.contains("Alignment loss") && page.contains("Translations found"));
    let card = fs::read_to_string(trained.join("README.md")).unwrap();
    assert!(card.contains("16 pairs a step, temperature 0.1, weight 0.5"), "{card}");
    let known = manifest(&trained);
    assert!(known["inputs"].to_string().contains("parallel sentences"), "{known}");
    let of = &known["summary"]["alignment"];
    assert_eq!((of["empty"].clone(), of["too-long"].clone()), (json!(0), json!(0)), "{known}");
    assert!(run(&args).contains("train: unchanged, skipped"));
    let (shards, pairs, out) = (at("w/pack-sdrrl"), at("w/parallel"), at("k"));
    let base = ["train", "--model", MODEL, "--shards", &shards, "--alignment-file", &pairs, "--out", &out];
    let how: Vec<&str> = HOW.split(' ').collect();
    ok(&[&base[..], &how].concat());
    let adapter = |folder: &str| fs::read(dir.path().join(folder).join("adapter_model.safetensors")).unwrap();
    assert_eq!(adapter("w/train-sdrrl"), adapter("k"));
    // Without it another adapter comes out, and nothing is said of it.
    run(&recipe(&at("plain"), &[]));
    assert!(adapter("plain/train-sdrrl") != adapter("k"));
    assert!(of_tag(&dir.path().join("plain/train-sdrrl"), "train/alignment_loss").is_empty());
}

/// SIGKILL at several moments of a run.
#[test]
fn a_killed_run_that_aligns_ends_with_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let began = std::time::Instant::now();
    run(&recipe(&at("whole"), &ALIGNED));
    let seconds = began.elapsed().as_secs_f64();
    let args = recipe(&at("killed"), &ALIGNED);
    for i in 1..8 {
        let mut child = program().args(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        thread::sleep(Duration::from_secs_f64(seconds * f64::from(i) / 8.0));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    run(&args);
    for file in ["adapter_model.safetensors", "metrics.jsonl"] {
        let of = |work: &str| fs::read(dir.path().join(work).join("train-sdrrl").join(file)).unwrap();
        assert!(of("whole") == of("killed"), "{file} differs");
    }
}

/// Shards of a few conversations.
fn shards(dir: &Path) -> String {
    let rows = (0..24).map(|i| format!("{{\"instruction\": \"What is {i}?\", \"output\": \"A number.\"}}\n"));
    fs::write(dir.join("e.jsonl"), rows.collect::<String>()).unwrap();
    let (examples, out) = (dir.join("e.jsonl"), dir.join("k"));
    ok(&["pack", "--model", MODEL, "--examples", examples.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    out.to_str().unwrap().into()
}

#[test]
fn sentences_are_counted_named_and_part_of_the_identity() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let shards = shards(dir.path());
    let lines = fs::read_to_string(PAIRS).unwrap();
    let few: Vec<&str> = lines.lines().take(10).collect();
    let long = format!("{}\tmuy largo", "Who is she? ".repeat(200));
    let text = format!("{}\n\n{}\n \tvacío\n{long}\n", few.join("\n"), few[3]);
    fs::write(at("pairs.tsv"), text).unwrap();
    let base = ["train", "--model", MODEL, "--shards", &shards, "--max-steps", "2", "--batch-documents", "8"];
    let (file, out) = (at("pairs.tsv"), at("out"));
    let own = ["--alignment-file", &file, "--alignment-batch", "10", "--out", &out];
    let told = ok(&[&base[..], &own].concat());
    for part in
        ["aligns 10 pairs", "2 with an empty side, 1 repeated, 1 longer than the 256 tokens", "pairs.tsv:14)"]
    {
        assert!(told.contains(part), "{part}: {told}");
    }
    let of = manifest(&dir.path().join("out"))["summary"]["alignment"].clone();
    assert_eq!(of, json!({"pairs": 10, "layer": 2, "empty": 2, "repeated": 1, "too-long": 1}));
    // Other sentences under the same name, and another option, are another training.
    fs::write(&file, few.join("\n")).unwrap();
    fails(&[&base[..], &own].concat(), &["alignment-file", "--restart"]);
    let changed = [&own[..], &["--alignment-temperature", "0.2"]].concat();
    fails(&[&base[..], &changed].concat(), &["alignment-temperature", "--restart"]);
}

#[test]
fn what_cannot_be_aligned_is_refused_by_name_before_anything_is_begun() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let shards = shards(dir.path());
    let base = ["train", "--model", MODEL, "--shards", &shards, "--max-steps", "2", "--batch-documents", "8"];
    let lines = fs::read_to_string(PAIRS).unwrap();
    let file = at("pairs.tsv");
    fs::write(&file, lines.lines().take(10).collect::<Vec<_>>().join("\n")).unwrap();
    let (other, target) = (at("a.en"), at("b.es"));
    fs::write(&other, "one\ntwo\n").unwrap();
    fs::write(&target, "uno\n").unwrap();
    let new = at("new");
    let refused = |more: &[&str], words: &[&str]| {
        fails(&[&base[..], &["--out", &new], more].concat(), words);
        assert!(!Path::new(&new).join("metrics.jsonl").exists(), "nothing is begun");
    };
    refused(
        &["--alignment-file", &other, "--alignment-target-file", &target],
        &["b.es has 1 lines", "no counterpart"],
    );
    refused(&["--alignment-file", &file], &["alignment-batch is 32", "pairs.tsv has 10 pairs"]);
    refused(&["--alignment-file", &at("none.tsv")], &["train.alignment-file", "none.tsv"]);
    refused(&["--alignment-weight", "1"], &["alignment-weight is set, and there are no parallel sentences"]);
    refused(&["--alignment-layer", "2"], &["alignment-layer says nothing without an alignment"]);
    let aligned = ["--alignment-file", &file, "--alignment-batch", "4"];
    let with = |more: &[&'static str]| [&aligned[..], more].concat();
    refused(&with(&["--alignment-layer", "5"]), &["alignment-layer is 5: the model has 4 layers"]);
    refused(&with(&["--objective", "dpo"]), &["alignment-weight belongs to objective sft"]);
    refused(&with(&["--objective", "on-policy"]), &["alignment-weight belongs to objective sft"]);
    // A recipe says it before its first stage.
    for (set, part) in [
        (&["train.alignment-layer=9", "train.alignment-weight=1"][..], "the model has 4 layers"),
        (&["train.alignment-weight=1", "parallel={}"][..], "there are none: set parallel.file"),
        (&["train.alignment-file=none.tsv"][..], "none.tsv"),
    ] {
        let mut args = vec!["run", "recipes/quickstart.toml", "--check"];
        set.iter().for_each(|kv| args.extend(["--set", kv]));
        fails(&args, &[part]);
    }
}

/// The emulated GPU trains as the CPU does.
#[test]
fn the_emulated_gpu_aligns_as_the_cpu_does() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let shards = shards(dir.path());
    let train = |device: &str| {
        let out = at(device);
        let base = ["train", "--model", MODEL, "--shards", &shards, "--out", &out, "--device", device];
        let rest = [
            "--max-steps",
            "2",
            "--batch-documents",
            "4",
            "--alignment-file",
            PAIRS,
            "--alignment-batch",
            "4",
        ];
        ok(&[&base[..], &rest].concat());
        of_tag(Path::new(&out), "train/alignment_loss")
    };
    let (cpu, gpu) = (train("cpu"), train("emulated"));
    assert!(
        cpu.len() == 2 && cpu.iter().zip(&gpu).all(|(a, b)| (a / b - 1.0).abs() < 1e-3),
        "{cpu:?} {gpu:?}"
    );
}
