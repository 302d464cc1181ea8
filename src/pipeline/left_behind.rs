//! What stands in a stage's folder from work before: what others put there, which is not touched, and the order in which the stage's own goes.
use std::{fs, io::ErrorKind, path::Path};

use anyhow::{Context, Result, bail};

use super::{hash::is_content, lock, manifest::Manifest, work_dir::SCORES};
use crate::{
    data::files::{MANIFEST, PENDING},
    error::Error,
};

/// Whether `name` is what the pattern, with at most one `*`, means.
pub(super) fn is_one_of(name: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        Some((start, end)) => {
            name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
        }
        None => name == pattern,
    }
}

/// What is there of the files that a stage makes. A pattern may begin with a folder (`templates/*.jinja`).
pub(super) fn files_of(dir: &Path, patterns: &[&str]) -> Result<Vec<String>> {
    let mut found = vec![];
    for pattern in patterns {
        let (folder, pattern) = pattern.rsplit_once('/').map_or(("", *pattern), |(f, p)| (f, p));
        let place = dir.join(folder);
        if !folder.is_empty() && !place.is_dir() {
            continue;
        }
        for entry in fs::read_dir(&place).with_context(|| format!("list {}", place.display()))? {
            let entry = entry.with_context(|| format!("list {}", place.display()))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if is_one_of(&name, pattern) {
                found.push(if folder.is_empty() { name } else { format!("{folder}/{name}") });
            }
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// An error if the folder is another stage's, or holds a file that `stage` would write or remove but did not write. A stage's
/// own are those that its manifest lists; one that was killed may have written any.
pub(super) fn refuse_foreign(dir: &Path, stage: &str, patterns: &[&str]) -> Result<()> {
    // Somebody may be just beginning or ending there, between two looks at it.
    look(dir, stage, patterns).or_else(|_| look(dir, stage, patterns))
}

fn look(dir: &Path, stage: &str, patterns: &[&str]) -> Result<()> {
    if !dir.is_dir() {
        return Ok(());
    }
    lock::refuse_foreign(dir)?;
    let pending = read_mark(dir, PENDING)?;
    let manifest = read_mark(dir, MANIFEST)?;
    let other = [&manifest, &pending].into_iter().flatten().find(|m| m.stage != stage);
    if let Some(other) = other.map(|m| &m.stage) {
        let message =
            format!("{} is the folder of {other}: choose another folder for {stage}", dir.display());
        bail!(Error::exists(dir, message));
    }
    if pending.is_some() {
        return Ok(());
    }
    // Whoever lists nothing (results of several stages) owns all of its names.
    let listed = manifest.map(|m| m.outputs);
    let ours = |name: &String| match &listed {
        Some(listed) => listed.is_empty() || listed.contains_key(name) || !is_content(name) || name == SCORES,
        None => false,
    };
    let Some(name) = files_of(dir, patterns)?.into_iter().find(|name| !ours(name)) else { return Ok(()) };
    let why = if listed.is_some() { "which its manifest does not list" } else { "but no manifest" };
    let message = format!(
        "{} holds {name} {why}, so {stage} did not write it: choose another folder, or move it away",
        dir.display()
    );
    bail!(Error::exists(&dir.join(name), message))
}

/// A manifest of this program under `name`; other programs have a manifest.json too.
fn read_mark(dir: &Path, name: &str) -> Result<Option<Manifest>> {
    let path = dir.join(name);
    let read = || -> Result<Option<Manifest>> {
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e.into()),
        }
    };
    read().map_err(|e| {
        let message = format!(
            "{} is not a manifest of this program, or is damaged ({e:#}): choose another folder, or move it away",
            path.display()
        );
        Error::exists(&path, message).into()
    })
}

/// What the folder's manifest vouches for comes first: once one of these is gone it is no longer believed. A kill behind the removal of anything else, such
/// as an index, would leave a folder that counts as finished, without that file.
pub(super) fn in_order_of_removal(mut names: Vec<String>, dir: &Path) -> Vec<String> {
    let listed = Manifest::load(dir).ok().flatten().map(|m| m.outputs).unwrap_or_default();
    names.sort_by_key(|name| !listed.contains_key(name));
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::{
        identity::{Identity, Inputs},
        manifest::FolderState,
    };

    /// A kill behind any number of removals leaves a folder that is whole, or one that does not count as finished.
    #[test]
    fn what_the_manifest_lists_is_removed_first() {
        let dir = tempfile::tempdir().unwrap();
        let all = ["rows-00000.idx", "rows-00000.jsonl", "rows-00001.idx", "rows-00001.jsonl"];
        let manifest =
            Manifest::expected("s", &Inputs::new(), &Identity::of(&serde_json::json!({})).unwrap()).unwrap();
        for killed_after in 0..=all.len() {
            all.iter().for_each(|name| fs::write(dir.path().join(name), "{}\n").unwrap());
            manifest.clone().finish(dir.path()).unwrap();
            let order = in_order_of_removal(all.map(String::from).to_vec(), dir.path());
            order[..killed_after].iter().for_each(|name| fs::remove_file(dir.path().join(name)).unwrap());
            let done = manifest.state(dir.path()).unwrap() == FolderState::Done;
            assert_eq!(done, killed_after == 0, "after {killed_after} of {order:?}");
        }
    }
}
