//! Every objective, and rows that are packed on the fly, by several ranks on emulated GPUs (as tests/distributed.rs has them).
use std::{
    fs,
    path::Path,
    process::{Child, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    cli::{ok, text},
    common::program,
    distributed::{nccl, numbers, start_ranks},
};

const MODEL: &str = "assets/quickstart/model";

/// Token shards of few rows for an objective.
struct Work {
    dir: tempfile::TempDir,
    objective: Vec<String>,
}

/// A pair, and one the other way round.
fn pairs(n: usize, first: usize) -> String {
    let things = ["the red house", "a blue river", "green", "the lamp of the sea", "stone", "a small bird"];
    let row = |i: usize| {
        let thing = things[(first + i) % things.len()];
        let row =
            json!({"prompt": format!("{thing}?"), "chosen": format!("{thing} is a lamp"), "rejected": "no"});
        format!("{row}\n")
    };
    (0..n).map(row).collect()
}

/// What `assemble` writes of some rows: questions in a target language with an answer there, and an answer in the source language to show; and rows for a guard.
fn examples(train: usize) -> String {
    let things = ["la casa roja", "un río azul", "verde", "piedra", "un pájaro", "el mar"];
    let line = |row: usize, pair: &str, language: &str, split: &str, question: &str, answer: &str| {
        let example = json!({"id": format!("r{row}/{pair}"), "row": format!("r{row}"), "pair": pair, "split": split, "question_language": language,
            "answer_language": language, "instruction": question, "output": answer});
        format!("{example}\n")
    };
    let rows = (0..train + 2).map(|i| {
        let split = if i < train { "train" } else { "validation" };
        let thing = things[i % things.len()];
        line(i, "S>S", "en", split, "Who?", "a lamp")
            + &line(i, "T>T", "es", split, &format!("¿{thing}?"), &format!("{thing} brilla"))
    });
    rows.collect::<String>() + &line(99, "S>S", "en", "source", "Who is she?", "the sea")
}

impl Work {
    /// Shards `rows` of `text`, and what is given to `train` with them.
    fn new(rows: &str, text: &str, objective: &[&str]) -> Work {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        fs::write(at("rows.jsonl"), text).unwrap();
        let (file, held_out, out) = (at("rows.jsonl"), at("held-out.jsonl"), at("shards"));
        let mut pack = vec!["pack", "--model", MODEL, "--examples", &file, "--rows", rows, "--out", &out];
        if ["questions", "taught"].contains(&rows) {
            pack.extend(["--teacher-prompt", "turns"]);
        } else {
            fs::write(&held_out, pairs(3, 2)).unwrap();
            pack.extend(["--validation", &held_out]);
        }
        ok(&pack);
        Work { dir, objective: objective.iter().map(|s| s.to_string()).collect() }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn args(&self, out: &str, more: &[&str]) -> Vec<String> {
        let (shards, out) = (self.path("shards"), self.path(out));
        let mut args = vec!["train", "--model", MODEL, "--out", &out, "--device", "emulated"];
        args.extend(["--lora-rank", "2", "--lora-targets", "q_proj", "--batch-documents", "4"]);
        let usual = [("--batch-tokens", "96"), ("--lr", "0.01"), ("--epochs", "1"), ("--shards", &shards)];
        let packs = more.contains(&"--data");
        let left = |name: &str| !(more.contains(&name) || name == "--shards" && packs);
        args.extend(usual.iter().filter(|(name, _)| left(name)).flat_map(|(name, value)| [*name, *value]));
        args.extend(more);
        args.into_iter().map(String::from).chain(self.objective.iter().cloned()).collect()
    }

    fn start(&self, out: &str, ranks: usize, more: &[&str], variables: &[(&str, &str)]) -> Vec<Child> {
        start_ranks(&vec![self.args(out, more); ranks], variables)
    }

    /// Adapter, metrics and manifest of `ranks` that all end well; all but the first say nothing.
    #[track_caller]
    fn trained(&self, out: &str, ranks: usize, more: &[&str]) -> [String; 3] {
        for (rank, end) in ends(self.start(out, ranks, more, &[])).iter().enumerate() {
            let said = [text(&end.stdout), text(&end.stderr)];
            assert!(end.status.success(), "rank {rank} of {ranks}: {said:?}");
            assert!(rank == 0 || said.iter().all(String::is_empty), "{said:?}");
        }
        self.result(out)
    }

    fn result(&self, out: &str) -> [String; 3] {
        ["adapter_model.safetensors", "metrics.jsonl", "manifest.json"].map(|name| {
            let bytes = fs::read(self.dir.path().join(out).join(name)).unwrap();
            bytes.iter().map(|b| char::from(*b)).collect()
        })
    }

    /// The same bytes from 1 rank and each of `ranks` in fixed order, and nearly the same from three otherwise.
    #[track_caller]
    fn same(&self, ranks: &[usize], more: &[&str]) -> [String; 3] {
        let fixed = [&["--reduce", "fixed"], more].concat();
        let one = self.trained("fixed-1", 1, &fixed);
        assert!(one[1].contains("eval/loss"), "{}", one[1]);
        for &n in ranks {
            let many = self.trained(&format!("fixed-{n}"), n, &fixed);
            assert_eq!(one[1], many[1], "{n} ranks");
            assert!(one == many, "adapter or manifest of {n} ranks");
        }
        let sum = self.trained("sum-3", 3, more);
        let [a, b] = [&one[1], &sum[1]].map(|metrics| numbers(metrics));
        assert!(a.len() > 10 && a.len() == b.len());
        for ((tag, x), (other, y)) in a.iter().zip(&b) {
            // Rewards are differences of log-probabilities of whole replies.
            let least = if tag.contains("/rewards/") { 1.0 } else { 1e-3 };
            assert!(tag == other && (x - y).abs() <= 1e-6 * x.abs().max(least), "{tag}: {x} and {y}");
        }
        assert!(sum[2].contains("\"ranks\": 3"), "{}", sum[2]);
        one
    }
}

fn ends(ranks: Vec<Child>) -> Vec<Output> {
    ranks.into_iter().map(|c| c.wait_with_output().unwrap()).collect()
}

#[test]
fn pairs_are_compared_by_any_number_of_ranks() {
    let work = Work::new("pairs", &pairs(5, 0), &["--objective", "dpo"]);
    // The last step of an epoch has one pair, so that all ranks but one have none.
    let one = work.same(&[4], &["--lora-dropout", "0.1"]);
    assert!(one[1].contains("train/rewards/margins") && one[1].contains("eval/rewards/accuracies"));
    let logps = |out: &str| fs::read(work.dir.path().join(out).join("reference/logps.jsonl")).unwrap();
    assert!(logps("fixed-1") == logps("fixed-4"), "the reference of four ranks");
}

#[test]
fn odds_are_compared_by_any_number_of_ranks_which_stop_together() {
    let mut work = Work::new("pairs", &pairs(5, 0), &["--objective", "orpo"]);
    work.same(&[3], &[]);
    work.objective.extend(["--patience", "1", "--eval-every", "1"].map(String::from));
    let args = ["--reduce", "fixed", "--epochs", "5", "--min-delta", "9.0"];
    let early = work.trained("early-1", 1, &args);
    assert!(early == work.trained("early-2", 2, &args));
    let steps = early[1].matches("train/loss").count();
    assert!((1..10).contains(&steps), "{steps} steps");
}

#[test]
fn single_judgements_share_one_estimate_over_any_number_of_ranks() {
    let work = Work::new("labels", &pairs(3, 0), &["--objective", "kto"]);
    let one = work.same(&[2], &[]);
    assert!(one[1].contains("train/kl") && one[1].contains("eval/kl"), "{}", one[1]);
}

#[test]
fn answers_do_not_depend_on_which_rank_draws_them() {
    let objective = ["--objective", "on-policy", "--max-new-tokens", "6"];
    let work = Work::new("questions", &examples(5), &objective);
    let one = work.same(&[2, 4], &["--guard", "stop", "--guard-max-rise", "5"]);
    assert!(one[1].contains("train/answer_tokens") && one[1].contains("eval/source_loss"), "{}", one[1]);
}

#[test]
fn a_teachers_likeliest_tokens_reach_every_rank() {
    let objective = ["--objective", "top-k", "--top-k-logits", "5", "--cross-entropy-weight", "0.3"];
    let work = Work::new("taught", &examples(5), &objective);
    work.same(&[4], &["--normalize", "sentences"]);
    for file in ["train.logprobs", "validation.logprobs", "manifest.json"] {
        let of = |out: &str| fs::read(work.dir.path().join(out).join("teacher").join(file)).unwrap();
        assert!(of("fixed-1") == of("fixed-4"), "{file}");
    }
    // What was said is read again by the first, which tells the other.
    fs::create_dir(work.dir.path().join("kept")).unwrap();
    fs::rename(work.dir.path().join("fixed-1/teacher"), work.dir.path().join("kept/teacher")).unwrap();
    let kept = work.trained("kept", 2, &["--reduce", "fixed", "--normalize", "sentences"]);
    assert!(work.result("fixed-4") == kept);
}

/// Until the log of a training has a step.
fn wait_for_a_step(out: &Path) {
    let until = Instant::now() + Duration::from_secs(120);
    while !fs::read_to_string(out.join("metrics.jsonl")).is_ok_and(|t| t.contains("train/loss")) {
        assert!(Instant::now() < until, "no step");
        sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_rank_that_dies_while_answers_are_drawn_is_named_and_others_go_on() {
    let objective = ["--objective", "on-policy", "--max-new-tokens", "60"];
    let work = Work::new("questions", &examples(4), &objective);
    let how = "--reduce fixed --checkpoint-every 1 --eval-every 3 --epochs 3 --batch-tokens 256";
    let args: Vec<&str> = how.split(' ').collect();
    let whole = work.trained("whole", 1, &args);
    let mut ranks = work.start("killed", 2, &args, &[("SDRRL_RANK_TIMEOUT", "60")]);
    wait_for_a_step(&work.dir.path().join("killed"));
    // The second step begins with drawing.
    ranks[1].kill().unwrap();
    let since = Instant::now();
    let done = ends(ranks);
    assert!(since.elapsed() < Duration::from_secs(40), "{:?}", since.elapsed());
    let said: String = done.iter().map(|end| text(&end.stderr)).collect();
    assert!(done.iter().all(|end| !end.status.success()), "{said}");
    assert!(said.matches("error: ").count() == 1, "{said}");
    assert!(said.contains("error: rank 1 of 2 on ") && said.contains("after step "), "{said}");
    assert!(whole == work.trained("killed", 3, &args), "three ranks do not go on as one began");
}

#[test]
fn a_rank_that_dies_before_the_first_step_ends_all() {
    let work = Work::new("pairs", &pairs(5, 0), &["--objective", "dpo"]);
    let fault = [("SDRRL_REHEARSAL_NCCL", "die:1:3")];
    let done = ends(work.start("out", 2, &["--reduce", "fixed"], &fault));
    let said: String = done.iter().map(|end| text(&end.stderr)).collect();
    assert!(done.iter().all(|end| !end.status.success()), "{said}");
    assert!(said.contains("error: rank 1 of 2 on ") && said.matches("error: ").count() == 1, "{said}");
    let reference = work.dir.path().join("out/reference");
    assert!(!reference.join("manifest.json").exists(), "no reference was finished");
    work.trained("out", 2, &["--reduce", "fixed"]);
    assert!(reference.join("manifest.json").exists());
}

#[test]
fn rows_are_packed_by_every_rank_and_compared() {
    let work = Work::new("pairs", &pairs(8, 0), &["--objective", "dpo"]);
    let rows = work.path("rows.jsonl");
    let data = ["--data", &rows, "--reduce", "fixed", "--validation", "0.3"];
    let one = work.trained("one", 1, &data);
    let temporary = tempfile::tempdir().unwrap();
    let place = temporary.path().display().to_string();
    for end in ends(work.start("two", 2, &data, &[("TMPDIR", &place)])) {
        assert!(end.status.success(), "{}", text(&end.stderr));
    }
    assert!(one == work.result("two"));
    assert_eq!(fs::read_dir(&place).unwrap().count(), 0, "a rank left its shards");
    // Other rows on the second rank.
    fs::write(work.path("other.jsonl"), pairs(8, 1)).unwrap();
    let other = work.path("other.jsonl");
    let second = work.args("other", &["--data", &other, "--reduce", "fixed", "--validation", "0.3"]);
    let done = ends(start_ranks(&[work.args("other", &data), second], &[]));
    let said: String = done.iter().map(|end| text(&end.stderr)).collect();
    assert!(done.iter().all(|end| !end.status.success()), "{said}");
    assert!(said.contains("rank 1 on ") && said.contains("rank 0 in the token shards"), "{said}");
    assert!(!work.dir.path().join("other/metrics.jsonl").exists() && !said.contains("step"), "{said}");
    let read = ends(work.start("read", 2, &["--data", "-", "--reduce", "fixed"], &[]));
    assert!(text(&read[0].stderr).contains("standard input has one reader"), "{}", text(&read[0].stderr));
}

/// One process packs, also what comes on its standard input, and starts the ranks.
#[test]
fn several_devices_train_on_rows_of_one_reader() {
    let work = Work::new("pairs", &pairs(8, 0), &["--objective", "dpo"]);
    let rows = work.path("rows.jsonl");
    let one = work.trained("one", 1, &["--data", &rows, "--reduce", "fixed"]);
    let args = work.args("two", &["--data", "-", "--reduce", "fixed"]);
    let several = args.iter().map(|a| if a == "emulated" { "emulated:0-1" } else { a });
    let mut command = program();
    command.args(several).env("SDRRL_NCCL", nccl()).env("RAYON_NUM_THREADS", "1");
    command.stdin(fs::File::open(&rows).unwrap()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let end = command.output().unwrap();
    assert!(end.status.success(), "{}", text(&end.stderr));
    // Rows are named after their file, which standard input has not.
    assert!(one[..2] == work.result("two")[..2]);
    assert_eq!(text(&end.stdout).matches("pack: train:").count(), 1, "{}", text(&end.stdout));
}

#[test]
fn a_recipe_learns_by_preferences_and_by_its_own_answers_on_several_devices() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    fs::write(at("pairs.jsonl"), pairs(6, 0)).unwrap();
    fs::write(at("examples.jsonl"), examples(5)).unwrap();
    for (rows, train, pack) in [
        ("pairs", "objective = \"dpo\"", ""),
        ("examples", "objective = \"on-policy\"\nmax-new-tokens = 4", "[pack]\nteacher-prompt = \"turns\""),
    ] {
        let recipe = format!(
            "name = \"several\"\nmodel = \"{MODEL}\"\nexamples = \"{}\"\nwork = \"w\"\ntarget-languages = [\"es\"]\n{pack}\n[train]\n{train}\n\
             lora-rank = 2\nlora-targets = [\"q_proj\"]\nbatch-documents = 4\nbatch-tokens = 96\nepochs = 1\nreduce = \"fixed\"\n",
            at(&format!("{rows}.jsonl"))
        );
        fs::write(at("r.toml"), recipe).unwrap();
        let run = |device: &str, work: &str| {
            let (device, work) = (format!("device={device}"), format!("work={}", at(work)));
            let mut command = program();
            command.args(["run", &at("r.toml"), "--set", &device, "--set", &work]);
            let end = command.env("SDRRL_NCCL", nccl()).env("RAYON_NUM_THREADS", "1").output().unwrap();
            assert!(end.status.success(), "{}", text(&end.stderr));
            text(&end.stdout)
        };
        let (one, two) = (format!("{rows}-1"), format!("{rows}-2"));
        run("emulated", &one);
        run("emulated:0-1", &two);
        for name in ["adapter_model.safetensors", "metrics.jsonl", "manifest.json"] {
            let of = |work: &str| fs::read(dir.path().join(work).join("train").join(name)).unwrap();
            assert!(of(&one) == of(&two), "{rows}: {name}");
        }
        let clock = fs::read_to_string(dir.path().join(&two).join("train/timing.jsonl")).unwrap();
        let first: Value = serde_json::from_str(clock.lines().next().unwrap()).unwrap();
        assert_eq!(rows == "examples", first["answer-tokens"].is_u64(), "{clock}");
    }
}
