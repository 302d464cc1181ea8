//! A weight as the ops take it: a tensor, or blocks.
use std::fmt;

use anyhow::{Result, ensure};

use super::{Blocks, launch_dequantize};
use crate::{
    device::Device,
    ops::{
        checks::check,
        launch::{check_dtype, gpu_of},
    },
    tensor::{Activations, DType, Tensor, refuse_overlap},
};

/// A matrix of weights that an op reads. Results over blocks have the bits of the same op over the tensor that they unpack to, in their compute type.
#[derive(Clone, Copy)]
pub enum Matrix<'a> {
    /// F32 or Bf16.
    Dense(&'a Tensor),
    /// Unpacked as they are read.
    Blocks(&'a Blocks),
}

impl<'a> From<&'a Tensor> for Matrix<'a> {
    fn from(t: &'a Tensor) -> Matrix<'a> {
        Matrix::Dense(t)
    }
}
impl<'a> From<&'a mut Tensor> for Matrix<'a> {
    fn from(t: &'a mut Tensor) -> Matrix<'a> {
        Matrix::Dense(t)
    }
}
impl<'a> From<&'a Blocks> for Matrix<'a> {
    fn from(b: &'a Blocks) -> Matrix<'a> {
        Matrix::Blocks(b)
    }
}

impl fmt::Debug for Matrix<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Matrix::Dense(t) => t.fmt(f),
            Matrix::Blocks(b) => b.fmt(f),
        }
    }
}

impl Matrix<'_> {
    /// Dimensions.
    pub fn shape(&self) -> &[usize] {
        match self {
            Matrix::Dense(t) => t.shape(),
            Matrix::Blocks(b) => &b.format.shape,
        }
    }
    /// (product of the leading dimensions, last dimension).
    pub fn rows_cols(&self) -> (usize, usize) {
        match self {
            Matrix::Dense(t) => t.rows_cols(),
            Matrix::Blocks(b) => (b.format.shape[0], b.format.shape[1]),
        }
    }
    /// The type that products read.
    pub fn dtype(&self) -> DType {
        match self {
            Matrix::Dense(t) => t.dtype(),
            Matrix::Blocks(b) => b.format.compute,
        }
    }
    /// What products read of their input.
    pub fn activations(&self) -> Activations {
        match self {
            Matrix::Dense(_) => Activations::F32,
            Matrix::Blocks(b) => b.format.activations,
        }
    }
    /// Where it is.
    pub fn device(&self) -> Device {
        match self {
            Matrix::Dense(t) => t.device(),
            Matrix::Blocks(b) => b.device(),
        }
    }

    /// Bytes as it is kept: of blocks, the blocks'.
    pub fn bytes(&self) -> usize {
        match self {
            Matrix::Dense(t) => t.bytes(),
            Matrix::Blocks(b) => b.bytes(),
        }
    }
    /// The values as products read them, widened to f32, from wherever they are.
    pub fn to_f32_vec(&self) -> Result<Vec<f32>> {
        match self {
            Matrix::Dense(t) => t.to_f32_vec(),
            Matrix::Blocks(b) => b.to_dense(self.dtype())?.to_f32_vec(),
        }
    }

    /// Errors with the op's name and all operands unless `ok`.
    pub(crate) fn check(&self, ok: bool, op: &str, tensors: &[&Tensor]) -> Result<()> {
        match self {
            Matrix::Dense(t) => check(ok, op, &[tensors, &[*t]].concat()),
            Matrix::Blocks(b) => {
                ensure!(ok, "{op}: shapes or settings do not fit together: {tensors:?} and {b:?}");
                Ok(())
            }
        }
    }

    /// Refuses outputs that share memory with it.
    pub(crate) fn refuse_overlap(&self, outs: &[&Tensor]) -> Result<()> {
        // Blocks are in a mapping, or in memory that no tensor shows.
        if let Matrix::Dense(t) = self { refuse_overlap(outs, &[*t]) } else { Ok(()) }
    }

    /// Calls `f` with a tensor if that is where the op should go: the tensor itself, or what blocks on a GPU unpack to. `None`: blocks in main memory, like
    /// `other`.
    pub(crate) fn dense<T>(
        &self,
        op: &str,
        other: &Tensor,
        f: impl FnOnce(&Tensor) -> Result<T>,
    ) -> Result<Option<T>> {
        match self {
            Matrix::Dense(t) => f(t).map(Some),
            Matrix::Blocks(b) => {
                if b.device() == Device::Cpu {
                    let gpu = other.gpu();
                    ensure!(gpu.is_none(), "{op}: {other:?} is on a GPU, but {b:?} is in main memory");
                    return Ok(None);
                }
                b.on_gpu(f)
            }
        }
    }
}

/// out (N, C) = rows `tokens` (N) of blocks on a GPU; a row that is not there is NaN. The caller checked the shapes.
pub(crate) fn gather_on_gpu(out: &mut Tensor, tokens: &Tensor, blocks: &Blocks) -> Result<Option<()>> {
    let Some(words) = blocks.words() else { return Ok(None) };
    let Some(gpu) = gpu_of("embedding_forward", &[out, tokens, words])? else { return Ok(None) };
    check_dtype("embedding_forward", blocks.format.compute, &[out])?;
    let [vocab, cols] = blocks.format.shape;
    launch_dequantize(&gpu, out, words, blocks.format.kind, Some((tokens, cols, vocab))).map(Some)
}
