//! Multiple choice against lm-eval: log-likelihoods and every choice (tests/golden/lm_eval, scripts/golden_lm_eval.py).
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
