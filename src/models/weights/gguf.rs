//! A decoder's tensors in a GGUF file, dequantised or as the blocks that they are, and put back as Hugging Face has them: llama.cpp's converter
//! interleaves the rows of q and k of some families, and adds to the gains of others.
use std::collections::HashMap;

use anyhow::{Context, Result, ensure};

use crate::{
    data::gguf::{Gguf, GgufTensor},
    models::transformer::{
        config::Config,
        registry::{GgufFamily, gguf_family},
        tree::{Leaf, Place},
        weight::{ComputeType, Weight},
    },
    ops::quantize::{BlockFormat, Blocks, GgmlType, RowOrder},
    tensor::{DType, Tensor},
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

    /// The tensors' names.
    pub fn names(&self) -> Vec<&str> {
        self.file.tensors.iter().map(|t| t.name.as_str()).collect()
    }

    /// See [`super::WeightSource::leaf`].
    pub fn leaf(&self, leaf: &Leaf, dtype: DType) -> Result<Tensor> {
        let mut t = self.blocks(leaf, dtype)?.to_dense(dtype)?.into_shape(&leaf.dims)?;
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
    pub fn weight(&self, leaf: &Leaf, compute: ComputeType) -> Result<Weight> {
        let blocks = self.blocks(leaf, compute.dtype())?;
        let format = blocks.format();
        let as_it_is = match format.kind {
            GgmlType::F32 => compute == ComputeType::F32,
            GgmlType::Bf16 => compute == ComputeType::Bf16,
            _ => false,
        };
        if as_it_is && format.order == RowOrder::Straight {
            let (map, offset) = (self.file.map.clone(), self.entry(leaf)?.offset);
            // Where it is misaligned, which no writer of today does, it is read as blocks of one value.
            if let Ok(t) = Tensor::mapped(&leaf.name, map, offset, compute.dtype(), &leaf.dims) {
                return Ok(Weight::Dense(t));
            }
        }
        Ok(Weight::Blocks(blocks))
    }

    fn entry(&self, leaf: &Leaf) -> Result<&GgufTensor> {
        let (path, name) = (self.file.path.display(), leaf.place.gguf());
        let index = *self.by_name.get(&name).with_context(|| format!("{path} has no tensor {name}"))?;
        Ok(&self.file.tensors[index])
    }

    /// A tensor of any rank as blocks in the mapped file; nothing is read yet.
    fn blocks(&self, leaf: &Leaf, compute: DType) -> Result<Blocks> {
        let (path, entry, dims) = (self.file.path.display(), self.entry(leaf)?, &leaf.dims);
        let kind =
            GgmlType::readable(entry.ggml_type).with_context(|| format!("{path}: tensor {}", entry.name))?;
        let shape: Vec<usize> = entry.dims.iter().rev().copied().collect();
        ensure!(shape == *dims, "{path}: tensor {} has shape {shape:?}, expected {dims:?}", entry.name);
        let (&cols, rows) = dims.split_last().with_context(|| format!("{} has no dimension", leaf.name))?;
        let mut format =
            BlockFormat { kind, shape: [rows.iter().product(), cols], order: RowOrder::Straight, compute };
        let rotated = matches!(leaf.place, Place::Weight(_, id) | Place::Bias(_, id) if id.is_rotated());
        if rotated && self.family.permuted {
            format.order = RowOrder::Interleaved(self.head_size);
            // A bias has a row for each row of its matrix.
            if rows.is_empty() {
                format.shape = [cols, 1];
            }
        }
        Blocks::mapped(&leaf.name, self.file.map.clone(), entry.offset, format)
            .with_context(|| format!("{path}: tensor {}", entry.name))
    }
}
