//! RMSNorm over the last dimension (Zhang and Sennrich 2019), with the residual addition before it as a fused variant.
use anyhow::Result;

use crate::tensor::{Tensor, refuse_overlap};

use super::checks::check;

/// out (N, C) = inp (N, C) * rstd (N) * weight (C), rstd = 1 / sqrt(mean(inp^2) + eps). `rstd` is saved for the backward.
pub fn rmsnorm_forward(
    out: &mut Tensor,
    rstd: &mut Tensor,
    inp: &Tensor,
    weight: &Tensor,
    eps: f32,
) -> Result<()> {
    let (n, c) = inp.rows_cols();
    check(
        out.rows_cols() == (n, c) && rstd.len() == n && weight.shape() == [c],
        "rmsnorm_forward",
        &[out, rstd, inp, weight],
    )?;
    refuse_overlap(&[out, rstd], &[inp, weight])?;
    let w = weight.f32()?;
    let (out, rstd, inp) = (out.f32_mut()?, rstd.f32_mut()?, inp.f32()?);
    for i in 0..n {
        let x = &inp[i * c..][..c];
        let r = 1.0 / (x.iter().map(|x| x * x).sum::<f32>() / c as f32 + eps).sqrt();
        rstd[i] = r;
        for j in 0..c {
            out[i * c + j] = x[j] * r * w[j];
        }
    }
    Ok(())
}

/// resid_out (N, C) = inp + resid; out (N, C), rstd (N) = RMSNorm of resid_out.
pub fn add_rmsnorm_forward(
    out: &mut Tensor,
    rstd: &mut Tensor,
    resid_out: &mut Tensor,
    inp: &Tensor,
    resid: &Tensor,
    weight: &Tensor,
    eps: f32,
) -> Result<()> {
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
    let (a, b) = (inp.f32()?, resid.f32()?);
    resid_out.f32_mut()?.iter_mut().zip(a.iter().zip(b)).for_each(|(o, (a, b))| *o = a + b);
    rmsnorm_forward(out, rstd, resid_out, weight, eps)
}

/// dinp (N, C) += and dweight (C) += the gradient of [`rmsnorm_forward`] for dout (N, C). Without `dweight` only dinp is made.
pub fn rmsnorm_backward(
    dinp: &mut Tensor,
    dweight: Option<&mut Tensor>,
    dout: &Tensor,
    inp: &Tensor,
    rstd: &Tensor,
    weight: &Tensor,
) -> Result<()> {
    let (n, c) = inp.rows_cols();
    check(
        dinp.rows_cols() == (n, c) && dout.rows_cols() == (n, c) && rstd.len() == n && weight.shape() == [c],
        "rmsnorm_backward",
        &[dinp, dout, inp, rstd, weight],
    )?;
    refuse_overlap(&[dinp], &[dout, inp, rstd, weight])?;
    let (dy, x, r, w) = (dout.f32()?, inp.f32()?, rstd.f32()?, weight.f32()?);
    if let Some(dweight) = dweight {
        check(dweight.shape() == [c], "rmsnorm_backward", &[dweight, dout, inp, rstd, weight])?;
        refuse_overlap(&[dweight], &[dinp, dout, inp, rstd, weight])?;
        let dw = dweight.f32_mut()?;
        for i in 0..n {
            for j in 0..c {
                dw[j] += dy[i * c + j] * x[i * c + j] * r[i];
            }
        }
    }
    let dx = dinp.f32_mut()?;
    for i in 0..n {
        let row = i * c..(i + 1) * c;
        let (x, dy, dx) = (&x[row.clone()], &dy[row.clone()], &mut dx[row]);
        let dot: f32 = (0..c).map(|j| dy[j] * w[j] * x[j]).sum();
        let k = dot * r[i] * r[i] / c as f32;
        for j in 0..c {
            dx[j] += r[i] * (dy[j] * w[j] - x[j] * k);
        }
    }
    Ok(())
}

/// The naive oracle, in f64.
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
