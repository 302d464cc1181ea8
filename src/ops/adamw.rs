//! AdamW (Loshchilov & Hutter 2019, algorithm 2) in PyTorch's form: decay first, then the bias-corrected step.
#![allow(unsafe_code)]

use anyhow::{Result, ensure};

use crate::{
    ops::{
        checks::check,
        parallel::{Shared, for_each_task},
    },
    tensor::{Tensor, refuse_overlap},
};

/// One step's settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled: the parameter shrinks by lr * weight_decay.
    pub weight_decay: f32,
    /// 1 for the first step.
    pub step: u64,
    /// Factor on the gradient: the clip factor.
    pub grad_scale: f32,
}

const BLOCK: usize = 1 << 15;

/// param, m, v are updated in place from grad; all F32 and of one size.
pub fn adamw_update(
    param: &mut Tensor,
    m: &mut Tensor,
    v: &mut Tensor,
    grad: &Tensor,
    h: &AdamW,
) -> Result<()> {
    let n = param.len();
    check(m.len() == n && v.len() == n && grad.len() == n, "adamw_update", &[param, m, v, grad])?;
    refuse_overlap(&[param, m, v], &[grad])?;
    ensure!(h.step > 0, "adamw_update: step is counted from 1");
    let grad = grad.f32()?;
    let (param, m, v) = (Shared::new(param.f32_mut()?), Shared::new(m.f32_mut()?), Shared::new(v.f32_mut()?));
    for_each_task(n.div_ceil(BLOCK), n * 8, |task| {
        let start = task * BLOCK;
        let len = BLOCK.min(n - start);
        // SAFETY: each task has its own block.
        let (p, m, v) = unsafe { (param.part(start, len), m.part(start, len), v.part(start, len)) };
        update(p, m, v, &grad[start..][..len], h);
    });
    Ok(())
}

fn update(p: &mut [f32], m: &mut [f32], v: &mut [f32], grad: &[f32], h: &AdamW) {
    // The corrections in f64, as PyTorch computes them.
    let correct1 = 1.0 - (h.beta1 as f64).powf(h.step as f64);
    let correct2 = 1.0 - (h.beta2 as f64).powf(h.step as f64);
    let step_size = (h.lr as f64 / correct1) as f32;
    let root = correct2.sqrt() as f32;
    let keep = 1.0 - h.lr * h.weight_decay;
    for i in 0..p.len() {
        let g = grad[i] * h.grad_scale;
        m[i] += (1.0 - h.beta1) * (g - m[i]);
        v[i] = h.beta2 * v[i] + (1.0 - h.beta2) * g * g;
        p[i] = p[i] * keep - step_size * m[i] / (v[i].sqrt() / root + h.eps);
    }
}

/// The same in f64 over one element.
pub mod reference {
    use super::AdamW;

    /// One element's (param, m, v) after a step.
    pub fn step(p: f64, m: f64, v: f64, grad: f64, h: &AdamW) -> (f64, f64, f64) {
        let g = grad * h.grad_scale as f64;
        let (b1, b2) = (h.beta1 as f64, h.beta2 as f64);
        let (m, v) = (b1 * m + (1.0 - b1) * g, b2 * v + (1.0 - b2) * g * g);
        let (mh, vh) = (m / (1.0 - b1.powf(h.step as f64)), v / (1.0 - b2.powf(h.step as f64)));
        let p =
            p * (1.0 - h.lr as f64 * h.weight_decay as f64) - h.lr as f64 * mh / (vh.sqrt() + h.eps as f64);
        (p, m, v)
    }
}
