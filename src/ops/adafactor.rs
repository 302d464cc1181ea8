//! Adafactor (Shazeer & Stern 2018, algorithm 4) as transformers' `Adafactor(scale_parameter=False, relative_step=False)`, which its Trainer uses: no first moment, the
//! second moment of a matrix as its means by rows and by columns, updates clipped to a root mean square of 1, decay 1 - t^-0.8.
#![allow(unsafe_code)]
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, ensure};

use super::{
    checks::check,
    kernels,
    launch::{Grid, check_dtype, gpu_of},
    parallel::{for_each_task, map_tasks},
};
use crate::{
    device::Device,
    tensor::{DType, Tensor, refuse_overlap},
};

/// One step's settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adafactor {
    /// Learning rate of this step.
    pub lr: f32,
    /// 1 for the first step.
    pub step: u64,
    /// Factor on the gradient: the clip factor.
    pub grad_scale: f32,
}

/// Added to squared gradients.
const EPS: f32 = 1e-30;

/// Elements of a vector, or columns, that are one task.
const TASK: usize = 256;

impl Adafactor {
    /// How much of the second moment stays: 1 - t^-0.8.
    fn beta(&self) -> f32 {
        (1.0 - (self.step as f64).powf(-0.8)) as f32
    }
}

/// The second moment of one tensor.
pub enum Squares {
    /// Of a matrix (R, C): means by rows (R) and by columns (C).
    Factored {
        /// (R)
        row: Tensor,
        /// (C)
        col: Tensor,
    },
    /// Of a vector, whole.
    Whole(Tensor),
}

impl Squares {
    /// Its tensors.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let (first, second) = match self {
            Squares::Factored { row, col } => (row, Some(col)),
            Squares::Whole(all) => (all, None),
        };
        std::iter::once(first).chain(second)
    }

    /// A second handle on the same memory.
    pub(crate) fn alias(&self) -> Squares {
        match self {
            Squares::Factored { row, col } => Squares::Factored { row: row.alias(), col: col.alias() },
            Squares::Whole(all) => Squares::Whole(all.alias()),
        }
    }
}

/// One tensor: its part in the step.
pub struct Member {
    /// Updated in place: (R, C), or any shape with [`Squares::Whole`].
    pub param: Tensor,
    /// The gradient.
    pub grad: Tensor,
    /// Updated in place; zeros before the first step.
    pub squares: Squares,
    /// Factor on the learning rate.
    pub lr_factor: f32,
    /// Decoupled: the parameter shrinks by the learning rate times this.
    pub weight_decay: f32,
}

/// Many tensors, updated one after another.
pub struct AdafactorTable {
    members: Vec<Member>,
    gpu: Option<Scratch>,
}

/// What all tensors on a GPU share.
struct Scratch {
    /// 2 words a block or row: an f64 each.
    partial: Tensor,
    /// 2 words: an f64.
    total: Tensor,
    /// The mean of the means by rows.
    mean: Tensor,
}

impl AdafactorTable {
    /// Checks `members`, all F32 and on one device.
    pub fn new(members: Vec<Member>) -> Result<AdafactorTable> {
        const OP: &str = "adafactor_update";
        let (mut partials, mut gpu) = (1, None);
        for m in &members {
            let n = m.param.len();
            let (rows, cols) = m.param.rows_cols();
            let (state, fits) = match &m.squares {
                Squares::Factored { row, col } => (vec![row, col], row.len() == rows && col.len() == cols),
                Squares::Whole(all) => (vec![all], all.len() == n),
            };
            let all: Vec<&Tensor> = [&m.param, &m.grad].into_iter().chain(state).collect();
            check(fits && m.grad.len() == n, OP, &all)?;
            check_dtype(OP, DType::F32, &all)?;
            refuse_overlap(&[&m.param], &all[1..])?;
            gpu = gpu_of(OP, &[&all[..], &[&members[0].param]].concat())?.or(gpu);
            partials = partials.max(if all.len() == 4 { rows } else { n.div_ceil(TASK) });
        }
        let Some(gpu) = gpu else { return Ok(AdafactorTable { members, gpu: None }) };
        ensure!(kernels::adafactor_block() == TASK, "{OP}: adafactor.cu's block is another");
        let device = Device::Cuda(gpu);
        let new = |dtype: DType, n: usize| Tensor::zeros_on(&device, "adafactor_scratch", dtype, &[n]);
        let (partial, total) = (new(DType::U32, 2 * partials)?, new(DType::U32, 2)?);
        let mean = new(DType::F32, 1)?;
        Ok(AdafactorTable { members, gpu: Some(Scratch { partial, total, mean }) })
    }

    /// One step of all tensors.
    pub fn update(&mut self, h: &Adafactor) -> Result<()> {
        ensure!(h.step > 0, "adafactor_update: step is counted from 1");
        let scratch = &mut self.gpu;
        self.members.iter_mut().try_for_each(|m| match scratch {
            Some(scratch) => on_gpu(m, scratch, h),
            None => on_cpu(m, h),
        })
    }
}

fn on_gpu(m: &mut Member, s: &mut Scratch, h: &Adafactor) -> Result<()> {
    let Some(gpu) = m.param.gpu().cloned() else { return Ok(()) };
    let (gpu, (rows, cols), n) = (&*gpu, m.param.rows_cols(), m.param.len());
    let (beta, scale, rate) = (h.beta(), h.grad_scale, h.lr * m.lr_factor);
    let (keep, all) = (1.0 - rate * m.weight_decay, Grid::covering(n));
    let one = Grid::new(1);
    let (param, grad) = (&mut m.param, &m.grad);
    // SAFETY: `new` checked shapes, and laid out the scratch for the largest tensor.
    unsafe {
        match &mut m.squares {
            Squares::Factored { row, col } => {
                let blocks = Grid::new(cols.div_ceil(kernels::adafactor_columns()));
                kernels::adafactor_rows(gpu, Grid::new(rows), row, grad, cols, beta, EPS, scale)?;
                kernels::adafactor_cols(gpu, blocks, col, grad, rows, cols, beta, EPS, scale)?;
                kernels::adafactor_mean(gpu, one, &mut s.mean, row, rows)?;
                let each = Grid::new(rows);
                kernels::adafactor_squares(gpu, each, &mut s.partial, grad, row, col, &s.mean, cols, scale)?;
                kernels::sum_partials(gpu, one, &mut s.total, &s.partial, rows)?;
                let (row, mean) = (Some(&*row), Some(&s.mean));
                let n = n as u64;
                kernels::adafactor_apply(
                    gpu, all, param, grad, row, col, mean, &s.total, n, cols, scale, keep, rate,
                )
            }
            Squares::Whole(square) => {
                let blocks = n.div_ceil(TASK);
                let grid = Grid::new(blocks);
                kernels::adafactor_vector(gpu, grid, &mut s.partial, square, grad, n, beta, EPS, scale)?;
                kernels::sum_partials(gpu, one, &mut s.total, &s.partial, blocks)?;
                let (cols, n) = (n, n as u64);
                kernels::adafactor_apply(
                    gpu, all, param, grad, None, square, None, &s.total, n, cols, scale, keep, rate,
                )
            }
        }
    }
}

/// beta old + (1 - beta) (mean + eps)
fn moved(old: f32, mean: f64, beta: f32) -> f32 {
    beta * old + (1.0 - beta) * (mean as f32 + EPS)
}

fn square(x: f32) -> f64 {
    f64::from(x) * f64::from(x)
}

fn on_cpu(m: &mut Member, h: &Adafactor) -> Result<()> {
    let ((rows, cols), n) = (m.param.rows_cols(), m.param.len());
    let (beta, scale, rate) = (h.beta(), h.grad_scale, h.lr * m.lr_factor);
    let keep = 1.0 - rate * m.weight_decay;
    let (grad, param) = (m.grad.f32()?, m.param.f32_mut()?);
    // `factors(r)` of row r, times `across`, are what gradients are multiplied by.
    let (width, down, across): (usize, Vec<f32>, Vec<f32>) = match &mut m.squares {
        Squares::Factored { row, col } => {
            let (row, col) = (row.f32_mut()?, col.f32_mut()?);
            let sums = map_tasks(rows, n, |r| {
                grad[r * cols..][..cols].iter().map(|g| square(g * scale)).sum::<f64>()
            });
            row.iter_mut().zip(&sums).for_each(|(x, s)| *x = moved(*x, s / cols as f64, beta));
            let sums = map_tasks(cols.div_ceil(TASK), n, |task| columns(grad, task, [rows, cols], scale));
            col.iter_mut().zip(sums.concat()).for_each(|(x, s)| *x = moved(*x, s / rows as f64, beta));
            let mean = (row.iter().map(|&x| f64::from(x)).sum::<f64>() / rows as f64) as f32;
            let down = row.iter().map(|x| 1.0 / (x / mean).sqrt()).collect();
            (cols, down, col.iter().map(|x| 1.0 / x.sqrt()).collect())
        }
        Squares::Whole(all) => {
            let all = all.f32_mut()?;
            all.iter_mut().zip(grad).for_each(|(x, g)| *x = moved(*x, square(g * scale), beta));
            (n, vec![1.0], all.iter().map(|x| 1.0 / x.sqrt()).collect())
        }
    };
    let update = |r: usize, c: usize| grad[r * width + c] * scale * (down[r] * across[c]);
    let squares = map_tasks(down.len(), n, |r| (0..width).map(|c| square(update(r, c))).sum::<f64>());
    let rms = (squares.iter().sum::<f64>() / n as f64).sqrt() as f32;
    let parts: Vec<Mutex<&mut [f32]>> = param.chunks_mut(width).map(Mutex::new).collect();
    for_each_task(parts.len(), n, |r| {
        let mut row = parts[r].lock().unwrap_or_else(PoisonError::into_inner);
        for (c, p) in row.iter_mut().enumerate() {
            *p = *p * keep - rate * (update(r, c) / rms.max(1.0));
        }
    });
    Ok(())
}

/// The sums of squares of a task's columns, row after row.
fn columns(grad: &[f32], task: usize, [rows, cols]: [usize; 2], scale: f32) -> Vec<f64> {
    let first = task * TASK;
    let mut sums = vec![0.0; TASK.min(cols - first)];
    for r in 0..rows {
        let own = &grad[r * cols + first..][..sums.len()];
        sums.iter_mut().zip(own).for_each(|(s, g)| *s += square(g * scale));
    }
    sums
}

/// The naive oracle, in f64.
pub mod reference {
    /// A step of a matrix (rows, cols) with its means by rows and columns, in place; a vector is a matrix of one row whose `row` is empty.
    pub fn step(
        param: &mut [f64],
        (row, col): (&mut [f64], &mut [f64]),
        grad: &[f64],
        (lr, weight_decay, step): (f64, f64, u64),
    ) {
        let (cols, n) = (col.len(), grad.len());
        let (rows, beta) = (n / cols, 1.0 - (step as f64).powf(-0.8));
        let mean = |of: &dyn Fn(usize) -> f64, n: usize| (0..n).map(of).sum::<f64>() / n as f64;
        let square = |i: usize| grad[i] * grad[i] + 1e-30;
        for (r, x) in row.iter_mut().enumerate() {
            *x = beta * *x + (1.0 - beta) * mean(&|c| square(r * cols + c), cols);
        }
        for (c, x) in col.iter_mut().enumerate() {
            *x = beta * *x + (1.0 - beta) * mean(&|r| square(r * cols + c), rows);
        }
        let of_rows = if row.is_empty() { 1.0 } else { row.iter().sum::<f64>() / rows as f64 };
        let share = |i: usize| row.get(i / cols).map_or(1.0, |x| x / of_rows);
        let update: Vec<f64> = (0..n).map(|i| grad[i] / (share(i) * col[i % cols]).sqrt()).collect();
        let rms = (update.iter().map(|u| u * u).sum::<f64>() / n as f64).sqrt();
        for (p, u) in param.iter_mut().zip(&update) {
            *p = *p * (1.0 - lr * weight_decay) - lr * u / rms.max(1.0);
        }
    }
}
