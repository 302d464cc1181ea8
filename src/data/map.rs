//! Read-only file mappings: the one place in `data` that needs unsafe code.
#![allow(unsafe_code)]

use std::{fs::File, path::Path};

use crate::data::files::FileContext;
use anyhow::{Context, Result};
use memmap2::Mmap;

/// Maps the whole of `path`.
pub fn map_path(path: &Path) -> Result<Mmap> {
    let file = File::open(path).opening(&path)?;
    // SAFETY: this project replaces files by rename and never truncates one that it may have mapped; a file that another program
    // truncates meanwhile can end this process, but not corrupt it (README, "Files").
    unsafe { Mmap::map(&file) }.with_context(|| format!("map {} into memory", path.display()))
}
