//! A decoder's tensors in a GGUF file, dequantised or as the blocks that they are, and put back as Hugging Face has them: llama.cpp's converter
//! interleaves the rows of q and k of some families, and adds to the gains of others.
use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;

use crate::error::Error;

use super::finite::{check_blocks, check_finite};
use crate::{
    data::gguf::{Gguf, GgufTensor},
    models::transformer::{
        config::Config,
        registry::{GgufFamily, gguf_family},
        tree::{Leaf, Place},
        weight::{ComputeType, Weight},
    },
    ops::quantize::{BlockFormat, Blocks, GgmlType, PackedType, RowOrder, int8},
    tensor::{Activations, DType, Tensor},
};

/// An open file and where each tensor is.
pub struct Checkpoint {
    file: Gguf,
    by_name: HashMap<String, usize>,
    head_size: usize,
    family: &'static GgufFamily,
}

impl Checkpoint {
    /// Of a file whose configuration is `config`.
    pub fn new(file: Gguf, config: &Config) -> Result<Checkpoint> {
        let by_name = file.tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        let (_, family) = gguf_family(&file)?;
        Ok(Checkpoint { file, by_name, head_size: config.head_size(), family })
    }

    /// The file.
    pub(super) fn file(&self) -> &Gguf {
        &self.file
    }

    /// The tensors' names.
    pub fn names(&self) -> Vec<&str> {
        self.file.tensors.iter().map(|t| t.name.as_str()).collect()
    }

    /// Type (`None`: one that cannot be read) and number of elements of each tensor.
    pub fn types(&self) -> impl Iterator<Item = (Option<GgmlType>, usize)> {
        self.file.tensors.iter().map(|t| (GgmlType::from_number(t.ggml_type), t.dims.iter().product()))
    }

    /// See [`super::WeightSource::leaf`].
    pub fn leaf(&self, leaf: &Leaf, dtype: DType) -> Result<Tensor> {
        let entry = self.entry(leaf)?;
        let mut t = match PackedType::from_number(entry.ggml_type) {
            Some(kind) => self.unpacked(entry, leaf, kind, dtype)?,
            None => self.blocks(leaf, dtype, Activations::F32)?.to_dense(dtype)?.into_shape(&leaf.dims)?,
        };
        check_finite(&t).with_context(|| self.file.path.display().to_string())?;
        let offset = self.family.gain_offset;
        if matches!(leaf.place, Place::Norm(..) | Place::FinalNorm) && offset != 0.0 {
            t = Tensor::from_f32(
                &leaf.name,
                &leaf.dims,
                &t.to_f32_vec()?.iter().map(|x| x - offset).collect::<Vec<_>>(),
            )?;
        }
        Ok(t)
    }

    /// See [`super::WeightSource::weight`].
    pub fn weight(&self, leaf: &Leaf, compute: ComputeType, activations: Activations) -> Result<Weight> {
        if activations == Activations::Int8 {
            self.check_int8(leaf)?;
        }
        if PackedType::from_number(self.entry(leaf)?.ggml_type).is_some() {
            return self.leaf(leaf, compute.dtype()).map(Weight::Dense);
        }
        let blocks = self.blocks(leaf, compute.dtype(), activations)?;
        let format = blocks.format();
        let as_it_is = match format.kind {
            GgmlType::F32 => compute == ComputeType::F32,
            GgmlType::Bf16 => compute == ComputeType::Bf16,
            _ => false,
        };
        if as_it_is && format.order == RowOrder::Straight {
            let entry = self.entry(leaf)?;
            let map = self.file.maps[entry.part].clone();
            let offset = self.offset(leaf, format.kind.row_bytes(format.shape[1]))?;
            // Where it is misaligned, which no writer of today does, it is read as blocks of one value.
            if let Ok(t) = Tensor::mapped(&leaf.name, map, offset, compute.dtype(), &leaf.dims) {
                check_finite(&t).with_context(|| self.file.path.display().to_string())?;
                return Ok(Weight::Dense(t));
            }
        }
        Ok(Weight::Blocks(blocks))
    }

    /// Refuses a matrix that has no product with activations in int8.
    pub fn check_int8(&self, leaf: &Leaf) -> Result<()> {
        let entry = self.entry(leaf)?;
        let kind = match PackedType::from_number(entry.ggml_type) {
            Some(kind) => kind.name(),
            None => match GgmlType::readable(entry.ggml_type)? {
                kind if int8::group_of(kind).is_some() => return Ok(()),
                kind => kind.name(),
            },
        };
        let message =
            format!("{}: tensor {} is {kind}: {}", self.file.path.display(), entry.name, int8::only());
        Err(Error::setting("activations", message).into())
    }

    /// What [`Checkpoint::weight`] takes in memory, bytes.
    pub fn bytes_kept(&self, leaf: &Leaf, compute: ComputeType) -> Result<usize> {
        match PackedType::from_number(self.entry(leaf)?.ggml_type) {
            Some(_) => Ok(leaf.dims.iter().product::<usize>() * compute.dtype().bytes()),
            None => {
                let BlockFormat { kind, shape: [rows, cols], .. } = self.format(leaf, compute.dtype())?;
                let row = kind.row_bytes(cols).with_context(|| format!("{}: no whole blocks", leaf.name))?;
                Ok(rows * row)
            }
        }
    }

    fn entry(&self, leaf: &Leaf) -> Result<&GgufTensor> {
        let (path, name) = (self.file.path.display(), leaf.gguf_name());
        let index = *self.by_name.get(&name).with_context(|| format!("{path} has no tensor {name}"))?;
        Ok(&self.file.tensors[index])
    }

    fn check_shape(&self, entry: &GgufTensor, dims: &[usize]) -> Result<()> {
        let shape: Vec<usize> = entry.dims.iter().rev().copied().collect();
        let path = self.file.path.display();
        ensure!(shape == *dims, "{path}: tensor {} has shape {shape:?}, expected {dims:?}", entry.name);
        Ok(())
    }

    /// Where the leaf's rows begin in the file, bytes.
    fn offset(&self, leaf: &Leaf, row_bytes: Option<usize>) -> Result<usize> {
        let (entry, first) = (self.entry(leaf)?, leaf.gguf_first());
        let before = if first == 0 { Some(0) } else { row_bytes.and_then(|n| n.checked_mul(first)) };
        let offset = before.and_then(|n| n.checked_add(entry.offset));
        offset.with_context(|| format!("tensor {}: its rows are no whole blocks", entry.name))
    }

    /// How the rows of a tensor are put back.
    fn order(&self, place: Place) -> RowOrder {
        let rotated = matches!(place, Place::Weight(_, id) | Place::Bias(_, id) if id.is_rotated());
        if rotated && self.family.permuted {
            RowOrder::Interleaved(self.head_size)
        } else {
            RowOrder::Straight
        }
    }

    /// A matrix of a type that is never kept as blocks.
    fn unpacked(&self, entry: &GgufTensor, leaf: &Leaf, kind: PackedType, dtype: DType) -> Result<Tensor> {
        let context = || format!("{}: tensor {} ({})", self.file.path.display(), entry.name, kind.name());
        self.check_shape(entry, &leaf.gguf_dims())?;
        let (values, size) = kind.block();
        let cols = leaf.dims.last().copied().filter(|cols| cols.is_multiple_of(values));
        let cols = cols.with_context(|| format!("{}: its rows are no whole blocks", context()))?;
        let rows = leaf.dims.iter().product::<usize>() / cols;
        let row_bytes = cols / values * size;
        let offset = self.offset(leaf, Some(row_bytes))?;
        let end = rows.checked_mul(row_bytes).and_then(|n| n.checked_add(offset));
        let bytes = end.and_then(|end| self.file.maps[entry.part].get(offset..end));
        let bytes =
            bytes.with_context(|| format!("{}: it leaves the file, which is truncated", context()))?;
        let mut out = vec![0.0; rows * cols];
        let order = self.order(leaf.place);
        out.par_chunks_mut(cols).enumerate().for_each(|(row, out)| {
            let from = match order {
                RowOrder::Straight => row,
                RowOrder::Interleaved(head) => {
                    let (start, r) = (row / head * head, row % head);
                    start + r % (head / 2) * 2 + r / (head / 2)
                }
            };
            kind.dequantize(&bytes[from * row_bytes..][..row_bytes], out);
        });
        let mut t = Tensor::zeros(&leaf.name, dtype, &leaf.dims)?;
        t.write_f32(&out)?;
        Ok(t)
    }

    /// How the blocks of a tensor lie in the file, read with activations in f32.
    fn format(&self, leaf: &Leaf, compute: DType) -> Result<BlockFormat> {
        let (path, entry, dims) = (self.file.path.display(), self.entry(leaf)?, &leaf.dims);
        self.check_shape(entry, &leaf.gguf_dims())?;
        let kind =
            GgmlType::readable(entry.ggml_type).with_context(|| format!("{path}: tensor {}", entry.name))?;
        let (&cols, rows) = dims.split_last().with_context(|| format!("{} has no dimension", leaf.name))?;
        let mut format = BlockFormat {
            kind,
            shape: [rows.iter().product(), cols],
            order: self.order(leaf.place),
            compute,
            activations: Activations::F32,
        };
        // A bias has a row for each row of its matrix.
        if format.order != RowOrder::Straight && rows.is_empty() {
            format.shape = [cols, 1];
        }
        Ok(format)
    }

    /// A tensor of any rank as blocks in the mapped file; nothing is read yet.
    fn blocks(&self, leaf: &Leaf, compute: DType, activations: Activations) -> Result<Blocks> {
        let (path, entry) = (self.file.path.display(), self.entry(leaf)?);
        let format = BlockFormat { activations, ..self.format(leaf, compute)? };
        let kind = format.kind;
        let map = &self.file.maps[entry.part];
        let offset = self.offset(leaf, kind.row_bytes(format.shape[1]))?;
        let blocks = Blocks::mapped(&leaf.name, map.clone(), offset, format)
            .with_context(|| format!("{path}: tensor {}", entry.name))?;
        check_blocks(&entry.name, kind, &map[offset..][..blocks.bytes()])
            .with_context(|| path.to_string())?;
        Ok(blocks)
    }
}
