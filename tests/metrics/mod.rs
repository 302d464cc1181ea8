//! Metrics against their references' own numbers (scripts/golden_{metrics,languages,systems,spbleu,rouge,mkqa,mecab}.py).
mod command;
mod languages;
mod sacrebleu;
mod spbleu;
mod words;

use std::path::Path;

use serde_json::Value;

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|x| x.as_str().unwrap()).collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn same(ours: f64, theirs: f64, what: &str) {
    assert!((ours - theirs).abs() < 1e-9, "{what}: {ours} is not {theirs}");
}

fn lines(folder: &Path, name: &str) -> Vec<String> {
    let text = std::fs::read_to_string(folder.join(name)).unwrap();
    text.lines().map(String::from).collect()
}

/// Equal up to the last bit, which the reader of JSON may lose.
fn digits(ours: f64, theirs: f64, what: &str) {
    assert!((ours - theirs).abs() <= 4e-16 * theirs.abs(), "{what}: {ours} is not {theirs}");
}

fn read(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(Path::new("tests/golden/metrics").join(name)).unwrap())
        .unwrap()
}
