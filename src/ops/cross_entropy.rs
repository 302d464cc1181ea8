//! Fused LM head and sentence-level distillation loss: nll_i = ln Σ_v exp(h_i w_v) - h_i w_{target_i}, weighted per token.
//!
//! Sequence-level knowledge distillation (Kim & Rush 2016, equation 4 with the teacher's decoded text as the only mode) is the
//! negative log-likelihood of that text. Rows of weight 0 (prompts) are dropped first, the rest go through the head in chunks that
//! fit the scratch: all logits never exist at once.
#![allow(unsafe_code)]

use anyhow::{Context, Result, bail};

use crate::{
    device::Gpu,
    ops::{
        activation::{soft_cap, soft_cap_slope},
        checks::{check, check_ids},
        gemm::{linear_backward_input, linear_backward_weight, scaled_linear_forward},
        kernels,
        launch::{Grid, gpu_of},
        parallel::{Shared, for_each_task},
        quantize::{Blocks, Matrix},
        rows::{gather_rows, scatter_rows},
        simd::{self, Kernel, Simd},
    },
    tensor::{Arena, DType, Tensor, refuse_overlap},
};

/// Scratch of the loss: one chunk of rows.
pub struct LossScratch {
    pub(super) logits: Tensor,
    pub(super) hidden: Tensor,
    pub(super) dhidden: Tensor,
    /// The gradient of the logits where it has another type than they.
    pub(super) dlogits: Option<Tensor>,
    /// Which rows the chunk holds.
    pub(super) rows: Tensor,
}

impl LossScratch {
    /// Room for as many rows as keep the logits (rows, vocab) below `bytes`, at least 16 and at most `max_rows`, but 2.
    /// `dtype` is that of the hidden states.
    pub fn lay_out(
        arena: &mut Arena,
        dtype: DType,
        max_rows: usize,
        vocab: usize,
        hidden: usize,
        bytes: usize,
    ) -> LossScratch {
        let rows = (bytes / (4 * vocab.max(1))).clamp(16, 1024).min(max_rows.max(2));
        LossScratch {
            logits: arena.tensor("logits", DType::F32, &[rows, vocab]),
            hidden: arena.tensor("loss_hidden", dtype, &[rows, hidden]),
            dhidden: arena.tensor("loss_dhidden", dtype, &[rows, hidden]),
            dlogits: (dtype != DType::F32).then(|| arena.tensor("dlogits", dtype, &[rows, vocab])),
            rows: arena.tensor("loss_rows", DType::U32, &[rows]),
        }
    }
}

/// What turns hidden states into logits. `(&weight).into()` is a head without a scale and a cap.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    /// (V, C), F32, Bf16 or blocks.
    pub weight: Matrix<'a>,
    /// Factor of the product (Granite divides by `logits_scaling`).
    pub scale: f32,
    /// The logits are cap tanh(x / cap) of the scaled product x (Gemma 2's `final_logit_softcapping`).
    pub softcap: Option<f32>,
}

impl<'a> From<Matrix<'a>> for Head<'a> {
    fn from(weight: Matrix<'a>) -> Head<'a> {
        Head { weight, scale: 1.0, softcap: None }
    }
}

impl Head<'_> {
    /// out (N, V) = scale hidden (N, C) weightᵀ: the logits before their cap.
    pub(crate) fn product(self, out: &mut Tensor, hidden: &Tensor) -> Result<()> {
        scaled_linear_forward(out, hidden, self.weight, self.scale)
    }

    /// Whether scale and cap are numbers to compute with.
    pub(super) fn is_sound(self) -> bool {
        let sound = |x: f32| x > 0.0 && x.is_finite();
        sound(self.scale) && self.softcap.is_none_or(sound)
    }
}

impl<'a> From<&'a Tensor> for Head<'a> {
    fn from(weight: &'a Tensor) -> Head<'a> {
        Matrix::from(weight).into()
    }
}

impl<'a> From<&'a Blocks> for Head<'a> {
    fn from(weight: &'a Blocks) -> Head<'a> {
        Matrix::from(weight).into()
    }
}

/// losses (N) = nll of each row with a weight, 0 elsewhere. hidden (N, C), targets U32 (N). On a GPU a target that is
/// not below V gives NaN.
pub fn linear_cross_entropy_forward<'a>(
    losses: &mut Tensor,
    scratch: &mut LossScratch,
    hidden: &Tensor,
    head: impl Into<Head<'a>>,
    targets: &Tensor,
    token_weights: &Tensor,
) -> Result<()> {
    run(losses, None, scratch, hidden, head.into(), targets, token_weights, None, 0.0)
}

/// losses (N) = nll of each row of logits (N, V), F32, which stay as they are; targets U32 (N). On a GPU a target that is not below V gives NaN.
pub fn cross_entropy_forward(losses: &mut Tensor, logits: &mut Tensor, targets: &Tensor) -> Result<()> {
    const OP: &str = "cross_entropy";
    let (n, vocab) = logits.rows_cols();
    check(losses.len() == n && targets.len() == n, OP, &[losses, logits, targets])?;
    refuse_overlap(&[losses], &[logits, targets])?;
    if let Some(gpu) = gpu_of(OP, &[losses, logits, targets])? {
        let grid = Grid::new(n);
        // SAFETY: shapes were checked, targets are checked by the kernel.
        return unsafe {
            kernels::softmax_loss(&gpu, grid, losses, None, logits, None, targets, None, vocab, 0.0, 0.0)
        };
    }
    let ids = targets.u32()?;
    if let Some(i) = ids.iter().position(|&id| id as usize >= vocab) {
        bail!("{OP}: entry {i} of {targets:?} is {}, beyond the columns of {logits:?}", ids[i]);
    }
    let rows: Vec<usize> = (0..n).collect();
    let nll = softmax_rows(logits.f32_mut()?, vocab, &rows, ids, &[], None, None);
    losses.f32_mut()?.copy_from_slice(&nll);
    Ok(())
}

/// As the forward, and: dhidden (N, C) = d(grad_scale Σ_i weight_i nll_i) / d hidden, dweight (V, C) += the same for the head.
pub fn linear_cross_entropy_forward_backward<'a>(
    losses: &mut Tensor,
    dhidden: &mut Tensor,
    dweight: Option<&mut Tensor>,
    scratch: &mut LossScratch,
    hidden: &Tensor,
    head: impl Into<Head<'a>>,
    targets: &Tensor,
    token_weights: &Tensor,
    grad_scale: f32,
) -> Result<()> {
    let grads = Some((dhidden, dweight));
    run(losses, grads, scratch, hidden, head.into(), targets, token_weights, None, grad_scale)
}

/// Either, for who knows what `token_weights` holds: a GPU is not waited for, and there losses of rows without a weight are left as they are.
pub(crate) fn loss_of_known_weights<'a>(
    losses: &mut Tensor,
    grads: Option<(&mut Tensor, Option<&mut Tensor>)>,
    scratch: &mut LossScratch,
    hidden: &Tensor,
    head: impl Into<Head<'a>>,
    targets: &Tensor,
    (token_weights, known): (&Tensor, &[f32]),
    grad_scale: f32,
) -> Result<()> {
    check(known.len() == token_weights.len(), "linear_cross_entropy", &[losses, token_weights])?;
    run(losses, grads, scratch, hidden, head.into(), targets, token_weights, Some(known), grad_scale)
}

fn run(
    losses: &mut Tensor,
    mut grads: Option<(&mut Tensor, Option<&mut Tensor>)>,
    scratch: &mut LossScratch,
    hidden: &Tensor,
    head: Head,
    targets: &Tensor,
    token_weights: &Tensor,
    known: Option<&[f32]>,
    grad_scale: f32,
) -> Result<()> {
    const OP: &str = "linear_cross_entropy";
    let Head { weight, softcap, .. } = head;
    let ((n, c), (vocab, wc)) = (hidden.rows_cols(), weight.rows_cols());
    let chunk = scratch.logits.shape()[0];
    let fits = wc == c && losses.len() == n && targets.len() == n && token_weights.len() == n;
    let scratch_fits = scratch.logits.shape() == [chunk, vocab] && scratch.hidden.shape() == [chunk, c];
    let operands = [&*losses, hidden, targets, token_weights, &scratch.logits];
    weight.check(fits && scratch_fits && head.is_sound(), OP, &operands)?;
    refuse_overlap(&[losses], &[hidden, targets, token_weights])?;
    weight.refuse_overlap(&[losses])?;
    if let Some(gpu) = gpu_of(OP, &operands)? {
        // Blocks are unpacked once for all chunks.
        let done = weight.dense(OP, hidden, |weight| {
            gpu_of(OP, &[hidden, weight])?;
            let inputs = [hidden, weight, targets, token_weights];
            gpu_run(&gpu, losses, grads, scratch, inputs, known, grad_scale, head)
        })?;
        return done.with_context(|| format!("{OP}: {weight:?} is not on the GPU"));
    }
    let (targets_t, targets) = (targets, targets.u32()?);
    check_ids(OP, targets_t, targets, vocab, &weight)?;
    losses.f32_mut()?.fill(0.0);
    if let Some((dhidden, dweight)) = &mut grads {
        refuse_gradients(dhidden, dweight.as_deref(), losses, hidden, weight, token_weights)?;
        dhidden.f32_mut()?.fill(0.0);
    }
    let weights = token_weights.f32()?;
    let rows: Vec<usize> = (0..n).filter(|&i| weights[i] != 0.0).collect();
    for rows in rows.chunks(chunk) {
        let mut logits = scratch.logits.rows(0..rows.len())?;
        let mut compact = scratch.hidden.rows(0..rows.len())?;
        gather(compact.f32_mut()?, hidden.f32()?, rows, c);
        head.product(&mut logits, &compact)?;
        // By the product, the gradient of the logits has the head's factor, too.
        let scale = grads.is_some().then_some(grad_scale * head.scale);
        let nll = softmax_rows(logits.f32_mut()?, vocab, rows, targets, weights, scale, softcap);
        let losses = losses.f32_mut()?;
        rows.iter().zip(nll).for_each(|(&i, x)| losses[i] = x);
        if let Some((dhidden, dweight)) = &mut grads {
            let mut dcompact = scratch.dhidden.rows(0..rows.len())?;
            linear_backward_input(&mut dcompact, &logits, weight, false)?;
            scatter(dhidden.f32_mut()?, dcompact.f32()?, rows, c);
            if let Some(dweight) = dweight {
                linear_backward_weight(dweight, None, &logits, &compact)?;
            }
        }
    }
    Ok(())
}

/// Refuses gradients of other shapes, or in memory that an operand lies in.
fn refuse_gradients(
    dhidden: &Tensor,
    dweight: Option<&Tensor>,
    losses: &Tensor,
    hidden: &Tensor,
    weight: Matrix,
    token_weights: &Tensor,
) -> Result<()> {
    if let Some(dweight) = dweight {
        refuse_overlap(&[dweight], &[dhidden, losses, hidden, token_weights])?;
        weight.refuse_overlap(&[dweight])?;
    }
    check(dhidden.shape() == hidden.shape(), "linear_cross_entropy", &[dhidden, hidden])?;
    refuse_overlap(&[dhidden, losses], &[hidden, token_weights])?;
    weight.refuse_overlap(&[dhidden, losses])
}

fn gpu_run(
    gpu: &Gpu,
    losses: &mut Tensor,
    mut grads: Option<(&mut Tensor, Option<&mut Tensor>)>,
    scratch: &mut LossScratch,
    [hidden, weight, targets, token_weights]: [&Tensor; 4],
    known: Option<&[f32]>,
    grad_scale: f32,
    head: Head,
) -> Result<()> {
    let grad_scale = grad_scale * head.scale;
    if known.is_none() {
        losses.fill_zero()?;
    }
    if let Some((dhidden, _)) = &mut grads {
        check(dhidden.shape() == hidden.shape(), "linear_cross_entropy", &[dhidden, hidden])?;
        refuse_overlap(&[dhidden, losses], &[hidden, weight])?;
        dhidden.fill_zero()?;
    }
    let weights = known.map_or_else(|| token_weights.to_f32_vec(), |known| Ok(known.to_vec()))?;
    let rows: Vec<u32> = (0..weights.len() as u32).filter(|&i| weights[i as usize] != 0.0).collect();
    for rows in rows.chunks(scratch.logits.shape()[0]) {
        let n = rows.len();
        let (mut logits, mut compact) = (scratch.logits.rows(0..n)?, scratch.hidden.rows(0..n)?);
        let mut map = scratch.rows.rows(0..n)?;
        map.write_u32(rows)?;
        gather_rows(&mut compact, hidden, &map)?;
        Head { weight: weight.into(), ..head }.product(&mut logits, &compact)?;
        let mut dlogits = match &scratch.dlogits {
            Some(d) => d.rows(0..n)?,
            None => logits.alias(),
        };
        let written = grads.is_some().then_some(&mut dlogits);
        let (vocab, cap) = (weight.shape()[0], head.softcap.unwrap_or(0.0));
        let (own, weights, g) = (Some(&map), Some(token_weights), Grid::new(n));
        use kernels::softmax_loss as loss;
        // SAFETY: shapes were checked, targets by the kernel, which reads a logit before it writes the same place of dlogits.
        unsafe { loss(gpu, g, losses, written, &mut logits, own, targets, weights, vocab, grad_scale, cap)? };
        if let Some((dhidden, dweight)) = &mut grads {
            let mut dcompact = scratch.dhidden.rows(0..n)?;
            linear_backward_input(&mut dcompact, &dlogits, weight, false)?;
            scatter_rows(dhidden, &dcompact, &map)?;
            if let Some(dweight) = dweight {
                linear_backward_weight(dweight, None, &dlogits, &compact)?;
            }
        }
    }
    Ok(())
}

pub(super) fn gather(out: &mut [f32], inp: &[f32], rows: &[usize], c: usize) {
    out.chunks_exact_mut(c).zip(rows).for_each(|(out, &i)| out.copy_from_slice(&inp[i * c..][..c]));
}

pub(super) fn scatter(out: &mut [f32], inp: &[f32], rows: &[usize], c: usize) {
    inp.chunks_exact(c).zip(rows).for_each(|(inp, &i)| out[i * c..][..c].copy_from_slice(inp));
}

/// The nll of each row of logits, capped where there is a cap; with `scale`, the logits become their gradient,
/// scale * weight * (softmax - onehot), times the cap's slope.
fn softmax_rows(
    logits: &mut [f32],
    vocab: usize,
    rows: &[usize],
    targets: &[u32],
    weights: &[f32],
    scale: Option<f32>,
    softcap: Option<f32>,
) -> Vec<f32> {
    let mut nll = vec![0.0; rows.len()];
    let (logits, out) = (Shared::new(logits), Shared::new(&mut nll));
    for_each_task(rows.len(), rows.len() * vocab * 16, |r| {
        // SAFETY: row r belongs to task r alone.
        let (row, out) = unsafe { (logits.part(r * vocab, vocab), out.part(r, 1)) };
        let i = rows[r];
        let (target, scale) = (targets[i] as usize, scale.map(|s| s * weights[i]));
        out[0] = simd::run(SoftmaxRow { row, target, scale, softcap });
    });
    nll
}

struct SoftmaxRow<'a> {
    row: &'a mut [f32],
    target: usize,
    scale: Option<f32>,
    softcap: Option<f32>,
}

impl Kernel for SoftmaxRow<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        if let Some(cap) = self.softcap {
            soft_cap(s, self.row, cap);
        }
        let (top, total) = s.exp_sum(self.row);
        let (body, tail) = self.row.split_at_mut(self.row.len() / S::LANES * S::LANES);
        let target =
            if self.target < body.len() { body[self.target] } else { tail[self.target - body.len()] };
        let log_sum = total.ln();
        let nll = (log_sum - (target - top) as f64) as f32;
        if let Some(scale) = self.scale {
            let offset = s.splat(-(top as f64 + log_sum) as f32);
            let (factor, inverse) = (s.splat(scale), self.softcap.map(|cap| 1.0 / cap));
            for x in body.chunks_exact_mut(S::LANES) {
                let y = s.read(x);
                let d = s.mul(factor, s.exp(s.add(y, offset)));
                s.write(x, inverse.map_or(d, |inverse| s.mul(d, soft_cap_slope(s, y, inverse))));
            }
            let slope = |y: f32| inverse.map_or(1.0, |inverse| 1.0 - (y * inverse) * (y * inverse));
            for x in tail.iter_mut() {
                *x = scale * (((*x - top) as f64 - log_sum).exp() as f32) * slope(*x);
            }
            self.row[self.target] -= scale * slope(target);
        }
        nll
    }
}

/// The naive loss, summed in f64.
pub mod reference {
    /// (losses (N), dhidden (N, C), dweight (V, C)) of grad_scale Σ weight_i nll_i.
    pub fn forward_backward(
        hidden: &[f32],
        weight: &[f32],
        targets: &[u32],
        token_weights: &[f32],
        [n, c, v]: [usize; 3],
        grad_scale: f64,
        softcap: Option<f64>,
    ) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
        let (mut losses, mut dhidden, mut dweight) = (vec![0.0; n], vec![0.0; n * c], vec![0.0; v * c]);
        for i in (0..n).filter(|&i| token_weights[i] != 0.0) {
            let dot =
                |j: usize| (0..c).map(|k| hidden[i * c + k] as f64 * weight[j * c + k] as f64).sum::<f64>();
            let cap = |x: f64| softcap.map_or(x, |cap| cap * (x / cap).tanh());
            let logits: Vec<f64> = (0..v).map(|j| cap(dot(j))).collect();
            let top = logits.iter().cloned().fold(f64::NEG_INFINITY, f64::max);
            let log_sum = top + logits.iter().map(|x| (x - top).exp()).sum::<f64>().ln();
            losses[i] = log_sum - logits[targets[i] as usize];
            for j in 0..v {
                let hot = if j == targets[i] as usize { 1.0 } else { 0.0 };
                let slope = softcap.map_or(1.0, |cap| 1.0 - (logits[j] / cap).powi(2));
                let d = grad_scale * token_weights[i] as f64 * ((logits[j] - log_sum).exp() - hot) * slope;
                for k in 0..c {
                    dhidden[i * c + k] += d * weight[j * c + k] as f64;
                    dweight[j * c + k] += d * hidden[i * c + k] as f64;
                }
            }
        }
        (losses, dhidden, dweight)
    }
}
