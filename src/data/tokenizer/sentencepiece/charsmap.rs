//! `precompiled_charsmap`: the length of a double-array trie (darts-clone), the trie, then the replacements, each ended by a zero byte.
use anyhow::{Context, Result, ensure};

/// Walks everything that a text can reach, so that a damaged map is refused here and not met in the middle of a text.
pub fn check(map: &[u8]) -> Result<()> {
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
    let offset = |unit: u32| ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize;
    let (mut seen, mut open) = (vec![false; units.len()], vec![offset(units[0])]);
    while let Some(node) = open.pop() {
        ensure!(node | 0xff < units.len(), "its trie leads to unit {node} of {}", units.len());
        if std::mem::replace(&mut seen[node], true) {
            continue;
        }
        for label in 1..256 {
            let unit = units[node ^ label];
            // The sign bit marks values: no label is equal to one that has it.
            if unit & ((1 << 31) | 0xff) != label as u32 {
                continue;
            }
            let next = (node ^ label) ^ offset(unit);
            if unit >> 8 & 1 == 1 {
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
    Ok(())
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
