//! Tasks as data against lm-eval's own task files (tests/golden/lm_eval/tasks, scripts/golden_lm_eval_tasks.py): prompts, log-likelihoods, choices,
//! generated answers, and bits per byte by the rolling log-likelihood.
use std::{fs, path::Path, process::Command};

use serde_json::{Map, Value, json};

const DIR: &str = "tests/golden/lm_eval/tasks";

fn golden() -> Value {
    serde_json::from_str(&fs::read_to_string(format!("{DIR}/golden.json")).unwrap()).unwrap()
}

/// Runs `tasks` over the quickstart's model; gives results.json.
fn evaluated(tasks: &[Map<String, Value>], out: &Path) -> Value {
    let file = out.join("tasks.toml");
    fs::write(&file, toml::to_string(&json!({"tasks": tasks})).unwrap()).unwrap();
    let run = Command::new(env!("CARGO_BIN_EXE_sdrrl"))
        .args(["eval", "--model", "assets/quickstart/model", "--template", "plain", "--tasks"])
        .args([&file, Path::new("--out"), out])
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    serde_json::from_str(&fs::read_to_string(out.join("results.json")).unwrap()).unwrap()
}

fn samples(out: &Path, task: &str) -> Vec<Value> {
    let text = fs::read_to_string(out.join(task).join("samples.jsonl")).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn close(ours: &Value, theirs: f64, what: &str) {
    let ours = ours.as_f64().unwrap_or_else(|| panic!("{what}: {ours}"));
    assert!((ours - theirs).abs() < 1e-3 * theirs.abs().max(1.0), "{what}: {ours} for {theirs}");
}

/// A task of the golden file as ours.
fn settings((name, g): (&String, &Value)) -> Map<String, Value> {
    let mut task = g["settings"].as_object().unwrap().clone();
    task.insert("name".into(), json!(name));
    task.insert("file".into(), json!(format!("{DIR}/{name}.jsonl")));
    if task.get("few-shot").is_some_and(|n| n != 0) {
        task.insert("few-shot-file".into(), json!(format!("{DIR}/{name}.shots.jsonl")));
    }
    if name.contains("mgsm") || name.contains("flores") {
        task.insert("max-new-tokens".into(), json!(24));
    }
    task
}

#[test]
fn described_tasks_ask_and_choose_as_lm_evals_do() {
    let golden = golden();
    let dir = tempfile::tempdir().unwrap();
    let all = golden["tasks"].as_object().unwrap();
    let results = evaluated(&all.iter().map(settings).collect::<Vec<_>>(), dir.path());
    let (mut choices, mut replies) = (0, 0);
    for (name, g) in all {
        let ours = samples(dir.path(), name);
        // A row of lm-eval's stands once for each of its filters: the last one counts here.
        let theirs = g["samples"].as_array().unwrap();
        let last = theirs.last().unwrap()["filter"].clone();
        let theirs: Vec<&Value> = theirs.iter().filter(|s| s["filter"] == last).collect();
        assert_eq!(ours.len(), theirs.len(), "{name}");
        for (i, (a, b)) in ours.iter().zip(&theirs).enumerate() {
            let what = format!("{name} row {i}");
            assert_eq!(a["prompt"], b["prompt"], "{what}");
            if b["continuations"].as_array().unwrap().is_empty() {
                let reply = a.get("reply").unwrap_or(&a["response"]).as_str().unwrap();
                let whole = b["resps"][0].as_str().unwrap();
                assert!(
                    reply.starts_with(whole) || reply.trim() == whole.trim(),
                    "{what}: {reply:?} for {whole:?}"
                );
                if last == "flexible-extract" {
                    assert_eq!(a["response"], b["filtered"][0], "{what}");
                }
                replies += 1;
                continue;
            }
            let (ours, theirs) = (a["log_likelihoods"].as_array().unwrap(), b["resps"].as_array().unwrap());
            assert_eq!(ours.len(), theirs.len(), "{what}");
            for (x, y) in ours.iter().zip(theirs) {
                close(x, y.as_f64().unwrap(), &what);
            }
            choices += ours.len();
        }
        for (key, theirs) in g["results"].as_object().unwrap() {
            let ours = &results["results"][name][key.replace(",flexible-extract", ",none")];
            match key.as_str() {
                "acc,none" | "acc_norm,none" | "exact_match,flexible-extract" => {
                    close(ours, 100.0 * theirs.as_f64().unwrap(), &format!("{name} {key}"));
                }
                // The same sentences by the same arithmetic (tokenizer 13a).
                "bleu,none" | "chrf,none" => close(ours, theirs.as_f64().unwrap(), &format!("{name} {key}")),
                _ => {}
            }
        }
    }
    assert!(choices > 400 && replies >= 36, "{choices} choices, {replies} replies");
}

#[test]
fn bits_per_byte_count_the_texts_own_bytes_and_lm_evals_figure_is_lm_evals() {
    let golden = golden();
    let dir = tempfile::tempdir().unwrap();
    let task =
        json!({"name": "texts", "kind": "perplexity", "language": "uk", "file": format!("{DIR}/texts.txt")});
    let results = evaluated(&[task.as_object().unwrap().clone()], dir.path());
    let g = &golden["texts"];
    let ours = samples(dir.path(), "texts");
    let mut kept = 0;
    for (i, (a, theirs)) in ours.iter().zip(g["log-likelihoods"].as_array().unwrap()).enumerate() {
        close(&a["log_likelihoods"][1], theirs.as_f64().unwrap(), &format!("text {i}"));
        assert_eq!(a["lengths"][2], g["bytes"][i], "text {i}");
        // All of it, but where it is cut to the context, and a text of one token is not scored.
        let (bytes, all) = (a["lengths"][0].as_u64().unwrap(), g["bytes"][i].as_u64().unwrap());
        assert!(bytes <= all, "text {i}: {bytes} of {all} bytes");
        kept += usize::from(bytes == all);
    }
    assert_eq!(kept, ours.len() - 2, "one text is longer than the context, one has one token");
    close(
        &results["results"]["texts"]["bits_per_byte_rolling,none"],
        g["bits_per_byte"].as_f64().unwrap(),
        "bits per byte",
    );
    let signature = |key: &str| results["configs"]["texts"]["signature"][key].as_str().unwrap().to_string();
    assert!(signature("bits_per_byte").contains("|first-token:given|"), "{}", signature("bits_per_byte"));
    assert!(signature("bits_per_byte_rolling").contains("|first-token:behind-prefix|"));
}

/// A hub export whose columns and labels are not those that a description expects.
fn refused(settings: &[(&str, Value)], rows: &[Value]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let rows: String = rows.iter().map(|r| format!("{r}\n")).collect();
    fs::write(dir.path().join("rows.jsonl"), rows).unwrap();
    let mut task = Map::new();
    task.insert("name".into(), json!("t"));
    task.insert("file".into(), json!(dir.path().join("rows.jsonl")));
    task.extend(settings.iter().map(|(key, value)| (key.to_string(), value.clone())));
    let file = dir.path().join("tasks.toml");
    fs::write(&file, toml::to_string(&json!({"tasks": [task]})).unwrap()).unwrap();
    let run = Command::new(env!("CARGO_BIN_EXE_sdrrl"))
        .args(["eval", "--model", "assets/quickstart/model", "--template", "plain", "--tasks"])
        .args([&file, Path::new("--out"), &dir.path().join("out")])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stderr).to_string();
    if run.status.success() { String::new() } else { said }
}

fn of(name: &str) -> Vec<(&'static str, Value)> {
    vec![("description", json!(name)), ("language", json!("es"))]
}

fn with(name: &str, key: &'static str, value: Value) -> Vec<(&'static str, Value)> {
    of(name).into_iter().chain([(key, value)]).collect()
}

fn xnli(label: Value) -> [Value; 1] {
    [json!({"sentence1": "a", "sentence2": "b", "gold": label})]
}

fn each_says(cases: &[(String, &[&str])]) {
    for (said, parts) in cases {
        for part in *parts {
            assert!(said.contains(part), "{part:?} is not in: {said}");
        }
    }
}

#[test]
fn columns_are_renamed_and_labels_taken_or_refused_in_words() {
    let renamed = || json!(["premise=sentence1", "hypothesis=sentence2", "label=gold"]);
    let labelled = |label: Value| refused(&with("xnli", "columns", renamed()), &xnli(label));
    for label in [json!(1), json!("1"), json!(1.0), json!("neutral"), json!(["neutral"])] {
        let said = labelled(label.clone());
        assert!(said.is_empty(), "{label}: {said}");
    }
    let columns = |columns: Value| refused(&with("xnli", "columns", columns), &xnli(json!(0)));
    each_says(&[
        (
            refused(&of("xnli"), &xnli(json!(1))),
            &["there is no column `hypothesis`, `premise`", "the row has `sentence1`", "columns = ["],
        ),
        (labelled(json!(0.5)), &["rows.jsonl:1", "`label`: it is 0.5"]),
        (labelled(json!(-1)), &["labels are hidden"]),
        (labelled(json!("maybe")), &["names none of the 3 choices", "`entailment`"]),
        (labelled(json!([0, 1])), &["2 right answers"]),
        (columns(json!(["premise=s"])), &["there is no column `s`"]),
        (columns(json!(["premise"])), &["expected NAME=VALUE"]),
    ]);
}

#[test]
fn odd_exports_and_settings_are_refused_in_words() {
    let nli = xnli(json!(0));
    let choices = json!({"text": ["a", "b"], "label": ["A", "B"]});
    each_says(&[
        (refused(&with("xnli", "kind", json!("qa")), &nli), &["is of kind multiple-choice"]),
        (refused(&with("xnli", "prompt", json!("{text}")), &nli), &["`prompt` belongs to"]),
        (refused(&with("xnli", "language", json!("fi")), &nli), &["no words of Finnish"]),
        (refused(&of("xnly"), &nli), &["did you mean `xnli`?"]),
        (refused(&[("language", json!("es"))], &nli), &["`kind` is missing"]),
        (
            refused(&with("global-mmlu", "only", json!(["subject=law"])), &[json!({"subject": "art"})]),
            &["none of its 1 rows has subject=law", "art"],
        ),
        (
            refused(&of("arc"), &[json!({"question": "q", "choices": "{'text': ['a']}", "answerKey": "A"})]),
            &["`choices`", "a Python list or dict written as text"],
        ),
        (
            refused(
                &of("exams"),
                &[json!({"question": {"stem": "q", "choices": choices}, "answerKey": "@"})],
            ),
            &["`answerKey`", "the labels are `A`, `B`"],
        ),
        (
            refused(&of("flores-plus"), &[json!({"id": 0, "text": "a"})]),
            &["`reference` is needed where the description has `join`"],
        ),
        (
            refused(&of("xnli"), &[json!({"premise": {"es": "a"}, "hypothesis": "b", "label": 0})]),
            &["rows.jsonl:1", "`choice 1`", "an object, not a text"],
        ),
        (
            refused(&of("mgsm"), &[json!({"question": "q", "answer_number": null})]),
            &["rows.jsonl:1", "`target`", "what it writes is null"],
        ),
    ]);
}

/// Two files of FLORES+ belong together by `id`, in whatever order; a description of one's own extends a built-in one.
#[test]
fn files_are_joined_and_descriptions_extended() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, rows: &[Value]| {
        let path = dir.path().join(name);
        fs::write(&path, rows.iter().map(|r| format!("{r}\n")).collect::<String>()).unwrap();
        path
    };
    let row = |id: u64, text: &str| json!({"id": id, "iso_639_3": "xxx", "text": text});
    let en = write("eng_Latn.jsonl", &[row(0, "One."), row(1, "Two.")]);
    let es = write("spa_Latn.jsonl", &[row(1, "Dos."), row(0, "Uno."), row(2, "Tres.")]);
    let own = dir.path().join("mine.toml");
    fs::write(&own, "extends = \"flores-plus\"\nprompt = \"{{from.code}}>{{to.code}}: {{text}} =\"\nmetrics = [\"bleu\"]\n").unwrap();
    let task = |name: &str, description: &Path| {
        let task = json!({"name": name, "description": description, "language": "es", "file": en, "reference": es, "max-new-tokens": 3});
        task.as_object().unwrap().clone()
    };
    let results = evaluated(&[task("plus", Path::new("flores-plus")), task("own", &own)], dir.path());
    let plus = samples(dir.path(), "plus");
    assert_eq!(plus[0]["prompt"], "English sentence: One.\nSpanish sentence:");
    assert_eq!((&plus[0]["targets"][0], &plus[1]["targets"][0]), (&json!("Uno."), &json!("Dos.")));
    assert_eq!(samples(dir.path(), "own")[1]["prompt"], "en>es: Two. =");
    let own = &results["configs"]["own"];
    assert_eq!((&own["description"]["name"], &own["description"]["join"]), (&json!("mine"), &json!("id")));
    assert!(
        results["results"]["own"].get("chrf,none").is_none()
            && results["results"]["plus"].get("chrf,none").is_some()
    );
    // A row without its partner, and a key that occurs twice.
    for (rows, part) in [
        ([row(0, "Uno."), row(2, "Tres.")], "`id` is 1, which none of the 2 rows"),
        ([row(0, "Uno."), row(0, "Uno.")], "`id` 0 occurred before"),
    ] {
        let other = write("other.jsonl", &rows);
        let mut lonely = task("plus", Path::new("flores-plus"));
        lonely.insert("reference".into(), json!(other));
        let file = dir.path().join("t.toml");
        fs::write(&file, toml::to_string(&json!({"tasks": [lonely]})).unwrap()).unwrap();
        let run = Command::new(env!("CARGO_BIN_EXE_sdrrl"))
            .args(["eval", "--model", "assets/quickstart/model", "--tasks"])
            .args([&file, Path::new("--out"), &dir.path().join("o2")])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&run.stderr);
        assert!(!run.status.success() && said.contains(part), "{part}: {said}");
    }
}

#[test]
fn answers_are_extracted_as_lm_evals_filters_do() {
    use sdrrl::{
        eval::tasks::described::ending,
        recipe::{
            description::{NamedDescription, WhichMatch},
            eval::{EvalTask, TaskKind},
        },
    };
    let golden = &golden()["extracted"];
    let task = EvalTask::new("t", TaskKind::Qa, "es", "f");
    let mut description = *NamedDescription::open("mgsm").unwrap().0;
    description.until.clear();
    for (name, which) in [("last", WhichMatch::Last), ("first", WhichMatch::First)] {
        (description.extract, description.which_match) =
            (Some(golden[name]["extract"].as_str().unwrap().into()), which);
        let ending = ending(&task, &description).unwrap();
        for (reply, answer) in
            golden["replies"].as_array().unwrap().iter().zip(golden[name]["answers"].as_array().unwrap())
        {
            assert_eq!(ending.judged(reply.as_str().unwrap()), answer.as_str().unwrap(), "{name} {reply}");
        }
    }
}
