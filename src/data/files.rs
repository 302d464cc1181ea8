//! Files that are never half-written, and what to say where writing fails.
use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::error::Error;

/// A finished stage's manifest.
pub const MANIFEST: &str = "manifest.json";
/// The manifest that a stage at work will have when it ends.
pub const PENDING: &str = "manifest.pending.json";

/// Writes under a temporary name, syncs, renames: `path` holds the old bytes or the new ones, never a part. What a killed process of this
/// machine left of the same file is removed.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = partial_of(path);
    let write = || -> io::Result<()> {
        let mut file = File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)?;
        sync_folder(path);
        Ok(())
    };
    write().map_err(|e| {
        let _ = fs::remove_file(&partial);
        write_error(path, e)
    })?;
    left_over(path.parent().unwrap_or(Path::new(".")), Some(path));
    Ok(())
}

/// The temporary name under which this process writes `path`: NAME.HOST-PID-START.partial.
pub(crate) fn partial_of(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let pid = std::process::id();
    let start = process_start(pid).unwrap_or(0);
    path.with_file_name(format!("{name}.{}-{pid}-{start}.partial", host()))
}

/// Removes from a folder what killed processes of this machine left half-written under names of [`partial_of`]; on a shared file system the writers of
/// other machines may be alive.
pub(crate) fn sweep(dir: &Path) {
    left_over(dir, None);
}

/// As [`sweep`]; of one file alone, if it is given.
fn left_over(dir: &Path, of: Option<&Path>) {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    if !Path::new("/proc/self").exists() {
        return;
    }
    let mark = format!(".{}-", host());
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let parts = name.strip_suffix(".partial").and_then(|n| n.rsplit_once(&mark));
        let Some((whose, writer)) = parts.filter(|(whose, _)| !whose.is_empty()) else { continue };
        if of.is_some_and(|path| path.file_name() != Some(OsStr::new(whose))) {
            continue;
        }
        if writer.split_once('-').and_then(|(pid, start)| is_gone(pid, start)) == Some(true) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Whether no process of this number has this start; `None` unless both are numbers.
fn is_gone(pid: &str, start: &str) -> Option<bool> {
    let (pid, start): (u32, u64) = (pid.parse().ok()?, start.parse().ok()?);
    Some(process_start(pid) != Some(start))
}

/// The name of this machine.
pub(crate) fn host() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_string()
}

/// When a process began, in the kernel's ticks (field 22 of /proc/PID/stat): another may later have its number. `None` if there is no such process.
pub(crate) fn process_start(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Makes a rename in the folder of `path` survive a power cut; best effort, since not every file system can.
pub(crate) fn sync_folder(path: &Path) {
    if let Some(Ok(folder)) = path.parent().map(File::open) {
        let _ = folder.sync_all();
    }
}

/// Removes `path`; that it is not there is no error.
pub(crate) fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(e).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// What was being read when the operating system refused: a file that is not there is an error of that kind.
pub(crate) trait FileContext<T> {
    /// While `doing` (a whole phrase) with `path`.
    fn at(self, path: impl AsRef<Path>, doing: impl FnOnce() -> String) -> Result<T>;

    /// "read PATH".
    fn reading(self, path: impl AsRef<Path>) -> Result<T>;

    /// "open PATH".
    fn opening(self, path: impl AsRef<Path>) -> Result<T>;
}

impl<T> FileContext<T> for io::Result<T> {
    fn at(self, path: impl AsRef<Path>, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| match e.kind() {
            ErrorKind::NotFound => anyhow::Error::new(e).context(Error::not_found(path.as_ref(), doing())),
            _ => anyhow::Error::new(e).context(doing()),
        })
    }

    fn reading(self, path: impl AsRef<Path>) -> Result<T> {
        self.at(&path, || format!("read {}", path.as_ref().display()))
    }

    fn opening(self, path: impl AsRef<Path>) -> Result<T> {
        self.at(&path, || format!("open {}", path.as_ref().display()))
    }
}

/// The error of writing to `path`, with what to do about it.
pub fn write_error(path: &Path, error: io::Error) -> anyhow::Error {
    let advice = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "the disk (or your quota) is full: free some space and run the same command again; finished rows are kept"
        }
        ErrorKind::PermissionDenied => {
            "no permission to write there: change it with chmod, or choose another folder"
        }
        ErrorKind::ReadOnlyFilesystem => "the file system is mounted read-only: choose another folder",
        ErrorKind::NotFound => "its folder does not exist",
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
            "a file stands where a folder is needed: choose another folder"
        }
        ErrorKind::IsADirectory => "a folder stands where a file is needed: choose another name",
        _ => "writing failed; finished rows are kept, run the same command again",
    };
    let message = format!("write {}: {advice}", path.display());
    anyhow::Error::new(error).context(Error::cannot_write(path, message))
}
