//! Text files of others, read line by line: `.gz` by suffix, UTF-8 checked, byte order mark and CRLF dropped.
use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use crate::data::files::FileContext;
use anyhow::{Context, Result, bail, ensure};
use flate2::bufread::MultiGzDecoder;

/// A longer line is refused: it would only fill the memory.
pub const LONGEST_LINE: usize = 1 << 24;

/// Opens `path`, unpacking it if its name ends in `.gz`; `-` is standard input.
pub fn open(path: &Path) -> Result<Box<dyn BufRead>> {
    if path.as_os_str() == "-" {
        return Ok(Box::new(BufReader::new(std::io::stdin())));
    }
    let about = std::fs::metadata(path).opening(path)?;
    ensure!(!about.is_dir(), "{} is a folder: give a file", path.display());
    let file = BufReader::new(File::open(path).opening(path)?);
    let suffix = path.extension().map(|s| s.to_string_lossy().to_lowercase()).unwrap_or_default();
    Ok(match suffix.as_str() {
        "gz" | "dz" => Box::new(BufReader::new(MultiGzDecoder::new(file))),
        "zst" => bail!("{}: unpack it first with `zstd -d`, or pack it as .gz", path.display()),
        "xz" => bail!("{}: unpack it first with `xz -d`, or pack it as .gz", path.display()),
        "bz2" => bail!("{}: unpack it first with `bzip2 -d`, or pack it as .gz", path.display()),
        _ => Box::new(file),
    })
}

/// The whole of a (packed) file, if it is not larger than `limit` bytes.
pub fn read_bytes(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![];
    let read = open(path)?.take(limit.saturating_add(1)).read_to_end(&mut bytes);
    read.with_context(|| format!("read {}: is it cut off or damaged?", path.display()))?;
    ensure!(bytes.len() as u64 <= limit, "{}: more than {limit} bytes when unpacked", path.display());
    Ok(bytes)
}

/// The lines of a text file, without their ends. Errors name the file and the line.
pub struct Lines {
    path: PathBuf,
    reader: Box<dyn BufRead>,
    number: usize,
    failed: bool,
}

/// Opens the lines of `path`.
pub fn lines(path: &Path) -> Result<Lines> {
    Ok(Lines { path: path.to_path_buf(), reader: open(path)?, number: 0, failed: false })
}

/// All lines of `path`.
pub fn read_lines(path: &Path) -> Result<Vec<String>> {
    lines(path)?.collect()
}

impl Lines {
    /// 1-based number of the line last returned.
    pub fn number(&self) -> usize {
        self.number
    }

    fn read(&mut self) -> Result<Option<String>> {
        let mut line = vec![];
        let place = format!("{}:{}", self.path.display(), self.number + 1);
        let mut limited = (&mut self.reader).take(LONGEST_LINE as u64 + 1);
        limited
            .read_until(b'\n', &mut line)
            .with_context(|| format!("{place}: is the file cut off or damaged?"))?;
        if line.is_empty() {
            return Ok(None);
        }
        ensure!(line.len() <= LONGEST_LINE, "{place}: a line of more than {LONGEST_LINE} bytes is no text");
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        if self.number == 0 && line.starts_with(b"\xef\xbb\xbf") {
            line.drain(..3);
        }
        self.number += 1;
        match String::from_utf8(line) {
            Ok(text) => Ok(Some(text)),
            Err(e) => {
                let error = e.utf8_error();
                let at = error.valid_up_to();
                let byte = e.as_bytes().get(at).copied().unwrap_or_default();
                bail!("{place}: byte {} (0x{byte:02x}) is not UTF-8: convert the file with iconv", at + 1)
            }
        }
    }
}

impl Iterator for Lines {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Result<String>> {
        if self.failed {
            return None;
        }
        let line = self.read();
        self.failed = line.is_err();
        line.transpose()
    }
}
