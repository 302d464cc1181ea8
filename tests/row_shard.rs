//! Rows on disk survive kills, stale indexes and damaged files.
use std::{fs, path::Path};

use sdrrl::{
    data::{
        record::Row,
        row_shard::{RowSet, RowShard, shard_name, write_rows},
    },
    pipeline::{
        identity::{Identity, Inputs},
        manifest::{FolderState, Manifest},
        rows::{Part, ROW_FILES},
        stage::{self, Made, Open, Ran, Stage},
    },
};
use serde_json::json;

fn rows(n: usize) -> Vec<Row> {
    (0..n)
        .map(|i| Row {
            id: format!("r{i}"),
            instruction: format!("Question {i}\n\u{1f600}"),
            ..Row::default()
        })
        .collect()
}

/// A stage in a few lines: what adding one costs.
struct Upper<'a> {
    input: &'a Path,
    out: &'a Path,
    tau: f64,
    part: Part,
}

impl Stage for Upper<'_> {
    const NAME: &'static str = "test";
    const FILES: &'static [&'static str] = ROW_FILES;

    fn out(&self) -> &Path {
        self.out
    }

    fn part(&self) -> Part {
        self.part
    }

    fn identity(&self) -> anyhow::Result<Identity> {
        Identity::of(&json!({ "tau": self.tau }))
    }

    fn inputs(&self) -> anyhow::Result<Inputs> {
        Ok(Inputs::new().file("rows", self.input))
    }

    fn run(&mut self, open: &mut Open) -> anyhow::Result<Made> {
        open.map_rows(self.input, 4, &mut upper)?.made(Self::NAME, "")
    }
}

fn upper(mut rows: Vec<Row>) -> anyhow::Result<Vec<Row>> {
    for row in &mut rows {
        row.output = row.instruction.to_uppercase();
    }
    Ok(rows)
}

/// The bytes of every file of a folder.
fn snapshot(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap())
        .map(|e| (e.file_name().to_string_lossy().to_string(), fs::read(e.path()).unwrap()))
        .collect();
    files.sort();
    files
}

fn run(input: &Path, out: &Path, tau: f64) -> Ran {
    stage::run(&mut Upper { input, out, tau, part: Part::default() }).unwrap()
}

#[test]
fn rows_come_back_as_written_over_several_shards() {
    let dir = tempfile::tempdir().unwrap();
    let all = rows(25);
    assert_eq!(write_rows(dir.path(), &all, 10).unwrap(), 25);
    let set = RowSet::open(dir.path()).unwrap();
    assert_eq!((set.len(), set.shards().len()), (25, 3));
    assert!(set.shards().iter().all(RowShard::is_indexed));
    assert_eq!(set.iter::<Row>().collect::<anyhow::Result<Vec<_>>>().unwrap(), all);
    assert_eq!(set.get::<Row>(10).unwrap(), all[10]);
    assert!(set.get::<Row>(25).is_err());
    write_rows(dir.path(), &all[..3], 10).unwrap();
    assert_eq!(RowSet::open(dir.path()).unwrap().len(), 3, "shards of the longer run must go");
}

#[test]
fn a_stage_is_skipped_only_while_nothing_changed() {
    let dir = tempfile::tempdir().unwrap();
    let (input, out) = (dir.path().join("in"), dir.path().join("out"));
    write_rows(&input, rows(9), 4).unwrap();
    assert_eq!(run(&input, &out, 0.8), Ran::Made);
    let first = snapshot(&out);
    assert_eq!(run(&input, &out, 0.8), Ran::Unchanged);
    let state = |tau: f64| {
        let identity = Identity::of(&json!({ "tau": tau })).unwrap();
        let inputs = Inputs::new().file("rows", &input);
        Manifest::expected("test", &inputs, &identity).unwrap().state(&out).unwrap()
    };
    assert_eq!(state(0.8), FolderState::Done);
    assert_eq!(state(0.75), FolderState::Changed(vec!["settings.tau: 0.8 -> 0.75".into()]));
    assert_eq!(run(&input, &out, 0.75), Ran::Made);
    assert_eq!(run(&input, &out, 0.8), Ran::Made);
    assert_eq!(snapshot(&out), first, "same inputs and settings, same bytes");
    fs::remove_file(out.join(shard_name(1))).unwrap();
    assert_eq!(run(&input, &out, 0.8), Ran::Made, "an output is gone");
    write_rows(&input, rows(8), 4).unwrap();
    assert_eq!(run(&input, &out, 0.8), Ran::Made, "the input changed");
    assert_eq!(RowSet::open(&out).unwrap().len(), 8);
    assert!(!out.join(shard_name(2)).exists());
}

#[test]
#[cfg(target_os = "linux")]
fn what_a_killed_writer_left_is_removed_and_a_living_one_is_let_be() {
    let dir = tempfile::tempdir().unwrap();
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let left = |name: &str| dir.path().join(name);
    let mut child = std::process::Command::new("true").spawn().unwrap();
    let gone = child.id();
    child.wait().unwrap();
    let (host, alive) = (host.trim(), std::process::id());
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let start = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap();
    // A process that is gone, and one whose number another process has now.
    let dead = [
        left(&format!("a.json.{host}-{gone}-77.partial")),
        left(&format!("a.json.{host}-{alive}-1{start}.partial")),
    ];
    let kept = [
        format!("a.json.{host}-{alive}-{start}.partial"),
        format!("a.json.elsewhere-{gone}-77.partial"),
        format!("b.json.{host}-{gone}-77.partial"),
        format!("a.json.{host}-mine.partial"),
        format!("a.json.{host}-{gone}.partial"),
    ];
    kept[1..].iter().map(|k| left(k)).chain(dead.clone()).for_each(|p| std::fs::write(p, "half").unwrap());
    sdrrl::data::files::write_atomic(&left("a.json"), b"{}").unwrap();
    std::fs::write(left(&kept[0]), "half").unwrap();
    sdrrl::data::files::write_atomic(&left("c.json"), b"{}").unwrap();
    assert!(dead.iter().all(|d| !d.exists()), "process {alive} left what {gone} had begun");
    assert!(kept.iter().all(|k| left(k).exists()));
    assert_eq!(std::fs::read(left("a.json")).unwrap(), b"{}");
}
