//! Preferences by commands and by a recipe.
use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::cli::{fails, ok};

const MODEL: &str = "assets/quickstart/model";

/// Pairs of the quickstart's world: its own answers are better than those to another question.
fn pair_file(path: &Path, rows: usize) {
    let questions = fs::read_to_string("assets/quickstart/world/questions.en.jsonl").unwrap();
    let all: Vec<Value> = questions.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let mut out = String::new();
    for i in 0..rows {
        let other =
            (1..).map(|k| &all[(i + k) % all.len()]["output"]).find(|o| **o != all[i]["output"]).unwrap();
        let messages = |reply: &Value| json!([{"role": "user", "content": all[i]["instruction"]}, {"role": "assistant", "content": reply}]);
        // Half of them as UltraFeedback has them.
        let (a, b) = (&all[i]["output"], other);
        let row = if i % 2 == 0 {
            json!({"prompt": all[i]["instruction"], "chosen": a, "rejected": b})
        } else {
            json!({"prompt": all[i]["instruction"], "chosen": messages(a), "rejected": messages(b)})
        };
        out += &format!("{row}\n");
    }
    let same = json!({"prompt": "Q", "chosen": "A", "rejected": "A"});
    fs::write(path, format!("{out}{same}\n")).unwrap();
}

fn manifest(dir: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(dir.join("manifest.json")).unwrap()).unwrap()
}

#[test]
fn pairs_become_an_adapter_by_one_command() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    pair_file(&dir.path().join("pairs.jsonl"), 60);
    let (data, out) = (at("pairs.jsonl"), at("out"));
    let settings = ["--objective", "dpo", "--lr", "0.002", "--epochs", "2", "--eval-every", "5", "--quiet"];
    let line = [&["train", "--model", MODEL, "--data", &data, "--out", &out], &settings[..]].concat();
    let told = ok(&line);
    for part in [
        "61 rows read, 60 kept",
        "identical chosen and rejected",
        "validation loss 0.6931 before",
        "reward margin of held-out rows 0.000 before",
    ] {
        assert!(told.contains(part), "{part} is not in {told}");
    }
    let out = dir.path().join("out");
    let summary = &manifest(&out)["summary"];
    assert!(summary["best"]["loss"].as_f64().unwrap() < 0.65, "{summary}");
    assert!(
        summary["rewards"]["margin"].as_f64().unwrap() > 0.1
            && summary["rewards"]["accuracy"].as_f64().unwrap() > 0.6,
        "{summary}"
    );
    let counts = &manifest(&out.join("pack"))["counts"];
    assert_eq!((&counts["read"], &counts["written"]), (&json!(61), &json!(60)));
    assert_eq!(manifest(&out.join("reference"))["summary"]["replies"], 120);
    let metrics = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    for tag in
        ["train/rewards/chosen", "train/logps/rejected", "eval/rewards/margins", "eval/rewards/accuracies"]
    {
        assert!(metrics.contains(tag), "{tag}");
    }
    let page = fs::read_to_string(out.join("training.html")).unwrap();
    assert!(page.contains("Reward margin") && page.contains("chosen reply has the higher reward"), "{page}");
    let card = fs::read_to_string(out.join("README.md")).unwrap();
    assert!(card.contains("direct preference optimization") && card.contains("beta 0.1"), "{card}");
    let events = fs::read_dir(&out).unwrap().flatten().map(|e| e.path());
    let events = events.into_iter().find(|p| p.to_string_lossy().contains("tfevents")).unwrap();
    let events = fs::read(events).unwrap();
    assert!(events.windows(20).any(|w| w == b"train/rewards/chosen"), "TensorBoard has the rewards");
    assert!(ok(&line).contains("train: unchanged, skipped"));
}

/// The same file of pairs for the objectives without pairs, or without a reference; KTO's own rows.
#[test]
fn odds_and_single_judgements_train_by_one_command_too() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    pair_file(&dir.path().join("pairs.jsonl"), 30);
    let pairs = fs::read_to_string(at("pairs.jsonl")).unwrap();
    let single = pairs.lines().filter_map(|l| {
        let row: Value = serde_json::from_str(l).unwrap();
        let (chosen, rejected) = (row["chosen"].as_str()?, row["rejected"].as_str()?);
        let of =
            |reply: &str, label: bool| json!({"prompt": row["prompt"], "completion": reply, "label": label});
        Some(format!("{}\n{}\n", of(chosen, true), of(rejected, false)))
    });
    fs::write(at("labels.jsonl"), single.collect::<String>()).unwrap();
    for (objective, data, words, reference) in [
        ("orpo", "pairs.jsonl", "odds ratio preference optimization", None),
        ("kto", "pairs.jsonl", "Kahneman-Tversky optimization", Some(120)),
        ("kto", "labels.jsonl", "Kahneman-Tversky optimization", Some(64)),
    ] {
        let (data, out) = (at(data), at(&format!("{objective}-{data}")));
        let how =
            ["--objective", objective, "--lr", "0.002", "--epochs", "2", "--batch-documents", "8", "--quiet"];
        let told = ok(&[&["train", "--model", MODEL, "--data", &data, "--out", &out], &how[..]].concat());
        assert!(told.contains("reward margin of held-out rows"), "{told}");
        let split = told.contains("pair taken as two rows");
        assert_eq!(split, objective == "kto" && data.ends_with("pairs.jsonl"), "{told}");
        let out = Path::new(&out);
        let summary = &manifest(out)["summary"];
        let metrics = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        let loss = |line: &str| serde_json::from_str::<Value>(line).unwrap()["train/loss"].as_f64();
        let first = metrics.lines().find_map(loss).unwrap();
        assert!(summary["train-loss"].as_f64().unwrap() < 0.97 * first, "{objective}: {first} {summary}");
        let stage = out.join("reference");
        let replies = stage.exists().then(|| manifest(&stage)["summary"]["replies"].clone());
        assert_eq!(replies, reference.map(Value::from), "{objective} {data}");
        assert!(fs::read_to_string(out.join("README.md")).unwrap().contains(words), "{objective}");
    }
}

#[test]
fn what_does_not_go_with_preferences_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    pair_file(&dir.path().join("pairs.jsonl"), 8);
    fs::write(at("chat.jsonl"), "{\"instruction\": \"What is red?\", \"output\": \"A house.\"}\n".repeat(8))
        .unwrap();
    let train = |data: &str, more: &str, words: &[&str]| {
        let (data, out) = (at(data), at("none"));
        let base = ["train", "--model", MODEL, "--data", &data, "--out", &out];
        fails(&[&base[..], &more.split_whitespace().collect::<Vec<_>>()].concat(), words);
    };
    train("pairs.jsonl", "", &["pairs.jsonl:1", "--objective dpo"]);
    train("chat.jsonl", "--objective dpo", &["chat.jsonl:1", "no `chosen`"]);
    train("pairs.jsonl", "--beta 0.2", &["beta belongs to objective dpo or orpo or kto"]);
    train("pairs.jsonl", "--objective orpo --loss-type ipo", &["loss-type belongs to objective dpo"]);
    train("chat.jsonl", "--objective kto", &["chat.jsonl:1", "its `label` is null"]);
    train("pairs.jsonl", "--objective kto --batch-documents 1", &["batch-documents = 1", "KL"]);
    train("pairs.jsonl", "--objective dpo --method scratch", &["method does not go with objective dpo"]);
    train("pairs.jsonl", "--objective dpo --train-on-prompt", &["train-on-prompt"]);
    train("pairs.jsonl", "--objective dpo --label-smoothing 0.5", &["--label-smoothing is 0.5", "below 0.5"]);
    // Shards of the one kind for the other.
    let (data, k, l) = (at("pairs.jsonl"), at("k"), at("l"));
    ok(&["pack", "--model", MODEL, "--examples", &data, "--rows", "pairs", "--out", &k]);
    fails(
        &["train", "--model", MODEL, "--shards", &k, "--out", &l],
        &["pairs of a chosen and a rejected reply", "--objective dpo"],
    );
    let chat = at("chat.jsonl");
    ok(&["pack", "--model", MODEL, "--examples", &chat, "--out", &k]);
    fails(
        &["train", "--model", MODEL, "--shards", &k, "--out", &l, "--objective", "dpo"],
        &["answers to learn", "sft"],
    );
    // The method's stages make no pairs.
    let set = "train.objective=dpo";
    fails(
        &["run", "recipes/quickstart.toml", "--set", set, "--set", &format!("work={l}")],
        &["train.objective", "`examples`"],
    );
}

/// Nothing is computed for a training that cannot begin.
#[test]
fn pairs_longer_than_a_batch_are_found_before_their_reference_is_computed() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    pair_file(&dir.path().join("pairs.jsonl"), 8);
    let (data, k, l) = (at("pairs.jsonl"), at("k"), at("l"));
    ok(&["pack", "--model", MODEL, "--examples", &data, "--rows", "pairs", "--out", &k]);
    let line = ["train", "--model", MODEL, "--shards", &k, "--out", &l, "--objective", "dpo"];
    fails(&[&line[..], &["--batch-tokens", "16"]].concat(), &["more than batch-tokens = 16"]);
    assert!(!Path::new(&l).join("reference").exists());
}

/// A recipe with ready examples gives what the commands give by hand.
#[test]
fn a_recipe_of_pairs_trains_as_the_commands_do() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    pair_file(&dir.path().join("pairs.jsonl"), 12);
    let head = format!(
        "name = \"n\"\nwork = \"{}\"\nmodel = \"{MODEL}\"\nexamples = \"{}\"\n",
        at("w"),
        at("pairs.jsonl")
    );
    fs::write(
        at("r.toml"),
        format!("{head}[train]\nobjective = \"dpo\"\nbeta = 0.2\nmax-steps = 2\nbatch-documents = 4\n"),
    )
    .unwrap();
    ok(&["run", &at("r.toml")]);
    let (k, l) = (at("k"), at("l"));
    ok(&["pack", "--model", MODEL, "--examples", &at("pairs.jsonl"), "--rows", "pairs", "--out", &k]);
    let how = ["--objective", "dpo", "--beta", "0.2", "--max-steps", "2", "--batch-documents", "4"];
    ok(&[&["train", "--model", MODEL, "--shards", &k, "--out", &l], &how[..]].concat());
    let adapter = |folder: &str| fs::read(dir.path().join(folder).join("adapter_model.safetensors")).unwrap();
    assert_eq!(adapter("w/train"), adapter("l"));
}
