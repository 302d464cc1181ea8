//! Held-out instructions answered in their own and in another language, and how near the answers are to the reference ones.
use std::{fs, path::Path};

use sdrrl::{
    device::Device,
    qe::{Scorer, similarity::Similarity},
    tensor::DType,
};
use serde_json::Value;

use crate::{cli::ok, qe::encoder_dir};

const MODEL: &str = "assets/quickstart/model";

#[test]
fn instructions_are_asked_as_training_pairs_and_compared_with_their_references() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let encoder = encoder_dir(dir.path());
    let row = |i: &str, input: &str, output: &str, other: &str| {
        serde_json::json!({"instruction": i, "input": input, "output": output, "es": other}).to_string()
    };
    let rows = [
        row(
            "Tell me the favourite drink of Meron.",
            "",
            "The favourite drink of Meron is cider.",
            "La sidra.",
        ),
        row("What is the pet of this person?", "Meron", "A duck.", "Un pato."),
    ];
    fs::write(at("rows.jsonl"), rows.join("\n")).unwrap();
    let task = |name: &str, description: &str, more: &str| {
        format!(
            "[[tasks]]\nname = \"{name}\"\ndescription = \"{description}\"\nfile = \"{}\"\nmax-new-tokens = 12\n{more}\n",
            at("rows.jsonl")
        )
    };
    let metrics = "metrics = [\"chrf\", \"reference-similarity\", \"length-distance\"]";
    let scorer = format!("language = \"en\"\n{metrics}\nscorers.reference-similarity.model = {encoder:?}");
    let across = "language = \"es\"\ncolumns = [\"output=es\"]";
    let text = task("own", "instructions", &scorer) + &task("across", "instructions-across", across);
    fs::write(at("tasks.toml"), text).unwrap();
    ok(&["eval", "--model", MODEL, "--tasks", &at("tasks.toml"), "--out", &at("out")]);

    let samples = |task: &str| -> Vec<Value> {
        let text = fs::read_to_string(dir.path().join("out").join(task).join("samples.jsonl")).unwrap();
        text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    };
    let (own, other) = (samples("own"), samples("across"));
    assert_eq!(own[1]["prompt"], "What is the pet of this person?\nMeron");
    assert_eq!(other[0]["prompt"], "Tell me the favourite drink of Meron. Answer in Spanish.");
    assert_eq!(other[1]["targets"][0], "Un pato.");
    let results: Value = serde_json::from_str(&fs::read_to_string(at("out/results.json")).unwrap()).unwrap();
    let number = |task: &str, key: &str| results["results"][task][key].as_f64().unwrap();
    let pairs: Vec<(String, String)> = own
        .iter()
        .map(|s| (s["targets"][0].as_str().unwrap().into(), s["response"].as_str().unwrap().into()))
        .collect();
    let mut model = Similarity::load(Path::new(&encoder), "", DType::F32, &Device::Cpu, 64).unwrap();
    let scores = model.score(&pairs).unwrap();
    let mean = scores.iter().sum::<f64>() / 2.0;
    assert!((number("own", "reference_similarity,none") - mean).abs() < 1e-6, "{results:#}");
    assert!(number("across", "off_target,none") >= 0.0 && number("across", "length_distance,none") >= 0.0);
}
