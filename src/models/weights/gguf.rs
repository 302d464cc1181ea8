//! A decoder's tensors in a GGUF file, dequantised, and put back as Hugging Face has them: llama.cpp's converter interleaves the rows of q and k of
//! some families, and adds to the gains of others.
use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;

use crate::{
    data::gguf::Gguf,
    models::transformer::{
        config::Config,
        registry::{GgufFamily, gguf_family},
        tree::{Leaf, Place},
    },
    ops::quantize::GgmlType,
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

    /// See [`super::Source::leaf`].
    pub fn leaf(&self, leaf: &Leaf, dtype: DType) -> Result<Tensor> {
        let (name, dims) = (&leaf.place.gguf(), &leaf.dims);
        let path = self.file.path.display();
        let index = *self.by_name.get(name).with_context(|| format!("{path} has no tensor {name}"))?;
        let entry = &self.file.tensors[index];
        let kind = GgmlType::from_number(entry.ggml_type).with_context(|| {
            format!(
                "{path}: tensor {} has ggml type {}; F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K and Q6_K can be read",
                entry.name, entry.ggml_type
            )
        })?;
        let shape: Vec<usize> = entry.dims.iter().rev().copied().collect();
        ensure!(shape == *dims, "{path}: tensor {} has shape {shape:?}, expected {dims:?}", entry.name);
        let (values, block) = kind.block();
        let cols = dims[dims.len() - 1];
        let rows: usize = dims[..dims.len() - 1].iter().product();
        ensure!(
            cols.is_multiple_of(values),
            "{path}: rows of {} are not whole blocks of {values}",
            entry.name
        );
        let row_bytes = cols / values * block;
        let end = entry.offset + rows * row_bytes;
        ensure!(
            end <= self.file.map.len(),
            "{path}: tensor {} ends at byte {end}, but the file has {}: it is truncated",
            entry.name,
            self.file.map.len()
        );
        let bytes = &self.file.map[entry.offset..end];
        let rotated = matches!(leaf.place, Place::Weight(_, id) | Place::Bias(_, id) if id.is_rotated());
        let permuted = rotated && self.family.permuted;
        if permuted && dims.len() == 1 {
            return self.permuted_bias(leaf, bytes, kind);
        }
        let source = |row: usize| -> &[u8] {
            let row = if permuted { interleaved_row(row, self.head_size) } else { row };
            &bytes[row * row_bytes..][..row_bytes]
        };
        let mut out = Tensor::zeros(&leaf.name, dtype, dims)?;
        match dtype {
            DType::F32 => out
                .f32_mut()?
                .par_chunks_mut(cols)
                .enumerate()
                .for_each(|(row, o)| kind.dequantize(source(row), o)),
            _ => out
                .bf16_mut()?
                .par_chunks_mut(cols)
                .enumerate()
                .for_each(|(row, o)| kind.dequantize_bf16(source(row), o)),
        }
        if matches!(leaf.place, Place::Norm(..) | Place::FinalNorm) && self.family.gain_offset != 0.0 {
            out.f32_mut()?.iter_mut().for_each(|x| *x -= self.family.gain_offset);
        }
        Ok(out)
    }

    /// A bias of q or k, whose elements are the rows of its matrix.
    fn permuted_bias(&self, leaf: &Leaf, bytes: &[u8], kind: GgmlType) -> Result<Tensor> {
        let mut stored = vec![0.0; leaf.dims[0]];
        kind.dequantize(bytes, &mut stored);
        let values: Vec<f32> =
            (0..stored.len()).map(|row| stored[interleaved_row(row, self.head_size)]).collect();
        Tensor::from_f32(&leaf.name, &leaf.dims, &values)
    }
}

/// GGUF keeps the two halves of each head interleaved (x0 y0 x1 y1 ...); Hugging Face has all x, then all y.
fn interleaved_row(row: usize, head_size: usize) -> usize {
    let (head, i) = (row / head_size, row % head_size);
    let half = head_size / 2;
    head * head_size + (i % half) * 2 + i / half
}
