//! `--device cuda` without a GPU: the program's real path through CUDA's driver, against the libcuda of kernels/emulator/driver, which runs kernels on
//! the emulator and is as strict as a driver. Needs the kernels in the program and cuda.h, which come with scripts/get_nvcc.sh.
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

use crate::{
    cli::{failed, failed_with, text},
    common::program,
};

/// The folder of libcuda.so.1, built once.
fn driver() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let out = Command::new("scripts/rehearsal_driver.sh").output().unwrap();
        assert!(out.status.success(), "{}", text(&out.stderr));
        fs::canonicalize("target/rehearsal").unwrap()
    })
}

pub fn on(mut command: Command, args: &[&str], variables: &[(&str, &str)]) -> Output {
    let variables = variables.iter().copied();
    command.args(args).env("LD_LIBRARY_PATH", driver()).env("NO_COLOR", "1").envs(variables).output().unwrap()
}

#[track_caller]
fn fails(args: &[&str], variables: &[(&str, &str)], parts: &[&str]) {
    failed(&on(program(), args, variables), args, parts);
}

/// Shards of three short documents and the arguments that train on them.
fn training(work: &Path) -> Vec<String> {
    let rows = ["the red house", "a blue river sings to the stone", "green"];
    let row = |(i, x): (usize, &&str)| {
        format!("{{\"id\": \"{i}\", \"question\": \"{x}?\", \"answer\": \"{x} is a lamp\"}}\n")
    };
    fs::write(work.join("rows.jsonl"), rows.iter().enumerate().map(row).collect::<String>()).unwrap();
    let path = |name: &str| work.join(name).display().to_string();
    let pack = ["pack", "--model", "assets/quickstart/model", "--examples", &path("rows.jsonl")];
    let out = program().args(pack).args(["--out", &path("shards"), "--max-length", "40"]).output().unwrap();
    assert!(out.status.success(), "{}", text(&out.stderr));
    let shards = path("shards");
    let args = [
        "train",
        "--model",
        "assets/quickstart/model",
        "--shards",
        &shards,
        "--dtype",
        "bf16",
        "--lora-rank",
        "4",
        "--batch-documents",
        "3",
        "--max-steps",
        "2",
        "--epochs",
        "2",
    ];
    args.map(String::from).to_vec()
}

#[test]
#[cfg_attr(not(gpu_kernels), ignore = "no nvcc when this was built: scripts/get_nvcc.sh")]
fn every_kernel_case_passes_through_cudas_driver() {
    let own = std::env::current_exe().unwrap();
    let args = ["kernels::", "--skip", "quickstart", "--test-threads", "2"];
    let out = on(Command::new(own), &args, &[("SDRRL_TEST_DEVICE", "cuda")]);
    let said = text(&out.stdout);
    assert!(out.status.success(), "{said}{}", text(&out.stderr));
    let passed = said.lines().filter(|l| l.starts_with("test kernels::") && l.ends_with("... ok")).count();
    assert!(passed > 50, "{said}");
}

#[test]
#[cfg_attr(not(gpu_kernels), ignore = "no nvcc when this was built: scripts/get_nvcc.sh")]
fn training_on_cuda_is_the_emulators_to_the_bit() {
    let dir = tempfile::tempdir().unwrap();
    let args = training(dir.path());
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let run = |device: &str| {
        let out = dir.path().join(device);
        let own = ["--device", device, "--out", out.to_str().unwrap()];
        let done = on(program(), &[&args[..], &own].concat(), &[]);
        assert!(done.status.success(), "{}", text(&done.stderr));
        ["metrics.jsonl", "adapter_model.safetensors"].map(|name| fs::read(out.join(name)).unwrap())
    };
    let (cuda, emulated) = (run("cuda"), run("emulated"));
    assert!(cuda.iter().all(|bytes| bytes.len() > 100) && cuda == emulated);
}

#[test]
#[cfg_attr(not(gpu_kernels), ignore = "no nvcc when this was built: scripts/get_nvcc.sh")]
fn two_gpus_train_the_bits_of_one_in_processes_that_are_started_for_them() {
    let dir = tempfile::tempdir().unwrap();
    let args = training(dir.path());
    let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
    args.extend(["--reduce", "fixed", "--batch-tokens", "40"]);
    let run = |device: &str| {
        let out = dir.path().join(device);
        let own = ["--device", device, "--out", out.to_str().unwrap()];
        (on(program(), &[&args[..], &own].concat(), &[("SDRRL_REHEARSAL_GPUS", "2")]), out)
    };
    let trained = |device: &str| {
        let (done, out) = run(device);
        assert!(done.status.success(), "{}", text(&done.stderr));
        ["metrics.jsonl", "adapter_model.safetensors"].map(|name| fs::read(out.join(name)).unwrap())
    };
    assert!(trained("cuda:1") == trained("cuda:0-1"));
    let (few, _) = run("cuda:0-2");
    failed_with(69, &few, &["--device", "cuda:0-2"], &["--device cuda:0-2", "this machine has 2 GPUs"]);
}

#[test]
#[cfg_attr(not(gpu_kernels), ignore = "no nvcc when this was built: scripts/get_nvcc.sh")]
fn a_gpu_too_small_and_kernels_that_fail_are_explained() {
    let dir = tempfile::tempdir().unwrap();
    let args = training(dir.path());
    let out = dir.path().join("out").display().to_string();
    let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
    args.extend(["--device", "cuda", "--out", &out]);
    let small = [("SDRRL_REHEARSAL_MIB", "2")];
    let parts = ["needs", "MiB on rehearsal", "the GPU's memory is full", "lower the batch size"];
    failed_with(69, &on(program(), &args, &small), &args, &parts);
    let late = [("SDRRL_REHEARSAL_FAIL", "swiglu_forward_bf16")];
    fails(&args, &late, &["SDRRL_SYNC_LAUNCHES=1 names it", "the latest launches were", "LAUNCH_FAILED"]);
    let at_once = [late[0], ("SDRRL_SYNC_LAUNCHES", "1")];
    fails(&args, &at_once, &["launch swiglu_forward_bf16 of kernels/swiglu.cu", "bf16 [", "LAUNCH_FAILED"]);
    let changed = dir.path().join("changed");
    fs::create_dir(&changed).unwrap();
    fs::write(changed.join("gemm.fatbin"), "no code").unwrap();
    let wrong = [("SDRRL_FATBINS", changed.to_str().unwrap())];
    fails(&args, &wrong, &["gemm.fatbin", "is no fatbin", "nvcc -fatbin"]);
    let none: Vec<&str> = args.iter().map(|a| if *a == "cuda" { "cuda:7" } else { a }).collect();
    failed_with(69, &on(program(), &none, &[]), &none, &["this machine has 1 GPU: there is no cuda:7"]);
}

/// The launches and exchanges of a process: whether one of these ran between two layers' backward passes of one micro-batch.
fn exchanges_within_backward(trace: &Path) -> bool {
    let text = fs::read_to_string(trace).unwrap();
    let mut lines: Vec<(&str, &str)> = text.lines().filter_map(|line| line.split_once(' ')).collect();
    lines.sort_by_key(|(process, _)| *process);
    let (mut backward, mut between) = (false, false);
    for (_, what) in lines {
        match what {
            "exchange" => between = backward,
            _ if what.starts_with("attention_backward_q") && between => return true,
            _ if what.starts_with("attention_backward_q") => backward = true,
            _ if what.starts_with("attention_forward") => (backward, between) = (false, false),
            _ => {}
        }
    }
    false
}

/// What is exchanged beside the computation is ordered by events alone: as early as they allow and as late, it has the bits of a device where everything happens in turn.
#[test]
#[cfg_attr(not(gpu_kernels), ignore = "no nvcc when this was built: scripts/get_nvcc.sh")]
fn exchanges_beside_the_computation_wait_for_what_they_need_and_no_longer() {
    let dir = tempfile::tempdir().unwrap();
    let args = training(dir.path());
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let library = driver().display().to_string();
    for (i, more) in [
        &["--batch-tokens", "40"][..],
        &["--shard", "optimizer", "--reduce-dtype", "bf16"],
        &["--shard", "weights", "--batch-tokens", "40"],
        &["--shard", "weights", "--reduce", "fixed", "--batch-tokens", "40"],
    ]
    .into_iter()
    .enumerate()
    {
        let run = |name: &str, device: &str, variables: &[(&str, &str)]| {
            let out = dir.path().join(format!("{name}-{i}"));
            let own = ["--device", device, "--out", out.to_str().unwrap()];
            let usual = [("SDRRL_REHEARSAL_GPUS", "2"), ("SDRRL_NCCL", &library)];
            let done = on(program(), &[&args[..], more, &own].concat(), &[&usual[..], variables].concat());
            assert!(done.status.success(), "{more:?}: {}", text(&done.stderr));
            ["metrics.jsonl", "adapter_model.safetensors"].map(|name| fs::read(out.join(name)).unwrap())
        };
        let trace = dir.path().join(format!("trace-{i}"));
        let in_turn = run("emulated", "emulated:0-1", &[]);
        let early = run("early", "cuda:0-1", &[("SDRRL_REHEARSAL_TRACE", trace.to_str().unwrap())]);
        let late = run("late", "cuda:0-1", &[("SDRRL_REHEARSAL_STREAMS", "late")]);
        assert!(in_turn == early, "{more:?}, as early as events allow");
        assert!(in_turn == late, "{more:?}, as late as events allow");
        assert!(exchanges_within_backward(&trace), "{more:?}");
    }
}
