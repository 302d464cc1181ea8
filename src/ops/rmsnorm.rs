//! RMSNorm over the last dimension (Zhang and Sennrich 2019), with the residual addition before it as a fused variant.
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

/// Rows whose part of dweight is summed before it joins the others': fixed, so that the bits never depend on the threads.
const BLOCK: usize = 32;

/// By what a normalised row is multiplied: offset + weight, added in f32. `(&weight).into()` is the weight alone.
#[derive(Clone, Copy)]
pub struct Gain<'a> {
    /// (C), F32.
    pub weight: &'a Tensor,
    /// 1 in Gemma, whose files hold weight - 1 (`Gemma2RMSNorm` of transformers); 0 elsewhere.
    pub offset: f32,
}

impl<'a> From<&'a Tensor> for Gain<'a> {
    fn from(weight: &'a Tensor) -> Gain<'a> {
        Gain { weight, offset: 0.0 }
    }
}

impl<'a> Gain<'a> {
    /// The weight, and the number that is added to each: -0 for 0, which leaves every bit of a weight as it is.
    fn parts(self) -> (&'a Tensor, f32) {
        (self.weight, if self.offset == 0.0 { -0.0 } else { self.offset })
    }
}

/// out (N, C) = inp (N, C) * rstd (N) * gain (C), rstd = 1 / sqrt(mean(inp^2) + eps). `rstd` is saved for the backward.
/// Heads are rows, too: queries (N, NH*HS) viewed as (N*NH, HS) are normalised head by head.
pub fn rmsnorm_forward<'a>(
    out: &mut Tensor,
    rstd: &mut Tensor,
    inp: &Tensor,
    gain: impl Into<Gain<'a>>,
    eps: f32,
) -> Result<()> {
    let (weight, offset) = gain.into().parts();
    let (n, c) = inp.rows_cols();
    check(
        out.rows_cols() == (n, c) && rstd.len() == n && weight.shape() == [c],
        "rmsnorm_forward",
        &[out, rstd, inp, weight],
    )?;
    refuse_overlap(&[out, rstd], &[inp, weight])?;
    if let Some(gpu) = gpu_of("rmsnorm_forward", &[out, rstd, inp, weight])? {
        // SAFETY: shapes were checked.
        return unsafe {
            kernels::rmsnorm_forward(&gpu, Grid::new(n), out, rstd, inp, weight, offset, c, eps)
        };
    }
    let (out, rstd) = (Shared::new(out.f32_mut()?), Shared::new(rstd.f32_mut()?));
    let (inp, weight) = (inp.f32()?, weight.f32()?);
    for_each_rows(n, c, |block| {
        let x = &inp[block.start * c..block.end * c];
        // SAFETY: blocks of rows do not overlap.
        let (out, rstd) =
            unsafe { (out.part(block.start * c, x.len()), rstd.part(block.start, block.len())) };
        run(Forward { out, rstd, sum: None, inp: x, weight, offset, eps });
    });
    Ok(())
}

/// resid_out (N, C) = inp + resid; out (N, C), rstd (N) = RMSNorm of resid_out.
pub fn add_rmsnorm_forward<'a>(
    out: &mut Tensor,
    rstd: &mut Tensor,
    resid_out: &mut Tensor,
    inp: &Tensor,
    resid: &Tensor,
    gain: impl Into<Gain<'a>>,
    eps: f32,
) -> Result<()> {
    let (weight, offset) = gain.into().parts();
    let (n, c) = inp.rows_cols();
    check(
        out.rows_cols() == (n, c)
            && resid_out.rows_cols() == (n, c)
            && resid.rows_cols() == (n, c)
            && rstd.len() == n
            && weight.shape() == [c],
        "add_rmsnorm_forward",
        &[out, rstd, resid_out, inp, resid, weight],
    )?;
    refuse_overlap(&[out, rstd, resid_out], &[inp, resid, weight])?;
    if let Some(gpu) = gpu_of("add_rmsnorm_forward", &[out, rstd, resid_out, inp, resid, weight])? {
        let grid = Grid::new(n);
        // SAFETY: shapes were checked.
        return unsafe {
            kernels::add_rmsnorm_forward(&gpu, grid, out, rstd, resid_out, inp, resid, weight, offset, c, eps)
        };
    }
    let (out, rstd) = (Shared::new(out.f32_mut()?), Shared::new(rstd.f32_mut()?));
    let resid_out = Shared::new(resid_out.f32_mut()?);
    let (inp, resid, weight) = (inp.f32()?, resid.f32()?, weight.f32()?);
    for_each_rows(n, c, |block| {
        let rows = block.start * c..block.end * c;
        // SAFETY: blocks of rows do not overlap.
        let (out, rstd, sum) = unsafe {
            (
                out.part(rows.start, rows.len()),
                rstd.part(block.start, block.len()),
                resid_out.part(rows.start, rows.len()),
            )
        };
        let sum = Some((sum, &resid[rows.clone()]));
        run(Forward { out, rstd, sum, inp: &inp[rows], weight, offset, eps });
    });
    Ok(())
}

struct Forward<'a> {
    out: &'a mut [f32],
    rstd: &'a mut [f32],
    /// (resid_out, resid), if there is an addition first.
    sum: Option<(&'a mut [f32], &'a [f32])>,
    inp: &'a [f32],
    weight: &'a [f32],
    offset: f32,
    eps: f32,
}

impl Kernel for Forward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let c = self.weight.len();
        for (n, rstd) in self.rstd.iter_mut().enumerate() {
            let row = n * c..(n + 1) * c;
            let mut x = &self.inp[row.clone()];
            if let Some((sum, resid)) = &mut self.sum {
                let (sum, resid) = (&mut sum[row.clone()], &resid[row.clone()]);
                for i in (0..c).step_by(S::LANES) {
                    let total = s.add(s.read_some(&x[i..]), s.read_some(&resid[i..]));
                    s.write_some(&mut sum[i..], total);
                }
                x = sum;
            }
            *rstd = 1.0 / (s.dot(x, x) / c as f32 + self.eps).sqrt();
            let (out, r, offset) = (&mut self.out[row], s.splat(*rstd), s.splat(self.offset));
            for i in (0..c).step_by(S::LANES) {
                let scaled = s.mul(s.read_some(&x[i..]), r);
                let gain = s.add(s.read_some(&self.weight[i..]), offset);
                s.write_some(&mut out[i..], s.mul(scaled, gain));
            }
        }
    }
}

/// dinp (N, C) += and dweight (C) += the gradient of [`rmsnorm_forward`] for dout (N, C). Without `dweight` only dinp is made.
pub fn rmsnorm_backward<'a>(
    dinp: &mut Tensor,
    dweight: Option<&mut Tensor>,
    dout: &Tensor,
    inp: &Tensor,
    rstd: &Tensor,
    gain: impl Into<Gain<'a>>,
) -> Result<()> {
    backward(dinp, true, dweight, dout, inp, rstd, gain.into())
}

/// As [`rmsnorm_backward`], but dinp (N, C) =.
pub fn rmsnorm_backward_into<'a>(
    dinp: &mut Tensor,
    dweight: Option<&mut Tensor>,
    dout: &Tensor,
    inp: &Tensor,
    rstd: &Tensor,
    gain: impl Into<Gain<'a>>,
) -> Result<()> {
    backward(dinp, false, dweight, dout, inp, rstd, gain.into())
}

fn backward(
    dinp: &mut Tensor,
    add: bool,
    dweight: Option<&mut Tensor>,
    dout: &Tensor,
    inp: &Tensor,
    rstd: &Tensor,
    gain: Gain,
) -> Result<()> {
    let (weight, offset) = gain.parts();
    let (n, c) = inp.rows_cols();
    check(
        dinp.rows_cols() == (n, c) && dout.rows_cols() == (n, c) && rstd.len() == n && weight.shape() == [c],
        "rmsnorm_backward",
        &[dinp, dout, inp, rstd, weight],
    )?;
    refuse_overlap(&[dinp], &[dout, inp, rstd, weight])?;
    let blocks = n.div_ceil(BLOCK);
    if let Some(dweight) = &dweight {
        check(dweight.shape() == [c], "rmsnorm_backward", &[dweight, dout, inp, rstd, weight])?;
        refuse_overlap(&[dweight], &[dinp, dout, inp, rstd, weight])?;
    }
    if let Some(gpu) = gpu_of("rmsnorm_backward", &[dinp, dout, inp, rstd, weight])? {
        return gpu_backward(&gpu, dinp, add, dweight, [dout, inp, rstd, weight], offset);
    }
    if !add {
        dinp.fill_zero()?;
    }
    let mut partial = vec![0.0; if dweight.is_some() { blocks * c } else { 0 }];
    let (dout, inp, rstd, weight) = (dout.f32()?, inp.f32()?, rstd.f32()?, weight.f32()?);
    let (width, shared) = (partial.len() / blocks.max(1), Shared::new(&mut partial));
    let dinp = Shared::new(dinp.f32_mut()?);
    for_each_task(blocks, n * c * 2, |b| {
        let rows = b * BLOCK..((b + 1) * BLOCK).min(n);
        let all = rows.start * c..rows.end * c;
        // SAFETY: blocks of rows do not overlap, nor do their sums.
        let (dinp, dweight) = unsafe { (dinp.part(all.start, all.len()), shared.part(b * width, width)) };
        let (dout, inp, rstd) = (&dout[all.clone()], &inp[all], &rstd[rows]);
        run(Backward { dinp, dweight, dout, inp, rstd, weight, offset });
    });
    if let Some(dweight) = dweight {
        let dweight = dweight.f32_mut()?;
        for sums in partial.chunks_exact(c.max(1)) {
            dweight.iter_mut().zip(sums).for_each(|(d, x)| *d += x);
        }
    }
    Ok(())
}

fn gpu_backward(
    gpu: &Gpu,
    dinp: &mut Tensor,
    add: bool,
    dweight: Option<&mut Tensor>,
    [dout, inp, rstd, weight]: [&Tensor; 4],
    offset: f32,
) -> Result<()> {
    let (n, c) = inp.rows_cols();
    // A block a row, but for the sums of a dweight.
    let blocks = if dweight.is_some() { n.div_ceil(kernels::rmsnorm_rows()) } else { n };
    let mut partial = match &dweight {
        Some(_) => Some(Tensor::scratch_on(&inp.device(), "rmsnorm_partial", DType::F32, &[blocks, c])?),
        None => None,
    };
    let (grid, sums) = (Grid::new(blocks), partial.as_mut());
    // SAFETY: shapes were checked, and `partial` has a row for each block.
    unsafe {
        kernels::rmsnorm_backward(gpu, grid, dinp, sums, dout, inp, rstd, weight, offset, n, c, add as usize)?
    };
    match (dweight, partial) {
        (Some(dweight), Some(partial)) => sum_rows(dweight, &partial),
        _ => Ok(()),
    }
}

struct Backward<'a> {
    dinp: &'a mut [f32],
    /// Empty if not wanted.
    dweight: &'a mut [f32],
    dout: &'a [f32],
    inp: &'a [f32],
    rstd: &'a [f32],
    weight: &'a [f32],
    offset: f32,
}

impl Kernel for Backward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (c, offset) = (self.weight.len(), s.splat(self.offset));
        for (n, &r) in self.rstd.iter().enumerate() {
            let (x, dy) = (&self.inp[n * c..][..c], &self.dout[n * c..][..c]);
            let dx = &mut self.dinp[n * c..][..c];
            let mut sum = s.splat(0.0);
            for i in (0..c).step_by(S::LANES) {
                let wdy = s.mul(s.read_some(&dy[i..]), s.add(s.read_some(&self.weight[i..]), offset));
                sum = s.fma(wdy, s.read_some(&x[i..]), sum);
            }
            // dx = rstd (w dy) - x rstd^3 / C sum(w dy x)
            let (r, k) = (s.splat(r), s.splat(-r * r * r * (s.sum(sum) / c as f32)));
            for i in (0..c).step_by(S::LANES) {
                let (x, dy) = (s.read_some(&x[i..]), s.read_some(&dy[i..]));
                let gain = s.add(s.read_some(&self.weight[i..]), offset);
                let g = s.fma(x, k, s.mul(s.mul(dy, gain), r));
                let total = s.add(s.read_some(&dx[i..]), g);
                s.write_some(&mut dx[i..], total);
                if !self.dweight.is_empty() {
                    let dw = s.fma(s.mul(dy, x), r, s.read_some(&self.dweight[i..]));
                    s.write_some(&mut self.dweight[i..], dw);
                }
            }
        }
    }
}

/// The naive oracle, in f64; `weight` is the whole gain, its offset added.
pub mod reference {
    /// out (N, C), rstd (N) from inp (N, C), weight (C).
    pub fn forward(out: &mut [f64], rstd: &mut [f64], inp: &[f64], weight: &[f64], eps: f64) {
        let c = weight.len();
        for (n, x) in inp.chunks_exact(c).enumerate() {
            rstd[n] = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / c as f64 + eps).sqrt();
            for i in 0..c {
                out[n * c + i] = x[i] * rstd[n] * weight[i];
            }
        }
    }
    /// dinp (N, C) += ; dweight (C) += ; from dout, inp (N, C), rstd (N), weight (C).
    pub fn backward(
        dinp: &mut [f64],
        dweight: &mut [f64],
        dout: &[f64],
        inp: &[f64],
        rstd: &[f64],
        weight: &[f64],
    ) {
        let c = weight.len();
        for (n, x) in inp.chunks_exact(c).enumerate() {
            let dy = &dout[n * c..][..c];
            let dot: f64 = (0..c).map(|i| dy[i] * weight[i] * x[i]).sum();
            for i in 0..c {
                dinp[n * c + i] += rstd[n] * (dy[i] * weight[i] - x[i] * rstd[n] * rstd[n] * dot / c as f64);
                dweight[i] += dy[i] * x[i] * rstd[n];
            }
        }
    }
}
