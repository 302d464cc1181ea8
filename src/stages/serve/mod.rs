//! `sdrrl serve`: a model and its adapters behind OpenAI's API, for programs that speak it and for a browser.
//!
//! One thread computes (`work`); each connection has its own thread, which reads the request, waits, and writes the reply (`http`, `ask`). What is
//! bounded: connections (the next ones wait in the system's backlog), bytes and time of a request, requests in the queue, tokens and time of a reply.
mod ask;
mod http;
mod reply;
mod work;

use std::{
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use self::{
    ask::{Kind, now},
    http::Refusal,
    reply::complete,
    work::Job,
};
use crate::{
    data::{template::ChatTemplate, tokenizer::Tokenizer},
    error::Error,
    infer::answerer::{AnswerOptions, Answerer},
    pipeline::placement::Placement,
    report::out::{note, say},
};

const PAGE: &str = include_str!("page.html");
const JSON: &str = "application/json";

/// Arguments of `serve`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Model: a Hugging Face directory, a .gguf file, or a name in the local Hugging Face cache
    #[arg(long)]
    pub model: String,
    /// An adapter (PEFT) to serve beside the model, as DIR or NAME=DIR; requests select it by `model` (repeatable). Each needs as much memory as the model
    #[arg(long = "adapter", value_name = "[NAME=]DIR")]
    pub adapters: Vec<String>,
    /// Address to listen on; any but a loopback address lets other machines connect
    #[arg(long, default_value = "127.0.0.1")]
    pub host: IpAddr,
    /// Port to listen on (0: any free port)
    #[arg(long, default_value_t = 8000)]
    pub port: u16,
    /// Data types and device
    #[command(flatten)]
    pub placement: Placement,
    /// Chat template: auto (the model's own), a built-in name, or a .jinja file
    #[arg(long, default_value = "auto")]
    pub template: String,
    /// System prompt for conversations without one
    #[arg(long)]
    pub system: Option<String>,
    /// Replies generated together, per model
    #[arg(long, default_value_t = 16)]
    pub batch_rows: usize,
    /// Most tokens in prompt and reply together; the key/value cache grows with it
    #[arg(long, default_value_t = 4096)]
    pub context: usize,
    /// Most requests waiting; further ones are refused
    #[arg(long, default_value_t = 256)]
    pub queue: usize,
    /// Most bytes in a request body
    #[arg(long, default_value_t = 1 << 20)]
    pub max_body: usize,
    /// Most seconds a request may take, including waiting
    #[arg(long, default_value_t = 600.0)]
    pub timeout: f64,
}

/// A model as clients see it.
struct Served {
    name: String,
    tokenizer: Arc<Tokenizer>,
    template: Arc<ChatTemplate>,
    /// Tokens of prompt and reply.
    context: usize,
}

/// What the threads share.
struct Server {
    models: Vec<Served>,
    jobs: SyncSender<Job>,
    defaults: AnswerOptions,
    max_body: usize,
    queue: usize,
    timeout: Duration,
    /// Only names of this machine are taken for it.
    local: bool,
    started: u64,
    requests: AtomicUsize,
    connections: Mutex<usize>,
    freed: Condvar,
}

/// Serves until it is asked to stop.
pub fn run(args: &Args) -> Result<()> {
    let adapters = named_adapters(args)?;
    let mut answerers = vec![];
    for adapter in [None].into_iter().chain(adapters.iter().map(|(_, dir)| Some(dir.as_path()))) {
        answerers.push(Answerer::load(&args.model, adapter, args.placement, &args.template)?);
    }
    let names = [base_name(&args.model)].into_iter().chain(adapters.into_iter().map(|(name, _)| name));
    let models = names.zip(&answerers).map(|(name, a)| Served {
        name,
        tokenizer: a.tokenizer.clone(),
        template: a.template.clone(),
        context: args.context.min(a.model.config.max_position_embeddings),
    });
    let (jobs, queue) = sync_channel(args.queue);
    let server = Arc::new(Server {
        models: models.collect(),
        jobs,
        defaults: AnswerOptions { system: args.system.clone(), ..AnswerOptions::default() },
        max_body: args.max_body,
        queue: args.queue,
        timeout: Duration::from_secs_f64(args.timeout),
        local: args.host.is_loopback(),
        started: now(),
        requests: AtomicUsize::new(0),
        connections: Mutex::new(0),
        freed: Condvar::new(),
    });
    let address = SocketAddr::new(args.host, args.port);
    let listener = TcpListener::bind(address)
        .with_context(|| format!("listen on {address} (--host, --port): another program may be using it"))?;
    let most = 2 * (args.queue + args.batch_rows) + 16;
    let at = listener.local_addr().context("the address of the server")?;
    accept(listener, server.clone(), most)?;
    announce(&server, at);
    compute(&server, &answerers, &queue, args)
}

fn compute(server: &Server, answerers: &[Answerer], queue: &Receiver<Job>, args: &Args) -> Result<()> {
    let done = work::work(answerers, queue, (args.batch_rows, args.context), server.timeout);
    // Replies that are being written get a moment to end.
    let until = Instant::now() + Duration::from_secs(2);
    while *lock(&server.connections) > 0 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
    say!("serve: stopped after {} requests", server.requests.load(Ordering::Relaxed));
    done
}

fn announce(server: &Server, at: SocketAddr) {
    let names: Vec<&str> = server.models.iter().map(|m| m.name.as_str()).collect();
    say!("serve: http://{at}/ in a browser, http://{at}/v1 for OpenAI API clients; Ctrl-C stops it");
    say!("serve: models: {}", names.join(", "));
    if !server.local {
        note!("serve: {} is not a loopback address: anyone who can reach it may use the model", at.ip());
    }
}

/// The last part of a path or hub name.
fn base_name(model: &str) -> String {
    let name = Path::new(model).file_name().map(|n| n.to_string_lossy().into_owned());
    name.unwrap_or_else(|| model.to_string())
}

/// Names and folders of the adapters.
fn named_adapters(args: &Args) -> Result<Vec<(String, PathBuf)>> {
    let mut names = vec![base_name(&args.model)];
    let mut all = vec![];
    for adapter in &args.adapters {
        let (name, dir) = match adapter.split_once('=') {
            Some((name, dir)) if !Path::new(adapter).exists() => (name.to_string(), dir),
            _ => (base_name(adapter), adapter.as_str()),
        };
        let twice = format!("--adapter {adapter}: the name `{name}` is taken; give another as NAME={dir}");
        ensure!(!name.is_empty() && !names.contains(&name), Error::setting("adapter", twice));
        names.push(name.clone());
        all.push((name, PathBuf::from(dir)));
    }
    Ok(all)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// A connection that counts as long as it lives.
struct Counted(Arc<Server>);

impl Drop for Counted {
    fn drop(&mut self) {
        *lock(&self.0.connections) -= 1;
        self.0.freed.notify_one();
    }
}

/// Takes connections, `most` at a time, each in a thread of its own.
fn accept(listener: TcpListener, server: Arc<Server>, most: usize) -> Result<()> {
    let threads = std::thread::Builder::new().name("accept".into());
    let accepting = move || {
        loop {
            let mut open = lock(&server.connections);
            while *open >= most {
                open = server.freed.wait(open).unwrap_or_else(|e| e.into_inner());
            }
            drop(open);
            let Ok((stream, _)) = listener.accept() else {
                // Too many open files, or a client that is gone again: later there may be room.
                std::thread::sleep(Duration::from_millis(20));
                continue;
            };
            *lock(&server.connections) += 1;
            let counted = Counted(server.clone());
            let thread = std::thread::Builder::new().name("connection".into()).stack_size(512 << 10);
            // Where there is no thread left the connection is closed.
            let _ = thread.spawn(move || serve(&counted.0, stream));
        }
    };
    threads.spawn(accepting).context("start a thread for connections")?;
    Ok(())
}

fn serve(server: &Server, mut stream: TcpStream) {
    let _ = stream.set_write_timeout(Some(Duration::from_secs(30)));
    let _ = stream.set_nodelay(true);
    let answered = http::read(&mut stream, server.max_body).and_then(|request| {
        server.requests.fetch_add(1, Ordering::Relaxed);
        answer(server, &mut stream, &request)
    });
    if let Err(refusal) = answered {
        let body = refusal.to_json().to_string();
        let _ = http::reply(&mut stream, refusal.status, JSON, body.as_bytes());
    }
    http::end(stream);
}

fn answer(server: &Server, stream: &mut TcpStream, request: &http::Request) -> Result<(), Refusal> {
    let path = request.path.trim_end_matches('/');
    refuse_strangers(server, request)?;
    let get = |stream: &mut TcpStream, kind: &str, body: &str| match request.method.as_str() {
        "GET" | "HEAD" => {
            let _ = http::reply(stream, 200, kind, body.as_bytes());
            Ok(())
        }
        other => Err(Refusal::new(405, "method_not_allowed", format!("{path}: {other} is no GET"))),
    };
    match path {
        "" => get(stream, "text/html; charset=utf-8", PAGE),
        "/health" => get(stream, JSON, "{\"status\": \"ok\"}"),
        "/v1/models" => {
            let all: Vec<_> = server.models.iter().map(|m| model_json(server, m)).collect();
            get(stream, JSON, &json!({"object": "list", "data": all}).to_string())
        }
        "/v1/chat/completions" => complete(server, stream, request, Kind::Chat),
        "/v1/completions" => complete(server, stream, request, Kind::Text),
        _ => match path.strip_prefix("/v1/models/") {
            Some(name) => {
                get(stream, JSON, &model_json(server, &server.models[find(server, name)?]).to_string())
            }
            None => Err(Refusal::new(404, "not_found", format!("there is nothing at {}", request.path))),
        },
    }
}

/// A page of another site must not use this machine's server: its name (DNS rebinding) and the kind of its requests (forms) tell it apart.
fn refuse_strangers(server: &Server, request: &http::Request) -> Result<(), Refusal> {
    let host = request.header("host").unwrap_or("localhost");
    let name = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
    let name = name.map_or(host, |(name, _)| name).trim_matches(['[', ']']);
    let own = name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if server.local && !own {
        let message = format!("the request is for `{host}`, and this server is this machine's own (--host)");
        return Err(Refusal::new(403, "wrong_host", message));
    }
    let kind = request.header("content-type").unwrap_or_default();
    if request.method == "POST" && !kind.to_ascii_lowercase().starts_with(JSON) {
        let message = format!("Content-Type is `{kind}`: {JSON} was expected");
        return Err(Refusal::new(415, "unsupported_media_type", message));
    }
    Ok(())
}

fn model_json(server: &Server, model: &Served) -> serde_json::Value {
    json!({"id": model.name, "object": "model", "created": server.started, "owned_by": "sdrrl", "max_model_len": model.context})
}

fn find(server: &Server, name: &str) -> Result<usize, Refusal> {
    server.models.iter().position(|m| m.name == name).ok_or_else(|| {
        let names: Vec<&str> = server.models.iter().map(|m| m.name.as_str()).collect();
        let message = format!("there is no model `{name}` here; there are {}", names.join(", "));
        Refusal::new(404, "model_not_found", message)
    })
}
