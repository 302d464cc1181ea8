//! Losses of batches, added up.
use anyhow::Result;

use super::PackedBatch;
use crate::tensor::Tensor;

/// Σ w nll and Σ w of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossSum {
    /// Σ w_i nll_i, nats.
    pub weighted_nll: f64,
    /// Σ w_i.
    pub weight: f64,
    /// Tokens that were run.
    pub tokens: usize,
    /// Σ w_i KL_i over the rows where the base model is kept, nats, and Σ w_i of these; 0 where none is.
    pub kept: [f64; 2],
}

impl LossSum {
    /// Adds another batch.
    pub fn add(&mut self, other: LossSum) {
        self.weighted_nll += other.weighted_nll;
        self.weight += other.weight;
        self.tokens += other.tokens;
        (0..2).for_each(|i| self.kept[i] += other.kept[i]);
    }
    /// Mean nll per unit of weight.
    pub fn mean(&self) -> f64 {
        self.weighted_nll / self.weight
    }
    /// Mean divergence per unit of weight, if the base model was kept on any row.
    pub fn kept_mean(&self) -> Option<f64> {
        (self.kept[1] > 0.0).then(|| self.kept[0] / self.kept[1])
    }
}

/// The losses (N) of a batch, added up.
pub(super) fn loss_sum(losses: &Tensor, batch: &PackedBatch) -> Result<LossSum> {
    let mut sum = LossSum { tokens: batch.tokens.len(), ..LossSum::default() };
    // A loss without a weight is nobody's.
    for (nll, w) in losses.to_f32_vec()?.iter().zip(&batch.weights).filter(|(_, w)| **w != 0.0) {
        sum.weighted_nll += *nll as f64 * *w as f64;
        sum.weight += *w as f64;
    }
    Ok(sum)
}
