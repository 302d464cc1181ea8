//! `scores.jsonl`: what a metric makes of a row is computed once. The catalog of metrics from task file to results; one rule for BLEU's tokenizer.
use std::{
    fs,
    path::{Path, PathBuf},
};

use sdrrl::{
    device::Device,
    eval::{measure, sample::Sample},
    metrics::tokenize::BleuTokenizer,
    qe::{
        Scorer,
        cometkiwi::{CometKiwi, Files},
        similarity::Similarity,
    },
    recipe::eval::EvalTask,
    tensor::DType,
};
use serde_json::Value;

use crate::{
    cli::{fails, ok},
    qe::{MODEL as KIWI, encoder_dir},
};

const MODEL: &str = "assets/quickstart/model";
const FLORES: &str = "tests/golden/metrics/flores";
const ROWS: usize = 6;

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        Place { dir: tempfile::tempdir().unwrap() }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn path(&self, name: &str) -> String {
        self.at(name).to_string_lossy().into_owned()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.at(name)).unwrap()
    }

    /// A translation task with these lines more.
    fn task(&self, kind: &str, more: &str) {
        let reference = if kind == "translation" {
            format!("reference = \"{FLORES}/test.google.es\"\n")
        } else {
            String::new()
        };
        let text = format!(
            "[[tasks]]\nname = \"t\"\nkind = {kind:?}\nlanguage = \"es\"\nfile = \"{FLORES}/test.es\"\nlimit = {ROWS}\nmax-new-tokens = 8\n\
             {reference}{more}\n"
        );
        fs::write(self.at("tasks.toml"), text).unwrap();
    }

    fn eval(&self, out: &str) -> String {
        ok(&["eval", "--model", MODEL, "--tasks", &self.path("tasks.toml"), "--out", &self.path(out)])
    }

    fn refused(&self, parts: &[&str]) {
        let arguments = [
            "eval",
            "--model",
            "no/such-model",
            "--tasks",
            &self.path("tasks.toml"),
            "--out",
            &self.path("none"),
        ];
        fails(&arguments, parts);
        assert!(!self.at("none").exists());
    }

    fn result(&self, out: &str, key: &str) -> f64 {
        let results: Value = serde_json::from_str(&self.read(&format!("{out}/results.json"))).unwrap();
        results["results"]["t"][key].as_f64().unwrap_or_else(|| panic!("{key} is no number: {results:#}"))
    }

    fn scores(&self, out: &str) -> Vec<Value> {
        self.read(&format!("{out}/t/scores.jsonl"))
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect()
    }
}

fn scorer(model: &str) -> String {
    format!("scorers.cometkiwi.model = {model:?}")
}

/// The numbers are the model's own; they are taken from the file afterwards, by any later command and other metrics beside them; another model
/// has numbers of its own. The samples are never made again.
#[test]
fn a_model_scores_each_row_once() {
    let place = Place::new();
    place.task("translation", &format!("metrics = [\"bleu\", \"cometkiwi\"]\n{}", scorer(KIWI)));
    let shown = place.eval("out");
    assert!(shown.contains("CometKiwi") && shown.contains("cometkiwi|model:model|weights:"), "{shown}");
    let samples = place.read("out/t/samples.jsonl");
    let replies: Vec<Sample> = samples.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let sources = fs::read_to_string(format!("{FLORES}/test.es")).unwrap();
    let pairs: Vec<(String, String)> =
        sources.lines().map(String::from).zip(replies.iter().map(|s| s.response.clone())).collect();
    let files = Files::find(KIWI, None).unwrap();
    let mut kiwi = CometKiwi::load(&files, DType::F32, &Device::Cpu, 2048).unwrap();
    let mean = kiwi.score(&pairs).unwrap().iter().sum::<f64>() / ROWS as f64;
    assert_eq!(pairs.len(), ROWS);
    assert!((place.result("out", "cometkiwi,none") - mean).abs() < 1e-9);
    assert!(place.result("out", "cometkiwi_stderr,none") > 0.0);
    let rows = place.read("out/samples_t_sdrrl.jsonl");
    assert!(rows.lines().all(|l| serde_json::from_str::<Value>(l).unwrap()["cometkiwi"].is_f64()), "{rows}");

    // A mark in the file shows who reads it.
    let marked: String = place
        .scores("out")
        .into_iter()
        .map(|mut row| {
            if row["metric"] == "cometkiwi" {
                row["values"] = serde_json::json!([0.25]);
            }
            format!("{row}\n")
        })
        .collect();
    fs::write(place.at("out/t/scores.jsonl"), marked).unwrap();
    place.task("translation", &format!("metrics = [\"cometkiwi\", \"ter\", \"chrf\"]\n{}", scorer(KIWI)));
    let shown = place.eval("out");
    assert!(shown.contains("unchanged, skipped"), "{shown}");
    assert_eq!(place.result("out", "cometkiwi,none"), 0.25);
    let count = |metric: &str| place.scores("out").iter().filter(|r| r["metric"] == metric).count();
    assert_eq!(["cometkiwi", "ter", "chrf", "bleu"].map(count), [ROWS; 4]);
    assert_eq!(place.read("out/t/samples.jsonl"), samples);

    // The same weights in a folder with one more file: another signature.
    let other = place.at("other");
    fs::create_dir_all(other.join("checkpoints")).unwrap();
    for name in ["config.json", "hparams.yaml", "tokenizer.json", "checkpoints/model.ckpt"] {
        fs::copy(Path::new(KIWI).join(name), other.join(name)).unwrap();
    }
    fs::write(other.join("more.json"), "{}").unwrap();
    place.task("translation", &format!("metrics = [\"cometkiwi\"]\n{}", scorer(&place.path("other"))));
    place.eval("out");
    assert!((place.result("out", "cometkiwi,none") - mean).abs() < 1e-9);
    assert_eq!(count("cometkiwi"), 2 * ROWS);
    // Two models compared: the kept scores serve.
    let arguments =
        ["eval", "--model", MODEL, "--tasks", &place.path("tasks.toml"), "--out", &place.path("again")];
    let shown = ok(&[&arguments[..], &["--compare", &place.path("out")]].concat());
    let line = shown.lines().find(|l| l.contains("CometKiwi")).unwrap();
    assert!(line.trim_end().ends_with("+0.0000 (+0.0000 .. +0.0000)"), "{shown}");
}

/// Source and reply of each row of `test.es`.
fn pairs_of(place: &Place, out: &str) -> Vec<(String, String)> {
    let samples = place.read(&format!("{out}/t/samples.jsonl"));
    let replies = samples.lines().map(|l| serde_json::from_str::<Sample>(l).unwrap().response);
    let sources = fs::read_to_string(format!("{FLORES}/test.es")).unwrap();
    sources.lines().map(String::from).zip(replies).collect()
}

/// The cosine by an XLM-R sentence encoder, from the task's file to the results, the samples and the kept scores: each row's number is the scorer's own. Another
/// prefix and another encoder have numbers of their own beside them.
#[test]
fn similarity_is_a_metric_from_task_to_results() {
    let place = Place::new();
    let encoder = encoder_dir(place.dir.path());
    let task = |prefix: &str| {
        let prefix = if prefix.is_empty() {
            String::new()
        } else {
            format!("scorers.similarity.prefix = {prefix:?}\n")
        };
        let model = format!("scorers.similarity.model = {encoder:?}\n");
        place.task("translation", &format!("metrics = [\"similarity\", \"chrf\"]\n{model}{prefix}"));
    };
    let kept = |signature: &str| -> Vec<(u64, f64)> {
        let of = |row: &Value| {
            row["metric"] == "similarity" && row["signature"].as_str().unwrap().contains(signature)
        };
        let rows = place.scores("out").into_iter().filter(of);
        rows.map(|row| (row["doc_id"].as_u64().unwrap(), row["values"][0].as_f64().unwrap())).collect()
    };
    let mut all = vec![];
    for (prefix, signature) in [("query: ", "|prefix:query:|"), ("", "|dtype:")] {
        task(prefix);
        let shown = place.eval("out");
        assert!(shown.contains("similarity|model:encoder|weights:") && shown.contains(signature), "{shown}");
        let pairs = pairs_of(&place, "out");
        assert_eq!(pairs.len(), ROWS);
        let mut scorer =
            Similarity::load(Path::new(&encoder), prefix, DType::F32, &Device::Cpu, 2048).unwrap();
        let want = scorer.score(&pairs).unwrap();
        let spread =
            want.iter().copied().fold(f64::MIN, f64::max) - want.iter().copied().fold(f64::MAX, f64::min);
        assert!(want.iter().all(|x| x.abs() <= 1.0) && spread > 1e-3, "{want:?}");
        // Those of both prefixes stand in the file by then.
        let found: Vec<f64> = kept(signature)
            .into_iter()
            .filter(|(row, x)| (x - want[*row as usize]).abs() < 1e-12)
            .map(|(_, x)| x)
            .collect();
        assert_eq!(found.len(), ROWS, "{prefix:?}: {want:?}, kept: {:?}", kept(signature));
        let mean = want.iter().sum::<f64>() / ROWS as f64;
        assert!((place.result("out", "similarity,none") - mean).abs() < 1e-9, "{prefix:?}");
        assert!(place.result("out", "similarity_stderr,none") > 0.0);
        let rows = place.read("out/samples_t_sdrrl.jsonl");
        for (line, want) in rows.lines().zip(&want) {
            let row: Value = serde_json::from_str(line).unwrap();
            assert!((row["similarity"].as_f64().unwrap() - want).abs() < 1e-12, "{row}");
        }
        all.push(want);
    }
    assert!(all[0] != all[1], "the prefix is read");
    assert_eq!(kept("").len(), 2 * ROWS);
    what_is_kept_is_what_counts(&place);
}

/// Kept numbers are not computed again: another number in the file is the one that counts.
fn what_is_kept_is_what_counts(place: &Place) {
    let file = place.at("out/t/scores.jsonl");
    let marked: String = place
        .scores("out")
        .into_iter()
        .map(|mut row| {
            if row["metric"] == "similarity" {
                row["values"] = serde_json::json!([0.125]);
            }
            format!("{row}\n")
        })
        .collect();
    fs::write(&file, marked).unwrap();
    place.eval("out");
    assert_eq!(place.result("out", "similarity,none"), 0.125);
}

/// Whatever a kill left of the file, the same command ends with the same bytes.
#[test]
fn scores_that_were_cut_off_go_on_where_they_were() {
    let place = Place::new();
    place.task("translation", &format!("metrics = [\"cometkiwi\", \"chrf++\"]\n{}", scorer(KIWI)));
    place.eval("out");
    let (scores, results) = (place.read("out/t/scores.jsonl"), place.read("out/results.json"));
    let lines: Vec<&str> = scores.lines().collect();
    assert_eq!(lines.len(), 2 * ROWS);
    let file = place.at("out/t/scores.jsonl");
    for (kept, torn) in [(0, 40), (1, 0), (ROWS + 2, 1), (2 * ROWS - 1, 90)] {
        let mut left: Vec<String> = lines[..kept].iter().rev().map(|l| format!("{l}\n")).collect();
        left.push(lines[kept][..torn].into());
        fs::write(&file, left.concat()).unwrap();
        place.eval("out");
        assert_eq!(place.read("out/t/scores.jsonl"), scores, "{kept} lines and {torn} bytes");
        assert_eq!(place.read("out/results.json"), results);
    }
    // Kept numbers of another kind, and lines that are none, are named.
    let number = lines[0].rsplit_once('[').unwrap().0;
    for (line, part) in [
        ("what".to_string(), "without `values`"),
        (format!("{number}[nan]}}"), "is no number"),
        (format!("{number}[1,2]}}"), "2 numbers"),
        (lines[0].replace("\"sample\":\"", "\"sample\":\"x"), "no hash"),
        (lines[0].replace("\"metric\"", "\"metrics\""), "not a line of scores"),
    ] {
        fs::write(&file, format!("{line}\n")).unwrap();
        let arguments =
            ["eval", "--model", MODEL, "--tasks", &place.path("tasks.toml"), "--out", &place.path("out")];
        fails(&arguments, &["scores.jsonl", part, "delete the file"]);
    }
}

/// Replies that are made again are scored again.
#[test]
fn other_samples_have_other_scores() {
    let place = Place::new();
    place.task("translation", "metrics = [\"chrf\"]");
    place.eval("out");
    let first = place.scores("out");
    place.task("translation", "metrics = [\"chrf\"]\nprompt = \"{text}\"");
    place.eval("out");
    let second = place.scores("out");
    assert_eq!((first.len(), second.len()), (ROWS, ROWS));
    assert!(
        first.iter().all(|a| second.iter().all(|b| a["sample"] != b["sample"] || a["values"] == b["values"]))
    );
    let manifest: Value = serde_json::from_str(&place.read("out/t/manifest.json")).unwrap();
    assert!(!manifest["outputs"].to_string().contains("scores.jsonl"), "{manifest}");
    assert!(place.eval("out").contains("unchanged, skipped"));
}

#[test]
fn metrics_that_do_not_fit_are_named_before_anything_is_computed() {
    let place = Place::new();
    let kiwi = |more: &str| format!("metrics = [\"cometkiwi\"]\n{more}");
    for (kind, more, parts) in [
        ("perplexity", kiwi(""), &["task t", "kind perplexity"][..]),
        (
            "translation",
            kiwi("scorers.cometkiwi.model = \"nowhere\""),
            &["task t", "metric cometkiwi", "nowhere"],
        ),
        ("translation", kiwi("scorers.cometkiwi.modell = \"x\""), &["did you mean `model`?"]),
        (
            "translation",
            kiwi(&format!("{}\nscorers.cometkiwi.prefix = \"q\"", scorer(KIWI))),
            &["belongs to metric similarity"],
        ),
        (
            "translation",
            "metrics = [\"similarity\"]".into(),
            &["metric similarity", "scorers.similarity.model"],
        ),
        ("translation", scorer(KIWI), &["task t", "`scorers.cometkiwi` is no metric with a model among"]),
        (
            "translation",
            "metrics = [\"bleu\"]\nscorers.bleu.model = \"x\"".into(),
            &["`scorers.bleu` is no metric"],
        ),
        (
            "translation",
            "metrics = [\"acc\"]".into(),
            &["unknown variant `acc`, expected one of `exact-match`"],
        ),
    ] {
        place.task(kind, &more);
        place.refused(parts);
    }
    fs::write(place.at("qa.jsonl"), "{\"question\": \"q\", \"answers\": [\"a\"]}\n").unwrap();
    let file = place.path("qa.jsonl");
    let text = format!(
        "[[tasks]]\nname = \"t\"\nkind = \"qa\"\nlanguage = \"es\"\nfile = {file:?}\nmetrics = [\"cometkiwi\"]\n"
    );
    fs::write(place.at("tasks.toml"), text).unwrap();
    place.refused(&["task t", "metric cometkiwi needs source sentences", "not qa"]);
}

#[test]
fn helps_list_the_catalog() {
    let eval = ok(&["eval", "--help"]);
    let metric = ok(&["metric", "--help"]);
    for name in ["exact-match", "f1", "bleu", "chrf++", "ter", "rouge-l", "off-target"] {
        assert!(eval.contains(name) && metric.contains(name), "{name}");
    }
    assert!(eval.contains("cometkiwi") && !metric.contains("cometkiwi"));
}

/// `eval` and `metric` choose one tokenizer for a language.
#[test]
fn bleus_tokenizer_follows_one_rule() {
    let (reference, hypothesis) = (format!("{FLORES}/test.es"), format!("{FLORES}/test.google.es"));
    for (language, kind) in [
        ("es", BleuTokenizer::V13a),
        ("ko", BleuTokenizer::V13a),
        ("zh", BleuTokenizer::Zh),
        ("Chinese", BleuTokenizer::Zh),
        ("ja", BleuTokenizer::Char),
        ("th", BleuTokenizer::Char),
        ("khm_Khmr", BleuTokenizer::Char),
    ] {
        assert_eq!(BleuTokenizer::choose(language, None, None).unwrap().kind(), kind, "{language}");
        let task: EvalTask = toml::from_str(&format!(
            "name = \"t\"\nkind = \"translation\"\nfile = \"a\"\nlanguage = {language:?}\nmetrics = [\"bleu\"]"
        ))
        .unwrap();
        let sample = Sample { response: "a".into(), targets: vec!["a".into()], ..Default::default() };
        let ours = measure::measures(&task, &[sample]).unwrap().remove(0).signature;
        assert!(ours.contains(&format!("tok:{}|", kind.signature())), "{language}: {ours}");
        let shown = ok(&["metric", "-r", &reference, "-i", &hypothesis, "-m", "bleu", "-l", language]);
        assert!(shown.contains(&ours), "{language}: {shown}");
    }
    // A dictionary that cannot be read is an error by the same rule; languages that take none do not look at it.
    assert!(BleuTokenizer::choose("ja", None, Some(Path::new("nowhere"))).is_err());
    let other = BleuTokenizer::choose("th", None, Some(Path::new("nowhere"))).unwrap();
    assert_eq!(other.kind(), BleuTokenizer::Char);
}
