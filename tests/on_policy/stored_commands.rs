//! Distillation from a teacher's stored likeliest tokens by commands and by recipes, on the quickstart's world.
use std::{fs, path::Path, process::Stdio, thread, time::Duration};

use serde_json::{Value, json};

use super::values;
use crate::{
    cli::{fails, ok},
    common::program,
};

/// The quickstart with the objective, a few rows and steps.
fn recipe(work: &str, more: &[&str]) -> Vec<String> {
    let mut args = vec!["run".to_string(), "recipes/quickstart.toml".to_string()];
    let usual = [
        "generate.limit=60",
        "variants=[\"sdrrl\"]",
        "train.objective=top-k",
        "pack.teacher-prompt=turns",
        "train.top-k-logits=8",
        "train.batch-documents=8",
        "train.max-steps=6",
        "train.eval-every=3",
        "train.checkpoint-every=2",
        "train.lr=0.001",
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

fn refused(args: &[String], words: &[&str]) {
    fails(&args.iter().map(String::as_str).collect::<Vec<_>>(), words);
}

fn manifest(dir: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(dir.join("manifest.json")).unwrap()).unwrap()
}

#[test]
fn a_recipe_learns_what_a_teacher_would_say_and_computes_that_once() {
    let dir = tempfile::tempdir().unwrap();
    let work = dir.path().join("w");
    let args = |more: &[&str]| recipe(work.to_str().unwrap(), more);
    let told = run(&args(&[]));
    assert!(told.contains("teacher: its 8 likeliest tokens") && told.contains("validation loss"), "{told}");
    let trained = work.join("train-sdrrl");
    let metrics = fs::read_to_string(trained.join("metrics.jsonl")).unwrap();
    for tag in ["train/loss", "train/kl", "train/nll"] {
        assert_eq!(values(&metrics, tag).len(), 6, "{tag}");
    }
    assert_eq!(values(&metrics, "train/loss"), values(&metrics, "train/kl"));
    for tag in ["eval/loss", "eval/kl", "eval/nll", "eval/source_loss"] {
        assert_eq!(values(&metrics, tag).len(), 3, "{tag}");
    }
    let card = fs::read_to_string(trained.join("README.md")).unwrap();
    assert!(
        card.contains("likeliest tokens of a teacher") && card.contains("the 8 likeliest tokens"),
        "{card}"
    );
    let said = manifest(&trained.join("teacher"));
    let share = said["summary"]["kept-probability"].as_f64().unwrap();
    assert!(0.0 < share && share <= 1.0, "{said}");
    let packed = manifest(&work.join("pack-sdrrl"));
    let answers = packed["summary"]["train"]["trained-tokens"].as_u64().unwrap();
    let held_out = packed["summary"]["validation"]["trained-tokens"].as_u64().unwrap();
    assert_eq!(said["summary"]["tokens"], json!(answers + held_out));
    assert!(run(&args(&[])).contains("train: unchanged, skipped"));
    // Another training reads what the same teacher has said; of another number of tokens it speaks again.
    let told = run(&args(&["train.cross-entropy-weight=0.5"]));
    assert!(told.contains("teacher: unchanged, skipped"), "{told}");
    let metrics = fs::read_to_string(trained.join("metrics.jsonl")).unwrap();
    let of = |tag| values(&metrics, tag)[0];
    assert!((of("train/loss") - of("train/kl") - 0.5 * of("train/nll")).abs() < 1e-6, "{metrics}");
    assert!(run(&args(&["train.top-k-logits=4"])).contains("its 4 likeliest tokens"));
    // A file that somebody has changed is not learnt from.
    let file = trained.join("teacher/train.logprobs");
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, bytes).unwrap();
    let again = args(&["train.top-k-logits=4", "train.lr=0.002"]);
    refused(&again, &["teacher/train.logprobs is not sound", "delete its folder", "checksum"]);
    fs::remove_dir_all(trained.join("teacher")).unwrap();
    assert!(run(&again).contains("its 4 likeliest tokens"));
}

/// SIGKILL at several moments of a run.
#[test]
fn a_killed_run_ends_with_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let began = std::time::Instant::now();
    run(&recipe(&at("whole"), &[]));
    let seconds = began.elapsed().as_secs_f64();
    let args = recipe(&at("killed"), &[]);
    for i in 1..8 {
        let mut child = program().args(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        thread::sleep(Duration::from_secs_f64(seconds * f64::from(i) / 8.0));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    run(&args);
    for file in [
        "adapter_model.safetensors",
        "metrics.jsonl",
        "teacher/train.logprobs",
        "teacher/validation.logprobs",
    ] {
        let of = |work: &str| fs::read(dir.path().join(work).join("train-sdrrl").join(file)).unwrap();
        assert!(of("whole") == of("killed"), "{file} differs");
    }
}

#[test]
fn what_leaves_no_teacher_or_no_answer_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let none = dir.path().join("none");
    let wrong = |more: &[&str], words: &[&str]| {
        refused(&recipe(none.to_str().unwrap(), more), words);
        assert!(!none.exists(), "nothing is begun");
    };
    wrong(&["train.method=full"], &["method does not go with objective top-k", "without its adapters"]);
    wrong(&["train.temperature=1.0"], &["temperature belongs to objective on-policy"]);
    wrong(&["train.kl-clip=0.1"], &["kl-clip belongs to objective on-policy"]);
    wrong(&["train.keep-source=kl"], &["keep-source does not go with objective top-k"]);
    wrong(&["train.guard=reweight"], &["guard does not go with objective top-k"]);
    wrong(&["train.top-k-logits=0"], &["top-k-logits is 0"]);
    wrong(&["train.top-k-logits=100000"], &["top-k-logits is 100000", "the vocabulary has"]);
    wrong(&["variants=[\"sdrrl\", \"sft\"]"], &["variants", "variant sft does not make"]);
    wrong(&["assemble.pairs=[\"T>T\"]"], &["assemble.pairs has no S>S", "top-k"]);
    wrong(&["train.objective=on-policy"], &["top-k-logits belongs to objective top-k"]);
    wrong(&["train.objective=sft"], &["belongs to objective"]);
}
