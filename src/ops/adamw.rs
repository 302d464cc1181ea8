//! AdamW (Loshchilov & Hutter 2019, algorithm 2) in PyTorch's form: decay first, then the bias-corrected step.
#![allow(unsafe_code)]

use anyhow::{Result, ensure};

use crate::{
    device::Device,
    ops::{
        checks::check,
        kernels,
        launch::{Grid, check_dtype, gpu_of},
        parallel::{Shared, for_each_task},
    },
    tensor::{DType, Tensor, refuse_overlap},
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

/// One tensor of [`AdamWTable`]: its part in the step.
pub struct Group {
    /// Updated in place.
    pub param: Tensor,
    /// First moment, updated in place.
    pub m: Tensor,
    /// Second moment, updated in place.
    pub v: Tensor,
    /// The gradient.
    pub grad: Tensor,
    /// Factor on the learning rate.
    pub lr_factor: f32,
    /// Of this tensor, instead of the step's.
    pub weight_decay: f32,
}

/// Many tensors laid out for one launch. On the CPU they are updated one after another.
pub struct AdamWTable {
    groups: Vec<Group>,
    /// (tensors, 14) words of adamw.cu's `Entry`, on the GPU.
    entries: Option<Tensor>,
    blocks: usize,
}

impl AdamWTable {
    /// Checks and lays out `groups`, all F32 and on one device.
    pub fn new(groups: Vec<Group>) -> Result<AdamWTable> {
        const OP: &str = "adamw_update";
        let (mut words, mut blocks): (Vec<u32>, usize) = (vec![], 0);
        let mut gpu = None;
        for g in &groups {
            let n = g.param.len();
            check(
                g.m.len() == n && g.v.len() == n && g.grad.len() == n,
                OP,
                &[&g.param, &g.m, &g.v, &g.grad],
            )?;
            check_dtype(OP, DType::F32, &[&g.param, &g.m, &g.v, &g.grad])?;
            refuse_overlap(&[&g.param, &g.m, &g.v], &[&g.grad])?;
            let Some(own) = gpu_of(OP, &[&groups[0].param, &g.param, &g.m, &g.v, &g.grad])? else { continue };
            gpu = Some(own);
            for at in [&g.param, &g.m, &g.v, &g.grad] {
                words.extend(split(at.address()?));
            }
            words.extend(split(n as u64));
            words.extend([u32::try_from(blocks)?, g.lr_factor.to_bits(), g.weight_decay.to_bits(), 0]);
            blocks += n.div_ceil(kernels::adamw_block());
        }
        ensure!(
            words.is_empty() || words.len() * 4 == groups.len() * kernels::adamw_entry_bytes(),
            "{OP}: adamw.cu's Entry is another"
        );
        let entries = match gpu {
            Some(gpu) if !words.is_empty() => {
                let mut t = Tensor::zeros_on(&Device::Cuda(gpu), "adamw_table", DType::U32, &[words.len()])?;
                t.write_u32(&words)?;
                Some(t)
            }
            _ => None,
        };
        Ok(AdamWTable { groups, entries, blocks })
    }

    /// One step of all tensors; `h.lr` and the moments' settings are common, decay is each tensor's own.
    pub fn update(&mut self, h: &AdamW) -> Result<()> {
        ensure!(h.step > 0, "adamw_update: step is counted from 1");
        let Some(entries) = &self.entries else {
            for g in &mut self.groups {
                let h = AdamW { lr: h.lr * g.lr_factor, weight_decay: g.weight_decay, ..*h };
                adamw_update(&mut g.param, &mut g.m, &mut g.v, &g.grad, &h)?;
            }
            return Ok(());
        };
        let Some(gpu) = entries.gpu() else { return Ok(()) };
        let (correct1, correct2) = corrections(h);
        let (grid, n) = (Grid::new(self.blocks), self.groups.len());
        let (correct1, root2) = (correct1 as f32, correct2.sqrt() as f32);
        // SAFETY: `new` checked every tensor of the table, which keeps them alive.
        unsafe {
            kernels::adamw_many(
                gpu,
                grid,
                entries,
                n,
                h.lr,
                h.beta1,
                h.beta2,
                h.eps,
                correct1,
                root2,
                h.grad_scale,
            )
        }
    }
}

pub(super) fn split(x: u64) -> [u32; 2] {
    [x as u32, (x >> 32) as u32]
}

/// 1 - beta^step of both moments, in f64, as PyTorch computes them.
pub(super) fn corrections(h: &AdamW) -> (f64, f64) {
    let correct = |beta: f32| 1.0 - (beta as f64).powf(h.step as f64);
    (correct(h.beta1), correct(h.beta2))
}

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
    let (correct1, correct2) = corrections(h);
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
