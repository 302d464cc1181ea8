//! Files that are never half-written, and what to say where writing fails.
use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write},
    path::Path,
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
    let own = own_start(path);
    let partial = path.with_file_name(format!("{own}{}.partial", std::process::id()));
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
    remove_left_over(path, &own);
    Ok(())
}

/// How the names of this machine's temporary files for `path` begin: on a shared file system the writers of other machines may be alive.
fn own_start(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{name}.{}-", host.trim())
}

/// Removes what killed processes of this machine left of [`write_atomic`] to `path`.
pub(crate) fn sweep(path: &Path) {
    remove_left_over(path, &own_start(path));
}

/// Removes the temporary files `own` + PID of processes that are gone, as far as that can be told.
fn remove_left_over(path: &Path, own: &str) {
    let Some(Ok(entries)) = path.parent().map(fs::read_dir) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix(own).and_then(|rest| rest.strip_suffix(".partial"));
        let is_pid = |pid: &&str| pid.parse::<u32>().is_ok();
        if let Some(pid) = pid.filter(is_pid)
            && Path::new("/proc/self").exists()
            && !Path::new("/proc").join(pid).exists()
        {
            let _ = fs::remove_file(entry.path());
        }
    }
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
