//! Training by several ranks on emulated GPUs, through the calls of NCCL: kernels/emulator/driver/libnccl.cpp sums over shared memory, counts, and has planted faults.
use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::OnceLock,
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{cli::text, common::program};

/// The folder of the rehearsal's libnccl.so.2, built once.
pub(crate) fn nccl() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let out = Command::new("scripts/rehearsal_nccl.sh").output().unwrap();
        assert!(out.status.success(), "{}", text(&out.stderr));
        fs::canonicalize("target/rehearsal").unwrap()
    })
}

/// Starts the program with each of `ranks` as a rank of torchrun.
pub(crate) fn start_ranks(ranks: &[Vec<String>], variables: &[(&str, &str)]) -> Vec<Child> {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let size = ranks.len().to_string();
    let start = |(rank, args): (usize, &Vec<String>)| {
        let rank = rank.to_string();
        let mut command = program();
        command.args(args);
        if size != "1" {
            let place = [
                ("RANK", rank.as_str()),
                ("LOCAL_RANK", &rank),
                ("WORLD_SIZE", &size),
                ("MASTER_ADDR", "127.0.0.1"),
                ("MASTER_PORT", &port),
            ];
            command.envs(place);
        }
        command.env("SDRRL_NCCL", nccl()).env("SDRRL_RANK_TIMEOUT", "120");
        command.env("RAYON_NUM_THREADS", "1").env("NO_COLOR", "1").envs(variables.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    ranks.iter().enumerate().map(start).collect()
}

/// Of every training here.
pub(crate) const COMMON: [&str; 9] = [
    "train",
    "--model",
    "assets/quickstart/model",
    "--lora-rank",
    "2",
    "--lora-targets",
    "q_proj",
    "--batch-documents",
    "4",
];

/// Shards of five short documents, of which two are a step's; the last step of an epoch has one.
pub(crate) struct Work {
    pub(crate) dir: tempfile::TempDir,
}

impl Work {
    pub(crate) fn new() -> Work {
        let dir = tempfile::tempdir().unwrap();
        let rows = ["the red house", "a blue river", "green", "the lamp of the sea", "stone"];
        let row = |(i, x): (usize, &&str)| {
            format!("{{\"id\": \"{i}\", \"question\": \"{x}?\", \"answer\": \"{x} is a lamp\"}}\n")
        };
        fs::write(dir.path().join("rows.jsonl"), rows.iter().enumerate().map(row).collect::<String>())
            .unwrap();
        fs::write(
            dir.path().join("held-out.jsonl"),
            rows[1..3].iter().enumerate().map(row).collect::<String>(),
        )
        .unwrap();
        let work = Work { dir };
        work.pack("shards", "40");
        work
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn pack(&self, out: &str, max_length: &str) {
        let args = [
            "pack",
            "--model",
            "assets/quickstart/model",
            "--examples",
            &self.path("rows.jsonl"),
            "--validation",
            &self.path("held-out.jsonl"),
            "--max-length",
            max_length,
        ];
        let done = program().args(args).args(["--out", &self.path(out)]).output().unwrap();
        assert!(done.status.success(), "{}", text(&done.stderr));
    }

    /// Starts ranks, each with its own arguments behind the common ones.
    pub(crate) fn start(&self, out: &str, own: &[&[&str]], variables: &[(&str, &str)]) -> Vec<Child> {
        let (shards, out) = (self.path("shards"), self.path(out));
        let args = |own: &&[&str]| -> Vec<String> {
            let usual = [("--epochs", "1"), ("--device", "emulated"), ("--shards", &shards)];
            let left = usual.iter().filter(|(name, _)| !own.contains(name)).flat_map(|(name, x)| [*name, x]);
            let common = COMMON.iter().copied().chain(["--batch-tokens", "40", "--out", &out]);
            common.chain(left).chain(own.iter().copied()).map(String::from).collect()
        };
        start_ranks(&own.iter().map(args).collect::<Vec<_>>(), variables)
    }

    pub(crate) fn run(&self, out: &str, own: &[&[&str]], variables: &[(&str, &str)]) -> Vec<Output> {
        self.start(out, own, variables).into_iter().map(|c| c.wait_with_output().unwrap()).collect()
    }

    /// Adapter and metrics of `ranks` that all end well; all but the first say nothing.
    #[track_caller]
    pub(crate) fn trained(
        &self,
        out: &str,
        ranks: usize,
        args: &[&str],
        variables: &[(&str, &str)],
    ) -> (Vec<u8>, String) {
        let done = self.run(out, &vec![args; ranks], variables);
        for (rank, end) in done.iter().enumerate() {
            assert!(
                end.status.success(),
                "rank {rank} of {ranks}: {}{}",
                text(&end.stdout),
                text(&end.stderr)
            );
            assert!(rank == 0 || end.stdout.is_empty() && end.stderr.is_empty(), "{}", text(&end.stderr));
        }
        self.result(out)
    }

    pub(crate) fn result(&self, out: &str) -> (Vec<u8>, String) {
        let folder = self.dir.path().join(out);
        (
            fs::read(folder.join("adapter_model.safetensors")).unwrap(),
            fs::read_to_string(folder.join("metrics.jsonl")).unwrap(),
        )
    }

    /// Ranks that all fail: what they say altogether.
    #[track_caller]
    pub(crate) fn failed(&self, own: &[&[&str]], variables: &[(&str, &str)]) -> String {
        let done = self.run("failed", own, variables);
        assert!(done.iter().all(|end| !end.status.success()), "{done:?}");
        done.iter().map(|end| text(&end.stderr)).collect()
    }
}

/// The numbers of metrics.jsonl by step and tag.
pub(crate) fn numbers(metrics: &str) -> Vec<(String, f64)> {
    let lines = metrics.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let of = |line: Value| {
        let step = line["step"].clone();
        let map = line.as_object().unwrap().clone();
        map.into_iter()
            .map(move |(tag, x)| (format!("{step} {tag}"), x.as_f64().unwrap()))
            .collect::<Vec<_>>()
    };
    lines.flat_map(of).collect()
}

/// What NCCL summed: in each of two steps every gradient of the adapter, once, in f32, and nothing else.
fn counted(log: &str, ranks: usize, adapter: &[u8]) {
    let adapter = safetensors::SafeTensors::deserialize(adapter).unwrap();
    let bytes: usize = adapter.tensors().iter().map(|(_, t)| 4 * t.shape().iter().product::<usize>()).sum();
    let text = fs::read_to_string(log).unwrap();
    assert_eq!(text.lines().count(), ranks);
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["all_reduce"], serde_json::json!([2 * adapter.len(), 2 * bytes]), "{line}");
    }
}

/// The numbers of two trainings differ by no more than the share `tolerance`.
#[track_caller]
pub(crate) fn within(a: &str, b: &str, tolerance: f64) {
    let (a, b) = (numbers(a), numbers(b));
    assert!(a.len() > 10 && a.len() == b.len());
    for ((tag, x), (other, y)) in a.iter().zip(&b) {
        assert!(tag == other && (x - y).abs() <= tolerance * x.abs().max(1e-3), "{tag}: {x} and {y}");
    }
}

#[track_caller]
fn close(a: &str, b: &str) {
    within(a, b, 1e-6);
}

#[test]
fn any_number_of_ranks_trains_the_same_bits_in_fixed_order_and_nearly_the_same_otherwise() {
    let work = Work::new();
    let fixed = ["--reduce", "fixed"];
    let one = work.trained("fixed-1", 1, &fixed, &[]);
    assert!(one.0.len() > 100 && one.1.contains("eval/loss"), "{}", one.1);
    let manifest = |out: &str| {
        let text = fs::read_to_string(work.dir.path().join(out).join("manifest.json")).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()
    };
    for ranks in [2, 4, 8] {
        let out = format!("fixed-{ranks}");
        assert!(one == work.trained(&out, ranks, &fixed, &[]), "{ranks} ranks");
        assert_eq!(manifest("fixed-1"), manifest(&out));
    }
    let alone = work.trained("sum-1", 1, &[], &[]);
    // In the last step of one document, all ranks but one have none; of eight half never have any.
    for ranks in [3, 8] {
        let (out, log) = (format!("sum-of-{ranks}"), work.path(&format!("nccl-{ranks}")));
        let done = work.trained(&out, ranks, &[], &[("SDRRL_REHEARSAL_NCCL_LOG", &log)]);
        close(&alone.1, &done.1);
        counted(&log, ranks, &done.0);
        assert_eq!(manifest(&out)["settings"]["ranks"], ranks);
    }
    close(&alone.1, &one.1);
    // Nothing is left to do, on all of them.
    assert!(text(&work.run("fixed-2", &[&fixed, &fixed], &[])[0].stdout).contains("unchanged"));
}

#[test]
fn a_rank_that_dies_hangs_or_calls_something_else_ends_all_and_training_goes_on_with_others() {
    let work = Work::new();
    let fixed = ["--reduce", "fixed", "--checkpoint-every", "1"];
    let whole = work.trained("whole", 2, &fixed, &[]);
    for (fault, patience, parts) in [
        ("die:1:50", "120", ["error: rank 1 of 2 on", "gone without a word"]),
        ("hang:1:50", "6", ["error: rank 0 of 2 on", "wait for each other in NCCL for more than 6 s"]),
        ("stop:1:50", "6", ["error: rank 1 of 2 on", "has not been heard of for 6 s"]),
        ("count:1:50", "120", ["error: rank ", "invalid usage"]),
    ] {
        let variables = [("SDRRL_REHEARSAL_NCCL", fault), ("SDRRL_RANK_TIMEOUT", patience)];
        let mut ranks = work.start(fault, &[&fixed, &fixed], &variables);
        let mut second = ranks.pop().unwrap();
        let first = ranks.pop().unwrap().wait_with_output().unwrap();
        if fault.starts_with("stop") {
            second.kill().unwrap();
        }
        let ends = [first, second.wait_with_output().unwrap()];
        assert!(ends.iter().all(|end| !end.status.success()), "{fault}: {ends:?}");
        let said: String = ends.iter().map(|end| text(&end.stderr)).collect();
        assert!(
            parts.iter().all(|p| said.contains(p)) && said.matches("error: ").count() == 1,
            "{fault}: {said}"
        );
        // By one rank alone, from where they were.
        assert!(whole == work.trained(fault, 1, &fixed, &[]), "{fault}");
    }
}

#[test]
fn a_signal_to_any_rank_ends_all_after_a_checkpoint_that_others_resume() {
    let work = Work::new();
    let args = ["--reduce", "fixed", "--epochs", "2"];
    let whole = work.trained("whole", 1, &args, &[]);
    // Its second step takes two seconds more.
    let ranks = work.start("stopped", &[&args, &args], &[("SDRRL_REHEARSAL_NCCL", "late:1:50")]);
    let metrics = work.dir.path().join("stopped/metrics.jsonl");
    let until = Instant::now() + Duration::from_secs(120);
    while !fs::read_to_string(&metrics).is_ok_and(|text| text.contains("train/loss"))
        && Instant::now() < until
    {
        sleep(Duration::from_millis(20));
    }
    let second = rustix::process::Pid::from_raw(ranks[1].id() as i32).unwrap();
    // A scheduler and a launcher may both say it.
    for _ in 0..2 {
        rustix::process::kill_process(second, rustix::process::Signal::TERM).unwrap();
        sleep(Duration::from_millis(50));
    }
    let ends: Vec<Output> = ranks.into_iter().map(|c| c.wait_with_output().unwrap()).collect();
    assert!(ends.iter().all(|end| end.status.code() == Some(130)), "{ends:?}");
    assert!(text(&ends[0].stderr).contains("a checkpoint is in") && ends[1].stderr.is_empty(), "{ends:?}");
    assert!(whole == work.trained("stopped", 1, &args, &[]));
}

#[test]
fn ranks_that_do_not_belong_together_are_named_before_anything_is_trained() {
    let work = Work::new();
    work.pack("other", "20");
    let other = ["--shards", &work.path("other")];
    let said = work.failed(&[&[], &other, &["--lr", "0.5"]], &[]);
    for part in ["rank 1 on", "rank 0 in the token shards", "rank 2 on", "settings.lr", "0.5"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let none_left = || assert!(!work.dir.path().join("failed").exists(), "something was begun");
    none_left();
    let none = work.failed(&[&[], &[]], &[("SDRRL_NCCL", "no-such-file")]);
    assert!(none.contains("NCCL cannot be opened") && none.contains("SDRRL_NCCL"), "{none}");
    let cpu = work.failed(&[&["--device", "cpu"], &["--device", "cpu"]], &[]);
    assert!(cpu.contains("several ranks train on GPUs, over NCCL: use --device cuda"), "{cpu}");
    none_left();
    // What was there stays: a finished training that is to be replaced, or one that was interrupted.
    let there = |out: &str| {
        let entries = fs::read_dir(work.dir.path().join(out)).unwrap().flatten();
        let mut all: Vec<_> =
            entries.map(|e| (e.file_name(), fs::read(e.path()).unwrap_or_default())).collect();
        all.sort();
        all
    };
    work.trained("failed", 1, &["--lr", "0.1"], &[]);
    let finished = there("failed");
    work.failed(&[&["--restart"], &["--restart", "--lr", "0.5"]], &[]);
    assert!(finished == there("failed"), "a finished training was touched");
    // The second never comes.
    let mut alone = work.start("alone", &[&[], &[]], &[("SDRRL_RANK_TIMEOUT", "1")]);
    alone[1].kill().unwrap();
    let said: Vec<Output> = alone.into_iter().map(|c| c.wait_with_output().unwrap()).collect();
    let said = text(&said[0].stderr);
    assert!(
        said.contains("of 2 ranks, 1 did not come to 127.0.0.1") || said.contains("rank 1 of 2"),
        "{said}"
    );
    assert!(!work.dir.path().join("alone").exists());
}
