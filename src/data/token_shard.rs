//! Tokenised documents in one memory-mapped binary file with a checksum.
//!
//! Layout, little-endian: magic, documents u64, tokens u64, bytes of notes u64; document offsets u64 (documents + 1); note offsets u64
//! (documents + 1); tokens u32; weights f32 (of predicting each token: 0 in prompts); notes (UTF-8); xxh3 of everything before.
use std::{
    fs::File,
    io::{BufWriter, Write},
    ops::Range,
    path::{Path, PathBuf},
};

use crate::error::{Error, Kind};
use anyhow::{Context, Result, anyhow, bail, ensure};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::{
    files::write_error,
    map::{Map, map_path},
};

const MAGIC: &[u8; 8] = b"SDRRLTK1";
const HEADER: usize = 32;

/// One document to write.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// Ids.
    pub tokens: Vec<u32>,
    /// Loss weight of each.
    pub weights: Vec<f32>,
    /// What it is, for people: the example's id and pair type.
    pub note: String,
}

/// An open shard.
pub struct TokenShard {
    path: PathBuf,
    map: Map,
    /// Where each document's tokens and notes begin, and where the last ends: as they were when they were checked.
    offsets: Offsets,
    tokens: usize,
    /// Documents of a unit.
    group: usize,
}

impl TokenShard {
    /// Opens and checks `path`: magic, sizes, offsets and checksum.
    pub fn open(path: &Path) -> Result<TokenShard> {
        let map = map_path(path)?;
        let unsound =
            || format!("{} is not a sound token shard: delete it and run `pack` again", path.display());
        let checked = check(&map).with_context(unsound);
        let (offsets, tokens) = checked.or_kind(|message| Error::bad_input(path.display(), message))?;
        Ok(TokenShard { path: path.into(), map, offsets, tokens, group: 1 })
    }

    /// The same documents, of which `group` at a time, from the first on, belong together; an error if some are left over.
    pub(super) fn grouped(self, group: usize) -> Result<TokenShard> {
        let (path, documents) = (self.path.display(), self.len());
        ensure!(documents.is_multiple_of(group), "{path}: {documents} documents are no groups of {group}");
        Ok(TokenShard { group, ..self })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// Documents.
    pub fn len(&self) -> usize {
        self.offsets.tokens.len() - 1
    }
    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Tokens of all documents.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
    /// Tokens of document `i`.
    pub fn document_len(&self, i: usize) -> usize {
        let (start, end) = self.span(i);
        end - start
    }
    /// What is trained on together: single documents, or the documents of a preference.
    pub fn units(&self) -> usize {
        self.len() / self.group
    }
    /// The documents of unit `i`.
    pub fn unit(&self, i: usize) -> Range<usize> {
        i * self.group..(i + 1) * self.group
    }
    /// Tokens of all documents of unit `i`.
    pub fn unit_len(&self, i: usize) -> usize {
        self.unit(i).map(|d| self.document_len(d)).sum()
    }
    /// The note of document `i`.
    pub fn note(&self, i: usize) -> String {
        let notes = HEADER + 16 * (self.len() + 1) + 8 * self.tokens;
        let (from, to) = (self.offsets.notes[i], self.offsets.notes[i + 1]);
        String::from_utf8_lossy(&self.map[notes + from..notes + to]).into_owned()
    }
    /// Document `i`.
    pub fn document(&self, i: usize) -> Document {
        let (start, end) = self.span(i);
        let at = HEADER + 16 * (self.len() + 1);
        let word = |base: usize, t: usize| -> [u8; 4] {
            let from = base + 4 * t;
            [self.map[from], self.map[from + 1], self.map[from + 2], self.map[from + 3]]
        };
        let weights_at = at + 4 * self.tokens;
        Document {
            tokens: (start..end).map(|t| u32::from_le_bytes(word(at, t))).collect(),
            weights: (start..end).map(|t| f32::from_le_bytes(word(weights_at, t))).collect(),
            note: self.note(i),
        }
    }
    fn span(&self, i: usize) -> (usize, usize) {
        (self.offsets.tokens[i], self.offsets.tokens[i + 1])
    }
}

pub(super) fn word64(bytes: &[u8], at: usize) -> usize {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word) as usize
}

struct Offsets {
    tokens: Vec<usize>,
    notes: Vec<usize>,
}

/// (offsets, tokens) of sound bytes.
fn check(bytes: &[u8]) -> Result<(Offsets, usize)> {
    ensure!(bytes.len() >= HEADER + 8 && bytes.starts_with(MAGIC), "it does not begin as one");
    let (documents, tokens, notes) = (word64(bytes, 8), word64(bytes, 16), word64(bytes, 24));
    let size = |n: usize, each: usize| n.checked_mul(each);
    let wanted = documents.checked_add(1).and_then(|d| size(d, 16)).and_then(|offsets| {
        size(tokens, 8)?.checked_add(offsets)?.checked_add(notes)?.checked_add(HEADER + 8)
    });
    ensure!(
        wanted == Some(bytes.len()),
        "its header promises {wanted:?} bytes, it has {}: it is truncated",
        bytes.len()
    );
    let sum = u64::from_le_bytes(bytes[bytes.len() - 8..].try_into()?);
    ensure!(sum == xxh3_64(&bytes[..bytes.len() - 8]), "its checksum is wrong: it is corrupt");
    let read = |at: usize, last: usize| -> Result<Vec<usize>> {
        let offsets: Vec<usize> = (0..=documents).map(|i| word64(bytes, at + 8 * i)).collect();
        let sound = offsets[0] == 0 && offsets[documents] == last && offsets.windows(2).all(|w| w[0] <= w[1]);
        ensure!(sound, "its offsets are out of order: it is corrupt");
        Ok(offsets)
    };
    let notes = read(HEADER + 8 * (documents + 1), notes)?;
    Ok((Offsets { tokens: read(HEADER, tokens)?, notes }, tokens))
}

/// Writes documents as a shard: to a temporary name, then renamed.
pub fn write(path: &Path, documents: &[Document]) -> Result<()> {
    if let Some(d) = documents.iter().find(|d| d.tokens.len() != d.weights.len()) {
        bail!("document {}: {} tokens but {} weights", d.note, d.tokens.len(), d.weights.len());
    }
    let partial = path.with_extension("partial");
    let file = File::create(&partial).map_err(|e| write_error(&partial, e))?;
    let mut out = Hashed { out: BufWriter::new(file), hash: Xxh3::new() };
    write_all(&mut out, documents).map_err(|e| write_error(&partial, e))?;
    let file = out.out.into_inner().map_err(|e| anyhow!("write {}: {e}", partial.display()))?;
    file.sync_all().map_err(|e| write_error(&partial, e))?;
    std::fs::rename(&partial, path).with_context(|| format!("rename {}", partial.display()))
}

/// A file whose checksum grows with it.
pub(super) struct Hashed {
    pub out: BufWriter<File>,
    pub hash: Xxh3,
}

impl Hashed {
    pub fn put(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.hash.update(bytes);
        self.out.write_all(bytes)
    }
}

fn write_all(out: &mut Hashed, documents: &[Document]) -> std::io::Result<()> {
    let offsets = |length: fn(&Document) -> usize| {
        let mut at = 0u64;
        let mut bytes = at.to_le_bytes().to_vec();
        for d in documents {
            at += length(d) as u64;
            bytes.extend(at.to_le_bytes());
        }
        (at, bytes)
    };
    let (tokens, token_offsets) = offsets(|d| d.tokens.len());
    let (notes, note_offsets) = offsets(|d| d.note.len());
    out.put(MAGIC)?;
    for n in [documents.len() as u64, tokens, notes] {
        out.put(&n.to_le_bytes())?;
    }
    out.put(&token_offsets)?;
    out.put(&note_offsets)?;
    documents.iter().flat_map(|d| &d.tokens).try_for_each(|t| out.put(&t.to_le_bytes()))?;
    documents.iter().flat_map(|d| &d.weights).try_for_each(|w| out.put(&w.to_le_bytes()))?;
    documents.iter().try_for_each(|d| out.put(d.note.as_bytes()))?;
    let sum = out.hash.digest();
    out.put(&sum.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn documents() -> Vec<Document> {
        let one = |n: u32| Document {
            tokens: (0..n).collect(),
            weights: (0..n).map(|i| i as f32 * 0.5).collect(),
            note: format!("row-{n} S>T"),
        };
        vec![one(3), one(0), one(7)]
    }

    #[test]
    fn documents_return_as_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("train.tokens");
        write(&path, &documents()).unwrap();
        let shard = TokenShard::open(&path).unwrap();
        let read: Vec<Document> = (0..shard.len()).map(|i| shard.document(i)).collect();
        assert_eq!(read, documents());
        assert_eq!((shard.tokens(), shard.document_len(2)), (10, 7));
        write(&path, &[]).unwrap();
        assert!(TokenShard::open(&path).unwrap().is_empty());
    }

    #[test]
    fn every_truncation_and_every_flipped_bit_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("train.tokens");
        write(&path, &documents()).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for n in 0..whole.len() {
            assert!(check(&whole[..n]).is_err(), "{n} bytes");
            let mut flipped = whole.clone();
            flipped[n] ^= 1 << (n % 8);
            assert!(check(&flipped).is_err(), "byte {n}");
        }
        std::fs::write(&path, &whole[..40]).unwrap();
        let error = format!("{:#}", TokenShard::open(&path).err().unwrap());
        assert!(error.contains("train.tokens") && error.contains("run `pack` again"), "{error}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged(mut bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = check(&bytes);
            bytes.splice(..0, MAGIC.iter().copied());
            let _ = check(&bytes);
        }
    }
}
