//! Hugging Face directories out: config.json, model.safetensors (or shards with an index), and the files beside them.
use std::{
    borrow::Borrow,
    collections::BTreeMap,
    io::{BufWriter, Write},
    path::Path,
};

use crate::data::files::FileContext;
use anyhow::{Context, Result, bail, ensure};
use bytemuck::cast_slice;
use half::{bf16, f16};
use serde_json::{Map, Value, json};

use super::stored::Stored;
use crate::{
    data::files::{partial_of, remove_if_there},
    models::transformer::{registry::family, weights::Transformer},
    ops::quantize::Matrix,
    tensor::{DType, Tensor},
};

/// A tokenizer's files and the chat template, which stand beside a model or an adapter.
pub const TOKENIZER_FILES: [&str; 7] = [
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// More chat templates, a file each.
const MORE_TEMPLATES: &str = "additional_chat_templates";

/// Hugging Face's default shard size, bytes.
const SHARD_BYTES: usize = 5_000_000_000;

impl Transformer {
    /// Writes a directory that transformers loads, every tensor as `stored`; generation_config.json and tokenizer files are copied from `companions`.
    pub fn save_pretrained(&self, dir: &Path, stored: Stored, companions: Option<&Path>) -> Result<()> {
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        write_sharded(dir, &self.stored(), stored, SHARD_BYTES)?;
        let mut config = serde_json::to_value(&self.config)?;
        // transformers 5 knows `dtype`, and reads the older name only where that is missing.
        if let Some(fields) = config.as_object_mut() {
            fields.shift_remove("torch_dtype");
        }
        config["dtype"] = json!(stored.torch_name());
        if config.get("architectures").is_none() {
            config["architectures"] = json!([family(&self.config.model_type)?.class]);
        }
        write_file(&dir.join("config.json"), format!("{config:#}\n").as_bytes())?;
        if let Some(from) = companions {
            copy_file(from, dir, "generation_config.json")?;
            copy_tokenizer(from, dir)?;
        }
        Ok(())
    }

    /// Every tensor of a checkpoint once: what stands in it, row upon row.
    fn stored(&self) -> Vec<(String, Vec<Matrix<'_>>)> {
        let mut tensors: Vec<(String, Vec<Matrix>)> = vec![];
        for (leaf, part) in self.parts() {
            match tensors.iter_mut().rfind(|(name, _)| name == leaf.stored_name()) {
                Some((_, parts)) => parts.push(part),
                None => tensors.push((leaf.stored_name().into(), vec![part])),
            }
        }
        tensors
    }

    /// Whether f16 holds every weight: a finite one of them would not become infinite.
    pub fn fits_f16(&self) -> Result<bool> {
        for (_, matrix) in self.named() {
            let Matrix::Dense(t) = matrix else { return Ok(true) };
            let lost = |x: &f32| x.is_finite() && !f16::from_f32(*x).is_finite();
            if t.to_f32_vec()?.iter().any(lost) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Copies the tokenizer and the chat templates of the model in `from`, as far as it has them.
pub fn copy_tokenizer(from: &Path, to: &Path) -> Result<()> {
    TOKENIZER_FILES.iter().try_for_each(|name| copy_file(from, to, name))?;
    let Ok(entries) = std::fs::read_dir(from.join(MORE_TEMPLATES)) else { return Ok(()) };
    let folder = to.join(MORE_TEMPLATES);
    for entry in entries.flatten().filter(|e| e.path().extension().is_some_and(|e| e == "jinja")) {
        std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        copy_file(&from.join(MORE_TEMPLATES), &folder, &entry.file_name().to_string_lossy())?;
    }
    Ok(())
}

/// Copies a file if it is there.
pub fn copy_file(from: &Path, to: &Path, name: &str) -> Result<()> {
    let (from, to) = (from.join(name), to.join(name));
    if !from.is_file() || from == to {
        return Ok(());
    }
    let bytes = std::fs::read(&from).reading(&from)?;
    write_file(&to, &bytes)
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    crate::data::files::write_atomic(path, bytes)
}

/// Numbers in a tensor.
fn numbers(parts: &[Matrix]) -> usize {
    parts.iter().map(|t| t.shape().iter().product::<usize>()).sum()
}

fn write_sharded(
    dir: &Path,
    tensors: &[(String, Vec<Matrix>)],
    dtype: Stored,
    shard_bytes: usize,
) -> Result<()> {
    let mut shards: Vec<Vec<&(String, Vec<Matrix>)>> = vec![vec![]];
    let mut filled = 0;
    for t in tensors {
        let bytes = numbers(&t.1) * dtype.bytes();
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
    let total: usize = tensors.iter().map(|t| numbers(&t.1) * dtype.bytes()).sum();
    let index: Value = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
    write_file(&dir.join("model.safetensors.index.json"), format!("{index:#}\n").as_bytes())
}

/// Writes `tensors` as one safetensors file with PyTorch's metadata: to a temporary name, then renamed. Integers stay what they are.
pub fn write_safetensors<T: Borrow<Tensor>>(
    path: &Path,
    tensors: &[&(String, T)],
    dtype: DType,
) -> Result<()> {
    let all: Vec<(String, Vec<Matrix>)> =
        tensors.iter().map(|(name, t)| (name.clone(), vec![Matrix::Dense(t.borrow())])).collect();
    write_matrices(path, &all.iter().collect::<Vec<_>>(), dtype.try_into()?)
}

/// The same of matrices that may be blocks, which are unpacked one at a time, and of those that several are the rows of.
fn write_matrices(path: &Path, tensors: &[&(String, Vec<Matrix>)], dtype: Stored) -> Result<()> {
    let mut header = BTreeMap::new();
    header.insert("__metadata__".to_string(), json!({"format": "pt"}));
    let mut offset = 0;
    for (name, parts) in tensors {
        let t = parts.first().with_context(|| format!("tensor {name} has no part"))?;
        let (name_of, bytes) = match t.dtype() {
            DType::U32 => ("U32", 4),
            _ => (dtype.safetensors_name(), dtype.bytes()),
        };
        let end = offset + numbers(parts) * bytes;
        let mut shape = t.shape().to_vec();
        if parts.len() > 1 {
            shape[0] = parts.iter().map(|part| part.shape()[0]).sum();
        }
        let entry = json!({"dtype": name_of, "shape": shape, "data_offsets": [offset, end]});
        ensure!(header.insert(name.clone(), entry).is_none(), "two tensors are called {name}");
        offset = end;
    }
    let mut header = serde_json::to_string(&header)?;
    // The data begins at a multiple of 8 bytes.
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let partial = partial_of(path);
    let context = || format!("write {}: is the disk full?", partial.display());
    // Whatever it is a link to stays.
    remove_if_there(&partial)?;
    let mut out = BufWriter::new(std::fs::File::create(&partial).with_context(context)?);
    out.write_all(&(header.len() as u64).to_le_bytes()).with_context(context)?;
    out.write_all(header.as_bytes()).with_context(context)?;
    for (name, t) in tensors.iter().flat_map(|(name, parts)| parts.iter().map(move |t| (name, t))) {
        match t {
            Matrix::Dense(t) => write_tensor(&mut out, t, dtype),
            Matrix::Blocks(b) => write_tensor(&mut out, &b.to_dense(t.dtype())?, dtype),
        }
        .with_context(|| format!("tensor {name}"))
        .with_context(context)?;
    }
    out.into_inner().map_err(|e| e.into_error()).and_then(|f| f.sync_all()).with_context(context)?;
    std::fs::rename(&partial, path)
        .with_context(|| format!("rename {} to {}", partial.display(), path.display()))
}

fn write_tensor(out: &mut impl Write, t: &Tensor, dtype: Stored) -> Result<()> {
    match (t.dtype(), dtype) {
        (DType::U32, _) => out.write_all(cast_slice(&t.to_u32_vec()?))?,
        (DType::F32, Stored::F32) if t.gpu().is_none() => out.write_all(cast_slice(t.f32()?))?,
        (DType::Bf16, Stored::Bf16) if t.gpu().is_none() => out.write_all(cast_slice(t.bf16()?))?,
        (_, Stored::F32) => out.write_all(cast_slice(&t.to_f32_vec()?))?,
        (_, Stored::Bf16) => {
            let narrow: Vec<bf16> = t.to_f32_vec()?.into_iter().map(bf16::from_f32).collect();
            out.write_all(cast_slice(&narrow))?;
        }
        (_, Stored::F16) => {
            let wide = t.to_f32_vec()?;
            let narrow: Vec<f16> = wide.iter().copied().map(f16::from_f32).collect();
            let lost = wide.iter().zip(&narrow).find(|(x, y)| x.is_finite() && !y.is_finite());
            if let Some((x, _)) = lost {
                bail!("{x} is beyond what f16 can hold: write it as bf16 or f32");
            }
            out.write_all(cast_slice(&narrow))?;
        }
    }
    Ok(())
}
