//! Who is at work in a folder.
//!
//! Two kinds of files, hidden, both locked through the operating system, so that the lock of a process that died is free at once: `.lock` is held
//! for moments, while identities are compared, work begins or ends (and until the ranks of a training have met); `.lock.I-N` is held by whoever works on part I of N, and says who that is.
//! A file that a killed process left is taken over. On NFS this holds as far as its locks do: version 4, and version 3 with its lock daemon, between
//! all machines that mount it (not with `nolock` or `local_lock`). On a file system that refuses locks (some Lustre and FUSE mounts), a living
//! process of this machine is still found by its number; one of another machine counts as alive until its file is deleted.
use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{ErrorKind, Read, Seek, SeekFrom, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crate::error::Error;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::{interrupt::interrupted, rows::Part};
use crate::data::files::{FileContext, host, process_start, sweep, write_error};

const MUTEX: &str = ".lock";
/// Beginning and ending are short; longer than this, something hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// Whoever holds a lock.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Holder {
    /// The machine.
    pub host: String,
    /// The process.
    pub pid: u32,
    /// When that process started, in the kernel's ticks: another process may later have its number.
    #[serde(default)]
    pub process_start: u64,
    /// When the lock was taken, seconds since 1970.
    pub since: u64,
    /// The command line.
    pub command: String,
    /// The work (`Manifest::job`).
    pub job: u64,
}

impl Holder {
    fn this(job: u64) -> Holder {
        let pid = std::process::id();
        Holder {
            host: host(),
            pid,
            process_start: process_start(pid).unwrap_or(0),
            since: now(),
            command: std::env::args().collect::<Vec<_>>().join(" "),
            job,
        }
    }

    /// As far as a file system without locks allows to tell.
    fn may_live(&self) -> bool {
        self.host != host() || process_start(self.pid) == Some(self.process_start)
    }
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.pid == 0 {
            return write!(f, "another process");
        }
        let seconds = now().saturating_sub(self.since);
        write!(
            f,
            "process {} on {}, since {seconds} s (`{}`)",
            self.pid,
            self.host,
            self.command.chars().take(200).collect::<String>()
        )
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// A lock that is held until this is dropped.
#[derive(Debug)]
pub struct Held {
    path: PathBuf,
    _file: File,
}

impl Drop for Held {
    fn drop(&mut self) {
        // While it is still locked: whoever opened the file before sees that it is no longer the one of this name.
        let _ = fs::remove_file(&self.path);
    }
}

/// What came of an attempt.
enum Attempt {
    Mine(Held),
    Taken(Holder),
}

fn attempt(path: &Path, holder: &Holder) -> Result<Attempt> {
    loop {
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = open.map_err(|e| write_error(path, e))?;
        match file.try_lock() {
            Ok(()) => {
                let same = |a: &fs::Metadata, b: &fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
                match (file.metadata(), fs::metadata(path)) {
                    (Ok(a), Ok(b)) if same(&a, &b) => {}
                    // Its holder ended between the opening and the locking.
                    _ => continue,
                }
            }
            Err(TryLockError::WouldBlock) => return Ok(Attempt::Taken(read_holder(&mut file))),
            Err(TryLockError::Error(_)) => {
                let other = read_holder(&mut file);
                if other.pid != 0 && other.pid != std::process::id() && other.may_live() {
                    return Ok(Attempt::Taken(other));
                }
            }
        }
        check_lock(&mut file, path)?;
        let mut write = || -> std::io::Result<()> {
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
            file.write_all(serde_json::to_string(holder)?.as_bytes())
        };
        // Who holds it is told where there is room to.
        let _ = write();
        return Ok(Attempt::Mine(Held { path: path.to_path_buf(), _file: file }));
    }
}

/// An error if a file in the place of a lock is another program's.
pub(super) fn refuse_foreign(dir: &Path) -> Result<()> {
    let parts = part_files(dir)?.into_iter().map(|(_, path)| path);
    for path in parts.chain([dir.join(MUTEX)]) {
        if let Ok(mut file) = File::open(&path) {
            check_lock(&mut file, &path)?;
        }
    }
    Ok(())
}

/// An error if the file is not what a holder leaves, who may have been killed while writing it.
fn check_lock(file: &mut File, path: &Path) -> Result<()> {
    const START: &[u8] = b"{\"host\":";
    let mut start = vec![];
    file.seek(SeekFrom::Start(0))
        .and_then(|_| file.take(START.len() as u64).read_to_end(&mut start))
        .reading(path)?;
    let message = || {
        format!("{} is not a lock of this program: choose another folder, or move it away", path.display())
    };
    ensure!(START.starts_with(&start), Error::exists(path, message()));
    Ok(())
}

fn read_holder(file: &mut File) -> Holder {
    let mut text = String::new();
    let _ = file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_string(&mut text));
    serde_json::from_str(&text).unwrap_or_default()
}

/// The lock of a folder's moments.
pub(super) fn mutex(dir: &Path) -> Result<Held> {
    let begun = Instant::now();
    loop {
        match attempt(&dir.join(MUTEX), &Holder::this(0))? {
            Attempt::Mine(held) => return Ok(held),
            Attempt::Taken(other) if begun.elapsed() > PATIENCE => {
                let (held, file) = (dir.display(), dir.join(MUTEX));
                let message = format!(
                    "{held} is held by {other}: end that, or delete {} if it runs no more",
                    file.display()
                );
                bail!(Error::locked(dir, &other, message))
            }
            Attempt::Taken(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// The lock of a part of a folder's work, or who is in the way: somebody at other work in this folder, or at the same part. `mutex` must be held.
pub(super) fn part(
    dir: &Path,
    part: Part,
    job: u64,
    _mutex: &Held,
) -> Result<std::result::Result<Held, Holder>> {
    for (other, path) in part_files(dir)? {
        match attempt(&path, &Holder::this(job))? {
            // Left by a killed process; dropped, it goes.
            Attempt::Mine(_) => {}
            Attempt::Taken(holder) if holder.job != job || part.overlaps(&other) => return Ok(Err(holder)),
            Attempt::Taken(_) => {}
        }
    }
    Ok(match attempt(&dir.join(format!("{MUTEX}.{}-{}", part.index, part.of)), &Holder::this(job))? {
        Attempt::Mine(held) => Ok(held),
        Attempt::Taken(holder) => Err(holder),
    })
}

/// Whether a process, alive or not, has left a lock in `dir`.
pub(super) fn any(dir: &Path) -> bool {
    dir.join(MUTEX).exists() || part_files(dir).is_ok_and(|files| !files.is_empty())
}

fn part_files(dir: &Path) -> Result<Vec<(Part, PathBuf)>> {
    let mut found = vec![];
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let entry = entry.with_context(|| format!("list {}", dir.display()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let part = name.strip_prefix(".lock.").and_then(|n| n.replace('-', "/").parse::<Part>().ok());
        found.extend(part.map(|part| (part, entry.path())));
    }
    Ok(found)
}

/// Locks a whole folder (made if it is not there) for `what`; an error names who else is at work there.
pub fn folder(dir: &Path, what: &str) -> Result<Held> {
    fs::create_dir_all(dir).map_err(|e| write_error(dir, e))?;
    let mutex = mutex(dir)?;
    match part(dir, Part::default(), 0, &mutex)? {
        Ok(held) => {
            sweep(dir);
            Ok(held)
        }
        Err(holder) => bail!(in_the_way(what, dir, &holder)),
    }
}

/// Locks what will stand at `path` before it is there; an error names who else makes it.
pub fn beside(path: &Path, what: &str) -> Result<Held> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match attempt(&path.with_file_name(format!(".{name}{MUTEX}")), &Holder::this(0))? {
        Attempt::Mine(held) => Ok(held),
        Attempt::Taken(holder) => bail!(in_the_way(what, path, &holder)),
    }
}

/// What to say to whom `holder` is in the way.
pub(super) fn in_the_way(what: &str, dir: &Path, holder: &Holder) -> Error {
    let message = format!(
        "{what}: {} is being written by {holder}: wait until it ends, or choose another folder (a part of the shards each: --part)",
        dir.display()
    );
    Error::locked(dir, holder, message)
}

/// Between two looks at a lock that is waited for.
pub(super) fn pause() -> Result<()> {
    std::thread::sleep(Duration::from_millis(20));
    if interrupted() {
        bail!(Error::interrupted(
            "stopped while waiting for another process: run the same command again to resume"
        ));
    }
    Ok(())
}

/// Locks are an extra for a finished folder that may only be read.
pub(super) fn is_denied(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|e| e.downcast_ref::<std::io::Error>()).any(|e| {
        matches!(
            e.kind(),
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem | ErrorKind::StorageFull
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(dir: &Path, text: &str, job: u64) -> std::result::Result<Held, Holder> {
        part(dir, text.parse().unwrap(), job, &mutex(dir).unwrap()).unwrap()
    }

    #[test]
    fn parts_of_one_work_stand_side_by_side_and_other_work_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let first = take(dir.path(), "1/2", 7).unwrap();
        let second = take(dir.path(), "2/2", 7).unwrap();
        for (text, job) in [("1/2", 7), ("1/1", 7), ("3/4", 7), ("1/8", 8), ("2/2", 8)] {
            let holder = take(dir.path(), text, job).unwrap_err();
            assert_eq!((holder.pid, holder.job), (std::process::id(), 7), "{text}");
            assert!(in_the_way("x", dir.path(), &holder).to_string().contains(&holder.pid.to_string()));
        }
        drop((first, second));
        assert!(!any(dir.path()), "released locks leave no file");
        take(dir.path(), "1/1", 8).unwrap();
    }

    #[test]
    fn what_a_dead_process_left_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let dead = Holder { pid: 1, job: 3, host: "elsewhere".into(), ..Holder::default() };
        for name in [".lock", ".lock.1-1", ".lock.2-8"] {
            fs::write(dir.path().join(name), serde_json::to_string(&dead).unwrap()).unwrap();
        }
        assert!(any(dir.path()));
        let held = take(dir.path(), "1/2", 4).unwrap();
        assert_eq!(part_files(dir.path()).unwrap().len(), 1);
        drop(held);
        assert!(!any(dir.path()));
    }

    #[test]
    fn without_locks_of_the_file_system_a_process_is_known_by_number_and_start() {
        let this = Holder::this(1);
        assert!(this.may_live() && this.process_start > 0);
        assert!(!Holder { process_start: this.process_start + 1, ..this.clone() }.may_live());
        assert!(Holder { host: "elsewhere".into(), pid: 1, ..this }.may_live());
    }
}
