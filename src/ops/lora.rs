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
    rows::add,
};
use crate::tensor::{Tensor, refuse_overlap};

/// The factors and the update's scale s: A (R, in), B (out, R), F32 or, as copies for the products of a GPU, Bf16.
#[derive(Clone, Copy)]
pub struct LowRank<'a> {
    /// (R, in)
    pub a: &'a Tensor,
    /// (out, R)
    pub b: &'a Tensor,
    /// s
    pub scale: f32,
    /// True if `b` is s B already: a copy takes the factor while it is rounded, and no product need stop for it.
    pub scaled: bool,
}

impl LowRank<'_> {
    /// What a product with `b` is still to be multiplied by.
    fn left(&self) -> f32 {
        if self.scaled { 1.0 } else { self.scale }
    }
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
    low_rank_product(out, u, inp, weight, bias, None, low)
}

/// The same [+ resid (N, out)]: a layer that ends in a residual addition.
pub fn lora_add_forward<'a>(
    out: &mut Tensor,
    u: &mut Tensor,
    inp: &Tensor,
    weight: impl Into<Matrix<'a>>,
    bias: Option<&Tensor>,
    resid: &Tensor,
    low: LowRank,
) -> Result<()> {
    let weight = weight.into();
    linear_forward(u, inp, low.a, None)?;
    low_rank_product(out, u, inp, weight, bias, Some(resid), low)
}

/// The second half of both: out from a u that is there already.
pub fn low_rank_product<'a>(
    out: &mut Tensor,
    u: &Tensor,
    inp: &Tensor,
    weight: impl Into<Matrix<'a>>,
    bias: Option<&Tensor>,
    resid: Option<&Tensor>,
    low: LowRank,
) -> Result<()> {
    let weight = weight.into();
    if let Some(resid) = resid {
        refuse_overlap(&[out], &[resid])?;
    }
    let extras = Extras { bias, resid, tail: Some((u, low.b, low.left())), ..Extras::default() };
    if product("lora_forward", out, inp, weight, Layout::NT, extras, None)?.is_some() {
        return Ok(());
    }
    linear_forward_many_rows(out, inp, weight, bias)?;
    gemm(out, u, low.b, Layout::NT, low.left(), true)?;
    resid.map_or(Ok(()), |resid| add(out, resid))
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
    lora_backward_b(db, du, dout, u, low)?;
    lora_backward_a(da, du, inp)
}

/// The first half of [`lora_backward`], for an inp that is not there yet: db (out, R) += and du (N, R) = s dout B.
pub fn lora_backward_b(
    db: &mut Tensor,
    du: &mut Tensor,
    dout: &Tensor,
    u: &Tensor,
    low: LowRank,
) -> Result<()> {
    gemm(db, dout, u, Layout::TN, low.scale, true)?;
    gemm(du, dout, low.b, Layout::NN, low.left(), false)
}

/// The second: da (R, in) += duᵀ inp.
pub fn lora_backward_a(da: &mut Tensor, du: &Tensor, inp: &Tensor) -> Result<()> {
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
