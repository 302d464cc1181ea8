//! That a stage's folder is not where its input is: by the identity of folders and files (device and inode), whatever they are called.
use std::{
    collections::HashMap,
    fs::{self, Metadata},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};

use crate::error::Error;

type Identity = (u64, u64);

fn identity(about: &Metadata) -> Identity {
    (about.dev(), about.ino())
}

/// The files in a folder, behind links too, or the file itself.
fn files(path: &Path) -> Result<Vec<(Identity, PathBuf)>> {
    let about = fs::metadata(path).with_context(|| format!("open {}", path.display()))?;
    if !about.is_dir() {
        return Ok(vec![(identity(&about), path.to_path_buf())]);
    }
    let list = || format!("list {}", path.display());
    let mut found = vec![];
    for entry in fs::read_dir(path).with_context(list)? {
        let file = entry.with_context(list)?.path();
        // A link that leads nowhere is no file.
        if let Ok(about) = fs::metadata(&file)
            && about.is_file()
        {
            found.push((identity(&about), file));
        }
    }
    Ok(found)
}

/// Refuses an output folder that is the input or holds it: the same folder under another name or behind a link, or one with a file that is one of the
/// input's (a link to it, soft or hard). Nothing is asked of what does not exist.
pub fn apart(input: &Path, out: &Path) -> Result<()> {
    let (Ok(a), Ok(b)) = (fs::metadata(input), fs::metadata(out)) else { return Ok(()) };
    let same =
        || format!("{}: the output folder is the input {}: choose another", out.display(), input.display());
    ensure!(identity(&a) != identity(&b), Error::exists(out, same()));
    if !b.is_dir() {
        return Ok(());
    }
    let own: HashMap<Identity, PathBuf> = files(out)?.into_iter().collect();
    for (identity, file) in files(input)? {
        if let Some(same) = own.get(&identity) {
            let (folder, same, file) = (out.display(), same.display(), file.display());
            let message =
                format!("{folder}: the output folder holds the input: {same} is {file}: choose another");
            bail!(Error::exists(out, message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_input_is_known_under_every_name() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["base", "other", "hard", "soft", "below", "below/base"] {
            fs::create_dir(at(name)).unwrap();
        }
        fs::write(at("base/model.safetensors"), "weights").unwrap();
        fs::write(at("other/model.safetensors"), "weights").unwrap();
        symlink(at("base"), at("link")).unwrap();
        symlink("nowhere", at("other/dangling")).unwrap();
        fs::hard_link(at("base/model.safetensors"), at("hard/m.safetensors")).unwrap();
        symlink(at("base/model.safetensors"), at("soft/model.safetensors")).unwrap();
        for out in ["base", "link", "base/", "other/../base", "./base/.", "hard", "soft"] {
            let error = format!("{:#}", apart(&at("base"), &at(out)).expect_err(out));
            assert!(error.contains("choose another") && error.contains("base"), "{out}: {error}");
        }
        for out in ["other", "below", "below/base", "base/below", "new"] {
            apart(&at("base"), &at(out)).unwrap_or_else(|e| panic!("{out}: {e:#}"));
        }
        // An input that is a file: in its folder, and where it is linked to.
        for out in ["base", "link", "hard", "soft"] {
            assert!(apart(&at("base/model.safetensors"), &at(out)).is_err(), "{out}");
        }
        apart(&at("base/model.safetensors"), &at("other")).unwrap();
        apart(&at("missing"), &at("other")).unwrap();
    }
}
