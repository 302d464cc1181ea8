//! The names of a split model's files.
use std::path::{Path, PathBuf};

/// The files of a split model by the name of one of them; `None` if its name is no such name.
pub fn parts_by_name(path: &Path) -> Option<Vec<PathBuf>> {
    let (_, end) = path.file_name()?.to_str()?.rsplit_once("-of-")?;
    let count = end.strip_suffix(".gguf")?.parse().ok().filter(|&count: &u64| count > 0)?;
    part_paths(path, count)
}

/// The files of a split model of which `path` is one (`NAME-00001-of-00003.gguf`); `None` if its name is no such name.
pub fn part_paths(path: &Path, count: u64) -> Option<Vec<PathBuf>> {
    let name = path.file_name()?.to_str()?;
    let rest = name.strip_suffix(&format!("-of-{count:05}.gguf"))?;
    let (stem, number) = rest.split_at_checked(rest.len().checked_sub(6)?)?;
    let digits = number.strip_prefix('-')?;
    digits.bytes().all(|b| b.is_ascii_digit()).then_some(())?;
    Some(
        (1..=count.min(99_999))
            .map(|i| path.with_file_name(format!("{stem}-{i:05}-of-{count:05}.gguf")))
            .collect(),
    )
}
