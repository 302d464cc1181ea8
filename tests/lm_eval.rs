//! Against lm-eval (tests/golden/lm_eval, scripts/golden_lm_eval.py): log-likelihoods, every choice, and the rows of its sample files.
use std::{fs, path::Path, process::Command};

use serde_json::Value;

#[test]
fn log_likelihoods_and_choices_equal_lm_evals() {
    let dir = tempfile::tempdir().unwrap();
    let golden: Value =
        serde_json::from_str(&fs::read_to_string("tests/golden/lm_eval/golden.json").unwrap()).unwrap();
    let tasks = dir.path().join("tasks.toml");
    let task = |name: &str, choices: &str| {
        format!(
            "[[tasks]]\nname = {name:?}\nkind = \"multiple-choice\"\nlanguage = \"en\"\nchoices = {choices:?}\n\
             file = \"tests/golden/lm_eval/{name}.jsonl\"\n"
        )
    };
    fs::write(&tasks, task("belebele", "letters") + &task("exams", "texts")).unwrap();
    let out = dir.path().join("out");
    let run = Command::new(env!("CARGO_BIN_EXE_sdrrl"))
        .args(["eval", "--model", "assets/quickstart/model", "--tasks"])
        .args([&tasks, Path::new("--out"), &out])
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let results: Value =
        serde_json::from_str(&fs::read_to_string(out.join("results.json")).unwrap()).unwrap();
    for name in ["belebele", "exams"] {
        let text = fs::read_to_string(out.join(name).join("samples.jsonl")).unwrap();
        let samples: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let expected = golden[name].as_array().unwrap();
        assert_eq!(samples.len(), expected.len());
        let (mut right, mut right_norm) = (0, 0);
        for (i, (sample, row)) in samples.iter().zip(expected).enumerate() {
            assert_eq!(sample["prompt"], row["prompt"], "{name} row {i}");
            let (a, b) = (&sample["log_likelihoods"], &row["log-likelihoods"]);
            assert_eq!(a.as_array().unwrap().len(), b.as_array().unwrap().len());
            for (x, y) in a.as_array().unwrap().iter().zip(b.as_array().unwrap()) {
                let (x, y) = (x.as_f64().unwrap(), y.as_f64().unwrap());
                assert!((x - y).abs() < 1e-3, "{name} row {i}: {x} for {y}");
            }
            let letter = |key: &str| {
                char::from_u32('A' as u32 + row[key].as_u64().unwrap() as u32).unwrap().to_string()
            };
            assert_eq!(sample["response"].as_str().unwrap(), letter("choice"), "{name} row {i}");
            right += usize::from(sample["targets"][0] == letter("choice").as_str());
            right_norm += usize::from(sample["targets"][0] == letter("choice-norm").as_str());
        }
        let share = |n: usize| 100.0 * n as f64 / samples.len() as f64;
        let found = |key: &str| results["results"][name][key].as_f64().unwrap();
        assert!((found("acc,none") - share(right)).abs() < 1e-9, "{results:#}");
        assert!((found("acc_norm,none") - share(right_norm)).abs() < 1e-9, "{results:#}");
        let signature = results["configs"][name]["signature"]["acc"].as_str().unwrap();
        assert!(signature.starts_with("acc|protocol:lm-eval|"), "{signature}");
    }
}

/// Texts and flags equal, log-likelihoods within 1e-3.
fn same_replies(ours: &Value, theirs: &Value, what: &str) {
    match (ours, theirs) {
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).for_each(|(a, b)| same_replies(a, b, what));
        }
        (Value::String(a), Value::String(b)) => match (a.parse::<f64>(), b.parse::<f64>()) {
            (Ok(a), Ok(b)) => assert!((a - b).abs() < 1e-3, "{what}: {a} for {b}"),
            // Our replies are trimmed.
            _ => assert_eq!(a, b.trim(), "{what}"),
        },
        _ => panic!("{what}: {ours} for {theirs}"),
    }
}

/// Every field of every row but these: lm-eval ends replies at a line's end, ours end by themselves; and our own bits per byte stand beside lm-eval's, in which
/// the first token is scored, too.
#[test]
fn sample_files_have_lm_evals_rows() {
    let dir = tempfile::tempdir().unwrap();
    let golden: Value =
        serde_json::from_str(&fs::read_to_string("tests/golden/lm_eval/golden.json").unwrap()).unwrap();
    let task = |name: &str, kind: &str, file: &str, more: &str| {
        format!(
            "[[tasks]]\nname = {name:?}\nkind = {kind:?}\nlanguage = \"es\"\nfile = \"tests/golden/lm_eval/{file}\"\n{more}\n"
        )
    };
    let tasks = dir.path().join("tasks.toml");
    fs::write(
        &tasks,
        task("belebele", "multiple-choice", "belebele.jsonl", "")
            + &task("exams", "multiple-choice", "exams.jsonl", "choices = \"texts\"")
            + &task(
                "qa",
                "qa",
                "qa.jsonl",
                "max-new-tokens = 12\nmetrics = [\"exact-match\", \"bleu\", \"chrf\"]",
            )
            + &task("text", "perplexity", "text.txt", ""),
    )
    .unwrap();
    let out = dir.path().join("out");
    let run = Command::new(env!("CARGO_BIN_EXE_sdrrl"))
        .args(["eval", "--model", "assets/quickstart/model", "--template", "plain", "--tasks"])
        .args([&tasks, Path::new("--out"), &out])
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    for (name, expected) in golden["sample-files"].as_object().unwrap() {
        let text = fs::read_to_string(out.join(format!("samples_{name}_sdrrl.jsonl"))).unwrap();
        for (i, (line, theirs)) in text.split('\n').zip(expected.as_array().unwrap()).enumerate() {
            let what = format!("{name} row {i}");
            let ours: Value = serde_json::from_str(line).unwrap();
            let keys = |v: &Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
            let mut own = keys(&ours);
            if name == "text" {
                // Ours beside lm-eval's.
                assert_eq!(own.pop().as_deref(), Some("bits_per_byte_rolling"));
                same_replies(
                    &ours["bits_per_byte_rolling"][0].to_string().into(),
                    &theirs["bits_per_byte"][0].to_string().into(),
                    &what,
                );
                assert_eq!(ours["bits_per_byte_rolling"][1], theirs["bits_per_byte"][1], "{what}");
            }
            assert_eq!(own, keys(theirs), "{what}");
            for (key, theirs) in theirs.as_object().unwrap() {
                let what = format!("{what} {key}");
                let ours = &ours[key];
                match (name.as_str(), key.as_str()) {
                    ("qa", "arguments") => {
                        let (a, b) = (&ours["gen_args_0"], &theirs["gen_args_0"]);
                        assert_eq!(a["arg_0"], b["arg_0"], "{what}");
                        assert_eq!(keys(&a["arg_1"]), keys(&b["arg_1"]), "{what}");
                        assert_eq!(a["arg_1"]["max_gen_toks"], b["arg_1"]["max_gen_toks"], "{what}");
                    }
                    ("text", "metrics") => {
                        assert_eq!(ours, &serde_json::json!(["bits_per_byte", "bits_per_byte_rolling"]));
                    }
                    ("text", "bits_per_byte") => {
                        // The first token is not scored, its bytes count.
                        assert!(ours[0].as_f64().unwrap() < 0.0 && ours[1] == theirs[1], "{what}: {ours}");
                    }
                    (_, "resps" | "filtered_resps" | "bleu" | "chrf") => same_replies(ours, theirs, &what),
                    _ => assert_eq!(ours, theirs, "{what}"),
                }
            }
        }
    }
}
