//! What a `.gguf` file says of itself: its model, its tensors by type, its tokenizer.
use std::{collections::BTreeMap, path::Path};

use anyhow::{Result, ensure};

use super::{Args, clean};
use crate::{
    data::gguf::{Gguf, GgufTensor, GgufValue},
    error::Error,
    ops::quantize::GgmlType,
    report::{
        out::{say, say_text},
        table::{Cell, Table, use_colour},
    },
};

/// Characters of a text value that are shown.
const SHOWN: usize = 80;

/// Whether the file begins as one.
pub(super) fn is_one(path: &Path) -> bool {
    let mut first = [0; 4];
    let read =
        std::fs::File::open(path).and_then(|mut file| std::io::Read::read_exact(&mut file, &mut first));
    read.is_ok() && first == *b"GGUF"
}

/// Prints the header of a file, or of a model that is split over several.
///
/// # Errors
/// A file that is damaged; options that are for rows.
pub(super) fn print(args: &Args) -> Result<()> {
    let rows =
        "a .gguf file has no rows: --from, --contains, --ids and --model are for rows and token shards";
    let asked = args.from > 0 || args.contains.is_some() || args.ids || args.model.is_some();
    ensure!(!asked, Error::setting("from", rows));
    let gguf = Gguf::open(&args.path)?;
    let bytes: usize = gguf.maps.iter().map(|map| map.len()).sum();
    let parts = if gguf.maps.len() > 1 { format!(" in {} files", gguf.maps.len()) } else { String::new() };
    say!("{}: {bytes} bytes ({:.1} MiB){parts}", args.path.display(), bytes as f64 / 1048576.0);
    say!("architecture: {}", clean(gguf.text("general.architecture").unwrap_or("not said")));
    say!("{}", tokenizer(&gguf));
    say_text!("{}", tensors(&gguf.tensors).to_text(use_colour()));
    for (key, value) in &gguf.metadata {
        say!("{} = {}", clean(key), in_words(value));
    }
    Ok(())
}

/// Kind, tokens, special ones, and whether there is a chat template.
fn tokenizer(gguf: &Gguf) -> String {
    let Some(model) = gguf.text("tokenizer.ggml.model") else { return "tokenizer: none".into() };
    let tokens = gguf.array("tokenizer.ggml.tokens").unwrap_or_default();
    let mut said = format!("tokenizer: {}, {} tokens", clean(model), tokens.len());
    if let Some(pre) = gguf.text("tokenizer.ggml.pre") {
        said += &format!(", split as {}", clean(pre));
    }
    for (what, key) in [("begin", "bos"), ("end", "eos")] {
        let Some(id) = gguf.integer(&format!("tokenizer.ggml.{key}_token_id")) else { continue };
        let text = usize::try_from(id).ok().and_then(|id| tokens.get(id));
        let text = if let Some(GgufValue::Text(text)) = text { clean(text) } else { "?".into() };
        said += &format!(", {what} {id} ({text})");
    }
    let template = if gguf.text("tokenizer.chat_template").is_some() { "a" } else { "no" };
    said + &format!(", {template} chat template")
}

/// Tensors, values and bytes of each type, the largest first.
fn tensors(all: &[GgufTensor]) -> Table {
    let mut by_type: BTreeMap<u32, (usize, f64)> = BTreeMap::new();
    for tensor in all {
        let (n, values) = by_type.entry(tensor.ggml_type).or_default();
        *n += 1;
        *values += tensor.dims.iter().map(|d| *d as f64).product::<f64>();
    }
    let mut table = Table::new(&["type", "tensors", "values", "MiB"]);
    let mut rows: Vec<(u32, (usize, f64))> = by_type.into_iter().collect();
    rows.sort_by(|a, b| b.1.1.total_cmp(&a.1.1));
    for (number, (n, values)) in rows {
        let kind = GgmlType::from_number(number);
        let name =
            kind.map_or_else(|| format!("ggml's {number}, which is not read"), |kind| kind.name().into());
        let mib = kind.map_or(f64::NAN, |kind| {
            let (of, size) = kind.block();
            values / of as f64 * size as f64 / 1048576.0
        });
        let mib = if mib.is_nan() { Cell::Text("?".into()) } else { Cell::Number(mib, 1) };
        table.push(vec![Cell::Text(name), Cell::Number(n as f64, 0), Cell::Number(values, 0), mib]);
    }
    table
}

/// A value on a line; long ones by their length.
fn in_words(value: &GgufValue) -> String {
    match value {
        GgufValue::Unsigned(x) => x.to_string(),
        GgufValue::Signed(x) => x.to_string(),
        GgufValue::Float(x) => x.to_string(),
        GgufValue::Bool(x) => x.to_string(),
        GgufValue::Text(text) => {
            let begin: String = text.chars().take(SHOWN).collect();
            let more =
                if begin.len() < text.len() { format!("... ({} bytes)", text.len()) } else { String::new() };
            format!("{}{more}", clean(&begin))
        }
        GgufValue::Array(all) => format!("{} values", all.len()),
    }
}
