//! Dropout on the input of adapters, in training (PEFT's `lora_dropout`).
//!
//! LoRA: y = x Wᵀ + s (D x) Aᵀ Bᵀ + bias. DoRA drops the input of the base's share of the direction, too, as its authors and PEFT do:
//! y = x Wᵀ + (g - 1) ∘ (D x) Wᵀ + g ∘ s (D x) Aᵀ Bᵀ + bias = g ∘ ((D x) Wᵀ + s (D x) Aᵀ Bᵀ) + (x - D x) Wᵀ + bias.
use anyhow::{Result, ensure};

use super::{ids::LinearId, lora::Lora, train_step::PackedBatch, weights::Linear};
use crate::{
    ops::{
        dropout::{Mask, Part, dropout_backward, dropout_forward, key},
        gemm::{Layout, gemm, linear_backward_input, linear_forward_many_rows},
        rows::add,
    },
    tensor::{Arena, DType, Tensor},
};

/// The memory of it.
pub(super) struct DropoutActs {
    /// (N, 2): document and position of each token.
    rows: Tensor,
    /// N * widest input.
    masked: Tensor,
    rate: f64,
}

/// The draws of one optimizer step.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Draws {
    pub seed: u64,
    pub step: u64,
}

/// Dropout in a forward and its backward.
pub struct Dropout {
    rows: Tensor,
    masked: Tensor,
    /// N * widest output, for DoRA.
    spare: Option<Tensor>,
    rate: f64,
    draws: Draws,
}

/// The same for the adapter of one linear.
pub struct InputDropout<'a> {
    of: &'a Dropout,
    mask: Mask<'a>,
}

impl DropoutActs {
    /// For `n` tokens whose linears take and give up to `wide` numbers; none where the adapters drop nothing.
    pub(super) fn lay_out(
        a: &mut Arena,
        n: usize,
        wide: usize,
        lora: Option<&Lora>,
        dtype: DType,
    ) -> Option<DropoutActs> {
        let rate = lora.map_or(0.0, |lora| lora.config.dropout);
        (rate > 0.0).then(|| DropoutActs {
            rows: a.tensor("dropout_rows", DType::U32, &[n, 2]),
            masked: a.tensor("dropout_masked", dtype, &[n * wide]),
            rate,
        })
    }

    /// For this batch.
    pub(super) fn of(&self, batch: &PackedBatch, spare: Option<&Tensor>, draws: Draws) -> Result<Dropout> {
        let mut rows = self.rows.rows(0..batch.tokens.len())?;
        ensure!(
            batch.ids.len() + 1 == batch.cu_seqlens.len(),
            "a batch of {} documents names {} of them",
            batch.cu_seqlens.len().saturating_sub(1),
            batch.ids.len()
        );
        let documents = batch.cu_seqlens.windows(2).zip(&batch.ids);
        let words = documents.flat_map(|(ends, &id)| (0..ends[1] - ends[0]).flat_map(move |at| [id, at]));
        rows.write_u32(&words.collect::<Vec<u32>>())?;
        let (masked, spare) = (self.masked.alias(), spare.map(Tensor::alias));
        Ok(Dropout { rows, masked, spare, rate: self.rate, draws })
    }
}

impl Dropout {
    /// For linear `id` of layer `layer`.
    pub(super) fn of(&self, layer: usize, id: LinearId) -> InputDropout<'_> {
        let linear = (layer * LinearId::ADAPTABLE.len()) as u32 + id as u32;
        let key = key(self.draws.seed, self.draws.step, linear);
        InputDropout { of: self, mask: Mask { rows: &self.rows, key, rate: self.rate } }
    }
}

impl InputDropout<'_> {
    /// Memory for (n, cols) until the next call of any of these.
    fn scratch(&self, n: usize, cols: usize) -> Result<Tensor> {
        self.of.masked.rows(0..n * cols)?.view(&[n, cols])
    }

    /// D x (N, in), until the next call of any of these.
    pub(super) fn kept(&self, inp: &Tensor) -> Result<Tensor> {
        self.masked(inp, Part::Kept)
    }

    fn masked(&self, inp: &Tensor, part: Part) -> Result<Tensor> {
        let (n, cols) = inp.rows_cols();
        let mut out = self.scratch(n, cols)?;
        dropout_forward(&mut out, inp, self.mask, part)?;
        Ok(out)
    }

    /// out (N, out) += (x - D x) Wᵀ, for DoRA.
    pub(super) fn add_rest(&self, out: &mut Tensor, inp: &Tensor, linear: &Linear) -> Result<()> {
        let Some(spare) = &self.of.spare else { return Ok(()) };
        let (n, cols) = out.rows_cols();
        let mut z = spare.rows(0..n * cols)?.view(&[n, cols])?;
        linear_forward_many_rows(&mut z, &self.masked(inp, Part::Rest)?, &linear.weight, None)?;
        add(out, &z)
    }

    /// dinp (N, in) = or += the part of dout (N, out) W that went past DoRA; its share of the rest is to be added.
    pub(super) fn rest_backward(
        &self,
        (dinp, accumulate): (&mut Tensor, bool),
        dout: &Tensor,
        linear: &Linear,
    ) -> Result<()> {
        let (n, cols) = dinp.rows_cols();
        let mut all = self.scratch(n, cols)?;
        linear_backward_input(&mut all, dout, &linear.weight, false)?;
        match accumulate {
            true => dropout_backward(dinp, &all, self.mask, Part::Rest),
            false => dropout_forward(dinp, &all, self.mask, Part::Rest),
        }
    }

    /// dinp (N, in) += Dᵀ (du A [+ dout W, if a base's product was dropped with it]); du (N, R).
    pub(super) fn kept_backward(
        &self,
        dinp: &mut Tensor,
        du: &Tensor,
        a: &Tensor,
        base: Option<(&Tensor, &Linear)>,
    ) -> Result<()> {
        let (n, cols) = dinp.rows_cols();
        let mut all = self.scratch(n, cols)?;
        if let Some((dout, linear)) = base {
            linear_backward_input(&mut all, dout, &linear.weight, false)?;
        }
        gemm(&mut all, du, a, Layout::NN, 1.0, base.is_some())?;
        dropout_backward(dinp, &all, self.mask, Part::Kept)
    }
}
