//! What comes with models and dictionaries: PEFT adapters, compiled MeCab dictionaries, fastText models, the small files of a tokenizer.
use std::{cell::OnceCell, io::Read, path::Path, sync::OnceLock};

use sdrrl::{
    data::{fasttext::FastText, markup, tokenizer::Tokenizer},
    metrics::tokenize::Mecab,
    models::transformer::{lora::Lora, weights::Transformer},
    tensor::DType,
    train::checkpoint,
};

use crate::{
    mutate,
    parsers::{Parser, parser},
    seeds::{self, files, texts},
};

const BASE: &str = "tests/golden/models/llama-tied";
const ADAPTERS: &str = "tests/golden/adapters";

thread_local! {
    /// The adapters' base, loaded once.
    static MODEL: OnceCell<Transformer> = const { OnceCell::new() };
}

/// An adapter's folder with one file changed; the others are those of `of`.
fn adapter(dir: &Path, of: &str, changed: &str) -> bool {
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        if name != changed && !dir.join(name).exists() {
            std::fs::copy(format!("{ADAPTERS}/{of}/{name}"), dir.join(name)).unwrap();
        }
    }
    MODEL.with(|model| {
        let model = model.get_or_init(|| Transformer::load(Path::new(BASE), DType::F32).unwrap());
        Lora::load(dir, model).is_ok()
    })
}

/// The names and offsets of an adapter's tensors, in front of zeros.
fn header_of(file: &[u8]) -> Vec<u8> {
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    file[8..8 + length].to_vec()
}

/// A safetensors file with this header and room for an adapter's tensors.
fn with_data(header: Vec<u8>) -> Vec<u8> {
    let data = files(&[&format!("{ADAPTERS}/plain.llama-tied/adapter_model.safetensors")]).remove(0);
    let start = 8 + header_of(&data).len();
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header);
    out.extend(&data[start..]);
    out
}

/// Mixes in the fields of adapters that belong to other tensors.
fn with_others(random: &mut mutate::Random, input: &mut Vec<u8>, _: &[u8]) {
    static OTHERS: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    let others = OTHERS.get_or_init(|| {
        let folders =
            std::fs::read_dir(ADAPTERS).unwrap().map(|e| e.unwrap().path().join("adapter_config.json"));
        let mut paths: Vec<_> = folders.filter(|p| p.exists()).collect();
        paths.sort();
        paths.iter().map(|p| std::fs::read(p).unwrap()).collect()
    });
    let other = random.one(others).clone();
    mutate::json(random, input, &other);
}

fn adapters() -> Vec<Parser> {
    let plain = files(&[&format!("{ADAPTERS}/plain.llama-tied/adapter_model.safetensors")]);
    let headers = plain.iter().map(|file| header_of(file)).collect();
    let configs = parser(
        "adapter-config",
        files(&[&format!("{ADAPTERS}/plain.llama-tied/adapter_config.json")]),
        with_others,
        "adapter_config.json",
        |dir, _| adapter(dir, "plain.llama-tied", "adapter_config.json"),
    );
    vec![
        configs,
        parser("adapter-tensors", plain, mutate::bytes, "adapter_model.safetensors", |dir, _| {
            adapter(dir, "plain.llama-tied", "adapter_model.safetensors")
        }),
        Parser {
            wrap: with_data,
            ..parser("adapter-names", headers, mutate::json, "adapter_model.safetensors", |dir, _| {
                adapter(dir, "plain.llama-tied", "adapter_model.safetensors")
            })
        },
    ]
}

const MECAB: [&str; 4] = ["sys.dic", "unk.dic", "matrix.bin", "char.bin"];
/// Bytes of a category's name, and characters that char.bin maps, four bytes each.
const NAME: usize = 32;
const MAPPED: usize = 0xffff;

fn mecab_file(name: &str) -> Vec<u8> {
    let packed = std::fs::File::open(format!("tests/golden/metrics/mecab/{name}.gz")).unwrap();
    let mut bytes = vec![];
    flate2::read::GzDecoder::new(packed).read_to_end(&mut bytes).unwrap();
    bytes
}

fn mecab(dir: &Path) -> bool {
    for name in MECAB.iter().filter(|name| !dir.join(name).exists()) {
        seeds::put(&dir.join(name), &mecab_file(name));
    }
    let Ok(mecab) = Mecab::open(dir) else { return false };
    for text in ["すもももももももものうち", "これはtest 12 です。", "한국어 문장", "𠮷野家 a"]
    {
        let words = mecab.words(text);
        assert!(words.iter().map(|w| w.len()).sum::<usize>() <= text.len());
    }
    true
}

/// A dictionary whose first number is its size, as the reader wants it.
fn sized(mut input: Vec<u8>) -> Vec<u8> {
    const MAGIC: u32 = 0xef71_8f77;
    if input.len() >= 4 {
        let size = (input.len() as u32 ^ MAGIC).to_le_bytes();
        input[..4].copy_from_slice(&size);
    }
    input
}

/// char.bin with its categories and first characters as given, and all others as characters of the first category.
fn mapped(mut input: Vec<u8>) -> Vec<u8> {
    let count = input.first().map_or(1, |n| usize::from(*n).clamp(1, 18));
    input.resize(input.len().min(4 + NAME * count + 4 * MAPPED), 0);
    while input.len() < 4 + NAME * count + 4 * MAPPED {
        input.extend(&[1, 0, 0, 0][..(4 + NAME * count + 4 * MAPPED - input.len()).min(4)]);
    }
    input
}

fn dictionaries() -> Vec<Parser> {
    let seed = |name: &str| {
        let mut bytes = mecab_file(name);
        // Of char.bin the beginning: the rest is one entry as the other, see `mapped`.
        bytes.truncate(16384);
        vec![bytes]
    };
    let with = |p: Parser, wrap: fn(Vec<u8>) -> Vec<u8>| Parser { wrap, ..p };
    vec![
        with(parser("mecab-words", seed("sys.dic"), mutate::bytes, "sys.dic", |dir, _| mecab(dir)), sized),
        with(parser("mecab-unknown", seed("unk.dic"), mutate::bytes, "unk.dic", |dir, _| mecab(dir)), sized),
        parser("mecab-matrix", seed("matrix.bin"), mutate::bytes, "matrix.bin", |dir, _| mecab(dir)),
        with(
            parser("mecab-characters", seed("char.bin"), mutate::bytes, "char.bin", |dir, _| mecab(dir)),
            mapped,
        ),
        parser(
            "mecab-settings",
            texts(&["; dicrc\nleft-space-penalty-factor = 100,3000,120,6000\ncost-factor = 700\n"]),
            mutate::text,
            "dicrc",
            |dir, _| mecab(dir),
        ),
    ]
}

/// fastText models, a tokenizer's small files, text with code in it, and the state of a training.
pub fn models() -> Vec<Parser> {
    let mut all = adapters();
    all.extend(dictionaries());
    let models = ["ova.bin", "quantised.ftz", "quantised_norm_pruned.ftz", "softmax.bin", "tree.bin"];
    let models = models.map(|m| files(&[&format!("tests/golden/fasttext/{m}")]).remove(0)).to_vec();
    all.push(parser("fasttext", models, mutate::bytes, "m.bin", |dir, _| {
        let Ok(model) = FastText::open(&dir.join("m.bin")) else { return false };
        for text in ["the red house", "la casa roja 12", "", "日本語"] {
            let _ = model.predict(text);
        }
        true
    }));
    all.push(parser(
        "markup",
        texts(&["# A\n```rust\nlet x = 1;\n```\n$$x^2$$ and \\(y\\) `z` {name} %(house)s <b>t</b> http://x.y/z?a=b\n| a | b |\n"]),
        mutate::text,
        "",
        |_, bytes| {
            let text = String::from_utf8_lossy(bytes);
            markup::spans(&text).iter().all(|span| text.get(span.clone()).is_some())
        },
    ));
    for (name, file, seed) in [
        (
            "special-tokens-map",
            "special_tokens_map.json",
            "{\"bos_token\": \"<s>\", \"eos_token\": {\"content\": \"</s>\", \"lstrip\": false}, \"additional_special_tokens\": [\"<x>\"]}",
        ),
        ("added-tokens", "added_tokens.json", "{\"<x>\": 700, \"<y>\": 701}"),
    ] {
        all.push(parser(name, texts(&[seed]), mutate::json, file, |dir, _| {
            let path = dir.join("tokenizer.json");
            if !path.exists() {
                seeds::put(&path, seeds::TOKENIZER.as_bytes());
            }
            Tokenizer::load(dir).is_ok()
        }));
    }
    all.push(parser(
        "training-state",
        texts(&["{\"step\": 2, \"train_loss\": 1.5, \"stopping\": {\"best\": [1.5, 2], \"stale\": 0}, \"stopped\": false, \"settings\": {\"lr\": 0.1}}"]),
        mutate::json,
        "",
        |dir, bytes| {
            let folder = checkpoint::dir_of(dir, 2);
            std::fs::create_dir_all(&folder).unwrap();
            seeds::put(&folder.join("state.json"), bytes);
            checkpoint::latest_state(dir).is_some()
        },
    ));
    all
}
