//! `sdrrl bench`: every part on tiny shapes, its files, comparisons and refusals.
use std::fs;

use serde_json::Value;

#[path = "../benches/options.rs"]
mod options;

use crate::{
    cli::{failed_with, fails, ok, text},
    common::program,
};

const FEW: [&str; 4] = ["--runs", "3", "--warmup", "1"];

fn bench(args: &[&str]) -> String {
    ok(&[&["bench"], args, &FEW[..]].concat())
}

#[test]
fn steps_are_measured_written_and_compared() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.json");
    let file = file.to_str().unwrap();
    let tiny = ["train", "--shape", "tiny", "--rows", "2", "--length", "48", "--lora-rank", "4"];
    let told = bench(&[&tiny[..], &["--json", file]].concat());
    for part in [
        "machine",
        "model FLOP/token = 2 N forward",
        "ceiling: product",
        "training step",
        "tokens/s",
        "% of ceiling: product",
        "forward and backward",
        "optimizer",
        "peak memory",
        "written to",
    ] {
        assert!(told.contains(part), "{part} is not in {told}");
    }
    let found: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let row = |name: &str| found["rows"].as_array().unwrap().iter().find(|r| r["name"] == name).unwrap();
    let values = |name: &str| -> Vec<f64> {
        row(name)["values"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
    };
    assert_eq!(values("training step").len(), 3);
    // FLOP/s and tokens/s are of the same seconds: their ratio is the formula's FLOP per token.
    let ratio = |i: usize| values("training step, model FLOP")[i] * 1e9 / values("training step")[i];
    // 2 layers, C 64, F 128, V 1024, 4 heads, 2 of keys and values of 16, tied head.
    let (n, lora) =
        (2.0 * (2.0 * 64.0 * 96.0 + 3.0 * 64.0 * 128.0) + 64.0 * 1024.0, 2.0 * 4.0 * (256.0 + 192.0 + 576.0));
    let expected = 4.0 * n - 2.0 * 64.0 * (64.0 + 64.0) + 6.0 * lora + 7.0 * 48.0 * 64.0 * 2.0;
    assert!((ratio(0) / expected - 1.0).abs() < 1e-9, "{} {expected}", ratio(0));
    assert_eq!(found["settings"]["rows"], 2);
    let told = bench(&[&tiny[..], &["--compare", file]].concat());
    assert!(told.contains("faster by % (95 %)") && told.contains(" .. "), "{told}");
    // What cannot be compared, and what would be overwritten.
    let other = [&["bench"], &tiny[..4], &["2", "--length", "32", "--runs", "1", "--compare", file]].concat();
    fails(&other, &["--compare", "\"length\":48", "\"length\":32", "the same command"]);
    // Noticed before anything is loaded or measured.
    fails(&["bench", "train", "--model", "nowhere", "--compare", file], &["--compare", "the same command"]);
    fails(
        &[&["bench"], &tiny[..], &["--json", file]].concat(),
        &["a.json", "exists", "choose another --json"],
    );
    let text = dir.path().join("b.json");
    fs::write(&text, "{}").unwrap();
    let with = [&["bench"], &tiny[..], &["--compare", text.to_str().unwrap()]].concat();
    fails(&with, &["b.json", "sdrrl bench"]);
}

#[test]
fn generation_translation_and_scoring_are_measured() {
    let told = bench(&["generate", "--shape", "tiny", "--batches", "1,3", "--prompt", "16", "--new", "12"]);
    for part in ["prefill, batch 3", "decode, batch 1", "GB/s", "% of ceiling: reading memory"] {
        assert!(told.contains(part), "{part} is not in {told}");
    }
    let told = bench(&["translate", "--shape", "tiny", "--sentences", "4", "--new", "6", "--beams", "1,2"]);
    assert!(told.contains("translation, greedy") && told.contains("translation, 2 beams"), "{told}");
    let told = bench(&["score", "--shape", "tiny", "--pairs", "6", "--dtype", "bf16"]);
    assert!(told.contains("pairs/s") && told.contains("bf16 weights"), "{told}");
    // A model that is there.
    let model = "assets/quickstart/model";
    let told = bench(&["generate", "--model", model, "--batches", "2", "--prompt", "8", "--new", "4"]);
    assert!(told.contains(model), "{told}");
    bench(&["train", "--model", model, "--rows", "2", "--length", "16"]);
}

#[test]
fn kernels_are_chosen_by_name_and_checked_on_the_emulated_device() {
    let told = bench(&["kernels", "rmsnorm", "product NT 1 x 1536"]);
    for part in ["rmsnorm backward", "product NT 1 x 1536 x 576 bf16", "ceiling: reading memory"] {
        assert!(told.contains(part), "{part} is not in {told}");
    }
    assert!(!told.contains("swiglu"), "{told}");
    let list = ok(&["bench", "kernels", "--list"]);
    assert!(list.lines().count() > 30 && list.contains("attention 4 x 256 backward"), "{list}");
    // Every row, against the processor's results.
    let told = ok(&["bench", "kernels", "--device", "emulated", "--runs", "1", "--warmup", "0"]);
    let rows = ok(&["bench", "kernels", "--list", "--device", "emulated"]);
    rows.lines().for_each(|name| assert!(told.contains(name), "{name} is not in {told}"));
    fails(&["bench", "kernels", "no-such-kernel"], &["no-such-kernel", "--list"]);
}

#[test]
fn what_is_unknown_or_impossible_is_refused() {
    fails(&["bench", "train", "--shape", "llama3-8b"], &["llama3-8b", "smollm2-135m"]);
    fails(&["bench", "translate", "--shape", "large"], &["large", "nllb-600m"]);
    fails(&["bench", "score", "--shape", "large"], &["large", "xlm-r-large"]);
    fails(&["bench", "train", "--shape", "tiny", "--rows", "0"], &["--rows is 0"]);
    fails(&["bench", "generate", "--shape", "tiny", "--batches", "0"], &["--batches is 0"]);
    for (args, part) in [
        (["bench", "train", "--shape", "tiny", "--beams", "4"], "--beams"),
        (["bench", "train", "--shape", "tiny", "--runs", "0"], "--runs"),
        (["bench", "kernels", "--shape", "tiny", "--runs", "1"], "--shape"),
    ] {
        failed_with(2, &program().args(args).output().unwrap(), &args, &[part]);
    }
    fails(&["bench", "train", "--model", "no-such-model", "--rows", "1"], &["no-such-model"]);
}

/// A program as those in benches/ are.
#[derive(clap::Parser)]
struct Program {
    #[command(flatten)]
    peers: options::Peers,
    #[command(flatten)]
    of: sdrrl::stages::bench::Score,
}

#[test]
fn the_bench_programs_take_the_options_of_the_command_or_refuse_them_by_name() {
    use clap::CommandFactory;
    let refused = [("model", "it is the peer's"), ("base_dtype", "there are no blocks")];
    let read = |line: &str| {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        options::read::<Program>(Program::command().no_binary_name(true), arguments, &refused)
    };
    let (found, matches) =
        read("--bench --python p --rounds 4 --shape tiny --pairs 3 --device cpu").ok().unwrap();
    assert_eq!((found.peers.rounds(9), found.of.pairs, found.of.shape.as_str()), (4, 3, "tiny"));
    assert!(options::given(&matches, "device") && !options::given(&matches, "dtype"));
    let usual = read("").ok().unwrap().0;
    assert_eq!((usual.peers.rounds(9), usual.of.pairs), (9, 32));
    for (line, why) in [
        ("--model x", "--model is not for this program: it is the peer's"),
        ("--base-dtype dtype", "--base-dtype is not for this program: there are no blocks"),
        ("--pair 3", "--pair"),
        ("--rounds 0", "--rounds"),
        ("--dtype f64", "f64"),
        ("tiny", "tiny"),
    ] {
        let error = read(line).err().unwrap().to_string();
        assert!(error.contains(why), "{line}: {error}");
    }
}

#[test]
fn a_plan_of_documents_beyond_the_models_positions_says_so() {
    let plan = |length: &str| {
        let args = [
            "plan",
            "--model",
            "assets/quickstart/model",
            "--gpus",
            "1",
            "--per-node",
            "1",
            "--length",
            length,
        ];
        let done = program().args(args).output().unwrap();
        assert!(done.status.success(), "{}", text(&done.stderr));
        text(&done.stderr)
    };
    assert_eq!(plan("256"), "");
    assert!(plan("257").contains("longer than the 256 positions of the model"), "{}", plan("257"));
}

#[test]
fn a_plan_that_training_would_refuse_is_refused() {
    let plan = |more: &[&str]| {
        let args = ["plan", "--model", "assets/quickstart/model", "--gpus", "8", "--shard", "weights"];
        program().args(args).args(more).output().unwrap()
    };
    assert!(plan(&[]).status.success());
    let full = plan(&["--full"]);
    assert!(!full.status.success() && text(&full.stderr).contains("shard weights"), "{full:?}");
}
