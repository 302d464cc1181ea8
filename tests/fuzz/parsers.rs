//! Every parser of outside bytes, with its seeds, what changes them, and how it is called. A parser says whether it took an input.
use std::path::Path;

use sdrrl::{
    data::{
        alarms,
        conversation::Prompt,
        dictionary, gguf, language_id, parallel,
        questions::{self, preferences},
        record::{Example, Row},
        row_shard::RowShard,
        sentences,
        tally::OnBadRow,
        text_file,
        token_shard::TokenShard,
        tokenizer::Tokenizer,
        top_k::{TopK, TopKShard},
        words,
    },
    eval::{run::read_tasks, scores::ScoreFile},
    infer::generation_config::GenerationConfig,
    metrics::mkqa,
    models::{m2m100, transformer::config::Config, weights, xlm_roberta},
    mt::file::FileTranslator,
    pipeline::manifest::Manifest,
    qe::{cometkiwi::hparams, file::FileScorer},
    recipe::{Recipe, source},
    tensor::DType,
};

use crate::{
    mutate::{self, Random},
    seeds::{self, files, texts, unchanged},
};

/// One parser under test.
pub struct Parser {
    pub name: &'static str,
    pub seeds: Vec<Vec<u8>>,
    pub mutate: fn(&mut Random, &mut Vec<u8>, &[u8]),
    /// What makes a changed input reach the parser: checksum, length, compression.
    pub wrap: fn(Vec<u8>) -> Vec<u8>,
    /// The name that the input has as a file, in the folder that `run` is given.
    pub file: &'static str,
    /// Whether it was taken.
    pub run: fn(&Path, &[u8]) -> bool,
}

type Mutate = fn(&mut Random, &mut Vec<u8>, &[u8]);
type Run = fn(&Path, &[u8]) -> bool;

/// A parser whose changed inputs reach it as they are.
pub fn parser(
    name: &'static str,
    seeds: Vec<Vec<u8>>,
    mutate: Mutate,
    file: &'static str,
    run: Run,
) -> Parser {
    Parser { name, seeds, mutate, wrap: unchanged, file, run }
}

/// All of them.
pub fn all() -> Vec<Parser> {
    let mut all = weights();
    all.extend(shards());
    all.extend(rows());
    all.extend(lists());
    all.extend(tables());
    all.extend(crate::tokenizers::tokenizers());
    all.extend(crate::models::models());
    all.extend(configurations());
    all.extend(settings());
    all
}

fn weights() -> Vec<Parser> {
    let wrapped = |p: Parser, wrap: fn(Vec<u8>) -> Vec<u8>| Parser { wrap, ..p };
    let safetensors: Run = |dir, _| tensors(&dir.join("model.safetensors"));
    let pickle: Run = |dir, bytes| weights::pickle::read(dir, bytes).is_ok();
    let archives = files(&[
        "tests/golden/pickle/module.bin",
        "tests/golden/pickle/views.bin",
        "tests/golden/pickle/lightning.ckpt",
    ]);
    let headers: Vec<Vec<u8>> = seeds::safetensors_header().into_iter().map(seeds::safetensors).collect();
    vec![
        parser("gguf", seeds::gguf(), mutate::bytes, "", |_, bytes| gguf::parse(bytes).is_ok()),
        parser(
            "gguf-tokenizer",
            files(&["tests/golden/tokenizer/bpe.gguf", "tests/golden/tokenizer/spm.gguf"]),
            mutate::bytes,
            "t.gguf",
            |dir, _| Tokenizer::load(&dir.join("t.gguf")).is_ok(),
        ),
        parser("safetensors", headers, mutate::bytes, "model.safetensors", safetensors),
        wrapped(
            parser(
                "safetensors-header",
                seeds::safetensors_header(),
                mutate::json,
                "model.safetensors",
                safetensors,
            ),
            seeds::safetensors,
        ),
        parser(
            "weights-index",
            texts(&["{\"weight_map\": {\"a\": \"x-1.safetensors\", \"b\": \"x-2.safetensors\"}}"]),
            mutate::json,
            "i.json",
            |dir, _| weights::safetensors::read_index(&dir.join("i.json")).is_ok(),
        ),
        parser("pickle-archive", archives, mutate::bytes, "", pickle),
        wrapped(parser("pickle", seeds::pickles(), mutate::bytes, "", pickle), seeds::zip),
    ]
}

fn shards() -> Vec<Parser> {
    let wrapped = |p: Parser, wrap: fn(Vec<u8>) -> Vec<u8>| Parser { wrap, ..p };
    let shard: Run = |dir, _| {
        let Ok(shard) = TokenShard::open(&dir.join("t.tokens")) else { return false };
        (0..shard.len()).for_each(|i| drop(shard.document(i)));
        true
    };
    let said: Run = |dir, _| {
        let Ok(shard) = TopKShard::open(&dir.join("t.logprobs")) else { return false };
        let mut rows = TopK::default();
        (0..shard.units()).for_each(|i| shard.read(i, &mut rows));
        rows.check(rows.rows(), 100).is_ok()
    };
    vec![
        parser("token-shard", seeds::token_shards(), mutate::bytes, "t.tokens", shard),
        parser("likeliest-tokens", seeds::likeliest_tokens(), mutate::bytes, "t.logprobs", said),
        wrapped(
            parser("likeliest-tokens-summed", seeds::likeliest_tokens(), mutate::bytes, "t.logprobs", said),
            seeds::summed,
        ),
        wrapped(
            parser("token-shard-summed", seeds::token_shards(), mutate::bytes, "t.tokens", shard),
            seeds::summed,
        ),
        wrapped(
            parser("row-index", seeds::row_index(), mutate::bytes, "rows-00000.idx", |dir, _| rows_of(dir)),
            seeds::indexed,
        ),
    ]
}

fn tensors(path: &Path) -> bool {
    let Ok(file) = weights::safetensors::Checkpoint::open_file(path) else { return false };
    let names: Vec<String> = file.names().iter().map(|n| n.to_string()).collect();
    for name in names {
        let shape = file.shape(&name).unwrap_or_default().to_vec();
        let small = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).is_some_and(|n| n < 1 << 16);
        if small {
            let _ = file.tensor(&name, &shape, DType::F32);
        }
        let _ = file.integers(&name);
    }
    true
}

fn rows_of(dir: &Path) -> bool {
    let path = dir.join("rows-00000.jsonl");
    if !path.exists() {
        seeds::put(&path, seeds::ROWS.as_bytes());
    }
    let Ok(shard) = RowShard::open(&path) else { return false };
    shard.iter::<Row>().for_each(drop);
    shard.iter::<Example>().for_each(drop);
    shard.is_indexed()
}

/// Rows as people have them, in any shape that is read.
const QUESTIONS: [&str; 3] = [
    "{\"id\": 1, \"instruction\": \"Q\", \"input\": \"I\", \"output\": \"A\", \"language\": \"en\", \"x\": [1, {\"y\": null}]}\n{\"messages\": [{\"role\": \"system\", \"content\": \"S\"}, {\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"Q\"}]}, {\"role\": \"assistant\", \"content\": \"A\", \"weight\": 0.5}]}",
    "{\"conversations\": [{\"from\": \"human\", \"value\": \"Q\"}, {\"from\": \"gpt\", \"value\": \"A\"}], \"system\": \"S\"}\n{\"prompt\": \"Q\", \"completion\": \"A\", \"history\": [[\"a\", \"b\"]]}",
    "[{\"instruction\": \"Q, \\\"]\\\\\", \"output\": \"A\"},\n {\"question\": \"R\", \"answer\": 4.5}]",
];

/// A pair with its conversations, and a reply with its label.
const PREFERENCES: &str = "{\"prompt\": \"Q\", \"chosen\": [{\"role\": \"user\", \"content\": \"Q\"}, {\"role\": \"assistant\", \"content\": \"A\"}], \"rejected\": [{\"role\": \"user\", \"content\": \"Q\"}, {\"role\": \"assistant\", \"content\": \"B\"}]}\n{\"prompt\": [{\"role\": \"user\", \"content\": \"Q\"}], \"completion\": \"A\", \"label\": true, \"system\": \"S\"}";

fn rows() -> Vec<Parser> {
    let read: Run = |dir, _| questions::read(&dir.join("rows"), "en", OnBadRow::Skip).is_ok();
    let wrapped = |name, wrap: fn(Vec<u8>) -> Vec<u8>| Parser {
        wrap,
        ..parser(name, texts(&QUESTIONS), mutate::json, "rows", read)
    };
    let packed = |wrap: fn(Vec<u8>) -> Vec<u8>| texts(&QUESTIONS).into_iter().map(wrap).collect::<Vec<_>>();
    vec![
        parser("rows", texts(&QUESTIONS), mutate::json, "rows", read),
        parser("preferences", texts(&[PREFERENCES]), mutate::json, "rows", |dir, _| {
            preferences::read(&dir.join("rows"), preferences::Rows::Labels, OnBadRow::Skip).is_ok()
        }),
        wrapped("rows-in-gzip", seeds::gzip),
        wrapped("rows-in-zstandard", seeds::zstandard),
        parser("gzip", packed(seeds::gzip), mutate::bytes, "rows", read),
        parser("zstandard", packed(seeds::zstandard), mutate::bytes, "rows", read),
        parser(
            "parquet",
            files(&[
                "tests/golden/rows/none.parquet",
                "tests/golden/rows/gzip.parquet",
                "tests/golden/rows/snappy.parquet",
                "tests/golden/rows/zstd.parquet",
            ]),
            mutate::bytes,
            "rows",
            |dir, _| {
                crate::tokenizers::contained(|| {
                    questions::read(&dir.join("rows"), "en", OnBadRow::Skip).is_ok()
                })
            },
        ),
        parser("row-shard", texts(&[seeds::ROWS]), mutate::json, "rows-00001.jsonl", |dir, _| {
            RowShard::open(&dir.join("rows-00001.jsonl"))
                .is_ok_and(|shard| shard.iter::<Row>().all(|row| row.is_ok()))
        }),
    ]
}

fn lists() -> Vec<Parser> {
    vec![
        parser("text-lines", vec![seeds::gzip(b"one\ntwo\r\n".to_vec())], mutate::bytes, "t.gz", |dir, _| {
            text_file::read_lines(&dir.join("t.gz")).is_ok()
        }),
        parser(
            "word-list",
            texts(&["cat gato\ndog\tperro\nbig dog\tperro grande; can\n", "a\tb\nc\td\n"]),
            mutate::text,
            "d.txt",
            |dir, _| {
                let load = |format| dictionary::Dictionary::load(&dir.join("d.txt"), format).is_ok();
                load(dictionary::DictionaryFormat::Muse) | load(dictionary::DictionaryFormat::Tsv)
            },
        ),
        parser("dictd", seeds::dictd(), mutate::text, "", |_, bytes| {
            let (index, text) = seeds::parted(bytes);
            dictionary::parse_dictd(index, text).is_ok()
        }),
        parser(
            "parallel-text",
            texts(&["one two\tuno dos\nthree\ttres\textra\n"]),
            mutate::text,
            "p.tsv",
            |dir, _| {
                let selection = parallel::Selection { limit: 0, min_words: 1, max_words: 9, seed: 1 };
                parallel::read(&dir.join("p.tsv"), None, ("en", "es"), &selection).is_ok()
            },
        ),
    ]
}

fn tables() -> Vec<Parser> {
    vec![
        parser(
            "translations",
            texts(&[
                "{\"id\": \"a\", \"instruction\": \"P\", \"answer\": \"R\"}\n{\"id\": \"b\", \"instruction\": \"P\"}",
            ]),
            mutate::json,
            "m.jsonl",
            |dir, _| FileTranslator::load(&dir.join("m.jsonl")).is_ok(),
        ),
        parser(
            "scores-of-others",
            texts(&["one\tuno\t0.5\ntwo\tdos\t1\n"]),
            mutate::text,
            "s.tsv",
            |dir, _| FileScorer::load(&dir.join("s.tsv")).is_ok(),
        ),
        parser(
            "scores",
            texts(&[
                "{\"metric\":\"chrf\",\"signature\":\"a\",\"doc_id\":0,\"sample\":\"0011223344556677\",\"values\":[1.5,2]}\n",
            ]),
            mutate::json,
            "scores.jsonl",
            |dir, _| ScoreFile::open(&dir.join("scores.jsonl")).is_ok(),
        ),
        parser(
            "mkqa",
            texts(&[
                "{\"example_id\": 1, \"answers\": {\"es\": [{\"text\": \"a\", \"aliases\": [\"b\"]}], \"en\": [{\"text\": null}]}}\n",
            ]),
            mutate::json,
            "g.jsonl",
            |dir, _| mkqa::read_gold(&dir.join("g.jsonl"), "es").is_ok(),
        ),
        parser(
            "mkqa-predictions",
            files(&["tests/golden/metrics/mkqa_en_prediction.jsonl"]),
            mutate::json,
            "g.jsonl",
            |dir, _| mkqa::read_predictions(&dir.join("g.jsonl")).is_ok(),
        ),
        parser(
            "texts",
            texts(&[
                "Dr. Smith paid $3.50. Really?! «Sí», dijo.\n\n- a\n- b\n```\ncode.\n```",
                "日本語です。本当に！ ไทย हिन्दी। العربية؟",
            ]),
            mutate::text,
            "",
            |_, bytes| everything_of(&String::from_utf8_lossy(bytes)),
        ),
    ]
}

/// What is done to every text: cut into sentences, words, languages, alarms.
fn everything_of(text: &str) -> bool {
    let pieces = sentences::split(text, "de");
    let found: Vec<String> = sentences::sentences(text, "de").iter().map(|s| s.to_string()).collect();
    assert_eq!(sentences::join(&pieces, &found), text, "sentences do not join to the text");
    let _ = (words::tokens(text), words::words(text), language_id::identify(text));
    let _ = alarms::answer_alarms(&Prompt::new(None, text, text), text, "stop", "es", alarms::COPIED_SHARE);
    let _ = alarms::translation_alarms(text, "otra cosa", "en", "es");
    dictionary::equivalents(text).is_some()
}

fn configurations() -> Vec<Parser> {
    let json = |name, seeds, file, run| parser(name, seeds, mutate::json, file, run);
    vec![
        json("decoder-config", seeds::configs("tests/golden/models"), "", |_, bytes| {
            let config = Config::from_json(&String::from_utf8_lossy(bytes));
            config.is_ok_and(|c| c.parameters() > 0)
        }),
        json("m2m100-config", files(&["tests/golden/m2m100/config.json"]), "", |_, bytes| {
            let config = m2m100::config::M2m100Config::from_json(&String::from_utf8_lossy(bytes));
            config.is_ok_and(|c| c.parameters() > 0)
        }),
        json("encoder-config", files(&["tests/golden/cometkiwi/model/config.json"]), "", |_, bytes| {
            let config = xlm_roberta::XlmRobertaConfig::from_json(&String::from_utf8_lossy(bytes));
            config.is_ok_and(|c| c.parameters() > 0)
        }),
        json(
            "generation-config",
            files(&["tests/golden/m2m100/generation_config.json"]),
            "generation_config.json",
            |dir, _| {
                let beams = m2m100::config::BeamParams::from_dir(dir).is_ok();
                GenerationConfig::from_model(dir).is_ok() && beams
            },
        ),
    ]
}

fn settings() -> Vec<Parser> {
    vec![
        parser(
            "hparams",
            files(&["tests/golden/cometkiwi/model/hparams.yaml"]),
            mutate::text,
            "",
            |_, bytes| {
                hparams::parse_yaml(&String::from_utf8_lossy(bytes))
                    .and_then(|v| hparams::Hparams::from_value(&v))
                    .is_ok()
            },
        ),
        parser(
            "recipe",
            files(&["recipes/quickstart.toml", "recipes/quickstart-base.toml"]),
            mutate::text,
            "r.toml",
            |dir, _| Recipe::read(&dir.join("r.toml"), &[]).is_ok(),
        ),
        parser(
            "override",
            texts(&[
                "train.lora-rank=8",
                "questions=[\"a\", \"b\"]",
                "eval.tasks=[{name = \"x\", kind = \"text\"}]",
            ]),
            mutate::text,
            "",
            |_, bytes| source::apply(&mut toml::Table::new(), &String::from_utf8_lossy(bytes)).is_ok(),
        ),
        parser(
            "tasks",
            texts(&[
                "[[tasks]]\nname = \"a\"\nkind = \"qa\"\nlanguage = \"en\"\nfile = \"x\"\nmax-new-tokens = 3\n",
            ]),
            mutate::text,
            "tasks.toml",
            |dir, _| read_tasks(&dir.join("tasks.toml")).is_ok(),
        ),
        parser(
            "manifest",
            texts(&[
                "{\"stage\": \"pack\", \"version\": \"0.1.0\", \"settings\": {\"a\": 1}, \"inputs\": {\"x\": \"00\"}, \"counts\": {\"read\": 3, \"written\": 2, \"dropped\": {\"empty\": 1}}}",
            ]),
            mutate::json,
            "manifest.json",
            |dir, _| Manifest::load(dir).is_ok_and(|m| m.is_some()),
        ),
    ]
}
