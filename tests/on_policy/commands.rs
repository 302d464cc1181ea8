//! On-policy training by commands and by recipes, on the quickstart's world.
use std::{fs, path::Path, process::Stdio, thread, time::Duration};

use serde_json::{Value, json};

use super::values;
use crate::{
    cli::{fails, ok},
    common::program,
};

const MODEL: &str = "assets/quickstart/model";

fn manifest(dir: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(dir.join("manifest.json")).unwrap()).unwrap()
}

/// The quickstart with the objective, a few rows and steps.
fn recipe(work: &str, more: &[&str]) -> Vec<String> {
    let mut args = vec!["run".to_string(), "recipes/quickstart.toml".to_string()];
    let usual = [
        "generate.limit=60",
        "variants=[\"sdrrl\"]",
        "train.objective=on-policy",
        "pack.teacher-prompt=turns",
        "train.max-new-tokens=16",
        "train.kl-clip=0.05",
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

#[test]
fn a_recipe_trains_on_the_models_own_answers_and_by_hand_it_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let args = recipe(&at("w"), &[]);
    let told = run(&args);
    assert!(told.contains("questions,") && told.contains("validation loss"), "{told}");
    let trained = dir.path().join("w/train-sdrrl");
    let metrics = fs::read_to_string(trained.join("metrics.jsonl")).unwrap();
    for tag in
        ["train/loss", "train/kl", "train/clipped_tokens", "train/answer_tokens", "train/answer_alarms"]
    {
        assert_eq!(values(&metrics, tag).len(), 6, "{tag}");
    }
    let (clipped, kl) = (values(&metrics, "train/loss"), values(&metrics, "train/kl"));
    assert!(
        clipped.iter().zip(&kl).all(|(clipped, kl)| 0.0 < *clipped && clipped < kl),
        "{clipped:?} {kl:?}"
    );
    for tag in ["eval/loss", "eval/kl", "eval/clipped_tokens", "eval/source_loss"] {
        assert_eq!(values(&metrics, tag).len(), 3, "{tag}");
    }
    let clock = fs::read_to_string(trained.join("timing.jsonl")).unwrap();
    assert!(clock.contains("answer-seconds") && !metrics.contains("seconds"), "{clock}");
    let card = fs::read_to_string(trained.join("README.md")).unwrap();
    assert!(card.contains("on-policy self-distillation") && card.contains("clip 0.05"), "{card}");
    let packed = manifest(&dir.path().join("w/pack-sdrrl"));
    let (counts, own) = (&packed["counts"], &packed["summary"]);
    let dropped: u64 = counts["dropped"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(counts["read"].as_u64().unwrap(), counts["written"].as_u64().unwrap() + dropped, "{counts}");
    assert_eq!(own["train"]["documents"].as_u64().unwrap() % 2, 0);
    assert!(run(&args).contains("train: unchanged, skipped"));
    let (examples, k, l) = (at("w/assemble-sdrrl"), at("k"), at("l"));
    let base = ["pack", "--model", MODEL, "--examples", &examples, "--out", &k, "--rows", "questions"];
    ok(&[&base[..], &["--teacher-prompt", "turns"]].concat());
    let how = "--objective on-policy --max-new-tokens 16 --kl-clip 0.05 --batch-documents 8 --max-steps 6 --eval-every 3 --lr 0.001 --lora-rank 8 --epochs 12 --patience 5";
    let how: Vec<&str> = how.split_whitespace().collect();
    ok(&[&["train", "--model", MODEL, "--shards", &k, "--out", &l], &how[..]].concat());
    let adapter = |folder: &str| fs::read(dir.path().join(folder).join("adapter_model.safetensors")).unwrap();
    assert_eq!(adapter("w/train-sdrrl"), adapter("l"));
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
    for file in
        ["train-sdrrl/adapter_model.safetensors", "train-sdrrl/metrics.jsonl", "pack-sdrrl/train.tokens"]
    {
        let of = |work: &str| fs::read(dir.path().join(work).join(file)).unwrap();
        assert!(of("whole") == of("killed"), "{file} differs");
    }
}

#[test]
fn what_leaves_no_teacher_or_no_question_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let refused = |more: &[&str], words: &[&str]| {
        let args = recipe(&at("none"), more);
        fails(&args.iter().map(String::as_str).collect::<Vec<_>>(), words);
        assert!(!Path::new(&at("none")).exists(), "nothing is begun");
    };
    refused(&["train.method=full"], &["method does not go with objective on-policy", "without its adapters"]);
    refused(&["train.temperature=0.0"], &["temperature", "on-policy"]);
    refused(&["train.keep-source=kl"], &["keep-source does not go with objective on-policy"]);
    refused(&["train.guard=reweight"], &["guard does not go with objective on-policy"]);
    refused(&["variants=[\"sdrrl\", \"sft\"]"], &["variants", "variant sft does not make"]);
    refused(&["assemble.pairs=[\"T>T\"]"], &["assemble.pairs has no S>S"]);
    refused(&["pack.teacher-prompt={question}"], &["teacher-prompt", "{source-answer} does not stand in it"]);
    let unknown = "pack.teacher-prompt={question} {source-answer} {language}";
    refused(&[unknown], &["teacher-prompt: there is no {language}", "{source-question}"]);
    refused(&["pack.truncate=true"], &["truncate"]);
    refused(&["train.max-new-tokens=256"], &["train.max-new-tokens is 256", "the model takes 256 tokens"]);
    refused(&["train.objective=sequence"], &["teacher-prompt belongs to objective on-policy"]);
    refused(&["train.objective=dpo"], &["learns from preferences"]);
    // A file has no source answers.
    fs::write(at("chat.jsonl"), "{\"instruction\": \"What is red?\", \"output\": \"A house.\"}\n".repeat(8))
        .unwrap();
    let (chat, k, l) = (at("chat.jsonl"), at("k"), at("l"));
    let base = ["train", "--model", MODEL];
    fails(
        &[&base[..], &["--data", &chat, "--out", &l, "--objective", "on-policy"]].concat(),
        &["chat.jsonl", "a folder of `assemble`"],
    );
    ok(&["pack", "--model", MODEL, "--examples", &chat, "--out", &k]);
    let shards = [&base[..], &["--shards", &k, "--out", &l]].concat();
    fails(
        &[&shards[..], &["--objective", "on-policy"]].concat(),
        &["questions without answers were expected"],
    );
    fails(&[&shards[..], &["--kl-clip", "0.1"]].concat(), &["kl-clip belongs to objective on-policy"]);
}

/// Rows of the examples that `assemble` writes, some of which lack their partner.
#[test]
fn questions_without_a_source_answer_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let example = |row: usize, pair: &str, language: &str, split: &str, text: &str| {
        json!({"id": format!("r{row}/{pair}/{language}"), "row": format!("r{row}"), "pair": pair, "split": split, "question_language": language,
            "answer_language": language, "instruction": text, "output": text})
    };
    let mut lines = vec![];
    for row in 0..4 {
        let split = if row == 3 { "validation" } else { "train" };
        if row != 1 {
            lines.push(example(row, "S>S", "en", split, "Who is she?"));
        }
        let text = if row == 2 { "¿Quién es ella? ".repeat(60) } else { "¿Quién es ella?".into() };
        lines.push(example(row, "T>T", "es", split, &text));
        lines.push(example(row, "S>T", "es", split, "Who?"));
    }
    lines.push(example(3, "S>S", "en", "source", "Who is she?"));
    let text: String = lines.iter().map(|l| format!("{l}\n")).collect();
    fs::write(at("e.jsonl"), text).unwrap();
    let base =
        ["pack", "--model", MODEL, "--rows", "questions", "--max-length", "200", "--teacher-prompt", "turns"];
    let told = ok(&[&base[..], &["--examples", &at("e.jsonl"), "--out", &at("k")]].concat());
    assert!(told.contains("train: 1 questions") && told.contains("1 too long"), "{told}");
    let manifest = manifest(&dir.path().join("k"));
    let dropped = &manifest["counts"]["dropped"];
    assert_eq!(manifest["counts"]["written"], json!(3), "two questions and a guard: {manifest}");
    assert_eq!(dropped["no answer in the source language (pair S>S) to show"], json!(1));
    assert_eq!(
        (&dropped["too long"], &dropped["no question in a target language (pair T>T)"]),
        (&json!(1), &json!(7))
    );
    // Where none is left it is said why.
    fs::write(at("e.jsonl"), format!("{}\n", example(1, "T>T", "es", "train", "¿Quién?"))).unwrap();
    fails(
        &[&base[..], &["--examples", &at("e.jsonl"), "--out", &at("l")]].concat(),
        &["no question is left to train on", "1 with no answer in the source language"],
    );
    // What does not fit is said before a model is loaded for long.
    fails(
        &["train", "--model", MODEL, "--shards", &at("k"), "--out", &at("m"), "--objective", "on-policy"],
        &["r0/T>T/es", "are more than the 256 of the model: lower max-new-tokens"],
    );
}

/// An answer without words shows nothing, and of two answers none is the right one.
#[test]
fn a_teacher_is_shown_one_answer_with_words() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let example = |id: &str, pair: &str, language: &str, output: &str| {
        json!({"id": id, "row": "r0", "pair": pair, "split": "train", "question_language": language, "answer_language": language,
            "instruction": "Who?", "output": output})
    };
    let asked = example("t", "T>T", "es", "x");
    let (examples, out) = (at("e.jsonl"), at("k"));
    let line = ["pack", "--model", MODEL, "--rows", "questions", "--examples", &examples, "--out", &out];
    let blank = example("a", "S>S", "en", " ");
    fs::write(&examples, format!("{blank}\n{asked}\n")).unwrap();
    fails(&line, &["no question is left to train on", "1 with no answer in the source language"]);
    let (ana, eva) = (example("a", "S>S", "en", "Ana"), example("b", "S>S", "en", "Eva"));
    fs::write(&examples, format!("{ana}\n{eva}\n{asked}\n")).unwrap();
    fails(&line, &["e.jsonl", "examples a and b of row r0 differ", "leave one out"]);
}
