//! `sdrrl export`: what MLflow and Weights & Biases write of the same training (tests/golden/tracking.json); logs that grow, are damaged or exported before.
//! That their own tools read it is scripts/check_tracking.py's to show.
use std::{collections::BTreeMap, fs, path::Path};

use sdrrl::train::tracking::{Point, Tracked, mlflow, wandb};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::cli::{fails, ok};

/// The training of scripts/golden_tracking.py.
fn training(steps: u64) -> Tracked {
    let started = 1_700_000_000.5;
    let point = |step: u64| {
        let (x, mut values) = (step as f64, BTreeMap::new());
        if step.is_multiple_of(100) {
            values.insert("eval/loss".to_string(), 2.0 + x / 8.0);
        }
        if step > 0 {
            values.insert("train/loss".into(), 3.0 / (step % 8 + 1) as f64);
            values.insert("perf/tokens_per_second".into(), x * 10.5);
        }
        Point { step, time: started + x * 0.25, values }
    };
    let config = json!({"lr": 0.0001, "text": "x".repeat(70_000), "quoted": "a \"b\"\n",
        "batch": {"tokens": 4096, "documents": null}, "targets": ["q", "k"]});
    Tracked {
        name: "a name".into(),
        id: 6 + 36 * 7,
        finished: true,
        started,
        points: (0..=steps).map(point).collect(),
        config: config.as_object().unwrap().clone(),
        summary: [("summary/best/loss".to_string(), 0.75), ("summary/steps".into(), 900.0)].into(),
        page: None,
        not_finite: 0,
        cut: false,
    }
}

fn golden() -> Value {
    serde_json::from_str(&fs::read_to_string("tests/golden/tracking.json").unwrap()).unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Every file below `dir` by its path.
fn files(dir: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else {
                let name = entry.strip_prefix(dir).unwrap().to_str().unwrap().to_string();
                found.insert(name, fs::read_to_string(&entry).unwrap());
            }
        }
    }
    found
}

#[test]
fn the_log_of_weights_and_biases_is_byte_for_byte_its_own_writers() {
    let dir = tempfile::tempdir().unwrap();
    let run = wandb::write(&training(900), dir.path(), "proof").unwrap().path;
    assert_eq!(run.file_name().unwrap(), "offline-run-20231114_221320-67000000");
    let log = fs::read(run.join("run-67000000.wandb")).unwrap();
    let golden = &golden()["wandb"];
    let head: String = log[..64].iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(head, golden["head"].as_str().unwrap());
    assert_eq!(
        (log.len() as u64, sha256(&log)),
        (golden["bytes"].as_u64().unwrap(), golden["sha256"].as_str().unwrap().into())
    );
}

#[test]
fn mlflows_files_are_its_own_writers() {
    let dir = tempfile::tempdir().unwrap();
    let mut t = training(200);
    t.config.shift_remove("text");
    let run = mlflow::write(&t, dir.path(), "proof").unwrap().path;
    let (golden, of) = (&golden()["mlflow"], |kind: &str| files(&run.join(kind)));
    assert_eq!(json!(of("params")), golden["params"]);
    let mut tags = of("tags");
    assert_eq!(tags.remove("mlflow.source.name").unwrap(), "sdrrl");
    assert_eq!(json!(tags), golden["tags"]);
    let mut metrics = of("metrics");
    assert_eq!(metrics.remove("summary/best/loss").unwrap(), "1700000050500 0.75 200\n");
    assert_eq!(metrics.remove("summary/steps").unwrap(), "1700000050500 900.0 200\n");
    for (name, theirs) in golden["metrics"].as_object().unwrap() {
        let ours = metrics.remove(name).unwrap();
        assert_eq!(
            json!({"lines": ours.lines().count(), "sha256": sha256(ours.as_bytes())}),
            *theirs,
            "{name}: {ours}"
        );
    }
    assert!(metrics.is_empty(), "{metrics:?}");
    let keys = |path: &Path| -> Vec<String> {
        fs::read_to_string(path).unwrap().lines().map(|l| l.split(':').next().unwrap().into()).collect()
    };
    assert_eq!(json!(keys(&run.join("meta.yaml"))), golden["run"]);
    let ours = keys(&run.parent().unwrap().join("meta.yaml"));
    assert!(
        ours.iter().all(|key| golden["experiment"].as_array().unwrap().contains(&json!(key))),
        "{ours:?}"
    );
}

#[test]
fn an_experiment_of_that_name_is_used_and_another_one_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    for (id, name) in [("7", "'it''s'"), ("8", "plain name")] {
        fs::create_dir(dir.path().join(id)).unwrap();
        fs::write(dir.path().join(id).join("meta.yaml"), format!("experiment_id: '{id}'\nname: {name}\n"))
            .unwrap();
    }
    let before = files(dir.path());
    let of = |name: &str| {
        let run = mlflow::write(&training(1), dir.path(), name).unwrap().path;
        run.parent().unwrap().file_name().unwrap().to_str().unwrap().to_string()
    };
    assert_eq!((of("it's"), of("plain name")), ("7".to_string(), "8".to_string()));
    let new = of("new: \"1\"");
    assert_eq!((new.len(), of_again(dir.path(), "new: \"1\"", 9)), (18, new));
    let after = files(dir.path());
    assert!(before.iter().all(|(path, text)| after[path] == *text));
}

/// The experiment of another training under the same name.
fn of_again(root: &Path, name: &str, id: u128) -> String {
    let run = mlflow::write(&Tracked { id, ..training(1) }, root, name).unwrap().path;
    run.parent().unwrap().file_name().unwrap().to_str().unwrap().to_string()
}

#[test]
fn names_that_cannot_be_files_are_refused_and_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let mut t = training(1);
    t.points[1].values.insert("eval/chrF++".into(), 1.0);
    let run = mlflow::write(&t, dir.path(), "p").unwrap().path;
    assert!(run.join("metrics/eval/chrF__").exists());
    for (name, why) in [
        ("eval/../../x", "cannot be the name of a file"),
        ("eval/chrF+_", "written twice"),
        ("eval/loss/x", "eval/loss"),
    ] {
        let mut bad = t.clone();
        bad.points[0].values.insert(name.into(), 1.0);
        bad.id += 1;
        let before = files(dir.path());
        let error = format!("{:#}", mlflow::write(&bad, dir.path(), "p").unwrap_err());
        assert!(error.contains(why), "{name}: {error}");
        assert_eq!(files(dir.path()), before, "{name}");
    }
}

/// The folder of a training that is at work, its log ending within a line.
fn at_work(dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    let manifest = json!({"stage": "train", "version": "0", "inputs": {"model": "h"}, "settings": {"lr": 0.5, "lora-targets": ["q"]}});
    fs::write(dir.join("manifest.pending.json"), manifest.to_string()).unwrap();
    let log = "{\"step\":0,\"eval/loss\":5.5}\n{\"step\":1,\"train/loss\":4.0,\"train/grad_norm\":null}\n{\"step\":2,\"train/loss\":3.0}\n{\"step\":2,\"eval/loss\":2.5}\n{\"step\":3,\"trai";
    fs::write(dir.join("metrics.jsonl"), log).unwrap();
    // Step 1 is of an older version, and was done again.
    let clock = "{\"step\":1,\"seconds\":9.0,\"tokens\":1}\n{\"step\":1,\"seconds\":2.0,\"tokens\":100,\"memory\":2097152}\n{\"step\":2,\"seconds\":0.5,\"tokens\":100,\"memory\":null,\"ended\":1000.5}\n{\"st";
    fs::write(dir.join("timing.jsonl"), clock).unwrap();
}

#[test]
fn a_training_at_work_is_exported_up_to_its_last_whole_line() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    at_work(&dir.path().join("training"));
    let t = Tracked::read(&dir.path().join("training"), "t".into()).unwrap();
    assert_eq!((t.finished, t.not_finite, t.cut, t.started), (false, 1, true, 998.0));
    let seen: Vec<(u64, f64, Value)> = t.points.iter().map(|p| (p.step, p.time, json!(p.values))).collect();
    let first = json!({"train/loss": 4.0, "perf/tokens_per_second": 50.0, "perf/memory_mib": 2.0});
    let second = json!({"train/loss": 3.0, "eval/loss": 2.5, "perf/tokens_per_second": 200.0});
    assert_eq!(seen, [(0, 998.0, json!({"eval/loss": 5.5})), (1, 1000.0, first), (2, 1000.5, second)]);
    let export = ["export", &at("training"), "--mlflow", &at("m"), "--wandb", &at("w"), "--project", "p"];
    let told = ok(&export);
    assert!(
        told.contains("export: training (not finished, 2 steps) is the run")
            && told.contains("next:  wandb sync"),
        "{told}"
    );
    let run = &files(&dir.path().join("m"));
    let of = |end: &str| {
        run.iter().find(|(path, _)| path.ends_with(end)).unwrap_or_else(|| panic!("{end}: {run:?}")).1
    };
    assert_eq!(of("params/lora-targets"), "[\"q\"]");
    assert_eq!(of("params/inputs.model"), "h");
    assert_eq!(of("metrics/eval/loss"), "998000 5.5 0\n1000500 2.5 2\n");
    // Once more: what is there stays.
    fails(&export, &["is there already: remove it to export this training again"]);
    assert_eq!(files(&dir.path().join("m")), *run);
}

#[test]
fn what_is_no_log_is_refused_by_file_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let training = dir.path().join("t");
    let (folder, out) =
        (training.to_str().unwrap().to_string(), dir.path().join("m").to_str().unwrap().to_string());
    let export = ["export", &folder, "--mlflow", &out];
    fs::create_dir(&training).unwrap();
    fails(&export, &["holds no training", "metrics.jsonl"]);
    at_work(&training);
    for (line, why) in [
        ("[1]", "metrics.jsonl:2: no line of a log"),
        ("{\"x\":1}", "metrics.jsonl:2: no `step`"),
        ("{\"step\":1,\"x\":\"y\"}", "metrics.jsonl:2: `x` is \"y\": a number was expected"),
    ] {
        fs::write(training.join("metrics.jsonl"), format!("{{\"step\":0}}\n{line}\n")).unwrap();
        fails(&export, &[why]);
        assert!(!Path::new(&out).exists(), "{line}");
    }
    fails(&[&export[..], &["--project", "a/b"]].concat(), &["--project is", "a name without `/`"]);
}

#[test]
fn a_run_brings_all_its_trainings_and_their_results() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    at_work(&dir.path().join("run/train-sdrrl"));
    at_work(&dir.path().join("run/train-sft"));
    let figure = |after: Value| json!({"task": "qa-es", "language": "es", "metric": "chrF++", "higher-is-better": true, "before": 1.5, "after": after});
    let results =
        json!({"recipe": "r", "variants": {"sdrrl": [figure(json!(2.5))], "sft": [figure(Value::Null)]}});
    fs::write(dir.path().join("run/results.json"), results.to_string()).unwrap();
    let told = ok(&["export", &at("run"), "--mlflow", &at("m")]);
    assert!(told.contains("export: run train-sdrrl") && told.contains("export: run train-sft"), "{told}");
    let found = files(&dir.path().join("m"));
    let of = |end: &str| {
        found
            .iter()
            .filter(|(path, _)| path.ends_with(end))
            .map(|(_, text)| text.as_str())
            .collect::<Vec<_>>()
    };
    assert_eq!(of("results/qa-es/chrF__/before"), ["1000500 1.5 2\n"; 2]);
    assert_eq!(of("results/qa-es/chrF__/after"), ["1000500 2.5 2\n"]);
    // A training that came later, and another tracker: what is there keeps nothing from being exported.
    at_work(&dir.path().join("run/train-gold"));
    let again = ok(&["export", &at("run"), "--mlflow", &at("m"), "--wandb", &at("w")]);
    assert!(again.contains("export: run train-gold (not finished, 2 steps) is the run"), "{again}");
    assert!(!again.contains("train-sft (not finished, 2 steps) is the run"), "{again}");
    assert_eq!(fs::read_dir(dir.path().join("w")).unwrap().count(), 3);
    let later = files(&dir.path().join("m"));
    // A matrix has its trainings elsewhere.
    fs::write(dir.path().join("run/results.json"), json!({"name": "a", "arms": []}).to_string()).unwrap();
    fails(&["export", &at("run"), "--mlflow", &at("n")], &["of a matrix", "`cache`"]);
    assert!(later.len() > found.len() && found.iter().all(|(path, text)| later[path] == *text));
}
