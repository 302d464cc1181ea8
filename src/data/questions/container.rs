//! Files of rows as people have them: JSON Lines, a JSON array, either of them compressed with gzip or Zstandard, or Parquet; told apart by
//! their content, not by their name.
use std::{
    ffi::OsStr,
    fs::Metadata,
    io::{ErrorKind, Read},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
    sync::Mutex,
};

use crate::data::files::FileContext;
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Map, Value};

use crate::data::{
    contained::{self, Ask, Limits},
    json::{self, Unambiguous},
    map::map_path,
    standard_input,
};

/// The columns of a row, or why there is none.
pub type Object = Result<Map<String, Value>>;

/// How much larger than the file its decompressed content may be.
const EXPANSION: u64 = json::FACTOR as u64;
/// What any file may decompress to, bytes.
const SMALL: u64 = json::FREE as u64;

/// Calls `f` with the place (`file:line`) and the columns of each row of `path` (`-`: standard input), in order.
pub fn for_each(path: &Path, f: &mut dyn FnMut(&str, Object) -> Result<()>) -> Result<()> {
    let name = if path == Path::new("-") { "standard input".into() } else { path.display().to_string() };
    let path = &*standard_input::resolve(path)?;
    let about = std::fs::metadata(path).at(path, || format!("open {name}"))?;
    ensure!(!about.is_dir(), "{name} is a folder; a file of rows was expected");
    if about.len() == 0 {
        bail!("{name} is empty");
    }
    let bytes = map_path(path)?;
    if cfg!(feature = "parquet") && bytes.starts_with(PARQUET) {
        try_apart(path, &about).with_context(|| name.clone())?;
    }
    of_bytes(&name, &bytes, f)
}

/// A Parquet file's first bytes.
const PARQUET: &[u8] = b"PAR1";

/// Tries a Parquet file in a child first, if there is a program for it, and once: its library takes memory and time by what a damaged file says.
fn try_apart(path: &Path, about: &Metadata) -> Result<()> {
    static TRIED: Mutex<Vec<[u64; 4]>> = Mutex::new(vec![]);
    let key =
        [about.dev(), about.ino(), about.len(), about.mtime_nsec() as u64 ^ (about.mtime() as u64) << 30];
    let tried = || TRIED.lock().unwrap_or_else(|e| e.into_inner());
    let Ok(Some(program)) = contained::program() else { return Ok(()) };
    if tried().contains(&key) {
        return Ok(());
    }
    // What is this process to us is not it to the child.
    let own = Path::new("/proc").join(std::process::id().to_string());
    let path = path.strip_prefix("/proc/self").map_or(path.to_path_buf(), |rest| own.join(rest));
    let limits = Limits { memory: SMALL + EXPANSION * about.len(), seconds: 2.0 + about.len() as f64 / 1e6 };
    contained::ask_once(&program, limits, Ask::Rows, path.as_os_str().as_bytes())?;
    tried().push(key);
    Ok(())
}

/// The child's side: every row is read, and nothing is done with it.
pub(in crate::data) fn probe(path: &[u8]) -> Result<()> {
    parquet_rows("it", &map_path(Path::new(OsStr::from_bytes(path)))?, &mut |_, _| Ok(()))
}

fn of_bytes(name: &str, bytes: &[u8], f: &mut dyn FnMut(&str, Object) -> Result<()>) -> Result<()> {
    match bytes {
        [0x1f, 0x8b, ..] => {
            let open = || Ok(flate2::read::MultiGzDecoder::new(bytes));
            text_rows(name, &inflate(name, "gzip", bytes.len(), open)?, f)
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let open = || {
                zstd::stream::read::Decoder::with_buffer(bytes)
                    .map_err(|e| anyhow!("{name} is a damaged Zstandard file: {e}"))
            };
            text_rows(name, &inflate(name, "Zstandard", bytes.len(), open)?, f)
        }
        _ if bytes.starts_with(PARQUET) => parquet_rows(name, bytes, f),
        _ => text_rows(name, bytes, f),
    }
}

/// Unpacks twice: once to count, so that the text is put where it fits, and a file that is too large takes no memory at all.
fn inflate<R: Read>(name: &str, kind: &str, size: usize, open: impl Fn() -> Result<R>) -> Result<Vec<u8>> {
    let most = (size as u64 * EXPANSION).max(SMALL);
    let broken = |e: std::io::Error| match e.kind() {
        ErrorKind::UnexpectedEof => anyhow!("{name} is a {kind} file that was cut off"),
        _ => anyhow!("{name} is a damaged {kind} file: {e}"),
    };
    let length = std::io::copy(&mut open()?.take(most + 1), &mut std::io::sink()).map_err(broken)?;
    ensure!(length <= most, "{name}: its {kind} content is more than {EXPANSION} times its size");
    let mut out = Vec::with_capacity(length as usize);
    open()?.take(length).read_to_end(&mut out).map_err(broken)?;
    Ok(out)
}

/// JSON Lines, or a JSON array.
fn text_rows(name: &str, bytes: &[u8], f: &mut dyn FnMut(&str, Object) -> Result<()>) -> Result<()> {
    if let Some(kind) = foreign(bytes) {
        bail!("{name} is {kind}");
    }
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let first = text.iter().find(|b| !b.is_ascii_whitespace());
    match first {
        None => bail!("{name} holds no rows"),
        Some(b'[') if !is_one_array_per_line(text) => array_rows(name, text, f),
        _ => line_rows(name, text, f),
    }
}

/// What a file is that holds no JSON, and what to do.
fn foreign(bytes: &[u8]) -> Option<&'static str> {
    Some(match bytes {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "UTF-16 text: convert it with `iconv -f UTF-16 -t UTF-8`",
        [b'P', b'K', 3, 4, ..] => "a zip archive (or a spreadsheet): unpack it, and save it as JSON Lines",
        [b'B', b'Z', b'h', ..] => "a bzip2 file: unpack it with `bunzip2`",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "an xz file: unpack it with `unxz`",
        [b'A', b'R', b'R', b'O', b'W', b'1', ..] => {
            "an Arrow file: save it as Parquet or JSON Lines (`datasets`: `to_json`)"
        }
        [b'S', b'Q', b'L', b'i', b't', b'e', ..] => "an SQLite database: export its table as JSON Lines",
        [b'%', b'P', b'D', b'F', ..] => "a PDF document: rows of questions were expected",
        _ => return None,
    })
}

fn is_one_array_per_line(text: &[u8]) -> bool {
    let line = text.split(|b| *b == b'\n').find(|l| !l.trim_ascii().is_empty()).unwrap_or_default();
    line.trim_ascii_end().ends_with(b"]")
        && json::check(line).is_ok()
        && serde_json::from_slice::<Vec<Value>>(line).is_ok_and(|v| !v.iter().any(Value::is_object))
}

fn array_rows(name: &str, text: &[u8], f: &mut dyn FnMut(&str, Object) -> Result<()>) -> Result<()> {
    let broken = |e: serde_json::Error| {
        anyhow!("{name}:{}: a JSON array that does not parse: {}", e.line(), without_place(&e))
    };
    // Checked as a whole first, so that its elements can be read one by one.
    serde_json::from_slice::<Vec<serde::de::IgnoredAny>>(text).map_err(broken)?;
    let mut number = 0;
    json::for_each_element(text, &mut |element| {
        number += 1;
        let place = format!("{name}, element {number}");
        let value: Result<Unambiguous> =
            json::check(element).and_then(|()| serde_json::from_slice(element).map_err(broken));
        f(&place, value.and_then(|v| object(v.0)))
    })
}

fn line_rows(name: &str, text: &[u8], f: &mut dyn FnMut(&str, Object) -> Result<()>) -> Result<()> {
    for (i, line) in text.split(|b| *b == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        f(&format!("{name}:{}", i + 1), parse_line(line, i))?;
    }
    Ok(())
}

fn parse_line(line: &[u8], number: usize) -> Object {
    let text = std::str::from_utf8(line).map_err(|e| {
        let at = e.valid_up_to();
        let byte = line.get(at).copied().unwrap_or_default();
        anyhow!(
            "byte {} of the line (0x{byte:02x}) is not UTF-8: is it Windows-1252 or Latin-1? Convert the file with `iconv -f WINDOWS-1252 -t UTF-8`",
            at + 1
        )
    })?;
    json::check(line)?;
    let value: Unambiguous = serde_json::from_str(text).map_err(|e| {
        let head: String = text.trim_start().chars().take(24).collect();
        let hint = match head.chars().next() {
            _ if e.to_string().contains("hex escape") => {
                ": is it a lone surrogate, half of a character that takes two \\u escapes?"
            }
            Some('{') if e.is_eof() && number == 0 => {
                ": is it one JSON object over several lines? Each row must stand on one line, or all in one JSON array"
            }
            _ if e.is_data() => return anyhow!("{}", without_place(&e)),
            Some('{' | '[' | '"') => "",
            _ if number == 0 && (head.contains(',') || head.contains('\t')) => {
                ": it looks like CSV or TSV; save it as JSON Lines"
            }
            _ => ": every line must be a JSON object",
        };
        anyhow!("not JSON at column {}: {}{hint}", e.column(), without_place(&e))
    })?;
    object(value.0)
}

fn object(value: Value) -> Object {
    match value {
        Value::Object(map) => Ok(map),
        Value::Array(_) => bail!("the row is a list; an object with named columns was expected"),
        other => bail!("the row is {other}; an object with named columns was expected"),
    }
}

fn without_place(e: &serde_json::Error) -> String {
    let text = e.to_string();
    text.split(" at line ").next().unwrap_or_default().to_string()
}

#[cfg(feature = "parquet")]
fn parquet_rows(name: &str, bytes: &[u8], f: &mut dyn FnMut(&str, Object) -> Result<()>) -> Result<()> {
    use crate::data::contained::caught::caught;
    use parquet::file::reader::{FileReader, SerializedFileReader};
    let damaged = |e: parquet::errors::ParquetError| {
        let codec = e.to_string().contains("Disabled feature");
        let advice =
            if codec { " (write it with Snappy, gzip or Zstandard, or save it as JSON Lines)" } else { "" };
        anyhow!("{e}{advice}")
    };
    // The library panics on some damaged files.
    let whole = |e: anyhow::Error| e.context(format!("{name} is a Parquet file that cannot be read"));
    let open = || SerializedFileReader::new(bytes::Bytes::copy_from_slice(bytes)).map_err(damaged);
    let reader = caught(open).map_err(whole)?;
    let groups = reader.metadata().row_groups();
    let unpacked = groups.iter().fold(0u64, |sum, g| sum.saturating_add(g.total_byte_size().max(0) as u64));
    let most = (bytes.len() as u64 * EXPANSION).max(SMALL);
    ensure!(
        unpacked <= most,
        "{name}: its {unpacked} bytes of content are more than {EXPANSION} times its size"
    );
    let mut rows = caught(|| reader.get_row_iter(None).map_err(damaged)).map_err(whole)?;
    let (mut number, mut read) = (0, 0);
    while let Some(row) = caught(|| rows.next().transpose().map_err(damaged)).map_err(whole)? {
        number += 1;
        let row = caught(|| super::parquet_values::object(&row));
        read += row.as_ref().map_or(8, row_bytes);
        ensure!(read <= most, "{name}: its rows are more than {EXPANSION} times its size");
        f(&format!("{name}, row {number}"), row.and_then(object))?;
    }
    Ok(())
}

/// Bytes of the texts in a row.
#[cfg(feature = "parquet")]
fn row_bytes(value: &Value) -> u64 {
    match value {
        Value::String(text) => text.len() as u64,
        Value::Array(items) => items.iter().map(row_bytes).sum::<u64>() + 8,
        Value::Object(map) => map.values().map(row_bytes).sum::<u64>() + 8,
        _ => 8,
    }
}

#[cfg(not(feature = "parquet"))]
fn parquet_rows(name: &str, _: &[u8], _: &mut dyn FnMut(&str, Object) -> Result<()>) -> Result<()> {
    bail!(
        "{name} is a Parquet file, which this build does not read: build sdrrl with `--features parquet`, or save the file as JSON Lines"
    )
}
