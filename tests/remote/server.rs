//! A small HTTP server that answers as a test says, and remembers what it was asked.
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// What is done about a request.
pub enum Reply {
    /// Status 200 and this body.
    Json(Value),
    /// A status with more headers (each with its line end) and a body.
    Status(u16, String, String),
    /// These bytes, then the end of the connection.
    Raw(Vec<u8>),
    /// The end of the connection.
    Drop,
    /// Nothing, for so long.
    Hang(Duration),
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    pub path: String,
    /// Request line and headers.
    pub head: String,
    pub body: Value,
    pub at: Instant,
}

impl Asked {
    /// The last message.
    pub fn question(&self) -> String {
        question(&self.body)
    }
}

pub fn question(body: &Value) -> String {
    let last = body["messages"].as_array().and_then(|all| all.last());
    last.map_or("", |m| m["content"].as_str().unwrap()).to_string()
}

struct Shared {
    asked: Mutex<Vec<Asked>>,
    chats: AtomicUsize,
    connections: AtomicUsize,
    ended: AtomicBool,
    models: Value,
    behave: Box<dyn Fn(usize, &Asked) -> Reply + Send + Sync>,
}

/// A server at an address of its own, until it is dropped.
pub struct Server {
    address: String,
    shared: Arc<Shared>,
}

impl Server {
    /// That has the model `m`; `behave` is told the number of the chat, from 0.
    pub fn start(behave: impl Fn(usize, &Asked) -> Reply + Send + Sync + 'static) -> Server {
        let models = json!({"object": "list", "data": [{"id": "m", "object": "model", "created": 1, "owned_by": "test"}]});
        Server::with_models(models, behave)
    }

    /// That has these models.
    pub fn with_models(
        models: Value,
        behave: impl Fn(usize, &Asked) -> Reply + Send + Sync + 'static,
    ) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared {
            asked: Mutex::default(),
            chats: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
            models,
            behave: Box::new(behave),
        });
        let server = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if server.ended.load(Ordering::SeqCst) {
                    return;
                }
                server.connections.fetch_add(1, Ordering::SeqCst);
                let server = server.clone();
                thread::spawn(move || server.serve(stream));
            }
        });
        Server { address, shared }
    }

    /// One that nobody may connect to.
    pub fn trap() -> Server {
        Server::start(|_, _| Reply::Drop)
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// The chats so far.
    pub fn chats(&self) -> Vec<Asked> {
        let all = self.shared.asked.lock().unwrap();
        all.iter().filter(|asked| asked.path.ends_with("/chat/completions")).cloned().collect()
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(&self.address);
    }
}

impl Shared {
    fn serve(&self, mut stream: TcpStream) {
        let Some(asked) = receive(&stream) else { return };
        self.asked.lock().unwrap().push(asked.clone());
        let reply = if asked.path.ends_with("/models") && !self.models.is_null() {
            Reply::Json(self.models.clone())
        } else {
            (self.behave)(self.chats.fetch_add(1, Ordering::SeqCst), &asked)
        };
        let whole = |status: u16, more: &str, body: &str| {
            let head = format!("HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{more}");
            format!("{head}Content-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len()).into_bytes()
        };
        let bytes = match reply {
            Reply::Json(body) => whole(200, "", &body.to_string()),
            Reply::Status(status, more, body) => whole(status, &more, &body),
            Reply::Raw(bytes) => bytes,
            Reply::Drop => vec![],
            Reply::Hang(time) => {
                thread::sleep(time);
                vec![]
            }
        };
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(Shutdown::Both);
    }
}

fn receive(stream: &TcpStream) -> Option<Asked> {
    let (mut reader, mut head) = (BufReader::new(stream), String::new());
    loop {
        let before = head.len();
        reader.read_line(&mut head).ok().filter(|n| *n > 0)?;
        if head[before..].trim().is_empty() {
            break;
        }
    }
    let lower = head.to_lowercase();
    let length = lower.lines().find_map(|l| l.strip_prefix("content-length:"));
    let mut body = vec![0; length.map_or(0, |n| n.trim().parse().unwrap())];
    reader.read_exact(&mut body).ok()?;
    let path = head.split(' ').nth(1)?.to_string();
    Some(Asked { path, head, body: serde_json::from_slice(&body).unwrap_or_default(), at: Instant::now() })
}

/// A reply of the model `m` with this text.
pub fn said(n: usize, text: &str) -> Value {
    said_by(n, "m", text)
}

pub fn said_by(n: usize, model: &str, text: &str) -> Value {
    json!({
        "id": format!("chatcmpl-{n}"), "object": "chat.completion", "created": 1, "model": model,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}
    })
}

/// A server in order: its answers hold the question.
pub fn answers(n: usize, asked: &Asked) -> Reply {
    Reply::Json(said(n, &answer_to(&asked.question())))
}

pub fn answer_to(question: &str) -> String {
    let number: String = question.chars().filter(char::is_ascii_digit).collect();
    format!("Number {number} is a small town with a river and two bridges.")
}
