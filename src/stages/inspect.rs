//! `sdrrl inspect`: rows field by field, token shards as coloured tokens with the loss mask, and the header of a `.gguf` file.
mod gguf;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    data::{
        row_shard::RowSet,
        token_shard::{Document, TokenShard},
        tokenizer::Tokenizer,
    },
    models::weights::resolve,
    report::{
        out::{self, say},
        table::use_colour,
    },
};

/// Arguments of `inspect`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// A folder of rows, a .jsonl file, a .tokens shard, or a .gguf file, whose header is shown
    pub path: PathBuf,
    /// Model whose tokenizer turns ids into text (token shards)
    #[arg(long)]
    pub model: Option<String>,
    /// First row or document to show, counting from 0
    #[arg(long, default_value_t = 0)]
    pub from: usize,
    /// How many rows or documents to show
    #[arg(long, short = 'n', default_value_t = 3)]
    pub count: usize,
    /// Show only rows and documents that contain this text
    #[arg(long)]
    pub contains: Option<String>,
    /// Show token ids beside the text
    #[arg(long)]
    pub ids: bool,
}

/// Shows what was asked for.
pub fn run(args: &Args) -> Result<()> {
    if args.path.extension().is_some_and(|e| e == "tokens") {
        return tokens(args);
    }
    if gguf::is_one(&args.path) { gguf::print(args) } else { rows(args) }
}

fn rows(args: &Args) -> Result<()> {
    let set = RowSet::open(&args.path)?;
    say!("{}: {} rows", args.path.display(), set.len());
    let colour = use_colour();
    let mut shown = 0;
    for i in args.from..set.len() {
        if shown == args.count {
            break;
        }
        let row: Value = set.get(i)?;
        if args.contains.as_ref().is_some_and(|text| !row.to_string().contains(text)) {
            continue;
        }
        shown += 1;
        out::raw(format_args!("\n{}\n", paint(&format!("row {i}"), "1", colour)));
        fields("", &row, colour);
    }
    ensure!(shown > 0 || set.is_empty(), "no row from {} on is as asked", args.from);
    Ok(())
}

fn fields(path: &str, value: &Value, colour: bool) {
    let below = |key: &str| if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
    match value {
        Value::Object(map) => map.iter().for_each(|(k, v)| fields(&below(k), v, colour)),
        Value::String(text) => {
            out::raw(format_args!("{} {}\n", paint(&clean(path), "36", colour), clean(text)))
        }
        Value::Null => {}
        other => out::raw(format_args!(
            "{} {}\n",
            paint(&clean(path), "36", colour),
            out::shown(&other.to_string())
        )),
    }
}

fn tokens(args: &Args) -> Result<()> {
    let model = args.model.as_ref().context("a token shard needs --model, whose tokenizer made it")?;
    let tokenizer = Tokenizer::load(&resolve(model)?)?;
    let shard = TokenShard::open(&args.path)?;
    let colour = use_colour();
    out::raw(format_args!(
        "{}: {} documents, {} tokens; {} = trained, {} = seen only, ↵ = line break\n",
        out::shown(&args.path.display().to_string()),
        shard.len(),
        shard.tokens(),
        paint("green", "32", colour),
        paint("grey", "90", colour)
    ));
    let mut shown = 0;
    for i in args.from..shard.len() {
        if shown == args.count {
            break;
        }
        let document = shard.document(i);
        let text = tokenizer.decode(&document.tokens)?;
        let wanted = |t: &String| text.contains(t.as_str()) || document.note.contains(t.as_str());
        if args.contains.as_ref().is_some_and(|t| !wanted(t)) {
            continue;
        }
        shown += 1;
        let title = paint(&format!("document {i}: {}", clean(&document.note)), "1", colour);
        out::raw(format_args!("\n{title}\n{}\n", render(&document, &tokenizer, args.ids, colour)));
    }
    ensure!(shown > 0 || shard.is_empty(), "no document from {} on is as asked", args.from);
    Ok(())
}

/// Tokens between bars; without colours, trained tokens are in brackets.
fn render(document: &Document, tokenizer: &Tokenizer, ids: bool, colour: bool) -> String {
    let mut out = String::new();
    for (id, weight) in document.tokens.iter().zip(&document.weights) {
        let mut text = clean(&tokenizer.token_text(*id));
        if ids {
            text += &format!("·{id}");
        }
        if *weight != 0.0 && *weight != 1.0 {
            text += &format!("×{weight}");
        }
        let trained = *weight != 0.0;
        out += &match (trained, colour) {
            (true, true) => paint(&text, "32", true),
            (false, true) => paint(&text, "90", true),
            (true, false) => format!("[{text}]"),
            (false, false) => text,
        };
        out.push(if colour { '|' } else { ' ' });
    }
    out
}

/// Control characters made visible: what a file holds must not steer the terminal.
fn clean(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c == '\n' {
                '↵'
            } else if c.is_control() || out::shown(c.encode_utf8(&mut [0; 4])).len() > 4 {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

fn paint(text: &str, code: &str, colour: bool) -> String {
    if colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into() }
}
