//! The first hour of a new user, by commands: own rows to an adapter, a conversation, a recipe whose last stage has a mistake. (`tests/serve.rs` is the one
//! with a client.)
use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};

use crate::{
    cli::{failed, fails, ok, text},
    common::program,
};

const MODEL: &str = "assets/quickstart/model";

/// Conversations of the quickstart's world, as someone would have them.
fn chat_file(path: &Path, rows: usize) {
    let questions = fs::read_to_string("assets/quickstart/world/questions.en.jsonl").unwrap();
    let mut out = String::new();
    for line in questions.lines().take(rows) {
        let row: Value = serde_json::from_str(line).unwrap();
        let messages = json!([{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]);
        out += &format!("{}\n", json!({ "messages": messages }));
    }
    fs::write(path, out).unwrap();
}

fn both(args: &[&str]) -> (String, String) {
    let out = program().args(args).output().unwrap();
    assert!(out.status.success(), "{args:?}: {}", text(&out.stderr));
    (text(&out.stdout), text(&out.stderr))
}

/// What `input` makes of a command.
fn with_input(args: &[&str], input: &str) -> Output {
    let mut child = program()
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// The page of that training.
fn check_page(path: &Path) {
    let page = fs::read_to_string(path).unwrap();
    for part in [
        "UTC",
        "sdrrl 0.",
        "logical cores",
        "tokens/s",
        "validation loss before",
        "after step",
        "Training loss",
        "Validation loss",
        "Gradient norm",
        "tokens per second",
        "MiB of the process",
        "rows read</dt><dd>80",
        "lora-rank = 4",
        "sdrrl chat --model assets/quickstart/model --adapter",
    ] {
        assert!(page.contains(part), "{part} is not in the page");
    }
}

#[test]
fn own_rows_become_an_adapter_by_one_command() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    chat_file(&dir.path().join("chat.jsonl"), 80);
    let (data, out) = (at("chat.jsonl"), at("out"));
    let train = [
        "train",
        "--model",
        MODEL,
        "--data",
        &data,
        "--out",
        &out,
        "--learning-rate",
        "0.004",
        "--lora_r",
        "4",
    ];
    let (told, progress) = both(&train);
    for part in [
        "validation loss",
        "before",
        "after (step",
        "tokens/s",
        "peak memory",
        "page:  ",
        "next:  sdrrl chat --model assets/quickstart/model --adapter",
    ] {
        assert!(told.contains(part), "{part} is not in {told}");
    }
    assert!(progress.contains("step 1/"), "{progress}");
    let manifest: Value =
        serde_json::from_str(&fs::read_to_string(dir.path().join("out/manifest.json")).unwrap()).unwrap();
    let (before, after) =
        (&manifest["summary"]["validation-loss-before"], &manifest["summary"]["best"]["loss"]);
    assert!(after.as_f64().unwrap() < before.as_f64().unwrap(), "{before} {after}");
    let settings = &manifest["settings"];
    assert_eq!((&settings["lora-rank"], &settings["batch-documents"]), (&json!(4), &json!(7)));
    let metrics = fs::read_to_string(dir.path().join("out/metrics.jsonl")).unwrap();
    assert!(!metrics.contains("\"train/learning_rate\":0.0,"), "no step is at a learning rate of 0");
    // PEFT's files, and the held-out share.
    let config: Value =
        serde_json::from_str(&fs::read_to_string(dir.path().join("out/adapter_config.json")).unwrap())
            .unwrap();
    assert_eq!((&config["peft_type"], &config["r"]), (&json!("LORA"), &json!(4)));
    let pack: Value =
        serde_json::from_str(&fs::read_to_string(dir.path().join("out/pack/manifest.json")).unwrap())
            .unwrap();
    let documents = |split: &str| pack["summary"][split]["documents"].as_u64().unwrap();
    assert!(documents("validation") >= 4 && documents("train") + documents("validation") == 80, "{pack}");
    check_page(&dir.path().join("out/training.html"));
    assert!(ok(&train).contains("train: unchanged, skipped"));
}

#[test]
fn packing_and_training_by_hand_give_the_same_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    chat_file(&dir.path().join("chat.jsonl"), 80);
    let (data, out) = (at("chat.jsonl"), at("out"));
    ok(&["train", "--model", MODEL, "--data", &data, "--out", &out, "--lr", "0.004", "--lora-rank", "4"]);
    let (hand, shards) = (at("hand"), at("shards"));
    ok(&["pack", "--model", MODEL, "--examples", &data, "--validation", "0.05", "--out", &shards]);
    assert_eq!(
        fs::read(dir.path().join("shards/train.tokens")).unwrap(),
        fs::read(dir.path().join("out/pack/train.tokens")).unwrap()
    );
    let settings =
        ["--lr", "0.004", "--lora-rank", "4", "--batch-documents", "7", "--warmup-above-zero", "--quiet"];
    let by_hand = [&["train", "--model", MODEL, "--shards", &shards, "--out", &hand], &settings[..]].concat();
    let (_, progress) = both(&by_hand);
    assert!(!progress.contains("step "), "--quiet: {progress}");
    let adapter = "adapter_model.safetensors";
    assert_eq!(
        fs::read(dir.path().join("hand").join(adapter)).unwrap(),
        fs::read(dir.path().join("out").join(adapter)).unwrap()
    );
    // A file of other rows to validate on.
    chat_file(&dir.path().join("held.jsonl"), 5);
    let (other, held) = (at("other"), at("held.jsonl"));
    let more =
        ["--validation", &held, "--max-steps", "2", "--lora-targets", "all-linear", "--dtype", "bfloat16"];
    ok(&[&["train", "--model", MODEL, "--data", &data, "--out", &other], &more[..]].concat());
    let pack: Value =
        serde_json::from_str(&fs::read_to_string(dir.path().join("other/pack/manifest.json")).unwrap())
            .unwrap();
    assert_eq!(
        (&pack["summary"]["train"]["documents"], &pack["summary"]["validation"]["documents"]),
        (&json!(80), &json!(5))
    );
}

#[test]
fn small_sets_are_warned_of_and_resume_is_for_what_was_begun() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    chat_file(&dir.path().join("chat.jsonl"), 9);
    let (data, out) = (at("chat.jsonl"), at("out"));
    let train = ["train", "--model", MODEL, "--data", &data, "--out", &out];
    fails(&[&train[..], &["--resume"]].concat(), &["--resume", "holds no checkpoint", "leave --resume out"]);
    let (_, progress) = both(&train);
    assert!(
        progress.contains("WARNING: 8 documents give 24 steps in all") && progress.contains("--epochs 4"),
        "{progress}"
    );
    assert!(ok(&[&train[..], &["--resume"]].concat()).contains("unchanged"));
    // A row that cannot be learnt is named; nothing else is left.
    fs::write(dir.path().join("bad.jsonl"), "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}\n")
        .unwrap();
    let (bad, other) = (at("bad.jsonl"), at("bad"));
    fails(&["train", "--model", MODEL, "--data", &bad, "--out", &other], &["bad.jsonl"]);
    // How rows are packed goes with rows.
    fails(
        &["train", "--model", MODEL, "--shards", &at("out/pack"), "--max-length", "9", "--out", &other],
        &["--max-length", "goes with --data"],
    );
}

#[test]
fn a_conversation_has_a_history_commands_and_sides() {
    let dir = tempfile::tempdir().unwrap();
    chat_file(&dir.path().join("chat.jsonl"), 30);
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let (data, out) = (at("chat.jsonl"), at("adapter"));
    ok(&[
        "train",
        "--model",
        MODEL,
        "--data",
        &data,
        "--out",
        &out,
        "--lr",
        "0.01",
        "--max-steps",
        "20",
        "--quiet",
    ]);
    let ask = ["--max-new-tokens", "12"];
    let base = [&["chat", "--model", MODEL], &ask[..]].concat();
    let question = "What is the pet of Polol?";
    let alone = ok(&[&["generate", "--model", MODEL, "--prompt", question], &ask[..]].concat());
    let said =
        text(&with_input(&base, &format!("{question}\n/history\n/reset\n/history\n{question}\n")).stdout);
    let history = format!("you: {question}\nmodel: {alone}");
    assert_eq!(said, format!("{alone}{history}{alone}"), "asked, told again, forgotten, asked anew");
    let system = text(
        &with_input(&base, &format!("/system Be kind.\n/history\n/system\n/history\n{question}\n")).stdout,
    );
    assert_eq!(system, format!("system: Be kind.\n{alone}"));
    let wrong = with_input(&base, "/no-such\n/exit\nnever said\n");
    assert!(wrong.status.success() && wrong.stdout.is_empty());
    assert!(text(&wrong.stderr).contains("/no-such is no command here: /help"), "{}", text(&wrong.stderr));
    let with_adapter = [&base[..], &["--adapter", &out]].concat();
    let sides = text(&with_input(&with_adapter, &format!("{question}\n")).stdout);
    let adapted =
        ok(&[&["generate", "--model", MODEL, "--adapter", &out, "--prompt", question], &ask[..]].concat());
    assert_eq!(sides, format!("── model\n{alone}── {out}\n{adapted}"));
    // A conversation that has grown too long is taken back by one question; the next goes on.
    let small = [&base[..], &["--context", "24"]].concat();
    let long = with_input(&small, &format!("{}\nHi\n", "word ".repeat(60)));
    assert!(
        long.status.success() && text(&long.stderr).contains("with its reply it may have 24"),
        "{}",
        text(&long.stderr)
    );
    assert!(!long.stdout.is_empty());
}

#[test]
fn in_a_terminal_there_is_a_prompt() {
    let question = "What is the pet of Polol?";
    let alone = ok(&["generate", "--model", MODEL, "--prompt", question, "--max-new-tokens", "12"]);
    let line = format!("{} chat --model {MODEL} --max-new-tokens 12", program().get_program().display());
    let mut script = Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    script.stdin.take().unwrap().write_all(format!("{question}\n/exit\n").as_bytes()).unwrap();
    let shown = text(&script.wait_with_output().unwrap().stdout);
    assert!(
        shown.contains("/help lists the commands") && shown.contains("> ") && shown.contains(alone.trim()),
        "{shown}"
    );
}

#[test]
fn generate_prints_answers_and_rows_for_other_programs() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("q.jsonl");
    fs::write(
        &file,
        "{\"instruction\": \"What is the pet of Polol?\"}\n{\"instruction\": \"And?\", \"note\": 1}\n",
    )
    .unwrap();
    let ask = ["generate", "--model", MODEL, "--max-new-tokens", "8"];
    let rows =
        program().args(ask).args(["--prompts", file.to_str().unwrap(), "--out", "-"]).output().unwrap();
    assert!(rows.status.success(), "{}", text(&rows.stderr));
    let all: Vec<Value> =
        text(&rows.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(all.len(), 2, "nothing but rows: {}", text(&rows.stdout));
    let two = ok(&[&ask[..], &["--prompt", "What is the pet of Polol?", "--prompt", "And?"]].concat());
    let texts: Vec<&str> = all.iter().map(|r| r["answer"]["text"].as_str().unwrap()).collect();
    assert_eq!(two.lines().collect::<Vec<_>>(), texts);
    let piped = with_input(&[&ask[..], &["--prompt", "-"]].concat(), "What is the pet of Polol?\n");
    assert_eq!(text(&piped.stdout).trim_end(), texts[0]);
}

#[test]
fn a_mistake_in_the_last_stage_is_found_before_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let work = dir.path().join("work");
    let set = format!("work={}", work.display());
    let recipe = "recipes/quickstart.toml";
    let wrong = "eval.tasks=[{name=\"t\",kind=\"qa\",language=\"es\",file=\"no-such.jsonl\"}]";
    let args = ["run", recipe, "--set", &set, "--set", wrong];
    fails(&args, &["recipes/quickstart.toml", "task t", "no-such.jsonl"]);
    assert!(!work.exists(), "nothing was begun");
    // Several at once, each in a line.
    let more = ["--set", "target-languages=[\"xx\"]", "--set", "model=no/such", "--check"];
    fails(&[&args[..], &more].concat(), &["mistakes:", "no-such.jsonl", "`xx`", "no/such"]);
    let told = ok(&["run", recipe, "--set", &set, "--check"]);
    assert!(told.contains("no mistakes found") && told.contains("\ntime: "), "{told}");
    for (stage, is) in [
        ("generate", "questions of about"),
        ("filter", "short: text only"),
        ("train", "steps, fewer if it stops early"),
    ] {
        let line = told.lines().find(|l| l.starts_with(stage)).unwrap_or_else(|| panic!("{stage}: {told}"));
        assert!(line.contains(is), "{line}");
    }
    // What another program takes is not made up.
    let other = ["--set", "translate.engine=\"command\"", "--set", "translate.command=\"cat\"", "--check"];
    let told = ok(&[&["run", recipe, "--set", &set][..], &other].concat());
    assert!(told.contains("not known: another program translates"), "{told}");
    assert!(told.contains("and what translate will take, which is not known"), "{told}");
    assert!(!work.exists());
}

#[test]
fn a_dry_run_tells_what_is_unchanged_and_what_is_made_again_and_why() {
    let dir = tempfile::tempdir().unwrap();
    let work = format!("work={}", dir.path().join("w").display());
    let mut run = vec!["run", "recipes/quickstart.toml"];
    for set in
        [&work, "generate.limit=40", "train.max-steps=2", "variants=[\"sdrrl\"]", "eval.bootstrap-samples=20"]
    {
        run.extend(["--set", set]);
    }
    let plan = |more: &[&str]| ok(&[&run[..], &["--dry-run"], more].concat());
    let before = plan(&[]);
    assert!(before.lines().count() >= 10 && before.lines().all(|l| l.contains("will run  (")), "{before}");
    assert!(!dir.path().join("w").exists(), "a plan writes nothing");
    ok(&run);
    let after = plan(&[]);
    assert_eq!(after.lines().count(), before.lines().count());
    assert!(after.lines().all(|l| l.contains(" unchanged  (")), "{after}");
    let changed = plan(&["--set", "pack.max-length=40"]);
    let line = |stage: &str| {
        changed.lines().find(|l| l.starts_with(stage)).unwrap_or_else(|| panic!("{stage}: {changed}"))
    };
    assert!(line("filter").contains("unchanged") && line("assemble").contains("unchanged"));
    assert!(line("pack").contains("will run again: settings.max-length: 512 -> 40"), "{changed}");
    assert!(line("train").contains("will run again: the token shards will change"), "{changed}");
    assert!(line("eval-base").contains("unchanged") && line("eval-sdrrl").contains("run again"), "{changed}");
}

#[test]
fn a_recipe_finds_its_files_beside_itself_and_knows_other_names() {
    let dir = tempfile::tempdir().unwrap();
    chat_file(&dir.path().join("chat.jsonl"), 12);
    let work = dir.path().join("w");
    let recipe = dir.path().join("r.toml");
    let text = format!(
        "name = \"r\"\nwork = {work:?}\nmodel = \"{MODEL}\"\nexamples = \"chat.jsonl\"\ndtype = \"float32\"\n[train]\nlearning_rate = 0.002\nlora-r = 2\nmax_steps = 2\n"
    );
    fs::write(&recipe, &text).unwrap();
    let path = recipe.to_str().unwrap();
    ok(&["run", path, "--set", "train.num-epochs=1"]);
    let manifest: Value =
        serde_json::from_str(&fs::read_to_string(work.join("train/manifest.json")).unwrap()).unwrap();
    assert_eq!((&manifest["settings"]["lr"], &manifest["settings"]["lora-rank"]), (&json!(0.002), &json!(2)));
    assert_eq!(manifest["settings"]["epochs"], json!(1.0));
    let out = program().args(["run", path, "--set", "train.learning-rate=-1"]).output().unwrap();
    failed(&out, &[], &["train.lr is -1", "was expected"]);
    fs::write(&recipe, text.replace("float32", "fp16")).unwrap();
    fails(&["run", path], &["fp16", "bf16 takes as much memory"]);
}
