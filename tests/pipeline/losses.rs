//! Rows in are rows out and rows dropped by reason, in every stage: a loss that is planted in what a stage reads, or in what it writes, ends it.
use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;
use sdrrl::{
    data::row_shard::RowSet,
    models::weights::{pickle, safetensors::Checkpoint},
    pipeline::{
        identity::{Identity, Inputs},
        manifest::{Counts, Manifest},
        stage::{Made, Open, Stage, run},
    },
};
use serde_json::{Value, json};

use super::{MODEL, PHRASES, QUESTIONS, manifest};
use crate::cli::{fails, ok};

/// Copies the rows of a folder, but for what it loses.
struct Copy<'a> {
    from: Option<&'a Path>,
    out: &'a Path,
    /// Rows that it does not see, and shards that go while it writes.
    unseen: usize,
    gone: usize,
}

impl Stage for Copy<'_> {
    const NAME: &'static str = "copy";
    const FILES: &'static [&'static str] = &["rows-*.jsonl", "rows-*.idx"];

    fn out(&self) -> &Path {
        self.out
    }

    fn identity(&self) -> Result<Identity> {
        Identity::of(&json!({}))
    }

    fn inputs(&self) -> Result<Inputs> {
        Ok(Inputs::new().maybe("rows", self.from))
    }

    fn run(&mut self, open: &mut Open) -> Result<Made> {
        let rows: Vec<Value> = match self.from {
            Some(dir) => RowSet::open(dir)?.iter().collect::<Result<_>>()?,
            None => (0..6).map(|i| json!({"id": i.to_string()})).collect(),
        };
        let rows = &rows[self.unseen..];
        let written = open.write_rows(rows, 2)?;
        (0..self.gone).try_for_each(|i| fs::remove_file(open.path(&format!("rows-{i:05}.jsonl"))))?;
        // It believes that all is well.
        Ok(Made::new(())?.counting(Counts { read: rows.len(), written, ..Counts::default() }))
    }
}

#[test]
fn a_loss_that_a_stage_does_not_notice_itself_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    run(&mut Copy { from: None, out: &first, unseen: 0, gone: 0 }).unwrap();
    let copy = |unseen, gone| run(&mut Copy { from: Some(&first), out: &second, unseen, gone });
    let error = format!("{:#}", copy(1, 0).unwrap_err());
    assert!(error.contains("hold 6 rows, but 5 of them came in"), "{error}");
    let error = format!("{:#}", copy(0, 1).unwrap_err());
    assert!(error.contains("6 rows were written") && error.contains("holds 4"), "{error}");
    assert!(Manifest::load(&second).unwrap().is_none());
    copy(0, 0).unwrap();
    assert_eq!(manifest(&second)["counts"], json!({"read": 6, "written": 6, "dropped": {}}));
}

/// A stage's command line, and the folder that it reads.
struct Step {
    name: &'static str,
    args: Vec<String>,
    reads: &'static str,
}

/// Every stage that reads rows, in the order of a run; small shards, so that one of several can be lost.
fn steps(at: &dyn Fn(&str) -> String) -> Vec<Step> {
    let step = |name, reads: &'static str, out: &str, more: &str| {
        let line = format!("{name} {more} --out {}", at(out));
        Step { name, args: line.split_whitespace().map(String::from).collect(), reads }
    };
    let input = |folder: &str| format!("--input {} --source-language en --target-languages es", at(folder));
    let (phrases, words) = (PHRASES, "assets/quickstart/world/words.en-es.txt");
    vec![
        step("translate", "g", "t", &format!("{} --file {phrases}", input("g"))),
        step("score", "t", "s", &format!("{} --file {words}", input("t"))),
        step("filter", "s", "f", &format!("{} --tau 0.2", input("s"))),
        step("sweep", "s", "w", &format!("{} --taus 0.2,0.5", input("s"))),
        step("code-switch", "f", "c", &format!("{} --dictionary {words}", input("f"))),
        step("assemble", "c", "a", &format!("{} --parallel {}", input("c"), at("p"))),
        step("assemble", "p", "b", &format!("{} --parallel {}", input("c"), at("p"))),
        step("pack", "a", "k", &format!("--model {MODEL} --examples {}", at("a"))),
    ]
}

/// The second shard of a folder of rows, or its only one.
fn last_shard(dir: &Path) -> PathBuf {
    let names = fs::read_dir(dir).unwrap().flatten().map(|e| e.path());
    let mut shards: Vec<PathBuf> = names.filter(|p| p.extension().is_some_and(|e| e == "jsonl")).collect();
    shards.sort();
    shards.pop().unwrap()
}

/// What is lost behind a stage's back between it and the next: a shard, or the end of one with its index made anew.
#[test]
fn a_loss_before_any_stage_ends_it_and_every_manifest_adds_up() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let questions = fs::read_to_string(QUESTIONS).unwrap();
    // One row that is dropped for a reason, and some beyond the limit.
    let bad = "{\"instruction\": \" \"}\n";
    fs::write(at("q.jsonl"), format!("{bad}{questions}")).unwrap();
    let line = format!(
        "generate --model {MODEL} --prompts {} --out {} --limit 20 --max-new-tokens 24 --rows-per-shard 7 --on-bad-row skip",
        at("q.jsonl"),
        at("g")
    );
    ok(&line.split(' ').collect::<Vec<_>>());
    let counts = &manifest(&dir.path().join("g/questions"))["counts"];
    let there = questions.lines().count();
    assert_eq!((&counts["read"], &counts["written"]), (&json!(there + 1), &json!(20)), "{counts}");
    assert_eq!(counts["dropped"], json!({"beyond the limit": there - 20, "the question is empty": 1}));
    let pairs = "assets/quickstart/world/parallel.en-es.tsv";
    let line = format!(
        "parallel --out {} --file {pairs} --limit 20 --source-language en --target-languages es",
        at("p")
    );
    ok(&line.split(' ').collect::<Vec<_>>());
    for step in steps(&at) {
        let args: Vec<&str> = step.args.iter().map(String::as_str).collect();
        let lost = last_shard(&dir.path().join(step.reads));
        let (index, text) = (lost.with_extension("idx"), fs::read_to_string(&lost).unwrap());
        let indexed = fs::read(&index).unwrap();
        // All of the shard, and its last row.
        let shorter = text.trim_end().rsplit_once('\n').map_or("", |(before, _)| before).to_string() + "\n";
        for planted in ["", &shorter] {
            fs::remove_file(&index).unwrap();
            match planted {
                "" => fs::remove_file(&lost).unwrap(),
                rows => fs::write(&lost, rows).unwrap(),
            }
            fails(&args, &["rows"]);
            fs::write(&lost, &text).unwrap();
            let _ = fs::remove_file(&index);
            fs::write(&index, &indexed).unwrap();
        }
        ok(&args);
        let out = dir.path().join(args.last().unwrap());
        let counts = &manifest(&out)["counts"];
        let dropped: u64 = counts["dropped"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
        let (read, written) = (counts["read"].as_u64().unwrap(), counts["written"].as_u64().unwrap());
        assert!(read > 0 && read == written + dropped, "{}: {counts}", step.name);
    }
}

/// Questions lost between the parts of one `generate`, lines of a parallel corpus, tensors of an import.
#[test]
fn questions_lines_and_tensors_are_counted_from_outside() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let part = |k: usize| {
        format!(
            "generate --model {MODEL} --prompts {QUESTIONS} --out {} --limit 20 --max-new-tokens 8 --rows-per-shard 7 --part {k}/2",
            at("g")
        )
    };
    let (first, second) = (part(1), part(2));
    let second: Vec<&str> = second.split(' ').collect();
    ok(&first.split(' ').collect::<Vec<_>>());
    // What the other part would read is made again from the file of questions.
    let lost = dir.path().join("g/questions/rows-00001.jsonl");
    let text = fs::read_to_string(&lost).unwrap();
    let shorter = text.trim_end().rsplit_once('\n').unwrap().0.to_string() + "\n";
    fs::write(&lost, shorter).unwrap();
    fs::remove_file(lost.with_extension("idx")).unwrap();
    ok(&second);
    assert_eq!(fs::read_to_string(&lost).unwrap(), text);
    assert_eq!(manifest(&dir.path().join("g"))["counts"], json!({"read": 20, "written": 20, "dropped": {}}));
    assert_eq!(RowSet::open(&dir.path().join("g")).unwrap().len(), 20);

    let pairs = "assets/quickstart/world/parallel.en-es.tsv";
    let lines = fs::read_to_string(pairs).unwrap();
    fs::write(at("p.tsv"), format!("{lines}{}\n\tnothing\n", lines.lines().next().unwrap())).unwrap();
    let line = format!(
        "parallel --out {} --file {} --limit 20 --source-language en --target-languages es",
        at("p"),
        at("p.tsv")
    );
    ok(&line.split(' ').collect::<Vec<_>>());
    let counts = &manifest(&dir.path().join("p"))["counts"];
    assert_eq!((&counts["read"], &counts["written"]), (&json!(lines.lines().count() + 2), &json!(20)));
    let dropped = counts["dropped"].as_object().unwrap();
    assert_eq!(dropped["empty or repeated"], 2, "{counts}");
    assert_eq!(
        dropped.values().map(|n| n.as_u64().unwrap()).sum::<u64>() as usize,
        lines.lines().count() - 18
    );

    let model = "tests/golden/cometkiwi/model";
    ok(&["import", "--model", model, "--out", &at("i")]);
    let counts = &manifest(&dir.path().join("i"))["counts"];
    let written = counts["written"].as_u64().unwrap() as usize;
    assert_eq!(Checkpoint::open(&dir.path().join("i")).unwrap().names().len(), written);
    let dropped: u64 = counts["dropped"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
    let pickle = Path::new(model).join("checkpoints/model.ckpt");
    let there = pickle::read(&pickle, &fs::read(&pickle).unwrap()).unwrap().len();
    assert_eq!((counts["read"].as_u64().unwrap() as usize, written + dropped as usize), (there, there));
}

/// A baseline leaves the parallel sentences out and says so, or takes them all.
#[test]
fn a_baseline_takes_parallel_sentences_where_it_is_asked_to() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let run = |line: &str| ok(&line.split(' ').collect::<Vec<_>>());
    let languages = "--source-language en --target-languages es";
    run(&format!(
        "generate --model {MODEL} --prompts {QUESTIONS} --out {} --limit 8 --max-new-tokens 8",
        at("g")
    ));
    let pairs = "assets/quickstart/world/parallel.en-es.tsv";
    run(&format!("parallel --out {} --file {pairs} --limit 20 {languages}", at("p")));
    let sft = format!("assemble --input {} --parallel {} --variant sft {languages}", at("g"), at("p"));
    let said = run(&format!("{sft} --out {}", at("a")));
    assert!(
        said.contains("assemble sft: without the parallel sentences (parallel-in-baselines takes them)"),
        "{said}"
    );
    let said = run(&format!("{sft} --parallel-in-baselines true --out {}", at("b")));
    assert!(!said.contains("without the parallel"), "{said}");
    let pairs = |folder: &str| manifest(&dir.path().join(folder))["summary"]["pairs"].clone();
    // Each in both directions.
    assert_eq!(
        (&pairs("a")["parallel"], &pairs("b")["parallel"]),
        (&json!(null), &json!(40)),
        "{}",
        pairs("b")
    );
    assert_eq!(pairs("a")["sft"], pairs("b")["sft"]);
}
