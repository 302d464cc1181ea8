//! `sdrrl eval` from task file to results: MKQA and XL-Sum, a task that was cut off, wrong files.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use sdrrl::{
    data::token_shard::{Document, write},
    metrics::{
        mkqa,
        projection::{Projection, project},
        rouge::Rouge,
    },
};
use serde_json::{Value, json};

use crate::{
    cli::{fails, ok},
    common::program,
};

const MODEL: &str = "assets/quickstart/model";
/// A projection that the build has, and the name of its first axis.
const PICTURE: (&str, &str) =
    if cfg!(feature = "tsne") { ("tsne", "t-SNE 1") } else { ("pca", "component 1 (") };
pub const MKQA: &str = "tests/golden/metrics/mkqa_sample.jsonl.gz";

/// A folder with a task file; OUT stands for a place in it.
pub struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    pub fn new(tasks: &str) -> Place {
        let place = Place { dir: tempfile::tempdir().unwrap() };
        place.write("tasks.toml", tasks);
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) -> String {
        fs::write(self.at(name), text).unwrap();
        self.at(name).to_string_lossy().into_owned()
    }

    fn arguments(&self, model: &str, out: &str) -> Vec<String> {
        let path = |name: &str| self.at(name).to_string_lossy().into_owned();
        ["eval", "--model", model, "--tasks", &path("tasks.toml"), "--out", &path(out)]
            .map(String::from)
            .into()
    }

    pub fn eval(&self, out: &str) -> String {
        let arguments = self.arguments(MODEL, out);
        ok(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    pub fn refused(&self, parts: &[&str]) {
        // The model is not even there: whatever is wrong with a task is said before it is looked for.
        let arguments = self.arguments("no/such-model", "out");
        fails(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), parts);
        assert!(!self.at("out").exists(), "something was written");
    }

    pub fn results(&self, out: &str) -> Value {
        serde_json::from_str(&fs::read_to_string(self.at(out).join("results.json")).unwrap()).unwrap()
    }

    pub fn rows(&self, path: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.at(path)).unwrap();
        text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }
}

pub fn task(name: &str, kind: &str, language: &str, file: &str, more: &str) -> String {
    format!("[[tasks]]\nname = {name:?}\nkind = {kind:?}\nlanguage = {language:?}\nfile = {file:?}\n{more}\n")
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Articles of XL-Sum's form, of which the last is longer than the model's context of 256 tokens.
pub fn articles(place: &Place, rows: usize) -> String {
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
    for (key, official) in serde_json::to_value(scores).unwrap().as_object().unwrap() {
        let close = key == "exact_match" || key == "f1";
        let ours = found("mkqa-es", &format!("{key},none"));
        assert!(
            (ours - number(official)).abs() < if close { 0.0051 } else { 1e-12 },
            "{key}: {ours} for {official}"
        );
    }
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
        ("mkqa-es", "mkqa", "mkqa|lang:es|n:6|no-answer-prob:none|version:"),
        (
            "xlsum-es",
            "rougeL",
            "rougeL|lang:es|case:lc|punct:no|tok:onmt-aggressive|stem:snowball-nltk|version:",
        ),
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
            // Not the manifest's, which is a partial file for a moment too.
            .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("samples")))
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

/// How many rows or tokens run together changes no byte of any result.
#[test]
fn no_result_depends_on_what_runs_together() {
    let place = Place::new("");
    let xlsum = articles(&place, 7);
    let tasks = task("q", "mkqa", "es", MKQA, "max-new-tokens = 6")
        + &task("s", "summary", "es", &xlsum, "max-new-tokens = 6")
        + &task("b", "multiple-choice", "en", "tests/golden/lm_eval/belebele.jsonl", "")
        + &task("e", "multiple-choice", "en", "tests/golden/lm_eval/exams.jsonl", "choices = \"texts\"")
        + &task("p", "perplexity", "es", "tests/golden/metrics/flores/test.es", "")
        + &task(
            "a",
            "alignment",
            "es",
            "tests/golden/metrics/flores/test.es",
            "reference = \"tests/golden/metrics/flores/test.google.es\"\nlimit = 9",
        );
    for (rows, tokens) in [(1, 1), (3, 100), (64, 100_000)] {
        place.write("tasks.toml", &format!("batch-rows = {rows}\nbatch-tokens = {tokens}\n{tasks}"));
        place.eval(&format!("{rows}"));
    }
    let files = |out: &str| {
        let text = |name: &str| fs::read_to_string(place.at(out).join(name)).unwrap();
        let all = ["q", "s", "b", "e", "p", "a"]
            .map(|t| text(&format!("{t}/samples.jsonl")) + &text(&format!("samples_{t}_sdrrl.jsonl")));
        (all, text("results.json"))
    };
    let alone = files("1");
    assert!(alone == files("3") && alone == files("64"));
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(not(feature = "tsne"), allow(dead_code))]
struct Parallel {
    source: Vec<String>,
    target: Vec<String>,
    layer: usize,
    layers: Vec<Value>,
    cosines: Vec<f64>,
    vectors: Vec<Vec<f32>>,
    plane: Vec<(f64, f64)>,
    explained: [f64; 2],
    joint_probabilities: Vec<Vec<f64>>,
    kl_divergence: f64,
}

fn parallel() -> Parallel {
    serde_json::from_str(&fs::read_to_string("tests/golden/alignment.json").unwrap()).unwrap()
}

/// Every layer's numbers within 1e-4 of numpy's on transformers' hidden states; shares of sentences exactly.
fn same_layers(ours: &Value, theirs: &[Value]) {
    let ours = ours.as_array().unwrap();
    assert_eq!(ours.len(), theirs.len());
    for (l, (a, b)) in ours.iter().zip(theirs).enumerate() {
        for (key, value) in b.as_object().unwrap() {
            let tolerance = if key.starts_with("retrieval") { 1e-12 } else { 1e-4 };
            assert!((number(&a[key]) - number(value)).abs() < tolerance, "layer {l} {key}: {a} for {b}");
        }
    }
}

#[test]
fn alignment_of_two_files_equals_numpys_by_command_and_as_a_task() {
    let golden = parallel();
    let place = Place::new("");
    // A pair without a translation is left out.
    let source = place.write("en.txt", &(golden.source.join("\n") + "\nalone\n"));
    let target = place.write("es.txt", &(golden.target.join("\n") + "\n \n"));
    let more = format!("reference = {target:?}\nlayer = {}", golden.layer);
    place.write("tasks.toml", &task("al", "alignment", "es", &source, &more));
    let shown = place.eval("task");
    for part in
        ["cosine of translations", "linear CKA", "retrieval@1 of translations %", "retrieval@1 of sources %"]
    {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let results = place.results("task");
    same_layers(&results["alignment"]["al"], &golden.layers);
    let (headline, of) = (&results["results"]["al"], &golden.layers[golden.layer]);
    for (key, theirs, scale) in [
        ("cosine,none", "cosine", 1.0),
        ("cka,none", "cka", 1.0),
        ("retrieval_forward,none", "retrieval-source-target", 100.0),
        ("retrieval_backward,none", "retrieval-target-source", 100.0),
    ] {
        assert!((number(&headline[key]) - scale * number(&of[theirs])).abs() < 1e-4, "{key}: {headline}");
    }
    let signature = results["configs"]["al"]["signature"]["cosine"].as_str().unwrap();
    assert!(signature.starts_with("cosine|lang:en-es|layer:2|pooling:mean|version:"), "{signature}");
    let rows = place.rows("samples_al_sdrrl.jsonl".replace("samples", "task/samples").as_str());
    assert_eq!(rows.len(), golden.cosines.len());
    for (row, cosine) in rows.iter().zip(&golden.cosines) {
        assert!((number(&row["cosine"]) - cosine).abs() < 1e-4, "{row}");
    }
    // The same model twice: what has an interval has it at zero, CKA has none, and nothing is called better.
    let mut again = place.arguments(MODEL, "again");
    again.extend(["--compare".to_string(), place.at("task").to_string_lossy().into_owned()]);
    let shown = ok(&again.iter().map(String::as_str).collect::<Vec<_>>());
    let line = |part: &str| shown.lines().find(|l| l.contains(part)).unwrap().trim_end().to_string();
    assert!(line("cosine of").ends_with("+0.000 (+0.000 .. +0.000)"), "{shown}");
    assert!(line("linear CKA").ends_with("+0.000"), "{shown}");
    // The command.
    let out = place.at("command").to_string_lossy().into_owned();
    let layer = golden.layer.to_string();
    let arguments = [
        "align",
        "--model",
        MODEL,
        "--source",
        &source,
        "--target",
        &target,
        "--target-language",
        "es",
        "--layer",
        &layer,
    ];
    ok(&[&arguments[..], &["--out", &out, "--after", MODEL, "--projection", PICTURE.0]].concat());
    let found: Value =
        serde_json::from_str(&fs::read_to_string(place.at("command/alignment.json")).unwrap()).unwrap();
    assert_eq!(found["pairs"], 24);
    for (model, name) in found["models"].as_array().unwrap().iter().zip(["before", "after"]) {
        assert_eq!(model["name"], name);
        same_layers(&model["layers"], &golden.layers);
    }
    let page = fs::read_to_string(place.at("command/report.html")).unwrap();
    for part in [
        "Sentences at layer 2, before training",
        "after training",
        PICTURE.1,
        "linear CKA",
        "24 parallel sentences",
    ] {
        assert!(page.contains(part), "{part}");
    }
    ok(&[&arguments[..], &["--out", &out, "--after", MODEL, "--projection", "pca"]].concat());
    assert!(fs::read_to_string(place.at("command/report.html")).unwrap().contains("component 1 ("));
    // Bad input, before any model is looked for.
    place.write("es.txt", "uno\n");
    place.refused(&["task al", "en.txt has 25 lines", "es.txt has 1: they must be parallel"]);
    place.write("tasks.toml", &task("al", "alignment", "es", &source, ""));
    place.refused(&["task al", "`reference` belongs to kinds translation and alignment"]);
    place.write("tasks.toml", &task("p", "perplexity", "es", &source, "layer = 3"));
    place.refused(&["task p", "belong to kind alignment"]);
    place.write("es.txt", &(golden.target.join("\n") + "\n \n"));
    place.write(
        "tasks.toml",
        &task("al", "alignment", "es", &source, &more.replace("layer = 2", "layer = 5")),
    );
    let arguments = place.arguments(MODEL, "none");
    fails(
        &arguments.iter().map(String::as_str).collect::<Vec<_>>(),
        &["task al", "layer is 5: the model has hidden states 0 to 4"],
    );
}

/// As a task of a recipe: before and after in the table, planes and curves in the report; what has no interval is not judged.
#[test]
fn a_runs_report_shows_the_alignment_before_and_after() {
    let golden = parallel();
    let place = Place::new("");
    let source = place.write("en.txt", &(golden.source.join("\n") + "\n"));
    let target = place.write("es.txt", &(golden.target.join("\n") + "\n"));
    let recipe = fs::read_to_string("recipes/quickstart.toml").unwrap();
    let tasks = task(
        "align-es",
        "alignment",
        "es",
        &source,
        &format!("reference = {target:?}\nprojection = {:?}", PICTURE.0),
    );
    let path =
        place.write("r.toml", &format!("{}\n{}", recipe, tasks.replace("[[tasks]]", "[[eval.tasks]]")));
    let work = format!("work={}", place.at("work").display());
    let shown = ok(&[
        "run",
        &path,
        "--set",
        &work,
        "--set",
        "generate.limit=60",
        "--set",
        "train.max-steps=4",
        "--set",
        "variants=[\"sdrrl\"]",
        "--set",
        "eval.bootstrap-samples=50",
    ]);
    let line = shown.lines().find(|l| l.contains("linear CKA")).unwrap();
    assert!(line.starts_with("align-es") && !line.contains(".."), "{shown}");
    assert!(
        shown.contains("sdrrl: of 6 target-language metrics"),
        "three of the answers, three with intervals of these: {shown}"
    );
    let page = fs::read_to_string(place.at("work/report.html")).unwrap();
    for part in [
        "Alignment of hidden states",
        "Sentences at layer 2, before training",
        "after sdrrl training",
        &PICTURE.1.replace('1', "2"),
        "mean cosine of translations",
    ] {
        assert!(page.contains(part), "{part}");
    }
    let results: Value =
        serde_json::from_str(&fs::read_to_string(place.at("work/results.json")).unwrap()).unwrap();
    let text = results.to_string();
    assert!(text.contains("\"cka\"") && text.contains("\"low\":null"), "{text}");
}

/// A build without t-SNE says so before a model is looked for.
#[cfg(not(feature = "tsne"))]
#[test]
fn a_projection_that_the_build_lacks_is_refused_by_name() {
    let files = ["--source", "none.en", "--target", "none.es", "--target-language", "es", "--out", "none"];
    let args = [&["align", "--model", "none"][..], &files, &["--projection", "tsne"]].concat();
    crate::cli::fails(&args, &["--features tsne"]);
    assert!(project(&parallel().vectors, Projection::Tsne).is_err());
}

#[test]
fn principal_components_equal_numpys() {
    let golden = parallel();
    let pca = project(&golden.vectors, Projection::Pca).unwrap();
    for (a, b) in pca.points.iter().zip(&golden.plane) {
        assert!((a.0 - b.0).abs() < 1e-3 && (a.1 - b.1).abs() < 1e-3, "{a:?} for {b:?}");
    }
    let explained = pca.explained.unwrap();
    assert!((0..2).all(|k| (explained[k] - golden.explained[k]).abs() < 1e-4), "{explained:?}");
}

#[cfg(feature = "tsne")]
#[test]
fn the_loss_of_tsne_is_as_low_as_scikit_learns() {
    let golden = parallel();
    let tsne = project(&golden.vectors, Projection::Tsne).unwrap().points;
    let near =
        |i: usize, j: usize| 1.0 / (1.0 + (tsne[i].0 - tsne[j].0).powi(2) + (tsne[i].1 - tsne[j].1).powi(2));
    let pairs: Vec<(usize, usize)> =
        (0..tsne.len()).flat_map(|i| (0..tsne.len()).map(move |j| (i, j))).filter(|(i, j)| i != j).collect();
    let sum: f64 = pairs.iter().map(|&(i, j)| near(i, j)).sum();
    let loss: f64 = pairs
        .iter()
        .map(|&(i, j)| (golden.joint_probabilities[i][j].max(1e-12), near(i, j) / sum))
        .map(|(p, q)| p * (p / q).ln())
        .sum();
    assert!(loss < 1.1 * golden.kl_divergence, "{loss} for {}", golden.kl_divergence);
}

/// Guard, generation while training, alignment and every kind of scoring on the emulated GPU give what the CPU gives.
#[test]
fn the_emulated_gpu_evaluates_and_guards_as_the_cpu_does() {
    let golden = parallel();
    let place = Place::new("");
    let source = place.write("en.txt", &(golden.source[..3].join("\n") + "\n"));
    let target = place.write("es.txt", &(golden.target[..3].join("\n") + "\n"));
    let generation = task("mkqa", "mkqa", "es", MKQA, "max-new-tokens = 2\nlimit = 2");
    place.write(
        "tasks.toml",
        &(generation.clone()
            + &task(
                "exams",
                "multiple-choice",
                "en",
                "tests/golden/lm_eval/exams.jsonl",
                "choices = \"texts\"\nlimit = 2",
            )
            + &task("text", "perplexity", "es", "tests/golden/lm_eval/text.txt", "limit = 1")
            + &task("al", "alignment", "es", &source, &format!("reference = {target:?}"))),
    );
    let probe = place.write("probe.toml", &generation);
    fs::create_dir(place.at("shards")).unwrap();
    let document = |note: &str, from: u32| Document {
        tokens: (from..from + 6).collect(),
        weights: vec![0.0, 0.0, 1.0, 1.0, 1.0, 1.0],
        note: note.into(),
    };
    write(&place.at("shards/train.tokens"), &[document("a S>S", 20), document("b T>T", 40)]).unwrap();
    write(&place.at("shards/source.tokens"), &[document("c S>S", 60)]).unwrap();
    write(&place.at("shards/validation.tokens"), &[document("d T>T", 80)]).unwrap();
    let shards = place.at("shards").to_string_lossy().into_owned();
    let run = |device: &str| {
        let mut arguments = place.arguments(MODEL, device);
        arguments.extend(["--device", device].map(String::from));
        ok(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let out = place.at(&format!("train-{device}")).to_string_lossy().into_owned();
        ok(&[
            "train",
            "--model",
            MODEL,
            "--shards",
            &shards,
            "--out",
            &out,
            "--device",
            device,
            "--max-steps",
            "2",
            "--eval-every",
            "1",
            "--lr",
            "1e-2",
            "--guard",
            "reweight",
            "--guard-max-rise",
            "0",
            "--probe-tasks",
            &probe,
            "--probe-rows",
            "1",
        ]);
    };
    run("cpu");
    run("emulated");
    let near = |a: &Value, b: &Value, what: &str| match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => assert!((a - b).abs() <= 2e-4 * a.abs().max(1.0), "{what}: {a} for {b}"),
        _ => assert_eq!(a, b, "{what}"),
    };
    let (cpu, emulated) = (place.results("cpu"), place.results("emulated"));
    for (task, metrics) in cpu["results"].as_object().unwrap() {
        for (metric, value) in metrics.as_object().unwrap() {
            near(&emulated["results"][task][metric], value, &format!("{task} {metric}"));
        }
    }
    let (cpu, emulated) = (place.rows("train-cpu/metrics.jsonl"), place.rows("train-emulated/metrics.jsonl"));
    assert_eq!(cpu.len(), emulated.len());
    let mut seen = std::collections::BTreeSet::new();
    for (a, b) in cpu.iter().zip(&emulated) {
        for (key, value) in a.as_object().unwrap() {
            near(&b[key], value, key);
            seen.insert(key.as_str());
        }
    }
    for key in ["train/loss", "eval/loss", "eval/source_loss"] {
        assert!(seen.contains(key), "{key} is not in {seen:?}");
    }
    assert!(seen.iter().any(|key| key.contains("mkqa/f1")), "{seen:?}");
}
