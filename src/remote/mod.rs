//! Models behind an HTTP endpoint that speaks OpenAI's API, which a person names: the one place of the program from which connections are opened.
//!
//! Threads send what [`Remote::ask`] is given, as many at the same time as `concurrency` says; a [`Ticket`] waits for its answer, so that whoever waits in
//! the order of rows writes in the order of rows. Requests that fail for a passing reason are sent again (`pace`); the answers of one folder are of one
//! model (`record`).
mod client;
mod endpoint;
pub mod judge;
mod pace;
mod record;
mod reply;

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

use self::{
    client::{Client, Failure, Then},
    pace::{LONGEST, Pace, back_off},
    record::Record,
};
use crate::{
    data::{conversation::Turn, words::nearest},
    error::Error,
    pipeline::interrupt::interrupted,
    recipe::remote::RemoteSettings,
    report::out::{note, shown},
};

pub use record::{Served, Usage};
pub use reply::{Answer, Sampling};

/// What is wrong with the settings, without contacting anything: the address, the key's variable, the model's name, the extra fields.
///
/// # Errors
/// [`Error::Setting`]; [`Error::Unsupported`]: https in a build without it.
pub fn check(s: &RemoteSettings) -> Result<()> {
    Client::new(s).map(drop)
}

/// Settings of an engine that is not used are a mistake.
///
/// # Errors
/// [`Error::Setting`].
pub fn refuse_settings(s: &RemoteSettings) -> Result<()> {
    let message = "endpoint and what belongs to it go with engine `openai`, and another engine was chosen";
    ensure!(s.is_unset(), Error::setting("endpoint", message));
    Ok(())
}

/// A connected endpoint. It ends with its last owner; requests that are under way then are not waited for.
pub struct Remote {
    shared: Arc<Shared>,
    jobs: Sender<Job>,
    settings: RemoteSettings,
}

/// What the threads share.
struct Shared {
    client: Client,
    pace: Pace,
    retries: usize,
    record: Record,
    /// What is not yet in the record.
    usage: Mutex<Usage>,
    seen: Mutex<Seen>,
    ended: AtomicBool,
}

/// Answers that came, so that one which belongs to another request is noticed.
#[derive(Default)]
struct Seen {
    /// By id: the request, and what stands in the answer.
    first: HashMap<u64, (u64, u64)>,
    /// Two answers had the same id and were different ones: ids say nothing there (Ollama draws them from a thousand, others have a fixed one).
    ids_repeat: bool,
}

struct Job {
    place: String,
    body: String,
    to: SyncSender<Result<Answer, Unanswered>>,
}

/// Why a request has no answer.
#[derive(Debug)]
pub struct Unanswered {
    /// The server takes no request like this one, and may take others.
    pub alone: bool,
    /// What happened.
    pub error: anyhow::Error,
}

/// An answer to come.
pub struct Ticket {
    from: Receiver<Result<Answer, Unanswered>>,
}

/// So often a ticket looks whether the work is to stop.
const LOOK: Duration = Duration::from_millis(100);
/// Answers between two lines of the record.
const RECORDED: usize = 64;

impl Ticket {
    /// Waits for the answer.
    pub fn wait(&self) -> Result<Answer, Unanswered> {
        let stopped = || Unanswered { alone: false, error: Error::interrupted(STOPPED).into() };
        loop {
            match self.from.recv_timeout(LOOK) {
                Ok(answer) => return answer,
                Err(RecvTimeoutError::Timeout) if interrupted() => return Err(stopped()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(stopped()),
            }
        }
    }
}

const STOPPED: &str = "stopped while waiting for an answer: run the same command again to resume";

impl Remote {
    /// Asks the endpoint which models it has, and begins. `record` is where it is kept who answers in a folder.
    ///
    /// # Errors
    /// What [`check`] finds; an endpoint that does not answer, lets nobody in, or has no such model; a record of another model.
    pub fn connect(s: &RemoteSettings, record: Option<&Path>) -> Result<Remote> {
        let client = Client::new(s)?;
        client.key.warn(&client.endpoint);
        let mut shared = Shared {
            client,
            pace: Pace::new(s.requests_per_minute),
            retries: s.retries,
            record: Record::open(None, Value::Null)?,
            usage: Mutex::default(),
            seen: Mutex::default(),
            ended: AtomicBool::new(false),
        };
        let listed = shared.listed()?;
        shared.record = Record::open(record, listed)?;
        let shared = Arc::new(shared);
        let (jobs, queue) = channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..s.concurrency {
            let (shared, queue) = (shared.clone(), queue.clone());
            let work = move || shared.work(&queue);
            thread::Builder::new()
                .name("request".into())
                .spawn(work)
                .context("start a thread for requests")?;
        }
        Ok(Remote { shared, jobs, settings: s.clone() })
    }

    /// Sends a conversation whose last turn is the user's; `place` names it in messages.
    pub fn ask(&self, place: String, turns: &[Turn], sampling: &Sampling) -> Ticket {
        let body = reply::request(&self.shared.client, turns, sampling, &self.settings.stop);
        let (to, from) = sync_channel(1);
        // Without a thread that takes it, the ticket says so.
        let _ = self.jobs.send(Job { place, body, to });
        Ticket { from }
    }

    /// Rows that are begun before the first of them is waited for: enough to keep all threads busy while one request is slow.
    pub fn ahead(s: &RemoteSettings) -> usize {
        2 * s.concurrency
    }

    /// The model, in words: what is kept with what it made. Where it is served is no part of it.
    pub fn name(&self) -> String {
        format!("openai {}", self.shared.client.model)
    }

    /// After the last answer, or after an error: what all runs took, as a line for people and for the manifest's summary.
    ///
    /// # Errors
    /// The record cannot be written.
    pub fn total(&self) -> Result<(String, Value)> {
        let shared = &self.shared;
        shared.note_usage(1)?;
        let usage = shared.record.total()?;
        let again =
            if usage.sent_again > 0 { format!(" ({} sent again)", usage.sent_again) } else { String::new() };
        let line = format!(
            "{} answers{again}, {} prompt and {} completion tokens",
            usage.answers, usage.prompt_tokens, usage.completion_tokens
        );
        Ok((line, json!({"served": shared.record.served(), "usage": usage})))
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl Shared {
    /// Whether nobody waits for answers any more.
    fn is_over(&self) -> bool {
        self.ended.load(Ordering::Relaxed) || interrupted()
    }

    /// A thread: one request after another.
    fn work(&self, queue: &Mutex<Receiver<Job>>) {
        loop {
            let Ok(job) = lock(queue).recv() else { return };
            if self.is_over() {
                return;
            }
            let sent = self.send(&job.place, &mut || {
                let reply = self.client.exchange("/chat/completions", Some(&job.body))?;
                self.take(&job, &reply)
            });
            // Whoever asked may be gone.
            let _ = job.to.send(sent);
        }
    }

    /// An answer that nothing is wrong with, counted.
    fn take(&self, job: &Job, reply: &Value) -> Result<Answer, Failure> {
        let answer = reply::answer(&self.client, reply)?;
        let end = |e: anyhow::Error| Failure::new(Then::End, format!("{e:#}"));
        self.record.answered(&answer.model).map_err(end)?;
        if let Some(id) = &answer.id {
            let request = xxh3_64(job.body.as_bytes());
            let whole = xxh3_64(format!("{} {}", answer.created, answer.text).as_bytes());
            let mut seen = lock(&self.seen);
            let first = *seen.first.entry(xxh3_64(id.as_bytes())).or_insert((request, whole));
            seen.ids_repeat |= first.1 != whole;
            if first.0 != request && !seen.ids_repeat {
                let id = self.client.key.cleaned(id);
                let message = format!(
                    "the reply is the one that another request had (id {id}): does a cache stand between?"
                );
                return Err(Failure::broken(message));
            }
        }
        let usage = Usage {
            answers: 1,
            sent_again: 0,
            prompt_tokens: answer.prompt_tokens,
            completion_tokens: answer.tokens,
        };
        lock(&self.usage).add(usage);
        self.note_usage(RECORDED).map_err(end)?;
        Ok(answer)
    }

    /// Writes down what was used, once it is as many answers.
    fn note_usage(&self, answers: usize) -> Result<()> {
        let mut usage = lock(&self.usage);
        if usage.answers.max(usage.sent_again) >= answers {
            self.record.add(std::mem::take(&mut usage))?;
        }
        Ok(())
    }

    /// What `exchange` gives, again and again where a failure may pass.
    fn send<T>(
        &self,
        place: &str,
        exchange: &mut dyn FnMut() -> Result<T, Failure>,
    ) -> Result<T, Unanswered> {
        let base = &self.client.endpoint.base;
        let (mut at, mut again) = (Instant::now(), 0);
        loop {
            again += 1;
            // The rate is asked for last, so that a request that waits for its next try takes nobody's turn.
            if !self.wait(at) || !self.wait(self.pace.slot()) {
                return Err(Unanswered { alone: false, error: Error::interrupted(STOPPED).into() });
            }
            let Failure { message, then } = match exchange() {
                Ok(done) => return Ok(done),
                Err(failure) => failure,
            };
            let message = match then {
                Then::Again(Some(pause)) if pause > LONGEST => {
                    format!(
                        "{message}; it asks for a pause of {} s: run the same command again then",
                        pause.as_secs()
                    )
                }
                Then::Again(pause) if again <= self.retries => {
                    // A server that asks for a pause means all.
                    pause.into_iter().for_each(|pause| self.pace.hold(pause));
                    at = Instant::now() + back_off(place, again);
                    lock(&self.usage).sent_again += 1;
                    continue;
                }
                _ if again > 1 => format!("{message} ({again} tries)"),
                _ => message,
            };
            let error =
                anyhow!(Error::bad_input(base, format!("{base}: {message}"))).context(place.to_string());
            return Err(Unanswered { alone: then == Then::LeaveOut, error });
        }
    }

    /// Waits until then; false: the work is over.
    fn wait(&self, until: Instant) -> bool {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if self.is_over() || left.is_zero() {
                return !self.is_over();
            }
            thread::sleep(left.min(LOOK));
        }
    }

    /// The model's entry of `/models`; null where the server has no such list.
    fn listed(&self) -> Result<Value> {
        let list = self.send("ask for the models", &mut || match self.client.exchange("/models", None) {
            Err(Failure { then: Then::Absent, .. }) => Ok(Value::Null),
            other => other,
        });
        let list = list.map_err(|e| e.error)?;
        let model = &self.client.model;
        let Some(entries) = list["data"].as_array() else {
            note!(
                "{}: its /models is no list of models; `{}` is asked for all the same",
                self.client.endpoint.base,
                shown(model)
            );
            return Ok(Value::Null);
        };
        if let Some(entry) = entries.iter().find(|entry| entry["id"] == json!(model)) {
            // Some have a long list of permissions.
            let few = json!({"id": entry["id"], "created": entry["created"], "owned_by": entry["owned_by"], "meta": entry["meta"]});
            return Ok(if entry.to_string().len() > 4096 { few } else { entry.clone() });
        }
        let names: Vec<&str> = entries.iter().filter_map(|entry| entry["id"].as_str()).collect();
        let near = nearest(model, names.iter().copied()).map(|n| format!("; did you mean `{}`?", shown(n)));
        let some = names.iter().take(8).map(|n| format!("`{}`", shown(n))).collect::<Vec<_>>().join(", ");
        let message = format!(
            "remote-model `{}` is none of its {} models ({some}){}",
            shown(model),
            names.len(),
            near.unwrap_or_default()
        );
        bail!(Error::setting("remote-model", message))
    }
}
