//! The matrix of a linear layer, of the embedding or of the head: a tensor, or ggml's blocks as they lie in the file.
use std::{fmt, str::FromStr};

use anyhow::{Result, bail};

use crate::{
    device::Device,
    ops::{
        quantize::{Blocks, Matrix, Scratch},
        rows::cast,
    },
    tensor::{DType, Tensor},
};

/// The type that a run computes in: a setting of the run, whatever types the checkpoint holds. Blocks are unpacked to it, merged weights are written in it;
/// norms and biases are F32 in either.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ComputeType {
    /// Weights in F32.
    #[default]
    F32,
    /// Weights in bfloat16.
    Bf16,
}

impl ComputeType {
    /// The type of matrices.
    pub fn dtype(self) -> DType {
        match self {
            ComputeType::F32 => DType::F32,
            ComputeType::Bf16 => DType::Bf16,
        }
    }
    /// The type of activations: F32 on the CPU, which never rounds them, and that of the matrices on a GPU.
    pub fn activations(self, device: &Device) -> DType {
        if *device == Device::Cpu { DType::F32 } else { self.dtype() }
    }
}

impl TryFrom<DType> for ComputeType {
    type Error = anyhow::Error;
    fn try_from(dtype: DType) -> Result<ComputeType> {
        match dtype {
            DType::F32 => Ok(ComputeType::F32),
            DType::Bf16 => Ok(ComputeType::Bf16),
            DType::U32 => bail!("no model computes in integers"),
        }
    }
}

impl FromStr for ComputeType {
    type Err = anyhow::Error;
    fn from_str(s: &str) -> Result<ComputeType> {
        match s {
            "f32" => Ok(ComputeType::F32),
            "bf16" => Ok(ComputeType::Bf16),
            _ => bail!("there is no compute type `{s}`; use f32 or bf16"),
        }
    }
}

impl fmt::Display for ComputeType {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.dtype().suffix())
    }
}

/// A matrix (out, in). Every op that reads a weight takes `&Weight`, and gives over blocks the bits that it gives over [`Weight::to_dense`].
pub enum Weight {
    /// F32 or Bf16.
    Dense(Tensor),
    /// Codes and scales as the file interleaves them, and their format.
    Blocks(Blocks),
}

impl fmt::Debug for Weight {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        Matrix::from(self).fmt(f)
    }
}

impl From<Tensor> for Weight {
    fn from(t: Tensor) -> Weight {
        Weight::Dense(t)
    }
}

impl<'a> From<&'a Weight> for Matrix<'a> {
    fn from(weight: &'a Weight) -> Matrix<'a> {
        match weight {
            Weight::Dense(t) => Matrix::Dense(t),
            Weight::Blocks(b) => Matrix::Blocks(b),
        }
    }
}

impl Weight {
    /// Its name in messages.
    pub fn name(&self) -> &str {
        match self {
            Weight::Dense(t) => t.name(),
            Weight::Blocks(b) => b.name(),
        }
    }
    /// Dimensions.
    pub fn shape(&self) -> &[usize] {
        match self {
            Weight::Dense(t) => t.shape(),
            Weight::Blocks(b) => b.shape(),
        }
    }
    /// Values.
    pub fn len(&self) -> usize {
        self.shape().iter().product()
    }
    /// True if a dimension is 0.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// (out, in)
    pub fn rows_cols(&self) -> (usize, usize) {
        Matrix::from(self).rows_cols()
    }
    /// The type that products read.
    pub fn dtype(&self) -> DType {
        Matrix::from(self).dtype()
    }
    /// Where it is.
    pub fn device(&self) -> Device {
        Matrix::from(self).device()
    }
    /// Bytes as it is kept: of blocks, the blocks'.
    pub fn bytes(&self) -> usize {
        match self {
            Weight::Dense(t) => t.bytes(),
            Weight::Blocks(b) => b.bytes(),
        }
    }
    /// True for blocks.
    pub fn is_blocks(&self) -> bool {
        matches!(self, Weight::Blocks(_))
    }

    /// The tensor; an error for blocks, which name what `what` would need.
    pub fn dense(&self, what: &str) -> Result<&Tensor> {
        match self {
            Weight::Dense(t) => Ok(t),
            Weight::Blocks(b) => {
                bail!("{what}: {b:?} is kept as blocks; load the model without keeping them")
            }
        }
    }

    /// The values as `dtype`, where the weight is: the tensor itself if it has that type, else a copy, rounded once.
    pub fn to_dense(&self, dtype: DType) -> Result<Tensor> {
        match self {
            Weight::Dense(t) if t.dtype() == dtype => Ok(t.alias()),
            Weight::Dense(t) => {
                let mut out = Tensor::zeros_on(&t.device(), t.name(), dtype, t.shape())?;
                cast(&mut out, t, 1.0)?;
                Ok(out)
            }
            Weight::Blocks(b) => b.to_dense(dtype),
        }
    }

    /// The values as products read them, widened to f32, from wherever they are.
    pub fn to_f32_vec(&self) -> Result<Vec<f32>> {
        Matrix::from(self).to_f32_vec()
    }

    /// A copy on `device`; products with blocks there unpack into `scratch` ([`Weight::scratch`]).
    pub fn to_device(&self, device: &Device, scratch: &Scratch) -> Result<Weight> {
        match self {
            Weight::Dense(t) => t.to_device(device).map(Weight::Dense),
            Weight::Blocks(b) if *device == Device::Cpu => b.to_host().map(Weight::Blocks),
            Weight::Blocks(b) => b.to_device(device, scratch).map(Weight::Blocks),
        }
    }

    /// What the blocks among `weights` are unpacked into on `device`: one allocation for all of them, as large as the largest.
    pub fn scratch<'a>(
        weights: impl IntoIterator<Item = &'a Weight>,
        device: &Device,
        compute: ComputeType,
    ) -> Result<Scratch> {
        let blocks = weights.into_iter().filter(|w| w.is_blocks());
        let largest = blocks.map(|w| w.rows_cols()).map(|(rows, cols)| rows * cols).max();
        Scratch::new(device, compute.dtype(), largest.unwrap_or(0))
    }
}
