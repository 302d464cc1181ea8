//! Content hashes of inputs (xxh3, 128 bits).
//!
//! Every byte is hashed. Files of 64 MiB and more are hashed in blocks by all cores, and their hash is remembered in the user's cache folder
//! (`$XDG_CACHE_HOME/sdrrl/hashes`, else `~/.cache/sdrrl/hashes`) under device and inode, with size, modification time and change time in
//! nanoseconds. **What is trusted**: a file whose device, inode, size, and both times are as they were has the bytes that it had. The change
//! time cannot be set by a program, so that only a changed clock or a file system without these times (some FUSE ones) can fool it; a hash is only
//! remembered once the file has been at rest for two seconds. Without a cache folder everything is hashed each time.
use std::{
    fmt::Write as _,
    fs::{self, File, Metadata},
    io::{self, ErrorKind, Read},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::data::files::FileContext;
use anyhow::{Context, Result, bail};
use rayon::prelude::*;
use xxhash_rust::xxh3::Xxh3;

use super::work_dir::{CARD, PAGE, REMOTE, TIMING};
use crate::data::{
    files::{MANIFEST, PENDING, write_atomic},
    standard_input,
};

/// From this size on a file is hashed in blocks and its hash is remembered.
const LARGE: u64 = 64 << 20;
const BLOCK: u64 = 16 << 20;
/// A younger file may still change without its times telling.
const AT_REST: Duration = Duration::from_secs(2);

/// The content hash of a file or a folder, 32 hexadecimal digits.
///
/// A folder is hashed by the names and contents of its `rows-*.jsonl` and `tokens-*` files or, where it has none, of all its files
/// (subfolders too), without manifests, indexes (`.idx`), unfinished (`.partial`) and hidden files, its README.md, and files that hold the time.
pub fn hash_path(path: &Path) -> Result<String> {
    let path = &*standard_input::resolve(path)?;
    let mut hasher = Xxh3::new();
    if fs::metadata(path).opening(path)?.is_dir() {
        for (name, file) in content_files(path)? {
            hasher.update(&(name.len() as u64).to_le_bytes());
            hasher.update(name.as_bytes());
            hash_file(&file, &mut hasher)?;
        }
    } else {
        hash_file(path, &mut hasher)?;
    }
    Ok(format!("{:032x}", hasher.digest128()))
}

fn hash_file(path: &Path, hasher: &mut Xxh3) -> Result<()> {
    let file = File::open(path).opening(path)?;
    let about = file.metadata().opening(path)?;
    hasher.update(&about.len().to_le_bytes());
    if about.is_file() && about.len() >= LARGE {
        let hash = hash_large(&file, &about, cache_folder().as_deref());
        hasher.update(&hash.reading(path)?);
        return Ok(());
    }
    let mut hash = |mut file: File| -> io::Result<()> {
        let mut buffer = vec![0u8; 1 << 20];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => hasher.update(&buffer[..n]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    };
    hash(file).reading(path)
}

/// The hash of a large file: remembered, or that of the hashes of its blocks.
fn hash_large(file: &File, about: &Metadata, cache: Option<&Path>) -> io::Result<[u8; 16]> {
    let entry = cache.map(|dir| dir.join(format!("{:x}-{:x}", about.dev(), about.ino())));
    let stamp = format!(
        "{} {}.{:09} {}.{:09}",
        about.len(),
        about.mtime(),
        about.mtime_nsec(),
        about.ctime(),
        about.ctime_nsec()
    );
    if let Some(entry) = &entry
        && let Ok(text) = fs::read_to_string(entry)
        && let Some((known, hash)) = text.trim_end().rsplit_once(' ')
        && known == stamp
        && let (32, Ok(hash)) = (hash.len(), u128::from_str_radix(hash, 16))
    {
        return Ok(hash.to_le_bytes());
    }
    let blocks = (0..about.len().div_ceil(BLOCK)).into_par_iter().map(|i| -> io::Result<u128> {
        let start = i * BLOCK;
        let mut bytes = vec![0u8; BLOCK.min(about.len() - start) as usize];
        file.read_exact_at(&mut bytes, start)?;
        Ok(xxhash_rust::xxh3::xxh3_128(&bytes))
    });
    let blocks: Vec<u128> = blocks.collect::<io::Result<_>>()?;
    let mut hasher = Xxh3::new();
    blocks.iter().for_each(|b| hasher.update(&b.to_le_bytes()));
    let hash = hasher.digest128();
    let changed = UNIX_EPOCH + Duration::new(about.ctime().max(0) as u64, about.ctime_nsec() as u32);
    let at_rest = SystemTime::now().duration_since(changed).is_ok_and(|age| age >= AT_REST);
    // A cache that cannot be written costs time, nothing else.
    if let (Some(entry), true) = (entry, at_rest)
        && let Some(dir) = entry.parent()
        && fs::create_dir_all(dir).is_ok()
    {
        let _ = write_atomic(&entry, format!("{stamp} {hash:032x}\n").as_bytes());
    }
    Ok(hash.to_le_bytes())
}

/// Where hashes of large files are remembered; `None` where the environment names no home.
fn cache_folder() -> Option<PathBuf> {
    let of = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let cache = of("XDG_CACHE_HOME").or_else(|| of("HOME").map(|h| h.join(".cache")))?;
    Some(cache.join("sdrrl/hashes"))
}

/// The files that are a folder's content (see [`hash_path`]), sorted by their relative name.
pub(super) fn content_files(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut files = vec![];
    walk(dir, "", 0, &mut files)?;
    let data = |name: &str| {
        !name.contains('/')
            && (name.starts_with("tokens-") || (name.starts_with("rows-") && name.ends_with(".jsonl")))
    };
    if files.iter().any(|(name, _)| data(name)) {
        files.retain(|(name, _)| data(name));
    }
    files.retain(|(name, _)| is_content(name));
    files.sort();
    Ok(files)
}

/// Whether a file of this name is content, which a manifest lists.
pub(super) fn is_content(name: &str) -> bool {
    let about = [".partial", ".idx"].iter().any(|end| name.ends_with(end));
    // Files that hold the time differ between two equal runs.
    let time =
        name.ends_with(TIMING) || name == PAGE || name == REMOTE || name.contains("events.out.tfevents");
    // A card is what people read and may write on.
    !(about || time || name == CARD)
}

fn walk(dir: &Path, prefix: &str, depth: usize, out: &mut Vec<(String, PathBuf)>) -> Result<()> {
    if depth > 8 {
        bail!("{}: folders nested more than 8 deep (a link that leads back to itself?)", dir.display());
    }
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry.with_context(|| format!("list {}", dir.display()))?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().to_string()).unwrap_or_default();
        let skip = name.starts_with('.') || name == MANIFEST || name == PENDING || name.ends_with(".partial");
        if skip {
            continue;
        }
        let mut full = prefix.to_string();
        let _ = write!(full, "{name}");
        let is_dir = fs::metadata(&path).opening(&path)?.is_dir();
        if is_dir { walk(&path, &format!("{full}/"), depth + 1, out)? } else { out.push((full, path)) }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn large(path: &Path, cache: Option<&Path>) -> [u8; 16] {
        let file = File::open(path).unwrap();
        hash_large(&file, &file.metadata().unwrap(), cache).unwrap()
    }

    /// A byte anywhere in a large file changes the hash, with the size and the modification time as they were.
    #[test]
    fn an_edit_of_the_same_size_is_seen_wherever_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("large");
        let size = LARGE + 12345;
        File::create(&path).unwrap().set_len(size).unwrap();
        let before = hash_path(&path).unwrap();
        let mtime = fs::metadata(&path).unwrap().modified().unwrap();
        for at in [0, 3 << 20, (BLOCK * 2) - 1, BLOCK * 2, LARGE + 1, size - 1] {
            let file = File::options().write(true).open(&path).unwrap();
            file.write_all_at(b"x", at).unwrap();
            file.set_modified(mtime).unwrap();
            assert_ne!(hash_path(&path).unwrap(), before, "byte {at}");
            file.write_all_at(b"\0", at).unwrap();
        }
        assert_eq!(hash_path(&path).unwrap(), before);
    }

    #[test]
    fn a_hash_is_remembered_at_rest_and_only_for_the_same_times() {
        let dir = tempfile::tempdir().unwrap();
        let (path, cache) = (dir.path().join("file"), dir.path().join("cache"));
        fs::write(&path, "abc").unwrap();
        let hash = large(&path, Some(&cache));
        assert!(!cache.exists(), "a file that was just written is not at rest");
        std::thread::sleep(AT_REST + Duration::from_millis(50));
        assert_eq!(large(&path, Some(&cache)), hash);
        let entry = fs::read_dir(&cache).unwrap().next().unwrap().unwrap().path();
        let text = fs::read_to_string(&entry).unwrap();
        let known = |hash: u128| format!("{} {hash:032x}\n", text.trim_end().rsplit_once(' ').unwrap().0);
        fs::write(&entry, known(7)).unwrap();
        assert_eq!(large(&path, Some(&cache)), 7u128.to_le_bytes(), "it was not looked up");
        for damaged in ["", "x", "3 1.0 1.0 zz", &known(7)[1..]] {
            fs::write(&entry, damaged).unwrap();
            assert_eq!(large(&path, Some(&cache)), hash, "{damaged:?}");
        }
        fs::write(&entry, known(7)).unwrap();
        fs::write(&path, "abd").unwrap();
        assert_ne!(large(&path, Some(&cache)), 7u128.to_le_bytes(), "the file was written again");
    }
}
