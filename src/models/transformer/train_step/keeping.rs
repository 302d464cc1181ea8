//! Keeping the source language: on rows of source documents the base model's distribution, from a forward pass without the adapters, is learnt beside the
//! text or instead of it.
use anyhow::{Context, Result};

use super::{PackedBatch, TrainStep};
use crate::{
    models::transformer::weights::Transformer,
    ops::kl_divergence::{Mixed, linear_kl_divergence},
    tensor::{DType, Tensor},
};

/// What keeping needs for batches of up to N tokens.
pub(super) struct Keeping {
    /// (N): loss weights of the source rows, 0 elsewhere.
    weights: Tensor,
    /// (N)
    divergences: Tensor,
    mixed: Mixed,
}

impl TrainStep {
    /// With `mixed`, on source rows ([`PackedBatch::source`]) of [`TrainStep::forward_backward`] the loss becomes `hard` nll + `soft` KL(base || model in training); the base is the
    /// model without the adapters. [`TrainStep::forward`] stays as it is.
    ///
    /// # Errors
    /// All weights are trained: no base is left; too little memory.
    pub fn keep_source(self, model: &Transformer, mixed: Option<Mixed>) -> Result<TrainStep> {
        let Some(mixed) = mixed else { return Ok(self) };
        let mut step = self.with_base(model)?;
        let (n, device) = (step.max_tokens, model.device());
        step.keeping = Some(Keeping {
            weights: Tensor::zeros_on(&device, "kept_weights", DType::F32, &[n])?,
            divergences: Tensor::zeros_on(&device, "divergences", DType::F32, &[n])?,
            mixed,
        });
        Ok(step)
    }

    /// Where source rows are to be kept and there are any: the loss weights of the others, which the cross-entropy is told.
    pub(super) fn kept_apart(&mut self, batch: &PackedBatch) -> Result<Option<Vec<f32>>> {
        let Some(keeping) = self.keeping.as_ref().filter(|_| !batch.source.is_empty()) else {
            return Ok(None);
        };
        let (mut hard, n) = (batch.weights.clone(), batch.weights.len());
        batch.source.iter().for_each(|&i| hard[i as usize] = 0.0);
        self.acts.weights.rows(0..n)?.write_f32(&hard)?;
        keeping.weights.rows(0..n)?.write_f32(&batch.weights)?;
        Ok(Some(hard))
    }

    /// The losses of source rows and their gradient, behind those of the others; Σ w KL and Σ w.
    pub(super) fn keep(
        &mut self,
        model: &Transformer,
        batch: &PackedBatch,
        grad_scale: f32,
    ) -> Result<[f64; 2]> {
        let (k, base) = self.keeping.as_ref().zip(self.base.as_ref()).context("nothing is kept")?;
        let (a, n) = (&mut self.acts, batch.weights.len());
        let mut divergences = k.divergences.rows(0..n)?;
        let Mixed { hard, soft } = k.mixed;
        linear_kl_divergence(
            &mut a.losses.rows(0..n)?,
            &mut divergences,
            Some(&mut a.dnorm.rows(0..n)?),
            &mut a.loss,
            (&a.hidden.rows(0..n)?, &base.rows(0..n)?),
            model.head(),
            &a.targets.rows(0..n)?,
            &k.weights.rows(0..n)?,
            &batch.source,
            Mixed { hard: hard * grad_scale, soft: soft * grad_scale },
            None,
        )?;
        let found = divergences.to_f32_vec()?;
        let sums = batch.source.iter().map(|&i| (found[i as usize] as f64, batch.weights[i as usize] as f64));
        Ok(sums.fold([0.0; 2], |[kl, weight], (x, w)| [kl + x * w, weight + w]))
    }
}
