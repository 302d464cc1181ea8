//! SwiGLU (Shazeer 2020): the gated activation between the two halves of the MLP.
#![allow(unsafe_code)]
use anyhow::Result;

use crate::{
    device::Arg,
    tensor::{Tensor, refuse_overlap},
};

use super::{
    checks::check,
    launch::{check_dtype, elementwise, gpu_of, kernel},
    parallel::{Shared, for_each_rows},
    simd::{Kernel, Simd, run},
};

/// out (N, F) = silu(gate) * up, silu(x) = x / (1 + exp(-x)).
pub fn swiglu_forward(out: &mut Tensor, gate: &Tensor, up: &Tensor) -> Result<()> {
    let shape = out.rows_cols();
    check(gate.rows_cols() == shape && up.rows_cols() == shape, "swiglu_forward", &[out, gate, up])?;
    refuse_overlap(&[out], &[gate, up])?;
    if let Some(gpu) = gpu_of("swiglu_forward", &[out, gate, up])? {
        check_dtype("swiglu_forward", gate.dtype(), &[out, up])?;
        let kernel = kernel!(gate.dtype(), "swiglu", "swiglu_forward");
        let args = [out.arg()?, gate.arg()?, up.arg()?, Arg::U64(out.len() as u64)];
        // SAFETY: the kernel's parameters; shapes were checked.
        return unsafe { gpu.launch(kernel, elementwise(out), &args) };
    }
    let (rows, cols) = shape;
    let (gate, up) = (gate.f32()?, up.f32()?);
    let out = Shared::new(out.f32_mut()?);
    for_each_rows(rows, cols, |block| {
        let (start, end) = (block.start * cols, block.end * cols);
        // SAFETY: blocks of rows do not overlap.
        let out = unsafe { out.part(start, end - start) };
        run(Forward { out, gate: &gate[start..end], up: &up[start..end] })
    });
    Ok(())
}

struct Forward<'a> {
    out: &'a mut [f32],
    gate: &'a [f32],
    up: &'a [f32],
}

impl Kernel for Forward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for i in (0..self.out.len()).step_by(S::LANES) {
            let (g, u) = (s.read_some(&self.gate[i..]), s.read_some(&self.up[i..]));
            s.write_some(&mut self.out[i..], s.mul(s.mul(g, sigmoid(s, g)), u));
        }
    }
}

/// 1 / (1 + exp(-x))
#[inline(always)]
fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    let one = s.splat(1.0);
    s.div(one, s.add(one, s.exp(s.sub(s.splat(0.0), x))))
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
    if let Some(gpu) = gpu_of("swiglu_backward", &[dgate, dup, dout, gate, up])? {
        check_dtype("swiglu_backward", gate.dtype(), &[dgate, dup, dout, up])?;
        let kernel = kernel!(gate.dtype(), "swiglu", "swiglu_backward");
        let n = Arg::U64(dout.len() as u64);
        let args = [dgate.arg()?, dup.arg()?, dout.arg()?, gate.arg()?, up.arg()?, n];
        // SAFETY: the kernel's parameters; shapes were checked.
        return unsafe { gpu.launch(kernel, elementwise(dout), &args) };
    }
    let (rows, cols) = shape;
    let (dout, gate, up) = (dout.f32()?, gate.f32()?, up.f32()?);
    let (dgate, dup) = (Shared::new(dgate.f32_mut()?), Shared::new(dup.f32_mut()?));
    for_each_rows(rows, cols, |block| {
        let (start, end) = (block.start * cols, block.end * cols);
        // SAFETY: blocks of rows do not overlap.
        let (dgate, dup) = unsafe { (dgate.part(start, end - start), dup.part(start, end - start)) };
        run(Backward { dgate, dup, dout: &dout[start..end], gate: &gate[start..end], up: &up[start..end] })
    });
    Ok(())
}

struct Backward<'a> {
    dgate: &'a mut [f32],
    dup: &'a mut [f32],
    dout: &'a [f32],
    gate: &'a [f32],
    up: &'a [f32],
}

impl Kernel for Backward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for i in (0..self.dout.len()).step_by(S::LANES) {
            let (g, u) = (s.read_some(&self.gate[i..]), s.read_some(&self.up[i..]));
            let (d, sig) = (s.read_some(&self.dout[i..]), sigmoid(s, g));
            // silu' = sig * (1 + g * (1 - sig))
            let one = s.splat(1.0);
            let slope = s.mul(sig, s.fma(g, s.sub(one, sig), one));
            s.write_some(&mut self.dgate[i..], s.mul(s.mul(d, u), slope));
            s.write_some(&mut self.dup[i..], s.mul(s.mul(d, g), sig));
        }
    }
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
