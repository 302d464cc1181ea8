//! Another program that maps lines to lines, kept running: translators and quality scorers of others.
use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};

pub use super::line_protocol::Protocol;

/// A record that any Apertium pair leaves as it is.
const PADDING: &str = "7717177";
/// No reply for so long, and padding is sent.
const IDLE: Duration = Duration::from_millis(150);

/// A running program.
pub struct LineProcess {
    command: String,
    protocol: Protocol,
    timeout: Duration,
    running: Option<Running>,
}

struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    replies: Receiver<std::io::Result<String>>,
    errors: Arc<Mutex<String>>,
    /// Padding records whose replies have not come yet.
    owed: usize,
}

type Writer = thread::JoinHandle<(std::io::Result<()>, Option<ChildStdin>)>;

/// Waits for what is being written; the program's input, if it stays open.
fn finish(writer: Option<Writer>, command: &str) -> Result<Option<ChildStdin>> {
    let Some(writer) = writer else { return Ok(None) };
    let (written, stdin) = writer.join().map_err(|_| anyhow!("writing to `{command}` failed"))?;
    written.with_context(|| format!("write to `{command}`"))?;
    Ok(stdin)
}

/// The last of what the program wrote on stderr is kept for messages.
const ERROR_TAIL: usize = 2000;

impl LineProcess {
    /// `command` is a shell command line; it starts with the first batch. No reply for `timeout` is an error.
    pub fn new(command: &str, protocol: Protocol, timeout: Duration) -> LineProcess {
        LineProcess { command: command.into(), protocol, timeout, running: None }
    }

    /// The command line.
    pub fn command(&self) -> &str {
        &self.command
    }

    /// The reply to each of `inputs`, in order. Line breaks inside an input become spaces.
    pub fn ask(&mut self, inputs: &[String]) -> Result<Vec<String>> {
        if inputs.is_empty() {
            return Ok(vec![]);
        }
        let result = self.exchange(inputs);
        if result.is_err() || self.protocol == Protocol::Batch {
            // After an error it is unknown which reply belongs to which line.
            self.stop();
        }
        result
    }

    fn exchange(&mut self, inputs: &[String]) -> Result<Vec<String>> {
        let mut running = match self.running.take() {
            Some(running) => running,
            None => start(&self.command, self.protocol)?,
        };
        let writer = self.write(&mut running, inputs);
        let replies = writer.and_then(|writer| self.collect(&mut running, writer, inputs));
        self.running = Some(running);
        let replies = replies?;
        self.no_surplus(inputs.len())?;
        Ok(replies)
    }

    /// Begins to write `inputs`, from a thread of its own: a program that replies while it reads must not be kept waiting.
    fn write(&self, running: &mut Running, inputs: &[String]) -> Result<Writer> {
        let end = self.protocol.end();
        let mut text = String::new();
        for input in inputs {
            let line: String =
                input.chars().map(|c| if matches!(c, '\n' | '\r' | '\0') { ' ' } else { c }).collect();
            text.push_str(&self.protocol.encode(&line));
            text.push(end);
        }
        let mut stdin = running.stdin.take().context("its input was closed")?;
        let batch = self.protocol == Protocol::Batch;
        Ok(thread::spawn(move || -> (std::io::Result<()>, Option<ChildStdin>) {
            let written = stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush());
            (written, (!batch).then_some(stdin))
        }))
    }

    /// The replies to `inputs`.
    fn collect(&self, running: &mut Running, writer: Writer, inputs: &[String]) -> Result<Vec<String>> {
        let mut writer = Some(writer);
        let mut replies = Vec::with_capacity(inputs.len());
        let mut waiting_since = Instant::now();
        let apertium = self.protocol == Protocol::Apertium;
        let patience = if apertium { IDLE.min(self.timeout) } else { self.timeout };
        while replies.len() < inputs.len() {
            match running.replies.recv_timeout(patience) {
                Ok(Ok(reply)) => {
                    waiting_since = Instant::now();
                    let reply = self.protocol.decode(&reply);
                    if apertium && reply == PADDING {
                        ensure!(
                            running.owed > 0 && replies.is_empty(),
                            "`{}` gave no reply to one of {} lines",
                            self.command,
                            inputs.len()
                        );
                        running.owed -= 1;
                    } else {
                        replies.push(reply);
                    }
                }
                Ok(Err(e)) => bail!("`{}` gave no text after reply {}: {e}", self.command, replies.len()),
                Err(RecvTimeoutError::Timeout) if waiting_since.elapsed() < self.timeout => {
                    // Stages of Apertium hold records back until others follow.
                    if writer.as_ref().is_some_and(|w| w.is_finished()) {
                        running.stdin = finish(writer.take(), &self.command)?;
                    }
                    self.pad(running)?;
                }
                Err(error) => return Err(self.no_reply(running, error, replies.len(), inputs)),
            }
        }
        if writer.is_some() {
            running.stdin = finish(writer, &self.command)?;
        }
        Ok(replies)
    }

    /// Sends a record that only pushes the earlier ones out.
    fn pad(&self, running: &mut Running) -> Result<()> {
        let Some(stdin) = &mut running.stdin else { return Ok(()) };
        let padding = format!("{}\0", self.protocol.encode(PADDING));
        stdin.write_all(padding.as_bytes()).with_context(|| format!("write to `{}`", self.command))?;
        running.owed += 1;
        Ok(())
    }

    /// Why the reply to `inputs[done]` is missing.
    fn no_reply(
        &self,
        running: &mut Running,
        error: RecvTimeoutError,
        done: usize,
        inputs: &[String],
    ) -> anyhow::Error {
        let (command, all, next) = (&self.command, inputs.len(), &inputs[done]);
        if error == RecvTimeoutError::Timeout {
            return anyhow!(
                "`{command}` gave no reply to line {} of {all} within {} s: {next:?}{}\nIf it only flushes at its end, use protocol = \"batch\"; else \
                 raise timeout",
                done + 1,
                self.timeout.as_secs_f64(),
                running.said()
            );
        }
        let status = running.child.wait().map(|s| s.to_string()).unwrap_or_default();
        anyhow!(
            "`{command}` ended ({status}) after {done} of {all} lines; the next was {next:?}{}",
            running.said()
        )
    }

    /// A reply too many means that replies and lines do not belong together.
    fn no_surplus(&mut self, lines: usize) -> Result<()> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let surplus = match self.protocol {
            // Late replies are those to padding; anything else is seen with the next batch.
            Protocol::Apertium => None,
            Protocol::Batch => running.replies.recv_timeout(self.timeout).ok(),
            _ => running.replies.try_recv().ok(),
        };
        match surplus {
            Some(Ok(extra)) => {
                bail!("`{}` gave more than {lines} lines for {lines} lines, such as {extra:?}", self.command)
            }
            _ => Ok(()),
        }
    }

    fn stop(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.stdin = None;
            let deadline = Instant::now() + Duration::from_millis(200);
            while Instant::now() < deadline {
                if matches!(running.child.try_wait(), Ok(Some(_))) {
                    return;
                }
                thread::sleep(Duration::from_millis(5));
            }
            // It may be gone already; then there is nothing to kill.
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
    }
}

impl Drop for LineProcess {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Running {
    /// What it said on stderr, for messages.
    fn said(&self) -> String {
        thread::sleep(Duration::from_millis(20));
        match self.errors.lock() {
            Ok(text) if !text.trim().is_empty() => format!("; it said: {}", text.trim()),
            _ => String::new(),
        }
    }
}

fn start(command: &str, protocol: Protocol) -> Result<Running> {
    ensure!(!command.trim().is_empty(), "the command is empty");
    let mut child = Command::new("sh")
        .arg("-c")
        // The shell gives way to the program, so that ending one ends the other.
        .arg(if command.contains(['|', ';', '&', '\n']) {
            command.to_string()
        } else {
            format!("exec {command}")
        })
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start `{command}`"))?;
    let stdin = child.stdin.take();
    let stdout = child.stdout.take().context("no pipe from the program")?;
    let stderr = child.stderr.take().context("no pipe from the program")?;
    let (send, replies) = channel();
    let end = protocol.end() as u8;
    thread::spawn(move || {
        let mut reader = BufReader::new(stdout);
        loop {
            let mut bytes = vec![];
            match reader.read_until(end, &mut bytes) {
                Ok(0) => break,
                Ok(_) => {
                    let reply = String::from_utf8_lossy(&bytes);
                    let reply =
                        reply.trim_end_matches(['\0', '\n', '\r']).trim_start_matches('\n').to_string();
                    if send.send(Ok(reply)).is_err() {
                        break;
                    }
                }
                Err(e) => {
                    let _ = send.send(Err(e));
                    break;
                }
            }
        }
    });
    let errors = Arc::new(Mutex::new(String::new()));
    let sink = errors.clone();
    thread::spawn(move || {
        let mut reader = BufReader::new(stderr);
        let mut buffer = [0; 1024];
        while let Ok(n @ 1..) = reader.read(&mut buffer) {
            if let Ok(mut text) = sink.lock() {
                text.push_str(&String::from_utf8_lossy(&buffer[..n]));
                if text.len() > 2 * ERROR_TAIL {
                    *text = text.chars().skip(text.chars().count().saturating_sub(ERROR_TAIL)).collect();
                }
            }
        }
    });
    Ok(Running { child, stdin, replies, errors, owed: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(command: &str, protocol: Protocol, lines: &[&str]) -> Result<Vec<String>> {
        let lines: Vec<String> = lines.iter().map(|s| s.to_string()).collect();
        LineProcess::new(command, protocol, Duration::from_secs(2)).ask(&lines)
    }

    #[test]
    fn every_protocol_maps_lines_to_lines() {
        let lines = ["one", "two words", "", "a\nb"];
        let expected = ["one", "two words", "", "a b"];
        assert_eq!(ask("cat", Protocol::Lines, &lines).unwrap(), expected);
        assert_eq!(ask("cat", Protocol::Nul, &lines).unwrap(), expected);
        assert_eq!(ask("tr a-z A-Z", Protocol::Batch, &["ab", "c"]).unwrap(), ["AB", "C"]);
    }

    #[test]
    fn apertium_sees_its_reserved_characters_escaped() {
        let lines = ["a [b] <c> ^d$ {e} f/g \\ @h", "", "x.", "\\"];
        assert_eq!(ask("cat", Protocol::Apertium, &lines).unwrap(), lines);
        assert_eq!(Protocol::Apertium.encode("a/b"), "a\\/b.[]");
    }

    /// Apertium's pipelines keep the last records until others follow.
    #[test]
    fn records_that_apertium_holds_back_are_pushed_out() {
        let late = "bash -c 'a=; b=; while IFS= read -r -d \"\" x; do [ -n \"$a\" ] && printf \"%s\\0\" \"$a\"; a=$b; b=$x; done'";
        let mut p = LineProcess::new(late, Protocol::Apertium, Duration::from_secs(5));
        for round in 0..3 {
            let lines: Vec<String> = (0..4).map(|i| format!("line {round} {i}")).collect();
            assert_eq!(p.ask(&lines).unwrap(), lines);
        }
        // A record that is lost must not shift the others.
        let lossy = "bash -c 'while IFS= read -r -d \"\" x; do case $x in lost*) ;; *) printf \"%s\\0\" \"$x\";; esac; done'";
        let lines = ["a", "lost", "b"].map(String::from);
        let error =
            LineProcess::new(lossy, Protocol::Apertium, Duration::from_secs(5)).ask(&lines).unwrap_err();
        assert!(error.to_string().contains("gave no reply to one of 3 lines"), "{error}");
    }

    #[test]
    fn one_process_serves_many_batches() {
        let mut p =
            LineProcess::new("while read x; do echo $$; done", Protocol::Lines, Duration::from_secs(2));
        let first = p.ask(&["x".into()]).unwrap();
        assert_eq!(p.ask(&["y".into(), "z".into()]).unwrap(), [first[0].clone(), first[0].clone()]);
    }

    #[test]
    fn more_lines_than_a_pipe_holds_do_not_block() {
        let lines: Vec<String> = (0..20_000).map(|i| format!("line number {i} with some words")).collect();
        let mut p = LineProcess::new("cat", Protocol::Lines, Duration::from_secs(10));
        assert_eq!(p.ask(&lines).unwrap(), lines);
    }

    #[test]
    fn death_silence_and_wrong_counts_are_named() {
        for (command, protocol, what) in [
            ("head -n 1", Protocol::Lines, "ended"),
            ("echo sorry >&2; exit 3", Protocol::Lines, "sorry"),
            ("sleep 60", Protocol::Lines, "within 2 s"),
            ("sed p", Protocol::Batch, "more than 2 lines"),
            ("sed 1d", Protocol::Batch, "after 1 of 2"),
            ("no-such-program-here", Protocol::Lines, "not found"),
        ] {
            let error = format!("{:#}", ask(command, protocol, &["first", "second"]).unwrap_err());
            assert!(error.contains(what) && error.contains(command), "{command}: {error}");
        }
    }
}
