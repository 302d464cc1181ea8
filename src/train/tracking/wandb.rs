//! A folder of Weights & Biases' offline mode: `offline-run-TIME-ID/run-ID.wandb`, a log of protobuf records (wandb/proto/wandb_internal.proto) that `wandb sync` uploads.
//!
//! The log is LevelDB's (its doc/log_format.md) with a header of its own and zlib's CRC-32 over type and data: blocks of 32 KiB, in them records of
//! checksum (4 bytes), length (2), type (1) and data; a longer one is cut into a first, middle and last part.
use std::{fs, path::Path};

use anyhow::Result;
use chrono::DateTime;
use flate2::Crc;
use serde_json::{Map, Value, json};

use super::{super::protobuf::Message, Point, Tracked, Written, folder};
use crate::data::files::write_error;

const BLOCK: usize = 32768;
const HEADER: usize = 7;
/// `:W&B`, the magic number 0xBEE1, version 0.
const BEGIN: [u8; HEADER] = *b":W&B\xE1\xBE\0";
/// Types of a record: whole, or a part of one.
const FULL: u8 = 1;
const FIRST: u8 = 2;
const MIDDLE: u8 = 3;
const LAST: u8 = 4;

/// Writes the training into a new folder in `root`, as a run of `project`; the folder.
///
/// # Errors
/// A file cannot be written.
pub fn write(t: &Tracked, root: &Path, project: &str) -> Result<Written> {
    let id = id(t.id);
    let time = DateTime::from_timestamp(t.started as i64, 0).unwrap_or_default().format("%Y%m%d_%H%M%S");
    let path = root.join(format!("offline-run-{time}-{id}"));
    fs::create_dir_all(root).map_err(|e| write_error(root, e))?;
    folder(path, |dir| {
        for name in ["files", "logs"] {
            fs::create_dir(dir.join(name)).map_err(|e| write_error(dir, e))?;
        }
        let file = dir.join(format!("run-{id}.wandb"));
        fs::write(&file, log(records(t, &id, project))).map_err(|e| write_error(&file, e))
    })
}

/// Eight of the letters and digits that W&B makes ids of.
fn id(mut number: u128) -> String {
    let mut next = || {
        let digit = (number % 36) as u32;
        number /= 36;
        char::from_digit(digit, 36).unwrap_or('0')
    };
    (0..8).map(|_| next()).collect()
}

/// What the file holds, in this order: what wrote it, the run with its settings, the steps, the summary, and that it ended.
fn records(t: &Tracked, id: &str, project: &str) -> Vec<Message> {
    let config = items(&t.config);
    let nanos = (t.started.fract() * 1e9) as u64;
    let run = Message::default()
        .text(1, id)
        .text(3, project)
        .message(4, config)
        .text(7, "train")
        .text(8, &t.name)
        .message(17, Message::default().int(1, t.started as u64).int(2, nanos));
    let producer = Message::default().text(1, "sdrrl");
    let mut all = vec![
        Message::default().message(21, Message::default().message(1, producer)),
        Message::default().message(17, run),
    ];
    let mut summary = Map::new();
    for point in &t.points {
        let values = values(point, t.started);
        let step = Message::default().int(1, point.step);
        all.push(Message::default().message(2, items(&values).message(2, step)));
        summary.extend(values);
    }
    summary.extend(t.summary.iter().map(|(name, x)| (name.clone(), json!(x))));
    all.push(Message::default().message(3, items(&summary)));
    if t.finished {
        let seconds = (t.ended() - t.started) as u64;
        all.push(Message::default().message(18, Message::default().int(2, seconds)));
    }
    all.into_iter()
        .zip(1..)
        .map(|(record, number)| Message([Message::default().int(1, number).0, record.0].concat()))
        .collect()
}

/// Values of a step, with those that W&B's own runs have.
fn values(point: &Point, started: f64) -> Map<String, Value> {
    let own = [
        ("_step", json!(point.step)),
        ("_runtime", json!(point.time - started)),
        ("_timestamp", json!(point.time)),
    ];
    let logged = point.values.iter().map(|(tag, x)| (tag.clone(), json!(x)));
    logged.chain(own.map(|(name, x)| (name.to_string(), x))).collect()
}

/// A field 1 for each entry: its key and, in JSON, its value.
fn items(entries: &Map<String, Value>) -> Message {
    let item = |key: &str, value: &Value| Message::default().text(1, key).text(16, &value.to_string());
    entries.iter().fold(Message::default(), |all, (key, value)| all.message(1, item(key, value)))
}

/// The file of these records.
fn log(records: Vec<Message>) -> Vec<u8> {
    let mut out = BEGIN.to_vec();
    for Message(data) in records {
        let room = BLOCK - out.len() % BLOCK;
        if room < HEADER {
            out.resize(out.len() + room, 0);
        }
        let (mut rest, mut begun) = (&data[..], false);
        loop {
            let room = BLOCK - out.len() % BLOCK - HEADER;
            let (part, after) = rest.split_at(rest.len().min(room));
            let kind = match (begun, after.is_empty()) {
                (false, true) => FULL,
                (false, false) => FIRST,
                (true, false) => MIDDLE,
                (true, true) => LAST,
            };
            let mut crc = Crc::new();
            crc.update(&[kind]);
            crc.update(part);
            out.extend(crc.sum().to_le_bytes());
            out.extend((part.len() as u16).to_le_bytes());
            out.push(kind);
            out.extend(part);
            (rest, begun) = (after, true);
            if rest.is_empty() {
                break;
            }
        }
    }
    out
}
