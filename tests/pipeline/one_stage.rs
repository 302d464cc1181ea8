//! `run --stage`: each stage of a recipe as a process of its own, row stages in parts at once, gives the bytes of one run; what is not finished is named, or waited for.
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output, Stdio},
};

use super::{
    kills::{arguments, assert_equal, contents},
    output, start,
};
use crate::{
    cli::{ok, text},
    common::program,
};

/// The small quickstart in `work`, with more arguments.
fn run(work: &Path, more: &[&str]) -> Output {
    let args = arguments(work);
    let all: Vec<&str> = args.iter().map(String::as_str).chain(more.iter().copied()).collect();
    output(&all)
}

/// The recipe's stages: name, kind, what each reads.
fn stages(work: &Path) -> Vec<(String, String, Vec<String>)> {
    let listed = run(work, &["--stages"]);
    assert!(listed.status.success() && listed.stderr.is_empty(), "{}", text(&listed.stderr));
    let words = |line: &str| line.split(' ').map(String::from).collect::<Vec<_>>();
    let stage = |line: &str| {
        let mut words = words(line.trim_end());
        let reads = words.split_off(2);
        let kind = words.pop().unwrap();
        (words.pop().unwrap(), kind, reads)
    };
    text(&listed.stdout).lines().map(stage).collect()
}

#[test]
fn stages_one_by_one_and_in_parts_end_with_the_bytes_of_a_whole_run() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, apart) = (dir.path().join("whole"), dir.path().join("apart"));
    let stages = stages(&apart);
    assert!(!apart.exists(), "listing writes nothing");
    let named: Vec<String> =
        stages.iter().map(|(name, kind, reads)| format!("{name} {kind} {}", reads.join(" "))).collect();
    let expected = [
        "generate parts ",
        "translate parts generate",
        "score parts translate",
        "filter parts score",
        "code-switch parts filter",
        "parallel one ",
        "assemble-sdrrl one code-switch parallel",
        "pack-sdrrl one assemble-sdrrl",
        "train-sdrrl ranks pack-sdrrl",
        "eval-base one ",
        "eval-sdrrl one train-sdrrl",
    ];
    assert_eq!(named, expected);
    for (name, kind, _) in &stages {
        let args = arguments(&apart);
        let parts: &[&str] = if kind == "parts" { &["1/3", "2/3", "3/3"] } else { &["1/1"] };
        let of = |part: &&str| {
            let more = ["--stage", name, "--part", part];
            start(&args.iter().map(String::as_str).chain(more).collect::<Vec<_>>())
        };
        let children: Vec<_> = parts.iter().map(of).collect();
        for child in children {
            let end = child.wait_with_output().unwrap();
            assert!(end.status.success(), "{name}: {}", text(&end.stderr));
        }
        assert!(apart.join(name).join("manifest.json").exists() || name.starts_with("eval"), "{name}");
    }
    assert!(!apart.join("timing.jsonl").exists() && !apart.join("manifest.json").exists());
    let last = run(&apart, &[]);
    assert!(text(&last.stdout).matches("unchanged, skipped").count() >= 10, "{}", text(&last.stdout));
    assert!(run(&whole, &[]).status.success());
    assert_equal(&contents(&whole), &contents(&apart), "stage by stage");
}

#[test]
fn what_a_stage_reads_is_named_or_waited_for_and_nothing_else_runs() {
    let dir = tempfile::tempdir().unwrap();
    let work = dir.path().join("work");
    let refused = |more: &[&str]| {
        let end = run(&work, more);
        assert!(!end.status.success(), "{more:?}: {}", text(&end.stdout));
        text(&end.stderr)
    };
    let made = |more: &[&str]| assert!(run(&work, more).status.success(), "{more:?}");
    for (more, parts) in [
        (&["--stage", "translate"][..], ["stage translate reads", "generate, which is not finished"]),
        (&["--stage", "train-sdrrl"], ["stage train-sdrrl reads", "pack-sdrrl"]),
        (&["--stage", "trian"], ["no stage `trian`", "train-sdrrl"]),
        (&["--stage", "parallel", "--part", "1/2"], ["stage parallel is not divided by rows", "--part"]),
        (&["--part", "1/2"], ["--stage", "required"]),
    ] {
        let said = refused(more);
        assert!(parts.iter().all(|part| said.contains(part)), "{more:?}: {said}");
    }
    assert!(!work.exists(), "nothing was begun");
    // It begins before what it reads.
    let args = arguments(&work);
    let words = args.iter().map(String::as_str).chain(["--stage", "translate", "--wait", "120"]);
    let waiting = start(&words.collect::<Vec<_>>());
    made(&["--stage", "generate", "--part", "2/2"]);
    assert!(refused(&["--stage", "translate"]).contains("generate, which is not finished"), "half of it");
    made(&["--stage", "generate", "--part", "1/2"]);
    let end = waiting.wait_with_output().unwrap();
    assert!(end.status.success(), "{}", text(&end.stderr));
    let is_there = |name: &str| work.join(name).exists();
    assert!(is_there("translate") && !is_there("score") && !is_there("parallel") && !is_there("eval-base"));
    // Of other settings.
    let other = refused(&["--stage", "score", "--set", "generate.max-new-tokens=3"]);
    assert!(other.contains("translate, which is not finished, or was made with other settings"), "{other}");
}

/// What `scripts/slurm/submit.sh` asks of sbatch; `scripts/rehearsal_slurm.sh` runs it on a Slurm.
#[test]
fn slurm_jobs_wait_for_what_their_stages_read() {
    let dir = tempfile::tempdir().unwrap();
    let (sbatch, log) = (dir.path().join("sbatch"), dir.path().join("jobs"));
    fs::write(&sbatch, "#!/bin/sh\necho \"$*\" >> \"$JOBS\"\nwc -l < \"$JOBS\"\n").unwrap();
    fs::set_permissions(&sbatch, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    let submit = |args: &[&str]| {
        let mut command = Command::new("scripts/slurm/submit.sh");
        command.args(args).env("PATH", &path).env("JOBS", &log).env("SDRRL", program().get_program());
        command.output().unwrap()
    };
    let args = ["recipes/quickstart.toml", "--parts", "3", "--ranks", "2", "--train", "--nodes=1 --time=60"];
    let end = submit(&[&args[..], &["--set", "variants=[\"sdrrl\"]"]].concat());
    assert!(end.status.success(), "{}", text(&end.stderr));
    let said = text(&end.stdout);
    let all: Vec<&str> = said.lines().collect();
    assert_eq!((all.len(), all[0], all[11]), (12, "generate 1", "report 12"), "{said}");
    let log = fs::read_to_string(&log).unwrap();
    let jobs: Vec<&str> = log.lines().collect();
    for (job, parts) in [
        (1, &["--array=1-3 ", "stage.sh 3 ", "--stage generate --wait 120"][..]),
        (2, &["--array=1-3 --dependency=afterok:1 --kill-on-invalid-dep=yes ", "--stage translate"]),
        (7, &["--dependency=afterok:5:6 ", "stage.sh 0 ", "--stage assemble-sdrrl"]),
        (
            9,
            &[
                "--ntasks=2 --nodes=1 --time=60 --dependency=afterok:8 ",
                "--set train.reduce=\"fixed\" --stage train",
            ],
        ),
        (11, &["--dependency=afterok:9 ", "--stage eval-sdrrl"]),
        (12, &["--dependency=afterok:", ":11", "run recipes/quickstart.toml --set variants=[\"sdrrl\"]"]),
    ] {
        assert!(parts.iter().all(|part| jobs[job - 1].contains(part)), "{job}: {}", jobs[job - 1]);
    }
    assert!(
        !jobs[0].contains("--dependency")
            && !jobs[9].contains("--dependency")
            && !jobs[11].contains("--stage")
    );
    for wrong in [&[][..], &["recipes/quickstart.toml", "--parts", "0"], &["x.toml", "--parts"], &["--other"]]
    {
        let end = submit(wrong);
        assert!(end.status.code() == Some(2) && text(&end.stderr).contains("--parts N"), "{wrong:?}");
    }
    let end = submit(&["no-such.toml"]);
    assert!(!end.status.success() && text(&end.stderr).contains("no-such.toml"), "{}", text(&end.stderr));
}

/// The script of the manifest for Kubernetes, as four pods would run it.
#[test]
fn the_pods_of_an_indexed_job_share_the_row_stages() {
    let yaml = fs::read_to_string("scripts/kubernetes/rows.yaml").unwrap();
    let script: String = yaml
        .split_once("- |\n")
        .and_then(|(_, rest)| rest.split_once("          volumeMounts"))
        .map(|(script, _)| script.lines().map(|line| format!("{}\n", line.trim_start())).collect())
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (whole, pods) = (dir.path().join("whole"), dir.path().join("pods"));
    // The recipe stands in one variable: its work folder and sizes are set in a copy.
    let recipe = |work: &Path| {
        let text = fs::read_to_string("recipes/quickstart.toml").unwrap();
        let text =
            text.replace("\"runs/quickstart\"", &format!("\"{}\"\nrows-per-shard = 8", work.display()));
        let text =
            text.replace("[generate]", "[generate]\nlimit = 40").replace(", \"translate-then-sft\"", "");
        let path = work.with_extension("toml");
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (one, shared) = (recipe(&whole), recipe(&pods));
    let place = Path::new(program().get_program()).parent().unwrap().display().to_string();
    let path = format!("{place}:{}", std::env::var("PATH").unwrap());
    let pod = |index: usize| {
        let mut command = Command::new("/bin/sh");
        command.args(["-ec", &script]).env("PATH", &path).env("RECIPE", &shared).env("PARTS", "4");
        command.env("JOB_COMPLETION_INDEX", index.to_string()).env("RAYON_NUM_THREADS", "1");
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let children: Vec<_> = (0..4).map(pod).collect();
    for child in children {
        let end = child.wait_with_output().unwrap();
        assert!(end.status.success(), "{}", text(&end.stderr));
    }
    for stage in ["generate", "translate", "score", "filter", "code-switch"] {
        ok(&["run", &one, "--stage", stage]);
    }
    assert!(contents(&pods).keys().any(|name| name.ends_with("code-switch/manifest.json")));
    assert_equal(&contents(&whole), &contents(&pods), "pods");
}
