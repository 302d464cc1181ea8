//! The promises of the stage engine: parts and runs started at once, settings changed between kills, locks, identity, output that nobody reads.
mod aligned;
mod commands;
mod foreign;
mod gold;
mod guard;
mod kills;
mod losses;
mod one_stage;
mod outputs;
mod own_stage;
mod samples;
mod training;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use sdrrl::pipeline::{
    identity::{Identity, Inputs},
    manifest::{Counts, Manifest},
    stage::{self, Made, Open, Ran, Stage},
};
use serde_json::{Value, json};

use crate::{
    cli::{fails, ok, text},
    common::program,
};

const MODEL: &str = "assets/quickstart/model";
const QUESTIONS: &str = "assets/quickstart/world/questions.en.jsonl";
const PHRASES: &str = "assets/quickstart/world/phrases.en-es.tsv";

fn start(args: &[&str]) -> Child {
    let mut command = program();
    command.args(args).env("NO_COLOR", "1").env("RAYON_NUM_THREADS", "1");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn output(args: &[&str]) -> Output {
    start(args).wait_with_output().unwrap()
}

fn manifest(dir: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(dir.join("manifest.json")).unwrap()).unwrap()
}

/// The bytes of a folder's rows and of nothing else.
fn rows(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .flatten()
        .map(|e| (e.file_name().to_string_lossy().into_owned(), e.path()))
        .filter(|(name, _)| name.ends_with(".jsonl"))
        .map(|(name, path)| (name, fs::read(path).unwrap()))
        .collect();
    files.sort();
    files
}

/// No lock, partial or pending file is left.
fn assert_clean(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        assert!(!name.contains("lock") && !name.contains("partial") && !name.contains("pending"), "{name}");
    }
}

#[track_caller]
fn wait_for(what: &str, ready: impl Fn() -> bool) {
    let begun = Instant::now();
    while !ready() {
        assert!(begun.elapsed() < Duration::from_secs(120), "{what} did not come");
        thread::sleep(Duration::from_millis(5));
    }
}

fn generate<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let base = ["generate", "--model", MODEL, "--prompts", QUESTIONS, "--out", out, "--max-new-tokens", "4"];
    [&base[..], &["--limit", "60", "--rows-per-shard", "5"], more].concat()
}

/// Eight parts, started together on a fresh folder, several times: no question is lost.
#[test]
fn eight_parts_at_once_give_every_row() {
    parts_at_once(4);
}

fn parts_at_once(rounds: usize) {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    ok(&generate(&whole.to_string_lossy(), &[]));
    for round in 0..rounds {
        let out = dir.path().join(format!("parts-{round}"));
        let name = out.to_string_lossy().into_owned();
        let parts: Vec<String> = (1..=8).map(|k| format!("{k}/8")).collect();
        let children: Vec<Child> =
            parts.iter().map(|part| start(&generate(&name, &["--part", part]))).collect();
        for child in children {
            let out = child.wait_with_output().unwrap();
            assert!(out.status.success(), "round {round}: {}", text(&out.stderr));
        }
        assert_eq!(manifest(&out)["counts"], json!({"read": 60, "written": 60, "dropped": {}}));
        assert_eq!(manifest(&out.join("questions"))["rows"], 60);
        assert_eq!(rows(&out), rows(&whole), "round {round}");
        assert_clean(&out);
    }
}

/// Two equal runs at the same instant: one is refused by name or finds the work done, and the end is the undisturbed one.
#[test]
fn two_runs_at_once_end_as_one() {
    runs_at_once(2);
}

fn runs_at_once(rounds: usize) {
    let dir = tempfile::tempdir().unwrap();
    let args = |work: &Path| -> Vec<String> {
        let sets = [
            &format!("work={}", work.display()),
            "generate.limit=60",
            "rows-per-shard=16",
            "train.max-steps=3",
            "variants=[\"sft\"]",
            "eval.bootstrap-samples=10",
        ];
        let sets = sets.iter().flat_map(|kv| ["--set".to_string(), kv.to_string()]);
        ["run", "recipes/quickstart.toml"].map(String::from).into_iter().chain(sets).collect()
    };
    let run = |work: &Path| {
        let args = args(work);
        start(&args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let whole = dir.path().join("whole");
    assert!(run(&whole).wait_with_output().unwrap().status.success());
    for round in 0..rounds {
        let work = dir.path().join(format!("two-{round}"));
        let ends = [run(&work), run(&work)].map(|c| c.wait_with_output().unwrap());
        assert!(
            ends.iter().any(|e| e.status.success()),
            "{}{}",
            text(&ends[0].stderr),
            text(&ends[1].stderr)
        );
        for end in ends.iter().filter(|e| !e.status.success()) {
            assert!(text(&end.stderr).contains("is being written by process"), "{}", text(&end.stderr));
            assert_eq!(end.status.code(), Some(75));
        }
        for stage in ["questions", "generate", "translate", "filter", "assemble-sft"] {
            assert_eq!(rows(&work.join(stage)), rows(&whole.join(stage)), "round {round}: {stage}");
        }
        let adapter = |work: &Path| fs::read(work.join("train-sft/adapter_model.safetensors")).unwrap();
        assert!(adapter(&work) == adapter(&whole), "round {round}");
        assert_clean(&work);
    }
}

/// Two files, with a failure between them on demand: a kill stands still where an error does.
struct TwoFiles<'a> {
    out: &'a Path,
    setting: &'a str,
    fail_between: bool,
    /// What it says came in; it writes 2.
    read: usize,
}

impl Stage for TwoFiles<'_> {
    const NAME: &'static str = "two-files";
    const FILES: &'static [&'static str] = &["*.txt"];

    fn out(&self) -> &Path {
        self.out
    }

    fn identity(&self) -> anyhow::Result<Identity> {
        Identity::of(&json!({"setting": self.setting}))
    }

    fn inputs(&self) -> anyhow::Result<Inputs> {
        Ok(Inputs::new())
    }

    fn run(&mut self, open: &mut Open) -> anyhow::Result<Made> {
        open.write("a.txt", self.setting.as_bytes())?;
        anyhow::ensure!(!self.fail_between, "killed");
        if self.setting != "short" {
            open.write("b.txt", self.setting.as_bytes())?;
        }
        Ok(Made::new(Value::Null)?.counting(Counts { read: self.read, written: 2, ..Counts::default() }))
    }
}

fn two_files(out: &Path, setting: &str, fail_between: bool) -> anyhow::Result<Ran> {
    stage::run(&mut TwoFiles { out, setting, fail_between, read: 2 })
}

#[test]
fn other_settings_that_were_killed_between_two_files_are_never_taken_for_finished() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let read = |name: &str| fs::read_to_string(out.join(name)).ok();
    assert_eq!(two_files(&out, "A", false).unwrap(), Ran::Made);
    assert!(two_files(&out, "B", true).is_err());
    assert_eq!(two_files(&out, "A", false).unwrap(), Ran::Made, "B's file was there");
    assert_eq!((read("a.txt"), read("b.txt")), (Some("A".into()), Some("A".into())));
    assert_eq!(two_files(&out, "A", false).unwrap(), Ran::Unchanged);
    // What other settings made and these do not goes, whether those had finished or not.
    for killed in [false, true] {
        let _ = two_files(&out, "A", false);
        assert_eq!(two_files(&out, "B", killed).is_err(), killed);
        two_files(&out, "short", false).unwrap();
        assert_eq!((read("a.txt"), read("b.txt")), (Some("short".into()), None), "{killed}");
    }
}

/// What killed processes left half-written goes, wherever in a stage they were killed: while it begins, works or ends, of whatever file.
#[test]
fn what_killed_processes_left_in_a_folder_goes_with_the_next_run() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let mut gone = std::process::Command::new("true").spawn().unwrap();
    gone.wait().unwrap();
    let plant = || {
        for name in ["manifest.pending.json", "manifest.json", "a.txt", "b.txt", "old.safetensors"] {
            let partial = format!("{name}.{}-{}-5.partial", host.trim(), gone.id());
            fs::write(out.join(partial), "half").unwrap();
        }
        fs::write(out.join("b.txt.elsewhere-1-5.partial"), "another machine's").unwrap();
    };
    let assert_swept = |when: &str| {
        fs::remove_file(out.join("b.txt.elsewhere-1-5.partial")).unwrap_or_else(|e| panic!("{when}: {e}"));
        assert_clean(&out);
    };
    // Work was begun; other work was killed while it wrote that it begins; the first goes on.
    assert!(two_files(&out, "A", true).is_err());
    plant();
    assert_eq!(two_files(&out, "A", false).unwrap(), Ran::Made);
    assert_swept("made");
    // Nothing is to be done.
    plant();
    assert_eq!(two_files(&out, "A", false).unwrap(), Ran::Unchanged);
    assert_swept("unchanged");
    // Killed between the manifest and the removal of the note that work was begun.
    let pending = fs::read(out.join("manifest.json")).unwrap();
    fs::write(out.join("manifest.pending.json"), pending).unwrap();
    plant();
    assert_eq!(two_files(&out, "A", false).unwrap(), Ran::Unchanged);
    assert_swept("ended");
    // Other settings.
    plant();
    assert_eq!(two_files(&out, "B", false).unwrap(), Ran::Made);
    assert_swept("made anew");
}

#[test]
fn foreign_files_and_counts_that_do_not_add_up_end_a_stage() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("b.txt"), "mine").unwrap();
    let error = format!("{:#}", two_files(dir.path(), "A", false).unwrap_err());
    assert!(error.contains("holds b.txt") && error.contains("two-files did not write it"), "{error}");
    assert_eq!(fs::read_to_string(dir.path().join("b.txt")).unwrap(), "mine");
    assert_clean(dir.path());
    let out = dir.path().join("out");
    let mut lossy = TwoFiles { out: &out, setting: "A", fail_between: false, read: 3 };
    let error = format!("{:#}", stage::run(&mut lossy).unwrap_err());
    assert!(error.contains("3 came in, but 2 came out and 0 were dropped"), "{error}");
    assert!(Manifest::load(&out).unwrap().is_none());
}

/// A stage, the folder of its manifest, its command line, and options that decide only its speed.
type Case = (&'static str, PathBuf, Vec<String>, Vec<&'static str>);

/// Every stage that computes with a model, in `dir`.
fn computing_stages(dir: &Path) -> Vec<Case> {
    let at = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let write = |name: &str, text: &str| fs::write(dir.join(name), text).unwrap();
    write("en.txt", "I see a duck.\nThe baker is in the city.\nA red house.\n");
    write("es.txt", "Veo un pato.\nEl panadero está en la ciudad.\nUna casa roja.\n");
    let task = "[[tasks]]\nname = \"ppl\"\nkind = \"perplexity\"\nlanguage = \"es\"\n";
    write("tasks.toml", &format!("{task}file = \"{}\"\n", at("es.txt")));
    write("examples.jsonl", &"{\"instruction\": \"What is red?\", \"output\": \"A house.\"}\n".repeat(12));
    ok(&["pack", "--model", MODEL, "--examples", &at("examples.jsonl"), "--out", &at("k")]);
    let case = |stage: &'static str, folder: &str, options: String, speed: &'static str| {
        let (out, _) = folder.split_once('/').unwrap_or((folder, ""));
        let line = format!("{stage} --model {MODEL} --out {} {options}", at(out));
        let args = line.split_whitespace().map(String::from).collect();
        (stage, dir.join(folder), args, speed.split_whitespace().collect())
    };
    let (g, k, en, es, tasks) = (at("g"), at("k"), at("en.txt"), at("es.txt"), at("tasks.toml"));
    let short = "--max-new-tokens 4";
    let batches = "--batch-tokens 77 --batch-rows 2";
    vec![
        case("generate", "g", format!("--prompts {QUESTIONS} --limit 3 {short}"), batches),
        case(
            "translate",
            "t",
            format!("--input {g} --target-languages es --engine self {short}"),
            "--batch-tokens 77 --batch-rows 2 --timeout 3",
        ),
        case("train", "l", format!("--shards {k} --max-steps 2 --restart"), "--checkpoint-every 1"),
        case("align", "a", format!("--source {en} --target {es} --target-language es"), ""),
        case("eval", "e/ppl", format!("--tasks {tasks}"), ""),
    ]
}

/// What decides bytes makes a stage run again, what decides only speed does not; cuda:0 and cuda:1 are one kind.
#[test]
fn every_stage_has_the_same_rule_of_identity() {
    let dir = tempfile::tempdir().unwrap();
    for (stage, folder, args, speed) in computing_stages(dir.path()) {
        let with = |more: &[&str]| {
            output(&args.iter().map(String::as_str).chain(more.iter().copied()).collect::<Vec<_>>())
        };
        let first = with(&[]);
        assert!(first.status.success(), "{stage}: {}", text(&first.stderr));
        assert!(text(&with(&speed).stdout).contains("unchanged"), "{stage}: speed counts");
        let made = with(&["--dtype", "bf16"]);
        assert!(made.status.success() && !text(&made.stdout).contains(": unchanged, skipped"), "{stage}");
        let message = text(&made.stderr);
        assert!(message.contains("placement: \"f32\" -> \"bf16\""), "{stage}: {message}");
        // As a GPU would have left it: found unchanged from any other GPU, without opening one.
        let path = folder.join("manifest.json");
        let of_gpu = fs::read_to_string(&path).unwrap().replace("\"bf16\"", "\"bf16, cuda\"");
        fs::write(&path, of_gpu).unwrap();
        for device in ["cuda", "cuda:0", "cuda:1"] {
            let out = with(&["--dtype", "bf16", "--device", device]);
            assert!(text(&out.stdout).contains("unchanged"), "{stage} {device}: {}", text(&out.stderr));
        }
        let cpu = with(&["--dtype", "bf16"]);
        assert!(text(&cpu.stderr).contains("\"bf16, cuda\" -> \"bf16\""), "{stage}: {}", text(&cpu.stderr));
    }
}

/// A change of a model's small files is told in words, and makes stages that read them run again.
#[test]
fn a_changed_template_is_said_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (dir.path().join("model"), dir.path().join("k"));
    fs::create_dir_all(&model).unwrap();
    for entry in fs::read_dir(MODEL).unwrap().flatten() {
        fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
    }
    fs::write(dir.path().join("e.jsonl"), "{\"instruction\": \"What is red?\", \"output\": \"A house.\"}\n")
        .unwrap();
    fs::write(dir.path().join("t.jinja"), "{% for m in messages %}{{ m.content }}{% endfor %}").unwrap();
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let (examples, template) = (at("e.jsonl"), at("t.jinja"));
    let (model_name, out_name) = (model.to_string_lossy().into_owned(), out.to_string_lossy().into_owned());
    let args = ["pack", "--model", &model_name, "--examples", &examples, "--out", &out_name];
    ok(&args);
    assert!(ok(&args).contains("unchanged, skipped"));
    let config = model.join("tokenizer_config.json");
    let old = fs::read_to_string(&config).unwrap_or_else(|_| "{}".into());
    fs::write(&config, format!("{old}\n")).unwrap();
    let message = text(&output(&args).stderr);
    assert!(
        message.contains("tokenizer_config.json of the model") && message.contains("changed"),
        "{message}"
    );
    let own = [&args[..], &["--template", &template]].concat();
    ok(&own);
    assert!(ok(&own).contains("unchanged, skipped"));
    fs::write(&template, "{% for m in messages %}{{ m.content }} {% endfor %}").unwrap();
    let message = text(&output(&own).stderr);
    assert!(message.contains("chat template changed"), "{message}");
}

/// A part whose rows were removed behind the engine's back is noticed by the next stage.
#[test]
fn rows_that_are_missing_are_noticed_by_who_reads_them() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("g");
    let name = out.to_string_lossy().into_owned();
    ok(&generate(&name, &[]));
    fs::remove_file(out.join("rows-00003.jsonl")).unwrap();
    let to = dir.path().join("t").to_string_lossy().into_owned();
    fails(
        &["translate", "--input", &name, "--out", &to, "--target-languages", "es", "--file", PHRASES],
        &["holds 55 rows, but stage generate wrote 60"],
    );
}
