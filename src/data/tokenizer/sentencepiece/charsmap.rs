//! `precompiled_charsmap`: the length of a double-array trie (darts-clone), the trie, then the replacements, each ended by a zero byte.
use anyhow::{Context, Result, ensure};

/// A map that was found whole.
pub struct Charsmap {
    units: Vec<u32>,
    texts: String,
}

/// Where the children of a unit are, exclusive-or'ed with its own place.
fn offset(unit: u32) -> usize {
    ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize
}

/// Whether `unit` is reached by `byte`. The sign bit marks values: no label is equal to one that has it.
fn has_label(unit: u32, byte: u8) -> bool {
    unit & ((1 << 31) | 0xff) == u32::from(byte)
}

fn has_value(unit: u32) -> bool {
    unit >> 8 & 1 == 1
}

impl Charsmap {
    /// Walks everything that a text can reach, so that a damaged map is refused here and not met in the middle of a text.
    pub fn parse(map: &[u8]) -> Result<Charsmap> {
        let size = map.first_chunk().map(|b| u32::from_le_bytes(*b) as usize).context("it is empty")?;
        ensure!(
            size >= 4 && size.is_multiple_of(4) && map.len() - 4 >= size,
            "a trie of {size} bytes in {}",
            map.len()
        );
        let (trie, texts) = map[4..].split_at(size);
        let texts = std::str::from_utf8(texts).context("its replacements are not UTF-8")?;
        let units: Vec<u32> =
            trie.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let (mut seen, mut open) = (vec![false; units.len()], vec![offset(units[0])]);
        while let Some(node) = open.pop() {
            ensure!(node | 0xff < units.len(), "its trie leads to unit {node} of {}", units.len());
            if std::mem::replace(&mut seen[node], true) {
                continue;
            }
            for label in 1..=255u8 {
                let at = node ^ usize::from(label);
                let unit = units[at];
                if !has_label(unit, label) {
                    continue;
                }
                let next = at ^ offset(unit);
                if has_value(unit) {
                    let value = units.get(next).context("its trie has a value outside")? & 0x7fff_ffff;
                    ensure!(
                        texts.is_char_boundary(value as usize),
                        "a replacement begins at byte {value} of {}",
                        texts.len()
                    );
                }
                open.push(next);
            }
        }
        Ok(Charsmap { units, texts: texts.into() })
    }

    /// The replacement of the longest beginning of `text` that has one, and that beginning's bytes.
    pub fn longest(&self, text: &str) -> Option<(&str, usize)> {
        let mut node = offset(self.units[0]);
        let mut found = None;
        for (i, byte) in text.bytes().enumerate() {
            let at = node ^ usize::from(byte);
            let Some(&unit) = self.units.get(at).filter(|unit| byte > 0 && has_label(**unit, byte)) else {
                break;
            };
            node = at ^ offset(unit);
            if has_value(unit) {
                let value = self.units.get(node).map_or(0, |v| (v & 0x7fff_ffff) as usize);
                found = Some((value, i + 1));
            }
        }
        let (value, length) = found.filter(|(_, length)| text.is_char_boundary(*length))?;
        let replacement = self.texts.get(value..)?.split('\0').next()?;
        Some((replacement, length))
    }
}

/// RFC 4648, with padding.
pub fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let n = chunk.iter().fold(0u32, |n, &b| n << 8 | b as u32) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let digit = DIGITS[(n >> (18 - 6 * i)) as usize & 63] as char;
            out.push(if i <= chunk.len() { digit } else { '=' });
        }
    }
    out
}

/// The bytes of [`base64`]; `None` where it is something else.
pub fn from_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    if !text.len().is_multiple_of(4) || text.len() - digits.len() > 2 {
        return None;
    }
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    for chunk in digits.as_bytes().chunks(4) {
        let mut n = 0u32;
        for &digit in chunk {
            let value = match digit {
                b'A'..=b'Z' => digit - b'A',
                b'a'..=b'z' => digit - b'a' + 26,
                b'0'..=b'9' => digit - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            n = n << 6 | u32::from(value);
        }
        let bytes = (n << (6 * (4 - chunk.len()))).to_be_bytes();
        out.extend(&bytes[1..chunk.len()]);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn base64_returns(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(from_base64(&base64(&bytes)), Some(bytes));
        }
        #[test]
        fn any_text_is_base64_or_not(text in "[A-Za-z=+/é ]{0,12}") {
            let _ = from_base64(&text);
        }
    }
}
