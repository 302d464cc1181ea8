//! Several ranks as clusters have them: started by Slurm's variables on a recipe, by mpirun, and killed at any moment.
use std::{
    fs,
    net::TcpListener,
    process::{Child, Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use sdrrl::data::random::RowRandom;

use crate::{
    cli::text,
    common::program,
    distributed::{COMMON, Work, nccl},
};

/// A recipe's training by several ranks; what is not a training is one process's.
#[test]
fn a_recipe_is_trained_by_several_ranks_to_the_result_of_one() {
    let work = Work::new();
    let recipe = work.path("recipe.toml");
    let toml = format!(
        "name = \"small\"\nwork = \"work\"\nmodel = \"assets/quickstart/model\"\ndevice = \"emulated\"\nexamples = \"{}\"\n
        [pack]\nmax-length = 40\n[train]\nlora-rank = 2\nlora-targets = [\"q_proj\"]\nbatch-documents = 4\nbatch-tokens = 40\nepochs = 1",
        work.path("rows.jsonl")
    );
    fs::write(&recipe, toml).unwrap();
    let run = |out: &str, ranks: usize, more: &[&str]| -> Vec<Output> {
        let set = format!("work={}", work.path(out));
        let args = [&["run", &recipe, "--set", &set], more].concat();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
        let start = |rank: usize| {
            let (rank, size) = (rank.to_string(), ranks.to_string());
            let slurm = [
                ("SLURM_STEP_ID", "0"),
                ("SLURM_PROCID", &rank),
                ("SLURM_LOCALID", &rank),
                ("SLURM_NTASKS", &size),
                ("SLURM_STEP_NODELIST", "127.0.0.1"),
                ("MASTER_PORT", &port),
            ];
            let mut command = program();
            command.args(&args).envs(slurm).env("SDRRL_NCCL", nccl()).env("RAYON_NUM_THREADS", "1");
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let children: Vec<Child> = (0..ranks).map(start).collect();
        children.into_iter().map(|c| c.wait_with_output().unwrap()).collect()
    };
    let fixed = ["--set", "train.reduce=\"fixed\""];
    let train = [&fixed[..], &["--stage", "train"]].concat();
    for (out, ranks) in [("one", 1), ("three", 3)] {
        for (ranks, more) in [(1, [&fixed[..], &["--stage", "pack"]].concat()), (ranks, train.clone())] {
            for (rank, end) in run(out, ranks, &more).iter().enumerate() {
                assert!(end.status.success(), "{out} {more:?} {rank}: {}", text(&end.stderr));
                assert!(rank == 0 || end.stdout.is_empty() && end.stderr.is_empty(), "{}", text(&end.stderr));
            }
        }
    }
    assert!(work.result("one/train") == work.result("three/train"));
    // A whole run finds it.
    let whole = run("three", 1, &fixed);
    assert_eq!(text(&whole[0].stdout).matches("unchanged, skipped").count(), 2, "{}", text(&whole[0].stdout));
    for (more, part) in [
        (&["--stage", "train"][..], "several ranks train a recipe with train.reduce = \"fixed\""),
        (&["--stage", "pack"], "several ranks run one stage of a recipe, its training"),
        (&[], "several ranks run one stage of a recipe, its training"),
    ] {
        for end in run("one", 2, more).iter().take(1) {
            assert!(!end.status.success() && text(&end.stderr).contains(part), "{}", text(&end.stderr));
        }
    }
}

/// Open MPI's own launcher.
#[test]
#[ignore = "needs mpirun of Open MPI"]
fn ranks_that_mpirun_starts_train_the_bits_of_one() {
    let work = Work::new();
    let fixed = ["--reduce", "fixed"];
    let one = work.trained("one", 1, &fixed, &[]);
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let mut command = Command::new("mpirun");
    let (shards, out) = (work.path("shards"), work.path("mpi"));
    command.args(["-n", "3", "--oversubscribe", "--bind-to", "none"]).arg(program().get_program());
    command.args(COMMON).args(fixed).args(["--batch-tokens", "40", "--epochs", "1", "--device", "emulated"]);
    command.args(["--shards", &shards, "--out", &out]).env("MASTER_PORT", port).env("SDRRL_NCCL", nccl());
    // In a container everybody is root.
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    let end = command.env("RAYON_NUM_THREADS", "1").output().unwrap();
    assert!(end.status.success(), "{}{}", text(&end.stdout), text(&end.stderr));
    assert!(one == work.result("mpi"));
}

/// Kills of any rank, at any moment, each followed by another number of ranks.
#[test]
#[ignore = "20 kills, some minutes"]
fn twenty_kills_of_random_ranks_end_with_the_undisturbed_bytes() {
    kills(20, "12", 5, &[]);
}

#[test]
fn kills_of_random_ranks_end_with_the_undisturbed_bytes() {
    kills(2, "4", 6, &[]);
}

/// Each rank writes a part of every checkpoint; any number of ranks reads them.
#[test]
fn kills_of_ranks_that_share_the_optimizers_state_end_with_the_undisturbed_bytes() {
    kills(3, "4", 7, &["--shard", "optimizer"]);
}

#[test]
#[ignore = "20 kills, some minutes"]
fn twenty_kills_of_ranks_that_share_everything_end_with_the_undisturbed_bytes() {
    kills(20, "12", 8, &["--shard", "weights"]);
}

fn kills(count: usize, epochs: &str, seed: u64, more: &[&str]) {
    let work = Work::new();
    let args = [&["--reduce", "fixed", "--checkpoint-every", "1", "--epochs", epochs], more].concat();
    let args = &args[..];
    let begun = Instant::now();
    let whole = work.trained("whole", 1, args, &[]);
    let alone = begun.elapsed();
    let folder = work.dir.path().join("killed");
    let steps = || {
        let text = fs::read_to_string(folder.join("metrics.jsonl")).unwrap_or_default();
        text.lines().filter(|line| line.contains("train/loss")).count()
    };
    let mut random = RowRandom::new(seed, "kill", "ranks");
    let (mut killed, mut runs, mut most) = (0, 0, Duration::ZERO);
    while killed < count {
        runs += 1;
        assert!(runs <= 6 * count, "{killed} kills in {runs} runs");
        let ranks = 1 + random.below(8);
        let victim = random.below(ranks);
        let mut all = work.start("killed", &vec![args; ranks], &[("SDRRL_RANK_TIMEOUT", "30")]);
        sleep(alone.mul_f64(random.uniform()));
        let alive = all[victim].try_wait().unwrap().is_none();
        drop(all[victim].kill());
        let since = Instant::now();
        let ends: Vec<Output> = all.into_iter().map(|c| c.wait_with_output().unwrap()).collect();
        if folder.join("manifest.json").exists() {
            assert!(whole == work.result("killed"), "finished by {ranks} ranks");
            fs::remove_dir_all(&folder).unwrap();
            continue;
        }
        assert!(alive && ends.iter().all(|end| !end.status.success()), "{ranks} without {victim}: {ends:?}");
        most = most.max(since.elapsed());
        eprintln!("rank {victim} of {ranks} killed after step {}", steps());
        killed += 1;
    }
    let ranks = 1 + random.below(8);
    assert!(whole == work.trained("killed", ranks, args, &[]), "{ranks} ranks at last");
    eprintln!(
        "{killed} kills in {runs} runs; all had ended {:.1} s after a kill at most",
        most.as_secs_f64()
    );
}
