//! Element-wise activations: GELU (Hendrycks and Gimpel 2016; exact, by erf, or by tanh), SiLU, ReLU, tanh; and the cap of logits.
#![allow(unsafe_code)]
use anyhow::{Result, ensure};

use crate::tensor::{Tensor, refuse_overlap};

use super::{
    checks::check,
    kernels,
    launch::{Grid, gpu_of},
    parallel::{Shared, for_each_rows},
    simd::{Kernel, Simd, run},
};

/// Which function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x Φ(x), Φ the normal distribution by erf.
    Gelu,
    /// x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2: PyTorch's `gelu(approximate="tanh")`, `gelu_pytorch_tanh` in configs.
    GeluTanh,
    /// x / (1 + exp(-x))
    Silu,
    /// max(x, 0); NaN stays NaN, the slope at 0 is 0.
    Relu,
    /// tanh(x)
    Tanh,
}

/// out = f(inp), element by element, of any shape.
pub fn activation_forward(out: &mut Tensor, inp: &Tensor, f: Activation) -> Result<()> {
    let shape = out.rows_cols();
    check(inp.rows_cols() == shape, "activation_forward", &[out, inp])?;
    refuse_overlap(&[out], &[inp])?;
    if let Some(gpu) = gpu_of("activation_forward", &[out, inp])? {
        let launch = match f {
            Activation::Gelu => kernels::gelu_forward,
            Activation::GeluTanh => kernels::gelu_tanh_forward,
            Activation::Silu => kernels::silu_forward,
            Activation::Relu => kernels::relu_forward,
            Activation::Tanh => kernels::tanh_forward,
        };
        let (grid, n) = (Grid::vectors(out), out.len() as u64);
        // SAFETY: shapes were checked.
        return unsafe { launch(&gpu, grid, out, inp, n) };
    }
    let (rows, cols) = shape;
    let (out, inp) = (Shared::new(out.f32_mut()?), inp.f32()?);
    for_each_rows(rows, cols * WORK, |block| {
        let (start, end) = (block.start * cols, block.end * cols);
        // SAFETY: blocks of rows do not overlap.
        run(Forward { out: unsafe { out.part(start, end - start) }, inp: &inp[start..end], f });
    });
    Ok(())
}

/// dinp = dout f'(inp), element by element: the gradient of [`activation_forward`].
pub fn activation_backward(dinp: &mut Tensor, dout: &Tensor, inp: &Tensor, f: Activation) -> Result<()> {
    let shape = dinp.rows_cols();
    let fits = dout.rows_cols() == shape && inp.rows_cols() == shape;
    check(fits, "activation_backward", &[dinp, dout, inp])?;
    refuse_overlap(&[dinp], &[dout, inp])?;
    if let Some(gpu) = gpu_of("activation_backward", &[dinp, dout, inp])? {
        let launch = match f {
            Activation::Gelu => kernels::gelu_backward,
            Activation::GeluTanh => kernels::gelu_tanh_backward,
            Activation::Silu => kernels::silu_backward,
            Activation::Relu => kernels::relu_backward,
            Activation::Tanh => kernels::tanh_backward,
        };
        let (grid, n) = (Grid::vectors(dinp), dinp.len() as u64);
        // SAFETY: shapes were checked.
        return unsafe { launch(&gpu, grid, dinp, dout, inp, n) };
    }
    let (rows, cols) = shape;
    let (dinp, dout, inp) = (Shared::new(dinp.f32_mut()?), dout.f32()?, inp.f32()?);
    for_each_rows(rows, cols * WORK, |block| {
        let (start, end) = (block.start * cols, block.end * cols);
        // SAFETY: blocks of rows do not overlap.
        let dinp = unsafe { dinp.part(start, end - start) };
        run(Backward { dinp, dout: &dout[start..end], inp: &inp[start..end], f });
    });
    Ok(())
}

/// x = cap tanh(x / cap), element by element, in place: the soft cap of decoding's logits (Gemma 2's `final_logit_softcapping`).
/// The loss caps its own (`cross_entropy::Head`). Errors unless `cap` is above 0 and finite.
pub fn softcap(x: &mut Tensor, cap: f32) -> Result<()> {
    ensure!(cap > 0.0 && cap.is_finite(), "softcap: {x:?} cannot be capped to {cap}");
    if let Some(gpu) = x.gpu().cloned() {
        let (grid, n) = (Grid::vectors(x), x.len() as u64);
        // SAFETY: n is x's.
        return unsafe { kernels::softcap(&gpu, grid, x, cap, n) };
    }
    let (rows, cols) = x.rows_cols();
    let x = Shared::new(x.f32_mut()?);
    for_each_rows(rows, cols * WORK, |block| {
        // SAFETY: blocks of rows do not overlap.
        run(SoftCap { x: unsafe { x.part(block.start * cols, block.len() * cols) }, cap });
    });
    Ok(())
}

struct SoftCap<'a> {
    x: &'a mut [f32],
    cap: f32,
}

impl Kernel for SoftCap<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        soft_cap(s, self.x, self.cap);
    }
}

/// x = cap tanh(x / cap) of a slice of any length.
#[inline(always)]
pub(crate) fn soft_cap<S: Simd>(s: S, x: &mut [f32], cap: f32) {
    let (factor, cap) = (s.splat(1.0 / cap), s.splat(cap));
    for i in (0..x.len()).step_by(S::LANES) {
        let y = s.mul(cap, TANH.at(s, s.mul(s.read_some(&x[i..]), factor)));
        s.write_some(&mut x[i..], y);
    }
}

/// The slope of [`soft_cap`] where its result is `y`; 0 for a masked score of minus infinity. `factor` is 1 / cap.
#[inline(always)]
pub(crate) fn soft_cap_slope<S: Simd>(s: S, y: S::V, factor: f32) -> S::V {
    let t = s.max(s.splat(-1.0), s.mul(y, s.splat(factor)));
    s.sub(s.splat(1.0), s.mul(t, t))
}

/// Operations an element, about.
const WORK: usize = 4;

struct Forward<'a> {
    out: &'a mut [f32],
    inp: &'a [f32],
    f: Activation,
}

impl Kernel for Forward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for i in (0..self.out.len()).step_by(S::LANES) {
            let x = s.read_some(&self.inp[i..]);
            let y = match self.f {
                Activation::Gelu => s.mul(x, normal(s, x)),
                Activation::GeluTanh => s.mul(x, GeluTanh::share(s, x)),
                Activation::Silu => s.mul(x, Silu::share(s, x)),
                Activation::Relu => s.max(s.splat(0.0), x),
                Activation::Tanh => TANH.at(s, x),
            };
            s.write_some(&mut self.out[i..], y);
        }
    }
}

struct Backward<'a> {
    dinp: &'a mut [f32],
    dout: &'a [f32],
    inp: &'a [f32],
    f: Activation,
}

impl Kernel for Backward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if self.f == Activation::Relu {
            let pairs = self.dout.iter().zip(self.inp);
            self.dinp.iter_mut().zip(pairs).for_each(|(o, (d, x))| *o = if *x > 0.0 { *d } else { 0.0 });
            return;
        }
        for i in (0..self.dinp.len()).step_by(S::LANES) {
            let (d, x) = (s.read_some(&self.dout[i..]), s.read_some(&self.inp[i..]));
            let slope = match self.f {
                Activation::Gelu => Gelu::slope(s, x, Gelu::share(s, x)),
                Activation::GeluTanh => GeluTanh::slope(s, x, GeluTanh::share(s, x)),
                Activation::Silu => Silu::slope(s, x, Silu::share(s, x)),
                Activation::Relu | Activation::Tanh => {
                    let y = TANH.at(s, x);
                    s.sub(s.splat(1.0), s.mul(y, y))
                }
            };
            s.write_some(&mut self.dinp[i..], s.mul(d, slope));
        }
    }
}

/// A function x share(x) that can gate.
pub(crate) trait Gate {
    /// f(x) / x
    fn share<S: Simd>(s: S, x: S::V) -> S::V;
    /// f'(x), from `share` at x.
    fn slope<S: Simd>(s: S, x: S::V, share: S::V) -> S::V;
}

/// [`Activation::Silu`]
pub(crate) struct Silu;
impl Gate for Silu {
    #[inline(always)]
    fn share<S: Simd>(s: S, x: S::V) -> S::V {
        let one = s.splat(1.0);
        s.div(one, s.add(one, s.exp(s.sub(s.splat(0.0), x))))
    }
    #[inline(always)]
    fn slope<S: Simd>(s: S, x: S::V, share: S::V) -> S::V {
        let one = s.splat(1.0);
        s.mul(share, s.fma(x, s.sub(one, share), one))
    }
}

/// [`Activation::Gelu`]
pub(crate) struct Gelu;
impl Gate for Gelu {
    #[inline(always)]
    fn share<S: Simd>(s: S, x: S::V) -> S::V {
        normal(s, x)
    }
    #[inline(always)]
    fn slope<S: Simd>(s: S, x: S::V, share: S::V) -> S::V {
        // Φ + x φ, φ(x) = exp(-x²/2) / √(2π)
        let density = s.exp(s.mul(s.mul(x, x), s.splat(-0.5)));
        s.fma(s.mul(x, s.splat(0.398_942_3)), density, share)
    }
}

/// [`Activation::GeluTanh`]
pub(crate) struct GeluTanh;
impl Gate for GeluTanh {
    #[inline(always)]
    fn share<S: Simd>(s: S, x: S::V) -> S::V {
        let inner = s.mul(x, s.fma(s.mul(x, x), s.splat(ROOT * CUBE), s.splat(ROOT)));
        s.fma(TANH.at(s, inner), s.splat(0.5), s.splat(0.5))
    }
    #[inline(always)]
    fn slope<S: Simd>(s: S, x: S::V, share: S::V) -> S::V {
        // (1 - tanh²) / 2 = 2 share (1 - share), times the slope of the inner polynomial.
        let inner = s.fma(s.mul(x, x), s.splat(3.0 * ROOT * CUBE), s.splat(ROOT));
        let bell = s.mul(s.mul(share, s.splat(2.0)), s.sub(s.splat(1.0), share));
        s.fma(s.mul(x, bell), inner, share)
    }
}
/// √(2/π)
const ROOT: f32 = 0.797_884_6;
const CUBE: f32 = 0.044_715;

/// Φ(x) = (1 + erf(x / √2)) / 2
#[inline(always)]
fn normal<S: Simd>(s: S, x: S::V) -> S::V {
    let erf = ERF.at(s, s.mul(x, s.splat(std::f32::consts::FRAC_1_SQRT_2)));
    s.fma(erf, s.splat(0.5), s.splat(0.5))
}

/// An odd function as x P(x²) / Q(x²), Q(0) = 1, that is ±1 from ±`limit` on; relative error below 5e-7. The coefficients are
/// minimax fits; the last of P is a little too large, so that the value at the limit, which is cut to 1, is never short of it.
struct Odd {
    limit: f32,
    p: [f32; 6],
    q: [f32; 5],
}

const ERF: Odd = Odd {
    limit: 4.0,
    p: [
        std::f32::consts::FRAC_2_SQRT_PI,
        0.193_543_76,
        0.053_101_584,
        0.003_883_292_2,
        2.845_653_8e-4,
        1.986_813e-6,
    ],
    q: [0.504_856_2, 0.115_349_48, 0.015_207_146, 1.185_559_8e-3, 3.742_033_4e-5],
};
const TANH: Odd = Odd {
    limit: 9.1,
    p: [1.0, 0.133_810_34, 0.003_495_597_3, 2.060_922_8e-5, 1.335_485_4e-8, 0.0],
    q: [0.467_143_48, 0.025_877_018, 3.285_649_6e-4, 7.776_639e-7, 0.0],
};

impl Odd {
    #[inline(always)]
    fn at<S: Simd>(&self, s: S, x: S::V) -> S::V {
        let cut = |x, limit: f32| s.min(s.splat(limit), s.max(s.splat(-limit), x));
        let x = cut(x, self.limit);
        let u = s.mul(x, x);
        let mut p = s.splat(self.p[5]);
        for &c in self.p[..5].iter().rev() {
            p = s.fma(p, u, s.splat(c));
        }
        let mut q = s.splat(self.q[4]);
        for &c in self.q[..4].iter().rev() {
            q = s.fma(q, u, s.splat(c));
        }
        let q = s.fma(q, u, s.splat(1.0));
        cut(s.div(s.mul(x, p), q), 1.0)
    }
}

/// The naive oracle, in f64.
pub mod reference {
    use super::Activation;

    /// out = f(inp)
    pub fn forward(out: &mut [f64], inp: &[f64], f: Activation) {
        out.iter_mut().zip(inp).for_each(|(o, &x)| {
            *o = match f {
                Activation::Gelu => x * normal(x),
                Activation::GeluTanh => x * 0.5 * (1.0 + inner(x).tanh()),
                Activation::Silu => x / (1.0 + (-x).exp()),
                Activation::Relu => x.max(0.0),
                Activation::Tanh => x.tanh(),
            }
        });
    }
    /// dinp = dout f'(inp)
    pub fn backward(dinp: &mut [f64], dout: &[f64], inp: &[f64], f: Activation) {
        for i in 0..dinp.len() {
            let x = inp[i];
            dinp[i] = dout[i]
                * match f {
                    Activation::Gelu => {
                        normal(x) + x * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()
                    }
                    Activation::GeluTanh => {
                        let t = inner(x).tanh();
                        let slope = (2.0 / std::f64::consts::PI).sqrt() * (1.0 + 3.0 * 0.044715 * x * x);
                        0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope
                    }
                    Activation::Silu => {
                        let s = 1.0 / (1.0 + (-x).exp());
                        s + x * s * (1.0 - s)
                    }
                    Activation::Relu => f64::from(u8::from(x > 0.0)),
                    Activation::Tanh => 1.0 - x.tanh() * x.tanh(),
                };
        }
    }
    /// x = cap tanh(x / cap)
    pub fn softcap(x: &mut [f64], cap: f64) {
        x.iter_mut().for_each(|x| *x = cap * (*x / cap).tanh());
    }
    /// The tanh form's argument.
    fn inner(x: f64) -> f64 {
        (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)
    }
    /// Φ(x) = 1/2 + φ(x) (x + x³/3 + x⁵/(3·5) + ...) (Marsaglia 2004), 0 or 1 beyond 10.
    fn normal(x: f64) -> f64 {
        if x.abs() > 10.0 {
            return if x > 0.0 { 1.0 } else { 0.0 };
        }
        let (mut term, mut sum, mut n) = (x, x, 1.0);
        while term.abs() > 1e-18 * sum.abs() {
            n += 2.0;
            term *= x * x / n;
            sum += term;
        }
        0.5 + sum * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::simd::{Level, run_at};

    #[test]
    fn every_instruction_set_equals_the_oracle_and_saturates() {
        for level in Level::available() {
            for f in [Activation::Gelu, Activation::GeluTanh, Activation::Silu, Activation::Tanh] {
                let inp: Vec<f32> = (-40_000..=40_000).map(|i| i as f32 * 3e-4).collect();
                let wide: Vec<f64> = inp.iter().map(|&x| x as f64).collect();
                let (mut out, mut want) = (vec![f32::NAN; inp.len()], vec![0.0; inp.len()]);
                run_at(level, Forward { out: &mut out, inp: &inp, f });
                reference::forward(&mut want, &wide, f);
                for (i, x) in inp.iter().enumerate() {
                    let error = (out[i] as f64 - want[i]).abs();
                    // erf is known to 5e-7 of itself, so that x Φ(x) is to half of that times x, however small Φ(x).
                    let allowed = 5e-7 * want[i].abs() + 2.5e-7 * x.abs().max(1.0) as f64;
                    assert!(error <= allowed, "{level:?} {f:?}({x}) = {}", out[i]);
                }
                let mut ends = [0.0; 16];
                let mut inp = [1.0; 16];
                inp[..4].copy_from_slice(&[-1e4, 1e4, f32::NAN, -30.0]);
                run_at(level, Forward { out: &mut ends, inp: &inp, f });
                let top = if f == Activation::Tanh { [-1.0, 1.0, -1.0] } else { [0.0, 1e4, 0.0] };
                // SiLU at -30 is -30 exp(-30), which is not 0.
                let got = [ends[0], ends[1], ends[3]].map(|x| if x.abs() < 1e-11 { 0.0 } else { x });
                assert_eq!(got, top, "{level:?} {f:?}");
                assert!(ends[2].is_nan(), "{level:?} {f:?}");
            }
        }
    }
}
