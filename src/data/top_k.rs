//! What a teacher would say at each token of an answer: its k likeliest tokens with their log-probabilities, and that of all others together. Kept in one memory-mapped binary file
//! with a checksum, beside the token shard that it is of.
//!
//! Layout, little-endian: magic, k u64, units u64, rows u64; row offsets u64 (units + 1); of each row ids u32 (k, rising), log-probabilities f32 (k) and that of the rest f32 (-inf
//! where nothing is left); xxh3 of everything before.
use std::{
    fs::File,
    io::BufWriter,
    ops::Range,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, ensure};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::{
    files::write_error,
    map::{Map, map_path},
    token_shard::{Hashed, word64},
};
use crate::error::{Error, Kind};

const MAGIC: &[u8; 8] = b"SDRRLLP1";
const HEADER: usize = 32;

/// The likeliest tokens of some rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TopK {
    /// Tokens of a row.
    pub k: usize,
    /// (rows, k): rising within a row.
    pub ids: Vec<u32>,
    /// (rows, k + 1): the log-probability of each, then that of all other tokens together, -inf where there is none.
    pub log_probs: Vec<f32>,
}

impl TopK {
    /// Ids and log-probabilities of row `r`, of which the last is that of the rest.
    pub fn row(&self, r: usize) -> (&[u32], &[f32]) {
        (&self.ids[r * self.k..(r + 1) * self.k], &self.log_probs[r * (self.k + 1)..(r + 1) * (self.k + 1)])
    }

    /// Words of a row of `k` tokens.
    pub fn words_of_row(k: usize) -> usize {
        2 * k + 1
    }

    /// All as words: the ids, then the bits of the log-probabilities.
    pub fn to_words(&self) -> Vec<u32> {
        self.ids.iter().copied().chain(self.log_probs.iter().map(|x| x.to_bits())).collect()
    }

    /// Rows of `k` tokens that [`TopK::to_words`] has made words of.
    ///
    /// # Errors
    /// Words that are no whole number of rows.
    pub fn from_words(k: usize, words: &[u32]) -> Result<TopK> {
        let rows = words.len() / TopK::words_of_row(k);
        ensure!(
            rows * TopK::words_of_row(k) == words.len(),
            "{} words are no rows of {k} tokens",
            words.len()
        );
        let (ids, log_probs) = words.split_at(rows * k);
        let log_probs = log_probs.iter().map(|bits| f32::from_bits(*bits)).collect();
        Ok(TopK { k, ids: ids.to_vec(), log_probs })
    }

    /// Appends the rows of another.
    pub fn append(&mut self, other: &TopK) {
        self.k = other.k;
        self.ids.extend(&other.ids);
        self.log_probs.extend(&other.log_probs);
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.ids.len() / self.k.max(1)
    }

    /// Refuses what is no distribution over `vocab` tokens for each of `rows` rows.
    ///
    /// # Errors
    /// Other numbers of rows; ids that do not rise or are beyond the vocabulary; what is no log-probability.
    pub fn check(&self, rows: usize, vocab: usize) -> Result<()> {
        let (k, ids, logs) = (self.k, self.ids.len(), self.log_probs.len());
        let fits = k > 0 && k <= vocab && ids == rows * k && logs == rows * (k + 1);
        ensure!(
            fits,
            "{ids} ids and {logs} log-probabilities, {k} tokens a row, do not fit {rows} rows of {vocab} tokens"
        );
        for r in 0..rows {
            let (ids, log_probs) = self.row(r);
            let rising = ids.windows(2).all(|w| w[0] < w[1]) && ids[k - 1] < vocab as u32;
            ensure!(rising, "row {r}: its tokens do not rise, or are beyond the {vocab} of the vocabulary");
            // Rounding may leave a certain token a little above.
            let odd = log_probs.iter().find(|x| x.is_nan() || **x > 1e-6);
            ensure!(odd.is_none(), "row {r}: {odd:?} is no log-probability");
        }
        Ok(())
    }
}

/// An open file of them.
pub struct TopKShard {
    path: PathBuf,
    map: Map,
    k: usize,
    /// Where each unit's rows begin, and where the last ends: as they were when they were checked.
    offsets: Vec<usize>,
}

impl TopKShard {
    /// Opens and checks `path`: magic, sizes, offsets and checksum.
    ///
    /// # Errors
    /// A file that is missing, truncated or corrupt.
    pub fn open(path: &Path) -> Result<TopKShard> {
        let map = map_path(path)?;
        let unsound = || {
            let path = path.display();
            format!("{path} is not sound: delete its folder and run the same command again")
        };
        let checked = check(&map).with_context(unsound);
        let (k, offsets) = checked.or_kind(|message| Error::bad_input(path.display(), message))?;
        Ok(TopKShard { path: path.into(), map, k, offsets })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// Tokens of a row.
    pub fn k(&self) -> usize {
        self.k
    }
    /// Units of the token shard.
    pub fn units(&self) -> usize {
        self.offsets.len() - 1
    }
    /// Rows of unit `i`.
    pub fn rows(&self, i: usize) -> Range<usize> {
        self.offsets[i]..self.offsets[i + 1]
    }
    /// Appends the rows of unit `i`.
    pub fn read(&self, i: usize, to: &mut TopK) {
        to.k = self.k;
        let first = HEADER + 8 * self.offsets.len();
        for r in self.rows(i) {
            let row = &self.map[first + r * row_bytes(self.k)..][..row_bytes(self.k)];
            let words = || row.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]);
            to.ids.extend(words().take(self.k).map(u32::from_le_bytes));
            to.log_probs.extend(words().skip(self.k).map(f32::from_le_bytes));
        }
    }
}

/// Bytes of a row.
fn row_bytes(k: usize) -> usize {
    4 * (2 * k + 1)
}

/// (k, offsets) of sound bytes.
fn check(bytes: &[u8]) -> Result<(usize, Vec<usize>)> {
    ensure!(bytes.len() >= HEADER + 8 && bytes.starts_with(MAGIC), "it does not begin as one");
    let (k, units, rows) = (word64(bytes, 8), word64(bytes, 16), word64(bytes, 24));
    let each = k.checked_mul(8).and_then(|x| x.checked_add(4));
    let offsets = units.checked_add(1).and_then(|n| n.checked_mul(8));
    let wanted = each.and_then(|each| each.checked_mul(rows)).zip(offsets);
    let wanted = wanted.and_then(|(a, b)| a.checked_add(b)?.checked_add(HEADER + 8));
    ensure!(
        wanted == Some(bytes.len()),
        "its header promises {wanted:?} bytes, it has {}: it is truncated",
        bytes.len()
    );
    let sum = u64::from_le_bytes(bytes[bytes.len() - 8..].try_into()?);
    ensure!(sum == xxh3_64(&bytes[..bytes.len() - 8]), "its checksum is wrong: it is corrupt");
    let offsets: Vec<usize> = (0..=units).map(|i| word64(bytes, HEADER + 8 * i)).collect();
    let sound = offsets[0] == 0 && offsets[units] == rows && offsets.is_sorted();
    ensure!(sound, "its offsets are out of order: it is corrupt");
    Ok((k, offsets))
}

/// Writes such a file unit by unit: to a temporary name, which [`Writer::finish`] renames.
pub struct Writer {
    path: PathBuf,
    out: Hashed,
    k: usize,
    /// Rows that are still to come.
    left: usize,
}

impl Writer {
    /// Of units that have so many rows each.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn new(path: &Path, k: usize, rows: &[usize]) -> Result<Writer> {
        let partial = path.with_extension("partial");
        let file = File::create(&partial).map_err(|e| write_error(&partial, e))?;
        let left = rows.iter().sum();
        let out = Hashed { out: BufWriter::new(file), hash: Xxh3::new() };
        let mut writer = Writer { path: path.into(), out, k, left };
        let ends = rows.iter().scan(0u64, |at, n| {
            *at += *n as u64;
            Some(*at)
        });
        let header = [k as u64, rows.len() as u64, left as u64, 0];
        let words = header.into_iter().chain(ends).flat_map(u64::to_le_bytes);
        writer.put(&MAGIC.iter().copied().chain(words).collect::<Vec<u8>>())?;
        Ok(writer)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.put(bytes).map_err(|e| write_error(&self.path.with_extension("partial"), e))
    }

    /// The next rows.
    ///
    /// # Errors
    /// More rows than were announced, of another width; a full disk.
    pub fn add(&mut self, rows: &TopK) -> Result<()> {
        let n = rows.rows();
        ensure!(rows.k == self.k && n <= self.left, "{n} rows of {} tokens, {} are left", rows.k, self.left);
        self.left -= n;
        let mut bytes = Vec::with_capacity(n * row_bytes(self.k));
        for r in 0..n {
            let (ids, log_probs) = rows.row(r);
            bytes.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
            bytes.extend(log_probs.iter().flat_map(|x| x.to_le_bytes()));
        }
        self.put(&bytes)
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// Rows that are missing; a full disk.
    pub fn finish(mut self) -> Result<()> {
        ensure!(self.left == 0, "{}: {} rows are missing", self.path.display(), self.left);
        let sum = self.out.hash.digest();
        self.put(&sum.to_le_bytes())?;
        let partial = self.path.with_extension("partial");
        let file =
            self.out.out.into_inner().map_err(|e| anyhow!("write {}: {}", partial.display(), e.error()))?;
        file.sync_all().map_err(|e| write_error(&partial, e))?;
        std::fs::rename(&partial, &self.path).with_context(|| format!("rename {}", partial.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rows() -> TopK {
        let rest = [-2.0, -1.0, -0.7, -3.0, -0.1, f32::NEG_INFINITY, -1.5, -2.5, -0.3];
        TopK { k: 2, ids: vec![3, 9, 0, 1, 5, 6], log_probs: rest.into() }
    }

    fn written(path: &Path) -> Vec<u8> {
        let mut writer = Writer::new(path, 2, &[1, 0, 2]).unwrap();
        writer.add(&rows()).unwrap();
        assert!(writer.add(&rows()).is_err(), "more than was announced");
        writer.finish().unwrap();
        std::fs::read(path).unwrap()
    }

    #[test]
    fn rows_return_as_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("train.logprobs");
        written(&path);
        let shard = TopKShard::open(&path).unwrap();
        let mut read = TopK::default();
        (0..shard.units()).for_each(|i| shard.read(i, &mut read));
        assert_eq!((read, shard.k(), shard.units()), (rows(), 2, 3));
        assert_eq!((shard.rows(1), shard.rows(2)), (1..1, 1..3));
        assert!(Writer::new(&path, 2, &[1]).unwrap().finish().is_err(), "a row is missing");
    }

    #[test]
    fn every_truncation_and_every_flipped_bit_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("train.logprobs");
        let whole = written(&path);
        for n in 0..whole.len() {
            assert!(check(&whole[..n]).is_err(), "{n} bytes");
            let mut flipped = whole.clone();
            flipped[n] ^= 1 << (n % 8);
            assert!(check(&flipped).is_err(), "byte {n}");
        }
        std::fs::write(&path, &whole[..50]).unwrap();
        let error = format!("{:#}", TopKShard::open(&path).err().unwrap());
        assert!(error.contains("train.logprobs") && error.contains("delete its folder"), "{error}");
    }

    #[test]
    fn what_is_no_distribution_is_refused() {
        rows().check(3, 10).unwrap();
        assert!(rows().check(2, 10).is_err() && rows().check(3, 9).is_err());
        let mut falls = rows();
        falls.ids.swap(0, 1);
        assert!(falls.check(3, 10).is_err());
        for odd in [f32::NAN, 0.5, f32::INFINITY] {
            let mut log_probs = rows().log_probs;
            log_probs[4] = odd;
            assert!(TopK { log_probs, ..rows() }.check(3, 10).is_err(), "{odd}");
        }
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
