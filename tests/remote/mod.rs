//! Engine `openai` of `generate`, `translate` and `score`: rows in their order, resumption, usage, pace; equal to the local engine behind `sdrrl serve`.
mod faults;
mod judging;
mod resuming;
mod server;
mod settings;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Output,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use self::server::{Reply, Server, answer_to, said};
use crate::{
    cli::{ok, text},
    common::program,
};

pub use self::server::{Server as TestServer, answers};

const MODEL: &str = "assets/quickstart/model";

/// A folder with questions q0, q1, ...
pub struct Work {
    dir: TempDir,
}

impl Work {
    pub fn new(questions: usize) -> Work {
        let work = Work { dir: tempfile::tempdir().unwrap() };
        let row = |i: usize| json!({"id": format!("q{i}"), "question": format!("What is number {i}?"), "answer": "A town."});
        let rows: String = (0..questions).map(|i| format!("{}\n", row(i))).collect();
        fs::write(work.at("questions.jsonl"), rows).unwrap();
        work
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `generate` with engine `openai` into the folder `out`.
    fn generate(&self, url: &str, more: &[&str]) -> Output {
        self.command(url, more).output().unwrap()
    }

    pub fn command(&self, url: &str, more: &[&str]) -> std::process::Command {
        let mut command = program();
        command.args([
            "generate",
            "--engine",
            "openai",
            "--remote-model",
            "m",
            "--endpoint",
            url,
            "--prompts",
        ]);
        command
            .arg(self.at("questions.jsonl"))
            .arg("--out")
            .arg(self.at("out"))
            .args(more)
            .env("NO_COLOR", "1");
        command
    }

    fn rows(&self) -> Vec<Value> {
        rows(&self.at("out"))
    }

    fn manifest(&self) -> Value {
        serde_json::from_str(&fs::read_to_string(self.at("out/manifest.json")).unwrap()).unwrap()
    }
}

fn rows(dir: &Path) -> Vec<Value> {
    let mut text = String::new();
    let mut names: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    names.sort();
    for name in names.iter().filter(|n| {
        let n = n.file_name().unwrap().to_string_lossy();
        n.starts_with("rows-") && (n.ends_with(".jsonl") || n.ends_with(".partial"))
    }) {
        text += &fs::read_to_string(name).unwrap();
    }
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[track_caller]
fn succeeds(out: &Output) -> String {
    assert!(out.status.success(), "{}{}", text(&out.stdout), text(&out.stderr));
    text(&out.stdout)
}

#[test]
fn rows_come_in_their_order_whatever_arrives_first() {
    let mut files = BTreeMap::new();
    for concurrency in ["1", "3", "16"] {
        let work = Work::new(40);
        // The earlier a row, the later its answer.
        let server = Server::start(|n, asked| {
            let number: u64 =
                asked.question().chars().filter(char::is_ascii_digit).collect::<String>().parse().unwrap();
            thread::sleep(Duration::from_millis(if number.is_multiple_of(8) { 60 } else { 1 }));
            answers(n, asked)
        });
        let shown = succeeds(
            &work.generate(&server.url(), &["--concurrency", concurrency, "--rows-per-shard", "16"]),
        );
        assert!(shown.contains("40 answers, 400 prompt and 120 completion tokens"), "{shown}");
        let rows = work.rows();
        assert_eq!(rows.len(), 40);
        for (i, row) in rows.iter().enumerate() {
            assert_eq!(
                (&row["id"], row["answer"]["text"].as_str()),
                (&json!(format!("q{i}")), Some(answer_to(&i.to_string()).as_str()))
            );
            assert_eq!(
                (&row["answer"]["model"], &row["answer"]["tokens"], &row["answer"]["finish"]),
                (&json!("m"), &json!(3), &json!("stop"))
            );
            assert_eq!(row["answer"]["alarms"], json!([]));
        }
        let manifest = work.manifest();
        let remote = &manifest["summary"]["remote"];
        assert_eq!(
            remote["usage"],
            json!({"answers": 40, "sent-again": 0, "prompt-tokens": 400, "completion-tokens": 120})
        );
        assert_eq!(
            (&remote["served"]["model"], &remote["served"]["listed"]["owned_by"]),
            (&json!("m"), &json!("test"))
        );
        assert_eq!(
            manifest["settings"]["remote"],
            json!({"remote-model": "m", "stop": [], "extra-body": null}),
            "what does not decide bytes is no identity"
        );
        // Finished: nobody is asked again, wherever the server is.
        let trap = Server::trap();
        assert!(
            succeeds(&work.generate(&trap.url(), &["--concurrency", "2", "--rows-per-shard", "16"]))
                .contains("unchanged")
        );
        assert_eq!(trap.connections(), 0);
        let bytes = ["rows-00000.jsonl", "rows-00001.jsonl", "rows-00002.jsonl"]
            .map(|n| fs::read(work.at("out").join(n)).unwrap());
        assert_eq!(*files.entry("rows").or_insert(bytes.clone()), bytes, "concurrency {concurrency}");
    }
}

#[test]
fn what_is_set_is_asked_for_and_nothing_else() {
    let work = Work::new(2);
    let server = Server::start(answers);
    let out = work
        .command(
            &server.url(),
            &[
                "--api-key-env",
                "REMOTE_TEST_KEY",
                "--temperature",
                "0.7",
                "--top-p",
                "0.9",
                "--max-new-tokens",
                "33",
            ],
        )
        .args([
            "--samples",
            "2",
            "--stop",
            "###",
            "--system",
            "Be brief.",
            "--extra-body",
            "{\"repetition_penalty\": 1.1}",
        ])
        .env("REMOTE_TEST_KEY", "a-key-of-a-test")
        .output()
        .unwrap();
    succeeds(&out);
    let chats = server.chats();
    assert_eq!(chats.len(), 4, "two samples a row, each a request of its own");
    for chat in &chats {
        let mut body = chat.body.clone();
        let seed = body.as_object_mut().unwrap().remove("seed").unwrap().as_u64().unwrap();
        assert!(seed < 1 << 31);
        let question = body["messages"][1]["content"].as_str().unwrap().to_string();
        let messages =
            json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": question}]);
        assert_eq!(
            body,
            json!({"model": "m", "messages": messages, "max_tokens": 33, "temperature": 0.7, "top_p": 0.9, "stop": ["###"], "repetition_penalty": 1.1})
        );
        assert!(chat.head.to_lowercase().contains("authorization: bearer a-key-of-a-test"), "{}", chat.head);
    }
    let seeds: std::collections::BTreeSet<u64> =
        chats.iter().map(|c| c.body["seed"].as_u64().unwrap()).collect();
    assert_eq!(seeds.len(), 4, "each sample draws for itself");
}

#[test]
fn answers_that_are_not_whole_are_marked() {
    let ends = [("length", "truncated"), ("content_filter", "truncated"), ("stop", "empty")];
    let work = Work::new(3);
    let server = Server::start(move |_, asked| {
        let i: usize =
            asked.question().chars().filter(char::is_ascii_digit).collect::<String>().parse().unwrap();
        let mut reply = said(i, "The town has a river");
        reply["choices"][0]["finish_reason"] = json!(ends[i].0);
        if ends[i].0 == "stop" {
            reply["choices"][0]["message"] =
                json!({"role": "assistant", "content": null, "reasoning": "Hm."});
        }
        Reply::Json(reply)
    });
    succeeds(&work.generate(&server.url(), &[]));
    for (row, (finish, alarm)) in work.rows().iter().zip(ends) {
        assert_eq!((&row["answer"]["finish"], &row["answer"]["alarms"]), (&json!(finish), &json!([alarm])));
    }
    assert!(server.chats().iter().all(|c| c.body.get("seed").is_none()
        && c.body["max_tokens"] == 256
        && c.body["temperature"] == 0.0));
}

/// The strongest check there is: behind this repository's own server a greedy model gives what it gives here.
#[test]
fn behind_serve_greedy_rows_are_those_of_the_local_engines() {
    let server = crate::serve::Server::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let url = format!("http://{}/v1", server.address);
    let remote = ["--engine", "openai", "--endpoint", &url, "--remote-model", "model"];
    let questions = [
        "generate",
        "--prompts",
        "assets/quickstart/world/questions.en.jsonl",
        "--limit",
        "24",
        "--max-new-tokens",
        "24",
    ];
    ok(&[&questions[..], &["--model", MODEL, "--out", &at("local")]].concat());
    ok(&[&questions[..], &remote, &["--out", &at("remote")]].concat());
    let without_ids = |dir: &str| {
        let mut rows = rows(Path::new(&at(dir)));
        rows.iter_mut().for_each(|row| drop(row["answer"].as_object_mut().unwrap().remove("ids")));
        rows
    };
    let (local, far) = (without_ids("local"), without_ids("remote"));
    assert!(local.len() == 24 && local[0]["answer"]["tokens"].as_u64().unwrap() > 0);
    assert_eq!(local, far, "text, model, finish, tokens and alarms");
    // To a file and to standard output it is the same.
    ok(&[&questions[..], &remote, &["--out", &at("rows.jsonl")]].concat());
    assert_eq!(
        fs::read_to_string(at("rows.jsonl")).unwrap(),
        fs::read_to_string(at("remote/rows-00000.jsonl")).unwrap()
    );
    let alone = ["generate", "--prompt", "What is the pet of Polol?", "--max-new-tokens", "16"];
    assert_eq!(ok(&[&alone[..], &remote].concat()), ok(&[&alone[..], &["--model", MODEL]].concat()));
    let translate =
        ["translate", "--input", &at("local"), "--target-languages", "es", "--max-new-tokens", "12"];
    ok(&[&translate[..], &["--engine", "self", "--model", MODEL, "--out", &at("t-local")]].concat());
    ok(&[&translate[..], &remote, &["--out", &at("t-remote")]].concat());
    let texts = |dir: &str| {
        let mut rows = rows(Path::new(&at(dir)));
        rows.iter_mut()
            .for_each(|row| drop(row["translations"]["es"].as_object_mut().unwrap().remove("engine")));
        rows
    };
    assert!(texts("t-local")[0]["translations"]["es"]["instruction"].as_str().is_some_and(|t| !t.is_empty()));
    assert_eq!(texts("t-local"), texts("t-remote"));
    assert_eq!(rows(Path::new(&at("t-remote")))[0]["translations"]["es"]["engine"], "openai model");
}

#[test]
fn requests_keep_to_a_rate_and_wait_when_told_to() {
    let work = Work::new(5);
    let server = Server::start(answers);
    // Ten a second.
    succeeds(&work.generate(&server.url(), &["--requests-per-minute", "600"]));
    let times: Vec<Instant> = server.chats().iter().map(|chat| chat.at).collect();
    let span = *times.iter().max().unwrap() - *times.iter().min().unwrap();
    assert!(span >= Duration::from_millis(360), "{span:?}");
    // One second by its header, where the first pause of our own is half of that.
    let work = Work::new(3);
    let server = Server::start(|n, asked| match n {
        0 => Reply::Status(
            429,
            "Retry-After: 1\r\n".into(),
            "{\"error\": {\"message\": \"slow down\"}}".into(),
        ),
        n => answers(n, asked),
    });
    let shown = succeeds(&work.generate(&server.url(), &["--concurrency", "1"]));
    assert!(shown.contains("3 answers (1 sent again)"), "{shown}");
    let chats = server.chats();
    assert!(chats[1].at - chats[0].at >= Duration::from_millis(950));
}
