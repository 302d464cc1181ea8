//! Muon (Jordan et al. 2024): momentum whose matrix is made nearly orthogonal by five steps of a Newton-Schulz iteration, as torch.optim.Muon with
//! `adjust_lr_fn="match_rms_adamw"` (Liu et al. 2025, "Muon is Scalable for LLM Training", section 2.2), in f32 where PyTorch iterates in bf16.
#![allow(unsafe_code)]
use anyhow::Result;

use super::{
    checks::check,
    gemm::{Layout, gemm},
    grad_norm::GradNorm,
    kernels,
    launch::{Grid, check_dtype, gpu_of},
    parallel::map_chunks,
    rows::cast,
};
use crate::tensor::{Arena, DType, Tensor, refuse_overlap};

/// One step's settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Muon {
    /// Learning rate of this step.
    pub lr: f32,
    /// Factor on the gradient: the clip factor.
    pub grad_scale: f32,
}

/// How much of the momentum stays.
const MOMENTUM: f32 = 0.95;

/// X' = a X + (b G + c G²) X, G = X Xᵀ, so often.
const STEPS: usize = 5;
const A: f32 = 3.4445;
const B: f32 = -4.7750;
const C: f32 = 2.0315;

/// The least norm that is divided by.
const EPS: f64 = 1e-7;

/// Elements of a task.
const TASK: usize = 1 << 14;

/// One matrix (R, C): its part in the step.
pub struct Matrix {
    /// Updated in place.
    pub param: Tensor,
    /// The gradient.
    pub grad: Tensor,
    /// Momentum, updated in place; zeros before the first step.
    pub moment: Tensor,
    /// Factor on the learning rate.
    pub lr_factor: f32,
    /// Decoupled: the parameter shrinks by the learning rate times this.
    pub weight_decay: f32,
}

/// Memory that all matrices share.
pub struct Scratch {
    /// Two of the largest matrix.
    x: [Tensor; 2],
    /// Two squares of the largest smaller side.
    g: [Tensor; 2],
}

impl Scratch {
    /// For matrices of these shapes.
    pub fn lay_out(shapes: &[[usize; 2]], a: &mut Arena) -> Scratch {
        let most = |of: fn(&[usize; 2]) -> usize| shapes.iter().map(of).max().unwrap_or(0);
        let (n, side) = (most(|s| s[0] * s[1]), most(|s| s[0].min(s[1])));
        let mut new = |name: &str, n: usize| a.tensor(name, DType::F32, &[n]);
        Scratch {
            x: [new("muon_x", n), new("muon_next", n)],
            g: [new("muon_gram", side * side), new("muon_power", side * side)],
        }
    }
}

/// Many matrices, updated one after another.
pub struct MuonTable {
    matrices: Vec<Matrix>,
    /// Of the update of each, in the scratch.
    norms: Vec<GradNorm>,
    scratch: Scratch,
}

impl MuonTable {
    /// Checks `matrices`, all F32, on one device, and within the scratch.
    pub fn new(matrices: Vec<Matrix>, scratch: Scratch) -> Result<MuonTable> {
        const OP: &str = "muon_update";
        let mut norms = vec![];
        for m in &matrices {
            let all = [&m.param, &m.grad, &m.moment];
            let n = m.param.len();
            check(m.param.shape().len() == 2 && all.iter().all(|t| t.len() == n), OP, &all)?;
            check_dtype(OP, DType::F32, &all)?;
            refuse_overlap(&[&m.param, &m.moment], &[&m.grad])?;
            gpu_of(OP, &[all[0], all[1], all[2], &scratch.x[0]])?;
            norms.push(GradNorm::new(vec![scratch.x[0].rows(0..n)?])?);
        }
        Ok(MuonTable { matrices, norms, scratch })
    }

    /// One step of all matrices.
    pub fn update(&mut self, h: &Muon) -> Result<()> {
        let scratch = &self.scratch;
        self.matrices.iter_mut().zip(&mut self.norms).try_for_each(|(m, norm)| update(m, norm, scratch, h))
    }
}

fn update(m: &mut Matrix, norm: &mut GradNorm, scratch: &Scratch, h: &Muon) -> Result<()> {
    let (rows, cols) = m.param.rows_cols();
    let part = |t: &Tensor, [r, c]: [usize; 2]| t.rows(0..r * c)?.view(&[r, c]);
    let [mut x, mut next] = [part(&scratch.x[0], [rows, cols])?, part(&scratch.x[1], [rows, cols])?];
    let side = rows.min(cols);
    let [mut gram, mut power] = [part(&scratch.g[0], [side; 2])?, part(&scratch.g[1], [side; 2])?];
    momentum(&mut x, &mut m.moment, &m.grad, h.grad_scale)?;
    let length = norm.norm()?.max(EPS);
    cast(&mut next, &x, (1.0 / length) as f32)?;
    (x, next) = (next, x);
    for _ in 0..STEPS {
        // Of the shorter side; for a tall matrix the iteration of its transpose, whose G is X^T X and stands on the right.
        gemm(&mut gram, &x, &x, if rows <= cols { Layout::NT } else { Layout::TN }, 1.0, false)?;
        cast(&mut power, &gram, B)?;
        gemm(&mut power, &gram, &gram, Layout::NN, C, true)?;
        cast(&mut next, &x, A)?;
        let (left, right) = if rows <= cols { (&power, &x) } else { (&x, &power) };
        gemm(&mut next, left, right, Layout::NN, 1.0, true)?;
        (x, next) = (next, x);
    }
    let rate = h.lr * m.lr_factor;
    // The update's root mean square becomes that of AdamW's.
    let size = rate * 0.2 * (rows.max(cols) as f32).sqrt();
    apply(&mut m.param, &x, 1.0 - rate * m.weight_decay, size)
}

/// moment and update, Nesterov's.
fn momentum(update: &mut Tensor, moment: &mut Tensor, grad: &Tensor, scale: f32) -> Result<()> {
    if let Some(gpu) = gpu_of("muon_momentum", &[update, moment, grad])? {
        let (grid, n) = (Grid::covering(grad.len()), grad.len() as u64);
        // SAFETY: `MuonTable::new` checked lengths.
        return unsafe { kernels::muon_momentum(&gpu, grid, update, moment, grad, MOMENTUM, scale, n) };
    }
    let (grad, n) = (grad.f32()?, grad.len());
    map_chunks(moment.f32_mut()?, TASK, n, |task, moments| {
        moments
            .iter_mut()
            .zip(&grad[task * TASK..])
            .for_each(|(m, g)| *m += (1.0 - MOMENTUM) * (g * scale - *m));
    });
    let moments = moment.f32()?;
    map_chunks(update.f32_mut()?, TASK, n, |task, updates| {
        let own = grad[task * TASK..].iter().zip(&moments[task * TASK..]);
        updates.iter_mut().zip(own).for_each(|(u, (g, m))| *u = g * scale + MOMENTUM * (m - g * scale));
    });
    Ok(())
}

/// param = keep param - rate update
fn apply(param: &mut Tensor, update: &Tensor, keep: f32, rate: f32) -> Result<()> {
    if let Some(gpu) = gpu_of("muon_apply", &[param, update])? {
        let (grid, n) = (Grid::covering(param.len()), param.len() as u64);
        // SAFETY: both have n elements.
        return unsafe { kernels::muon_apply(&gpu, grid, param, update, keep, rate, n) };
    }
    let (update, n) = (update.f32()?, update.len());
    map_chunks(param.f32_mut()?, TASK, n, |task, params| {
        params.iter_mut().zip(&update[task * TASK..]).for_each(|(p, u)| *p = *p * keep - rate * u);
    });
    Ok(())
}

/// The naive oracle, in f64.
pub mod reference {
    /// A step of a matrix (rows, cols), in place, with the rows' own G whatever the shape; `grad` is scaled already.
    pub fn step(
        param: &mut [f64],
        moment: &mut [f64],
        grad: &[f64],
        [rows, cols]: [usize; 2],
        (lr, weight_decay): (f64, f64),
    ) {
        let mut x = vec![0.0; rows * cols];
        for i in 0..x.len() {
            moment[i] += 0.05 * (grad[i] - moment[i]);
            x[i] = grad[i] + 0.95 * (moment[i] - grad[i]);
        }
        let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-7);
        x.iter_mut().for_each(|x| *x /= norm);
        for _ in 0..5 {
            let gram = product(&x, &transposed(&x, [rows, cols]), [rows, cols, rows]);
            let square = product(&gram, &gram, [rows; 3]);
            let power: Vec<f64> = gram.iter().zip(&square).map(|(g, s)| -4.7750 * g + 2.0315 * s).collect();
            let moved = product(&power, &x, [rows, rows, cols]);
            x.iter_mut().zip(&moved).for_each(|(x, m)| *x = 3.4445 * *x + m);
        }
        let size = lr * 0.2 * (rows.max(cols) as f64).sqrt();
        param.iter_mut().zip(&x).for_each(|(p, x)| *p = *p * (1.0 - lr * weight_decay) - size * x);
    }

    fn transposed(x: &[f64], [rows, cols]: [usize; 2]) -> Vec<f64> {
        (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect()
    }

    /// (n, m) from (n, k) and (k, m).
    fn product(a: &[f64], b: &[f64], [n, k, m]: [usize; 3]) -> Vec<f64> {
        (0..n * m).map(|i| (0..k).map(|j| a[i / m * k + j] * b[j * m + i % m]).sum()).collect()
    }
}
