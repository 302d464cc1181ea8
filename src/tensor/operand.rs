//! Tensors as operands of ops and kernels.
use anyhow::{Result, bail, ensure};

use super::{DType, Memory, Tensor};
use crate::device::{Arg, TensorLabel};

impl Tensor {
    /// The address of the first byte on a GPU.
    pub(crate) fn address(&self) -> Result<u64> {
        let Memory::Gpu(memory, _) = &*self.mem else { bail!("{self:?} is not on a GPU") };
        Ok(memory.address() + self.offset as u64)
    }
    /// True if the first byte is at a multiple of `n` (a power of two up to [`ALIGN`]); allocations are.
    pub(crate) fn is_aligned(&self, n: usize) -> bool {
        self.offset.is_multiple_of(n)
    }
    /// Another handle: the same bytes, of 4-byte words, as F32 in one dimension; the memory of an arena as a whole is typed as U32.
    pub(crate) fn words_as_f32(&self) -> Result<Tensor> {
        ensure!(self.dtype.bytes() == 4, "{self:?} has no words of 4 bytes");
        let flat = self.view(&[self.len()])?;
        Ok(Tensor { dtype: DType::F32, ..flat })
    }
    /// The address as a kernel's parameter.
    pub(crate) fn arg(&self) -> Result<Arg> {
        Ok(Arg::Tensor(self.address()?, self.label()))
    }
    /// What it is called in messages about a launch.
    pub(crate) fn label(&self) -> TensorLabel {
        let (name, dtype) = (self.name.clone(), self.dtype.suffix());
        TensorLabel { name, dtype, shape: self.shape, rank: self.rank }
    }
}

/// Refuses outputs that share memory with another operand of the same op.
pub fn refuse_overlap(outs: &[&Tensor], ins: &[&Tensor]) -> Result<()> {
    for (i, out) in outs.iter().enumerate() {
        for other in ins.iter().chain(&outs[..i]) {
            ensure!(!out.overlaps(other), "{out:?} overlaps {other:?}");
        }
    }
    Ok(())
}
