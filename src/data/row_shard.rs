//! Rows on disk: JSONL shards (greppable) with an offset index beside each, both memory-mapped.
//!
//! A shard is `rows-NNNNN.jsonl`; its index `rows-NNNNN.idx` is little-endian: magic `SDRRLIDX`, u32 version, u32 zero, u64 rows, u64 length
//! of the JSONL file, u64 job (which work wrote the shard, 0 = not said), u64 xxh3 of the offsets, then the u64 byte offset of each row. An index is
//! only a shortcut: one that is damaged, older than its JSONL file or of another length is ignored and the file is scanned instead, and every
//! row read through an index is checked to begin and end at line ends.
use std::{
    fs::{self, File, OpenOptions},
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use crate::data::files::FileContext;
use crate::error::Error;
use anyhow::{Context, Result, anyhow, bail};
use serde::{Serialize, de::DeserializeOwned, de::IgnoredAny};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    files::{MANIFEST, PENDING, remove_if_there, sync_folder, write_atomic, write_error},
    json,
    map::{Map, map_path},
    standard_input,
};

const MAGIC: &[u8; 8] = b"SDRRLIDX";
const VERSION: u32 = 1;
const HEADER: usize = 48;
const BOM: &[u8] = b"\xef\xbb\xbf";
/// Rows are handed to the operating system in pieces of about this many bytes.
const FLUSH: usize = 1 << 20;

/// The file name of shard `index`.
pub fn shard_name(index: usize) -> String {
    format!("rows-{index:05}.jsonl")
}

fn index_path(jsonl: &Path) -> PathBuf {
    jsonl.with_extension("idx")
}

/// Where rows begin: mapped from a valid index, or found by scanning.
enum Offsets {
    Mapped(Map),
    Scanned(Vec<u64>),
}

/// One mapped JSONL file. Blank lines, a byte order mark and CRLF line ends are tolerated.
pub struct RowShard {
    path: PathBuf,
    text: Option<Map>,
    offsets: Offsets,
    job: u64,
}

impl RowShard {
    /// Opens a `.jsonl` file, through its index where that is valid.
    pub fn open(path: &Path) -> Result<RowShard> {
        let path = &*standard_input::resolve(path)?;
        let file = File::open(path).opening(path)?;
        let about = file.metadata().opening(path)?;
        if !about.is_file() {
            bail!(Error::bad_input(path.display(), format!("{} is not a file of rows", path.display())));
        }
        let text = if about.len() == 0 { None } else { Some(map_path(path)?) };
        let bytes = text.as_deref().unwrap_or_default();
        let (offsets, job) = match read_index(path, bytes) {
            Some((index, job)) => (Offsets::Mapped(index), job),
            None => (Offsets::Scanned(scan(bytes)), 0),
        };
        Ok(RowShard { path: path.to_path_buf(), text, offsets, job })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's name.
    pub fn name(&self) -> String {
        self.path.file_name().map(|n| n.to_string_lossy().to_string()).unwrap_or_default()
    }

    /// Rows in the file.
    pub fn len(&self) -> usize {
        self.offsets().len()
    }

    /// Whether it holds no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a valid index was found beside it.
    pub fn is_indexed(&self) -> bool {
        matches!(self.offsets, Offsets::Mapped(_))
    }

    /// The work that wrote it (`Manifest::job`); 0 where unknown.
    pub fn job(&self) -> u64 {
        self.job
    }

    /// The text of row `i`, without its line end.
    pub fn line(&self, i: usize) -> Result<&str> {
        let bytes = self.bytes();
        let offsets = self.offsets();
        let Some(&start) = offsets.get(i) else {
            bail!("{}: row {i} was asked for, but it has {} rows", self.path.display(), offsets.len());
        };
        let start = start as usize;
        let next = offsets.get(i + 1).map_or(bytes.len(), |o| *o as usize);
        let begins = start == 0
            || bytes.get(start - 1) == Some(&b'\n')
            || (start == BOM.len() && bytes.starts_with(BOM));
        // Nothing of a mapped index is believed: it may have been written into since it was checked.
        let row = bytes.get(start..next).filter(|_| begins).unwrap_or_default();
        let stop = start + row.iter().position(|b| *b == b'\n').unwrap_or(row.len());
        if row.is_empty() || bytes[stop..next].iter().any(|b| !b.is_ascii_whitespace()) {
            bail!(
                "{} was changed after its index was written: delete {} and try again",
                self.path.display(),
                index_path(&self.path).display()
            );
        }
        let line = bytes[start..stop].strip_suffix(b"\r").unwrap_or(&bytes[start..stop]);
        std::str::from_utf8(line)
            .map_err(|e| anyhow!("{}: byte {} of the line is not UTF-8", self.place(i), e.valid_up_to() + 1))
    }

    /// Row `i`. The error names the file, the line and what is wrong with it.
    pub fn get<T: DeserializeOwned>(&self, i: usize) -> Result<T> {
        let line = self.line(i)?;
        json::check(line.as_bytes()).with_context(|| self.place(i))?;
        serde_json::from_str(line).map_err(|e| {
            let what = e.to_string();
            let what = what.split(" at line ").next().unwrap_or_default();
            let kind = std::any::type_name::<T>().rsplit("::").next().unwrap_or_default();
            anyhow!(
                "{}: {what} (column {}); expected a JSON object on one line: a {kind}",
                self.place(i),
                e.column()
            )
        })
    }

    /// All rows in order.
    pub fn iter<T: DeserializeOwned>(&self) -> impl Iterator<Item = Result<T>> + '_ {
        (0..self.len()).map(|i| self.get(i))
    }

    /// `file:line` of row `i`, for messages.
    pub fn place(&self, i: usize) -> String {
        let start = self.offsets().get(i).map_or(0, |o| *o as usize);
        let before = self.bytes().get(..start).unwrap_or_default();
        let line = 1 + before.iter().filter(|b| **b == b'\n').count();
        format!("{}:{line}", self.path.display())
    }

    fn bytes(&self) -> &[u8] {
        self.text.as_deref().unwrap_or_default()
    }

    fn offsets(&self) -> &[u64] {
        match &self.offsets {
            Offsets::Mapped(index) => bytemuck::try_cast_slice(&index[HEADER..]).unwrap_or_default(),
            Offsets::Scanned(offsets) => offsets,
        }
    }
}

/// Where the lines of `bytes` that are not blank begin.
fn scan(bytes: &[u8]) -> Vec<u64> {
    let mut offsets = vec![];
    let mut start = if bytes.starts_with(BOM) { BOM.len() } else { 0 };
    while start < bytes.len() {
        let line = &bytes[start..];
        let length = line.iter().position(|b| *b == b'\n').unwrap_or(line.len());
        if !line[..length].iter().all(|b| b.is_ascii_whitespace()) {
            offsets.push(start as u64);
        }
        start += length + 1;
    }
    offsets
}

/// The mapped index of `jsonl` (whose content is `text`) and its job, if it is whole, not older than the text, and made for a text of this length.
fn read_index(jsonl: &Path, text: &[u8]) -> Option<(Map, u64)> {
    let path = index_path(jsonl);
    let about = fs::metadata(&path).ok()?;
    if (about.len() as usize) < HEADER
        || about.modified().ok()? < fs::metadata(jsonl).ok()?.modified().ok()?
    {
        return None;
    }
    let index = map_path(&path).ok()?;
    let word = |at: usize| index.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    let (header, count, length, job, check) = (word(8)?, word(16)?, word(24)?, word(32)?, word(40)?);
    let body = index.get(HEADER..)?;
    let whole = index.starts_with(MAGIC)
        && header == u64::from(VERSION)
        && count.checked_mul(8) == Some(body.len() as u64)
        && length == text.len() as u64
        && check == xxh3_64(body);
    let offsets: &[u64] = bytemuck::try_cast_slice(body).ok()?;
    let rising = offsets.windows(2).all(|w| w[0] < w[1]) && offsets.last().is_none_or(|last| *last < length);
    (whole && rising).then_some((index, job))
}

fn write_index(jsonl: &Path, length: u64, offsets: &[u64], job: u64) -> Result<()> {
    let body: &[u8] = bytemuck::cast_slice(offsets);
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend_from_slice(MAGIC);
    for word in [u64::from(VERSION), offsets.len() as u64, length, job, xxh3_64(body)] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.extend_from_slice(body);
    write_atomic(&index_path(jsonl), &bytes)
}

/// All shards of a folder, or a single `.jsonl` file, as one list of rows.
pub struct RowSet {
    shards: Vec<RowShard>,
    /// Rows before each shard.
    before: Vec<usize>,
    len: usize,
}

impl RowSet {
    /// Opens the `rows-NNNNN.jsonl` files of a finished stage's folder, or one file of rows.
    pub fn open(path: &Path) -> Result<RowSet> {
        if path.is_dir() && path.join(PENDING).exists() && !path.join(MANIFEST).exists() {
            bail!(
                "the stage that writes {} has not finished: run it again first, it goes on where it was",
                path.display()
            );
        }
        RowSet::open_unfinished(path)
    }

    /// The same, whether or not the stage has finished.
    pub(crate) fn open_unfinished(path: &Path) -> Result<RowSet> {
        let path = &*standard_input::resolve(path)?;
        let about = fs::metadata(path).at(path, || format!("open the rows in {}", path.display()))?;
        let paths = if about.is_dir() { shard_paths(path)? } else { vec![path.to_path_buf()] };
        if paths.is_empty() {
            bail!(
                "{} holds no rows-NNNNN.jsonl: it is not the folder of a stage that writes rows",
                path.display()
            );
        }
        let shards = paths.iter().map(|p| RowShard::open(p)).collect::<Result<Vec<_>>>()?;
        let mut before = vec![];
        let mut len = 0;
        for shard in &shards {
            before.push(len);
            len += shard.len();
        }
        Ok(RowSet { shards, before, len })
    }

    /// Rows in all shards.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The files, in order.
    pub fn shards(&self) -> &[RowShard] {
        &self.shards
    }

    /// Row `i`, counted through all shards.
    pub fn get<T: DeserializeOwned>(&self, i: usize) -> Result<T> {
        let at = self.before.partition_point(|b| *b <= i).saturating_sub(1);
        match (self.shards.get(at), self.before.get(at)) {
            (Some(shard), Some(before)) if i < self.len => shard.get(i - before),
            _ => bail!("row {i} was asked for, but there are {} rows", self.len),
        }
    }

    /// All rows in order.
    pub fn iter<T: DeserializeOwned>(&self) -> impl Iterator<Item = Result<T>> + '_ {
        self.shards.iter().flat_map(|shard| shard.iter())
    }
}

/// The shards in a folder, sorted by name.
pub(crate) fn shard_paths(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = vec![];
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry.with_context(|| format!("list {}", dir.display()))?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().to_string()).unwrap_or_default();
        let number = name.strip_prefix("rows-").and_then(|n| n.strip_suffix(".jsonl"));
        if number.is_some_and(|n| n.len() >= 5 && n.bytes().all(|b| b.is_ascii_digit())) {
            paths.push(path);
        }
    }
    paths.sort_by_key(|p| (p.as_os_str().len(), p.clone()));
    Ok(paths)
}

/// Writes one shard under a `.partial` name and goes on where a killed run stopped.
pub struct ShardWriter {
    path: PathBuf,
    partial: PathBuf,
    file: File,
    offsets: Vec<u64>,
    /// Bytes in the file, and those waiting to be written.
    written: u64,
    waiting: Vec<u8>,
    job: u64,
}

impl ShardWriter {
    /// Opens the unfinished shard that becomes `path` (`rows-NNNNN.jsonl`) and returns the rows that are already complete in it. A last line that
    /// was cut off is dropped. `job` (`Manifest::job`) is in the partial file's name: partials of other work are removed, never continued.
    pub fn open_or_resume(path: &Path, job: u64) -> Result<(ShardWriter, usize)> {
        let partial = path.with_extension(format!("{job:016x}.partial"));
        for other in partials_of(path)?.iter().filter(|p| **p != partial) {
            remove_if_there(other)?;
        }
        let found = match fs::read(&partial) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => vec![],
            Err(e) => return Err(e).reading(&partial),
        };
        let (offsets, keep) = complete_lines(&found);
        let open = || -> std::io::Result<File> {
            let mut file = OpenOptions::new().create(true).write(true).truncate(false).open(&partial)?;
            file.set_len(keep)?;
            file.seek(SeekFrom::End(0))?;
            Ok(file)
        };
        let file = open().map_err(|e| write_error(&partial, e))?;
        let rows = offsets.len();
        let path = path.to_path_buf();
        Ok((ShardWriter { path, partial, file, offsets, written: keep, waiting: vec![], job }, rows))
    }

    /// Rows so far.
    pub fn len(&self) -> usize {
        self.offsets.len()
    }

    /// Whether there is no row yet.
    pub fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// Appends a row.
    pub fn push<T: Serialize>(&mut self, row: &T) -> Result<()> {
        self.offsets.push(self.written + self.waiting.len() as u64);
        serde_json::to_writer(&mut self.waiting, row)
            .with_context(|| format!("write {}", self.partial.display()))?;
        self.waiting.push(b'\n');
        if self.waiting.len() >= FLUSH { self.flush() } else { Ok(()) }
    }

    /// Hands the rows to the operating system: they survive the end of this process.
    pub fn flush(&mut self) -> Result<()> {
        let length = self.file.metadata().map_err(|e| write_error(&self.partial, e))?.len();
        if length != self.written {
            bail!(
                "another process is writing {}: let only one command write a folder (or give each its --part)",
                self.partial.display()
            );
        }
        self.file.write_all(&self.waiting).map_err(|e| write_error(&self.partial, e))?;
        self.written += self.waiting.len() as u64;
        self.waiting.clear();
        Ok(())
    }

    /// Gives the shard its final name, with its index.
    pub fn finish(mut self) -> Result<()> {
        self.flush()?;
        self.file.sync_all().map_err(|e| write_error(&self.partial, e))?;
        // In this order a shard under its final name without a partial beside it is complete, whatever moment this process is killed at.
        write_index(&self.path, self.written, &self.offsets, self.job)?;
        fs::rename(&self.partial, &self.path).map_err(|e| write_error(&self.path, e))?;
        sync_folder(&self.path);
        Ok(())
    }
}

/// The unfinished files of a shard, of whatever job.
pub(crate) fn partials_of(path: &Path) -> Result<Vec<PathBuf>> {
    let stem = path.file_stem().map(|s| s.to_string_lossy().to_string()).unwrap_or_default() + ".";
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut found = vec![];
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let entry = entry.with_context(|| format!("list {}", folder.display()))?;
        let name = entry.file_name().to_string_lossy().to_string();
        if name
            .strip_prefix(&stem)
            .and_then(|n| n.strip_suffix(".partial"))
            .is_some_and(|job| job.len() == 16 && job.bytes().all(|b| b.is_ascii_hexdigit()))
        {
            found.push(folder.join(name));
        }
    }
    Ok(found)
}

/// The offsets of the leading lines that are complete JSON, and where they end.
fn complete_lines(bytes: &[u8]) -> (Vec<u64>, u64) {
    let mut offsets = vec![];
    let mut start = 0;
    while let Some(length) = bytes[start..].iter().position(|b| *b == b'\n') {
        // After a power cut the end of a file may be zeros; after a kill it cannot.
        if serde_json::from_slice::<IgnoredAny>(&bytes[start..start + length]).is_err() {
            break;
        }
        offsets.push(start as u64);
        start += length + 1;
    }
    (offsets, start as u64)
}

/// Writes rows as `rows-00000.jsonl` ... with `rows_per_shard` rows each (at least one file), each atomically with its index; shards of an
/// earlier, longer run are removed. Returns the number of rows.
pub fn write_rows<T: Serialize>(
    dir: &Path,
    rows: impl IntoIterator<Item = T>,
    rows_per_shard: usize,
) -> Result<usize> {
    fs::create_dir_all(dir).map_err(|e| write_error(dir, e))?;
    let new = |index: usize| -> Result<ShardWriter> {
        let path = dir.join(shard_name(index));
        for partial in partials_of(&path)? {
            remove_if_there(&partial)?;
        }
        Ok(ShardWriter::open_or_resume(&path, 0)?.0)
    };
    let (mut shard, mut total) = (0, 0);
    let mut writer = new(0)?;
    for row in rows {
        if writer.len() >= rows_per_shard.max(1) {
            shard += 1;
            std::mem::replace(&mut writer, new(shard)?).finish()?;
        }
        writer.push(&row)?;
        total += 1;
    }
    writer.finish()?;
    for old in shard_paths(dir)?.iter().filter(|p| number_of(p).is_some_and(|n| n > shard)) {
        remove_if_there(&index_path(old))?;
        remove_if_there(old)?;
    }
    Ok(total)
}

fn number_of(path: &Path) -> Option<usize> {
    path.file_stem()?.to_str()?.strip_prefix("rows-")?.parse().ok()
}
