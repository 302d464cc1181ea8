//! All gradients of a step as the memory that they lie in.
use anyhow::Result;

use super::TrainStep;
use crate::tensor::Tensor;

impl TrainStep {
    /// Sets every gradient to 0.
    pub fn zero_grads(&mut self) -> Result<()> {
        self.flat_grads.iter_mut().try_for_each(Tensor::fill_zero)
    }

    /// Handles on the memory of all gradients, F32 in one dimension each, gaps between tensors included.
    pub(crate) fn gradients(&self) -> Result<Vec<Tensor>> {
        self.flat_grads.iter().map(Tensor::words_as_f32).collect()
    }
}
