//! PyTorch's pickled checkpoints written as safetensors, tensor by tensor: bytes go from the mapped file to the new one, whatever the size.
use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::{
    elements::{gather, narrow},
    pickle::{self, PickledTensor},
};
use crate::data::{
    files::write_atomic,
    map::{self, map_path},
};

/// What was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Converted {
    /// Tensors in the files.
    pub read: usize,
    /// Tensors written.
    pub tensors: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Names that shared another's memory, with that other: not written twice (tied weights).
    pub aliases: Vec<(String, String)>,
    /// Buffers left out: integers, masks.
    pub left_out: Vec<String>,
    /// Tensors of 64-bit floats, written with 32 bits.
    pub narrowed: Vec<String>,
}

/// Writes `DIR/model.safetensors` from one pickle, or one shard for each of several and their index; `wanted` chooses by name. Numbers
/// keep their type, so that nothing is rounded; only 64-bit floats, which no model computes with, become 32-bit ones.
pub fn pickles_to_safetensors(
    files: &[PathBuf],
    dir: &Path,
    wanted: &dyn Fn(&str) -> bool,
) -> Result<Converted> {
    let mut done = Converted::default();
    let mut weight_map = Map::new();
    for (i, file) in files.iter().enumerate() {
        let name = match files.len() {
            1 => "model.safetensors".to_string(),
            n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
        };
        let map = map_path(file)?;
        let tensors = select(pickle::read(file, &map)?, wanted, &mut done);
        for t in &tensors {
            let before = weight_map.insert(t.name.clone(), json!(name));
            ensure!(before.is_none(), "{}: tensor {} is in another shard too", file.display(), t.name);
        }
        write(&dir.join(&name), &map, &tensors, &done.aliases)?;
        done.tensors += tensors.len();
        done.bytes += tensors.iter().map(|t| size(t) as u64).sum::<u64>();
    }
    ensure!(done.tensors > 0, "there is no tensor to write in {files:?}: is it a list of weights?");
    if files.len() > 1 {
        let index = json!({"metadata": {"total_size": done.bytes}, "weight_map": weight_map});
        write_atomic(&dir.join("model.safetensors.index.json"), format!("{index:#}\n").as_bytes())?;
    }
    Ok(done)
}

/// Floating-point tensors, each memory once.
fn select(
    all: Vec<PickledTensor>,
    wanted: &dyn Fn(&str) -> bool,
    done: &mut Converted,
) -> Vec<PickledTensor> {
    let mut first: HashMap<(usize, usize, Vec<usize>, Option<Vec<usize>>), String> = HashMap::new();
    let mut out = vec![];
    done.read += all.len();
    for t in all {
        if !matches!(t.dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16) || !wanted(&t.name) {
            done.left_out.push(t.name);
            continue;
        }
        let place = (t.offset, t.bytes, t.shape.clone(), t.strides.clone());
        match first.get(&place).filter(|_| t.bytes > 0) {
            Some(other) => done.aliases.push((t.name, other.clone())),
            None => {
                first.insert(place, t.name.clone());
                if t.dtype == Dtype::F64 {
                    done.narrowed.push(t.name.clone());
                }
                out.push(t);
            }
        }
    }
    out
}

/// The type that a tensor is written with.
fn written(t: &PickledTensor) -> Dtype {
    if t.dtype == Dtype::F64 { Dtype::F32 } else { t.dtype }
}

fn size(t: &PickledTensor) -> usize {
    t.shape.iter().product::<usize>() * written(t).bitsize() / 8
}

fn write(path: &Path, map: &map::Map, tensors: &[PickledTensor], aliases: &[(String, String)]) -> Result<()> {
    // As safetensors.torch keeps tied names: in the metadata.
    let mut metadata = Map::from_iter([("format".to_string(), json!("pt"))]);
    metadata.extend(aliases.iter().map(|(alias, kept)| (alias.clone(), json!(kept))));
    let mut header: BTreeMap<String, Value> = BTreeMap::new();
    header.insert("__metadata__".into(), Value::Object(metadata));
    let mut offset = 0;
    for t in tensors {
        let end = offset + size(t);
        let entry = json!({"dtype": written(t), "shape": t.shape, "data_offsets": [offset, end]});
        ensure!(header.insert(t.name.clone(), entry).is_none(), "two tensors are called {}", t.name);
        offset = end;
    }
    let mut header = serde_json::to_string(&header)?;
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let context = || format!("write {}: is the disk full?", path.display());
    let mut out = BufWriter::new(File::create(path).with_context(context)?);
    out.write_all(&(header.len() as u64).to_le_bytes()).with_context(context)?;
    out.write_all(header.as_bytes()).with_context(context)?;
    for t in tensors {
        let bytes = map.get(t.offset..t.offset + t.bytes).context("a tensor leaves the file")?;
        let mut bytes = match &t.strides {
            None => Cow::Borrowed(bytes),
            Some(strides) => gather(bytes, &t.shape, strides, t.dtype).into(),
        };
        if t.dtype == Dtype::F64 {
            bytes = narrow(&bytes).with_context(|| format!("tensor {}", t.name))?.into();
        }
        out.write_all(&bytes).with_context(context)?;
    }
    out.into_inner().map_err(|e| e.into_error()).and_then(|f| f.sync_all()).with_context(context)
}
