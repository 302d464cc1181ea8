//! Where the time goes: `tracing` spans as a file for chrome://tracing and ui.perfetto.dev (Chrome's trace event format), and as named ranges for
//! profilers. Off unless [`Trace::begin`] is called; a span that nobody listens to costs one load and a branch.
//!
//! Spans of this program: `command`, `read`, `compute` and `write` (chunks of rows), `train_step` with `data`, `forward`, `loss`, `backward` and
//! `optimizer` inside, in `backward` each `backward_layer` and, of several ranks, `sum_gradients` and `gather_layer`, `evaluate`, `checkpoint`. Work on a GPU is asynchronous: a span there ends when the work is queued.
use std::{
    cell::Cell,
    collections::HashMap,
    fmt::{Debug, Write as _},
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    span::{Attributes, Id, Record},
};

/// Told of each span as it begins (by its name and fields) and ends, on the thread where that happens.
#[derive(Clone, Copy, Debug)]
pub struct Ranges {
    /// A range begins.
    pub push: fn(&str),
    /// The innermost range of the thread ends.
    pub pop: fn(),
}

/// Spans are being recorded, until [`Trace::end`].
pub struct Trace(Arc<Tracer>);

impl Trace {
    /// Records the spans of this process from now on: to a new file `path`, and to `ranges`. Errors if the file exists or cannot be made, and if something
    /// else already listens to spans.
    pub fn begin(path: Option<&Path>, ranges: Option<Ranges>) -> Result<Trace> {
        let out = path.map(Out::create).transpose()?;
        let tracer = Arc::new(Tracer { out: out.map(Mutex::new), ranges, ..Tracer::default() });
        tracing::subscriber::set_global_default(tracer.clone())
            .context("trace: something else listens to this process's spans")?;
        Ok(Trace(tracer))
    }

    /// Completes the file. Errors if anything could not be written. Spans that end later are not recorded.
    pub fn end(self) -> Result<()> {
        let Some(out) = &self.0.out else { return Ok(()) };
        let mut out = lock(out);
        let path = out.path.clone();
        out.close().with_context(|| format!("write the trace {}", path.display()))
    }
}

/// The file: an array of events. Times are microseconds since it was opened.
struct Out {
    path: PathBuf,
    file: Option<BufWriter<File>>,
    begun: Instant,
    failed: Option<io::Error>,
}

impl Out {
    fn create(path: &Path) -> Result<Out> {
        let file = File::create_new(path).with_context(|| {
            format!("trace: create {} (a file that exists is kept: name another)", path.display())
        })?;
        let mut out =
            Out { path: path.into(), file: Some(BufWriter::new(file)), begun: Instant::now(), failed: None };
        out.put("[\n");
        let process =
            json!({"ph": "M", "name": "process_name", "pid": 1, "tid": 0, "args": {"name": "sdrrl"}});
        out.put(&process.to_string());
        Ok(out)
    }

    /// Writes; the first failure is kept for the end.
    fn put(&mut self, text: &str) {
        let written = self.file.as_mut().map_or(Ok(()), |f| f.write_all(text.as_bytes()));
        if let (Err(e), None) = (written, &self.failed) {
            self.failed = Some(e);
        }
    }

    fn event(&mut self, phase: &str, name: &str, thread: u64, args: &Map<String, Value>) {
        let micros = self.begun.elapsed().as_nanos() as f64 / 1000.0;
        let event = json!({"ph": phase, "name": name, "pid": 1, "tid": thread, "ts": micros, "args": args});
        self.put(&format!(",\n{event}"));
    }

    fn close(&mut self) -> io::Result<()> {
        self.put("\n]\n");
        let flushed = self.file.take().map_or(Ok(()), |mut f| f.flush());
        self.failed.take().map_or(flushed, Err)
    }
}

/// What is known of a span while someone holds it.
struct Span {
    name: &'static str,
    fields: Map<String, Value>,
    holders: usize,
}

#[derive(Default)]
struct Tracer {
    out: Option<Mutex<Out>>,
    ranges: Option<Ranges>,
    spans: Mutex<HashMap<u64, Span>>,
    last: AtomicU64,
}

/// A panic elsewhere does not end the trace.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// Threads are numbered as they come.
fn thread_number(out: &mut Out) -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    thread_local! { static NUMBER: Cell<u64> = const { Cell::new(0) } }
    if NUMBER.get() == 0 {
        NUMBER.set(LAST.fetch_add(1, Relaxed) + 1);
        let thread = std::thread::current();
        let args = json!({"name": thread.name().unwrap_or("worker")});
        let name = json!({"ph": "M", "name": "thread_name", "pid": 1, "tid": NUMBER.get(), "args": args});
        out.put(&format!(",\n{name}"));
    }
    NUMBER.get()
}

struct Fields<'a>(&'a mut Map<String, Value>);

impl Visit for Fields<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.insert(field.name().into(), value.into());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().into(), value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().into(), value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().into(), value.into());
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().into(), value.into());
    }
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name().into(), format!("{value:?}").into());
    }
}

impl Tracer {
    fn write(&self, phase: &str, name: &str, fields: &Map<String, Value>) {
        let Some(out) = &self.out else { return };
        let mut out = lock(out);
        let thread = thread_number(&mut out);
        out.event(phase, name, thread, fields);
    }
}

impl Subscriber for Tracer {
    /// This program's spans, not those of its dependencies, and no events.
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_span() && metadata.target().starts_with("sdrrl") && *metadata.level() <= Level::INFO
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::INFO)
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let id = self.last.fetch_add(1, Relaxed) + 1;
        let mut fields = Map::new();
        attributes.record(&mut Fields(&mut fields));
        let name = attributes.metadata().name();
        lock(&self.spans).insert(id, Span { name, fields, holders: 1 });
        Id::from_u64(id)
    }

    fn record(&self, id: &Id, values: &Record<'_>) {
        if let Some(span) = lock(&self.spans).get_mut(&id.into_u64()) {
            values.record(&mut Fields(&mut span.fields));
        }
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {}

    fn enter(&self, id: &Id) {
        let spans = lock(&self.spans);
        let Some(span) = spans.get(&id.into_u64()) else { return };
        if let Some(ranges) = self.ranges {
            let mut label = span.name.to_string();
            for (key, value) in &span.fields {
                // A string takes what is written to it.
                let _ = write!(label, " {key}={value}");
            }
            (ranges.push)(&label);
        }
        self.write("B", span.name, &span.fields);
    }

    fn exit(&self, id: &Id) {
        let spans = lock(&self.spans);
        let Some(span) = spans.get(&id.into_u64()) else { return };
        self.write("E", span.name, &span.fields);
        if let Some(ranges) = self.ranges {
            (ranges.pop)();
        }
    }

    fn clone_span(&self, id: &Id) -> Id {
        if let Some(span) = lock(&self.spans).get_mut(&id.into_u64()) {
            span.holders += 1;
        }
        id.clone()
    }

    fn try_close(&self, id: Id) -> bool {
        let mut spans = lock(&self.spans);
        let Some(span) = spans.get_mut(&id.into_u64()) else { return false };
        span.holders -= 1;
        let last = span.holders == 0;
        if last {
            spans.remove(&id.into_u64());
        }
        last
    }
}
