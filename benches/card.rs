//! The card that figures belong to.
use std::process::Command;

/// What stands beside every figure: the card that the worker saw (or the processor's threads), driver and power limit.
pub fn machine(card: Option<&str>) -> String {
    let Some(card) = card else { return format!("{} threads", rayon::current_num_threads()) };
    let query = ["--query-gpu=driver_version,power.limit", "--format=csv,noheader"];
    let said = Command::new("nvidia-smi").args(query).output().map(|o| o.stdout).unwrap_or_default();
    let said = String::from_utf8_lossy(&said).lines().next().unwrap_or_default().to_string();
    let (driver, limit) = said.split_once(',').unwrap_or(("unknown", "unknown"));
    format!("{card}, driver {}, power limit {}", driver.trim(), limit.trim())
}
