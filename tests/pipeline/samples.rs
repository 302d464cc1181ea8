//! Several samples of an answer: the same bytes in parts, after kills and in any batch; what makes no sense is refused by name.
use std::{fs, thread, time::Duration};

use sdrrl::data::{random::RowRandom, record::Row};

use super::{MODEL, QUESTIONS, generate, ok, rows, start};
use crate::cli::{fails, text};

/// The closed world knows its answers: at temperature 1 they are all the same.
const SAMPLES: [&str; 6] = ["--samples", "5", "--temperature", "2", "--seed", "3"];

#[test]
fn samples_are_the_same_in_parts_after_kills_and_in_any_batch() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    ok(&generate(&at("whole"), &SAMPLES));
    let whole = rows(&dir.path().join("whole"));
    let parts = at("parts");
    let started = ["1/3", "2/3", "3/3"].map(|part| {
        start(&generate(&parts, &[&SAMPLES[..], &["--part", part, "--batch-rows", "7"]].concat()))
    });
    for child in started {
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "{}", text(&out.stderr));
    }
    assert!(rows(&dir.path().join("parts")) == whole, "parts");
    let killed = at("killed");
    let small = [&SAMPLES[..], &["--batch-rows", "1", "--batch-tokens", "20"]].concat();
    let mut random = RowRandom::new(2, "kill", "samples");
    for _ in 0..6 {
        let mut child = start(&generate(&killed, &small));
        thread::sleep(Duration::from_millis(30 + random.below(250) as u64));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    ok(&generate(&killed, &small));
    assert!(rows(&dir.path().join("killed")) == whole, "killed");

    let read =
        |file: &str| -> Vec<Row> { file.lines().map(|line| serde_json::from_str(line).unwrap()).collect() };
    let all: Vec<Row> = whole.iter().flat_map(|(_, bytes)| read(&text(bytes))).collect();
    let mut others = 0;
    for row in &all {
        let answer = row.answer.as_ref().unwrap();
        let choice = answer.choice.as_ref().unwrap();
        assert_eq!((choice.alarms.len(), choice.agreement.len()), (5, 5));
        assert_eq!(answer.alarms, choice.alarms[choice.taken]);
        assert!(choice.agreement.iter().all(|x| *x <= choice.agreement[choice.taken]));
        others += usize::from(choice.taken > 0);
    }
    assert!(others > 5, "only {others} of {} took another than the first sample", all.len());

    // The first sample is what a row with one sample gets.
    ok(&generate(&at("one.jsonl"), &["--temperature", "2", "--seed", "3"]));
    let one = read(&fs::read_to_string(at("one.jsonl")).unwrap());
    let first = |row: &&Row| row.answer.as_ref().unwrap().choice.as_ref().unwrap().taken == 0;
    let same = all.iter().zip(&one).filter(|(row, _)| first(row));
    let mut seen = 0;
    for (row, one) in same {
        let (a, b) = (row.answer.as_ref().unwrap(), one.answer.as_ref().unwrap());
        assert_eq!((&a.ids, &row.id), (&b.ids, &one.id));
        seen += 1;
    }
    assert!(seen > 5, "{seen}");
}

#[test]
fn samples_that_are_all_the_same_are_refused_before_any_work() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out").to_string_lossy().into_owned();
    fails(&generate(&out, &["--samples", "3"]), &["generate.samples is 3", "generate.temperature above 0"]);
    let asked = ["generate", "--model", MODEL, "--prompt", "What?", "--samples", "3", "--temperature", "1"];
    fails(&asked, &["--samples chooses among finished answers"]);
    let work = format!("work={}", dir.path().join("run").display());
    let questions = format!("questions=[\"{QUESTIONS}\"]");
    let sets = [work.as_str(), "generate.samples=3", questions.as_str()];
    let mut run = vec!["run", "recipes/quickstart.toml", "--check"];
    sets.iter().for_each(|set| run.extend(["--set", set]));
    fails(&run, &["generate.samples is 3"]);
    run.extend(["--set", "generate.temperature=0.7"]);
    ok(&run);
}
