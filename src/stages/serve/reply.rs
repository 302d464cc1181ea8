//! From a request to its reply: tokens, the queue, then what the model says, whole or as it comes.
use std::{
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, TrySendError, channel},
    },
    time::{Duration, Instant},
};

use super::{
    JSON, Served, Server,
    ask::{self, Asked, Form, Input, Kind, now},
    find,
    http::{self, Refusal},
    work::{self, Event, Job},
};
use crate::{
    data::{conversation::Prompt, tokenizer::Tokenizer},
    infer::{engine::Request, text_stream::TextStream},
    pipeline::interrupt::interrupted,
};

/// Queues a request and writes its reply.
pub(super) fn complete(
    server: &Server,
    stream: &mut TcpStream,
    request: &http::Request,
    kind: Kind,
) -> Result<(), Refusal> {
    if request.method != "POST" {
        let message = format!("{} is no POST", request.method);
        return Err(Refusal::new(405, "method_not_allowed", message));
    }
    if interrupted() {
        return Err(work::stopping());
    }
    let asked = ask::parse(kind, &request.body, &server.defaults)?;
    let model = find(server, &asked.model)?;
    let served = &server.models[model];
    let tokens = tokens(served, &asked)?;
    let number = server.requests.load(Ordering::Relaxed);
    let id =
        format!("{}-{:x}-{number:x}", if kind == Kind::Chat { "chatcmpl" } else { "cmpl" }, server.started);
    let (events, told) = channel();
    let gone = Arc::new(AtomicBool::new(false));
    let prompt = tokens.len();
    // Equal seeds draw alike; without one every request draws for itself.
    let draws = if asked.seeded { "seeded".to_string() } else { id.clone() };
    let job = Job {
        model,
        request: Request { id: draws, tokens },
        options: asked.options.clone(),
        events,
        gone: gone.clone(),
        since: Instant::now(),
    };
    server.jobs.try_send(job).map_err(|e| match e {
        TrySendError::Full(_) => {
            let message = format!("{} requests wait already (--queue): try again later", server.queue);
            Refusal::new(429, "queue_full", message)
        }
        TrySendError::Disconnected(_) => work::stopping(),
    })?;
    let form = Form { kind, id: &id, model: &served.name, created: now() };
    let mut reply = Reply {
        stream,
        form,
        asked: &asked,
        prompt,
        text: TextStream::new(asked.stops.clone()),
        begun: false,
    };
    let done = reply.write(&told, &served.tokenizer, server.timeout);
    gone.store(true, Ordering::Relaxed);
    done
}

fn tokens(served: &Served, asked: &Asked) -> Result<Vec<u32>, Refusal> {
    let tokens = match &asked.input {
        Input::Turns(turns) => {
            let prompt = Prompt::of_turns(turns).unwrap_or_default();
            let prompt = Prompt { system: asked.options.system.as_deref(), ..prompt };
            served.template.encode_prompt(&served.tokenizer, &prompt)
        }
        Input::Text(text) => served.tokenizer.encode(text, served.tokenizer.adds_bos()),
    };
    let tokens = tokens.map_err(|e| Refusal::new(400, "invalid_prompt", format!("{e:#}")))?;
    if tokens.is_empty() {
        return Err(Refusal::new(400, "invalid_prompt", "the prompt is empty"));
    }
    if tokens.len() >= served.context {
        let (n, most) = (tokens.len(), served.context);
        let message = format!("the prompt has {n} tokens, and prompt and reply may have {most} together");
        return Err(Refusal::new(400, "context_length_exceeded", message));
    }
    Ok(tokens)
}

/// A reply that is being written.
struct Reply<'a> {
    stream: &'a mut TcpStream,
    form: Form<'a>,
    asked: &'a Asked,
    /// Tokens of the prompt.
    prompt: usize,
    text: TextStream,
    /// Whether events were sent.
    begun: bool,
}

impl Reply<'_> {
    fn write(
        &mut self,
        told: &Receiver<Event>,
        tokenizer: &Tokenizer,
        timeout: Duration,
    ) -> Result<(), Refusal> {
        let until = Instant::now() + timeout + Duration::from_secs(5);
        let mut whole = String::new();
        let failed = |e: anyhow::Error| Refusal::new(500, "failed", format!("{e:#}"));
        let finish = loop {
            match told.recv_timeout(Duration::from_millis(200)) {
                Ok(Event::Token(token)) => {
                    let piece = self.text.push(tokenizer, token).map_err(failed)?;
                    if !self.send(&piece, &mut whole) {
                        return Ok(());
                    }
                    if self.text.is_stopped() {
                        break "stop";
                    }
                }
                Ok(Event::Done(finish)) => break finish.name(),
                Ok(Event::Failed(why)) => return self.fail(why),
                // Nobody is there to be told.
                Err(RecvTimeoutError::Timeout) if http::is_gone(self.stream) => return Ok(()),
                Err(RecvTimeoutError::Timeout) if Instant::now() < until => {}
                Err(RecvTimeoutError::Timeout) => return self.fail(work::late(timeout)),
                Err(RecvTimeoutError::Disconnected) => return self.fail(work::stopping()),
            }
        };
        let rest = self.text.finish(tokenizer).map_err(failed)?;
        let usage = (self.prompt, self.text.tokens());
        if !self.send(&rest, &mut whole) {
            return Ok(());
        }
        if !self.asked.stream {
            let body = self.form.reply(&whole, finish, usage).to_string();
            let _ = http::reply(self.stream, 200, JSON, body.as_bytes());
            return Ok(());
        }
        let mut last = vec![];
        if !self.begun {
            last.push(self.form.piece("", true, None));
            let _ = http::begin_events(self.stream);
        }
        last.push(self.form.piece("", false, Some(finish)));
        if self.asked.usage {
            last.push(self.form.usage(usage));
        }
        let last = last.iter().map(|v| v.to_string()).chain(["[DONE]".to_string()]);
        last.for_each(|data| drop(http::event(self.stream, &data)));
        Ok(())
    }

    /// Takes a piece of text to the client, or to the whole; false: the client is gone.
    fn send(&mut self, piece: &str, whole: &mut String) -> bool {
        if !self.asked.stream {
            whole.push_str(piece);
            return true;
        }
        if piece.is_empty() {
            return true;
        }
        let first = !self.begun;
        if first {
            self.begun = true;
            if http::begin_events(self.stream).is_err() {
                return false;
            }
        }
        http::event(self.stream, &self.form.piece(piece, first, None).to_string()).is_ok()
    }

    /// In a stream that has begun the error is an event.
    fn fail(&mut self, why: Refusal) -> Result<(), Refusal> {
        if !self.begun {
            return Err(why);
        }
        let _ = http::event(self.stream, &why.to_json().to_string());
        Ok(())
    }
}
