//! The head of a GGUF file, version 3: metadata with the types that llama.cpp asks for, and the tensor directory.
use std::ops::Range;

use anyhow::{Result, ensure};

use super::Reader;

/// Tensors begin at multiples of this many bytes: GGUF's default.
pub const ALIGNMENT: usize = 32;

/// Numbers of the types of values.
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const BOOL: u32 = 7;
const TEXT: u32 = 8;
const ARRAY: u32 = 9;

/// Metadata to be written, in order; a key that is set again keeps its place.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    /// Keys with the number of their value's type and the value, as they stand in the file.
    entries: Vec<(String, Vec<u8>)>,
}

fn text_bytes(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl Metadata {
    fn set(&mut self, key: &str, kind: u32, bytes: &[u8]) {
        let value = [&kind.to_le_bytes(), bytes].concat();
        match self.entries.iter_mut().find(|(k, _)| k == key) {
            Some((_, old)) => *old = value,
            None => self.entries.push((key.into(), value)),
        }
    }

    fn array(&mut self, key: &str, kind: u32, count: usize, bytes: &[u8]) {
        let head = [&kind.to_le_bytes()[..], &(count as u64).to_le_bytes()].concat();
        self.set(key, ARRAY, &[&head, bytes].concat());
    }

    /// A 32-bit unsigned integer.
    ///
    /// # Errors
    /// A larger number.
    pub fn count(&mut self, key: &str, n: usize) -> Result<()> {
        ensure!(u32::try_from(n).is_ok(), "{key} = {n} is beyond 32 bits");
        self.set(key, U32, &(n as u32).to_le_bytes());
        Ok(())
    }
    /// A 32-bit float.
    pub fn number(&mut self, key: &str, x: f64) {
        self.set(key, F32, &(x as f32).to_le_bytes());
    }
    /// A truth value.
    pub fn flag(&mut self, key: &str, x: bool) {
        self.set(key, BOOL, &[x as u8]);
    }
    /// A text.
    pub fn text(&mut self, key: &str, text: &str) {
        let mut bytes = vec![];
        text_bytes(&mut bytes, text);
        self.set(key, TEXT, &bytes);
    }
    /// Texts.
    pub fn texts<T: AsRef<str>>(&mut self, key: &str, texts: &[T]) {
        let mut bytes = vec![];
        texts.iter().for_each(|t| text_bytes(&mut bytes, t.as_ref()));
        self.array(key, TEXT, texts.len(), &bytes);
    }
    /// 32-bit integers.
    pub fn integers(&mut self, key: &str, list: &[i32]) {
        self.array(key, I32, list.len(), bytemuck::cast_slice(list));
    }
    /// 32-bit floats.
    pub fn numbers(&mut self, key: &str, list: &[f32]) {
        self.array(key, F32, list.len(), bytemuck::cast_slice(list));
    }
    /// A value of another file, [`values`]' bytes of it.
    pub fn copy(&mut self, key: &str, value: &[u8]) {
        self.entries.push((key.into(), value.to_vec()));
    }
}

/// A tensor of the directory.
#[derive(Clone, Debug)]
pub struct DirectoryEntry {
    /// ggml's name.
    pub name: String,
    /// ggml's order: the contiguous dimension first.
    pub dims: Vec<usize>,
    /// ggml's type number.
    pub ggml_type: u32,
    /// Of its data.
    pub bytes: usize,
}

/// A file's first bytes, up to the data of its first tensor; the data of each is to be filled up to a multiple of [`ALIGNMENT`].
///
/// # Errors
/// Two tensors of one name.
pub fn head(metadata: &Metadata, tensors: &[DirectoryEntry]) -> Result<Vec<u8>> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.entries.len() as u64).to_le_bytes());
    for (key, value) in &metadata.entries {
        text_bytes(&mut out, key);
        out.extend(value);
    }
    let mut names = std::collections::HashSet::new();
    let mut offset = 0;
    for t in tensors {
        ensure!(names.insert(&t.name), "two tensors are called {}", t.name);
        text_bytes(&mut out, &t.name);
        out.extend((t.dims.len() as u32).to_le_bytes());
        t.dims.iter().for_each(|&d| out.extend((d as u64).to_le_bytes()));
        out.extend(t.ggml_type.to_le_bytes());
        out.extend((offset as u64).to_le_bytes());
        offset += t.bytes.next_multiple_of(ALIGNMENT);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    Ok(out)
}

/// The metadata of a file as it stands there: keys, and where the number of each value's type and the value are.
pub fn values(bytes: &[u8]) -> Result<Vec<(String, Range<usize>)>> {
    // Behind the magic, the version and the number of tensors.
    let mut r = Reader { bytes, at: 16, small: 0 };
    let count = r.count(8 + 4 + 1)?;
    let mut out = vec![];
    for _ in 0..count {
        let key = r.text()?;
        let start = r.at;
        let kind = r.u32()?;
        r.value(kind, 0)?;
        out.push((key, start..r.at));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::super::{GgufValue, parse};
    use super::*;

    #[test]
    fn the_reader_reads_every_kind_of_value_and_the_bytes_can_be_copied() {
        let mut m = Metadata::default();
        m.count("n", 7).unwrap();
        m.number("x", 0.5);
        m.flag("f", true);
        m.text("t", "héllo");
        m.texts("ts", &["a", ""]);
        m.integers("is", &[-1, 3]);
        m.numbers("xs", &[1.5]);
        m.count("n", 8).unwrap();
        let entry = |name: &str, bytes| DirectoryEntry {
            name: name.into(),
            dims: vec![bytes / 4],
            ggml_type: 0,
            bytes,
        };
        let mut bytes = head(&m, &[entry("a", 36), entry("b", 4)]).unwrap();
        let start = bytes.len();
        bytes.resize(start + 96, 0);
        let (read, tensors) = parse(&bytes).unwrap();
        assert_eq!(tensors.iter().map(|t| t.offset - start).collect::<Vec<_>>(), [0, 64]);
        let list = |items: &[GgufValue]| GgufValue::Array(items.to_vec());
        for (key, want) in [
            ("n", GgufValue::Unsigned(8)),
            ("x", GgufValue::Float(0.5)),
            ("f", GgufValue::Bool(true)),
            ("t", GgufValue::Text("héllo".into())),
            ("ts", list(&[GgufValue::Text("a".into()), GgufValue::Text(String::new())])),
            ("is", list(&[GgufValue::Signed(-1), GgufValue::Signed(3)])),
            ("xs", list(&[GgufValue::Float(1.5)])),
        ] {
            assert_eq!(read[key], want, "{key}");
        }
        let mut copy = Metadata::default();
        for (key, place) in values(&bytes).unwrap() {
            copy.copy(&key, &bytes[place]);
        }
        assert_eq!(head(&copy, &[entry("a", 36), entry("b", 4)]).unwrap(), bytes[..start]);
        assert!(head(&m, &[entry("a", 4), entry("a", 4)]).is_err());
        assert!(m.count("n", 1 << 32).is_err());
    }
}
