//! Atomic files (to be extended).
use std::{fs, io::Write, path::Path};

use anyhow::{Context, Result};

/// Writes to a temporary name, syncs, renames.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = path.with_extension("partial");
    let mut f = fs::File::create(&partial).with_context(|| format!("create {}", partial.display()))?;
    f.write_all(bytes)?;
    f.sync_all()?;
    fs::rename(&partial, path).with_context(|| format!("rename to {}", path.display()))
}
