//! LayerNorm over the last dimension (Ba et al. 2016).
#![allow(unsafe_code)]
use anyhow::Result;

use crate::{
    device::Gpu,
    tensor::{DType, Tensor, refuse_overlap},
};

use super::{
    checks::check,
    kernels,
    launch::{Grid, gpu_of},
    parallel::{Shared, for_each_rows, for_each_task},
    rows::sum_rows,
    simd::{Kernel, Simd, run},
};

/// Rows whose part of dweight and dbias is summed before it joins the others': fixed, so that the bits never depend on the threads.
const BLOCK: usize = 32;

/// out (N, C) = (inp (N, C) - mean (N)) * rstd (N) * weight (C) + bias (C), rstd = 1 / sqrt(variance + eps), the variance that of the
/// whole row (divided by C). `mean` and `rstd` are saved for the backward.
pub fn layernorm_forward(
    out: &mut Tensor,
    mean: &mut Tensor,
    rstd: &mut Tensor,
    inp: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f32,
) -> Result<()> {
    const OP: &str = "layernorm_forward";
    let (n, c) = inp.rows_cols();
    let fits = out.rows_cols() == (n, c) && mean.len() == n && rstd.len() == n;
    check(fits && weight.shape() == [c] && bias.shape() == [c], OP, &[out, mean, rstd, inp, weight, bias])?;
    refuse_overlap(&[out, mean, rstd], &[inp, weight, bias])?;
    if let Some(gpu) = gpu_of(OP, &[out, mean, rstd, inp, weight, bias])? {
        // SAFETY: shapes were checked.
        return unsafe {
            kernels::layernorm_forward(&gpu, Grid::new(n), out, mean, rstd, inp, weight, bias, c, eps)
        };
    }
    let (out, mean, rstd) =
        (Shared::new(out.f32_mut()?), Shared::new(mean.f32_mut()?), Shared::new(rstd.f32_mut()?));
    let (inp, weight, bias) = (inp.f32()?, weight.f32()?, bias.f32()?);
    for_each_rows(n, 4 * c, |block| {
        let inp = &inp[block.start * c..block.end * c];
        // SAFETY: blocks of rows do not overlap.
        let (out, mean, rstd) = unsafe {
            (
                out.part(block.start * c, inp.len()),
                mean.part(block.start, block.len()),
                rstd.part(block.start, block.len()),
            )
        };
        run(Forward { out, mean, rstd, inp, weight, bias, eps });
    });
    Ok(())
}

struct Forward<'a> {
    out: &'a mut [f32],
    mean: &'a mut [f32],
    rstd: &'a mut [f32],
    inp: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f32,
}

impl Kernel for Forward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let c = self.weight.len();
        for (n, (mean, rstd)) in self.mean.iter_mut().zip(self.rstd).enumerate() {
            let (x, out) = (&self.inp[n * c..][..c], &mut self.out[n * c..][..c]);
            let mut sum = s.splat(0.0);
            for i in (0..c).step_by(S::LANES) {
                sum = s.add(sum, s.read_some(&x[i..]));
            }
            *mean = s.sum(sum) / c as f32;
            // Centred first, so that large means lose nothing; the row stays in the first-level cache.
            let m = s.splat(*mean);
            for i in (0..c).step_by(S::LANES) {
                s.write_some(&mut out[i..], s.sub(s.read_some(&x[i..]), m));
            }
            *rstd = 1.0 / (s.dot(out, out) / c as f32 + self.eps).sqrt();
            let r = s.splat(*rstd);
            for i in (0..c).step_by(S::LANES) {
                let xhat = s.mul(s.read_some(&out[i..]), r);
                let y = s.fma(xhat, s.read_some(&self.weight[i..]), s.read_some(&self.bias[i..]));
                s.write_some(&mut out[i..], y);
            }
        }
    }
}

/// dinp (N, C) += and, if given, dweight (C) += and dbias (C) += the gradient of [`layernorm_forward`] for dout (N, C).
pub fn layernorm_backward(
    dinp: &mut Tensor,
    dparams: Option<(&mut Tensor, &mut Tensor)>,
    dout: &Tensor,
    inp: &Tensor,
    mean: &Tensor,
    rstd: &Tensor,
    weight: &Tensor,
) -> Result<()> {
    const OP: &str = "layernorm_backward";
    let (n, c) = inp.rows_cols();
    let rows = dinp.rows_cols() == (n, c) && dout.rows_cols() == (n, c) && mean.len() == n && rstd.len() == n;
    check(rows && weight.shape() == [c], OP, &[dinp, dout, inp, mean, rstd, weight])?;
    refuse_overlap(&[dinp], &[dout, inp, mean, rstd, weight])?;
    if let Some((dweight, dbias)) = &dparams {
        check(dweight.shape() == [c] && dbias.shape() == [c], OP, &[dweight, dbias, inp])?;
        refuse_overlap(&[dweight, dbias], &[dinp, dout, inp, mean, rstd, weight])?;
    }
    if let Some(gpu) = gpu_of(OP, &[dinp, dout, inp, mean, rstd, weight])? {
        return gpu_backward(&gpu, dinp, dparams, [dout, inp, mean, rstd, weight]);
    }
    let blocks = n.div_ceil(BLOCK);
    let width = if dparams.is_some() { 2 * c } else { 0 };
    let mut partial = vec![0.0; blocks * width];
    let (dout, inp, weight) = (dout.f32()?, inp.f32()?, weight.f32()?);
    let (mean, rstd) = (mean.f32()?, rstd.f32()?);
    let (shared, dinp) = (Shared::new(&mut partial), Shared::new(dinp.f32_mut()?));
    for_each_task(blocks, n * c * 4, |b| {
        let rows = b * BLOCK..((b + 1) * BLOCK).min(n);
        let all = rows.start * c..rows.end * c;
        // SAFETY: blocks of rows do not overlap, nor do their sums.
        let (dinp, sums) = unsafe { (dinp.part(all.start, all.len()), shared.part(b * width, width)) };
        let (dweight, dbias) = sums.split_at_mut(width / 2);
        let (dout, inp) = (&dout[all.clone()], &inp[all]);
        run(Backward {
            dinp,
            dweight,
            dbias,
            dout,
            inp,
            mean: &mean[rows.clone()],
            rstd: &rstd[rows],
            weight,
        });
    });
    if let Some((dweight, dbias)) = dparams {
        let (dweight, dbias) = (dweight.f32_mut()?, dbias.f32_mut()?);
        for sums in partial.chunks_exact((2 * c).max(1)) {
            dweight.iter_mut().zip(&sums[..c]).for_each(|(d, x)| *d += x);
            dbias.iter_mut().zip(&sums[c..]).for_each(|(d, x)| *d += x);
        }
    }
    Ok(())
}

fn gpu_backward(
    gpu: &Gpu,
    dinp: &mut Tensor,
    dparams: Option<(&mut Tensor, &mut Tensor)>,
    [dout, inp, mean, rstd, weight]: [&Tensor; 5],
) -> Result<()> {
    let (n, c) = inp.rows_cols();
    let blocks = n.div_ceil(kernels::layernorm_rows());
    let mut partial = match &dparams {
        Some(_) => Some(Tensor::scratch_on(&inp.device(), "layernorm_partial", DType::F32, &[2, blocks, c])?),
        None => None,
    };
    let (grid, sums) = (Grid::new(blocks), partial.as_mut());
    // SAFETY: shapes were checked, and `partial` has a row for each block.
    unsafe { kernels::layernorm_backward(gpu, grid, dinp, sums, dout, inp, mean, rstd, weight, n, c)? };
    let (Some((dweight, dbias)), Some(partial)) = (dparams, partial) else { return Ok(()) };
    sum_rows(dweight, &partial.rows(0..1)?)?;
    sum_rows(dbias, &partial.rows(1..2)?)
}

struct Backward<'a> {
    dinp: &'a mut [f32],
    /// Empty if not wanted, as is `dbias`.
    dweight: &'a mut [f32],
    dbias: &'a mut [f32],
    dout: &'a [f32],
    inp: &'a [f32],
    mean: &'a [f32],
    rstd: &'a [f32],
    weight: &'a [f32],
}

impl Kernel for Backward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let c = self.weight.len();
        for n in 0..self.mean.len() {
            let (x, dy) = (&self.inp[n * c..][..c], &self.dout[n * c..][..c]);
            let dx = &mut self.dinp[n * c..][..c];
            let (m, r) = (s.splat(self.mean[n]), s.splat(self.rstd[n]));
            let (mut sum, mut dot) = (s.splat(0.0), s.splat(0.0));
            for i in (0..c).step_by(S::LANES) {
                // Lanes past the end have a weight of 0.
                let wdy = s.mul(s.read_some(&dy[i..]), s.read_some(&self.weight[i..]));
                let xhat = s.mul(s.sub(s.read_some(&x[i..]), m), r);
                sum = s.add(sum, wdy);
                dot = s.fma(wdy, xhat, dot);
            }
            // dx = rstd (w dy - mean(w dy) - xhat mean(w dy xhat))
            let (sum, dot) = (s.splat(s.sum(sum) / c as f32), s.splat(s.sum(dot) / c as f32));
            for i in (0..c).step_by(S::LANES) {
                let dy = s.read_some(&dy[i..]);
                let xhat = s.mul(s.sub(s.read_some(&x[i..]), m), r);
                let wdy = s.mul(dy, s.read_some(&self.weight[i..]));
                let g = s.sub(s.sub(wdy, sum), s.mul(xhat, dot));
                let total = s.fma(g, r, s.read_some(&dx[i..]));
                s.write_some(&mut dx[i..], total);
                if !self.dweight.is_empty() {
                    let dw = s.fma(dy, xhat, s.read_some(&self.dweight[i..]));
                    s.write_some(&mut self.dweight[i..], dw);
                    let db = s.add(dy, s.read_some(&self.dbias[i..]));
                    s.write_some(&mut self.dbias[i..], db);
                }
            }
        }
    }
}

/// The naive oracle, in f64.
pub mod reference {
    /// out (N, C), mean (N), rstd (N) from inp (N, C), weight (C), bias (C).
    pub fn forward(
        out: &mut [f64],
        mean: &mut [f64],
        rstd: &mut [f64],
        inp: &[f64],
        weight: &[f64],
        bias: &[f64],
        eps: f64,
    ) {
        let c = weight.len();
        for (n, x) in inp.chunks_exact(c).enumerate() {
            mean[n] = x.iter().sum::<f64>() / c as f64;
            let variance = x.iter().map(|x| (x - mean[n]).powi(2)).sum::<f64>() / c as f64;
            rstd[n] = 1.0 / (variance + eps).sqrt();
            for i in 0..c {
                out[n * c + i] = (x[i] - mean[n]) * rstd[n] * weight[i] + bias[i];
            }
        }
    }
    /// dinp (N, C) += ; dweight (C) += ; dbias (C) += ; from dout, inp (N, C), mean, rstd (N), weight (C).
    pub fn backward(
        [dinp, dweight, dbias]: [&mut [f64]; 3],
        dout: &[f64],
        inp: &[f64],
        mean: &[f64],
        rstd: &[f64],
        weight: &[f64],
    ) {
        let c = weight.len();
        for (n, x) in inp.chunks_exact(c).enumerate() {
            let dy = &dout[n * c..][..c];
            let xhat: Vec<f64> = x.iter().map(|x| (x - mean[n]) * rstd[n]).collect();
            let sum: f64 = (0..c).map(|i| dy[i] * weight[i]).sum::<f64>() / c as f64;
            let dot: f64 = (0..c).map(|i| dy[i] * weight[i] * xhat[i]).sum::<f64>() / c as f64;
            for i in 0..c {
                dinp[n * c + i] += rstd[n] * (dy[i] * weight[i] - sum - xhat[i] * dot);
                dweight[i] += dy[i] * xhat[i];
                dbias[i] += dy[i];
            }
        }
    }
}
