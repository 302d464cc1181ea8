//! Hugging Face checkpoints: safetensors or PyTorch's pickles, one file or shards with an index; mapped, never read whole.
use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::data::files::FileContext;
use crate::error::{Error, Kind};
use anyhow::{Context, Result, anyhow, ensure};
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::{finite::check_finite, pickle};
use crate::{
    data::map::{Map, map_path},
    models::transformer::tree::Leaf,
    ops::quantize::GgmlType,
    tensor::{DType, Tensor},
};

struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// From the start of the file, bytes.
    offset: usize,
    bytes: usize,
    /// See [`pickle::PickledTensor::strides`].
    strides: Option<Vec<usize>>,
}

/// The files that hold a model's weights and their indices, the preferred first.
const WEIGHT_FILES: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];

/// The tensors of a directory.
pub struct Checkpoint {
    dir: PathBuf,
    files: Vec<(PathBuf, Arc<Map>)>,
    entries: HashMap<String, Entry>,
}

impl Checkpoint {
    /// Opens every weight file of `dir` and reads their headers.
    pub fn open(dir: &Path) -> Result<Checkpoint> {
        let mut checkpoint = Checkpoint { dir: dir.into(), files: vec![], entries: HashMap::new() };
        for name in WEIGHT_FILES {
            let (single, index) = (dir.join(name), dir.join(format!("{name}.index.json")));
            if single.exists() {
                checkpoint.add_file(&single).or_kind(|m| Error::bad_input(single.display(), m))?;
            } else if index.exists() {
                checkpoint.add_shards(&index)?;
            } else {
                continue;
            }
            return Ok(checkpoint);
        }
        let message = format!(
            "{0} has no model.safetensors, no pytorch_model.bin and no index of either ({1}.index.json, {2}.index.json): download the model's weights",
            dir.display(),
            WEIGHT_FILES[0],
            WEIGHT_FILES[1]
        );
        Err(Error::not_found(&dir.join(WEIGHT_FILES[0]), message).into())
    }

    /// Opens one file, e.g. adapter_model.safetensors; a `.bin`, `.ckpt`, `.pt` or `.pth` is a pickle of PyTorch.
    pub fn open_file(path: &Path) -> Result<Checkpoint> {
        let dir = path.parent().unwrap_or(Path::new(".")).into();
        let mut checkpoint = Checkpoint { dir, files: vec![], entries: HashMap::new() };
        checkpoint.add_file(path)?;
        Ok(checkpoint)
    }

    /// Opens the shards that an index names.
    ///
    /// # Errors
    /// Files or tensors that the index names and that are not there.
    pub fn open_shards(index: &Path) -> Result<Checkpoint> {
        let dir = index.parent().unwrap_or(Path::new(".")).into();
        let mut checkpoint = Checkpoint { dir, files: vec![], entries: HashMap::new() };
        checkpoint.add_shards(index)?;
        Ok(checkpoint)
    }

    fn add_shards(&mut self, index: &Path) -> Result<()> {
        let shards = read_index(index)?;
        let missing: Vec<&str> =
            shards.keys().filter(|name| !self.dir.join(name).exists()).map(String::as_str).collect();
        ensure!(
            missing.is_empty(),
            "{} of the {} files that {} names are not there ({}): the download is incomplete",
            missing.len(),
            shards.len(),
            index.display(),
            missing[..missing.len().min(3)].join(", ")
        );
        for (name, tensors) in &shards {
            let (path, file) = (self.dir.join(name), self.files.len());
            self.add_file(&path).or_kind(|m| Error::bad_input(path.display(), m))?;
            let lacks = |t: &&String| self.entries.get(canonical(t)).is_none_or(|e| e.file != file);
            if let Some(tensor) = tensors.iter().find(lacks) {
                let message = format!(
                    "{} has no tensor {tensor}, which {} says is in it: the files are of two downloads, or one is incomplete",
                    path.display(),
                    index.display()
                );
                return Err(Error::bad_input(path.display(), message).into());
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, name: &str, entry: Entry) -> Result<()> {
        let before = self.entries.insert(canonical(name).to_string(), entry);
        ensure!(
            before.is_none(),
            "{}: tensor {name} is there twice, here or in another shard",
            path.display()
        );
        Ok(())
    }

    fn add_file(&mut self, path: &Path) -> Result<()> {
        let map = map_path(path)?;
        ensure!(
            !map.starts_with(b"version https://git-lfs"),
            "{} is a Git LFS pointer, not the weights themselves: fetch them with `git lfs pull`, or with the hub's own client",
            path.display()
        );
        if path.extension().is_some_and(|e| ["bin", "ckpt", "pt", "pth"].iter().any(|p| e == *p)) {
            for t in pickle::read(path, &map)? {
                let pickle::PickledTensor { name, dtype, shape, strides, offset, bytes } = t;
                let entry = Entry { file: self.files.len(), dtype, shape, offset, bytes, strides };
                self.add(path, &name, entry)?;
            }
            self.files.push((path.into(), Arc::new(map)));
            return Ok(());
        }
        let broken = || {
            format!(
                "{} is not a usable safetensors file: it may be truncated; fetch it again",
                path.display()
            )
        };
        let (header, metadata) =
            SafeTensors::read_metadata(&map).map_err(|e| anyhow!("{e:?}")).with_context(broken)?;
        let data = header + 8;
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            ensure!(start <= end && data + end <= map.len(), "{}: tensor {name} leaves the file", broken());
            let entry = Entry {
                file: self.files.len(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                offset: data + start,
                bytes: end - start,
                strides: None,
            };
            self.add(path, &name, entry)?;
        }
        self.files.push((path.into(), Arc::new(map)));
        Ok(())
    }

    /// True if there is a tensor of this name, with or without the `model.` in front.
    pub fn has(&self, name: &str) -> bool {
        self.entries.contains_key(canonical(name))
    }

    /// Calls a tensor by another name.
    pub(super) fn rename(&mut self, from: &str, to: &str) {
        if let Some(entry) = self.entries.remove(canonical(from)) {
            self.entries.insert(canonical(to).into(), entry);
        }
    }

    /// True if two tensors have one shape and the same values.
    pub(super) fn equal(&self, a: &str, b: &str) -> Result<bool> {
        let entry =
            |name: &str| self.entries.get(canonical(name)).with_context(|| format!("no tensor {name}"));
        let (x, y) = (entry(a)?, entry(b)?);
        if x.shape != y.shape {
            return Ok(false);
        }
        if x.dtype == y.dtype && x.strides == y.strides {
            let bytes = |e: &Entry| &self.files[e.file].1[e.offset..e.offset + e.bytes];
            return Ok(bytes(x).par_chunks(1 << 20).eq(bytes(y).par_chunks(1 << 20)));
        }
        let shape = x.shape.clone();
        Ok(self.tensor(a, &shape, DType::F32)?.f32()? == self.tensor(b, &shape, DType::F32)?.f32()?)
    }

    /// All names, sorted, without a leading `model.`.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.entries.keys().map(String::as_str).collect();
        names.sort();
        names
    }

    /// Element type and number of elements of each tensor.
    pub fn types(&self) -> impl Iterator<Item = (Dtype, usize)> {
        self.entries.values().map(|e| (e.dtype, e.shape.iter().product()))
    }

    /// The shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(canonical(name)).map(|e| e.shape.as_slice())
    }

    /// A tensor of 32-bit integers.
    pub fn integers(&self, name: &str) -> Result<Vec<u32>> {
        let entry = self.entries.get(canonical(name)).with_context(|| format!("no tensor {name}"))?;
        ensure!(matches!(entry.dtype, Dtype::I32 | Dtype::U32), "tensor {name} holds {:?}", entry.dtype);
        let bytes = &self.files[entry.file].1[entry.offset..entry.offset + entry.bytes];
        Ok(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    /// The numbers of a tensor, row by row, as they stand in the mapped file where they can.
    fn bytes(&self, name: &str, dims: &[usize]) -> Result<(&Entry, Dtype, Cow<'_, [u8]>)> {
        let entry = self.entries.get(canonical(name)).with_context(|| {
            format!("{} has no tensor {name}: does config.json belong to these weights?", self.dir.display())
        })?;
        let (path, map) = &self.files[entry.file];
        ensure!(
            entry.shape == dims,
            "{}: tensor {name} has shape {:?}, expected {dims:?}: does config.json belong to these weights?",
            path.display(),
            entry.shape
        );
        let mut bytes = Cow::Borrowed(&map[entry.offset..entry.offset + entry.bytes]);
        let mut from = entry.dtype;
        if let Some(strides) = &entry.strides {
            bytes = gather(&bytes, &entry.shape, strides, from).into();
        }
        if from == Dtype::F64 {
            let narrow = narrow(&bytes).with_context(|| format!("{}: tensor {name}", path.display()))?;
            (bytes, from) = (narrow.into(), Dtype::F32);
        }
        Ok((entry, from, bytes))
    }

    /// The numbers of a tensor, row by row, and their type: for reading some rows at a time.
    pub(super) fn numbers(&self, name: &str, dims: &[usize]) -> Result<(GgmlType, Cow<'_, [u8]>)> {
        let (entry, from, bytes) = self.bytes(name, dims)?;
        let kind = match from {
            Dtype::F32 => GgmlType::F32,
            Dtype::F16 => GgmlType::F16,
            Dtype::BF16 => GgmlType::Bf16,
            other => {
                let path = self.files[entry.file].0.display();
                return Err(unreadable(other).context(format!("{path}: tensor {name}")));
            }
        };
        Ok((kind, bytes))
    }

    /// The tensor as `dtype`, in place in the mapped file where it stands there in that type. One that holds a NaN or an infinity is an error.
    pub fn tensor(&self, name: &str, dims: &[usize], dtype: DType) -> Result<Tensor> {
        self.rows(name, dims, 0..dims.first().copied().unwrap_or(1), dtype)
    }

    /// The same of a decoder's tensor, which may be some rows of one.
    pub fn leaf(&self, leaf: &Leaf, dtype: DType) -> Result<Tensor> {
        let t = self.rows(leaf.stored_name(), &leaf.stored_dims(), leaf.stored_rows(), dtype)?;
        Ok(if leaf.whole.is_some() { t.renamed(&leaf.name) } else { t })
    }

    /// Some rows of a tensor of this shape.
    fn rows(&self, name: &str, dims: &[usize], rows: Range<usize>, dtype: DType) -> Result<Tensor> {
        let (entry, from, bytes) = self.bytes(name, dims)?;
        let (path, map) = &self.files[entry.file];
        let in_place = matches!(bytes, Cow::Borrowed(_));
        let row = bytes.len() / dims.first().map_or(1, |&rows| rows.max(1));
        let range = rows.start * row..rows.end * row;
        let start = entry.offset + range.start;
        let bytes = bytes.get(range).context("rows beyond a tensor")?;
        let mut dims = dims.to_vec();
        if let Some(first) = dims.first_mut() {
            *first = rows.len();
        }
        let same = matches!((from, dtype), (Dtype::F32, DType::F32) | (Dtype::BF16, DType::Bf16));
        if same && in_place && (bytes.as_ptr() as usize).is_multiple_of(dtype.bytes()) {
            let mapped = Tensor::mapped(name, map.clone(), start, dtype, &dims)?;
            check_finite(&mapped).with_context(|| path.display().to_string())?;
            return Ok(mapped);
        }
        let mut out = Tensor::zeros(name, dtype, &dims)?;
        convert(&mut out, from, bytes).with_context(|| format!("{}: tensor {name}", path.display()))?;
        check_finite(&out).with_context(|| path.display().to_string())?;
        Ok(out)
    }
}

/// `model.layers...` and `layers...` are one.
pub(super) fn canonical(name: &str) -> &str {
    name.strip_prefix("model.").unwrap_or(name)
}

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

/// The elements of a strided view, row by row. The view lies inside `bytes` (checked when the file was opened).
pub(super) fn gather(bytes: &[u8], shape: &[usize], strides: &[usize], dtype: Dtype) -> Vec<u8> {
    let size = dtype.bitsize() / 8;
    let elements: usize = shape.iter().product();
    let mut out = Vec::with_capacity(elements * size);
    for i in 0..elements {
        let (mut rest, mut at) = (i, 0);
        for (&d, &stride) in shape.iter().zip(strides).rev() {
            at += rest % d * stride;
            rest /= d;
        }
        out.extend_from_slice(&bytes[at * size..][..size]);
    }
    out
}

/// 64-bit floats as 32-bit ones, rounded to nearest.
pub(super) fn narrow(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(bytes.len() / 2);
    for b in bytes.chunks_exact(8) {
        let wide = f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]);
        let x = wide as f32;
        ensure!(
            x.is_finite() || !wide.is_finite(),
            "{wide:e}, a 64-bit float, is beyond what 32 bits can hold"
        );
        out.extend(x.to_le_bytes());
    }
    Ok(out)
}

/// Why elements of a type are not read.
fn unreadable(dtype: Dtype) -> anyhow::Error {
    match dtype {
        Dtype::F8_E4M3 | Dtype::F8_E5M2 => anyhow!(
            "element type {dtype:?}: the weights are quantised (FP8), which is not read: use the unquantised model, or a GGUF file of it"
        ),
        other => anyhow!("element type {other:?} is not supported (F64, F32, F16, BF16 are)"),
    }
}

const BLOCK: usize = 1 << 16;

/// out = bytes, element by element through f32.
fn convert(out: &mut Tensor, from: Dtype, bytes: &[u8]) -> Result<()> {
    let widen: fn(&[u8]) -> f32 = match from {
        Dtype::F32 => |b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        Dtype::F16 => |b| f16::from_le_bytes([b[0], b[1]]).to_f32(),
        Dtype::BF16 => |b| bf16::from_le_bytes([b[0], b[1]]).to_f32(),
        other => return Err(unreadable(other)),
    };
    let size = if from == Dtype::F32 { 4 } else { 2 };
    ensure!(bytes.len() == out.len() * size, "{} bytes for {} elements", bytes.len(), out.len());
    match out.dtype() {
        DType::F32 => {
            out.f32_mut()?.par_chunks_mut(BLOCK).zip(bytes.par_chunks(BLOCK * size)).for_each(|(o, b)| {
                o.iter_mut().zip(b.chunks_exact(size)).for_each(|(o, b)| *o = widen(b));
            })
        }
        DType::Bf16 => {
            out.bf16_mut()?.par_chunks_mut(BLOCK).zip(bytes.par_chunks(BLOCK * size)).for_each(|(o, b)| {
                o.iter_mut().zip(b.chunks_exact(size)).for_each(|(o, b)| *o = bf16::from_f32(widen(b)));
            })
        }
        DType::U32 => return Err(anyhow!("weights are not integers")),
    }
    Ok(())
}
