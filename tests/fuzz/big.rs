//! Large inputs made to take more memory than files of their size need: each kind that a reader could be tempted by. They are read within
//! the same bounds as all others, or refused.
use std::path::Path;

use crate::{
    allocator,
    seeds::{gzip, put, zip},
};
use sdrrl::{
    data::{
        dictionary::{Dictionary, DictionaryFormat},
        gguf, questions,
        record::Row,
        row_shard::RowShard,
        tally::OnBadRow,
        text_file,
        token_shard::{self, Document, TokenShard},
        tokenizer::{Tokenizer, sentencepiece},
    },
    models::{transformer::config::Config, weights},
    recipe::Recipe,
};

const MIB: usize = 1 << 20;

/// A large input: its name, its bytes, and whether it was taken. Reading happens inside of `run`, below which the folder is its own.
type Big = (&'static str, fn() -> Vec<u8>, fn(&Path, &[u8]) -> bool);

fn repeated(before: &str, text: &str, mib: usize, after: &str) -> Vec<u8> {
    let mut out = before.as_bytes().to_vec();
    out.extend(text.repeat(mib * MIB / text.len()).bytes());
    out.extend(after.bytes());
    out
}

/// A GGUF file with one array of `n` values of a kind, each of these bytes.
fn gguf_array(kind: u32, value: &[u8], n: usize) -> Vec<u8> {
    let mut b = b"GGUF".to_vec();
    b.extend(3u32.to_le_bytes());
    b.extend(0u64.to_le_bytes());
    b.extend(1u64.to_le_bytes());
    b.extend(1u64.to_le_bytes());
    b.extend(b"a");
    b.extend(9u32.to_le_bytes());
    b.extend(kind.to_le_bytes());
    b.extend((n as u64).to_le_bytes());
    b.extend(value.repeat(n));
    b
}

fn rows(dir: &Path, bytes: &[u8]) -> bool {
    put(&dir.join("rows"), bytes);
    questions::read(&dir.join("rows"), "en", OnBadRow::Skip).is_ok()
}

fn shard(dir: &Path, bytes: &[u8]) -> bool {
    put(&dir.join("rows-00000.jsonl"), bytes);
    RowShard::open(&dir.join("rows-00000.jsonl")).is_ok_and(|s| s.iter::<Row>().all(|r| r.is_ok()))
}

fn tokenizer(dir: &Path, bytes: &[u8]) -> bool {
    put(&dir.join("tokenizer.json"), bytes);
    Tokenizer::load(&dir.join("tokenizer.json")).is_ok()
}

fn words(dir: &Path, bytes: &[u8]) -> bool {
    put(&dir.join("d.txt"), bytes);
    Dictionary::load(&dir.join("d.txt"), DictionaryFormat::Muse).is_ok()
}

fn pickle(dir: &Path, bytes: &[u8]) -> bool {
    weights::pickle::read(dir, bytes).is_ok()
}

fn distinct_words() -> Vec<u8> {
    (0..1_500_000).flat_map(|i: u32| format!("{i:x} y\n").into_bytes()).collect()
}

fn pieces() -> Vec<u8> {
    (0..350_000u32)
        .flat_map(|i| {
            let body = crate::mutate::field(1 << 3 | 2, format!("{i:06x}").as_bytes());
            crate::mutate::field(1 << 3 | 2, &body)
        })
        .collect()
}

fn small_tensors() -> Vec<u8> {
    let one = |i: u32| format!("\"{i:x}\":{{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}");
    let header: Vec<String> = (0..400_000).map(one).collect();
    let header = format!("{{{}}}", header.join(","));
    [(header.len() as u64).to_le_bytes().to_vec(), header.into_bytes()].concat()
}

fn empty_documents() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t");
    let empty = Document { tokens: vec![], weights: vec![], note: String::new() };
    token_shard::write(&path, &vec![empty; 500_000]).unwrap();
    std::fs::read(path).unwrap()
}

fn zeros_packed(mib: usize) -> Vec<u8> {
    use std::io::Write;
    let mut to = zstd::stream::write::Encoder::new(vec![], 1).unwrap();
    let block = vec![b' '; MIB];
    (0..mib).for_each(|_| to.write_all(&block).unwrap());
    to.finish().unwrap()
}

const ALL: &[Big] = &[
    ("GGUF, an array of bytes", || gguf_array(0, &[1], 60 * MIB), |_, b| gguf::parse(b).is_ok()),
    ("GGUF, an array of truth values", || gguf_array(7, &[1], 60 * MIB), |_, b| gguf::parse(b).is_ok()),
    ("GGUF, an array of short numbers", || gguf_array(2, &[1, 0], 30 * MIB), |_, b| gguf::parse(b).is_ok()),
    ("GGUF, an array of numbers", || gguf_array(6, &[0; 4], 10 * MIB), |_, b| gguf::parse(b).is_ok()),
    ("GGUF, an array of empty texts", || gguf_array(8, &[0; 8], 7 * MIB), |_, b| gguf::parse(b).is_ok()),
    ("GGUF, an array of empty arrays", || gguf_array(9, &[0; 12], 4 * MIB), |_, b| gguf::parse(b).is_ok()),
    ("pickle, nothing", || zip(repeated("", "N", 60, ".")), pickle),
    ("pickle, lists", || zip(repeated("", "]", 60, ".")), pickle),
    ("pickle, marks", || zip(repeated("", "(", 60, ".")), pickle),
    ("pickle, empty texts", || zip(repeated("", "U\0", 60, ".")), pickle),
    ("pickle, copies of the top", || zip(repeated("N", "2", 60, ".")), pickle),
    (
        "pickle, names in the memo",
        || zip(repeated("N", "\u{1}", 1, ".").into_iter().flat_map(|_| [0x94; 40]).collect()),
        pickle,
    ),
    ("a row of zeros", || repeated("{\"question\":\"Q\",\"a\":[0", ",0", 40, "]}"), rows),
    ("a row of lists", || repeated("{\"question\":\"Q\",\"a\":[[]", ",[]", 40, "]}"), rows),
    ("a row of keys", || repeated("{\"question\":\"Q\"", ",\"a\":0", 40, "}"), rows),
    ("a row of brackets", || repeated("", "[", 40, ""), rows),
    ("a row of one text", || repeated("{\"question\":\"", "word ", 40, "\"}"), rows),
    ("an array of zeros", || repeated("[0", ",0", 6, "]"), rows),
    (
        "an array of rows",
        || {
            repeated(
                "[{}",
                ",{\"question\":\"What is the capital of this country, and how many live there?\"}",
                20,
                "]",
            )
        },
        rows,
    ),
    (
        "rows",
        || {
            repeated(
                "",
                "{\"question\":\"What is the capital of this country, and how many live there?\"}\n",
                20,
                "",
            )
        },
        rows,
    ),
    ("a gzip file of nothing", || gzip(vec![b' '; 700 * MIB]), rows),
    ("a Zstandard file of nothing", || zeros_packed(1500), rows),
    (
        "a gzip file of one line",
        || gzip(vec![b'a'; 400 * MIB]),
        |dir, b| {
            put(&dir.join("t.gz"), b);
            text_file::read_lines(&dir.join("t.gz")).is_ok()
        },
    ),
    (
        "a shard's row of zeros",
        || repeated("{\"id\":\"a\",\"instruction\":\"Q\",\"a\":[0", ",0", 40, "]}\n"),
        shard,
    ),
    ("tokenizer.json, zeros", || repeated("{\"a\":[0", ",0", 40, "]}"), tokenizer),
    (
        "tokenizer.json, merges",
        || {
            repeated(
                "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a a\"",
                ",\"a a\"",
                20,
                "]}}",
            )
        },
        tokenizer,
    ),
    (
        "SentencePiece, too many pieces",
        || pieces().repeat(4),
        |_, b| sentencepiece::build(b, sentencepiece::IdLayout::Nllb).is_ok(),
    ),
    ("SentencePiece, pieces", pieces, |_, b| sentencepiece::build(b, sentencepiece::IdLayout::Nllb).is_ok()),
    ("a list of words", distinct_words, words),
    ("a list of one word", || repeated("", "a b\n", 20, ""), words),
    ("safetensors, small tensors", small_tensors, |dir, b| {
        put(&dir.join("m.safetensors"), b);
        weights::safetensors::Checkpoint::open_file(&dir.join("m.safetensors")).is_ok()
    }),
    ("a shard of empty documents", empty_documents, |dir, b| {
        put(&dir.join("t.tokens"), b);
        TokenShard::open(&dir.join("t.tokens")).is_ok()
    }),
    (
        "config.json, zeros",
        || repeated("{\"a\":[0", ",0", 40, "]}"),
        |dir, b| {
            put(&dir.join("config.json"), b);
            Config::from_dir(dir).is_ok()
        },
    ),
    (
        "a recipe of zeros",
        || repeated("a=[0", ",0", 20, "]"),
        |dir, b| {
            put(&dir.join("r.toml"), b);
            Recipe::read(&dir.join("r.toml"), &[]).is_ok()
        },
    ),
];

/// Reads them all; what took more than it may.
pub fn failures(filters: &[String], factor: usize, free: usize) -> Vec<String> {
    let mut out = vec![];
    for (name, make, run) in ALL {
        if !filters.is_empty() && !filters.iter().any(|f| name.contains(f.as_str()) || f == "big") {
            continue;
        }
        let (dir, input) = (tempfile::tempdir().unwrap(), make());
        let began = crate::processor_time();
        let mut taken = Ok(false);
        let memory = allocator::peak(|| {
            taken = std::panic::catch_unwind(|| run(dir.path(), &input));
        });
        let seconds = (crate::processor_time() - began).as_secs_f64();
        println!(
            "fuzz::big {name:<34} {:>6.1} MiB, {:>7.1} MiB of memory, {seconds:>5.1} s, {}",
            input.len() as f64 / MIB as f64,
            memory as f64 / MIB as f64,
            match &taken {
                Ok(true) => "taken",
                Ok(false) => "refused",
                Err(_) => "PANIC",
            }
        );
        if memory > factor * input.len() + free || taken.is_err() || seconds > 20.0 {
            out.push(format!("big: {name}"));
        }
    }
    out
}
