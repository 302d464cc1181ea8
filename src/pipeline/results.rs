//! What a run, an ablation or an evaluation writes beside its stages' folders: their numbers and their page, under the rules of a stage's own files.
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use serde_json::json;

use super::{
    identity::{Identity, Inputs},
    left_behind::{is_one_of, refuse_foreign},
    lock::{self, Held},
    manifest::Manifest,
};
use crate::data::files::{MANIFEST, write_atomic};

/// A folder that several stages fill and one command sums up, locked while this exists. Its manifest says whose it is, from before the first stage begins.
pub struct ResultsFolder {
    dir: PathBuf,
    manifest: Manifest,
    files: &'static [&'static str],
    _held: Held,
}

impl ResultsFolder {
    /// Takes the folder (made if it is not there) for `command`, which is `label` on the screen and will write `files` (names with at most one `*`).
    ///
    /// # Errors
    /// [`Error::Locked`](crate::Error::Locked); [`Error::Exists`](crate::Error::Exists), if the folder is another command's, or holds one of the files and no command
    /// wrote it.
    pub fn open(
        dir: &Path,
        command: &str,
        label: &str,
        files: &'static [&'static str],
    ) -> Result<ResultsFolder> {
        let held = lock::folder(dir, label)?;
        refuse_foreign(dir, command, files)?;
        let manifest = Manifest::expected(command, &Inputs::new(), &Identity::of(&json!({}))?)?;
        if !dir.join(MANIFEST).exists() {
            manifest.begin(dir)?;
        }
        Ok(ResultsFolder { dir: dir.into(), manifest, files, _held: held })
    }

    /// The errors of [`ResultsFolder::open`] but for locks; nothing is written.
    pub fn check(dir: &Path, command: &str, files: &[&str]) -> Result<()> {
        refuse_foreign(dir, command, files)
    }

    /// Writes one of the files, whole or not at all.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        ensure!(self.files.iter().any(|pattern| is_one_of(name, pattern)), "{name} was not announced");
        write_atomic(&self.dir.join(name), bytes)
    }

    /// Ends the command's work. What it wrote can always be made again from the stages, so its sizes are not kept.
    pub fn finish(self) -> Result<()> {
        self.manifest.finish_with(&self.dir, Default::default())
    }
}
