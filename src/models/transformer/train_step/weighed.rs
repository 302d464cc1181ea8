//! Losses of single tokens, and gradients whose weights follow from them: what a loss over whole documents needs.
use anyhow::{Result, ensure};
use tracing::info_span;

use super::{PackedBatch, TrainStep, documents};
use crate::{models::transformer::weights::Transformer, ops::cross_entropy::loss_of_known_weights};

impl TrainStep {
    /// (N): the nll of the target of every token of a batch that has a weight, nats, 0 elsewhere, without dropout; nothing else changes.
    pub fn token_losses(&mut self, model: &Transformer, batch: &PackedBatch) -> Result<Vec<f32>> {
        let n = self.load(model, batch)?;
        self.decoder_forward(model, n, &documents(batch, &model.device())?, None, false)?;
        self.losses(model, &batch.weights, None)
    }

    /// gradients += d Σ_i w_i nll_i, with the adapters' dropout and the weights w (N) that `weigh` makes of the [`token_losses`](Self::token_losses); these count as constants. One
    /// pass through the layers each way; the head computes the logits twice.
    pub fn forward_backward_weighed(
        &mut self,
        model: &mut Transformer,
        batch: &PackedBatch,
        weigh: &mut dyn FnMut(&[f32]) -> Vec<f32>,
    ) -> Result<()> {
        let forward = info_span!("forward", tokens = batch.tokens.len()).entered();
        let n = self.load(model, batch)?;
        let cu_seqlens = documents(batch, &model.device())?;
        let a = &self.acts;
        let dropout = a.dropout.as_ref().map(|d| d.of(batch, a.spare.as_ref(), self.draws)).transpose()?;
        self.decoder_forward(model, n, &cu_seqlens, dropout.as_ref(), false)?;
        drop(forward);
        let loss = info_span!("loss").entered();
        let weights = weigh(&self.losses(model, &batch.weights, None)?);
        ensure!(weights.len() == n, "{} weights for {n} tokens", weights.len());
        self.acts.weights.rows(0..n)?.write_f32(&weights)?;
        self.losses(model, &weights, Some(1.0))?;
        drop(loss);
        info_span!("backward").in_scope(|| self.decoder_backward(model, n, cu_seqlens, dropout.as_ref()))
    }

    /// The losses of the last pass through the layers under `weights`, which stand in the activations too; with `grad_scale` also the gradient of
    /// grad_scale Σ w nll with respect to the hidden states, and that of the head where it is trained.
    fn losses(&mut self, model: &Transformer, weights: &[f32], grad_scale: Option<f32>) -> Result<Vec<f32>> {
        let n = weights.len();
        let a = &mut self.acts;
        let mut losses = a.losses.rows(0..n)?;
        let (targets, on_device) = (a.targets.rows(0..n)?, a.weights.rows(0..n)?);
        let (hidden, mut dhidden) = (a.hidden.rows(0..n)?, a.dnorm.rows(0..n)?);
        let grads = grad_scale.map(|_| {
            let dhead = self.grads.full().map(|g| g.lm_head.as_mut().unwrap_or(&mut g.embed_tokens));
            (&mut dhidden, dhead)
        });
        let (head, known) = (model.head(), (&on_device, weights));
        let scale = grad_scale.unwrap_or(0.0);
        loss_of_known_weights(&mut losses, grads, &mut a.loss, &hidden, head, &targets, known, scale)?;
        // Those without a weight are nobody's.
        let all = losses.to_f32_vec()?.into_iter().zip(weights);
        Ok(all.map(|(nll, w)| if *w == 0.0 { 0.0 } else { nll }).collect())
    }
}
