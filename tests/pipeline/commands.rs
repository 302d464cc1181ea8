//! Programs of others behind `translate` and `score`: what they do wrong costs no row its own translation.
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use super::{QUESTIONS, manifest, output, rows, start, wait_for};
use crate::cli::{ok, text};

fn translate<'a>(questions: &'a str, out: &'a str, command: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let base =
        ["translate", "--input", questions, "--out", out, "--target-languages", "es", "--engine", "command"];
    [&base[..], &["--command", command], more].concat()
}

/// Rows to translate, in small shards.
fn questions(dir: &Path) -> String {
    let out = dir.join("g").to_string_lossy().into_owned();
    let model = ["generate", "--model", super::MODEL, "--prompts", QUESTIONS, "--out", &out];
    ok(&[&model[..], &["--max-new-tokens", "24", "--limit", "30", "--rows-per-shard", "10"]].concat());
    out
}

#[test]
fn a_banner_is_refused_and_no_row_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let questions = questions(dir.path());
    for (i, command) in [
        "sh -c 'echo Loading model...; while IFS= read -r x; do sleep 0.002; echo \"T:$x\"; done'",
        "sh -c 'n=0; while IFS= read -r x; do n=$((n+1)); [ $n = 9 ] && echo surplus; echo \"T:$x\"; done'",
        // Found when it ends: nothing of the program's replies tells them apart.
        "sh -c 'while IFS= read -r x; do echo same; done; echo same'",
    ]
    .iter()
    .enumerate()
    {
        let out = dir.path().join(format!("t{i}"));
        let name = out.to_string_lossy().into_owned();
        let end = output(&translate(&questions, &name, command, &["--timeout", "5"]));
        let message = text(&end.stderr);
        assert!(end.status.code() == Some(1) && message.contains("gave "), "{command}: {message}");
        assert!(!out.join("manifest.json").exists());
        assert!(rows(&out).is_empty(), "{command}: rows were kept");
        // The same command with the fault mended goes on in the same folder.
        let good = "sh -c 'while IFS= read -r x; do echo \"T:$x\"; done'";
        ok(&translate(&questions, &name, good, &[]));
        for (_, bytes) in rows(&out) {
            for line in text(&bytes).lines() {
                let row: serde_json::Value = serde_json::from_str(line).unwrap();
                let translated = row["translations"]["es"]["instruction"].as_str().unwrap();
                assert!(
                    translated.starts_with("T:")
                        && translated.ends_with(row["instruction"].as_str().unwrap())
                );
            }
        }
    }
}

/// Ctrl-C at a terminal goes to the whole foreground group: the program is not in it, and what it has said is saved.
#[test]
fn ctrl_c_saves_the_chunk_and_ends_the_program() {
    let dir = tempfile::tempdir().unwrap();
    let questions = questions(dir.path());
    let out = dir.path().join("t");
    let (name, pid) = (out.to_string_lossy().into_owned(), dir.path().join("pid"));
    let command = format!(
        "sh -c 'echo $$ > {}; while IFS= read -r x; do sleep 0.02; echo \"T:$x\"; done'",
        pid.display()
    );
    let child = start(&translate(&questions, &name, &command, &[]));
    wait_for("the program", || fs::read_to_string(&pid).is_ok_and(|p| p.ends_with('\n')));
    let program = fs::read_to_string(&pid).unwrap().trim().to_string();
    let group = |pid: &str| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit_once(')').unwrap().1.split_whitespace().nth(2).unwrap().to_string()
    };
    assert_ne!(group(&program), group(&child.id().to_string()), "Ctrl-C would reach the program");
    thread::sleep(Duration::from_millis(100));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let end = child.wait_with_output().unwrap();
    assert!(!end.status.success(), "{}", text(&end.stdout));
    assert!(!text(&end.stderr).contains("ended ("), "{}", text(&end.stderr));
    let saved = fs::read_dir(&out).unwrap().flatten().any(|e| {
        let name = e.file_name().to_string_lossy().into_owned();
        name.starts_with("rows-") && e.metadata().unwrap().len() > 0
    });
    assert!(saved, "the chunk was not saved");
    wait_for("its end", || !Path::new("/proc").join(&program).exists());
    ok(&translate(&questions, &name, "sh -c 'while IFS= read -r x; do echo \"T:$x\"; done'", &[]));
}

#[test]
fn secrets_stay_and_named_variables_go() {
    let dir = tempfile::tempdir().unwrap();
    let questions = questions(dir.path());
    let seen = dir.path().join("seen");
    let command = format!("sh -c 'env > {}; cat'", seen.display());
    let name = dir.path().join("t").to_string_lossy().into_owned();
    let run = |more: &[&str]| {
        let args = translate(&questions, &name, &command, more);
        let mut program = crate::common::program();
        program.args(&args).env("HF_TOKEN", "secret").env("AWS_SECRET_ACCESS_KEY", "s").env("MT_MODEL", "m");
        let end = program.env("OMP_NUM_THREADS", "3").output().unwrap();
        assert!(end.status.success(), "{}", text(&end.stderr));
        fs::read_to_string(&seen).unwrap()
    };
    let plain = run(&[]);
    assert!(plain.contains("PATH=") && plain.contains("OMP_NUM_THREADS=3"), "{plain}");
    assert!(!plain.contains("HF_TOKEN") && !plain.contains("AWS_") && !plain.contains("MT_MODEL"), "{plain}");
    let named = run(&["--command-env", "MT_*,HF_TOKEN"]);
    assert!(
        named.contains("MT_MODEL=m") && named.contains("HF_TOKEN=secret") && !named.contains("AWS_"),
        "{named}"
    );
}

/// The program's own file, and the version that it prints, are part of what a result was made from.
#[test]
fn a_changed_program_makes_the_stage_run_again() {
    let dir = tempfile::tempdir().unwrap();
    let questions = questions(dir.path());
    let script = dir.path().join("mt.sh");
    let write = |mark: &str| {
        fs::write(&script, format!("#!/bin/sh\nwhile IFS= read -r x; do echo \"{mark}:$x\"; done\n"))
            .unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    };
    let name = dir.path().join("t").to_string_lossy().into_owned();
    let script_name = script.to_string_lossy().into_owned();
    let log = dir.path().join("log").to_string_lossy().into_owned();
    for command in [
        script_name.clone(),
        format!("sh {script_name} {{target}} 2>> {log}"),
        format!("cat|sh '{script_name}'|tee {log}"),
    ] {
        write("A");
        let args = translate(&questions, &name, &command, &[]);
        ok(&args);
        assert!(ok(&args).contains("unchanged"), "{command}");
        write("B");
        let message = text(&output(&args).stderr);
        assert!(
            message.contains("the command:") && message.contains("mt.sh changed"),
            "{command}: {message}"
        );
    }
    let version = dir.path().join("version");
    fs::write(&version, "1\n").unwrap();
    let ask = format!("cat {}", version.display());
    let args = translate(&questions, &name, &script_name, &["--version-command", &ask]);
    ok(&args);
    assert!(ok(&args).contains("unchanged"));
    fs::write(&version, "2\n").unwrap();
    let message = text(&output(&args).stderr);
    assert!(message.contains("command-version: \"1\" -> \"2\""), "{message}");
    assert_eq!(manifest(&dir.path().join("t"))["settings"]["command-version"], "2");
}

/// Rows through a pipe.
#[test]
fn standard_input_is_read_where_rows_are() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let examples: String = (0..12)
        .map(|i| format!("{{\"instruction\": \"What is {i}?\", \"output\": \"A house.\"}}\n"))
        .collect();
    fs::write(at("stdin.jsonl"), &examples).unwrap();
    let piped = |args: &[&str], input: &str| {
        let mut command = crate::common::program();
        let file = fs::File::open(input).unwrap();
        let end = command.args(args).stdin(Stdio::from(file)).output().unwrap();
        assert!(end.status.success(), "{args:?}: {}", text(&end.stderr));
        text(&end.stdout)
    };
    let pack = |examples: &str, out: &str| -> Vec<String> {
        ["pack", "--model", super::MODEL, "--examples", examples, "--out", out].map(String::from).to_vec()
    };
    let run =
        |args: Vec<String>, input: &str| piped(&args.iter().map(String::as_str).collect::<Vec<_>>(), input);
    run(pack(&at("stdin.jsonl"), &at("k1")), &at("stdin.jsonl"));
    run(pack("-", &at("k2")), &at("stdin.jsonl"));
    assert_eq!(
        fs::read(at("k1/train.tokens")).unwrap().len(),
        fs::read(at("k2/train.tokens")).unwrap().len()
    );
    assert!(
        run(pack("-", &at("k2")), &at("stdin.jsonl")).contains("unchanged"),
        "the same bytes are the same input"
    );
    // Rows of this program: one file of them, through four stages.
    let questions = questions(dir.path());
    let shard = format!("{questions}/rows-00000.jsonl");
    let phrases = super::PHRASES;
    let stage = |name: &str, out: &str, more: &[&str], input: &str| {
        let base = [name, "--input", "-", "--out", out, "--target-languages", "es"];
        piped(&[&base[..], more].concat(), input)
    };
    stage("translate", &at("t"), &["--file", phrases], &shard);
    stage("score", &at("s"), &["--file", phrases], &at("t/rows-00000.jsonl"));
    stage("filter", &at("f"), &[], &at("s/rows-00000.jsonl"));
    stage("code-switch", &at("c"), &["--dictionary", phrases], &at("f/rows-00000.jsonl"));
    stage("assemble", &at("a"), &[], &at("c/rows-00000.jsonl"));
    let plain =
        ["translate", "--input", &shard, "--out", &at("t0"), "--target-languages", "es", "--file", phrases];
    ok(&plain);
    assert_eq!(rows(Path::new(&at("t"))), rows(Path::new(&at("t0"))));
    assert_eq!(manifest(Path::new(&at("c")))["rows"], 10);
    assert!(piped(&["inspect", "-"], &at("t/rows-00000.jsonl")).contains("10 rows"));
}
