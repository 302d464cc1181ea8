//! The GGUF container (ggml's model file), versions 2 and 3: metadata and the tensor directory, of one file or of all files of a split model. Every count is checked
//! against the file's length before anything is allocated.
mod parts;
pub mod writer;

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::error::{Error, Kind};
use anyhow::{Context, Result, bail, ensure};

pub use self::parts::{part_paths, parts_by_name};
use super::map::{Map, map_path};

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufValue {
    /// Any unsigned integer type.
    Unsigned(u64),
    /// Any signed integer type.
    Signed(i64),
    /// Either float type.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// UTF-8 text.
    Text(String),
    /// Values of one type.
    Array(Vec<GgufValue>),
}

/// One entry of the tensor directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    /// ggml's name, e.g. `blk.0.attn_q.weight`.
    pub name: String,
    /// ggml order: the contiguous dimension first.
    pub dims: Vec<usize>,
    /// ggml's type number.
    pub ggml_type: u32,
    /// From the start of its file, bytes.
    pub offset: usize,
    /// Which of [`Gguf::maps`] it is in.
    pub part: usize,
}

/// An open file.
pub struct Gguf {
    /// Where it was opened.
    pub path: PathBuf,
    /// By key.
    pub metadata: BTreeMap<String, GgufValue>,
    /// In file order.
    pub tensors: Vec<GgufTensor>,
    /// The whole file; of a split model every file, in order.
    pub maps: Vec<Arc<Map>>,
}

impl Gguf {
    /// Opens `path` and checks its header; of a split model all files, whichever of them `path` is.
    pub fn open(path: &Path) -> Result<Gguf> {
        let whole = Gguf::open_one(path)?;
        let Some(parts) = whole.integer("split.count").filter(|&n| n > 1) else { return Ok(whole) };
        whole
            .with_parts(parts)
            .with_context(|| format!("{} is one of the {parts} files of a split model", path.display()))
    }

    fn open_one(path: &Path) -> Result<Gguf> {
        let map = map_path(path)?;
        let (metadata, tensors) = parse(&map)
            .with_context(|| format!("{} is not a usable GGUF file", path.display()))
            .or_kind(|message| Error::bad_input(path.display(), message))?;
        Ok(Gguf { path: path.into(), metadata, tensors, maps: vec![Arc::new(map)] })
    }

    /// The model that this file is one of `count` parts of. The first part holds the metadata.
    fn with_parts(self, count: u64) -> Result<Gguf> {
        let paths = part_paths(&self.path, count)
            .with_context(|| format!("its name does not end in -00001-of-{count:05}.gguf or the like, so that the others cannot be found"))?;
        let missing: Vec<String> =
            paths.iter().filter(|p| !p.exists()).map(|p| p.display().to_string()).collect();
        ensure!(missing.is_empty(), "{} of them are not there: {}", missing.len(), missing.join(", "));
        let mut all = Gguf { path: self.path, metadata: BTreeMap::new(), tensors: vec![], maps: vec![] };
        let mut names = HashSet::new();
        for (i, path) in paths.iter().enumerate() {
            let part = Gguf::open_one(path)?;
            let (own, of) = (part.integer("split.no"), part.integer("split.count"));
            ensure!(
                (own, of) == (Some(i as u64), Some(count)),
                "{} says that it is part {own:?} of {of:?}: part {i} (counted from 0) of {count} was expected",
                path.display()
            );
            for mut tensor in part.tensors {
                ensure!(
                    names.insert(tensor.name.clone()),
                    "{}: tensor {} is in another part too",
                    path.display(),
                    tensor.name
                );
                tensor.part = i;
                all.tensors.push(tensor);
            }
            all.maps.extend(part.maps);
            if i == 0 {
                all.metadata = part.metadata;
            }
        }
        let said = all.integer("split.tensors.count");
        ensure!(
            said.is_none_or(|n| n == all.tensors.len() as u64),
            "its parts hold {} tensors, but {} were split",
            all.tensors.len(),
            said.unwrap_or(0)
        );
        Ok(all)
    }

    /// The values of a vector of F32.
    pub fn floats(&self, name: &str) -> Result<Vec<f32>> {
        let tensor = self
            .tensors
            .iter()
            .find(|t| t.name == name)
            .with_context(|| format!("it has no tensor {name}"))?;
        ensure!(
            tensor.ggml_type == 0,
            "tensor {name} is of ggml's type {}: F32 was expected",
            tensor.ggml_type
        );
        let length = tensor.dims.iter().try_fold(4usize, |n, &d| n.checked_mul(d));
        let end = length.and_then(|n| n.checked_add(tensor.offset));
        let bytes = end.and_then(|end| self.maps[tensor.part].get(tensor.offset..end));
        let bytes = bytes.with_context(|| format!("tensor {name} leaves the file: it is truncated"))?;
        Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    /// The text at `key`.
    pub fn text(&self, key: &str) -> Option<&str> {
        if let Some(GgufValue::Text(s)) = self.metadata.get(key) { Some(s) } else { None }
    }
    /// The integer at `key`.
    pub fn integer(&self, key: &str) -> Option<u64> {
        match self.metadata.get(key)? {
            GgufValue::Unsigned(x) => Some(*x),
            GgufValue::Signed(x) => (*x).try_into().ok(),
            _ => None,
        }
    }
    /// The number at `key`.
    pub fn float(&self, key: &str) -> Option<f64> {
        if let Some(GgufValue::Float(x)) = self.metadata.get(key) { Some(*x) } else { None }
    }
    /// The truth value at `key`.
    pub fn flag(&self, key: &str) -> Option<bool> {
        if let Some(GgufValue::Bool(x)) = self.metadata.get(key) { Some(*x) } else { None }
    }
    /// The array at `key`.
    pub fn array(&self, key: &str) -> Option<&[GgufValue]> {
        if let Some(GgufValue::Array(x)) = self.metadata.get(key) { Some(x) } else { None }
    }
    /// The array of integers at `key`, if all are.
    pub fn integers(&self, key: &str) -> Option<Vec<i64>> {
        let integer = |value: &GgufValue| match value {
            GgufValue::Unsigned(x) => i64::try_from(*x).ok(),
            GgufValue::Signed(x) => Some(*x),
            _ => None,
        };
        self.array(key)?.iter().map(integer).collect()
    }
    /// The array of texts at `key`, if all are.
    pub fn texts(&self, key: &str) -> Option<Vec<&str>> {
        fn text(value: &GgufValue) -> Option<&str> {
            if let GgufValue::Text(s) = value { Some(s) } else { None }
        }
        self.array(key)?.iter().map(text).collect()
    }
    /// An integer that the model cannot do without.
    pub fn required(&self, key: &str) -> Result<usize> {
        let value = self
            .integer(key)
            .with_context(|| format!("{}: no integer `{key}` in its metadata", self.path.display()))?;
        Ok(value.try_into()?)
    }
}

/// Metadata and tensor directory of a file's bytes.
pub fn parse(bytes: &[u8]) -> Result<(BTreeMap<String, GgufValue>, Vec<GgufTensor>)> {
    let mut r = Reader { bytes, at: 0, small: 0 };
    ensure!(r.take(4)? == b"GGUF", "it does not begin with the letters GGUF");
    let version = r.u32()?;
    ensure!(
        !(2..=3).contains(&version.swap_bytes()),
        "it is big-endian (of a machine such as s390x), and only little-endian files can be read: convert the model anew here"
    );
    ensure!(
        version == 2 || version == 3,
        "GGUF version {version}; versions 2 and 3 can be read: convert the file anew"
    );
    let tensor_count = r.count(8 + 4 + 8 + 4 + 8)?;
    let metadata_count = r.count(8 + 4 + 1)?;
    let mut metadata = BTreeMap::new();
    for _ in 0..metadata_count {
        let key = r.text()?;
        let kind = r.u32()?;
        let value = r.value(kind, 0).with_context(|| format!("metadata `{key}`"))?;
        metadata.insert(key, value);
    }
    let mut tensors = Vec::new();
    for _ in 0..tensor_count {
        let name = r.text()?;
        let rank = r.u32()? as usize;
        ensure!((1..=4).contains(&rank), "tensor {name}: {rank} dimensions");
        let mut dims = vec![];
        for _ in 0..rank {
            dims.push(usize::try_from(r.u64()?)?);
        }
        let ggml_type = r.u32()?;
        let offset = usize::try_from(r.u64()?)?;
        tensors.push(GgufTensor { name, dims, ggml_type, offset, part: 0 });
    }
    let alignment = match metadata.get("general.alignment") {
        Some(GgufValue::Unsigned(x)) if x.is_power_of_two() && *x <= 1 << 20 => *x as usize,
        Some(other) => bail!("general.alignment is {other:?}"),
        None => 32,
    };
    let base = r.at.next_multiple_of(alignment);
    for t in &mut tensors {
        t.offset = base.checked_add(t.offset).filter(|&o| o <= bytes.len()).with_context(|| {
            format!("tensor {} begins beyond the file's {} bytes: the file is truncated", t.name, bytes.len())
        })?;
    }
    Ok((metadata, tensors))
}

/// Elements of one or two bytes that the arrays of a file may have together: each takes the memory of a [`GgufValue`], and no model needs many.
const MOST_SMALL: usize = 4 << 20;

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Elements of one or two bytes so far.
    small: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(n).filter(|&e| e <= self.bytes.len());
        let end = end.with_context(|| {
            format!("the file ends within its header, at byte {}: it is truncated", self.bytes.len())
        })?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.take(N)?.try_into()?)
    }
    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    /// A count of things that take at least `least` bytes each.
    fn count(&mut self, least: usize) -> Result<usize> {
        let n = self.u64()?;
        let room = (self.bytes.len() - self.at) / least.max(1);
        ensure!(
            n <= room as u64,
            "a count of {n} at byte {} does not fit the file: it is corrupt or truncated",
            self.at - 8
        );
        Ok(n as usize)
    }
    fn text(&mut self) -> Result<String> {
        let n = self.count(1)?;
        let at = self.at;
        String::from_utf8(self.take(n)?.to_vec())
            .with_context(|| format!("the text at byte {at} is not UTF-8"))
    }
    fn value(&mut self, kind: u32, depth: u32) -> Result<GgufValue> {
        use GgufValue::*;
        Ok(match kind {
            0 => Unsigned(self.array::<1>()?[0] as u64),
            1 => Signed(i8::from_le_bytes(self.array()?) as i64),
            2 => Unsigned(u16::from_le_bytes(self.array()?) as u64),
            3 => Signed(i16::from_le_bytes(self.array()?) as i64),
            4 => Unsigned(self.u32()? as u64),
            5 => Signed(i32::from_le_bytes(self.array()?) as i64),
            6 => Float(f32::from_le_bytes(self.array()?) as f64),
            7 => Bool(self.array::<1>()?[0] != 0),
            8 => Text(self.text()?),
            9 => {
                ensure!(depth < 3, "arrays nested too deeply");
                let kind = self.u32()?;
                let size = least_size(kind)?;
                let n = self.count(size)?;
                if size < 4 {
                    self.small += n;
                    ensure!(
                        self.small <= MOST_SMALL,
                        "arrays of more than {MOST_SMALL} small numbers: no model needs them"
                    );
                }
                let mut items = Vec::with_capacity(n);
                for _ in 0..n {
                    items.push(self.value(kind, depth + 1)?);
                }
                Array(items)
            }
            10 => Unsigned(self.u64()?),
            11 => Signed(i64::from_le_bytes(self.array()?)),
            12 => Float(f64::from_le_bytes(self.array()?)),
            other => bail!("unknown value type {other}"),
        })
    }
}

/// Bytes that a value of type `kind` takes in the file at least.
fn least_size(kind: u32) -> Result<usize> {
    Ok(match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        8 | 10..=12 => 8,
        9 => 12,
        other => bail!("unknown value type {other}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Vec<u8> {
        let mut b = b"GGUF".to_vec();
        b.extend(3u32.to_le_bytes());
        b.extend(1u64.to_le_bytes());
        b.extend(2u64.to_le_bytes());
        let text = |b: &mut Vec<u8>, s: &str| {
            b.extend((s.len() as u64).to_le_bytes());
            b.extend(s.as_bytes());
        };
        text(&mut b, "a");
        b.extend(8u32.to_le_bytes());
        text(&mut b, "hello");
        text(&mut b, "list");
        b.extend(9u32.to_le_bytes());
        b.extend(4u32.to_le_bytes());
        b.extend(2u64.to_le_bytes());
        b.extend([1, 0, 0, 0, 2, 0, 0, 0]);
        text(&mut b, "w");
        b.extend(1u32.to_le_bytes());
        b.extend(4u64.to_le_bytes());
        b.extend(0u32.to_le_bytes());
        b.extend(0u64.to_le_bytes());
        b.resize(b.len().next_multiple_of(32) + 16, 0);
        b
    }

    #[test]
    fn header_and_directory_are_read() {
        let (metadata, tensors) = parse(&sample()).unwrap();
        assert_eq!(metadata["a"], GgufValue::Text("hello".into()));
        assert_eq!(metadata["list"], GgufValue::Array(vec![GgufValue::Unsigned(1), GgufValue::Unsigned(2)]));
        assert_eq!((tensors[0].dims.as_slice(), tensors[0].offset % 32), (&[4][..], 0));
    }

    #[test]
    fn every_truncation_is_a_named_error() {
        let whole = sample();
        for n in 0..whole.len() - 48 {
            assert!(parse(&whole[..n]).is_err(), "{n} bytes");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_value_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
        #[test]
        fn any_changed_byte_gives_a_value_or_an_error(at in 0usize..150, to in any::<u8>()) {
            let mut bytes = sample();
            let at = at % bytes.len();
            bytes[at] = to;
            let _ = parse(&bytes);
        }
    }
}
