//! Gated activations (Shazeer 2020) between the two halves of the MLP: SwiGLU, and GeGLU with either form of GELU.
#![allow(unsafe_code)]
use anyhow::{Result, bail};

use crate::tensor::{Tensor, refuse_overlap};

use super::{
    activation::{Activation, Gate, Gelu, GeluTanh, Silu},
    checks::check,
    kernels,
    launch::{Grid, gpu_of},
    parallel::{Shared, for_each_rows},
    simd::{Kernel, Simd, run},
};

/// [`gated_forward`] with SiLU.
pub fn swiglu_forward(out: &mut Tensor, gate: &Tensor, up: &Tensor) -> Result<()> {
    gated_forward(out, gate, up, Activation::Silu)
}

/// [`gated_backward`] with SiLU, without act.
pub fn swiglu_backward(
    dgate: &mut Tensor,
    dup: &mut Tensor,
    dout: &Tensor,
    gate: &Tensor,
    up: &Tensor,
) -> Result<()> {
    gated_backward(dgate, dup, None, dout, gate, up, Activation::Silu)
}

/// out (N, F) = f(gate) * up for gate, up (N, F). f is SiLU or one of the GELUs; another is an error that names it.
pub fn gated_forward(out: &mut Tensor, gate: &Tensor, up: &Tensor, f: Activation) -> Result<()> {
    let shape = out.rows_cols();
    let op = name(f, true)?;
    check(gate.rows_cols() == shape && up.rows_cols() == shape, op, &[out, gate, up])?;
    refuse_overlap(&[out], &[gate, up])?;
    if let Some(gpu) = gpu_of(op, &[out, gate, up])? {
        let launch = match f {
            Activation::Gelu => kernels::geglu_forward,
            Activation::GeluTanh => kernels::geglu_tanh_forward,
            _ => kernels::swiglu_forward,
        };
        let (grid, n) = (Grid::vectors(out), out.len() as u64);
        // SAFETY: shapes were checked.
        return unsafe { launch(&gpu, grid, out, gate, up, n) };
    }
    let (rows, cols) = shape;
    let (gate, up) = (gate.f32()?, up.f32()?);
    let out = Shared::new(out.f32_mut()?);
    for_each_rows(rows, cols, |block| {
        let (start, end) = (block.start * cols, block.end * cols);
        // SAFETY: blocks of rows do not overlap.
        let out = unsafe { out.part(start, end - start) };
        run(Forward { out, gate: &gate[start..end], up: &up[start..end], f })
    });
    Ok(())
}

/// The op's name in messages.
fn name(f: Activation, forward: bool) -> Result<&'static str> {
    Ok(match (f, forward) {
        (Activation::Silu, true) => "swiglu_forward",
        (Activation::Silu, false) => "swiglu_backward",
        (Activation::Gelu | Activation::GeluTanh, true) => "geglu_forward",
        (Activation::Gelu | Activation::GeluTanh, false) => "geglu_backward",
        (Activation::Relu | Activation::Tanh, _) => {
            bail!("{f:?} does not gate here: Silu, Gelu and GeluTanh do")
        }
    })
}

struct Forward<'a> {
    out: &'a mut [f32],
    gate: &'a [f32],
    up: &'a [f32],
    f: Activation,
}

impl Kernel for Forward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.f {
            Activation::Gelu => self.all::<S, Gelu>(s),
            Activation::GeluTanh => self.all::<S, GeluTanh>(s),
            _ => self.all::<S, Silu>(s),
        }
    }
}

impl Forward<'_> {
    #[inline(always)]
    fn all<S: Simd, F: Gate>(self, s: S) {
        for i in (0..self.out.len()).step_by(S::LANES) {
            let (g, u) = (s.read_some(&self.gate[i..]), s.read_some(&self.up[i..]));
            s.write_some(&mut self.out[i..], s.mul(s.mul(g, F::share(s, g)), u));
        }
    }
}

/// dgate (N, F) = and dup (N, F) = the gradient of [`gated_forward`] for dout (N, F); act (N, F), where it is wanted, = what the forward gave, which costs
/// little here.
pub fn gated_backward(
    dgate: &mut Tensor,
    dup: &mut Tensor,
    act: Option<&mut Tensor>,
    dout: &Tensor,
    gate: &Tensor,
    up: &Tensor,
    f: Activation,
) -> Result<()> {
    let shape = dout.rows_cols();
    let op = name(f, false)?;
    check(
        [&*dgate, &*dup, gate, up].iter().all(|t| t.rows_cols() == shape),
        op,
        &[dgate, dup, dout, gate, up],
    )?;
    refuse_overlap(&[dgate, dup], &[dout, gate, up])?;
    if let Some(act) = &act {
        check(act.rows_cols() == shape, op, &[act, dout, gate, up])?;
        refuse_overlap(&[act], &[dgate, dup, dout, gate, up])?;
        gpu_of(op, &[act, dout])?;
    }
    if let Some(gpu) = gpu_of(op, &[dgate, dup, dout, gate, up])? {
        let launch = match f {
            Activation::Gelu => kernels::geglu_backward,
            Activation::GeluTanh => kernels::geglu_tanh_backward,
            _ => kernels::swiglu_backward,
        };
        let (grid, n) = (Grid::vectors(dout), dout.len() as u64);
        // SAFETY: shapes were checked.
        return unsafe { launch(&gpu, grid, dgate, dup, act, dout, gate, up, n) };
    }
    if let Some(act) = act {
        gated_forward(act, gate, up, f)?;
    }
    let (rows, cols) = shape;
    let (dout, gate, up) = (dout.f32()?, gate.f32()?, up.f32()?);
    let (dgate, dup) = (Shared::new(dgate.f32_mut()?), Shared::new(dup.f32_mut()?));
    for_each_rows(rows, cols, |block| {
        let (start, end) = (block.start * cols, block.end * cols);
        // SAFETY: blocks of rows do not overlap.
        let (dgate, dup) = unsafe { (dgate.part(start, end - start), dup.part(start, end - start)) };
        let (dout, gate, up) = (&dout[start..end], &gate[start..end], &up[start..end]);
        run(Backward { dgate, dup, dout, gate, up, f })
    });
    Ok(())
}

struct Backward<'a> {
    dgate: &'a mut [f32],
    dup: &'a mut [f32],
    dout: &'a [f32],
    gate: &'a [f32],
    up: &'a [f32],
    f: Activation,
}

impl Kernel for Backward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.f {
            Activation::Gelu => self.all::<S, Gelu>(s),
            Activation::GeluTanh => self.all::<S, GeluTanh>(s),
            _ => self.all::<S, Silu>(s),
        }
    }
}

impl Backward<'_> {
    #[inline(always)]
    fn all<S: Simd, F: Gate>(self, s: S) {
        for i in (0..self.dout.len()).step_by(S::LANES) {
            let (g, u) = (s.read_some(&self.gate[i..]), s.read_some(&self.up[i..]));
            let (d, share) = (s.read_some(&self.dout[i..]), F::share(s, g));
            s.write_some(&mut self.dgate[i..], s.mul(s.mul(d, u), F::slope(s, g, share)));
            s.write_some(&mut self.dup[i..], s.mul(s.mul(d, g), share));
        }
    }
}

/// The naive oracle, in f64.
pub mod reference {
    use crate::ops::activation::{Activation, reference as activation};

    /// out = f(gate) * up.
    pub fn forward(out: &mut [f64], gate: &[f64], up: &[f64], f: Activation) {
        activation::forward(out, gate, f);
        out.iter_mut().zip(up).for_each(|(o, u)| *o *= u);
    }
    /// dgate =, dup = from dout.
    pub fn backward(
        dgate: &mut [f64],
        dup: &mut [f64],
        dout: &[f64],
        gate: &[f64],
        up: &[f64],
        f: Activation,
    ) {
        activation::forward(dup, gate, f);
        let du: Vec<f64> = dout.iter().zip(up).map(|(d, u)| d * u).collect();
        activation::backward(dgate, &du, gate, f);
        dup.iter_mut().zip(dout).for_each(|(x, d)| *x *= d);
    }
}
