//! The data set's answers in the model's place, fewer examples, and a matrix of variants with equal steps over several seeds.
use std::{collections::BTreeSet, fs, path::Path};

use sdrrl::data::record::Example;
use serde_json::Value;

use super::{manifest, ok};
use crate::cli::fails;

fn examples(dir: &Path) -> Vec<Example> {
    let mut all = vec![];
    for (_, bytes) in super::rows(dir) {
        let text = String::from_utf8(bytes).unwrap();
        all.extend(text.lines().map(|line| serde_json::from_str::<Example>(line).unwrap()));
    }
    all
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

const MATRIX: &str = r#"
name = "gold"
work = "WORK"
recipe = "recipes/quickstart.toml"
set = ["generate.limit=60", "train.eval-every=3", "eval.bootstrap-samples=40"]
steps = 5
seeds = [1, 2]
[[arms]]
name = "sdrrl"
[[arms]]
name = "gold"
set = ['variants=["gold"]', 'assemble.caps=["S>S=10", "es=30"]']
"#;

#[test]
fn a_matrix_of_variants_takes_equal_steps_over_several_seeds() {
    let dir = tempfile::tempdir().unwrap();
    let (file, work) = (dir.path().join("m.toml"), dir.path().join("work"));
    fs::write(&file, MATRIX.replace("WORK", &work.to_string_lossy())).unwrap();
    let out = ok(&["ablate", &file.to_string_lossy()]);
    assert!(out.contains("p (Holm)") && out.contains("over 2 training seeds"), "{out}");
    let folders = |stage: &str| -> Vec<_> {
        let all = fs::read_dir(work.join("cache")).unwrap().flatten();
        let of = all.filter(|e| e.file_name().to_string_lossy().starts_with(stage)).map(|e| e.path());
        of.collect()
    };
    let trained = folders("train-");
    assert_eq!((trained.len(), folders("generate-").len(), folders("assemble-").len()), (4, 1, 2));
    let steps: Vec<Value> = trained.iter().map(|dir| manifest(dir)["summary"]["steps"].clone()).collect();
    assert!(steps.iter().all(|s| *s == 5), "{steps:?}");

    let results = json(&work.join("results.json"));
    assert_eq!(results["seeds"], serde_json::json!([1, 2]));
    let headline = &results["arms"][1]["against-reference"][0];
    assert!(headline["p-holm"].as_f64().unwrap() >= headline["p"].as_f64().unwrap(), "{headline}");
    // The value is the mean over the seeds' own, whose trainings are there already.
    let alone = |seed: u64| {
        let set = format!("seeds=[{seed}]");
        ok(&["ablate", &file.to_string_lossy(), "--set", &set]);
        json(&work.join("results.json"))["arms"][1]["against-reference"][0].clone()
    };
    let number = |found: &Value, key: &str| found[key].as_f64().unwrap();
    let (one, two) = (alone(1), alone(2));
    for key in ["value", "reference", "difference"] {
        let mean = (number(&one, key) + number(&two, key)) / 2.0;
        assert!((number(headline, key) - mean).abs() < 1e-9, "{key}: {headline} {one} {two}");
    }
    assert_eq!(folders("train-").len(), 4, "nothing was trained again");

    let of = |variant: &str| folders(&format!("assemble-{variant}")).remove(0);
    let (own, gold) = (examples(&of("sdrrl")), examples(&of("gold")));
    let pairs = |all: &[Example]| all.iter().map(|e| e.pair.clone()).collect::<BTreeSet<_>>();
    assert_eq!(pairs(&own), pairs(&gold), "the same pair types");
    let count = |wanted: &dyn Fn(&&Example) -> bool| {
        gold.iter().filter(|e| e.split == "train").filter(wanted).count()
    };
    assert_eq!((count(&|e| e.pair == "S>S"), count(&|e| e.answer_language == "es")), (10, 30));
    let left_out = &manifest(&of("gold"))["summary"]["left-out"];
    assert!(
        left_out["beyond the cap of S>S"].as_u64().unwrap() > 0
            && left_out["beyond the cap of es"].as_u64().unwrap() > 0
    );
    // The data set's words, by no ids of the model.
    let questions = fs::read_to_string("assets/quickstart/world/questions.en.jsonl").unwrap();
    for e in gold.iter().filter(|e| e.pair == "S>S" && e.split == "train") {
        let row = questions
            .lines()
            .map(|l| serde_json::from_str::<Value>(l).unwrap())
            .find(|r| r["id"] == e.row.as_str());
        assert_eq!((row.unwrap()["output"].as_str().unwrap(), e.output_ids.len()), (e.output.as_str(), 0));
    }
}

#[test]
fn gold_without_answers_is_refused_by_name_before_anything_runs() {
    let dir = tempfile::tempdir().unwrap();
    let questions = dir.path().join("q.jsonl");
    let row =
        |i: usize, output: &str| format!("{{\"instruction\": \"What is {i}?\", \"output\": \"{output}\"}}\n");
    fs::write(&questions, [row(1, "One."), row(2, ""), row(3, "Three.")].concat()).unwrap();
    let sets = [
        format!("work={}", dir.path().join("w").display()),
        format!("questions=[\"{}\"]", questions.display()),
        "variants=[\"sdrrl\", \"gold\"]".to_string(),
    ];
    let mut run = vec!["run", "recipes/quickstart.toml"];
    sets.iter().for_each(|set| run.extend(["--set", set]));
    fails(&run, &["gold learns the data set's answers", "q.jsonl:2"]);
    assert!(!dir.path().join("w").exists());
}
