//! Mean hidden states of whole documents behind a layer, and the gradients of a loss of them: what aligns the middle of a model.
use anyhow::{Result, ensure};
use tracing::info_span;

use super::{super::dropout::Dropout, PackedBatch, TrainStep, documents};
use crate::{
    models::transformer::weights::Transformer,
    ops::segment_mean::{segment_mean_backward, segment_mean_forward},
    tensor::{DType, Tensor},
};

impl TrainStep {
    /// (documents, C): the mean over its tokens of each document's hidden states behind the lowest `layer` layers, without dropout; nothing else changes. Behind all
    /// layers they are those behind the last norm, too (transformers' `output_hidden_states`).
    ///
    /// # Errors
    /// A batch beyond the room; a layer that the model has not.
    pub fn pooled(&mut self, model: &Transformer, batch: &PackedBatch, layer: usize) -> Result<Vec<f32>> {
        self.pooled_forward(model, batch, layer, false)
    }

    /// gradients += those of a loss of the [`pooled`](Self::pooled) states of all documents of `batches` together, with the adapters' dropout. `derive` makes of the states (documents,
    /// C), in their order, the loss's gradient by them. Of several batches the forward pass runs twice, so that only one's activations are kept.
    ///
    /// # Errors
    /// A batch beyond the room; a layer that the model has not, or below which nothing is trained; what `derive` says; a failing device.
    pub fn forward_backward_pooled(
        &mut self,
        model: &Transformer,
        batches: &[PackedBatch],
        layer: usize,
        derive: &mut dyn FnMut(&[f32]) -> Result<Vec<f32>>,
    ) -> Result<()> {
        ensure!(
            self.lowest < layer,
            "nothing is trained below layer {layer}: the lowest adapted layer is the one behind layer {}",
            self.lowest
        );
        let mut means = vec![];
        for batch in batches {
            means.extend(self.pooled_forward(model, batch, layer, true)?);
        }
        let dmeans = derive(&means)?;
        ensure!(dmeans.len() == means.len(), "a gradient of {} numbers for {}", dmeans.len(), means.len());
        let mut rest = &dmeans[..];
        for batch in batches {
            let (own, others) = rest.split_at(batch.ids.len() * model.spec.hidden_size);
            rest = others;
            if batches.len() > 1 {
                self.pooled_forward(model, batch, layer, true)?;
            }
            info_span!("backward").in_scope(|| self.pooled_backward(model, batch, layer, own))?;
        }
        Ok(())
    }

    fn pooled_forward(
        &mut self,
        model: &Transformer,
        batch: &PackedBatch,
        layer: usize,
        drops: bool,
    ) -> Result<Vec<f32>> {
        let layers = model.weights.layers.len();
        ensure!((1..=layers).contains(&layer), "layer {layer} of a model that has {layers}");
        let _forward = info_span!("forward", tokens = batch.tokens.len()).entered();
        let n = self.load(model, batch)?;
        let cu_seqlens = documents(batch, &model.device())?;
        let dropout = if drops { self.dropout_of(batch)? } else { None };
        self.layers_forward(model, n, (&cu_seqlens, layer), dropout.as_ref(), false)?;
        let a = &self.acts;
        let states = a.layers.get(layer).map_or(&a.hidden, |above| &above.resid_in).rows(0..n)?;
        let mut means = self.sentences(model, batch)?;
        segment_mean_forward(&mut means, &states, &cu_seqlens)?;
        means.to_f32_vec()
    }

    /// The gradients of the last forward pass, from that of its means.
    fn pooled_backward(
        &mut self,
        model: &Transformer,
        batch: &PackedBatch,
        layer: usize,
        dmeans: &[f32],
    ) -> Result<()> {
        let (n, cu_seqlens) = (batch.tokens.len(), documents(batch, &model.device())?);
        let dropout = self.dropout_of(batch)?;
        let mut means = self.sentences(model, batch)?;
        means.write_f32(dmeans)?;
        if layer == model.weights.layers.len() {
            segment_mean_backward(&mut self.acts.dnorm.rows(0..n)?, &means, &cu_seqlens)?;
            return self.decoder_backward(model, n, cu_seqlens, dropout.as_ref());
        }
        let mut x = self.acts.backward_scratch(n, cu_seqlens)?;
        segment_mean_backward(&mut x.dresid, &means, &x.cu_seqlens)?;
        self.layers_backward(model, (n, layer), x, dropout.as_ref())
    }

    fn dropout_of(&self, batch: &PackedBatch) -> Result<Option<Dropout>> {
        let a = &self.acts;
        a.dropout.as_ref().map(|d| d.of(batch, a.spare.as_ref(), self.draws)).transpose()
    }

    /// Memory for a vector a document, (documents, C).
    fn sentences(&self, model: &Transformer, batch: &PackedBatch) -> Result<Tensor> {
        let dims = [batch.ids.len(), model.spec.hidden_size];
        Tensor::scratch_on(&model.device(), "sentences", DType::F32, &dims)
    }
}
