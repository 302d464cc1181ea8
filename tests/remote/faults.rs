//! What servers do wrong: each is named, what was answered is kept, and the key is nowhere.
use std::{fs, io::Write, path::Path, thread, time::Duration};

use serde_json::json;

use super::{
    Work, rows,
    server::{Reply, Server, answers, said, said_by},
    succeeds,
};
use crate::cli::{failed, text};

const KEY: &str = "sk-test/0123456789abcdef";
/// The variable that holds it.
const VARIABLE: &str = "REMOTE_TEST_KEY";

/// Every byte below a folder, and what was printed, is without the key.
#[track_caller]
fn without_key(work: &Work, out: &std::process::Output) {
    fn walk(dir: &Path, seen: &mut usize) {
        for path in fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
            if path.is_dir() {
                walk(&path, seen);
                continue;
            }
            *seen += 1;
            let bytes = fs::read(&path).unwrap();
            assert!(!text(&bytes).contains(KEY), "{}", path.display());
        }
    }
    let mut seen = 0;
    walk(work.dir.path(), &mut seen);
    assert!(seen > 0);
    for printed in [&out.stdout, &out.stderr] {
        assert!(!text(printed).contains(KEY), "{}", text(printed));
    }
}

fn raw(body: &str, length: usize) -> Reply {
    let head =
        format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n");
    Reply::Raw(format!("{head}{body}").into_bytes())
}

/// A fault, and the words that its message must have.
type Fault = (&'static str, fn(usize) -> Reply, &'static [&'static str]);

const FAULTS: &[Fault] = &[
    (
        "hangs",
        |_| Reply::Hang(Duration::from_secs(20)),
        &["did not answer in time", "request-timeout", "3 tries"],
    ),
    (
        "answers HTML",
        |_| {
            Reply::Raw(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 26\r\n\r\n<html><body>Hi</body></htm".to_vec())
        },
        &["is no JSON", "text/html", "<html>", "OpenAI-compatible"],
    ),
    (
        "cuts its JSON off",
        |n| raw(&said(n, "x").to_string()[..60], 60),
        &["cut off after 60 bytes", "3 tries"],
    ),
    (
        "promises more than it sends",
        |n| raw(&said(n, "x").to_string(), 100_000),
        &["connection", "failed", "3 tries"],
    ),
    (
        "sends more than it promises",
        |n| raw(&said(n, "x").to_string(), 30),
        &["cut off after 30 bytes", "3 tries"],
    ),
    (
        "speaks no HTTP",
        |_| Reply::Raw(b"SSH-2.0-OpenSSH_9.6\r\n".to_vec()),
        &["connection", "failed", "3 tries"],
    ),
    (
        "fails",
        |_| Reply::Status(500, String::new(), "{\"error\": {\"message\": \"out of memory\"}}".into()),
        &["status 500", "out of memory", "3 tries"],
    ),
    (
        "is overloaded",
        |_| Reply::Status(503, String::new(), "busy".into()),
        &["status 503", "busy", "3 tries"],
    ),
    (
        "wants a long pause",
        |_| Reply::Status(429, "Retry-After: 86400\r\n".into(), "{}".into()),
        &["status 429", "a pause of 86400 s", "run the same command again"],
    ),
    (
        "lets nobody in",
        |_| Reply::Status(401, String::new(), format!("{{\"error\": {{\"message\": \"bad key {KEY}\"}}}}")),
        &["status 401", "bad key [the key]", VARIABLE],
    ),
    (
        "forbids",
        |_| Reply::Status(403, String::new(), format!("<p>{KEY}</p>")),
        &["status 403", "[the key]", VARIABLE],
    ),
    (
        "has no such path",
        |_| Reply::Status(404, String::new(), "{\"detail\": \"Not Found\"}".into()),
        &["status 404", "Not Found", "address of the API"],
    ),
    (
        "refuses a row",
        |_| Reply::Status(400, String::new(), "{\"error\": {\"message\": \"too long\"}}".into()),
        &["status 400", "too long", "questions.jsonl:3", "--on-bad-row skip"],
    ),
    (
        "has no choices",
        |n| Reply::Json(json!({"id": n, "model": "m", "choices": []})),
        &["has no choice", "3 tries"],
    ),
    (
        "sends an error as an answer",
        |_| Reply::Json(json!({"error": {"message": "no worker"}})),
        &["has no choice", "no worker"],
    ),
    (
        "answers twice",
        |n| {
            let mut reply = said(n, "x");
            let one = reply["choices"][0].clone();
            reply["choices"].as_array_mut().unwrap().push(one);
            Reply::Json(reply)
        },
        &["has 2 choices"],
    ),
    (
        "answers in pictures",
        |n| {
            let mut reply = said(n, "x");
            reply["choices"][0]["message"]["content"] = json!([{"type": "image_url"}]);
            Reply::Json(reply)
        },
        &["choices[0].message.content", "a text was expected"],
    ),
    (
        "repeats an answer",
        |_| Reply::Json(said(0, "Number 0 is a small town with a river and two bridges.")),
        &["another request had", "chatcmpl-0", "3 tries"],
    ),
    ("changes its model", |n| Reply::Json(said_by(n, "m-turbo", "x")), &["`m`", "`m-turbo`", "--out"]),
    ("gives the key away", |n| Reply::Json(said(n, &format!("The key is {KEY}."))), &["repeats the API key"]),
    (
        "leaves thoughts in its answers",
        |n| Reply::Json(said(n, "Hm, a town.\n</think>\n\nA town.")),
        &["thoughts", "enable_thinking", "questions.jsonl:3", "--on-bad-row skip"],
    ),
    (
        "writes half a character",
        |n| {
            raw(
                &said(n, "x").to_string().replace("\"x\"", "\"\\ud800 x\""),
                said(n, "\\ud800 x").to_string().len() - 1,
            )
        },
        &["is no JSON (", "hex escape"],
    ),
    (
        "is in another alphabet",
        |_| Reply::Status(500, String::new(), "\u{202e}ошибка 错误".into()),
        &["ошибка 错误"],
    ),
];

/// After two rows the server goes wrong. They are kept; with a server in order, at another address, the same command goes on behind them.
#[test]
fn every_fault_of_a_server_is_named_and_rows_are_kept() {
    thread::scope(|scope| {
        for (name, fault, parts) in FAULTS {
            scope.spawn(move || {
                let work = Work::new(5);
                let server = Server::start(move |n, asked| if n < 2 { answers(n, asked) } else { fault(n) });
                let more = [
                    "--concurrency",
                    "1",
                    "--retries",
                    "2",
                    "--request-timeout",
                    "0.6",
                    "--api-key-env",
                    VARIABLE,
                ];
                let run = |server: &Server, trace: &str| {
                    let mut command = work.command(&server.url(), &more);
                    command.arg("--trace").arg(work.at(trace)).env(VARIABLE, KEY).output().unwrap()
                };
                let out = run(&server, "first.json");
                failed(&out, &[name], parts);
                assert!(
                    text(&out.stderr).contains(server.address()) || parts.contains(&"--out"),
                    "{name}: {}",
                    text(&out.stderr)
                );
                without_key(&work, &out);
                assert_eq!(work.rows().len(), 2, "{name}");
                let server = Server::start(|n, asked| answers(n + 100, asked));
                let out = run(&server, "second.json");
                let shown = succeeds(&out);
                without_key(&work, &out);
                let asked: Vec<String> = server.chats().iter().map(|chat| chat.question()).collect();
                assert_eq!(asked, ["What is number 2?", "What is number 3?", "What is number 4?"], "{name}");
                assert_eq!(work.rows().len(), 5);
                // What was used in both runs.
                assert!(shown.contains("5 answers"), "{name}: {shown}");
            });
        }
    });
}

/// An id that all answers have stands in no answer's way, once two that differ had it; and counts need not be whole numbers, nor small ones.
#[test]
fn ids_may_say_nothing_and_counts_may_be_any_numbers() {
    let work = Work::new(6);
    let server = Server::start(|n, _| {
        let mut reply = said(0, "A small town with a river and two bridges.");
        reply["created"] = json!(n / 3);
        reply["usage"] = json!({"prompt_tokens": 10.0, "completion_tokens": u64::MAX});
        Reply::Json(reply)
    });
    let shown = succeeds(&work.generate(&server.url(), &["--concurrency", "1"]));
    let told = format!("6 answers (2 sent again), 60 prompt and {} completion tokens", u64::MAX);
    assert!(shown.contains(&told), "{shown}");
}

#[test]
fn half_of_the_connections_may_fail() {
    let work = Work::new(20);
    let server = Server::start(|n, asked| if n % 2 == 0 { Reply::Drop } else { answers(n, asked) });
    let shown = succeeds(&work.generate(&server.url(), &["--concurrency", "4", "--retries", "30"]));
    assert!(shown.contains("20 answers (20 sent again)"), "{shown}");
    let ids: Vec<String> = work.rows().iter().map(|row| row["id"].as_str().unwrap().to_string()).collect();
    assert_eq!(ids, (0..20).map(|i| format!("q{i}")).collect::<Vec<_>>());
}

#[test]
fn a_body_of_a_gigabyte_is_not_taken() {
    let work = Work::new(1);
    let mut body = Vec::with_capacity(64 << 20);
    body.write_all(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1073741824\r\n\r\n\"",
    )
    .unwrap();
    body.resize(64 << 20, b' ');
    let server = Server::start(move |_, _| Reply::Raw(body.clone()));
    failed(&work.generate(&server.url(), &["--retries", "0"]), &["a body"], &["more than 16 MiB"]);
}

#[test]
fn a_row_that_the_server_refuses_is_left_out_where_that_is_asked_for() {
    let work = Work::new(4);
    let server = Server::start(|n, asked| match asked.question().contains("number 2?") {
        true => {
            Reply::Status(400, String::new(), "{\"error\": {\"message\": \"maximum context length\"}}".into())
        }
        false => answers(n, asked),
    });
    let out = work.generate(&server.url(), &["--on-bad-row", "skip"]);
    succeeds(&out);
    assert!(
        text(&out.stderr).contains("row q2 is left out")
            && text(&out.stderr).contains("maximum context length")
    );
    let alarms: Vec<_> = work.rows().iter().map(|row| row["answer"]["alarms"].to_string()).collect();
    assert_eq!(alarms, ["[]", "[]", "[\"unanswerable\"]", "[]"]);
}

#[test]
fn no_address_but_the_named_one_is_contacted() {
    let (trap, proxy) = (Server::trap(), Server::trap());
    let to = format!("{}/chat/completions?x=secret", trap.url());
    for status in [301, 302, 303, 307, 308] {
        let (work, to) = (Work::new(1), to.clone());
        let server =
            Server::start(move |_, _| Reply::Status(status, format!("Location: {to}\r\n"), String::new()));
        let mut command = work.command(&server.url(), &["--api-key-env", VARIABLE]);
        for name in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "https_proxy", "HTTPS_PROXY"] {
            command.env(name, format!("http://{}", proxy.address()));
        }
        let out = command.env(VARIABLE, KEY).output().unwrap();
        failed(
            &out,
            &["redirect"],
            &["sends on to", trap.address(), "no address is contacted but the one that was named"],
        );
        assert!(!text(&out.stderr).contains("x=secret") && server.connections() == 2, "{status}");
    }
    assert_eq!((trap.connections(), proxy.connections()), (0, 0));
}

#[test]
fn rows_of_two_models_are_not_mixed() {
    let entry = |params: usize, created: usize| json!({"data": [{"id": "m", "created": created, "meta": {"n_params": params}}]});
    let broken = |n: usize, asked: &super::server::Asked| {
        if n < 2 { answers(n, asked) } else { Reply::Status(500, String::new(), String::new()) }
    };
    let work = Work::new(4);
    let more = ["--concurrency", "1", "--retries", "0"];
    assert!(!work.generate(&Server::with_models(entry(7, 1), broken).url(), &more).status.success());
    // Another one of that name: by what the server lists, before anything is asked ...
    let other = Server::with_models(entry(8, 1), answers);
    failed(
        &work.generate(&other.url(), &more),
        &["listed"],
        &["n_params is 7", "n_params is 8", "Serve the first one again"],
    );
    assert!(other.chats().is_empty());
    // ... and by what its answers say.
    let other = Server::with_models(entry(7, 2), |n, _| Reply::Json(said_by(n, "m-2", "x")));
    failed(&work.generate(&other.url(), &more), &["answered"], &["`m`", "`m-2`", "two models"]);
    assert_eq!(work.rows().len(), 2);
    assert!(fs::read_to_string(work.at("out/remote.jsonl")).unwrap().contains("{\"refused\":\"m-2\"}"));
    succeeds(&work.generate(&Server::with_models(entry(7, 3), answers).url(), &more));
    assert_eq!(rows(&work.at("out")).len(), 4);
}
