//! Hugging Face checkpoints: safetensors or PyTorch's pickles, one file or shards with an index; mapped, never read whole.
use std::{
    borrow::Cow,
    collections::HashMap,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::error::{Error, Kind};
use anyhow::{Context, Result, anyhow, ensure};
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors};

pub use super::shard_index::read_index;
use super::{
    bitsandbytes::{self, Packed},
    elements::{convert, gather, narrow, unreadable},
    finite::{check_blocks, check_finite},
    pickle,
};
use crate::{
    data::map::{Map, map_path},
    models::transformer::tree::Leaf,
    ops::quantize::{BlockFormat, Blocks, GgmlType, RowOrder},
    tensor::{Activations, DType, Tensor},
};

/// Where a tensor stands.
pub(super) struct Entry {
    file: usize,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// From the start of the file, bytes.
    offset: usize,
    pub(super) bytes: usize,
    /// See [`pickle::PickledTensor::strides`].
    strides: Option<Vec<usize>>,
    /// The shape is that of the values, the bytes are their codes.
    pub(super) packed: Option<Box<Packed>>,
}

/// The files of a checkpoint.
pub(super) struct Maps(Vec<(PathBuf, Arc<Map>)>);

impl Maps {
    /// The bytes of a tensor as they lie in its file.
    pub(super) fn bytes(&self, entry: &Entry) -> &[u8] {
        &self.0[entry.file].1[entry.offset..entry.offset + entry.bytes]
    }
}

/// The files that hold a model's weights and their indices, the preferred first.
const WEIGHT_FILES: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];

/// The tensors of a directory.
pub struct Checkpoint {
    dir: PathBuf,
    files: Maps,
    entries: HashMap<String, Entry>,
}

impl Checkpoint {
    /// Opens every weight file of `dir` and reads their headers.
    pub fn open(dir: &Path) -> Result<Checkpoint> {
        let mut checkpoint = Checkpoint { dir: dir.into(), files: Maps(vec![]), entries: HashMap::new() };
        for name in WEIGHT_FILES {
            let (single, index) = (dir.join(name), dir.join(format!("{name}.index.json")));
            if single.exists() {
                checkpoint.add_file(&single).or_kind(|m| Error::bad_input(single.display(), m))?;
            } else if index.exists() {
                checkpoint.add_shards(&index)?;
            } else {
                continue;
            }
            bitsandbytes::fold(&mut checkpoint.entries, &checkpoint.files)
                .or_kind(|message| Error::bad_input(dir.display(), message))?;
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
        let mut checkpoint = Checkpoint { dir, files: Maps(vec![]), entries: HashMap::new() };
        checkpoint.add_file(path)?;
        Ok(checkpoint)
    }

    /// Opens the shards that an index names.
    ///
    /// # Errors
    /// Files or tensors that the index names and that are not there.
    pub fn open_shards(index: &Path) -> Result<Checkpoint> {
        let dir = index.parent().unwrap_or(Path::new(".")).into();
        let mut checkpoint = Checkpoint { dir, files: Maps(vec![]), entries: HashMap::new() };
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
            let (path, file) = (self.dir.join(name), self.files.0.len());
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
                let entry =
                    Entry { file: self.files.0.len(), dtype, shape, offset, bytes, strides, packed: None };
                self.add(path, &name, entry)?;
            }
            self.files.0.push((path.into(), Arc::new(map)));
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
                file: self.files.0.len(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                offset: data + start,
                bytes: end - start,
                strides: None,
                packed: None,
            };
            self.add(path, &name, entry)?;
        }
        self.files.0.push((path.into(), Arc::new(map)));
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
        if x.dtype == y.dtype && x.strides == y.strides && x.packed.is_none() && y.packed.is_none() {
            let bytes = |e| self.files.bytes(e);
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
        Ok(self
            .files
            .bytes(entry)
            .chunks_exact(4)
            .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect())
    }

    /// The numbers of a tensor, row by row, as they stand in the mapped file where they can.
    fn bytes(&self, name: &str, dims: &[usize]) -> Result<(&Entry, Dtype, Cow<'_, [u8]>)> {
        let entry = self.entries.get(canonical(name)).with_context(|| {
            format!("{} has no tensor {name}: does config.json belong to these weights?", self.dir.display())
        })?;
        let path = &self.files.0[entry.file].0;
        ensure!(
            entry.shape == dims,
            "{}: tensor {name} has shape {:?}, expected {dims:?}: does config.json belong to these weights?",
            path.display(),
            entry.shape
        );
        if let Some(packed) = &entry.packed {
            let values = packed.values(entry, &self.files);
            return Ok((entry, Dtype::F32, bytemuck::allocation::pod_collect_to_vec(&values).into()));
        }
        let mut bytes = Cow::Borrowed(self.files.bytes(entry));
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
                let path = self.files.0[entry.file].0.display();
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

    /// The matrix of `leaf` in its quantised blocks; `None` where it stands in numbers.
    ///
    /// # Errors
    /// What is quantised and not kept so, by the tensor's name; a tensor that is not there or of another shape.
    pub fn blocks(&self, leaf: &Leaf, compute: DType) -> Result<Option<Blocks>> {
        let name = leaf.stored_name();
        let Some((entry, packed)) = self.packed(leaf) else { return Ok(None) };
        let path = self.files.0[entry.file].0.display();
        let context = || format!("{path}: tensor {name}");
        ensure!(entry.shape == leaf.stored_dims(), "{}: shape {:?} was not expected", context(), entry.shape);
        let (first, rows) = (leaf.stored_rows().start, leaf.stored_rows().len());
        let bytes = packed.blocks(entry, &self.files, first, rows).with_context(context)?;
        check_blocks(name, GgmlType::Nf4, &bytes).with_context(|| path.to_string())?;
        Ok(Some(Blocks::from_bytes(&leaf.name, &bytes, nf4_format([rows, entry.shape[1]], compute))?))
    }

    fn packed(&self, leaf: &Leaf) -> Option<(&Entry, &Packed)> {
        let entry = self.entries.get(canonical(leaf.stored_name()))?;
        Some((entry, entry.packed.as_deref()?))
    }

    /// Bytes of the blocks of `leaf`, if it would be kept in such.
    pub fn bytes_kept(&self, leaf: &Leaf) -> Option<usize> {
        self.packed(leaf)?;
        let (&cols, rows) = leaf.dims.split_last()?;
        Some(GgmlType::Nf4.row_bytes(cols)? * rows.iter().product::<usize>())
    }

    /// Refuses, by the headers alone, a checkpoint of which no matrix of `leaves` is kept in blocks, or one cannot be.
    pub fn check_kept<'a>(&self, leaves: impl Iterator<Item = &'a Leaf>) -> Result<()> {
        let mut some = false;
        for leaf in leaves {
            let Some((entry, packed)) = self.packed(leaf) else { continue };
            packed
                .check_blocks(entry, &self.files)
                .with_context(|| format!("tensor {}", leaf.stored_name()))?;
            some = true;
        }
        ensure!(some, "it keeps the blocks of a .gguf file or of bitsandbytes' NF4, and here are neither");
        Ok(())
    }

    /// Some rows of a tensor of this shape.
    fn rows(&self, name: &str, dims: &[usize], rows: Range<usize>, dtype: DType) -> Result<Tensor> {
        let (entry, from, bytes) = self.bytes(name, dims)?;
        let (path, map) = &self.files.0[entry.file];
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

fn nf4_format(shape: [usize; 2], compute: DType) -> BlockFormat {
    let (order, activations) = (RowOrder::Straight, Activations::F32);
    BlockFormat { kind: GgmlType::Nf4, shape, order, compute, activations }
}

/// `model.layers...` and `layers...` are one.
pub(super) fn canonical(name: &str) -> &str {
    name.strip_prefix("model.").unwrap_or(name)
}
