//! A linear layer with a low-rank update (Hu et al. 2021): y = x Wᵀ + s u Bᵀ + bias, u = x Aᵀ.
//!
//! On a GPU the update rides in the base product as R more columns of K ([x | s u] [W | B]ᵀ), so that out is written once.
use anyhow::Result;

use super::{
    gemm::{
        Layout, gemm,
        gpu::{Job, Term, product, products},
        linear_backward_input, linear_forward, linear_forward_many_rows,
        plan::Extras,
        sums::{Sum, sum_together},
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

/// One of several layers of one input, forward.
pub(crate) struct LoraLayer<'a> {
    /// (N, out)
    pub out: Tensor,
    /// (N, R), saved for backward.
    pub u: Tensor,
    /// (out, in)
    pub weight: Matrix<'a>,
    /// (out)
    pub bias: Option<&'a Tensor>,
    /// Its factors.
    pub low: LowRank<'a>,
}

/// [`lora_forward`] for several layers of one input; on Hopper two launches in all.
pub(crate) fn lora_forward_many(layers: &mut [LoraLayer], inp: &Tensor) -> Result<()> {
    const OP: &str = "lora_forward";
    if inp.gpu().is_none() {
        let one = |l: &mut LoraLayer| lora_forward(&mut l.out, &mut l.u, inp, l.weight, l.bias, l.low);
        return layers.iter_mut().try_for_each(one);
    }
    let term = |b, tail| vec![Term { a: inp, b, tail }];
    let job = |l| {
        let LoraLayer { u, low, .. } = l;
        Job { out: u, terms: term(low.a.into(), None), bias: None, accumulate: false }
    };
    products(OP, &mut layers.iter_mut().map(job).collect::<Vec<_>>(), Layout::NT)?;
    let job = |l| {
        let LoraLayer { out, u, weight, bias, low } = l;
        let tail = Some((&*u, low.b, low.left()));
        Job { out, terms: term(*weight, tail), bias: *bias, accumulate: false }
    };
    products(OP, &mut layers.iter_mut().map(job).collect::<Vec<_>>(), Layout::NT)?;
    Ok(())
}

/// One of several layers of one input, backward.
pub(crate) struct LoraGradient<'a> {
    /// (R, in), +=.
    pub da: Tensor,
    /// (out, R), +=.
    pub db: Tensor,
    /// (N, R), =.
    pub du: Tensor,
    /// (N, out)
    pub dout: Tensor,
    /// (N, R), from the forward.
    pub u: Tensor,
    /// (out, in)
    pub weight: Matrix<'a>,
    /// Its factors.
    pub low: LowRank<'a>,
}

/// du = s dout B of each layer, and dinp (N, in) = (or, with `accumulate`, +=) their sum of dout weight + du A; on Hopper two launches in all.
pub(crate) fn lora_backward_input_many(
    layers: &mut [LoraGradient],
    dinp: Option<(&mut Tensor, bool)>,
) -> Result<()> {
    const OP: &str = "lora_backward_input";
    let gpu = layers.iter().all(|l| l.dout.gpu().is_some() && l.low.scaled);
    if gpu {
        let job = |l| {
            let LoraGradient { du, dout, low, .. } = l;
            let terms = vec![Term { a: &*dout, b: low.b.into(), tail: None }];
            Job { out: du, terms, bias: None, accumulate: false }
        };
        products(OP, &mut layers.iter_mut().map(job).collect::<Vec<_>>(), Layout::NN)?;
    } else {
        for l in layers.iter_mut() {
            gemm(&mut l.du, &l.dout, l.low.b, Layout::NN, l.low.left(), false)?;
        }
    }
    let Some((dinp, accumulate)) = dinp else { return Ok(()) };
    if gpu {
        let terms =
            layers.iter().map(|l| Term { a: &l.dout, b: l.weight, tail: Some((&l.du, l.low.a, 1.0)) });
        let job = Job { out: dinp, terms: terms.collect(), bias: None, accumulate };
        products(OP, &mut [job], Layout::NN)?;
        return Ok(());
    }
    for (i, l) in layers.iter().enumerate() {
        lora_backward_input(dinp, &l.dout, l.weight, &l.du, l.low.a, accumulate || i > 0)?;
    }
    Ok(())
}

/// da and db of each layer, from what [`lora_backward_input_many`] left in du; one launch where `counters` (U32, zeros before and after, on a GPU) are there and
/// products are in bf16.
pub(crate) fn lora_backward_weights_many(
    layers: &mut [LoraGradient],
    inp: &Tensor,
    counters: Option<&mut Tensor>,
) -> Result<()> {
    if let Some(counters) = counters {
        let both = |l| {
            let LoraGradient { da, db, du, dout, u, low, .. } = l;
            let db = Sum { out: db, a: &*dout, b: &*u, alpha: low.scale };
            [db, Sum { out: da, a: &*du, b: inp, alpha: 1.0 }]
        };
        let mut sums: Vec<Sum> = layers.iter_mut().flat_map(both).collect();
        if sum_together("lora_backward", &mut sums, counters)? {
            return Ok(());
        }
    }
    for l in layers {
        gemm(&mut l.db, &l.dout, &l.u, Layout::TN, l.low.scale, true)?;
        lora_backward_a(&mut l.da, &l.du, inp)?;
    }
    Ok(())
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
