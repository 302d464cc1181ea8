//! The guard on held-out plain text: its number is eval's, it stops and reweights by it, and its file is checked before any work.
use std::{fs, path::Path};

use serde_json::Value;

use super::{MODEL, ok};
use crate::cli::fails;

const TEXT: &str = "assets/quickstart/world/parallel.en-es.tsv";

fn of_tag(dir: &Path, tag: &str) -> Vec<(u64, f64)> {
    let metrics = fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
    let rows = metrics.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
    rows.filter_map(|v| Some((v["step"].as_u64().unwrap(), v[tag].as_f64()?))).collect()
}

/// Shards whose answers are nonsense, so that learning them costs English.
fn nonsense(dir: &Path) -> String {
    let rows = (0..24).map(|i| {
        format!("{{\"instruction\": \"What is {i}?\", \"output\": \"la casa roja {i} del pato azul\"}}\n")
    });
    fs::write(dir.join("e.jsonl"), rows.collect::<String>()).unwrap();
    let (examples, out) = (dir.join("e.jsonl"), dir.join("k"));
    ok(&["pack", "--model", MODEL, "--examples", examples.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    out.to_str().unwrap().into()
}

#[test]
fn the_guards_text_is_measured_as_eval_does_and_decides() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (shards, text) = (nonsense(dir.path()), at("text.txt"));
    let lines = fs::read_to_string(TEXT).unwrap();
    let english = lines.lines().take(40).map(|line| line.split('\t').next().unwrap());
    let lines: Vec<&str> = english.collect();
    fs::write(&text, lines.join("\n\n")).unwrap();
    let text = text.to_str().unwrap();
    let task =
        format!("[[tasks]]\nname = \"ppl\"\nkind = \"perplexity\"\nlanguage = \"en\"\nfile = \"{text}\"\n");
    fs::write(at("tasks.toml"), task).unwrap();
    let (tasks, evaluated) = (at("tasks.toml"), at("eval"));
    ok(&["eval", "--model", MODEL, "--tasks", tasks.to_str().unwrap(), "--out", evaluated.to_str().unwrap()]);
    let results = fs::read_to_string(evaluated.join("results.json")).unwrap();
    let results: Value = serde_json::from_str(&results).unwrap();
    let wanted = find(&results, "bits_per_byte").unwrap();

    let train = |out: &str, more: &[&str]| {
        let out = at(out).to_str().unwrap().to_string();
        let base = ["train", "--model", MODEL, "--shards", &shards, "--out", &out, "--guard-file", text];
        let rest = ["--lr", "0.01", "--max-steps", "6", "--eval-every", "2", "--batch-documents", "8"];
        ok(&[&base[..], &rest, more].concat())
    };
    for budget in ["2048", "64"] {
        train(&format!("log-{budget}"), &["--batch-tokens", budget]);
        let measured = of_tag(&at(&format!("log-{budget}")), "eval/source_bits_per_byte");
        assert_eq!(measured.iter().map(|m| m.0).collect::<Vec<_>>(), [0, 2, 4, 6]);
        assert!((measured[0].1 - wanted).abs() < 1e-5 * wanted, "{measured:?}, and eval has {wanted}");
        assert!(measured[3].1 > measured[0].1 + 0.05, "nonsense costs English: {measured:?}");
    }
    // It stops at the first evaluation that is more than 0.02 above the one before training.
    train("stop", &["--guard", "stop"]);
    let logged = of_tag(&at("log-2048"), "eval/source_bits_per_byte");
    let too_far = logged.iter().find(|m| m.1 > logged[0].1 + 0.02).unwrap();
    assert_eq!(of_tag(&at("stop"), "eval/source_bits_per_byte").last().unwrap(), too_far);
    assert!(too_far.0 < 6, "{logged:?}");
    train("lenient", &["--guard", "stop", "--guard-max-bits", "50"]);
    assert_eq!(of_tag(&at("lenient"), "eval/source_bits_per_byte").last().unwrap().0, 6);
}

/// The number of that name, wherever it stands.
fn find(value: &Value, key: &str) -> Option<f64> {
    match value {
        Value::Object(map) => {
            let own =
                map.iter().find(|(k, v)| (*k == key || k.starts_with(&format!("{key},"))) && v.is_number());
            own.and_then(|(_, v)| v.as_f64()).or_else(|| map.values().find_map(|v| find(v, key)))
        }
        Value::Array(values) => values.iter().find_map(|v| find(v, key)),
        _ => None,
    }
}

#[test]
fn a_guard_file_is_checked_before_any_work() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    fs::write(at("empty.txt"), "\n \n").unwrap();
    fs::write(at("bad.txt"), b"good\n\xff\xfe\n").unwrap();
    let (data, out) = (at("d.jsonl"), at("out"));
    fs::write(&data, "{\"instruction\": \"What?\", \"output\": \"That.\"}\n".repeat(12)).unwrap();
    for (file, part) in [
        ("none.txt", "none.txt"),
        ("empty.txt", "there is no text in it"),
        ("bad.txt", "bad.txt:2: byte 1 (0xff)"),
    ] {
        let (file, set) = (at(file), format!("train.guard-file={}", at(file)));
        let train = ["train", "--model", MODEL, "--data", &data, "--out", &out, "--guard-file", &file];
        fails(&train, &["train.guard-file", part]);
        fails(&["run", "recipes/quickstart.toml", "--check", "--set", &set], &["train.guard-file", part]);
        assert!(!Path::new(&out).exists());
    }
    let train = ["train", "--model", MODEL, "--data", &data, "--out", &out, "--guard-max-bits", "0.5"];
    fails(&train, &["guard-max-bits belongs to guard-file"]);
}
