//! The child's side: it limits itself, then answers requests from standard input until that ends.
use std::{
    io::{stdin, stdout},
    sync::{
        atomic::{AtomicU64, Ordering::SeqCst},
        mpsc::channel,
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    time::{ClockId, clock_gettime},
};

use super::{Ask, TOO_LONG, caught::caught, read_frame, write_frame};
use crate::data::{questions::container, template::jinja::Local, tokenizer};

/// The arguments of the hidden command.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Bytes of memory beyond what the program takes by itself
    memory: u64,
    /// Seconds of the processor for each request
    seconds: f64,
}

/// The stack on which requests are worked on, bytes.
const STACK: usize = 64 << 20;
/// Address space that is taken for the bookkeeping of threads and never used, bytes.
const UNUSED: u64 = 256 << 20;
/// No request is being worked on.
const IDLE: u64 = u64::MAX;

/// The processor time at which the current request began, ns.
static SINCE: AtomicU64 = AtomicU64::new(IDLE);

/// Serves requests until standard input ends.
pub fn run(args: &Args) -> Result<()> {
    let seconds = args.seconds;
    thread::Builder::new().stack_size(64 << 10).spawn(move || watch(seconds)).context("start a thread")?;
    let (begin, may_begin) = channel::<()>();
    let worker = thread::Builder::new().stack_size(STACK).spawn(move || -> Result<()> {
        may_begin.recv()?;
        serve()
    });
    let worker = worker.context("start a thread")?;
    // Both stacks are there already, so that the limits count what the work itself takes.
    limit(Resource::Data, "VmData:", args.memory)?;
    limit(Resource::As, "VmSize:", args.memory + UNUSED)?;
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Core, none).and_then(|()| setrlimit(Resource::Fsize, none)).context("set limits")?;
    begin.send(())?;
    worker.join().map_err(|_| anyhow!("the worker failed"))?
}

/// `resource` may grow by `more` bytes beyond what /proc says of `field`.
fn limit(resource: Resource, field: &str, more: u64) -> Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix(field));
    let kib = line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse::<u64>().ok());
    let wanted = kib.unwrap_or(1 << 20) * 1024 + more;
    let allowed = getrlimit(resource).maximum;
    let limit = Some(allowed.map_or(wanted, |most| most.min(wanted)));
    setrlimit(resource, Rlimit { current: limit, maximum: limit }).context("set limits")
}

fn processor_time() -> u64 {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Ends the process when a request takes too long.
fn watch(seconds: f64) {
    let most = (seconds * 1e9) as u64;
    loop {
        thread::sleep(Duration::from_millis(20));
        let since = SINCE.load(SeqCst);
        if since != IDLE && processor_time().saturating_sub(since) > most && SINCE.load(SeqCst) == since {
            signal_hook::low_level::exit(TOO_LONG);
        }
    }
}

fn serve() -> Result<()> {
    let (mut from, mut to) = (stdin().lock(), stdout().lock());
    let mut template = None;
    while let Some((kind, body)) = read_frame(&mut from)? {
        SINCE.store(processor_time(), SeqCst);
        let answer = caught(|| answer(kind, body, &mut template));
        SINCE.store(IDLE, SeqCst);
        match answer {
            Ok(body) => write_frame(&mut to, 0, &body)?,
            Err(error) => write_frame(&mut to, 1, format!("{error:#}").as_bytes())?,
        }
    }
    Ok(())
}

fn answer(kind: u8, body: Vec<u8>, template: &mut Option<Local>) -> Result<Vec<u8>> {
    if kind == Ask::Template as u8 {
        *template = Some(Local::new(String::from_utf8(body)?)?);
        Ok(vec![])
    } else if kind == Ask::Render as u8 {
        let template = template.as_ref().context("no template was sent")?;
        let values: Vec<serde_json::Value> = serde_json::from_slice(&body)?;
        drop(body);
        let texts = values.iter().map(|v| template.render(v)).collect::<Result<Vec<_>>>()?;
        drop(values);
        Ok(serde_json::to_vec(&texts)?)
    } else if kind == Ask::Tokenizer as u8 {
        tokenizer::probe(&body)?;
        Ok(vec![])
    } else if kind == Ask::Rows as u8 {
        container::probe(&body)?;
        Ok(vec![])
    } else {
        bail!("request {kind} is not known")
    }
}
