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
    assert!(message.contains("no stage wrote it"), "{message}");
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
        end.status.success() && message.contains("is damaged") && message.contains("goes on after"),
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
