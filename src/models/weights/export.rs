//! Hugging Face directories out: config.json, model.safetensors (or shards with an index), and the files beside them.
use std::{
    borrow::Borrow,
    collections::BTreeMap,
    io::{BufWriter, Write},
    path::Path,
};

use crate::data::files::FileContext;
use anyhow::{Context, Result, ensure};
use bytemuck::cast_slice;
use half::bf16;
use serde_json::{Map, Value, json};

use crate::{
    models::transformer::{registry::family, weights::Transformer},
    ops::quantize::Matrix,
    tensor::{DType, Tensor},
};

/// Files that are copied next to an exported model where the source directory has them.
const COMPANIONS: [&str; 8] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// Hugging Face's default shard size, bytes.
const SHARD_BYTES: usize = 5_000_000_000;

impl Transformer {
    /// Writes a directory that transformers loads, every matrix as `dtype`; tokenizer files are copied from `companions`.
    pub fn save_pretrained(&self, dir: &Path, dtype: DType, companions: Option<&Path>) -> Result<()> {
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let tensors = self.named();
        write_sharded(dir, &tensors, dtype, SHARD_BYTES)?;
        let mut config = serde_json::to_value(&self.config)?;
        let name = json!(if dtype == DType::Bf16 { "bfloat16" } else { "float32" });
        // The newer name of the same field is read first.
        if config.get("dtype").is_some() {
            config["dtype"] = name.clone();
        }
        config["torch_dtype"] = name;
        if config.get("architectures").is_none() {
            config["architectures"] = json!([family(&self.config.model_type)?.class]);
        }
        write_file(&dir.join("config.json"), format!("{config:#}\n").as_bytes())?;
        for name in companions.map(|_| COMPANIONS).into_iter().flatten() {
            let from = companions.unwrap_or(dir).join(name);
            if from.is_file() && from != dir.join(name) {
                let bytes = std::fs::read(&from).reading(&from)?;
                write_file(&dir.join(name), &bytes)?;
            }
        }
        Ok(())
    }
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    crate::data::files::write_atomic(path, bytes)
}

fn write_sharded(dir: &Path, tensors: &[(String, Matrix)], dtype: DType, shard_bytes: usize) -> Result<()> {
    let mut shards: Vec<Vec<&(String, Matrix)>> = vec![vec![]];
    let mut filled = 0;
    for t in tensors {
        let bytes = t.1.shape().iter().product::<usize>() * dtype.bytes();
        if filled > 0 && filled + bytes > shard_bytes {
            shards.push(vec![]);
            filled = 0;
        }
        filled += bytes;
        if let Some(last) = shards.last_mut() {
            last.push(t);
        }
    }
    if shards.len() == 1 {
        return write_matrices(&dir.join("model.safetensors"), &shards[0], dtype);
    }
    let mut weight_map = Map::new();
    for (i, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        write_matrices(&dir.join(&name), shard, dtype)?;
        shard.iter().for_each(|(tensor, _)| drop(weight_map.insert(tensor.clone(), json!(name))));
    }
    let total: usize = tensors.iter().map(|t| t.1.shape().iter().product::<usize>() * dtype.bytes()).sum();
    let index: Value = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
    write_file(&dir.join("model.safetensors.index.json"), format!("{index:#}\n").as_bytes())
}

/// Writes `tensors` as one safetensors file with PyTorch's metadata: to a temporary name, then renamed.
pub fn write_safetensors<T: Borrow<Tensor>>(
    path: &Path,
    tensors: &[&(String, T)],
    dtype: DType,
) -> Result<()> {
    let all: Vec<(String, Matrix)> =
        tensors.iter().map(|(name, t)| (name.clone(), Matrix::Dense(t.borrow()))).collect();
    write_matrices(path, &all.iter().collect::<Vec<_>>(), dtype)
}

/// The same of matrices that may be blocks, which are unpacked one at a time.
fn write_matrices(path: &Path, tensors: &[&(String, Matrix)], dtype: DType) -> Result<()> {
    let mut header = BTreeMap::new();
    header.insert("__metadata__".to_string(), json!({"format": "pt"}));
    let mut offset = 0;
    for (name, t) in tensors {
        let end = offset + t.shape().iter().product::<usize>() * dtype.bytes();
        let kind = if dtype == DType::Bf16 { "BF16" } else { "F32" };
        let entry = json!({"dtype": kind, "shape": t.shape(), "data_offsets": [offset, end]});
        ensure!(header.insert(name.clone(), entry).is_none(), "two tensors are called {name}");
        offset = end;
    }
    let mut header = serde_json::to_string(&header)?;
    // The data begins at a multiple of 8 bytes.
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let partial = path.with_extension("safetensors.partial");
    let context = || format!("write {}: is the disk full?", partial.display());
    let mut out = BufWriter::new(std::fs::File::create(&partial).with_context(context)?);
    out.write_all(&(header.len() as u64).to_le_bytes()).with_context(context)?;
    out.write_all(header.as_bytes()).with_context(context)?;
    for (_, t) in tensors {
        match t {
            Matrix::Dense(t) => write_tensor(&mut out, t, dtype),
            Matrix::Blocks(b) => write_tensor(&mut out, &b.to_dense(t.dtype())?, dtype),
        }
        .with_context(context)?;
    }
    out.into_inner().map_err(|e| e.into_error()).and_then(|f| f.sync_all()).with_context(context)?;
    std::fs::rename(&partial, path)
        .with_context(|| format!("rename {} to {}", partial.display(), path.display()))
}

fn write_tensor(out: &mut impl Write, t: &Tensor, dtype: DType) -> Result<()> {
    match (t.dtype(), dtype) {
        (DType::F32, DType::F32) if t.gpu().is_none() => out.write_all(cast_slice(t.f32()?))?,
        (DType::Bf16, DType::Bf16) if t.gpu().is_none() => out.write_all(cast_slice(t.bf16()?))?,
        (_, DType::F32) => out.write_all(cast_slice(&t.to_f32_vec()?))?,
        (_, _) => {
            let narrow: Vec<bf16> = t.to_f32_vec()?.into_iter().map(bf16::from_f32).collect();
            out.write_all(cast_slice(&narrow))?;
        }
    }
    Ok(())
}
