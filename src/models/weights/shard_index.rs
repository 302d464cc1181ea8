//! The index of a checkpoint in shards: which file holds which tensor.
use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::data::files::FileContext;

/// The shards that an index file names, each with its tensors.
pub fn read_index(index: &Path) -> Result<BTreeMap<String, Vec<String>>> {
    let text = crate::data::json::read_text(index).reading(index)?;
    let json: Value =
        serde_json::from_str(&text).with_context(|| format!("{} is not JSON", index.display()))?;
    let map =
        json["weight_map"].as_object().with_context(|| format!("{} has no `weight_map`", index.display()))?;
    ensure!(!map.is_empty(), "{}: `weight_map` is empty", index.display());
    let mut shards: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (tensor, shard) in map {
        let plain = shard.as_str().filter(|n| !n.is_empty() && !n.contains(['/', '\\']));
        let name = plain.with_context(|| {
            format!(
                "{}: the shard of tensor {tensor} is {shard}, which is not a plain file name",
                index.display()
            )
        })?;
        shards.entry(name.into()).or_default().push(tensor.clone());
    }
    Ok(shards)
}
