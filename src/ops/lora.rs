//! A linear layer with a low-rank update (Hu et al. 2021): y = x Wᵀ + s u Bᵀ + bias, u = x Aᵀ.
//!
//! On a GPU the update rides in the base product as R more columns of K ([x | s u] [W | B]ᵀ), so that out is written once.
use anyhow::Result;

use super::{
    gemm::{
        Layout, gemm, gpu::product, linear_backward_input, linear_forward, linear_forward_many_rows,
        plan::Extras,
    },
    quantize::Matrix,
};
use crate::tensor::Tensor;

/// The factors: A (R, in), B (out, R), F32, and the update's scale s.
#[derive(Clone, Copy)]
pub struct LowRank<'a> {
    /// (R, in)
    pub a: &'a Tensor,
    /// (out, R)
    pub b: &'a Tensor,
    /// s
    pub scale: f32,
}

/// out (N, out) = inp (N, in) weightᵀ + s u Bᵀ [+ bias]; u (N, R) = inp Aᵀ is saved for backward.
pub fn lora_forward<'a>(
    out: &mut Tensor,
    u: &mut Tensor,
    inp: &Tensor,
    weight: impl Into<Matrix<'a>>,
    bias: Option<&Tensor>,
    low: LowRank,
) -> Result<()> {
    let weight = weight.into();
    linear_forward(u, inp, low.a, None)?;
    low_rank_product(out, u, inp, weight, bias, low)
}

/// The second half of [`lora_forward`]: out from a u that is there already.
pub fn low_rank_product<'a>(
    out: &mut Tensor,
    u: &Tensor,
    inp: &Tensor,
    weight: impl Into<Matrix<'a>>,
    bias: Option<&Tensor>,
    low: LowRank,
) -> Result<()> {
    let weight = weight.into();
    let extras = Extras { bias, tail: Some((u, low.b, low.scale)), ..Extras::default() };
    if product("lora_forward", out, inp, weight, Layout::NT, extras, None)?.is_some() {
        return Ok(());
    }
    linear_forward_many_rows(out, inp, weight, bias)?;
    gemm(out, u, low.b, Layout::NT, low.scale, true)
}

/// da (R, in) +=, db (out, R) += and du (N, R) = s dout B from dout (N, out) and the saved u; du is what [`lora_backward_input`] needs.
pub fn lora_backward(
    da: &mut Tensor,
    db: &mut Tensor,
    du: &mut Tensor,
    dout: &Tensor,
    u: &Tensor,
    inp: &Tensor,
    low: LowRank,
) -> Result<()> {
    gemm(db, dout, u, Layout::TN, low.scale, true)?;
    gemm(du, dout, low.b, Layout::NN, low.scale, false)?;
    gemm(da, du, inp, Layout::TN, 1.0, true)
}

/// dinp (N, in) = (or, with `accumulate`, +=) dout weight + du A.
pub fn lora_backward_input<'a>(
    dinp: &mut Tensor,
    dout: &Tensor,
    weight: impl Into<Matrix<'a>>,
    du: &Tensor,
    a: &Tensor,
    accumulate: bool,
) -> Result<()> {
    let weight = weight.into();
    let extras = Extras { accumulate, tail: Some((du, a, 1.0)), ..Extras::default() };
    if product("lora_backward_input", dinp, dout, weight, Layout::NN, extras, None)?.is_some() {
        return Ok(());
    }
    linear_backward_input(dinp, dout, weight, accumulate)?;
    gemm(dinp, du, a, Layout::NN, 1.0, true)
}

/// The naive oracle, in f64.
pub mod reference {
    /// (out, u) from inp (n, i), weight (o, i), a (r, i), b (o, r).
    pub fn forward(
        inp: &[f64],
        weight: &[f64],
        a: &[f64],
        b: &[f64],
        scale: f64,
        [n, i, o, r]: [usize; 4],
    ) -> (Vec<f64>, Vec<f64>) {
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        let (mut out, mut u) = (vec![0.0; n * o], vec![0.0; n * r]);
        for t in 0..n {
            let x = &inp[t * i..][..i];
            for k in 0..r {
                u[t * r + k] = dot(x, &a[k * i..][..i]);
            }
            for j in 0..o {
                out[t * o + j] =
                    dot(x, &weight[j * i..][..i]) + scale * dot(&u[t * r..][..r], &b[j * r..][..r]);
            }
        }
        (out, u)
    }

    /// (dinp, da, db) from dout (n, o).
    pub fn backward(
        dout: &[f64],
        inp: &[f64],
        u: &[f64],
        weight: &[f64],
        a: &[f64],
        b: &[f64],
        scale: f64,
        [n, i, o, r]: [usize; 4],
    ) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
        let (mut dinp, mut da, mut db) = (vec![0.0; n * i], vec![0.0; r * i], vec![0.0; o * r]);
        for t in 0..n {
            let mut du = vec![0.0; r];
            for j in 0..o {
                let d = dout[t * o + j];
                (0..i).for_each(|c| dinp[t * i + c] += d * weight[j * i + c]);
                for k in 0..r {
                    du[k] += scale * d * b[j * r + k];
                    db[j * r + k] += scale * d * u[t * r + k];
                }
            }
            for k in 0..r {
                for c in 0..i {
                    dinp[t * i + c] += du[k] * a[k * i + c];
                    da[k * i + c] += du[k] * inp[t * i + c];
                }
            }
        }
        (dinp, da, db)
    }
}
