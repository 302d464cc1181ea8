//! `-` as the name of a file: what comes on standard input, put aside once so that it can be hashed, mapped and read again.
use std::{
    borrow::Cow,
    env,
    fs::{self, File, OpenOptions},
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::Mutex,
};

use anyhow::{Context, Result};

use super::files::write_error;

/// The file, which has no name any more: it goes with the process, however that ends.
static FILE: Mutex<Option<File>> = Mutex::new(None);

/// A path to read from: `path` itself, or where standard input has been put aside, if that is `-`.
///
/// # Errors
/// If standard input cannot be read, or the folder for temporary files (`TMPDIR`) is full.
pub(crate) fn resolve(path: &Path) -> Result<Cow<'_, Path>> {
    if path != Path::new("-") {
        return Ok(Cow::Borrowed(path));
    }
    let mut file = FILE.lock().unwrap_or_else(|e| e.into_inner());
    let file = match &*file {
        Some(file) => file,
        None => file.insert(put_aside(&mut io::stdin().lock()).context("read standard input")?),
    };
    Ok(Cow::Owned(PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))))
}

fn put_aside(from: &mut impl io::Read) -> Result<File> {
    let path = env::temp_dir().join(format!("sdrrl-standard-input-{}", std::process::id()));
    let create = || OpenOptions::new().read(true).write(true).create_new(true).open(&path);
    let mut file = match create() {
        // Of a process that had this number before.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => fs::remove_file(&path).and_then(|()| create()),
        file => file,
    }
    .map_err(|e| write_error(&path, e))?;
    fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
    io::copy(from, &mut file).map_err(|e| write_error(&path, e))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_aside_is_read_again_and_leaves_no_name() {
        let file = put_aside(&mut &b"{\"a\": 1}\n"[..]).unwrap();
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        for _ in 0..2 {
            assert_eq!(fs::read(&path).unwrap(), b"{\"a\": 1}\n");
        }
        assert!(!env::temp_dir().join(format!("sdrrl-standard-input-{}", std::process::id())).exists());
        assert_eq!(resolve(Path::new("x/-")).unwrap(), Path::new("x/-"));
    }
}
