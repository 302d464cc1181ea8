//! `--trace`: the file is JSON and its spans nest; NVTX ranges reach a library that counts them; off, nothing is written.
use std::{fs, path::Path, process::Command};

use serde_json::Value;

use crate::{
    cli::{failed, text},
    common::program,
};

/// A model, shards of a few documents and the arguments that train on them for three steps.
fn training(work: &Path) -> Vec<String> {
    let rows = ["the red house", "a blue river sings to the stone", "green"];
    let row = |(i, x): (usize, &&str)| {
        format!("{{\"id\": \"{i}\", \"question\": \"{x}?\", \"answer\": \"{x} is a lamp\"}}\n")
    };
    let examples = work.join("examples.jsonl");
    fs::write(&examples, rows.iter().enumerate().map(row).collect::<String>()).unwrap();
    let model = "assets/quickstart/model";
    let shards = work.join("shards");
    let packed = program()
        .args([
            "pack",
            "--model",
            model,
            "--examples",
            examples.to_str().unwrap(),
            "--out",
            shards.to_str().unwrap(),
        ])
        .output()
        .unwrap();
    assert!(packed.status.success(), "{}", text(&packed.stderr));
    ["train", "--model", model, "--shards", shards.to_str().unwrap(), "--max-steps", "3", "--eval-every", "2"]
        .map(String::from)
        .into_iter()
        .chain(["--out".into(), work.join("adapter").to_str().unwrap().into()])
        .collect()
}

/// The events of a trace, after checks that hold of any: threads' spans nest, and time goes forward.
fn events(path: &Path) -> Vec<Value> {
    let all: Vec<Value> = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let mut open: std::collections::HashMap<u64, Vec<String>> = Default::default();
    let mut time = 0.0;
    for e in all.iter().filter(|e| e["ph"] != "M") {
        assert!(e["ts"].as_f64().unwrap() >= time, "{e}");
        time = e["ts"].as_f64().unwrap();
        let stack = open.entry(e["tid"].as_u64().unwrap()).or_default();
        let name = e["name"].as_str().unwrap().to_string();
        if e["ph"] == "B" { stack.push(name) } else { assert_eq!(stack.pop(), Some(name), "{e}") }
    }
    assert!(open.values().all(Vec::is_empty), "spans that never end: {open:?}");
    all
}

/// The names of the spans around the first one called `name`, from outside.
fn around(events: &[Value], name: &str) -> Vec<String> {
    let at = events.iter().position(|e| e["ph"] == "B" && e["name"] == name);
    let at = at.unwrap_or_else(|| panic!("no span {name}"));
    let mut stack: Vec<String> = vec![];
    for e in events[..at].iter().filter(|e| e["tid"] == events[at]["tid"]) {
        match e["ph"].as_str() {
            Some("B") => stack.push(e["name"].as_str().unwrap().into()),
            Some("E") => drop(stack.pop()),
            _ => {}
        }
    }
    stack
}

#[test]
fn a_traced_training_run_is_json_whose_spans_nest() {
    let dir = tempfile::tempdir().unwrap();
    let args = training(dir.path());
    let trace = dir.path().join("trace.json");
    let run = program().args(&args).args(["--trace", trace.to_str().unwrap()]).output().unwrap();
    assert!(run.status.success(), "{}", text(&run.stderr));
    let found = events(&trace);
    let count = |name: &str| found.iter().filter(|e| e["ph"] == "B" && e["name"] == name).count();
    assert_eq!((count("command"), count("train_step"), count("optimizer")), (1, 3, 3));
    assert!(count("forward") >= 3 && count("backward") >= 3);
    for name in ["data", "forward", "loss", "backward", "optimizer"] {
        assert_eq!(around(&found, name), ["command", "train_step"], "{name}");
    }
    assert!(found.iter().any(|e| e["name"] == "train_step" && e["args"]["step"] == 2));
    // A file that exists is kept.
    let again = program().args(&args).env("SDRRL_TRACE", &trace).output().unwrap();
    failed(&again, &[], &["trace", "exists", "name another"]);
    assert_eq!(events(&trace).len(), found.len());
}

#[test]
fn chunks_of_rows_are_traced_on_their_three_threads() {
    let dir = tempfile::tempdir().unwrap();
    let (rows, out, trace) =
        (dir.path().join("q.jsonl"), dir.path().join("out"), dir.path().join("trace.json"));
    fs::write(&rows, "{\"id\":\"1\",\"question\":\"red?\"}\n{\"id\":\"2\",\"question\":\"blue?\"}\n")
        .unwrap();
    let run = program()
        .args(["generate", "--model", "assets/quickstart/model", "--prompts", rows.to_str().unwrap()])
        .args(["--out", out.to_str().unwrap(), "--max-new-tokens", "4"])
        .env("SDRRL_TRACE", &trace)
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", text(&run.stderr));
    let found = events(&trace);
    let thread = |name: &str| {
        found.iter().find(|e| e["ph"] == "B" && e["name"] == name).unwrap_or_else(|| panic!("{name}"))["tid"]
            .clone()
    };
    assert!(thread("read") != thread("compute") && thread("compute") != thread("write"));
    assert_eq!(around(&found, "compute"), ["command"]);
    assert!(around(&found, "read").is_empty() && around(&found, "write").is_empty());
}

/// A stand-in for libnvToolsExt that writes a line for each call.
const NVTX: &str = r#"
#include <stdio.h>
#include <stdlib.h>
static FILE* out(void) { static FILE* f; if (!f) { f = fopen(getenv("NVTX_LOG"), "a"); setbuf(f, NULL); } return f; }
int nvtxRangePushA(const char* name) { return fprintf(out(), "push %s\n", name); }
int nvtxRangePop(void) { return fprintf(out(), "pop\n"); }
"#;

/// The same as a profiler's library, which puts those functions into NVTX 3's table of the core module.
const PROFILER: &str = r#"
struct Callbacks { size_t size; int (*get)(unsigned module, void**** table, unsigned* size); };
int InitializeInjectionNvtx2(const void* (*get_table)(unsigned)) {
    const struct Callbacks* callbacks = get_table(1);
    void*** table; unsigned size;
    if (get_table(99) || callbacks->size < sizeof *callbacks || callbacks->get(77, &table, &size)) return 0;
    if (!callbacks->get(5, &table, &size) || size < 16) return 0;
    if (!callbacks->get(1, &table, &size) || size < 12 || table[size]) return 0;
    *table[9] = nvtxRangePushA; *table[11] = nvtxRangePop;
    return 1;
}
"#;

#[test]
fn nvtx_ranges_follow_the_spans_where_they_are_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let args = training(dir.path());
    let (source, log) = (dir.path().join("nvtx.c"), dir.path().join("log"));
    let library = dir.path().join("libnvToolsExt.so");
    let build = |library: &Path, code: &str| {
        fs::write(&source, code).unwrap();
        let cc =
            Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([library, &source]).output().unwrap();
        assert!(cc.status.success(), "{}", text(&cc.stderr));
    };
    build(&library, NVTX);
    // Where libnvToolsExt is not found.
    fs::create_dir(dir.path().join("profiler")).unwrap();
    let profiler = dir.path().join("profiler/injection.so");
    build(&profiler, &(NVTX.to_string() + PROFILER));
    let profiler = profiler.to_string_lossy();
    let run = |name: &str, variables: &[(&str, &str)]| {
        let mut command = program();
        // The last argument is the folder, a new one each time.
        command.args(&args[..args.len() - 1]).arg(dir.path().join(name));
        command.env("LD_LIBRARY_PATH", dir.path()).env("NVTX_LOG", &log).env_remove("NVTX_INJECTION64_PATH");
        command.envs(variables.iter().copied()).output().unwrap()
    };
    for quiet in [vec![], vec![("NVTX_INJECTION64_PATH", "x.so"), ("SDRRL_NVTX", "0")]] {
        let run = run(&format!("quiet-{}", quiet.len()), &quiet);
        assert!(run.status.success(), "{}", text(&run.stderr));
        assert!(!log.exists(), "ranges that nobody asked for");
    }
    let attached = ("NVTX_INJECTION64_PATH", &*profiler);
    let nowhere = ("LD_LIBRARY_PATH", "/nowhere");
    for (i, asked) in [
        vec![("SDRRL_NVTX", "1")],
        // The library of the profiler is not there, but libnvToolsExt is.
        vec![("NVTX_INJECTION64_PATH", "x.so")],
        vec![attached, nowhere],
        vec![attached, nowhere, ("SDRRL_NVTX", "1")],
    ]
    .into_iter()
    .enumerate()
    {
        let run = run(&format!("asked-{i}"), &asked);
        assert!(run.status.success(), "{}", text(&run.stderr));
        let lines = fs::read_to_string(&log).unwrap();
        fs::remove_file(&log).unwrap();
        assert_eq!(lines.matches("push train_step step=").count(), 3, "{lines}");
        assert_eq!(lines.matches("push ").count(), lines.lines().filter(|l| *l == "pop").count(), "{lines}");
        assert!(lines.starts_with("push command") && lines.contains("push forward"), "{lines}");
    }
    let missing =
        program().args(&args).env("SDRRL_NVTX", "1").env("LD_LIBRARY_PATH", "/nowhere").output().unwrap();
    // A machine may have the library in its own folders.
    if !missing.status.success() {
        failed(&missing, &[], &["libnvToolsExt", "LD_LIBRARY_PATH"]);
        let broken = [("SDRRL_NVTX", "1"), nowhere, ("NVTX_INJECTION64_PATH", "x.so")];
        failed(&run("broken", &broken), &[], &["NVTX_INJECTION64_PATH: load x.so", "libnvToolsExt"]);
    }
}
