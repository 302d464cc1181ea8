//! A linear layer with its adapter, forward and backward.
//!
//! LoRA: y = x Wᵀ + s u Bᵀ + bias with u = x Aᵀ. DoRA: y = g ∘ (x Wᵀ + s u Bᵀ) + bias with g = magnitude / ‖W + s B A‖ by rows, the
//! norm held constant in backward (Liu et al. 2024, section 4.3), as in PEFT. In training a part of an adapter's input may be dropped (`dropout.rs`).
use anyhow::{Context, Result};

use super::{
    dropout::InputDropout,
    lora::Adapter,
    weight::Weight,
    weights::{DenseLinear, Linear},
};
use crate::{
    ops::{
        dora::{dora_backward, dora_forward, dora_norms},
        gemm::{
            linear_add_forward, linear_backward_input, linear_backward_weight, linear_forward,
            linear_forward_many, linear_forward_many_rows,
        },
        lora::{
            LowRank, lora_add_forward, lora_backward_a, lora_backward_b, lora_backward_input, lora_forward,
            low_rank_product,
        },
    },
    tensor::Tensor,
};

/// Gradients of an adapter, shaped like it.
#[derive(Debug)]
pub struct AdapterGrads {
    /// (R, in)
    pub a: Tensor,
    /// (out, R)
    pub b: Tensor,
    /// (out), DoRA only.
    pub magnitude: Option<Tensor>,
}

/// What is trained of a linear.
pub struct Trained<'a> {
    /// The adapter and its gradients.
    pub adapter: Option<(&'a Adapter, &'a mut AdapterGrads)>,
    /// The weights' own gradients.
    pub full: Option<&'a mut DenseLinear>,
}

/// Which of the products: they differ in speed, and on a tile unit in the last bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// Fast for many rows: training and scoring.
    Many,
    /// Fast for few, too: prompts and decode steps.
    Any,
}

/// Several layers of one input (N, in), in one dispatch. They have no biases.
pub fn forward_together(outs: &mut [&mut Tensor], inp: &Tensor, linears: &[&Linear]) -> Result<()> {
    let weights: Vec<&Weight> = linears.iter().map(|l| &l.weight).collect();
    linear_forward_many(outs, inp, &weights)
}

/// out (N, out) = linear(inp (N, in)); u (N, R) is saved for backward where there is an adapter.
pub fn forward(
    out: &mut Tensor,
    u: &mut Option<Tensor>,
    inp: &Tensor,
    linear: &Linear,
    adapter: Option<&Adapter>,
    dropout: Option<&InputDropout>,
    rows: Rows,
) -> Result<()> {
    let (Some(adapter), Some(u)) = (adapter, u) else {
        let (weight, bias) = (&linear.weight, linear.bias.as_ref());
        return match rows {
            Rows::Many => linear_forward_many_rows(out, inp, weight, bias),
            Rows::Any => linear_forward(out, inp, weight, bias),
        };
    };
    let (weight, bias, low) = (&linear.weight, linear.bias.as_ref(), adapter.low_rank());
    match (&adapter.magnitude, dropout) {
        (None, None) => lora_forward(out, u, inp, weight, bias, low),
        (None, Some(dropout)) => {
            linear_forward(u, &dropout.kept(inp)?, low.a, None)?;
            low_rank_product(out, u, inp, weight, bias, None, low)
        }
        (Some(magnitude), None) => {
            lora_forward(out, u, inp, weight, None, low)?;
            dora_forward(out, magnitude, norms(adapter)?, bias)
        }
        (Some(magnitude), Some(dropout)) => {
            lora_forward(out, u, &dropout.kept(inp)?, weight, None, low)?;
            dora_forward(out, magnitude, norms(adapter)?, bias)?;
            dropout.add_rest(out, inp, linear)
        }
    }
}

/// out (N, out) = linear(inp (N, in)) + resid (N, out), rounded once, for a linear without a magnitude.
pub fn add_forward(
    out: &mut Tensor,
    u: &mut Option<Tensor>,
    inp: &Tensor,
    linear: &Linear,
    adapter: Option<&Adapter>,
    dropout: Option<&InputDropout>,
    resid: &Tensor,
) -> Result<()> {
    let (weight, bias) = (&linear.weight, linear.bias.as_ref());
    match (adapter, u) {
        (Some(adapter), Some(u)) => {
            let low = adapter.low_rank();
            let Some(dropout) = dropout else {
                return lora_add_forward(out, u, inp, weight, bias, resid, low);
            };
            linear_forward(u, &dropout.kept(inp)?, low.a, None)?;
            low_rank_product(out, u, inp, weight, bias, Some(resid), low)
        }
        _ => linear_add_forward(out, inp, weight, bias, resid),
    }
}

/// Memory that adapters need in backward.
pub struct LowRankScratch<'a> {
    /// N * R or more.
    pub du: &'a mut Option<Tensor>,
    /// N * out or more, for DoRA.
    pub spare: &'a mut Option<Tensor>,
}

/// dinp (N, in) = or += dout · d linear; the trained parts' gradients +=. With DoRA dout is overwritten.
pub fn backward(
    dinp: Option<(&mut Tensor, bool)>,
    dout: &mut Tensor,
    low: &mut LowRankScratch,
    u: &Option<Tensor>,
    inp: &Tensor,
    linear: &Linear,
    mut trained: Trained,
    dropout: Option<&InputDropout>,
) -> Result<()> {
    backward_input(dinp, dout, low, u, inp, linear, &mut trained, dropout)?;
    backward_weights(dout, low, inp, trained, dropout)
}

/// The first part of [`backward`]: dinp, and what is trained of an output. Only DoRA needs `inp`. [`backward_weights`] follows before `low` is used again.
pub fn backward_input(
    mut dinp: Option<(&mut Tensor, bool)>,
    dout: &mut Tensor,
    low: &mut LowRankScratch,
    u: &Option<Tensor>,
    inp: &Tensor,
    linear: &Linear,
    trained: &mut Trained,
    dropout: Option<&InputDropout>,
) -> Result<()> {
    let mut low_rank = None;
    if let (Some((adapter, grads)), Some(u), Some(du)) = (&mut trained.adapter, u, &mut *low.du) {
        let (n, out) = dout.rows_cols();
        if let (Some(magnitude), Some(dmagnitude), Some(spare)) =
            (&adapter.magnitude, &mut grads.magnitude, &mut *low.spare)
        {
            if let (Some(dropout), Some((dinp, accumulate))) = (dropout, &mut dinp) {
                dropout.rest_backward((dinp, *accumulate), dout, linear)?;
                *accumulate = true;
            }
            let kept = dropout.map(|dropout| dropout.kept(inp)).transpose()?;
            let (inp, weight) = (kept.as_ref().unwrap_or(inp), &linear.weight);
            let mut z = spare.rows(0..n * out)?.view(&[n, out])?;
            low_rank_product(&mut z, u, inp, weight, None, None, adapter.low_rank())?;
            dora_backward(dout, dmagnitude, &z, magnitude, norms(adapter)?)?;
        }
        let mut du = du_of(du, n, adapter)?;
        lora_backward_b(&mut grads.b, &mut du, dout, u, adapter.low_rank())?;
        low_rank = Some((adapter.low_rank().a, du, adapter.magnitude.is_some()));
    }
    let Some((dinp, accumulate)) = dinp else { return Ok(()) };
    match (low_rank, dropout) {
        (None, _) => linear_backward_input(dinp, dout, &linear.weight, accumulate),
        (Some((a, du, _)), None) => lora_backward_input(dinp, dout, &linear.weight, &du, a, accumulate),
        (Some((a, du, false)), Some(dropout)) => {
            linear_backward_input(dinp, dout, &linear.weight, accumulate)?;
            dropout.kept_backward(dinp, &du, a, None)
        }
        (Some((a, du, true)), Some(dropout)) => dropout.kept_backward(dinp, &du, a, Some((&*dout, linear))),
    }
}

/// The second part: what is trained of the input.
pub fn backward_weights(
    dout: &Tensor,
    low: &LowRankScratch,
    inp: &Tensor,
    trained: Trained,
    dropout: Option<&InputDropout>,
) -> Result<()> {
    if let Some(full) = trained.full {
        linear_backward_weight(&mut full.weight, full.bias.as_mut(), dout, inp)?;
    }
    if let (Some((adapter, grads)), Some(du)) = (trained.adapter, &*low.du) {
        let kept = dropout.map(|dropout| dropout.kept(inp)).transpose()?;
        let inp = kept.as_ref().unwrap_or(inp);
        lora_backward_a(&mut grads.a, &du_of(du, dout.rows_cols().0, adapter)?, inp)?;
    }
    Ok(())
}

/// An adapter's part of the memory for du: (n, R).
fn du_of(du: &Tensor, n: usize, adapter: &Adapter) -> Result<Tensor> {
    let r = adapter.a.shape()[0];
    du.rows(0..n * r)?.view(&[n, r])
}

fn norms(adapter: &Adapter) -> Result<&Tensor> {
    adapter
        .norms
        .as_ref()
        .context("a DoRA adapter outside of a training step has no norms: merge it into the weights")
}

/// The norms of the rows of W + s B A, where the weights are, for DoRA.
pub(super) fn refresh_norms(linear: &Linear, adapter: &mut Adapter) -> Result<()> {
    let low = LowRank { a: &adapter.a, b: &adapter.b, scale: adapter.scale, scaled: false };
    let Some(norms) = &mut adapter.norms else { return Ok(()) };
    dora_norms(norms, &linear.weight.to_dense(linear.weight.dtype())?, low)
}
