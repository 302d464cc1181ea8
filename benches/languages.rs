//! What is done to text before a model sees it, by language: `cargo bench --bench languages -- [--python PYTHON] [--older SDRRL] [--rounds 5] [--data DIR]`.
//!
//! Words, sentences, code-switching, identification, ROUGE's words and SentencePiece's pieces of FLORES' lines (DIR has test.LL, 1,012 lines each; without
//! it the 40 lines in tests/golden, and article 1 of the Declaration of Human Rights where there are none). PYTHON needs pysbd and jieba, the peers
//! for sentences and for Chinese words. SDRRL is an older program: code-switching by both is timed on the same rows, interleaved. Each round runs
//! everyone once in a process of its own, on one thread.
mod options;
mod peer;

use std::{fs, path::Path, process::Command, time::Instant};

use clap::Parser;
use options::{OF_MODELS, Peers};
use peer::{Contestant, interleave, itself, peak_mib};
use sdrrl::{
    data::{
        language_id, sentences,
        tokenizer::sentencepiece::Pieces,
        words::{tokens, words},
    },
    metrics::rouge::Rouge,
    stages::bench::Common,
};
use serde_json::json;

const LANGUAGES: [&str; 6] = ["en", "es", "cs", "ja", "th", "zh"];
/// What is timed and the peer that does the same, if there is one.
const CASES: [(&str, &str); 6] = [
    ("words", ""),
    ("sentences", "pysbd"),
    ("identification", ""),
    ("pieces", ""),
    ("rouge-words", "jieba"),
    ("code-switching", "older"),
];
/// Sentences of a paragraph that is split.
const PARAGRAPH: usize = 5;
/// Rows that are code-switched: enough that starting a program is nothing beside it.
const ROWS: usize = 30_000;

/// What is compared.
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    peers: Peers,
    /// An older `sdrrl`, whose code-switching is timed beside
    #[arg(long)]
    older: Option<String>,
    /// Folder with test.LL
    #[arg(long, default_value = "tests/golden/metrics/flores")]
    data: String,
    /// Of a worker
    #[arg(long, hide = true, default_value = "")]
    language: String,
    #[arg(long, hide = true, default_value = env!("CARGO_BIN_EXE_sdrrl"))]
    program: String,
    #[command(flatten)]
    _common: Common,
}

fn main() {
    let (options, _) = options::options::<Options>(OF_MODELS);
    let Options { peers, data, language, program, .. } = &options;
    if let Some(case) = &peers.worker {
        return worker(case, language, data, program);
    }
    let rounds = peers.rounds(5);
    println!("{data}: one thread, {rounds} interleaved rounds, medians");
    println!("{:<28} {:>14} {:>14} {:>8}", "a second", "sdrrl", "peer", "ratio");
    for (case, peer) in CASES {
        for language in LANGUAGES {
            if case == "rouge-words" && ["ja", "th"].contains(&language) {
                continue;
            }
            if case == "code-switching" && ["zh", "cs"].contains(&language) {
                continue;
            }
            let mut all = vec![Contestant {
                name: format!("sdrrl {case} {language}"),
                command: itself(&["--worker", case, "--data", data, "--language", language]),
            }];
            all.extend(peer_of(case, peer, language, &options));
            let results = interleave(&all, rounds);
            let of = |i: usize| {
                let found = results.get(i).and_then(|r| r.as_ref()).and_then(|r| r["rate"].as_f64());
                found.unwrap_or(f64::NAN)
            };
            let name = format!("{case} {language}");
            let other = if of(1).is_nan() { "-".into() } else { format!("{:.0} {peer}", of(1)) };
            println!("{name:<28} {:>14.0} {other:>14} {:>8.2}", of(0), of(0) / of(1));
        }
    }
}

fn peer_of(case: &str, peer: &str, language: &str, options: &Options) -> Option<Contestant> {
    let Options { peers, older, data, .. } = options;
    let command = match peer {
        "older" => {
            let older = older.as_ref()?;
            itself(&["--worker", case, "--data", data, "--language", language, "--program", older])
        }
        "jieba" if language != "zh" => return None,
        "pysbd" if ["cs", "th"].contains(&language) => return None,
        "" => return None,
        _ => {
            let python = peers.python.as_ref()?;
            [python.as_str(), "scripts/peer_languages.py", case, language, data]
                .map(|s| s.to_string())
                .to_vec()
        }
    };
    Some(Contestant { name: format!("{peer} {case} {language}"), command })
}

/// The lines of a language, the same ones over again up to 400.
fn lines(language: &str, data: &str) -> Vec<String> {
    let own = fs::read_to_string(Path::new(data).join(format!("test.{language}")));
    let text = own.unwrap_or_else(|_| {
        let all = fs::read_to_string("tests/golden/languages/udhr.tsv").expect("the repository's folder");
        let row = all.lines().find_map(|l| l.strip_prefix(&format!("{language}\t")));
        row.expect("a language of the table").to_string() + "\n"
    });
    let lines: Vec<String> = text.lines().filter(|l| !l.trim().is_empty()).map(String::from).collect();
    lines.iter().cycle().take(lines.len().max(400)).cloned().collect()
}

fn worker(case: &str, language: &str, data: &str, program: &str) {
    let lines = lines(language, data);
    let count = |f: &dyn Fn() -> usize| rate(f);
    let rate = match case {
        "words" => count(&|| lines.iter().map(|l| words(l).len()).sum()),
        "sentences" => {
            let gap = if ["ja", "zh"].contains(&language) { "" } else { " " };
            let paragraphs: Vec<String> = lines.chunks(PARAGRAPH).map(|some| some.join(gap)).collect();
            count(&|| paragraphs.iter().map(|p| sentences::sentences(p, language).len()).sum())
        }
        "identification" => count(&|| {
            lines
                .iter()
                .map(|l| {
                    language_id::identify(l);
                    1
                })
                .sum()
        }),
        "pieces" => {
            let model = "tests/golden/sentencepiece/nllb/sentencepiece.bpe.model";
            let pieces = Pieces::open(Path::new(model)).expect("the repository's folder");
            count(&|| lines.iter().map(|l| pieces.encode(l).len()).sum())
        }
        "rouge-words" => {
            let rouge = Rouge::new(language, None, false).expect("a language without a dictionary");
            count(&|| lines.iter().map(|l| rouge.words(l).len()).sum())
        }
        "code-switching" => code_switched(&lines, language, program),
        other => panic!("there is no case {other}"),
    };
    println!("{}", json!({"rate": rate, "peak_mib": peak_mib()}));
}

/// What `f` counts, a second: the best of several runs of a tenth of a second or more.
fn rate(f: &dyn Fn() -> usize) -> f64 {
    let mut best = 0.0f64;
    for _ in 0..5 {
        let start = Instant::now();
        let mut n = 0;
        while start.elapsed().as_secs_f64() < 0.1 {
            n += f();
        }
        best = best.max(n as f64 / start.elapsed().as_secs_f64());
    }
    best
}

/// Words of the questions that `program` code-switches, a second, with every fourth word in the dictionary. The whole command is timed.
fn code_switched(lines: &[String], language: &str, program: &str) -> f64 {
    let dir = tempfile::tempdir().expect("a folder for rows");
    let rows: Vec<&String> = lines.iter().cycle().take(ROWS).collect();
    let text: String = rows
        .iter()
        .enumerate()
        .map(|(i, q)| format!("{}\n", json!({"id": format!("r{i}"), "instruction": q})))
        .collect();
    let file = dir.path().join("q.jsonl");
    fs::write(&file, text).expect("write rows");
    let mut known: Vec<&str> = lines.iter().flat_map(|l| words(l)).collect();
    known.sort_unstable();
    known.dedup();
    let dictionary: String = known.iter().step_by(4).map(|w| format!("{w}\tword\n")).collect();
    fs::write(dir.path().join("d.tsv"), dictionary).expect("write the dictionary");
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let start = Instant::now();
    let done = Command::new(program)
        .env("RAYON_NUM_THREADS", "1")
        .args(["code-switch", "--input", &at("q.jsonl"), "--out", &at("out"), "--dictionary", &at("d.tsv")])
        .args([
            "--source-language",
            language,
            "--target-languages",
            if language == "en" { "es" } else { "en" },
        ])
        .output()
        .expect("start the program");
    let seconds = start.elapsed().as_secs_f64();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    rows.iter().map(|q| tokens(q).iter().filter(|t| t.is_word).count()).sum::<usize>() as f64 / seconds
}
