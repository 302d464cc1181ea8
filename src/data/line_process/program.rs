//! A program of others as a child: a process group of its own, a chosen environment, bounded pipes, and an end that leaves nothing of it behind.
use std::{
    io::{self, BufRead, BufReader, ErrorKind, Read, Write},
    os::unix::process::CommandExt,
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, MutexGuard,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, channel, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use super::Protocol;

/// The last of what a program wrote on standard error is kept for messages, bytes.
const ERROR_TAIL: usize = 2000;
/// The longest line that is read, bytes; a program that never ends a line must not fill memory.
pub(super) const LONGEST: usize = 4 << 20;
/// What a program may say as its version, bytes.
const LONGEST_VERSION: usize = 64 << 10;
/// Lines that wait to be taken; then the program waits, as any writer into a pipe does.
const WAITING: usize = 16;

/// What a program inherits, unless more is named: where things lie, languages, threads and devices. Keys and tokens are not among it.
const ENVIRONMENT: &[&str] = &[
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LANGUAGE",
    "LC_*",
    "TZ",
    "TMPDIR",
    "TERM",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "PYTHONUNBUFFERED",
    "PYTHONIOENCODING",
    "PYTHONUTF8",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "*_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_HOME",
    "CUDA_PATH",
    "NVIDIA_VISIBLE_DEVICES",
    "XDG_CACHE_HOME",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
];

fn inherits(name: &str, also: &[String]) -> bool {
    let fits = |pattern: &str| match pattern.split_once('*') {
        Some((start, end)) => {
            name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
        }
        None => name == pattern,
    };
    ENVIRONMENT.iter().any(|pattern| fits(pattern)) || also.iter().any(|pattern| fits(pattern))
}

/// The groups of all programs that run, so that none is left behind where the process ends at once.
static GROUPS: Mutex<Vec<Pid>> = Mutex::new(vec![]);

fn groups() -> MutexGuard<'static, Vec<Pid>> {
    GROUPS.lock().unwrap_or_else(|e| e.into_inner())
}

/// Ends every program with all of its children: for a process that is about to end without giving anything back.
pub fn end_all() {
    for group in groups().iter() {
        let _ = kill_process_group(*group, Signal::KILL);
    }
}

/// A shell command line as a child, for whom nothing is read or written yet.
fn spawn(command: &str, environment: &[String]) -> Result<Child> {
    ensure!(!command.trim().is_empty(), "the command is empty");
    let inherited = std::env::vars_os().filter(|(name, _)| inherits(&name.to_string_lossy(), environment));
    Command::new("sh")
        .arg("-c")
        // The shell gives way to the program, so that its exit status is the program's.
        .arg(if command.contains(['|', ';', '&', '\n']) {
            command.to_string()
        } else {
            format!("exec {command}")
        })
        .env_clear()
        .envs(inherited)
        // Ctrl-C at the terminal is for this process, which first saves what the program has said.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start `{command}`"))
}

/// A program at work.
pub(super) struct Program {
    child: Child,
    group: Pid,
    input: Input,
    /// What it says, line by line, without line ends; an error is the last.
    pub(super) replies: Receiver<io::Result<String>>,
    errors: Arc<Mutex<Vec<u8>>>,
}

/// Where the program's standard input is.
enum Input {
    Open(ChildStdin),
    /// With the thread that writes to it.
    Lent(Receiver<(io::Result<()>, Option<ChildStdin>)>),
    Closed,
}

impl Program {
    /// Starts `command`. It inherits the allowed part of the environment and the variables that `environment` names.
    pub(super) fn start(command: &str, protocol: Protocol, environment: &[String]) -> Result<Program> {
        let mut child = spawn(command, environment)?;
        let group = Pid::from_child(&child);
        groups().push(group);
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = pipes else { bail!("no pipe to `{command}`") };
        let (send, replies) = sync_channel(WAITING);
        thread::spawn(move || read_lines(stdout, protocol.end() as u8, &send));
        let errors = Arc::new(Mutex::new(vec![]));
        let sink = errors.clone();
        thread::spawn(move || keep_tail(stderr, &sink));
        Ok(Program { child, group, input: Input::Open(stdin), replies, errors })
    }

    /// Begins to write `text`, from a thread of its own: a program that replies while it reads must not be kept waiting.
    pub(super) fn write(&mut self, text: String, then_close: bool) -> Result<()> {
        let Input::Open(mut stdin) = std::mem::replace(&mut self.input, Input::Closed) else {
            bail!("its input was closed");
        };
        let (send, written) = channel();
        thread::spawn(move || {
            let done = stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush());
            let _ = send.send((done, (!then_close).then_some(stdin)));
        });
        self.input = Input::Lent(written);
        Ok(())
    }

    /// Whether all that was begun has been written, after waiting for at most `patience`.
    pub(super) fn written(&mut self, patience: Duration) -> io::Result<bool> {
        let Input::Lent(written) = &self.input else { return Ok(true) };
        match written.recv_timeout(patience) {
            Ok((done, stdin)) => {
                self.input = stdin.map_or(Input::Closed, Input::Open);
                done.map(|()| true)
            }
            Err(RecvTimeoutError::Timeout) => Ok(false),
            Err(RecvTimeoutError::Disconnected) => Err(io::Error::other("the writing thread ended")),
        }
    }

    /// Closes its input once everything is written, so that it ends by itself.
    pub(super) fn close(&mut self) {
        if let Input::Open(_) = self.input {
            self.input = Input::Closed;
        }
    }

    /// Whether it has ended; it is not reaped, so that its group keeps its number.
    pub(super) fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        matches!(waitid(WaitId::Pid(self.group), options), Ok(Some(_)) | Err(_))
    }

    /// Waits for its end, for at most `patience`.
    pub(super) fn ends_within(&self, patience: Duration) -> bool {
        let begun = Instant::now();
        while !self.has_ended() {
            if begun.elapsed() >= patience {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// Ends the program and all of its children; how it ended.
    pub(super) fn end(&mut self) -> io::Result<ExitStatus> {
        self.input = Input::Closed;
        // It may be gone already; then there is nothing to kill.
        let _ = kill_process_group(self.group, Signal::KILL);
        let status = self.child.wait();
        groups().retain(|group| *group != self.group);
        status
    }

    /// What it said on standard error, for messages.
    pub(super) fn said(&self) -> String {
        thread::sleep(Duration::from_millis(20));
        let Ok(bytes) = self.errors.lock() else { return String::new() };
        let text = String::from_utf8_lossy(&bytes);
        // Line ends stay, other control characters are shown.
        let shown = |c: char| match c {
            '\n' | '\t' => c.to_string(),
            c if c.is_control() => c.escape_default().to_string(),
            c => c.to_string(),
        };
        let text: String = text.trim().chars().map(shown).collect();
        if text.is_empty() { text } else { format!("; it said: {text}") }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.close();
        // A moment to put its own things in order.
        self.ends_within(Duration::from_millis(200));
        let _ = self.end();
    }
}

fn read_lines(stdout: ChildStdout, end: u8, send: &SyncSender<io::Result<String>>) {
    let mut reader = BufReader::new(stdout);
    loop {
        let line = match read_line(&mut reader, end) {
            Ok(None) => return,
            Ok(Some(line)) => Ok(line),
            Err(e) => Err(e),
        };
        let ended = line.is_err();
        if send.send(line).is_err() || ended {
            return;
        }
    }
}

fn read_line(reader: &mut impl BufRead, end: u8) -> io::Result<Option<String>> {
    let mut bytes = vec![];
    if reader.by_ref().take(LONGEST as u64 + 1).read_until(end, &mut bytes)? == 0 {
        return Ok(None);
    }
    if bytes.len() > LONGEST {
        return Err(io::Error::new(
            ErrorKind::InvalidData,
            format!("a line of more than {} MiB", LONGEST >> 20),
        ));
    }
    let text = String::from_utf8(bytes).map_err(|e| {
        let shown: String = String::from_utf8_lossy(e.as_bytes()).chars().take(80).collect();
        io::Error::new(ErrorKind::InvalidData, format!("a line that is not UTF-8: {shown:?}"))
    })?;
    Ok(Some(text.trim_end_matches(['\0', '\n', '\r']).trim_start_matches('\n').to_string()))
}

fn keep_tail(stderr: ChildStderr, sink: &Mutex<Vec<u8>>) {
    let mut reader = BufReader::new(stderr);
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = reader.read(&mut buffer) {
        if let Ok(mut bytes) = sink.lock() {
            bytes.extend_from_slice(&buffer[..n]);
            let surplus = bytes.len().saturating_sub(ERROR_TAIL);
            if surplus > ERROR_TAIL {
                bytes.drain(..surplus);
            }
        }
    }
}

/// What `command` prints, whole: for the version of a program. An exit status that is not 0 is an error.
pub fn output_of(command: &str, environment: &[String], patience: Duration) -> Result<String> {
    let mut program = Program::start(command, Protocol::Lines, environment)?;
    program.close();
    let deadline = Instant::now() + patience;
    let (mut lines, mut size) = (vec![], 0);
    loop {
        match program.replies.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                let line: String = line.map_err(|e| anyhow!("`{command}` gave {e}"))?;
                size += line.len() + 1;
                lines.push(line);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                bail!("`{command}` did not end within {} s", patience.as_secs_f64())
            }
        }
        ensure!(size <= LONGEST_VERSION, "`{command}` gave more than {} KiB", LONGEST_VERSION >> 10);
    }
    ensure!(
        program.ends_within(deadline.saturating_duration_since(Instant::now())),
        "`{command}` did not end within {} s",
        patience.as_secs_f64()
    );
    let said = program.said();
    let status = program.end()?;
    ensure!(status.success(), "`{command}` ended with {status}{said}");
    Ok(lines.join("\n").trim().to_string())
}
