//! Another program that maps lines to lines, kept running: translators and quality scorers of others.
//!
//! What is promised: the reply that a line gets is its own (`frame.rs` says how that is known; where it cannot be known, whatever the program says more is
//! waited for and counted); the program ends, with all of its children, when it hangs or is no longer needed; it fills no memory; Ctrl-C does not reach
//! it; of the environment it sees what it needs.
mod frame;
mod program;
mod protocol;
#[cfg(test)]
mod tests;

use std::{
    sync::mpsc::RecvTimeoutError,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};

use frame::{ADVICE, Frame, SIDE, Verdict, quoted};
pub use frame::{SentinelLine, number_line};
use program::Program;
pub use program::{end_all, output_of};
pub use protocol::Protocol;

/// A record that any Apertium pair leaves as it is.
const PADDING: &str = "7717177";
/// No reply for so long, and padding is sent.
const IDLE: Duration = Duration::from_millis(150);
/// Longer than this a program whose replies cannot be matched is not listened to after its last one.
const LONGEST_SILENCE: Duration = Duration::from_secs(5);
/// A program that has ended may leave a child that still holds its output; so long is waited for that one's words.
const AFTER_END: Duration = Duration::from_secs(2);
/// The longest a program may take to end once its input is closed; then it is ended.
const FAREWELL: Duration = Duration::from_secs(10);
/// The replies to a chunk may have so many bytes, and as many times those of its lines.
const MOST: (usize, usize) = (64 << 20, 64);

/// A program, which is started with the first lines.
pub struct LineProcess {
    command: String,
    protocol: Protocol,
    timeout: Duration,
    environment: Vec<String>,
    sentinel: SentinelLine,
    running: Option<Running>,
}

struct Running {
    program: Program,
    /// Padding records whose replies have not come yet.
    owed: usize,
    /// What the chunks so far have shown.
    seen: Option<Verdict>,
    /// The longest time between two replies.
    slowest: Duration,
}

impl LineProcess {
    /// `command` is a shell command line; it starts with the first batch. No reply for `timeout` is an error.
    pub fn new(command: &str, protocol: Protocol, timeout: Duration) -> LineProcess {
        let (environment, sentinel) = (vec![], number_line as SentinelLine);
        LineProcess { command: command.into(), protocol, timeout, environment, sentinel, running: None }
    }

    /// With more variables of the environment than every program gets, by name (`MT_*`: all that begin so).
    pub fn with_environment(self, names: &[String]) -> LineProcess {
        LineProcess { environment: names.to_vec(), ..self }
    }

    /// With lines of another kind around each chunk, by which it is known that replies stand where they belong.
    pub fn with_sentinel(self, sentinel: SentinelLine) -> LineProcess {
        LineProcess { sentinel, ..self }
    }

    /// The command line.
    pub fn command(&self) -> &str {
        &self.command
    }

    /// The reply to each of `inputs`, in order. Line breaks inside an input become spaces.
    ///
    /// # Errors
    /// If the program gives more or fewer lines than it got, as far as that can be seen by now ([`LineProcess::finish`] sees the rest), ends, hangs,
    /// or gives what is no text. It has been ended then.
    pub fn ask(&mut self, inputs: &[String]) -> Result<Vec<String>> {
        if inputs.is_empty() {
            return Ok(vec![]);
        }
        let result = self.exchange(inputs);
        if result.is_err() || self.protocol == Protocol::Batch {
            // After an error it is unknown which reply belongs to which line.
            self.running = None;
        }
        result
    }

    /// Ends the program and counts: an error if it says anything more once its input is closed, since then some reply may have been another line's.
    pub fn finish(&mut self) -> Result<()> {
        let Some(mut running) = self.running.take() else { return Ok(()) };
        running.program.close();
        let deadline = Instant::now() + FAREWELL.min(self.timeout);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match running.program.replies.recv_timeout(left) {
                Ok(Ok(line)) if self.protocol == Protocol::Apertium && self.is_padding(&line) => {}
                // Nothing was asked any more; a line without content is no reply to anything.
                Ok(Ok(line)) if line.trim().is_empty() => {}
                // Every reply so far stood where it belongs, so this is a farewell.
                Ok(Ok(_)) if running.seen == Some(Verdict::Matched) => return Ok(()),
                Ok(Ok(line)) => {
                    bail!("`{}` gave more lines than it got; the last is {}", self.command, quoted(&line))
                }
                Ok(Err(e)) => bail!("`{}` gave {e} at its end", self.command),
                Err(_) => return Ok(()),
            }
        }
    }

    fn is_padding(&self, line: &str) -> bool {
        self.protocol.decode(line) == PADDING
    }

    fn exchange(&mut self, inputs: &[String]) -> Result<Vec<String>> {
        let mut running = match self.running.take() {
            Some(running) => running,
            None => {
                let program = Program::start(&self.command, self.protocol, &self.environment)?;
                Running { program, owed: 0, seen: None, slowest: Duration::ZERO }
            }
        };
        let frame = Frame::around(inputs, self.sentinel);
        let lines = frame.with(inputs);
        self.drained(&mut running)?;
        self.write(&mut running, &lines)?;
        let mut replies = self.collect(&mut running, &lines)?;
        let verdict = frame.judge(&self.command, &replies)?;
        self.no_surplus(&mut running, verdict)?;
        running.seen = Some(verdict);
        self.running = Some(running);
        replies.truncate(lines.len() - SIDE);
        replies.drain(..SIDE);
        Ok(replies)
    }

    /// Nothing may have been said since the last chunk.
    fn drained(&self, running: &mut Running) -> Result<()> {
        // Late replies of Apertium are those to padding.
        if self.protocol == Protocol::Apertium {
            return Ok(());
        }
        match running.program.replies.try_recv() {
            Ok(line) => bail!(
                "`{}` gave a line before it got one: {}; {ADVICE}",
                self.command,
                line.map_or_else(|e| e.to_string(), |line| quoted(&line))
            ),
            Err(_) => Ok(()),
        }
    }

    fn write(&self, running: &mut Running, lines: &[String]) -> Result<()> {
        let end = self.protocol.end();
        let mut text = String::new();
        for line in lines {
            let line: String =
                line.chars().map(|c| if matches!(c, '\n' | '\r' | '\0') { ' ' } else { c }).collect();
            text.push_str(&self.protocol.encode(&line));
            text.push(end);
        }
        running.program.write(text, self.protocol == Protocol::Batch)
    }

    /// The replies to `lines`.
    fn collect(&self, running: &mut Running, lines: &[String]) -> Result<Vec<String>> {
        let mut replies: Vec<String> = Vec::with_capacity(lines.len());
        let mut since = Instant::now();
        let apertium = self.protocol == Protocol::Apertium;
        let most = MOST.0 + MOST.1 * lines.iter().map(String::len).sum::<usize>();
        let mut size = 0;
        while replies.len() < lines.len() {
            match running.program.replies.recv_timeout(IDLE.min(self.timeout)) {
                Ok(Ok(reply)) => {
                    if !replies.is_empty() {
                        running.slowest = running.slowest.max(since.elapsed());
                    }
                    since = Instant::now();
                    size += reply.len();
                    ensure!(size <= most, "`{}` gave more than {} MiB for a chunk", self.command, most >> 20);
                    let reply = self.protocol.decode(&reply);
                    if apertium && reply == PADDING {
                        ensure!(
                            running.owed > 0 && replies.is_empty(),
                            "`{}` gave no reply to one of {} lines; {ADVICE}",
                            self.command,
                            lines.len()
                        );
                        running.owed -= 1;
                    } else {
                        replies.push(reply);
                    }
                }
                Ok(Err(e)) => {
                    bail!("`{}` gave {e}, after {} of {} lines", self.command, replies.len(), lines.len())
                }
                Err(RecvTimeoutError::Timeout)
                    if since.elapsed() >= AFTER_END.min(self.timeout) && running.program.has_ended() =>
                {
                    let ended = RecvTimeoutError::Disconnected;
                    return Err(self.no_reply(running, ended, replies.len(), lines));
                }
                Err(RecvTimeoutError::Timeout) if since.elapsed() < self.timeout => {
                    if apertium {
                        self.pad(running)?;
                    }
                }
                Err(error) => return Err(self.no_reply(running, error, replies.len(), lines)),
            }
        }
        let written = running.program.written(self.timeout);
        ensure!(
            written.with_context(|| format!("write to `{}`", self.command))?,
            "`{}` gave {} lines without reading as many: {ADVICE}",
            self.command,
            lines.len()
        );
        Ok(replies)
    }

    /// Sends a record that only pushes the earlier ones out: stages of Apertium hold records back until others follow.
    fn pad(&self, running: &mut Running) -> Result<()> {
        let write = |e| anyhow::Error::new(e).context(format!("write to `{}`", self.command));
        if running.program.written(Duration::ZERO).map_err(write)? {
            running.program.write(format!("{}\0", self.protocol.encode(PADDING)), false)?;
            running.owed += 1;
        }
        Ok(())
    }

    /// Why the reply to `lines[done]` is missing.
    fn no_reply(
        &self,
        running: &mut Running,
        error: RecvTimeoutError,
        done: usize,
        lines: &[String],
    ) -> anyhow::Error {
        let (command, all, next) = (&self.command, lines.len(), quoted(&lines[done]));
        let around = format!("(with {} of our own around them)", 2 * SIDE);
        if error == RecvTimeoutError::Timeout {
            return anyhow!(
                "`{command}` gave no reply to line {} of {all} {around} within {} s: {next}{}\nIf it only flushes at its end, use protocol = \
                 \"batch\"; if it leaves lines out, they cannot be told apart; else raise timeout",
                done + 1,
                self.timeout.as_secs_f64(),
                running.program.said()
            );
        }
        // One that closed its output but reads on would never end by itself.
        let ended = running.program.ends_within(Duration::from_millis(500));
        let said = running.program.said();
        let status = running.program.end().map(|s| s.to_string()).unwrap_or_default();
        let how = if ended { format!("ended ({status})") } else { "closed its output".to_string() };
        anyhow!("`{command}` {how} after {done} of {all} lines {around}; the next was {next}{said}")
    }

    /// A reply too many means that replies and lines do not belong together.
    fn no_surplus(&self, running: &mut Running, verdict: Verdict) -> Result<()> {
        let patience = match (self.protocol, verdict) {
            // Late replies are those to padding; anything else is seen with the next batch.
            (Protocol::Apertium, _) => return Ok(()),
            // To its end.
            (Protocol::Batch, _) => self.timeout,
            (_, Verdict::Matched) => Duration::ZERO,
            (_, Verdict::Unknown) => {
                ensure!(
                    running.seen != Some(Verdict::Matched),
                    "`{}` gave lines that no longer stand where they belong; {ADVICE}",
                    self.command
                );
                // A program that was given one line too little to say says it now.
                (3 * running.slowest).clamp(IDLE, LONGEST_SILENCE)
            }
        };
        match running.program.replies.recv_timeout(patience) {
            Ok(line) => {
                let line = line.map_or_else(|e| e.to_string(), |line| quoted(&line));
                bail!("`{}` gave more lines than it got, such as {line}; {ADVICE}", self.command)
            }
            Err(_) => Ok(()),
        }
    }
}
