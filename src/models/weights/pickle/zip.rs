//! The central directory of a zip archive whose entries are stored, not compressed (PKWARE APPNOTE 4.3; zip64 for large files).
use std::ops::Range;

use anyhow::{Context, Result, ensure};

/// One file of the archive.
pub struct Entry {
    /// With its folders.
    pub name: String,
    method: u16,
    size: u64,
    compressed: u64,
    /// Of its local header.
    header: u64,
}

const END: &[u8] = b"PK\x05\x06";
const END64: &[u8] = b"PK\x06\x06";
const LOCATOR64: &[u8] = b"PK\x06\x07";
const CENTRAL: &[u8] = b"PK\x01\x02";
const LOCAL: &[u8] = b"PK\x03\x04";

fn number(bytes: &[u8], at: usize, width: usize) -> Result<u64> {
    let field = at.checked_add(width).and_then(|end| bytes.get(at..end));
    let field = field.with_context(|| format!("the archive ends before byte {at}: it is truncated"))?;
    Ok(field.iter().rev().fold(0, |n, &b| n << 8 | b as u64))
}

fn has(bytes: &[u8], at: usize, mark: &[u8]) -> bool {
    bytes.get(at..).is_some_and(|b| b.starts_with(mark))
}

/// All entries of an archive. Takes memory for as many as there are in `file`, whatever the directory claims.
pub fn entries(file: &[u8]) -> Result<Vec<Entry>> {
    ensure!(
        file.starts_with(LOCAL),
        "it does not begin as a zip archive does: files of PyTorch before 1.6 must be saved again, half-fetched ones fetched again"
    );
    // The end record has 22 bytes and a comment of at most 65535.
    let lowest = file.len().saturating_sub(22 + 65535);
    let end = (lowest..file.len().saturating_sub(21)).rev().find(|&at| has(file, at, END));
    let end = end.context("the archive's directory is missing: the file is truncated")?;
    let (mut count, mut at) = (number(file, end + 10, 2)?, number(file, end + 16, 4)?);
    if let Some(locator) = end.checked_sub(20).filter(|&at| has(file, at, LOCATOR64)) {
        let end64 = number(file, locator + 8, 8)? as usize;
        ensure!(has(file, end64, END64), "the archive's zip64 record is not where it should be");
        (count, at) = (number(file, end64 + 32, 8)?, number(file, end64 + 48, 8)?);
    }
    let (mut at, mut out) = (at as usize, vec![]);
    for i in 0..count {
        ensure!(has(file, at, CENTRAL), "entry {i} of the archive's directory is damaged");
        let [name, extra, comment] = [28, 30, 32].map(|o| number(file, at + o, 2).map(|n| n as usize));
        let (name, extra, comment) = (name?, extra?, comment?);
        let names = file.get(at + 46..at + 46 + name).context("the archive's directory is truncated")?;
        let mut entry = Entry {
            name: String::from_utf8_lossy(names).into_owned(),
            method: number(file, at + 10, 2)? as u16,
            compressed: number(file, at + 20, 4)?,
            size: number(file, at + 24, 4)?,
            header: number(file, at + 42, 4)?,
        };
        let extras = at + 46 + name;
        widen(&mut entry, file.get(extras..extras + extra).context("the archive's directory is truncated")?)?;
        out.push(entry);
        at = extras + extra + comment;
    }
    Ok(out)
}

/// Sizes that do not fit into 32 bits stand in the extra field 1, those that are all ones only, in this order.
fn widen(entry: &mut Entry, mut extra: &[u8]) -> Result<()> {
    while extra.len() >= 4 {
        let (id, length) = (number(extra, 0, 2)?, number(extra, 2, 2)? as usize);
        let body = extra.get(4..4 + length).context("an extra field leaves the directory")?;
        if id == 1 {
            let mut at = 0;
            for value in [&mut entry.size, &mut entry.compressed, &mut entry.header] {
                if *value == u32::MAX as u64 {
                    *value = number(body, at, 8)?;
                    at += 8;
                }
            }
        }
        extra = &extra[4 + length..];
    }
    Ok(())
}

/// The bytes of `entry` in `file`.
pub fn stored(file: &[u8], entry: &Entry) -> Result<Range<usize>> {
    let name = &entry.name;
    ensure!(entry.method == 0, "entry {name} is compressed; PyTorch stores entries as they are");
    ensure!(
        entry.size == entry.compressed,
        "entry {name} has two sizes: {} and {}",
        entry.size,
        entry.compressed
    );
    let header = usize::try_from(entry.header).ok().filter(|&at| has(file, at, LOCAL));
    let header = header.with_context(|| format!("entry {name} is not where the directory says"))?;
    let skip = number(file, header + 26, 2)? + number(file, header + 28, 2)?;
    let start = header + 30 + skip as usize;
    let end = usize::try_from(entry.size).ok().and_then(|n| start.checked_add(n));
    let end = end.filter(|&end| end <= file.len());
    Ok(start..end.with_context(|| format!("entry {name} leaves the file: it is truncated"))?)
}
