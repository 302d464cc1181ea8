//! Trainings: what is in the way stays, what is damaged is passed over, a hangup that was ignored stays ignored.
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use super::{MODEL, start, wait_for};
use crate::{
    cli::{ok, text},
    common::program,
};

/// A small training in `dir`; the token shards are made once.
struct Training {
    dir: tempfile::TempDir,
}

impl Training {
    fn new() -> Training {
        let training = Training { dir: tempfile::tempdir().unwrap() };
        let text = (0..40).map(|i| {
            format!("{{\"instruction\": \"What is house {i}?\", \"output\": \"House {i} is red.\"}}\n")
        });
        fs::write(training.dir.path().join("e.jsonl"), text.collect::<String>()).unwrap();
        ok(&["pack", "--model", MODEL, "--examples", &training.at("e.jsonl"), "--out", &training.at("k")]);
        training
    }

    fn at(&self, name: &str) -> String {
        self.dir.path().join(name).to_string_lossy().into_owned()
    }

    fn args(&self, out: &str, more: &[&str]) -> Vec<String> {
        let (shards, out) = (self.at("k"), self.at(out));
        let base = ["train", "--model", MODEL, "--shards", &shards, "--out", &out, "--batch-documents", "2"];
        base.iter().chain(more).map(|s| s.to_string()).collect()
    }

    fn run(&self, out: &str, more: &[&str]) -> Output {
        self.start(out, more).wait_with_output().unwrap()
    }

    fn start(&self, out: &str, more: &[&str]) -> Child {
        start(&self.args(out, more).iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn adapter(&self, out: &str) -> Vec<u8> {
        fs::read(self.dir.path().join(out).join("adapter_model.safetensors")).unwrap()
    }
}

const STEPS: [&str; 4] = ["--max-steps", "60", "--checkpoint-every", "2"];

#[test]
fn a_finished_training_and_foreign_checkpoints_stay() {
    let t = Training::new();
    assert!(t.run("a", &["--max-steps", "3"]).status.success());
    let first = t.adapter("a");
    let refused = t.run("a", &["--max-steps", "3", "--lr", "0.01"]);
    let message = text(&refused.stderr);
    assert!(
        refused.status.code() == Some(1) && message.contains("settings.lr") && message.contains("--restart"),
        "{message}"
    );
    assert!(t.adapter("a") == first && text(&t.run("a", &["--max-steps", "3"]).stdout).contains("unchanged"));
    assert!(t.run("a", &["--max-steps", "3", "--lr", "0.01", "--restart"]).status.success());
    assert!(t.adapter("a") != first);
    // Checkpoints of another program: nothing starts, nothing of them is touched, with --restart or without.
    for name in ["checkpoint-500", "checkpoint-00000002"] {
        let folder = t.dir.path().join("f").join(name);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("trainer_state.json"), "{}").unwrap();
        for restart in [&["--max-steps", "3"][..], &["--max-steps", "3", "--restart"]] {
            let message = text(&t.run("f", restart).stderr);
            assert!(
                message.contains(name) && message.contains("not a checkpoint that sdrrl wrote"),
                "{message}"
            );
            assert_eq!(fs::read_to_string(folder.join("trainer_state.json")).unwrap(), "{}");
            assert!(!t.dir.path().join("f/metrics.jsonl").exists());
        }
        fs::remove_dir_all(t.dir.path().join("f")).unwrap();
    }
    // And a model is not trained into.
    let copy = t.dir.path().join("base");
    fs::create_dir_all(&copy).unwrap();
    for entry in fs::read_dir(MODEL).unwrap().flatten() {
        fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    let message = text(&t.run("base", &["--max-steps", "1", "--method", "full"]).stderr);
    assert!(message.contains("train did not write it"), "{message}");
    assert!(
        fs::read(copy.join("model.safetensors")).unwrap()
            == fs::read(format!("{MODEL}/model.safetensors")).unwrap()
    );
}

#[test]
fn a_second_training_is_refused_by_name_and_a_damaged_checkpoint_falls_back() {
    let t = Training::new();
    assert!(t.run("whole", &STEPS).status.success());
    let out = t.dir.path().join("b");
    let mut first = t.start("b", &STEPS);
    wait_for("the third checkpoint", || out.join("checkpoint-00000006").exists() || first_ended(&out));
    let second = t.run("b", &STEPS);
    first.kill().unwrap();
    let pid = first.id();
    first.wait().unwrap();
    let message = text(&second.stderr);
    assert!(
        second.status.code() == Some(75)
            && message.contains(&format!("is being written by process {pid} on")),
        "{message}"
    );
    // Other settings do not go on from it; a checkpoint interval is none of them.
    let refused = text(&t.run("b", &["--max-steps", "60", "--lr", "0.01"]).stderr);
    assert!(refused.contains("holds a checkpoint") && refused.contains("settings.lr"), "{refused}");
    let mut checkpoints: Vec<PathBuf> = fs::read_dir(&out)
        .unwrap()
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("checkpoint-0")))
        .collect();
    checkpoints.sort();
    assert!(checkpoints.len() >= 2, "{checkpoints:?}");
    let tensors = checkpoints.last().unwrap().join("state.safetensors");
    let bytes = fs::read(&tensors).unwrap();
    fs::write(&tensors, &bytes[..bytes.len() / 2]).unwrap();
    let end = t.run("b", &["--max-steps", "60", "--checkpoint-every", "7"]);
    let message = text(&end.stderr);
    assert!(
        end.status.success() && message.contains("is damaged") && message.contains("resumes after"),
        "{message}"
    );
    assert!(t.adapter("b") == t.adapter("whole"), "resumed from the older checkpoint, the same bits");
    let left: Vec<String> =
        fs::read_dir(&out).unwrap().flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    assert!(!left.iter().any(|n| n.contains("checkpoint")), "{left:?}");
}

fn first_ended(out: &Path) -> bool {
    out.join("manifest.json").exists()
}

#[test]
fn a_hangup_that_was_ignored_at_the_start_stays_ignored() {
    let t = Training::new();
    let args: Vec<String> = t.args("n", &STEPS).iter().map(|a| format!("'{a}'")).collect();
    for (trap, ignored) in [("trap '' HUP;", true), ("", false)] {
        let command = format!("{trap} exec '{}' {}", program().get_program().display(), args.join(" "));
        let child =
            Command::new("sh").args(["-c", &command]).stderr(Stdio::piped()).stdout(Stdio::null()).spawn();
        let child = child.unwrap();
        wait_for("training", || t.dir.path().join("n/metrics.jsonl").exists());
        let sent = Command::new("kill").args(["-HUP", &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        let end = child.wait_with_output().unwrap();
        assert_eq!(end.status.success(), ignored, "{}", text(&end.stderr));
        assert!(ignored || text(&end.stderr).contains("interrupted after step"), "{}", text(&end.stderr));
        assert_eq!(end.status.code(), Some(if ignored { 0 } else { 130 }));
        fs::remove_dir_all(t.dir.path().join("n")).unwrap();
    }
}

/// Starts a training, waits for a checkpoint after step `after` and kills it; the step of the newest checkpoint.
fn killed_after(t: &Training, out: &str, more: &[&str], after: u64) -> u64 {
    let dir = t.dir.path().join(out);
    let newest = || sdrrl::train::checkpoint::list(&dir).last().map_or(0, |(step, _)| *step);
    let mut child = t.start(out, more);
    wait_for("a checkpoint", || newest() > after || first_ended(&dir));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!first_ended(&dir), "it ended before it was killed");
    newest()
}

/// Running out of memory does not mean starting over: another token budget goes on, says so, and is remembered; other settings are refused as ever.
#[test]
fn a_training_goes_on_with_another_token_budget() {
    let t = Training::new();
    let with = |tokens: &'static str| ["--epochs", "20", "--checkpoint-every", "2", "--batch-tokens", tokens];
    let out = t.dir.path().join("r");
    let first = killed_after(&t, "r", &with("512"), 3);
    let begun = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let refused = text(&t.run("r", &[&with("64")[..], &["--lr", "0.01"]].concat()).stderr);
    assert!(refused.contains("settings.lr") && !refused.contains("batch-tokens"), "{refused}");
    let second = killed_after(&t, "r", &with("64"), first);
    let end = t.run("r", &with("1024"));
    let message = text(&end.stderr);
    assert!(end.status.success(), "{message}");
    assert!(message.contains("batch-tokens is 1024 from here on (64 before)"), "{message}");
    let manifest = super::manifest(&out);
    assert_eq!(
        manifest["summary"]["batch-tokens"],
        serde_json::json!([[0, 512], [first, 64], [second, 1024]])
    );
    assert_eq!(manifest["settings"]["batch-tokens"], 1024);
    // The log before the checkpoint is kept.
    let log = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let lines = |text: &str| text.lines().take(4).map(String::from).collect::<Vec<_>>();
    assert_eq!(lines(&log), lines(&begun));
    assert_eq!(log.lines().filter(|l| l.contains("train/loss")).count(), 400);
    // A finished result is as protected as ever.
    let refused = text(&t.run("r", &with("96")).stderr);
    assert!(refused.contains("batch-tokens") && refused.contains("--restart"), "{refused}");
}

/// What was computed with other vector instructions goes on, and it is said.
#[test]
fn another_vector_level_is_told_on_resume() {
    let t = Training::new();
    let steps = ["--epochs", "20", "--checkpoint-every", "2"];
    let out = t.dir.path().join("v");
    killed_after(&t, "v", &steps, 1);
    let checkpoints: Vec<PathBuf> =
        fs::read_dir(&out).unwrap().flatten().map(|e| e.path().join("state.json")).collect();
    let own = sdrrl::device::vectors::processor();
    for state in checkpoints.iter().filter(|p| p.exists()) {
        let body = fs::read_to_string(state).unwrap();
        assert!(body.contains(&format!("\"processor\": \"{own}\"")), "{body}");
        fs::write(state, body.replace(&format!("\"processor\": \"{own}\""), "\"processor\": \"sve+amx\""))
            .unwrap();
    }
    let end = t.run("v", &steps);
    let message = text(&end.stderr);
    assert!(end.status.success(), "{message}");
    assert!(message.contains("begun with sve+amx") && message.contains("SDRRL_VECTORS=sve"), "{message}");
    assert_eq!(super::manifest(&out)["processor"], own);
}

/// A training that makes the model worse ends with a warning or an error, and nothing of it is called the best.
#[test]
fn a_diverged_training_is_never_the_best() {
    let t = Training::new();
    let row = |i: usize, split: &str| {
        let (id, answer) = (format!("q{i}"), format!("House {i} is red."));
        format!(
            "{{\"id\": \"{id}\", \"row\": \"{id}\", \"pair\": \"S>S\", \"split\": \"{split}\", \"question_language\": \"en\", \
             \"answer_language\": \"en\", \"instruction\": \"What is house {i}?\", \"output\": \"{answer}\"}}\n"
        )
    };
    let rows: String = (0..40).map(|i| row(i, if i % 5 == 0 { "validation" } else { "train" })).collect();
    fs::write(t.at("v.jsonl"), rows).unwrap();
    ok(&["pack", "--model", MODEL, "--examples", &t.at("v.jsonl"), "--out", &t.at("kv")]);
    let train = |out: &str, shards: &str, more: &[&str]| {
        let (shards, out) = (t.at(shards), t.at(out));
        let base = ["train", "--model", MODEL, "--shards", &shards, "--out", &out, "--batch-documents", "8"];
        start(&[&base[..], more].concat()).wait_with_output().unwrap()
    };
    // Adapters at rates that wreck the model, and all weights; with validation and without.
    for (i, (shards, more)) in [
        ("kv", "--lr 20 --clip 0 --max-steps 30 --schedule constant"),
        ("kv", "--lr 0.5 --clip 0 --max-steps 30 --method full --warmup-ratio 0 --schedule constant"),
        ("kv", "--lr 0.5 --max-steps 30 --method full --warmup-ratio 0"),
        ("k", "--lr 20 --clip 0 --max-steps 60 --schedule constant"),
        ("k", "--lr 50 --max-steps 60 --method full --warmup-ratio 0 --schedule constant"),
    ]
    .into_iter()
    .enumerate()
    {
        let end = train(&format!("d{i}"), shards, &more.split_whitespace().collect::<Vec<_>>());
        let (out, message) = (text(&end.stdout), text(&end.stderr));
        assert!(!out.contains("best validation loss"), "{more}: {out}{message}");
        if end.status.success() {
            assert!(message.contains("WARNING") && message.contains("diverged"), "{more}: {out}{message}");
            let manifest = super::manifest(&t.dir.path().join(format!("d{i}")));
            assert!(manifest["summary"]["best"].is_null() && manifest["summary"]["warning"].is_string());
        } else {
            assert!(message.contains("lower the learning rate"), "{more}: {message}");
        }
    }
    // A sound one has its loss before the first step and no warning; a rate of 0 measures and is no divergence.
    for (name, lr, best) in [("good", "1e-3", true), ("zero", "0", false)] {
        let end = train(name, "kv", &["--lr", lr, "--max-steps", "8"]);
        assert!(end.status.success() && !text(&end.stderr).contains("WARNING"), "{}", text(&end.stderr));
        let out = t.dir.path().join(name);
        let first = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        let first: serde_json::Value = serde_json::from_str(first.lines().next().unwrap()).unwrap();
        assert!(first["step"] == 0 && first["eval/loss"].is_number(), "{first}");
        let summary = super::manifest(&out)["summary"].clone();
        assert_eq!(summary["validation-loss-before"], first["eval/loss"]);
        assert!(!best || summary["best"]["loss"].as_f64() < first["eval/loss"].as_f64(), "{summary}");
    }
}

/// The base under another name, and files of other programs in the folder.
#[test]
fn no_spelling_of_the_base_is_trained_into_and_foreign_files_stay() {
    let t = Training::new();
    let copy = t.dir.path().join("base");
    fs::create_dir_all(&copy).unwrap();
    for entry in fs::read_dir(MODEL).unwrap().flatten() {
        fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    std::os::unix::fs::symlink(&copy, t.dir.path().join("link")).unwrap();
    let before = fs::read(copy.join("model.safetensors")).unwrap();
    let (base, shards) = (t.at("base"), t.at("k"));
    for out in [t.at("base"), t.at("link"), t.at("link/."), t.at("k/../base"), format!("{}/", t.at("base"))] {
        for method in ["full", "lora"] {
            for more in [&[][..], &["--restart"]] {
                let args = [
                    "train",
                    "--model",
                    &base,
                    "--shards",
                    &shards,
                    "--out",
                    &out,
                    "--method",
                    method,
                    "--max-steps",
                    "1",
                ];
                let end = start(&[&args[..], more].concat()).wait_with_output().unwrap();
                let message = text(&end.stderr);
                assert!(
                    end.status.code() == Some(1) && message.contains("train into the folder of --model"),
                    "{out}: {message}"
                );
            }
        }
    }
    // Hard links of the base's files, and other programs' logs, in a folder of its own.
    let out = t.dir.path().join("own");
    fs::create_dir_all(&out).unwrap();
    let foreign = ["events.out.tfevents.1.host.2.0", "events.out.tfevents.1.host.3.0.v2", "notes.txt"];
    for name in foreign {
        fs::write(out.join(name), "mine").unwrap();
    }
    let end = t.run("own", &["--method", "full", "--max-steps", "1"]);
    assert!(end.status.success(), "{}", text(&end.stderr));
    for name in ["tokenizer.json", "model.safetensors"] {
        fs::remove_file(out.join(name)).unwrap();
        fs::hard_link(copy.join(name), out.join(name)).unwrap();
    }
    assert!(t.run("own", &["--method", "full", "--max-steps", "2", "--restart"]).status.success());
    for name in foreign {
        assert_eq!(fs::read_to_string(out.join(name)).unwrap(), "mine", "{name}");
    }
    assert!(fs::read(copy.join("model.safetensors")).unwrap() == before);
    assert!(
        fs::read(copy.join("tokenizer.json")).unwrap()
            == fs::read(format!("{MODEL}/tokenizer.json")).unwrap()
    );
}
