//! `--part`: a share of the shards.
use std::{fmt, str::FromStr};

use anyhow::{Result, anyhow};

/// A share of the shards, for job arrays: `3/8` works on the third, eleventh, ... shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// 1-based.
    pub index: usize,
    /// Number of parts.
    pub of: usize,
}

impl Default for Part {
    fn default() -> Part {
        Part { index: 1, of: 1 }
    }
}

impl Part {
    /// Whether the shard with this number belongs to the part.
    pub fn has(&self, shard: usize) -> bool {
        shard % self.of == self.index - 1
    }

    /// Whether some shard may belong to both.
    pub fn overlaps(&self, other: &Part) -> bool {
        let (mut a, mut b) = (self.of, other.of);
        while b > 0 {
            (a, b) = (b, a % b);
        }
        self.index.abs_diff(other.index).is_multiple_of(a.max(1))
    }
}

impl FromStr for Part {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Part> {
        let parse = || -> Option<Part> {
            let (index, of) = text.split_once('/')?;
            let part = Part { index: index.parse().ok()?, of: of.parse().ok()? };
            (part.index >= 1 && part.index <= part.of).then_some(part)
        };
        parse().ok_or_else(|| anyhow!("`{text}` is not a part: write I/N with 1 <= I <= N, such as 3/8"))
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}
