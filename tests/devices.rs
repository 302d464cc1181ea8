//! `--device` with several devices, in `generate`, `translate`, `score` and `eval`: one, two and three emulated GPUs give the same bytes, no row is computed twice, and
//! what was written is kept whatever ends a run. A device that fails is one of the rehearsal's two GPUs (tests/rehearsal.rs).
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    cli::{failed, failed_with, ok, text},
    common::program,
    nllb::place_with_model,
    rehearsal::on,
};

const MODEL: &str = "assets/quickstart/model";
const QUESTIONS: &str = "assets/quickstart/world/questions.en.jsonl";
const PHRASES: &str = "assets/quickstart/world/phrases.en-es.tsv";
const KIWI: &str = "tests/golden/cometkiwi/model";

/// Every file of a folder but those that hold times.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut out = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            out.extend(contents(&path));
        } else if !entry.file_name().to_string_lossy().starts_with("timing") {
            out.insert(path.clone(), fs::read(path).unwrap());
        }
    }
    out
}

#[track_caller]
fn assert_equal(a: &Path, b: &Path) {
    let inside = |dir: &Path| -> BTreeMap<PathBuf, Vec<u8>> {
        contents(dir).into_iter().map(|(p, bytes)| (p.strip_prefix(dir).unwrap().into(), bytes)).collect()
    };
    let (left, right) = (inside(a), inside(b));
    assert_eq!(left.keys().collect::<Vec<_>>(), right.keys().collect::<Vec<_>>());
    for (name, bytes) in &left {
        assert!(*bytes == right[name], "{} of {} and {} differ", name.display(), a.display(), b.display());
    }
}

fn start(args: &[&str], more: &[&str]) -> Child {
    let mut command = program();
    command.args(args).args(more).env("NO_COLOR", "1").env("RAYON_NUM_THREADS", "1");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// The chunks that were computed: how many, how many rows they have together, and on which devices.
fn computed(trace: &Path) -> (usize, u64, BTreeSet<String>) {
    let events: Vec<Value> = serde_json::from_str(&fs::read_to_string(trace).unwrap()).unwrap();
    let found: Vec<&Value> =
        events.iter().filter(|e| e["ph"] == "B" && e["name"] == "compute").map(|e| &e["args"]).collect();
    let devices = found.iter().filter_map(|args| args["device"].as_str()).map(String::from).collect();
    (found.len(), found.iter().filter_map(|args| args["rows"].as_u64()).sum(), devices)
}

/// The command on one, two and three emulated devices, into folders in `dir`: the same bytes, as many chunks, at least `chunks`, of `rows` rows together, and work for each
/// device.
#[track_caller]
fn same_on_any_number(dir: &Path, args: &[&str], chunks: usize, rows: u64) {
    let (one, mut alone) = (dir.join("1"), None);
    for (n, device) in [(1, "emulated"), (2, "emulated:0-1"), (3, "emulated:0,3-4")] {
        let (out, trace) = (dir.join(n.to_string()), dir.join(format!("{n}.trace")));
        let own = ["--device", device, "--out", out.to_str().unwrap()];
        let done = [&["--trace", trace.to_str().unwrap()][..], args, &own].concat();
        ok(&done);
        let (found, of, devices) = computed(&trace);
        assert!(found >= chunks, "{found} chunks");
        assert_eq!((found, of), (*alone.get_or_insert(found), rows), "{device}");
        let all = [
            vec![],
            vec![],
            vec!["emulated:0", "emulated:1"],
            vec!["emulated:0", "emulated:3", "emulated:4"],
        ];
        assert_eq!(devices, all[n].iter().map(|s| s.to_string()).collect(), "{device}");
        assert_equal(&one, &out);
        // Another number of devices is no other work.
        let again = ok(&[args, &["--device", "emulated:0-5", "--out", out.to_str().unwrap()]].concat());
        assert!(again.contains("unchanged, skipped"), "{again}");
    }
}

const GENERATE: &[&str] = &[
    "generate",
    "--model",
    MODEL,
    "--prompts",
    QUESTIONS,
    "--max-new-tokens",
    "4",
    "--batch-rows",
    "1",
    "--rows-per-shard",
    "3",
];

#[test]
fn generate_gives_the_same_bytes_on_any_number_of_devices() {
    let dir = tempfile::tempdir().unwrap();
    // Drawn answers and chosen ones, in a text file and in shards.
    let how = ["--limit", "12", "--temperature", "0.8", "--samples", "2"];
    same_on_any_number(dir.path(), &[GENERATE, &how].concat(), 8, 12);
    let file = |device: &str| {
        let out = dir.path().join(format!("{device}.jsonl"));
        ok(&[GENERATE, &how, &["--device", device, "--out", out.to_str().unwrap()]].concat());
        fs::read(out).unwrap()
    };
    assert!(file("emulated") == file("emulated:0-1"));
}

/// Rows with questions and answers in shards of two.
fn answered(dir: &Path, rows: usize) -> String {
    let out = dir.join("answered").to_string_lossy().into_owned();
    let limit = rows.to_string();
    let cut = ["--limit", &limit, "--max-new-tokens", "6", "--rows-per-shard", "2", "--out", &out];
    ok(&[&["generate", "--model", MODEL, "--prompts", QUESTIONS][..], &cut].concat());
    out
}

#[test]
fn translate_gives_the_same_bytes_on_any_number_of_devices() {
    let dir = place_with_model();
    let (rows, nllb) = (answered(dir.path(), 8), dir.path().join("nllb"));
    let base = ["translate", "--input", &rows, "--target-languages", "cs,da"];
    let engine = ["--engine", "nllb", "--translator", nllb.to_str().unwrap(), "--num-beams", "2"];
    same_on_any_number(dir.path(), &[&base[..], &engine, &["--max-length", "6"]].concat(), 4, 8);
    let own = dir.path().join("self");
    fs::create_dir(&own).unwrap();
    let engine = ["--engine", "self", "--model", MODEL, "--max-new-tokens", "3"];
    same_on_any_number(&own, &[&base[..3], &["--target-languages", "es"], &engine].concat(), 4, 8);
}

#[test]
fn score_gives_the_same_bytes_on_any_number_of_devices() {
    let dir = tempfile::tempdir().unwrap();
    let (rows, translated) = (answered(dir.path(), 8), dir.path().join("es").to_string_lossy().into_owned());
    let base = ["--target-languages", "es", "--engine"];
    let from = ["dictionary", "--file", PHRASES, "--input", &rows, "--out", &translated];
    ok(&[&["translate"][..], &base, &from].concat());
    let engine = ["cometkiwi", "--model", KIWI, "--input", &translated];
    same_on_any_number(dir.path(), &[&["score"][..], &base, &engine].concat(), 4, 8);
}

#[test]
fn eval_gives_the_same_bytes_on_any_number_of_devices() {
    let dir = tempfile::tempdir().unwrap();
    let tasks = r#"
batch-rows = 1
batch-tokens = 4
bootstrap-samples = 10
[[tasks]]
name = "mkqa"
kind = "mkqa"
language = "es"
file = "tests/golden/metrics/mkqa_sample.jsonl.gz"
max-new-tokens = 2
limit = 6
[[tasks]]
name = "text"
kind = "perplexity"
language = "es"
file = "tests/golden/lm_eval/text.txt"
limit = 3
[[tasks]]
name = "exams"
kind = "multiple-choice"
choices = "texts"
language = "en"
file = "tests/golden/lm_eval/exams.jsonl"
limit = 3
"#;
    let file = dir.path().join("tasks.toml");
    fs::write(&file, tasks).unwrap();
    let args = ["eval", "--model", MODEL, "--tasks", file.to_str().unwrap()];
    same_on_any_number(dir.path(), &args, 4, 12);
}

/// Rows that are in the folder's shards, finished or not.
fn kept(dir: &Path) -> usize {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let rows = |entry: fs::DirEntry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let counts = name.starts_with("rows-") && (name.ends_with(".jsonl") || name.ends_with(".partial"));
        if counts {
            fs::read(entry.path()).map_or(0, |b| b.iter().filter(|b| **b == b'\n').count())
        } else {
            0
        }
    };
    entries.flatten().map(rows).sum()
}

/// Starts the command, and lets `end` end it once some rows are written.
fn ended(args: &[&str], out: &Path, end: impl Fn(&mut Child)) -> Output {
    let mut child = start(args, &["--out", out.to_str().unwrap()]);
    let begun = Instant::now();
    while kept(out) < 4 {
        assert!(begun.elapsed() < Duration::from_secs(300), "no row came");
        sleep(Duration::from_millis(2));
    }
    end(&mut child);
    child.wait_with_output().unwrap()
}

#[test]
fn a_run_that_was_killed_or_stopped_goes_on_with_another_number_of_devices() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let how = [GENERATE, &["--limit", "40", "--device"]].concat();
    let run = |device: &str, out: &Path| ok(&[&how[..], &[device, "--out", out.to_str().unwrap()]].concat());
    // The alarms of all rows, whenever they were answered.
    let alarms = |told: String| told.split_once("rows/s; ").unwrap().1.lines().next().unwrap().to_string();
    let whole = alarms(run("emulated", &at("whole")));
    assert!(whole.contains("truncated"), "{whole}");
    let several = [&how[..], &["emulated:0-1"]].concat();
    let killed = ended(&several, &at("killed"), |child| child.kill().unwrap());
    assert!(!killed.status.success());
    let rows = kept(&at("killed"));
    assert!((4..40).contains(&rows), "{rows}");
    assert_eq!(alarms(run("emulated:0-2", &at("killed"))), whole);
    assert_equal(&at("whole"), &at("killed"));
    let stopped = ended(&several, &at("stopped"), |child| {
        let done = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        assert!(done.success());
    });
    failed_with(130, &stopped, &several, &["stopped at row", "run the same command again to resume"]);
    let rows = kept(&at("stopped"));
    assert!((4..40).contains(&rows), "{rows}");
    run("emulated", &at("stopped"));
    assert_equal(&at("whole"), &at("stopped"));
}

#[test]
fn devices_that_are_no_several_are_refused_before_anything_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out").to_string_lossy().into_owned();
    let refused = |command: &[&str], device: &str, code: i32, parts: &[&str]| {
        let args = [command, &["--device", device]].concat();
        failed_with(code, &start(&args, &[]).wait_with_output().unwrap(), &args, parts);
    };
    let generate = [GENERATE, &["--limit", "2", "--out", &out]].concat();
    refused(&generate, "cuda:0,0", 2, &["cuda:0 is named twice"]);
    refused(&generate, "cuda:2-1", 2, &["2-1 ends before it begins"]);
    for sign in ["emulated:+1", "cuda:+0", "cuda:0,+1", "cuda:-1", "emulated:0-+1"] {
        refused(&generate, sign, 2, &[sign, "is no number of a device"]);
    }
    refused(&generate, "cuda:0,63", 69, &["--device cuda:0,63"]);
    refused(&["chat", "--model", MODEL], "emulated:0-1", 1, &["names several devices", "name one"]);
    assert_eq!(kept(Path::new(&out)), 0);
}

/// Two GPUs of the rehearsal's driver: the program's path for CUDA, with a context for each thread.
#[test]
#[cfg_attr(not(gpu_kernels), ignore = "no nvcc when this was built: scripts/get_nvcc.sh")]
fn two_gpus_share_the_rows_and_one_that_fails_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let args = [GENERATE, &["--limit", "12", "--device"]].concat();
    let run = |device: &str, out: &str, variables: &[(&str, &str)]| {
        let out = dir.path().join(out);
        let args = [&args[..], &[device, "--out", out.to_str().unwrap()]].concat();
        on(program(), &args, &[&[("SDRRL_REHEARSAL_GPUS", "2")][..], variables].concat())
    };
    let done = |device: &str, out: &str| {
        let done = run(device, out, &[]);
        assert!(done.status.success(), "{}", text(&done.stderr));
    };
    done("cuda:1", "one");
    done("cuda:0-1", "two");
    assert_equal(&dir.path().join("one"), &dir.path().join("two"));
    let few = run("cuda:0-2", "few", &[]);
    failed_with(69, &few, &args, &["--device cuda:0-2: this machine has 2 GPUs: there is no cuda:2"]);
    let broken = run("cuda:0-1", "broken", &[("SDRRL_REHEARSAL_FAIL", "swiglu_forward_bf16@1")]);
    failed(&broken, &args, &["on cuda:1", "LAUNCH_FAILED", "generate: rows"]);
    assert!(!text(&broken.stderr).contains("on cuda:0"), "{}", text(&broken.stderr));
    done("cuda:0-1", "broken");
    assert_equal(&dir.path().join("one"), &dir.path().join("broken"));
    let small = run("cuda:0-1", "small", &[("SDRRL_REHEARSAL_MIB", "1")]);
    failed_with(69, &small, &args, &["on cuda:", "the GPU's memory is full"]);
}

/// A finished result survives a command that asks for a GPU that no machine has.
#[test]
fn a_device_that_is_not_there_costs_no_finished_result() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let task = format!(
        "[[tasks]]\nname = \"t\"\nkind = \"perplexity\"\nfile = {QUESTIONS:?}\nlanguage = \"en\"\nlimit = 4\n"
    );
    fs::write(at("tasks.toml"), task).unwrap();
    let (tasks, generated, evaluated) = (at("tasks.toml"), at("generate"), at("eval"));
    let generate = [GENERATE, &["--limit", "4", "--out", &generated]].concat();
    let eval = vec!["eval", "--model", MODEL, "--tasks", &tasks, "--out", &evaluated];
    for args in [generate, eval] {
        ok(&args);
        let before = contents(dir.path());
        for device in ["cuda:63", "cuda:62-63"] {
            let args = [&args[..], &["--device", device]].concat();
            let done = program().args(&args).output().unwrap();
            failed_with(69, &done, &args, &[&format!("--device {device}")]);
            assert!(contents(dir.path()) == before, "{args:?} changed what was there");
        }
    }
}

/// The folder of the rehearsal's libnccl.so.2.
fn nccl() -> PathBuf {
    let out = Command::new("scripts/rehearsal_nccl.sh").output().unwrap();
    assert!(out.status.success(), "{}", text(&out.stderr));
    fs::canonicalize("target/rehearsal").unwrap()
}

/// A recipe that packs five examples and trains on them.
fn recipe(dir: &Path) -> String {
    let row = |x: &&str| format!("{{\"question\": \"{x}?\", \"answer\": \"{x} is a lamp\"}}\n");
    let rows = ["the red house", "a blue river", "green", "the lamp of the sea", "stone"];
    fs::write(dir.join("rows.jsonl"), rows.iter().map(row).collect::<String>()).unwrap();
    let text = format!(
        r#"
name = "devices"
model = "{MODEL}"
examples = "{0}/rows.jsonl"
work = "{0}/work"
target-languages = ["es"]
[pack]
max-length = 40
[train]
lora-rank = 2
lora-targets = ["q_proj"]
batch-documents = 4
batch-tokens = 40
epochs = 1
reduce = "fixed"
"#,
        dir.display()
    );
    let path = dir.join("recipe.toml");
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn a_recipe_trains_a_rank_on_each_of_its_devices() {
    let (dir, nccl) = (tempfile::tempdir().unwrap(), nccl());
    let recipe = recipe(dir.path());
    let run = |device: &str, work: &str, variables: &[(&str, &str)]| {
        let work = format!("work={}", dir.path().join(work).display());
        let args = ["run", &recipe, "--set", &format!("device={device}"), "--set", &work];
        let variables = variables.iter().copied();
        program()
            .args(args)
            .env("SDRRL_NCCL", &nccl)
            .env("RAYON_NUM_THREADS", "1")
            .envs(variables)
            .output()
            .unwrap()
    };
    let done = |device: &str, work: &str| {
        let done = run(device, work, &[]);
        assert!(done.status.success(), "{}", text(&done.stderr));
        text(&done.stdout)
    };
    done("emulated", "one");
    let said = done("emulated:0-1", "two");
    assert!(said.contains("train: ") && !said.contains("unchanged"), "{said}");
    for name in ["adapter_model.safetensors", "metrics.jsonl", "manifest.json"] {
        let of = |work: &str| fs::read(dir.path().join(work).join("train").join(name)).unwrap();
        assert!(of("one") == of("two"), "{name}");
    }
    let again = done("emulated:0-1", "two");
    assert!(again.contains("train: unchanged, skipped"), "{again}");
    let none = run("emulated:0-1", "none", &[("SDRRL_NCCL", "/no/such/folder/libnccl.so.2")]);
    failed_with(69, &none, &["run"], &["NCCL cannot be opened"]);
    assert!(!dir.path().join("none/pack").exists());
    let dies =
        run("emulated:0-1", "dies", &[("SDRRL_REHEARSAL_NCCL", "die:1:1"), ("SDRRL_RANK_TIMEOUT", "60")]);
    assert!(!dies.status.success());
    let said = text(&dies.stderr);
    assert!(said.contains("rank 1") && said.contains("training on emulated:0-1 has failed"), "{said}");
    done("emulated:0-1", "dies");
}
