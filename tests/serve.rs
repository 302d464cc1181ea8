//! `sdrrl serve` as clients meet it: OpenAI's API whole and in pieces, many at once, and everything that a client should not do.
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, ChildStdout, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::{cli::ok, common::program};

const MODEL: &str = "assets/quickstart/model";

pub struct Server {
    child: Child,
    pub address: String,
    out: BufReader<ChildStdout>,
}

impl Server {
    pub fn start(more: &[&str]) -> Server {
        let mut child = program()
            .args(["serve", "--model", MODEL, "--port", "0"])
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        let address = line.split("http://").nth(1).unwrap().split('/').next().unwrap().to_string();
        Server { child, address, out }
    }

    /// Status and body of a request with these lines in front of its body.
    fn raw(&self, head: &str, body: &[u8]) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        // A refused body may not be taken to its end.
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        let mut reply = vec![];
        let _ = stream.read_to_end(&mut reply);
        let reply = String::from_utf8(reply).unwrap();
        let (head, body) = reply.split_once("\r\n\r\n").unwrap_or((&reply, ""));
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        (status, body.to_string())
    }

    fn post(&self, path: &str, body: &Value) -> (u16, String) {
        let body = body.to_string();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        self.raw(&head, body.as_bytes())
    }

    fn get(&self, path: &str) -> (u16, Value) {
        let (status, body) = self.raw(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"), b"");
        (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
    }

    fn chat(&self, more: Value) -> (u16, Value) {
        let mut body = json!({"model": "model", "messages": [{"role": "user", "content": "What is the pet of Polol?"}], "max_tokens": 16});
        more.as_object().unwrap().iter().for_each(|(k, v)| body[k] = v.clone());
        let (status, body) = self.post("/v1/chat/completions", &body);
        (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
    }

    /// The code of a chat that is refused with this status.
    #[track_caller]
    fn refused(&self, status: u16, more: Value) -> String {
        let (got, body) = self.chat(more);
        assert_eq!(got, status, "{body}");
        assert!(body["error"]["message"].as_str().is_some_and(|m| !m.is_empty()), "{body}");
        body["error"]["code"].as_str().unwrap().to_string()
    }

    fn interrupt(&self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
    }

    /// Ctrl-C; the exit code and what was printed after the address.
    fn stop(mut self) -> (Option<i32>, String) {
        self.interrupt();
        let mut rest = String::new();
        self.out.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn content(reply: &Value) -> String {
    reply["choices"][0]["message"]["content"].as_str().unwrap_or_else(|| panic!("{reply}")).to_string()
}

/// The pieces of a stream of events.
fn pieces(body: &str) -> Vec<Value> {
    let events: Vec<&str> =
        body.trim_end().split("\n\n").map(|e| e.strip_prefix("data: ").unwrap()).collect();
    assert_eq!(events.last(), Some(&"[DONE]"));
    events[..events.len() - 1].iter().map(|e| serde_json::from_str(e).unwrap()).collect()
}

const QUESTION: &str = "What is the pet of Polol?";

#[test]
fn replies_are_those_of_generate_whole_in_pieces_and_cut() {
    let server = Server::start(&[]);
    let alone = ok(&["generate", "--model", MODEL, "--prompt", QUESTION, "--max-new-tokens", "16"]);
    let (status, reply) = server.chat(json!({}));
    assert_eq!((status, content(&reply).as_str()), (200, alone.trim_end()));
    assert_eq!((&reply["object"], &reply["model"]), (&json!("chat.completion"), &json!("model")));
    assert_eq!(reply["choices"][0]["finish_reason"], "stop");
    let usage = &reply["usage"];
    let counts = ["prompt_tokens", "completion_tokens"].map(|k| usage[k].as_u64().unwrap());
    assert!(
        counts.iter().all(|n| *n > 0) && usage["total_tokens"] == json!(counts[0] + counts[1]),
        "{usage}"
    );
    let asked = json!({"model": "model", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 16, "stream": true,
        "stream_options": {"include_usage": true}});
    let (_, body) = server.post("/v1/chat/completions", &asked);
    let all = pieces(&body);
    let text: String = all.iter().filter_map(|p| p["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, alone.trim_end());
    assert_eq!(all[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(all[all.len() - 2]["choices"][0]["finish_reason"], "stop");
    assert_eq!(all[all.len() - 1]["usage"], *usage);
    assert!(all.len() > 4, "it came in pieces: {body}");
    let (_, reply) = server.chat(json!({"max_tokens": 1}));
    assert_eq!(
        (&reply["choices"][0]["finish_reason"], &reply["usage"]["completion_tokens"]),
        (&json!("length"), &json!(1))
    );
    let word = alone.split(' ').nth(2).unwrap();
    let (_, reply) = server.chat(json!({"stop": [word]}));
    assert_eq!(content(&reply), alone.split(word).next().unwrap().trim());
    // The same seed draws alike, none draws anew.
    let hot = |more: Value| {
        let mut asked = json!({"temperature": 5.0, "max_tokens": 12});
        more.as_object().unwrap().iter().for_each(|(k, v)| asked[k] = v.clone());
        content(&server.chat(asked).1)
    };
    assert_eq!(hot(json!({"seed": 7})), hot(json!({"seed": 7})));
    assert_ne!(hot(json!({})), hot(json!({})));
    let (status, body) =
        server.post("/v1/completions", &json!({"model": "model", "prompt": "The pet of", "max_tokens": 4}));
    let body: Value = serde_json::from_str(&body).unwrap();
    assert!(
        status == 200 && body["choices"][0]["text"].is_string() && body["object"] == "text_completion",
        "{body}"
    );
    let (_, models) = server.get("/v1/models");
    assert_eq!(models["data"][0]["id"], "model");
    assert_eq!(server.get("/v1/models/model").0, 200);
    let (status, page) = server.get("/");
    assert!(status == 200 && page.as_str().unwrap().contains("/v1/chat/completions"));
    let (code, told) = server.stop();
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("stopped after"), "{told}");
}

#[test]
fn two_hundred_requests_at_once_get_what_each_would_get_alone() {
    let server = Server::start(&["--batch-rows", "8"]);
    let names = ["Polol", "Meron", "Palal", "Sadus", "Tikan"];
    let ask = |i: usize| {
        let question = format!("What is the pet of {}?", names[i % names.len()]);
        let (status, reply) = server
            .chat(json!({"messages": [{"role": "user", "content": question}], "max_tokens": 8 + i % 9}));
        assert_eq!(status, 200, "{reply}");
        content(&reply)
    };
    let alone: Vec<String> = (0..45).map(ask).collect();
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= 200 {
                        return;
                    }
                    assert_eq!(ask(i), alone[i % 45], "request {i}");
                }
            });
        }
    });
    assert_eq!(server.stop().0, Some(0));
}

#[test]
fn what_a_client_should_not_do_is_refused_by_name_and_the_others_go_on() {
    let server = Server::start(&["--context", "64", "--max-body", "100000"]);
    assert_eq!(server.refused(404, json!({"model": "other"})), "model_not_found");
    assert_eq!(server.refused(400, json!({"n": 3})), "unsupported_field");
    assert_eq!(server.refused(400, json!({"no_such": 3})), "unsupported_field");
    assert_eq!(server.refused(400, json!({"temperature": "hot"})), "invalid_value");
    assert_eq!(
        server.refused(400, json!({"messages": [{"role": "user", "content": "word ".repeat(200)}]})),
        "context_length_exceeded"
    );
    assert_eq!(server.refused(400, json!({"messages": []})), "invalid_value");
    let post = |head: &str, body: &[u8]| {
        let (status, body) =
            server.raw(&format!("POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n\r\n"), body);
        let body: Value = serde_json::from_str(&body).unwrap_or_else(|_| panic!("{body}"));
        (status, body["error"]["code"].as_str().unwrap().to_string())
    };
    let kind = "Host: localhost\r\nContent-Type: application/json";
    let with = |status, code: &str| (status, code.to_string());
    assert_eq!(post(&format!("{kind}\r\nContent-Length: 3"), b"{x}"), with(400, "invalid_json"));
    // A body of 1 GB: refused by its length, whether the client sends on or not.
    let huge = format!("{kind}\r\nContent-Length: {}", 1u64 << 30);
    assert_eq!(post(&huge, b""), with(413, "body_too_large"));
    assert_eq!(post(&huge, &vec![b' '; 8 << 20]), with(413, "body_too_large"));
    assert_eq!(post(&format!("{kind}\r\nTransfer-Encoding: chunked"), b""), with(411, "length_required"));
    assert_eq!(post("Host: localhost\r\nContent-Length: 2", b"{}"), with(415, "unsupported_media_type"));
    assert_eq!(
        post("Host: evil.example\r\nContent-Type: application/json\r\nContent-Length: 2", b"{}"),
        with(403, "wrong_host")
    );
    assert_eq!(post(&format!("{kind}\r\nX: {}", "y".repeat(40_000)), b""), with(431, "head_too_large"));
    assert_eq!(server.raw("\u{1}\u{2}\r\n\r\n", b"").0, 400);
    assert_eq!(server.get("/v1/nothing").0, 404);
    assert_eq!(server.raw("DELETE / HTTP/1.1\r\n\r\n", b"").0, 405);
    // Clients that leave in the middle of a stream.
    for i in 0..20 {
        let body = json!({"model": "model", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 60, "stream": true, "temperature": 2.0}).to_string();
        let mut stream = TcpStream::connect(&server.address).unwrap();
        let head =
            format!("POST /v1/chat/completions HTTP/1.1\r\n{kind}\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&body.as_bytes()[..if i % 2 == 0 { body.len() } else { 10 }]).unwrap();
        if i % 4 == 0 {
            let _ = stream.read(&mut [0; 64]);
        }
    }
    assert_eq!(server.chat(json!({})).0, 200);
    assert_eq!(server.stop().0, Some(0));
}

#[test]
fn ten_thousand_requests_wait_in_a_bounded_queue() {
    let server = Server::start(&["--queue", "4", "--batch-rows", "2"]);
    let (next, served, refused) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| {
                while next.fetch_add(1, Ordering::Relaxed) < 10_000 {
                    let (status, body) = server.chat(json!({"max_tokens": 4}));
                    match status {
                        200 => served.fetch_add(1, Ordering::Relaxed),
                        429 => {
                            assert_eq!(body["error"]["code"], "queue_full", "{body}");
                            refused.fetch_add(1, Ordering::Relaxed)
                        }
                        other => panic!("{other}: {body}"),
                    };
                }
            });
        }
    });
    let (served, refused) = (served.into_inner(), refused.into_inner());
    assert!(
        served + refused == 10_000 && served > 100 && refused > 100,
        "{served} served, {refused} refused"
    );
    assert_eq!(server.chat(json!({})).0, 200);
    assert_eq!(server.stop().0, Some(0));
}

#[test]
fn a_stream_that_runs_ends_whole_when_the_server_is_stopped() {
    let server = Server::start(&[]);
    let body = json!({"model": "model", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 200, "stream": true, "temperature": 4.0, "seed": 1}).to_string();
    let mut stream = TcpStream::connect(&server.address).unwrap();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    let mut first = [0; 300];
    let n = stream.read(&mut first).unwrap();
    assert!(n > 0);
    server.interrupt();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with("data: [DONE]\n\n"), "{rest}");
    let mut server = server;
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
}
