//! When, by which program and on which machine a page was made, for its head.
use std::time::{SystemTime, UNIX_EPOCH};

use chrono::DateTime;

use crate::{
    device::{self, DeviceChoice},
    pipeline::placement::Placement,
    report::environment::{processor, version},
};

fn today() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let date = DateTime::from_timestamp(now as i64, 0).unwrap_or_default();
    date.format("%Y-%m-%d %H:%M UTC").to_string()
}

/// Names and values: date, program, machine.
pub fn facts(placement: Placement) -> Vec<(String, String)> {
    let memory = device::host_memory()
        .map_or(String::new(), |(total, _)| format!(", {:.0} GiB", total as f64 / (1u64 << 30) as f64));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let processor = processor().unwrap_or_else(|| std::env::consts::ARCH.into());
    let gpu = match placement.device.first() {
        DeviceChoice::Cuda(at) => {
            let name = device::gpus().ok().and_then(|gpus| gpus.get(at).map(|g| g.name.clone()));
            let times = match placement.device.each().len() {
                1 => String::new(),
                n => format!("{n} x "),
            };
            format!("; {times}{}", name.unwrap_or_else(|| "a GPU".into()))
        }
        _ => String::new(),
    };
    [
        ("date", today()),
        ("program", format!("sdrrl {}", version())),
        (
            "machine",
            format!(
                "{processor}, {} threads on {cores} logical cores{memory}{gpu}",
                rayon::current_num_threads()
            ),
        ),
        ("computed in", placement.to_string()),
    ]
    .map(|(name, value)| (name.to_string(), value))
    .to_vec()
}
