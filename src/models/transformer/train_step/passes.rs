//! The passes through the layers, up and down: of all, or of those below one in the middle.
use anyhow::Result;
use tracing::info_span;

use super::{
    super::{
        block::{Attention, Block, Next, norm_backward},
        dropout::Dropout,
        linear::Rows,
        saved::BackwardScratch,
        weights::Transformer,
    },
    TrainStep,
};
use crate::{distributed::beside::Part, ops::embedding::scaled_embedding_backward, tensor::Tensor};

impl TrainStep {
    /// The final hidden states, of the model in training or, without the adapters, of its base, which has a place of its own for them.
    pub(super) fn decoder_forward(
        &mut self,
        model: &Transformer,
        n: usize,
        cu_seqlens: &Tensor,
        dropout: Option<&Dropout>,
        base: bool,
    ) -> Result<()> {
        self.layers_forward(model, n, (cu_seqlens, model.weights.layers.len()), dropout, base)
    }

    /// The same of the lowest `count` layers alone; what they give is the input of the next.
    pub(super) fn layers_forward(
        &mut self,
        model: &Transformer,
        n: usize,
        (cu_seqlens, count): (&Tensor, usize),
        dropout: Option<&Dropout>,
        base: bool,
    ) -> Result<()> {
        let (spec, weights, a) = (&model.spec, &model.weights, &self.acts);
        let top = self.base.as_ref().filter(|_| base).unwrap_or(&a.hidden);
        let mut x = a.forward_scratch(n)?;
        let mut s = a.layers[0].rows(spec, n)?;
        model.embed(&mut s.resid_in, &a.tokens.rows(0..n)?)?;
        let block = |l| Block::new(spec, l, weights, self.ropes.tables()).with_dropout(dropout);
        block(0).norm_input(&mut s, &mut x)?;
        for l in 0..count {
            model.need(l, (l + 1 < count).then_some(l + 1))?;
            let attention = Attention::Packed { cu_seqlens, slots: None };
            let above = a.layers.get(l + 1).map(|above| above.rows(spec, n)).transpose()?;
            let next = match &above {
                Some(above) => {
                    let (resid, rstd, norm) = (above.resid_in.alias(), above.rstd_in.alias(), x.norm.alias());
                    Next { resid, rstd, norm, gain: block(l + 1).input_gain() }
                }
                None => {
                    let (resid, rstd) = (a.resid_out.rows(0..n)?, a.rstd_out.rows(0..n)?);
                    Next { resid, rstd, norm: top.rows(0..n)?, gain: Some(&weights.norm) }
                }
            };
            let adapters = self.grads.all_adapters().filter(|_| !base);
            block(l).forward(&mut s, &mut x, attention, adapters, Rows::Many, next)?;
            let Some(above) = above else { break };
            s = above;
        }
        Ok(())
    }

    /// From the gradient of the final hidden states, `dnorm`, down.
    pub(super) fn decoder_backward(
        &mut self,
        model: &Transformer,
        n: usize,
        cu_seqlens: Tensor,
        dropout: Option<&Dropout>,
    ) -> Result<()> {
        let (spec, weights, a) = (&model.spec, &model.weights, &self.acts);
        let mut x = a.backward_scratch(n, cu_seqlens)?;
        let dgain = self.grads.full().map(|g| &mut g.norm);
        let inp = (&a.resid_out.rows(0..n)?, &a.rstd_out.rows(0..n)?);
        norm_backward((&mut x.dresid, false), dgain, &x.dnorm, inp, &weights.norm, spec.norm)?;
        self.is_final(Part::Head)?;
        self.layers_backward(model, (n, weights.layers.len()), x, dropout)
    }

    /// From the gradient of what the lowest `count` layers give, `x.dresid`, down.
    pub(super) fn layers_backward(
        &mut self,
        model: &Transformer,
        (n, count): (usize, usize),
        mut x: BackwardScratch,
        dropout: Option<&Dropout>,
    ) -> Result<()> {
        let (spec, weights, a) = (&model.spec, &model.weights, &self.acts);
        for l in (self.lowest..count).rev() {
            let span = info_span!("backward_layer", layer = l).entered();
            model.need(l, (l > self.lowest).then(|| l - 1))?;
            let below = l > self.lowest || self.grads.full().is_some();
            let block = Block::new(spec, l, weights, self.ropes.tables()).with_dropout(dropout);
            block.backward(&a.layers[l].rows(spec, n)?, &mut x, &mut self.grads, below)?;
            drop(span);
            self.is_final(Part::Layer(l))?;
        }
        if let Some(g) = self.grads.full() {
            let scale = model.embedding_scale();
            scaled_embedding_backward(&mut g.embed_tokens, &x.dresid, &a.tokens.rows(0..n)?, scale)?;
        }
        self.is_final(Part::Embedding)?;
        model.end_of_pass()
    }
}
