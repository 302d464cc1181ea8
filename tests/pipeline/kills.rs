//! Long disturbances: kills at random moments with settings changed between them, parts and runs started at once, a disk that is full at any size.
//! Every end is the undisturbed one, or a named error after which the same command gets there; nothing foreign is touched. A short form runs always;
//! the long one with `--ignored`.
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use sdrrl::data::random::RowRandom;

use super::{parts_at_once, runs_at_once};
use crate::{cli::text, common::program};

/// The quickstart's stages, small.
pub(super) fn arguments(work: &Path) -> Vec<String> {
    let sets = [
        &format!("work={}", work.display()),
        "generate.limit=40",
        "generate.max-new-tokens=12",
        "rows-per-shard=8",
        "train.max-steps=6",
        "train.eval-every=3",
        "train.checkpoint-every=2",
        "train.batch-documents=16",
        "variants=[\"sdrrl\"]",
        "eval.bootstrap-samples=20",
    ];
    let sets = sets.iter().flat_map(|kv| ["--set".to_string(), kv.to_string()]);
    ["run", "recipes/quickstart.toml"].map(String::from).into_iter().chain(sets).collect()
}

/// Of each stage some settings that change its bytes, or only its speed.
const CHANGES: &[&[&str]] = &[
    &[],
    &["generate.max-new-tokens=5"],
    &["generate.limit=33", "rows-per-shard=5"],
    &["translate.engine=\"self\"", "translate.max-new-tokens=4"],
    &["score.aggregate=\"min\""],
    &["filter.tau=0.9", "filter.ignore-alarms=[\"copied\"]"],
    &["code-switch.rate=0.5", "code-switch.seed=3"],
    &["parallel.limit=30", "parallel.seed=9"],
    &["assemble.validation=0.2", "assemble.pairs=[\"S>S\", \"T>T\"]"],
    &["pack.max-length=48"],
    &["train.lr=0.002", "train.lora-rank=4"],
    &["train.batch-tokens=1024", "train.checkpoint-every=1"],
    &["train.max-steps=4", "eval.bootstrap-samples=10"],
    &["dtype=\"bf16\""],
    &["generate.batch-rows=3", "train.checkpoint-every=5"],
];

/// Files of the run that must not differ, and everything else in the folder that is not the run's.
pub(super) fn contents(work: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fn walk(dir: &Path, root: &Path, out: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            if path.is_dir() {
                walk(&path, root, out);
            } else if !name.ends_with(".sdrrl")
                && name != "timing.jsonl"
                && name != "report.html"
                && name != "training.html"
            {
                out.insert(path.strip_prefix(root).unwrap().into(), fs::read(&path).unwrap());
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(work, work, &mut out);
    out
}

#[track_caller]
pub(super) fn assert_equal(a: &BTreeMap<PathBuf, Vec<u8>>, b: &BTreeMap<PathBuf, Vec<u8>>, when: &str) {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>(), "{when}");
    for (name, bytes) in a {
        assert!(b[name] == *bytes, "{when}: {} differs", name.display());
    }
}

fn start(args: &[String], more: &[String]) -> std::process::Child {
    let mut command = program();
    command.args(args).args(more).env("NO_COLOR", "1").env("RAYON_NUM_THREADS", "1");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Puts files of other programs where a run works.
fn plant(work: &Path) {
    for name in
        ["notes.txt", "train-sdrrl/events.out.tfevents.1.other", "pack-sdrrl/mine.bin", "generate/README"]
    {
        let path = work.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "foreign").unwrap();
    }
}

/// `count` kills; after every `per_check` the first command must end with the undisturbed bytes.
fn kills(count: usize, per_check: usize, seed: u64) {
    let dir = tempfile::tempdir().unwrap();
    let (whole, killed) = (dir.path().join("whole"), dir.path().join("killed"));
    plant(&whole);
    plant(&killed);
    let began = Instant::now();
    let end = start(&arguments(&whole), &[]).wait_with_output().unwrap();
    assert!(end.status.success(), "{}", text(&end.stderr));
    let seconds = began.elapsed().as_secs_f64().min(30.0);
    let expected = contents(&whole);
    let args = arguments(&killed);
    let mut random = RowRandom::new(seed, "kill", "moments");
    let mut meant = 0;
    for i in 0..count {
        let mut more = vec!["--restart".to_string()];
        for _ in 0..random.below(3) {
            let change = CHANGES[random.below(CHANGES.len())];
            more.extend(change.iter().flat_map(|kv| ["--set".to_string(), kv.to_string()]));
        }
        let mut child = start(&args, &more);
        // Half of the lives are short: most of a run's moments are at the beginnings and ends of stages.
        let most = if random.below(2) == 0 { 0.1 } else { 0.9 };
        thread::sleep(Duration::from_secs_f64(random.uniform() * most * seconds));
        if child.try_wait().unwrap().is_none() {
            meant += 1;
        }
        child.kill().unwrap();
        let end = child.wait_with_output().unwrap();
        assert!(!text(&end.stderr).contains("panicked"), "kill {i}: {}", text(&end.stderr));
        if (i + 1) % per_check == 0 || i + 1 == count {
            let end = start(&args, &["--restart".to_string()]).wait_with_output().unwrap();
            assert!(end.status.success(), "after kill {i}: {}", text(&end.stderr));
            assert_equal(&expected, &contents(&killed), &format!("after kill {i}"));
        }
    }
    eprintln!("{count} kills, {meant} of them of a living run");
    assert!(2 * meant > count, "most kills came too late");
}

#[test]
fn kills_with_changed_settings_end_as_if_undisturbed() {
    kills(8, 4, 1);
}

#[test]
#[ignore = "200 kills, some minutes"]
fn two_hundred_kills_with_changed_settings_end_as_if_undisturbed() {
    kills(200, 20, 2);
}

#[test]
#[ignore = "50 rounds of 8 processes, some minutes"]
fn eight_parts_at_once_fifty_times() {
    parts_at_once(50);
}

#[test]
#[ignore = "50 rounds of 2 runs, some minutes"]
fn two_runs_at_once_fifty_times() {
    runs_at_once(50);
}

/// A run on a file system with each of these sizes left, KiB; where it is full, the file system grows and the same command goes on. A run does not begin without 64 MiB, so
/// those are there at its beginning, and are taken a moment later.
fn full_disks(sizes: &[usize]) {
    let dir = tempfile::tempdir().unwrap();
    let (whole, mount) = (dir.path().join("whole"), dir.path().join("disk"));
    fs::create_dir_all(&mount).unwrap();
    let end = start(&arguments(&whole), &[]).wait_with_output().unwrap();
    assert!(end.status.success(), "{}", text(&end.stderr));
    let expected = contents(&whole);
    let mut full = 0;
    for size in sizes {
        let out = dir.path().join(format!("out-{size}"));
        // A mount of its own that nobody else sees and that goes with the shell.
        let script =
            "mount -t tmpfs -o size=$(($1 + 67584))k tmpfs \"$2\" || exit 99; out=$3; disk=$2; shift 3
            (sleep 0.2; head -c 69206016 /dev/zero > \"$disk/filler\") 2>/dev/null &
            \"$@\"; code=$?
            wait; rm -f \"$disk/filler\"
            mount -o remount,size=256m \"$disk\" || exit 98
            \"$@\" || exit 97
            cp -r \"$disk/work\" \"$out\" || exit 96
            exit $code";
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", &size.to_string()]);
        command.arg(&mount).arg(&out).arg(program().get_program()).args(arguments(&mount.join("work")));
        let end = command.env("RAYON_NUM_THREADS", "1").stdout(Stdio::null()).output().unwrap();
        let message = text(&end.stderr);
        assert!(!message.contains("panicked"), "{size} KiB: {message}");
        match end.status.code() {
            Some(0) => {}
            Some(1) => {
                full += 1;
                let named = message.contains("error: write ") && message.contains("No space left");
                assert!(named || message.contains("of free disk"), "{size} KiB: {message}");
            }
            code => panic!("{size} KiB: {code:?}: {message}"),
        }
        assert_equal(&expected, &contents(&out), &format!("{size} KiB"));
        fs::remove_dir_all(&out).unwrap();
    }
    eprintln!("{} sizes, full at {full} of them", sizes.len());
    assert!(2 * full >= sizes.len(), "most of the disks were large enough");
}

#[test]
#[ignore = "needs mounts in a user namespace; a minute"]
fn a_disk_that_is_full_at_thirty_sizes() {
    let sizes: Vec<usize> = (0..30).map(|i| 16 + i * i * 4).collect();
    full_disks(&sizes);
}
