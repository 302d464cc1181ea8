//! Sound inputs, built here or taken from the golden files, and what makes a changed input reach the parser behind a checksum or a length.
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use sdrrl::data::{
    token_shard::{self, Document},
    top_k::{TopK, Writer},
};
use serde_json::json;
use xxhash_rust::xxh3::xxh3_64;

use crate::mutate::field;

/// The bytes of files, by their paths from the root of the package.
pub fn files(paths: &[&str]) -> Vec<Vec<u8>> {
    paths.iter().map(|p| fs::read(p).unwrap_or_else(|e| panic!("{p}: {e}"))).collect()
}

/// Every config.json of the models in the golden files.
pub fn configs(folder: &str) -> Vec<Vec<u8>> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path().join("config.json"))
        .filter(|p| p.exists())
        .collect();
    paths.sort();
    paths.iter().map(|p| fs::read(p).unwrap()).collect()
}

pub fn texts(list: &[&str]) -> Vec<Vec<u8>> {
    list.iter().map(|t| t.as_bytes().to_vec()).collect()
}

pub fn unchanged(input: Vec<u8>) -> Vec<u8> {
    input
}

/// A GGUF file with a value of every type, and a tensor.
pub fn gguf() -> Vec<Vec<u8>> {
    let text = |b: &mut Vec<u8>, s: &str| {
        b.extend((s.len() as u64).to_le_bytes());
        b.extend(s.as_bytes());
    };
    let mut b = b"GGUF".to_vec();
    b.extend(3u32.to_le_bytes());
    b.extend(1u64.to_le_bytes());
    b.extend(14u64.to_le_bytes());
    for kind in (0..=7u32).chain(10..=12) {
        text(&mut b, &format!("key.{kind}"));
        b.extend(kind.to_le_bytes());
        let width = [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8][kind as usize];
        b.extend(&[1; 8][..width]);
    }
    text(&mut b, "text");
    b.extend(8u32.to_le_bytes());
    text(&mut b, "hello");
    for (key, kind) in [("bytes", 0u32), ("lists", 9)] {
        text(&mut b, key);
        b.extend(9u32.to_le_bytes());
        b.extend(kind.to_le_bytes());
        b.extend(2u64.to_le_bytes());
        for _ in 0..2 {
            if kind == 9 {
                b.extend(8u32.to_le_bytes());
                b.extend(1u64.to_le_bytes());
                text(&mut b, "in");
            } else {
                b.push(7);
            }
        }
    }
    text(&mut b, "w");
    b.extend(1u32.to_le_bytes());
    b.extend(4u64.to_le_bytes());
    b.extend(0u32.to_le_bytes());
    b.extend(0u64.to_le_bytes());
    b.resize(b.len().next_multiple_of(32) + 16, 0);
    vec![b]
}

/// The header of a safetensors file.
pub fn safetensors_header() -> Vec<Vec<u8>> {
    let one = |dtype: &str, shape: &[usize], from: usize, to: usize| json!({"dtype": dtype, "shape": shape, "data_offsets": [from, to]});
    vec![
        json!({"model.a": one("F32", &[2, 4], 0, 32), "b": one("BF16", &[8], 32, 48), "c": one("F16", &[8], 48, 64),
            "__metadata__": {"format": "pt"}})
        .to_string()
        .into_bytes(),
        json!({"a": one("F64", &[4], 0, 32), "b": one("I64", &[4], 32, 64)}).to_string().into_bytes(),
    ]
}

/// A safetensors file with this header and 64 bytes of data.
pub fn safetensors(header: Vec<u8>) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header);
    out.extend([1; 64]);
    out
}

/// The pickles inside of PyTorch's archives among the golden files: what stands between the local header and the next.
pub fn pickles() -> Vec<Vec<u8>> {
    let paths = ["module", "views"].map(|n| format!("tests/golden/pickle/{n}.bin"));
    let archives = paths
        .iter()
        .map(|p| fs::read(p).unwrap())
        .chain([fs::read("tests/golden/pickle/lightning.ckpt").unwrap()]);
    let find = |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).position(|w| w == what);
    archives
        .map(|archive| {
            let name = find(&archive, b"data.pkl").unwrap();
            let header = (0..name).rev().find(|&at| archive[at..].starts_with(b"PK\x03\x04")).unwrap();
            let extra = u16::from_le_bytes([archive[header + 28], archive[header + 29]]) as usize;
            let body = &archive[name + "data.pkl".len() + extra..];
            let whole = &body[..find(body, b"PK").unwrap()];
            whole[..=whole.iter().rposition(|b| *b == b'.').unwrap()].to_vec()
        })
        .collect()
}

/// An archive, stored, with this pickle and sixteen storages.
pub fn zip(pickle: Vec<u8>) -> Vec<u8> {
    let mut entries: Vec<(String, Vec<u8>)> = vec![("archive/data.pkl".into(), pickle)];
    entries.extend((0..16).map(|i| (format!("archive/data/{i}"), vec![1; 4096])));
    let (mut out, mut directory) = (vec![], vec![]);
    for (name, body) in &entries {
        let at = out.len() as u32;
        let size = (body.len() as u32).to_le_bytes();
        out.extend(b"PK\x03\x04");
        out.extend([0; 14]);
        out.extend([size, size].concat());
        out.extend((name.len() as u16).to_le_bytes());
        out.extend([0; 2]);
        out.extend(name.as_bytes());
        out.extend(body);
        directory.extend(b"PK\x01\x02");
        directory.extend([0; 16]);
        directory.extend([size, size].concat());
        directory.extend((name.len() as u16).to_le_bytes());
        directory.extend([0; 12]);
        directory.extend(at.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let at = out.len() as u32;
    out.extend(&directory);
    out.extend(b"PK\x05\x06");
    out.extend([0; 4]);
    out.extend([(entries.len() as u16).to_le_bytes(); 2].concat());
    out.extend((directory.len() as u32).to_le_bytes());
    out.extend(at.to_le_bytes());
    out.extend([0; 2]);
    out
}

/// A token shard.
pub fn token_shards() -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.tokens");
    let one = |n: u32| Document {
        tokens: (0..n).collect(),
        weights: (0..n).map(|i| i as f32 * 0.5).collect(),
        note: format!("row-{n} S>T"),
    };
    [vec![one(3), one(0), one(7)], vec![]]
        .iter()
        .map(|documents| {
            token_shard::write(&path, documents).unwrap();
            fs::read(&path).unwrap()
        })
        .collect()
}

/// A teacher's likeliest tokens.
pub fn likeliest_tokens() -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.logprobs");
    let rows = TopK { k: 2, ids: vec![3, 9, 0, 1], log_probs: vec![-2.0, -1.0, -0.7, -3.0, -0.1, -4.0] };
    let mut writer = Writer::new(&path, 2, &[1, 0, 1]).unwrap();
    writer.add(&rows).unwrap();
    writer.finish().unwrap();
    vec![fs::read(&path).unwrap()]
}

/// With the checksum that a changed shard should have.
pub fn summed(mut input: Vec<u8>) -> Vec<u8> {
    if let Some(at) = input.len().checked_sub(8) {
        let sum = xxh3_64(&input[..at]);
        input[at..].copy_from_slice(&sum.to_le_bytes());
    }
    input
}

/// An index of rows with the checksum that a changed one should have.
pub fn indexed(mut input: Vec<u8>) -> Vec<u8> {
    if input.len() >= 48 {
        let sum = xxh3_64(&input[48..]);
        input[40..48].copy_from_slice(&sum.to_le_bytes());
    }
    input
}

/// The rows that [`row_index`] belongs to.
pub const ROWS: &str = "{\"id\":\"a\",\"instruction\":\"Q\",\"output\":\"A\"}\n{\"id\":\"b\",\"instruction\":\"R\"}\n\n{\"id\":\"c\",\"instruction\":\"S\"}\n";

pub fn row_index() -> Vec<Vec<u8>> {
    let starts: Vec<u64> = ROWS.match_indices("{\"id").map(|(at, _)| at as u64).collect();
    let body: Vec<u8> = starts.iter().flat_map(|s| s.to_le_bytes()).collect();
    let mut out = b"SDRRLIDX".to_vec();
    for word in [1, starts.len() as u64, ROWS.len() as u64, 0, 0] {
        out.extend(word.to_le_bytes());
    }
    out.extend(body);
    vec![indexed(out)]
}

pub fn gzip(input: Vec<u8>) -> Vec<u8> {
    let mut to = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
    to.write_all(&input).unwrap();
    to.finish().unwrap()
}

pub fn zstandard(input: Vec<u8>) -> Vec<u8> {
    zstd::stream::encode_all(&input[..], 1).unwrap()
}

/// A SentencePiece model of some letters, with a character map of nothing.
pub fn sentencepiece() -> Vec<Vec<u8>> {
    let piece = |text: &str, score: f32, kind: u8| {
        let mut body = field(1 << 3 | 2, text.as_bytes());
        body.extend(field(2 << 3 | 5, &score.to_le_bytes()));
        body.extend(field(3 << 3, &[kind]));
        field(1 << 3 | 2, &body)
    };
    let mut model: Vec<u8> =
        [("<unk>", 2u8), ("<s>", 3), ("</s>", 3)].iter().flat_map(|(t, k)| piece(t, 0.0, *k)).collect();
    for (i, text) in ["▁", "a", "b", "ab", "▁a", "é", "日"].iter().enumerate() {
        model.extend(piece(text, -(i as f32), 1));
    }
    let mut unigram = model.clone();
    unigram.extend(field(2 << 3 | 2, &field(3 << 3, &[1])));
    let trie: Vec<u8> = std::iter::repeat_n(0u32.to_le_bytes(), 256).flatten().collect();
    let map = [1024u32.to_le_bytes().to_vec(), trie, b"x\0".to_vec()].concat();
    unigram.extend(field(3 << 3 | 2, &field(2 << 3 | 2, &map)));
    model.extend(field(2 << 3 | 2, &field(3 << 3, &[2])));
    vec![unigram, model]
}

/// dictd's index and its text, with a line of zeros between them.
pub fn dictd() -> Vec<Vec<u8>> {
    texts(&["cat\tA\tM\ndog\tM\tL\nbig dog\tX\tC\n\0\0cat /kæt/\ngatoXdog\n1. perro"])
}

/// The two parts of [`dictd`].
pub fn parted(input: &[u8]) -> (&[u8], &[u8]) {
    match input.windows(2).position(|w| w == b"\0\0") {
        Some(at) => (&input[..at], &input[at + 2..]),
        None => (input, &[]),
    }
}

/// Writes an input under a name, over the one before.
pub fn put(path: &Path, input: &[u8]) {
    fs::write(path, input).unwrap();
}

/// A tokenizer.json of few tokens, for parsers of the files beside it: what is changed is not it.
pub const TOKENIZER: &str = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [
 {"id": 0, "content": "<unk>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
 {"id": 1, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
 {"id": 2, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
 "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": {"type": "ByteFallback"},
 "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": false,
  "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4, "ab": 5}, "merges": ["a b"]}}"#;
