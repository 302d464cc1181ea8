//! Work on what strangers wrote, done by a child process with limits: chat templates are programs, and the tokenizer library trusts its file.
//!
//! The child is this program again, with a hidden command ([`work`]). It serves many requests, so that each costs a pipe's round trip. It holds
//! itself to a share of memory and to a time of the processor for each request; what goes beyond, a panic, an abort and an overflow of the
//! stack end the child, never the program, and are errors by name here.
//!
//! A library starts the `sdrrl` that [`use_program`] names, or else one beside its own program or on the PATH. Where there is none, chat templates are refused,
//! since their memory cannot be bounded in this process, unless [`use_program`] was told that they are trusted.
pub mod caught;
pub mod work;

use std::{
    io::{ErrorKind, Read, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Mutex, MutexGuard},
};

use anyhow::{Context, Result, anyhow, bail, ensure};

/// The child's exit code where a request took too long.
const TOO_LONG: i32 = 97;
/// The longest request or answer, bytes.
const LONGEST: u64 = 1 << 30;
/// What a child that dies may say about it, bytes.
const LAST_WORDS: u64 = 4096;

/// Limits of children that are used again are multiples of this, bytes.
const REUSED: u64 = 64 << 20;

/// Where the work is done.
#[derive(Clone)]
enum Place {
    /// Nobody has said.
    Unsaid,
    /// In this process, by the user's word.
    Here,
    /// By this program.
    Program(PathBuf),
}

static PLACE: Mutex<Place> = Mutex::new(Place::Unsaid);

/// Says which `sdrrl` binary is started for the chat templates and tokenizers that are loaded from now on. `None`: they are trusted, and worked on in this
/// process, where nothing bounds the memory that a template takes.
pub fn use_program(path: Option<PathBuf>) {
    *PLACE.lock().unwrap_or_else(|e| e.into_inner()) = path.map_or(Place::Here, Place::Program);
}

/// Children that were done with, to be used again, and the limits that each holds itself to; `None`: each is ended.
static SPARE: Mutex<Option<Vec<Contained>>> = Mutex::new(None);

/// Whether a child that is done with one file goes on to the next. For who works on very many small ones: the start of a process is most of their time. What one leaves in
/// memory counts for the next.
pub fn use_again(yes: bool) {
    *spare() = yes.then(Vec::new);
}

fn spare() -> MutexGuard<'static, Option<Vec<Contained>>> {
    SPARE.lock().unwrap_or_else(|e| e.into_inner())
}

/// The running program, whatever has become of its file since.
pub fn own_program() -> Option<PathBuf> {
    let link = Path::new("/proc/self/exe");
    if link.exists() { Some(link.into()) } else { std::env::current_exe().ok() }
}

/// The program that [`use_program`] named, or that was found; `None` where the work is trusted.
///
/// # Errors
/// Nothing was said and none was found: what may not be worked on in this process is refused with this.
pub(super) fn program() -> Result<Option<PathBuf>> {
    match PLACE.lock().unwrap_or_else(|e| e.into_inner()).clone() {
        Place::Here => Ok(None),
        Place::Program(path) => Ok(Some(path)),
        Place::Unsaid if cfg!(test) => Ok(None),
        Place::Unsaid => {
            let path = std::env::var_os("PATH").unwrap_or_default();
            found(std::env::current_exe().ok().as_deref(), std::env::split_paths(&path)).map(Some).context(
                "chat templates are programs, and are run by a `sdrrl` of their own within limits: none stands beside this program or on the PATH; call \
                 sdrrl::use_program(Some(path of the sdrrl binary)), or sdrrl::use_program(None) if you trust the models that you load",
            )
        }
    }
}

/// The `sdrrl` beside a program (or above it, where cargo puts examples and tests), or in the first of `folders` that has one.
fn found(own: Option<&Path>, folders: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    let beside = own.into_iter().flat_map(|exe| exe.ancestors().skip(1).take(2)).map(Path::to_path_buf);
    beside.chain(folders.filter(|f| f.is_absolute())).map(|f| f.join("sdrrl")).find(|p| p.is_file())
}

/// What a child may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Limits {
    /// Bytes, beyond what the program takes by itself.
    pub memory: u64,
    /// Time of the processor for each request.
    pub seconds: f64,
}

impl Limits {
    /// As they are, or a little wider where children are used again for others.
    fn rounded(self) -> Limits {
        let memory = self.memory.div_ceil(REUSED) * REUSED;
        if spare().is_none() { self } else { Limits { memory, seconds: self.seconds.ceil() } }
    }
}

/// The requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Ask {
    /// Parses the template that is sent.
    Template = 1,
    /// A JSON list of variables; the answer is the list of texts.
    Render = 2,
    /// Loads the tokenizer.json that is sent, and encodes and decodes some texts.
    Tokenizer = 3,
    /// Reads the rows of the Parquet file whose path is sent.
    Rows = 4,
}

/// Children that have done the same first request, one for each thread that needs one at a time.
pub(super) struct Pool {
    program: PathBuf,
    limits: Limits,
    first: (Ask, Vec<u8>),
    idle: Mutex<Vec<Contained>>,
}

impl Pool {
    /// With one child, whose answer to `first` was no error.
    pub fn start(program: PathBuf, limits: Limits, first: (Ask, Vec<u8>)) -> Result<Pool> {
        let pool = Pool { program, limits, first, idle: Mutex::new(vec![]) };
        let child = pool.child()?;
        pool.idle.lock().unwrap_or_else(|e| e.into_inner()).push(child);
        Ok(pool)
    }

    fn child(&self) -> Result<Contained> {
        let mut child = Contained::start(&self.program, self.limits)?;
        child.ask(self.first.0, &self.first.1)?;
        Ok(child)
    }

    /// The answer of one of the children.
    pub fn ask(&self, what: Ask, body: &[u8]) -> Result<Vec<u8>> {
        let idle = || self.idle.lock().unwrap_or_else(|e| e.into_inner());
        let found = idle().pop();
        let mut child = match found {
            Some(child) => child,
            None => self.child()?,
        };
        let answer = child.ask(what, body);
        if child.alive {
            idle().push(child);
        }
        answer
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let idle = self.idle.get_mut().unwrap_or_else(|e| e.into_inner());
        idle.drain(..).for_each(Contained::done);
    }
}

/// The answer of a child of its own to one request.
pub(super) fn ask_once(program: &Path, limits: Limits, what: Ask, body: &[u8]) -> Result<Vec<u8>> {
    let mut child = Contained::start(program, limits)?;
    let answer = child.ask(what, body);
    child.done();
    answer
}

/// A running child.
struct Contained {
    program: PathBuf,
    limits: Limits,
    process: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    alive: bool,
}

impl Contained {
    fn start(program: &Path, limits: Limits) -> Result<Contained> {
        let limits = limits.rounded();
        if let Some(spare) = &mut *spare() {
            let fits = |child: &Contained| child.limits == limits && child.program == program;
            if let Some(at) = spare.iter().position(fits) {
                return Ok(spare.swap_remove(at));
            }
        }
        let mut command = Command::new(program);
        command.arg("contained").args([limits.memory.to_string(), limits.seconds.to_string()]);
        // It needs nothing of the user's, and Ctrl-C is the parent's business.
        command.env_clear().process_group(0);
        for name in ["SOURCE_DATE_EPOCH", "LD_LIBRARY_PATH"] {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let start = || format!("start {} for the work on a stranger's file", program.display());
        let mut process = command.spawn().with_context(start)?;
        let pipes = process.stdin.take().zip(process.stdout.take());
        let (stdin, stdout) = pipes.with_context(start)?;
        Ok(Contained { program: program.into(), limits, process, stdin, stdout, alive: true })
    }

    fn ask(&mut self, what: Ask, body: &[u8]) -> Result<Vec<u8>> {
        let answer = write_frame(&mut self.stdin, what as u8, body)
            .map_err(Into::into)
            .and_then(|()| read_frame(&mut self.stdout));
        match answer {
            Ok(Some((0, answer))) => Ok(answer),
            Ok(Some((_, error))) => bail!("{}", String::from_utf8_lossy(&error)),
            Ok(None) | Err(_) => {
                self.alive = false;
                Err(self.why_it_died())
            }
        }
    }

    /// The child is ended, or kept for another.
    fn done(self) {
        if let (true, Some(spare)) = (self.alive, &mut *spare()) {
            spare.push(self);
        }
    }

    fn why_it_died(&mut self) -> anyhow::Error {
        // Whatever state it is in, it serves no more.
        let _ = self.process.kill();
        let status = match self.process.wait() {
            Ok(status) => status,
            Err(e) => return anyhow!("the process that works on it is lost: {e}"),
        };
        let mut said = String::new();
        if let Some(errors) = self.process.stderr.take() {
            let mut bytes = vec![];
            let _ = errors.take(LAST_WORDS).read_to_end(&mut bytes);
            said = String::from_utf8_lossy(&bytes).trim().into();
        }
        let memory = self.limits.memory >> 20;
        if status.code() == Some(TOO_LONG) {
            return anyhow!("it takes more than {} s of the processor", self.limits.seconds);
        }
        if said.contains("overflowed its stack") {
            return anyhow!("it is nested too deeply");
        }
        if said.contains("memory allocation") {
            return anyhow!("it needs more than {memory} MiB of memory");
        }
        let signal = status.signal().map_or(String::new(), |n| format!(", signal {n}"));
        anyhow!("the process that works on it ended ({status}{signal}): {said}")
    }
}

impl Drop for Contained {
    fn drop(&mut self) {
        // It may be gone already; then there is nothing to end.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A byte that says what it is, the length, the body.
fn write_frame(to: &mut impl Write, kind: u8, body: &[u8]) -> std::io::Result<()> {
    let mut head = [kind; 9];
    head[1..].copy_from_slice(&(body.len() as u64).to_le_bytes());
    if body.len() < 1 << 16 {
        // One system call, one wake-up.
        return to.write_all(&[&head, body].concat()).and_then(|()| to.flush());
    }
    to.write_all(&head).and_then(|()| to.write_all(body)).and_then(|()| to.flush())
}

/// The next frame; `None` at the end.
fn read_frame(from: &mut impl Read) -> Result<Option<(u8, Vec<u8>)>> {
    let mut head = [0u8; 9];
    match from.read_exact(&mut head) {
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let mut length = [0; 8];
    length.copy_from_slice(&head[1..]);
    let length = u64::from_le_bytes(length);
    ensure!(length <= LONGEST, "a message of {length} bytes");
    let mut body = vec![0; length as usize];
    from.read_exact(&mut body)?;
    Ok(Some((head[0], body)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_beside_the_own_one_and_on_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for folder in ["release/deps", "bin", "empty"] {
            std::fs::create_dir_all(at(folder)).unwrap();
        }
        let of = |own: &str, folders: &[&str]| {
            found(Some(&at(own)), folders.iter().map(|f| at(f)).chain([PathBuf::from("relative")]))
        };
        assert_eq!(of("release/deps/all", &["empty"]), None);
        std::fs::write(at("bin/sdrrl"), "").unwrap();
        assert_eq!(of("release/deps/all", &["empty", "bin"]), Some(at("bin/sdrrl")));
        std::fs::write(at("release/sdrrl"), "").unwrap();
        assert_eq!(of("release/deps/all", &["bin"]), Some(at("release/sdrrl")));
        assert_eq!(of("release/all", &["bin"]), Some(at("release/sdrrl")));
        assert_eq!(of("release/deps/deep/all", &[]), None);
    }
}
