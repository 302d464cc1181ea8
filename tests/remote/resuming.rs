//! Kills, Ctrl-C and parts: the rows are those of an undisturbed run, and few are asked about twice.
use std::{fs, process::Stdio, thread, time::Duration};

use rustix::process::{Pid, Signal, kill_process};

use super::{
    Work,
    server::{Server, answers},
    succeeds,
};
use crate::{cli::text, common::program};

const ROWS: usize = 60;
const MORE: [&str; 4] = ["--concurrency", "4", "--rows-per-shard", "20"];

fn slow() -> Server {
    Server::start(|n, asked| {
        thread::sleep(Duration::from_millis(15));
        answers(n, asked)
    })
}

fn shards(work: &Work) -> Vec<Vec<u8>> {
    (0..3).map(|i| fs::read(work.at(&format!("out/rows-{i:05}.jsonl"))).unwrap()).collect()
}

fn undisturbed() -> Vec<Vec<u8>> {
    let work = Work::new(ROWS);
    succeeds(&work.generate(&Server::start(answers).url(), &MORE));
    shards(&work)
}

#[test]
fn a_run_that_is_stopped_goes_on_at_the_row_where_it_was() {
    let expected = undisturbed();
    for (signal, code) in [(Signal::KILL, None), (Signal::INT, Some(130))] {
        let (work, server) = (Work::new(ROWS), slow());
        for asked in [10, 30, 45] {
            let mut child = work
                .command(&server.url(), &MORE)
                .stderr(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            while server.chats().len() < asked && child.try_wait().unwrap().is_none() {
                thread::sleep(Duration::from_millis(2));
            }
            kill_process(Pid::from_child(&child), signal).unwrap();
            assert_eq!(child.wait().unwrap().code(), code);
        }
        let kept = work.rows().len();
        assert!(kept >= 20, "{kept}");
        succeeds(&work.generate(&server.url(), &MORE));
        assert_eq!(shards(&work), expected, "{signal:?}");
        // Up to twice the requests under way are begun ahead of the row that is written, and those under way besides.
        let chats = server.chats().len();
        assert!((ROWS..=ROWS + 3 * (2 * 4 + 4 + 3)).contains(&chats), "{chats}");
    }
}

/// A file has the answers so far, and nobody is told that it is gone on with.
#[test]
fn a_file_is_not_said_to_be_resumed() {
    let (work, server) = (Work::new(12), slow());
    let url = server.url();
    let engine =
        ["generate", "--engine", "openai", "--remote-model", "m", "--concurrency", "1", "--endpoint", &url];
    let mut command = program();
    command
        .args(engine)
        .arg("--prompts")
        .arg(work.at("questions.jsonl"))
        .arg("--out")
        .arg(work.at("answers.jsonl"));
    let child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    while server.chats().len() < 6 {
        thread::sleep(Duration::from_millis(5));
    }
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let out = child.wait_with_output().unwrap();
    let told = text(&out.stderr);
    assert_eq!(out.status.code(), Some(130), "{told}");
    assert!(told.contains("begins anew") && !told.contains("resume"), "{told}");
    let kept = fs::read_to_string(work.at("answers.jsonl")).unwrap();
    assert_eq!(kept.lines().count(), 4, "{kept}");
}

#[test]
fn parts_at_the_same_time_share_a_folder_and_its_record() {
    let (work, server) = (Work::new(ROWS), slow());
    let parts: Vec<_> = (1..=3)
        .map(|i| {
            let part = format!("{i}/3");
            work.command(&server.url(), &MORE).args(["--part", &part]).stdout(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    parts.into_iter().for_each(|part| assert!(part.wait_with_output().unwrap().status.success()));
    assert_eq!(shards(&work), undisturbed());
    assert_eq!(server.chats().len(), ROWS);
    let lines = fs::read_to_string(work.at("out/remote.jsonl")).unwrap();
    let answers: u64 = lines
        .lines()
        .filter_map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["usage"]["answers"].as_u64())
        .sum();
    assert_eq!(answers, ROWS as u64, "{lines}");
    assert_eq!(work.manifest()["summary"]["remote"]["served"]["model"], "m");
}
