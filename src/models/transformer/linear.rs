//! A linear layer with its adapter, forward and backward.
//!
//! LoRA: y = x Wᵀ + s u Bᵀ + bias with u = x Aᵀ. DoRA: y = g ∘ (x Wᵀ + s u Bᵀ) + bias with g = magnitude / ‖W + s B A‖ by rows, the
//! norm held constant in backward (Liu et al. 2024, section 4.3), as in PEFT.
use anyhow::Result;

use super::{
    lora::{Adapter, row_norms},
    weights::Linear,
};
use crate::{
    ops::{
        gemm::{
            Layout, gemm, linear_backward_input, linear_backward_weight, linear_forward, linear_forward_many,
            linear_forward_many_rows,
        },
        lora::{lora_backward, lora_backward_input, lora_forward},
    },
    tensor::Tensor,
};

/// Gradients of an adapter, shaped like it.
#[derive(Clone, Debug)]
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
    pub full: Option<&'a mut Linear>,
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
    let weights: Vec<&Tensor> = linears.iter().map(|l| &l.weight).collect();
    linear_forward_many(outs, inp, &weights)
}

/// out (N, out) = linear(inp (N, in)); u (N, R) is saved for backward where there is an adapter.
pub fn forward(
    out: &mut Tensor,
    u: &mut Option<Tensor>,
    inp: &Tensor,
    linear: &Linear,
    adapter: Option<&Adapter>,
    rows: Rows,
) -> Result<()> {
    let (Some(adapter), Some(u)) = (adapter, u) else {
        let product = if rows == Rows::Many { linear_forward_many_rows } else { linear_forward };
        return product(out, inp, &linear.weight, linear.bias.as_ref());
    };
    let Some(gain) = dora_gain(linear, adapter)? else {
        return lora_forward(out, u, inp, &linear.weight, linear.bias.as_ref(), adapter.low_rank());
    };
    linear_forward(u, inp, &adapter.a, None)?;
    unscaled(out, u, inp, linear, adapter)?;
    scale_columns(out, &gain)?;
    if let Some(bias) = &linear.bias {
        let bias = bias.f32()?;
        out.f32_mut()?
            .chunks_exact_mut(bias.len())
            .for_each(|row| row.iter_mut().zip(bias).for_each(|(o, b)| *o += b));
    }
    Ok(())
}

/// out = x Wᵀ + s u Bᵀ
fn unscaled(out: &mut Tensor, u: &Tensor, inp: &Tensor, linear: &Linear, adapter: &Adapter) -> Result<()> {
    linear_forward_many_rows(out, inp, &linear.weight, None)?;
    gemm(out, u, &adapter.b, Layout::NT, adapter.scale, true)
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
    trained: Trained,
) -> Result<()> {
    if let Some(full) = trained.full {
        linear_backward_weight(&mut full.weight, full.bias.as_mut(), dout, inp)?;
    }
    let mut low_rank = None;
    if let (Some((adapter, grads)), Some(u), Some(du)) = (trained.adapter, u, &mut *low.du) {
        let (n, out) = dout.rows_cols();
        if let (Some(gain), Some(dmagnitude), Some(spare)) =
            (dora_gain(linear, adapter)?, &mut grads.magnitude, &mut *low.spare)
        {
            let mut z = spare.rows(0..n * out)?.view(&[n, out])?;
            unscaled(&mut z, u, inp, linear, adapter)?;
            let norms = row_norms(linear, adapter)?;
            magnitude_gradient(dmagnitude.f32_mut()?, dout.f32()?, z.f32()?, &norms);
            scale_columns(dout, &gain)?;
        }
        let r = adapter.a.shape()[0];
        let mut du = du.rows(0..n * r)?.view(&[n, r])?;
        lora_backward(&mut grads.a, &mut grads.b, &mut du, dout, u, inp, adapter.low_rank())?;
        low_rank = Some((&adapter.a, du));
    }
    match (dinp, low_rank) {
        (Some((dinp, accumulate)), Some((a, du))) => {
            lora_backward_input(dinp, dout, &linear.weight, &du, a, accumulate)
        }
        (Some((dinp, accumulate)), None) => linear_backward_input(dinp, dout, &linear.weight, accumulate),
        (None, _) => Ok(()),
    }
}

fn dora_gain(linear: &Linear, adapter: &Adapter) -> Result<Option<Vec<f32>>> {
    let Some(magnitude) = &adapter.magnitude else { return Ok(None) };
    let norms = row_norms(linear, adapter)?;
    Ok(Some(magnitude.f32()?.iter().zip(norms).map(|(m, n)| m / n).collect()))
}

fn scale_columns(x: &mut Tensor, gain: &[f32]) -> Result<()> {
    x.f32_mut()?
        .chunks_exact_mut(gain.len())
        .for_each(|row| row.iter_mut().zip(gain).for_each(|(x, g)| *x *= g));
    Ok(())
}

/// dmagnitude_o += Σ_n dout_no z_no / norm_o
fn magnitude_gradient(dmagnitude: &mut [f32], dout: &[f32], z: &[f32], norms: &[f32]) {
    let m = norms.len();
    for (dout, z) in dout.chunks_exact(m).zip(z.chunks_exact(m)) {
        for o in 0..m {
            dmagnitude[o] += dout[o] * z[o] / norms[o];
        }
    }
}
