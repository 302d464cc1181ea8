//! `sdrrl eval` from task file to results: MKQA and XL-Sum, a task that was cut off, wrong files.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use sdrrl::metrics::{mkqa, rouge::Rouge};
use serde_json::{Value, json};

use crate::{
    cli::{fails, ok},
    common::program,
};

const MODEL: &str = "assets/quickstart/model";
const MKQA: &str = "tests/golden/metrics/mkqa_sample.jsonl.gz";

/// A folder with a task file; OUT stands for a place in it.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new(tasks: &str) -> Place {
        let place = Place { dir: tempfile::tempdir().unwrap() };
        place.write("tasks.toml", tasks);
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> String {
        fs::write(self.at(name), text).unwrap();
        self.at(name).to_string_lossy().into_owned()
    }

    fn arguments(&self, model: &str, out: &str) -> Vec<String> {
        let path = |name: &str| self.at(name).to_string_lossy().into_owned();
        ["eval", "--model", model, "--tasks", &path("tasks.toml"), "--out", &path(out)]
            .map(String::from)
            .into()
    }

    fn eval(&self, out: &str) -> String {
        let arguments = self.arguments(MODEL, out);
        ok(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn refused(&self, parts: &[&str]) {
        // The model is not even there: whatever is wrong with a task is said before it is looked for.
        let arguments = self.arguments("no/such-model", "out");
        fails(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), parts);
        assert!(!self.at("out").exists(), "something was written");
    }

    fn results(&self, out: &str) -> Value {
        serde_json::from_str(&fs::read_to_string(self.at(out).join("results.json")).unwrap()).unwrap()
    }

    fn rows(&self, path: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.at(path)).unwrap();
        text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }
}

fn task(name: &str, kind: &str, language: &str, file: &str, more: &str) -> String {
    format!("[[tasks]]\nname = {name:?}\nkind = {kind:?}\nlanguage = {language:?}\nfile = {file:?}\n{more}\n")
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Articles of XL-Sum's form, of which the last is longer than the model's context of 256 tokens.
fn articles(place: &Place, rows: usize) -> String {
    let row = |i: usize| {
        let text =
            "El panadero está en la ciudad con un perro. ".repeat(if i + 1 == rows { 80 } else { 1 + i % 3 });
        json!({"id": format!("a-{i}"), "url": "https://example.org", "title": "t", "text": text, "summary": "El panadero está en la ciudad."})
    };
    place.write("xlsum.jsonl", &(0..rows).map(|i| row(i).to_string() + "\n").collect::<String>())
}

#[test]
fn mkqa_and_summaries_are_evaluated_from_their_own_files() {
    let place = Place::new("");
    let xlsum = articles(&place, 5);
    place.write(
        "tasks.toml",
        &(task("mkqa-es", "mkqa", "es", MKQA, "max-new-tokens = 8")
            + &task("xlsum-es", "summary", "es", &xlsum, "max-new-tokens = 16\nstem = true")),
    );
    let shown = place.eval("out");
    for part in ["exact match %", "F1 %", "ROUGE-L F1", "off target %", "1 of 5 articles were cut"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let results = place.results("out");
    let golds = mkqa::read_gold(Path::new(MKQA), "es").unwrap();
    let samples = place.rows("out/mkqa-es/samples.jsonl");
    assert_eq!(samples.len(), golds.len());
    for (sample, gold) in samples.iter().zip(&golds) {
        assert_eq!(sample["targets"], json!(gold.answers));
        let prompt = sample["prompt"].as_str().unwrap();
        assert!(prompt.starts_with("Answer the question in Spanish, in a few words.\n"), "{prompt}");
    }
    // The numbers are those of the samples' own replies.
    let predictions: Vec<mkqa::Prediction> = samples
        .iter()
        .zip(&golds)
        .map(|(s, g)| mkqa::Prediction {
            id: g.id.clone(),
            answer: s["response"].as_str().unwrap().into(),
            no_answer: 0.0,
        })
        .collect();
    let scores = mkqa::evaluate(&golds, &predictions, "es").unwrap();
    let found = |task: &str, key: &str| number(&results["results"][task][key]);
    assert!((found("mkqa-es", "exact_match,none") - scores.exact_match).abs() < 0.0051, "{results:#}");
    assert!((found("mkqa-es", "f1,none") - scores.f1).abs() < 0.0051, "{results:#}");
    let summaries = place.rows("out/xlsum-es/samples.jsonl");
    let rouge = Rouge::new("es", None, true).unwrap();
    let text = |s: &Value, key: &str| s[key].as_str().unwrap().to_string();
    let f1: f64 =
        summaries.iter().map(|s| rouge.f1(&text(s, "response"), s["targets"][0].as_str().unwrap())).sum();
    assert!((found("xlsum-es", "rougeL,none") - 100.0 * f1 / 5.0).abs() < 1e-9, "{results:#}");
    let cut: Vec<bool> = summaries.iter().map(|s| s["truncated"] == json!(true)).collect();
    assert_eq!(cut, [false, false, false, false, true]);
    assert!(
        text(&summaries[4], "prompt")
            .starts_with("Summarise the following text in one sentence in Spanish.\n\nEl panadero")
    );
    assert_eq!(results["configs"]["xlsum-es"]["truncated"], 1);
    for (task, metric, start) in [
        ("mkqa-es", "f1", "f1|norm:mkqa|lang:es|version:"),
        ("xlsum-es", "rougeL", "rougeL|lang:es|case:lc|punct:no|tok:onmt-aggressive|stem:snowball|version:"),
    ] {
        let signature = results["configs"][task]["signature"][metric].as_str().unwrap();
        assert!(signature.starts_with(start), "{signature}");
        assert_eq!(results["n-samples"][task]["effective"], if task == "mkqa-es" { golds.len() } else { 5 });
    }
    assert!(place.eval("out").contains("unchanged, skipped"));
}

/// Killed in the middle of a task: the rows that were done are kept (a mark in one of them survives), the others are what they would have been.
#[test]
fn a_task_that_was_cut_off_goes_on_where_it_was() {
    let place = Place::new("");
    let xlsum = articles(&place, 60);
    let tasks = task("s", "summary", "es", &xlsum, "max-new-tokens = 48");
    place.write("tasks.toml", &format!("batch-rows = 1\n{tasks}"));
    place.eval("whole");
    let mut child = program()
        .args(place.arguments(MODEL, "cut"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let partial = || {
        let files = fs::read_dir(place.at("cut/s")).into_iter().flatten().flatten().map(|e| e.path());
        files
            .filter(|p| p.extension().is_some_and(|e| e == "partial"))
            .find(|p| fs::read(p).is_ok_and(|b| b.contains(&b'\n')))
    };
    let began = Instant::now();
    while partial().is_none() {
        assert!(began.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let path = partial().unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let (first, rest) = text.split_once('\n').unwrap();
    let mut row: Value = serde_json::from_str(first).unwrap();
    row["response"] = json!("KEPT");
    // A line that the kill cut in two is written again.
    fs::write(&path, format!("{row}\n{rest}{{\"doc_id\": 9")).unwrap();
    place.eval("cut");
    let (whole, cut) = (place.rows("whole/s/samples.jsonl"), place.rows("cut/s/samples.jsonl"));
    assert_eq!((cut.len(), cut[0]["response"].as_str()), (60, Some("KEPT")));
    assert_eq!(whole[1..], cut[1..]);
}

#[test]
fn wrong_mkqa_and_summary_tasks_are_named_before_anything_is_computed() {
    let place = Place::new("");
    let row = |id: &str, answers: &str, queries: &str| {
        format!("{{\"example_id\": {id}, \"answers\": {answers}, \"queries\": {queries}}}\n")
    };
    let (answers, queries) = ("{\"es\": [{\"text\": \"a\"}]}", "{\"es\": \"q\"}");
    let good = row("1", answers, queries);
    let article = |id: usize, key: &str| format!("{{\"id\": {id}, \"text\": \"t\", \"{key}\": \"s\"}}\n");
    for (kind, text, more, parts) in [
        ("mkqa", good.replace("answers", "answer"), "", &["f.jsonl:1", "no object `answers`"][..]),
        (
            "mkqa",
            row("1", answers, "{\"en\": \"q\"}"),
            "",
            &["f.jsonl", "question 1", "no text `queries.es`"],
        ),
        ("mkqa", row("null", answers, queries), "", &["f.jsonl:1", "example_id is null"]),
        ("mkqa", good.repeat(2), "", &["f.jsonl:2", "example_id 1 stands in the file twice"]),
        (
            "mkqa",
            row("1", "{\"fr\": [{\"text\": \"a\"}]}", queries),
            "",
            &["f.jsonl:1", "no answers in es; there are fr"],
        ),
        ("mkqa", row("1", "{\"es\": [{\"text\": 3}]}", queries), "", &["f.jsonl:1", "an answer's text is 3"]),
        ("mkqa", String::new(), "", &["f.jsonl has no rows"]),
        ("mkqa", "{".into(), "", &["f.jsonl:1", "not JSON"]),
        (
            "mkqa",
            good.clone(),
            "metrics = [\"f2\"]",
            &["metrics", "unknown variant `f2`, expected one of `exact-match`"],
        ),
        ("mkqa", good.clone(), "reference = \"x\"", &["task t", "`reference` belongs to"]),
        ("summary", article(1, "summary").repeat(2), "", &["f.jsonl:2", "the id 1 occurred before"]),
        ("summary", article(1, "abstract"), "", &["f.jsonl:1", "the text `summary` is missing"]),
        ("summary", String::new(), "", &["f.jsonl has no rows"]),
        ("summary", article(1, "summary"), "metrics = [\"rouge\"]", &["rouge", "did you mean `rouge-l`?"]),
        ("summary", article(1, "summary"), "prompt = \"Summarise.\"", &["task t", "`prompt` needs {text}"]),
    ] {
        let file = place.write("f.jsonl", &text);
        place.write("tasks.toml", &task("t", kind, "es", &file, more));
        place.refused(parts);
    }
    let file = place.write("f.jsonl", &article(1, "summary"));
    place.write("tasks.toml", &task("t", "summary", "th", &file, ""));
    place.refused(&["task t", "word list", "pip install pythainlp"]);
    place.write("tasks.toml", &task("t", "summary", "ko", &file, "stem = true"));
    place.refused(&["task t", "no stemmer for ko"]);
    place.write("tasks.toml", &task("t", "mkqa", "es", "no-such-file", ""));
    place.refused(&["task t", "no-such-file"]);
}
