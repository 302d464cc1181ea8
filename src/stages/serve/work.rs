//! The thread that computes: it takes requests from the queue and runs them together, each model's in its session.
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender},
    },
    time::{Duration, Instant},
};

use anyhow::Result;

use super::http::Refusal;
use crate::{
    infer::{
        answerer::{AnswerOptions, Answerer},
        engine::{Finish, Request},
        session::{Session, Ticket, Told},
    },
    pipeline::interrupt::interrupted,
};

/// How long running requests may go on once the server is asked to stop.
const GRACE: Duration = Duration::from_secs(10);
/// How often an idle server looks around.
const PAUSE: Duration = Duration::from_millis(50);

/// A request that waits for the model.
pub(super) struct Job {
    /// Index of the model.
    pub model: usize,
    pub request: Request,
    pub options: AnswerOptions,
    pub events: Sender<Event>,
    /// Set by whoever no longer wants the reply.
    pub gone: Arc<AtomicBool>,
    /// When it came.
    pub since: Instant,
}

/// What became of it.
pub(super) enum Event {
    Token(u32),
    Done(Finish),
    Failed(Refusal),
}

/// A request at work.
struct Running {
    events: Sender<Event>,
    gone: Arc<AtomicBool>,
    since: Instant,
}

/// A model with its requests.
struct Desk<'m> {
    answerer: &'m Answerer,
    session: Session<'m>,
    running: HashMap<Ticket, Running>,
}

impl<'m> Desk<'m> {
    fn take(&mut self, job: Job) {
        let Job { request, options, events, gone, since, .. } = job;
        let submitted = self.answerer.check_settings(&options);
        let params = Arc::new(self.answerer.sampling(&options));
        match submitted.and_then(|()| self.session.submit(request, params)) {
            Ok(ticket) => drop(self.running.insert(ticket, Running { events, gone, since })),
            Err(e) => {
                let refused = Refusal::new(400, "invalid_request", format!("{e:#}"));
                let _ = events.send(Event::Failed(refused));
            }
        }
    }

    /// Ends what nobody waits for, and what has taken too long.
    fn tidy(&mut self, timeout: Duration) {
        let mut ended = vec![];
        for (&ticket, r) in &self.running {
            if r.gone.load(Ordering::Relaxed) {
                ended.push(ticket);
            } else if r.since.elapsed() > timeout {
                let _ = r.events.send(Event::Failed(late(timeout)));
                ended.push(ticket);
            }
        }
        for ticket in ended {
            self.session.cancel(ticket);
            self.running.remove(&ticket);
        }
    }

    fn step(&mut self) -> Result<()> {
        let running = &mut self.running;
        self.session.step(&mut |ticket, told| {
            let event = match told {
                Told::Token(token) => Event::Token(token),
                Told::Done(done) => Event::Done(done.finish),
                Told::Failed(e) => Event::Failed(Refusal::new(500, "failed", format!("{e:#}"))),
            };
            let last = !matches!(event, Event::Token(_));
            if let Some(r) = running.get(&ticket) {
                // Whoever does not listen any more has set `gone`.
                let _ = r.events.send(event);
            }
            if last {
                running.remove(&ticket);
            }
        })
    }

    fn end_all(&mut self, why: &Refusal) {
        for (ticket, r) in self.running.drain() {
            self.session.cancel(ticket);
            let _ = r.events.send(Event::Failed(why.clone()));
        }
    }
}

/// That a request took too long.
pub(super) fn late(timeout: Duration) -> Refusal {
    let seconds = timeout.as_secs_f64();
    Refusal::new(504, "timeout", format!("the reply was not whole after {seconds} s (--timeout)"))
}

/// That no request is taken any more.
pub(super) fn stopping() -> Refusal {
    Refusal::new(503, "stopping", "the server is stopping")
}

/// Computes until the server is asked to stop and nothing is left to do.
///
/// # Errors
/// A failing device; everybody who waits is told.
pub(super) fn work(
    answerers: &[Answerer],
    jobs: &Receiver<Job>,
    (rows, context): (usize, usize),
    timeout: Duration,
) -> Result<()> {
    let open = |answerer| -> Result<Desk> {
        Ok(Desk { answerer, session: Answerer::session(answerer, rows, context)?, running: HashMap::new() })
    };
    let mut desks = answerers.iter().map(open).collect::<Result<Vec<_>>>()?;
    let mut asked_to_stop: Option<Instant> = None;
    loop {
        let idle = desks.iter().all(|d| d.session.is_idle());
        if interrupted() {
            let since = *asked_to_stop.get_or_insert_with(Instant::now);
            while let Ok(job) = jobs.try_recv() {
                let _ = job.events.send(Event::Failed(stopping()));
            }
            if idle || since.elapsed() > GRACE {
                desks.iter_mut().for_each(|d| d.end_all(&stopping()));
                return Ok(());
            }
        }
        // The queue stays in the channel, whose length is the limit; only what may run soon is taken out of it.
        while desks.iter().map(|d| d.session.waiting()).sum::<usize>() < rows {
            let none_left = desks.iter().all(|d| d.session.is_idle());
            let job = if none_left {
                match jobs.recv_timeout(PAUSE) {
                    Ok(job) => job,
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => return Ok(()),
                }
            } else {
                match jobs.try_recv() {
                    Ok(job) => job,
                    Err(_) => break,
                }
            };
            if !job.gone.load(Ordering::Relaxed) && job.model < desks.len() {
                desks[job.model].take(job);
            }
        }
        for desk in &mut desks {
            desk.tidy(timeout);
            if let Err(e) = desk.step() {
                let why = Refusal::new(500, "failed", format!("{e:#}"));
                desks.iter_mut().for_each(|d| d.end_all(&why));
                return Err(e.context("serve"));
            }
        }
    }
}
