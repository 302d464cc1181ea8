//! Models by name: the local cache that Hugging Face's `hf download`, transformers and others fill (huggingface_hub's layout and variables).
//!
//! A snapshot is a folder `CACHE/models--ORG--NAME/snapshots/COMMIT`; `refs/main` beside it holds the commit that is current, `refs/REVISION` that of a
//! branch or tag. Nothing is fetched.
use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};

use crate::error::Error;

/// The directory or file that `model` names: a path, or a model of the local Hugging Face cache: `org/name` (its `main`), `name`, and with `@REVISION`
/// behind it a branch, a tag or a commit.
pub fn resolve(model: &str) -> Result<PathBuf> {
    let path = Path::new(model);
    if path.exists() {
        let of_cache = path.join("snapshots").is_dir() && !path.join("config.json").exists();
        let message = || {
            format!(
                "{model} is a model's folder in the hub's cache: give the model's name (org/name), or one of the folders in {model}/snapshots"
            )
        };
        ensure!(!of_cache, Error::not_found(path, message()));
        return Ok(path.into());
    }
    let message = || {
        format!(
            "{model} is an address, and nothing is fetched here: `hf download org/name` does that once; then give the name, org/name"
        )
    };
    ensure!(!model.contains("://"), Error::not_found(path, message()));
    let Some((name, revision)) = hub_name(model) else { return Ok(path.into()) };
    let cache = cache(&|key| env::var(key).ok().filter(|v| !v.is_empty()))?;
    let folder = cache.join(format!("models--{}", name.replace('/', "--")));
    // A single word that is no model of the cache was meant as a path.
    if !folder.exists() && !name.contains('/') {
        return Ok(path.into());
    }
    snapshot(&folder, name, revision)
}

/// (name, revision) if `model` is no path but may be a name.
pub fn hub_name(model: &str) -> Option<(&str, Option<&str>)> {
    if Path::new(model).exists() || model.starts_with(['.', '/', '~']) {
        return None;
    }
    let (name, revision) = match model.split_once('@') {
        Some((name, revision)) => (name, Some(revision)),
        None => (model, None),
    };
    let part = |p: &str| {
        !p.is_empty()
            && !p.starts_with('.')
            && p.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            && !p.ends_with(".gguf")
    };
    let sound = name.split('/').count() <= 2 && name.split('/').all(part);
    let clean = |r: &str| !r.is_empty() && !r.split('/').any(|p| p.is_empty() || p == "." || p == "..");
    (sound && revision.is_none_or(clean)).then_some((name, revision))
}

/// `model` at a branch, tag or commit: `org/name@REVISION`.
///
/// # Errors
/// A path, which has no revisions, and a name that has one already.
pub fn at_revision(model: &str, revision: &str) -> Result<String> {
    let advice = "--revision goes with the name of a model of the hub";
    match hub_name(model) {
        Some((name, None)) => {
            let whole = format!("{name}@{revision}");
            ensure!(
                hub_name(&whole).is_some(),
                Error::setting("revision", format!("`{revision}` is no revision"))
            );
            Ok(whole)
        }
        Some((name, Some(other))) => {
            bail!(Error::setting(
                "revision",
                format!("{model} says already which revision of {name}: {other}")
            ))
        }
        None => bail!(Error::setting("revision", format!("{advice}, and {model} is a path"))),
    }
}

/// What adapters of the model say it is: (hub name, revision), or its absolute path.
pub fn reference(model: &str) -> Result<(String, Option<String>)> {
    if let Some((name, revision)) = hub_name(model)
        && resolve(model)? != Path::new(model)
    {
        return Ok((name.to_string(), revision.map(String::from)));
    }
    let path = std::path::absolute(model).with_context(|| format!("the absolute path of {model}"))?;
    Ok((path.to_string_lossy().into_owned(), None))
}

/// The cache's folder, by the first of these variables that is set.
fn cache(variable: &dyn Fn(&str) -> Option<String>) -> Result<PathBuf> {
    for key in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"] {
        if let Some(dir) = variable(key) {
            return expanded(&dir, variable);
        }
    }
    if let Some(home) = variable("HF_HOME") {
        return Ok(expanded(&home, variable)?.join("hub"));
    }
    if let Some(home) = variable("XDG_CACHE_HOME") {
        return Ok(expanded(&home, variable)?.join("huggingface/hub"));
    }
    let home = variable("HOME").context(
        "where models are kept is not known: none of HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME and HOME is set",
    )?;
    Ok(Path::new(&home).join(".cache/huggingface/hub"))
}

/// With the home folder for `~`, as huggingface_hub has it.
fn expanded(dir: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<PathBuf> {
    match dir.strip_prefix("~/") {
        Some(rest) => Ok(Path::new(&variable("HOME").context("HOME is not set")?).join(rest)),
        None => Ok(dir.into()),
    }
}

/// The snapshot of a revision (`main` where none is given) in a model's folder of the cache.
fn snapshot(folder: &Path, name: &str, revision: Option<&str>) -> Result<PathBuf> {
    let at = revision.map(|r| format!(" --revision {r}")).unwrap_or_default();
    let advice = format!("fetch it once with `hf download {name}{at}`");
    let snapshots = folder.join("snapshots");
    let mut there: Vec<String> = fs::read_dir(&snapshots)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    there.sort();
    if there.is_empty() {
        let message =
            format!("model {name} is neither a path nor in the local cache {}: {advice}", folder.display());
        bail!(Error::not_found(Path::new(name), message));
    }
    let wanted = revision.unwrap_or("main");
    let commit = match fs::read_to_string(folder.join("refs").join(wanted)) {
        Ok(text) => text.trim().to_string(),
        Err(_) => {
            let meant: Vec<&String> = match revision {
                Some(r) if there.iter().any(|commit| commit == r) => {
                    there.iter().filter(|commit| *commit == r).collect()
                }
                Some(r) if r.len() >= 7 => there.iter().filter(|commit| commit.starts_with(r)).collect(),
                Some(_) => vec![],
                None => there.iter().collect(),
            };
            match meant[..] {
                [one] => one.clone(),
                _ => bail!(
                    "model {name}: the local cache {} does not say which commit `{wanted}` is; it has the snapshots {}: choose one with {name}@COMMIT, or {advice}",
                    folder.display(),
                    there.join(", ")
                ),
            }
        }
    };
    let dir = snapshots.join(&commit);
    let files = fs::read_dir(&dir).into_iter().flatten().flatten().map(|e| e.path());
    let gguf = files.filter(|f| f.extension().is_some_and(|e| e == "gguf")).min();
    if let Some(file) = gguf.filter(|_| !dir.join("config.json").exists()) {
        bail!("model {name} is a folder of GGUF files: give one of them, such as --model {}", file.display());
    }
    if !["config.json", "hparams.yaml", "tokenizer.json"].iter().any(|file| dir.join(file).exists()) {
        bail!(
            "model {name}: `{wanted}` is commit {commit}, of which the local cache {} has no config.json: {advice}",
            folder.display()
        );
    }
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_paths() {
        assert_eq!(hub_name("org/name"), Some(("org/name", None)));
        assert_eq!(hub_name("gpt2"), Some(("gpt2", None)));
        assert_eq!(hub_name("org/name-7B.v1@refs/pr/3"), Some(("org/name-7B.v1", Some("refs/pr/3"))));
        for path in
            ["./org/name", "/org/name", "a/b/c", "src", "org/m.gguf", "org/", "o@", "o/n@../x", "../n", "a b"]
        {
            assert_eq!(hub_name(path), None, "{path}");
        }
    }

    #[test]
    fn a_revision_belongs_to_a_name_that_has_none() {
        assert_eq!(at_revision("org/name", "refs/pr/3").unwrap(), "org/name@refs/pr/3");
        for (model, revision, said) in [
            ("org/name@v1", "v2", "v1"),
            ("./org/name", "v2", "is a path"),
            ("m.gguf", "v2", "is a path"),
            ("org/name", "../v2", "no revision"),
            ("org/name", "", "no revision"),
        ] {
            let error = format!("{:#}", at_revision(model, revision).unwrap_err());
            assert!(error.contains(said), "{model} {revision}: {error}");
        }
    }

    #[test]
    fn the_variables_count_in_huggingface_hubs_order() {
        let all = [
            ("HF_HUB_CACHE", "/a", "/a"),
            ("HUGGINGFACE_HUB_CACHE", "/b", "/b"),
            ("HF_HOME", "~/c", "/home/u/c/hub"),
            ("XDG_CACHE_HOME", "/d", "/d/huggingface/hub"),
            ("HOME", "/home/u", "/home/u/.cache/huggingface/hub"),
        ];
        for i in 0..all.len() {
            let set = |key: &str| {
                let own = |(k, v, _): &&(&str, &str, &str)| *k == key && !v.is_empty();
                let found = all[i..].iter().find(own).map(|(_, v, _)| v.to_string());
                found.or((key == "HOME").then(|| "/home/u".to_string()))
            };
            assert_eq!(cache(&set).unwrap(), Path::new(all[i].2), "{}", all[i].0);
        }
        assert!(cache(&|_| None).is_err());
    }

    /// Commits whose order is not that of their age.
    fn cached(commits: &[&str], refs: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for commit in commits {
            let snapshot = dir.path().join("snapshots").join(commit);
            fs::create_dir_all(&snapshot).unwrap();
            fs::write(snapshot.join("config.json"), "{}").unwrap();
        }
        for (name, commit) in refs {
            let path = dir.path().join("refs").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, commit).unwrap();
        }
        dir
    }

    #[test]
    fn the_revision_decides_which_snapshot_is_taken() {
        let refs = [("main", "1111111aaaa"), ("v2", "2222222bbbb\n"), ("refs/pr/1", "3333333cccc")];
        let dir = cached(&["1111111aaaa", "2222222bbbb", "3333333cccc"], &refs);
        let of = |revision| snapshot(dir.path(), "org/name", revision);
        for (revision, commit) in [
            (None, "1111111aaaa"),
            (Some("main"), "1111111aaaa"),
            (Some("v2"), "2222222bbbb"),
            (Some("refs/pr/1"), "3333333cccc"),
            (Some("3333333cccc"), "3333333cccc"),
            (Some("2222222"), "2222222bbbb"),
        ] {
            assert_eq!(of(revision).unwrap(), dir.path().join("snapshots").join(commit), "{revision:?}");
        }
        let error = |result: Result<PathBuf>| format!("{:#}", result.unwrap_err());
        let said = error(of(Some("v3")));
        assert!(said.contains("v3") && said.contains("hf download org/name --revision v3"), "{said}");
        let two = cached(&["1111111aaaa", "2222222bbbb"], &[]);
        let said = error(snapshot(two.path(), "org/name", None));
        assert!(said.contains("org/name@COMMIT") && said.contains("1111111aaaa"), "{said}");
        // One alone is meant.
        let one = cached(&["2222222bbbb"], &[]);
        assert!(snapshot(one.path(), "org/name", None).unwrap().ends_with("2222222bbbb"));
        // The current commit was not fetched, an older one was.
        let old = cached(&["2222222bbbb"], &[("main", "1111111aaaa")]);
        let said = error(snapshot(old.path(), "org/name", None));
        assert!(said.contains("1111111aaaa") && said.contains("hf download org/name"), "{said}");
        let files = cached(&["1111111aaaa"], &[]);
        fs::rename(
            files.path().join("snapshots/1111111aaaa/config.json"),
            files.path().join("snapshots/1111111aaaa/m-Q4.gguf"),
        )
        .unwrap();
        let said = error(snapshot(files.path(), "org/name", None));
        assert!(said.contains("GGUF") && said.contains("m-Q4.gguf"), "{said}");
        let said = error(snapshot(Path::new("/nowhere/models--org--name"), "org/name", None));
        assert!(said.contains("hf download org/name`"), "{said}");
    }
}
