//! Distillation from a teacher that has spoken before: the likeliest tokens of the model without its adapters behind another prompt, and a student that learns them.
use anyhow::{Context, Result, ensure};
use tracing::info_span;

use super::{DistilledSum, PackedBatch, TrainStep, documents};
use crate::{
    data::top_k::TopK,
    models::transformer::weights::Transformer,
    ops::{kl_divergence::Mixed, top_k::linear_top_k, top_k_divergence::linear_top_k_divergence},
    tensor::{DType, Tensor},
};

/// Rows of a batch with a weight, rising: those that say what comes next in an answer.
fn learnt(batch: &PackedBatch) -> Vec<u32> {
    (0..batch.weights.len() as u32).filter(|&i| batch.weights[i as usize] != 0.0).collect()
}

impl TrainStep {
    /// Room for [`TrainStep::distil_stored`].
    ///
    /// # Errors
    /// All weights are trained: no base is left to teach; too little memory.
    pub fn distilling_stored(mut self, model: &Transformer) -> Result<TrainStep> {
        ensure!(self.adapter().is_some(), "only training of adapters leaves a base model to learn from");
        let n = [self.max_tokens];
        self.stored = Some(Tensor::zeros_on(&model.device(), "divergences", DType::F32, &n)?);
        Ok(self)
    }

    /// The `k` likeliest next tokens of the model without its adapters at every row of a batch that has a weight; nothing else changes.
    ///
    /// # Errors
    /// A batch beyond the room; a `k` beyond the vocabulary; logits that are not finite.
    pub fn likeliest(&mut self, model: &Transformer, batch: &PackedBatch, k: usize) -> Result<TopK> {
        let n = self.load(model, batch)?;
        self.decoder_forward(model, n, &documents(batch, &model.device())?, None, true)?;
        let hidden = self.base.as_ref().unwrap_or(&self.acts.hidden).rows(0..n)?;
        linear_top_k(&mut self.acts.loss, &hidden, model.head(), &learnt(batch), k)
    }

    /// The divergences from `teacher` at every row of a batch that has a weight, in order; with `grad_scale` gradients += d(grad_scale Σ w (KL_k(teacher || student) + `text` nll)), with
    /// the adapters' dropout. One forward pass, and one back.
    ///
    /// # Errors
    /// A batch beyond the room; a teacher of other rows; a failing device.
    pub fn distil_stored(
        &mut self,
        model: &Transformer,
        (batch, teacher): (&PackedBatch, &TopK),
        text: f64,
        grad_scale: Option<f32>,
    ) -> Result<DistilledSum> {
        let forward = info_span!("forward", tokens = batch.tokens.len()).entered();
        let n = self.load(model, batch)?;
        let cu_seqlens = documents(batch, &model.device())?;
        let a = &self.acts;
        let drops = a.dropout.as_ref().filter(|_| grad_scale.is_some());
        let dropout = drops.map(|d| d.of(batch, a.spare.as_ref(), self.draws)).transpose()?;
        self.decoder_forward(model, n, &cu_seqlens, dropout.as_ref(), false)?;
        drop(forward);
        let loss = info_span!("loss").entered();
        let a = &mut self.acts;
        let stored = self.stored.as_ref().context("there is no room to distil")?;
        let (mut losses, mut divergences) = (a.losses.rows(0..n)?, stored.rows(0..n)?);
        let mut dhidden = a.dnorm.rows(0..n)?;
        dhidden.fill_zero()?;
        let (rows, scale) = (learnt(batch), grad_scale.unwrap_or(0.0));
        linear_top_k_divergence(
            &mut losses,
            &mut divergences,
            grad_scale.map(|_| &mut dhidden),
            &mut a.loss,
            &a.hidden.rows(0..n)?,
            model.head(),
            &a.targets.rows(0..n)?,
            &a.weights.rows(0..n)?,
            (&rows, teacher),
            Mixed { hard: text as f32 * scale, soft: scale },
        )?;
        let (nll, kl) = (losses.to_f32_vec()?, divergences.to_f32_vec()?);
        let mut sum = DistilledSum { rows: rows.len(), tokens: n, ..DistilledSum::default() };
        for i in rows.into_iter().map(|i| i as usize) {
            let weight = f64::from(batch.weights[i]);
            sum.divergence += weight * f64::from(kl[i]);
            sum.nll += weight * f64::from(nll[i]);
            sum.weight += weight;
        }
        sum.clipped = sum.divergence + text * sum.nll;
        drop(loss);
        if grad_scale.is_some() {
            info_span!("backward")
                .in_scope(|| self.decoder_backward(model, n, cu_seqlens, dropout.as_ref()))?;
        }
        Ok(sum)
    }
}
