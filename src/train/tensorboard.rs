//! TensorBoard event files: TFRecords of `Event` messages (tensorboard/compat/proto/event.proto), written by hand.
use std::{
    fs::File,
    io::Write,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Result;

use super::protobuf::Message;
use crate::data::files::write_error;

/// One event file.
pub struct EventWriter {
    file: File,
    path: std::path::PathBuf,
}

impl EventWriter {
    /// Creates `DIR/events.out.tfevents.<time>.<host>.<pid>.0.sdrrl`; event files of an earlier start, known by that ending, are removed.
    pub fn create(dir: &Path) -> Result<EventWriter> {
        for old in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = old.file_name().to_string_lossy().into_owned();
            if name.starts_with("events.out.tfevents") && name.ends_with(".sdrrl") {
                let _ = std::fs::remove_file(old.path());
            }
        }
        let host = std::fs::read_to_string("/etc/hostname")
            .map(|h| h.trim().to_string())
            .unwrap_or_else(|_| "host".into());
        let path = dir.join(format!(
            "events.out.tfevents.{:010}.{host}.{}.0.sdrrl",
            now() as u64,
            std::process::id()
        ));
        let file = File::create(&path).map_err(|e| write_error(&path, e))?;
        let mut writer = EventWriter { file, path };
        writer.record(wall_time().text(3, "brain.Event:2"))?;
        Ok(writer)
    }

    /// One scalar.
    pub fn scalar(&mut self, tag: &str, step: u64, value: f32) -> Result<()> {
        let summary = Message::default().message(1, Message::default().text(1, tag).float(2, value));
        self.record(wall_time().int(2, step).message(5, summary))
    }

    fn record(&mut self, Message(payload): Message) -> Result<()> {
        let length = (payload.len() as u64).to_le_bytes();
        let mut out = length.to_vec();
        out.extend(masked_crc(&length).to_le_bytes());
        out.extend(&payload);
        out.extend(masked_crc(&payload).to_le_bytes());
        self.file.write_all(&out).map_err(|e| write_error(&self.path, e))
    }
}

/// Seconds since 1970.
pub(super) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// An event with nothing but its time.
fn wall_time() -> Message {
    Message::default().double(1, now())
}

fn masked_crc(bytes: &[u8]) -> u32 {
    let crc = crc32c::crc32c(bytes);
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}
