//! SwiGLU (Shazeer 2020): the gated activation between the two halves of the MLP.
use anyhow::Result;

use crate::tensor::{Tensor, refuse_overlap};

use super::checks::check;

/// out (N, F) = silu(gate) * up, silu(x) = x / (1 + exp(-x)).
pub fn swiglu_forward(out: &mut Tensor, gate: &Tensor, up: &Tensor) -> Result<()> {
    let shape = out.rows_cols();
    check(gate.rows_cols() == shape && up.rows_cols() == shape, "swiglu_forward", &[out, gate, up])?;
    refuse_overlap(&[out], &[gate, up])?;
    let (o, g, u) = (out.f32_mut()?, gate.f32()?, up.f32()?);
    for i in 0..o.len() {
        o[i] = g[i] / (1.0 + (-g[i]).exp()) * u[i];
    }
    Ok(())
}

/// dgate (N, F) = and dup (N, F) = the gradient of [`swiglu_forward`] for dout (N, F).
pub fn swiglu_backward(
    dgate: &mut Tensor,
    dup: &mut Tensor,
    dout: &Tensor,
    gate: &Tensor,
    up: &Tensor,
) -> Result<()> {
    let shape = dout.rows_cols();
    check(
        [&*dgate, &*dup, gate, up].iter().all(|t| t.rows_cols() == shape),
        "swiglu_backward",
        &[dgate, dup, dout, gate, up],
    )?;
    refuse_overlap(&[dgate, dup], &[dout, gate, up])?;
    let (dg, du, d, g, u) = (dgate.f32_mut()?, dup.f32_mut()?, dout.f32()?, gate.f32()?, up.f32()?);
    for i in 0..d.len() {
        let s = 1.0 / (1.0 + (-g[i]).exp());
        dg[i] = d[i] * u[i] * s * (1.0 + g[i] * (1.0 - s));
        du[i] = d[i] * g[i] * s;
    }
    Ok(())
}

/// The naive oracle, in f64.
pub mod reference {
    /// out = silu(gate) * up.
    pub fn forward(out: &mut [f64], gate: &[f64], up: &[f64]) {
        for i in 0..out.len() {
            out[i] = gate[i] / (1.0 + (-gate[i]).exp()) * up[i];
        }
    }
    /// dgate =, dup = from dout.
    pub fn backward(dgate: &mut [f64], dup: &mut [f64], dout: &[f64], gate: &[f64], up: &[f64]) {
        for i in 0..dout.len() {
            let s = 1.0 / (1.0 + (-gate[i]).exp());
            dgate[i] = dout[i] * up[i] * (s + gate[i] * s * (1.0 - s));
            dup[i] = dout[i] * gate[i] * s;
        }
    }
}
