//! What stands in a stage's folder from work before, and the order in which it goes.
use std::{fs, path::Path};

use anyhow::{Context, Result};

use super::manifest::Manifest;

/// What is there of the files that a stage makes.
pub(super) fn files_of(dir: &Path, patterns: &[&str]) -> Result<Vec<String>> {
    let matches = |name: &str, pattern: &str| match pattern.split_once('*') {
        Some((start, end)) => {
            name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
        }
        None => name == pattern,
    };
    let mut found = vec![];
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let entry = entry.with_context(|| format!("list {}", dir.display()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if patterns.iter().any(|pattern| matches(&name, pattern)) {
            found.push(name);
        }
    }
    found.sort();
    Ok(found)
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
