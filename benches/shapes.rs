//! What a contestant's name must say too.
use serde_json::Value;

/// How a result differs from what was asked for. `card` is where it should have run.
pub fn remarks(result: Option<&Value>, card: Option<&str>) -> String {
    let Some(result) = result else { return String::new() };
    let checkpointing = if result["checkpointing"] == true { ", checkpointing" } else { "" };
    let elsewhere = if card.is_some() && result["card"].is_null() { ", on the CPU" } else { "" };
    format!("{checkpointing}{elsewhere}")
}
