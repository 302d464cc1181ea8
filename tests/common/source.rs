//! The source files of the repository, for tests of its rules.
use std::{
    fs,
    path::{Path, PathBuf},
};

/// All files below `folder` whose names end in one of `endings`, sorted.
pub fn files(folder: &str, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = vec![];
    collect(Path::new(folder), &mut found);
    found.retain(|f| f.extension().is_some_and(|e| endings.iter().any(|ending| e == *ending)));
    found.sort();
    found
}

/// All Rust files below `folder`, sorted.
pub fn rust_files(folder: &str) -> Vec<PathBuf> {
    files(folder, &["rs"])
}

fn collect(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() { collect(&entry.path(), out) } else { out.push(entry.path()) }
    }
}
