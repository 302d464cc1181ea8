//! Fused LM head and forward KL divergence of a fixed model to the one in training, KL(q || p) = Σ_v q_v (ln q_v - ln p_v): word-level distillation
//! (Hinton et al. 2015; Kim & Rush 2016, equation 3) of the model before training, with the loss of the targets beside it.
//!
//! Rows go through the head in chunks whose logits of both models fit the scratch of the cross-entropy: all logits never exist, let alone twice.
#![allow(unsafe_code)]

use anyhow::{Context, Result};

use crate::{
    device::Gpu,
    ops::{
        activation::{soft_cap, soft_cap_slope},
        checks::{check, check_ids},
        cross_entropy::{Head, LossScratch, gather, scatter},
        gemm::{linear_backward_input, linear_forward_many_rows},
        kernels,
        launch::{Grid, gpu_of},
        parallel::{Shared, for_each_task},
        quantize::Matrix,
        rows::{gather_rows, scatter_rows},
        simd::{self, Kernel, Simd},
    },
    tensor::{Tensor, refuse_overlap},
};

const OP: &str = "linear_kl_divergence";

/// How much each loss counts in the gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mixed {
    /// Factor of the targets' negative log-likelihood.
    pub hard: f32,
    /// Factor of the divergence.
    pub soft: f32,
}

/// Of each row i of `rows` (different, rising): losses\[i\] = nll of its target, divergences\[i\] = KL(q || p) where q comes of `base` and p of `hidden`, both (N, C),
/// through one head; and dhidden\[i\] = d(weight_i (hard nll_i + soft KL_i)) / d hidden_i. losses, divergences, targets U32 and token_weights are (N). Other rows
/// of all outputs stay as they are. On a GPU a target that is not below V gives NaN.
///
/// # Errors
/// Shapes that do not fit, memory that overlaps, rows and targets that are not there.
pub fn linear_kl_divergence<'a>(
    losses: &mut Tensor,
    divergences: &mut Tensor,
    mut dhidden: Option<&mut Tensor>,
    scratch: &mut LossScratch,
    (hidden, base): (&Tensor, &Tensor),
    head: impl Into<Head<'a>>,
    targets: &Tensor,
    token_weights: &Tensor,
    rows: &[u32],
    mixed: Mixed,
) -> Result<()> {
    let Head { weight, softcap } = head.into();
    let (n, c) = hidden.rows_cols();
    let (vocab, wc) = weight.rows_cols();
    let (logits, compact) = (&scratch.logits, &scratch.hidden);
    let half = logits.shape()[0] / 2;
    let lengths = [losses.len(), divergences.len(), targets.len(), token_weights.len()];
    let fits = wc == c && base.shape() == hidden.shape() && lengths == [n; 4];
    let scratch_fits = half > 0 && logits.shape()[1] == vocab && compact.shape() == [logits.shape()[0], c];
    let cap_fits = softcap.is_none_or(|cap| cap > 0.0 && cap.is_finite());
    let known = rows.is_sorted_by(|a, b| a < b) && rows.last().is_none_or(|&i| (i as usize) < n);
    let operands = [&*losses, divergences, hidden, base, targets, token_weights, logits];
    weight.check(fits && scratch_fits && cap_fits && known, OP, &operands)?;
    refuse_overlap(&[losses, divergences], &[hidden, base, targets, token_weights])?;
    weight.refuse_overlap(&[losses, divergences])?;
    if let Some(dhidden) = &dhidden {
        check(dhidden.shape() == hidden.shape(), OP, &[dhidden, hidden])?;
        refuse_overlap(&[dhidden, losses, divergences], &[hidden, base, token_weights])?;
        weight.refuse_overlap(&[dhidden])?;
    }
    if let Some(gpu) = gpu_of(OP, &operands)? {
        // Blocks are unpacked once for all chunks.
        let done = weight.dense(OP, hidden, |weight| {
            gpu_of(OP, &[hidden, weight])?;
            let inputs = [hidden, base, weight, targets, token_weights];
            gpu_run(&gpu, losses, divergences, dhidden.as_deref_mut(), scratch, inputs, rows, mixed, softcap)
        })?;
        return done.with_context(|| format!("{OP}: {weight:?} is not on the GPU"));
    }
    let inputs = [hidden, base, targets, token_weights];
    cpu_run(losses, divergences, dhidden, scratch, inputs, weight, rows, mixed, softcap)
}

fn cpu_run(
    losses: &mut Tensor,
    divergences: &mut Tensor,
    mut dhidden: Option<&mut Tensor>,
    scratch: &mut LossScratch,
    [hidden, base, targets_t, token_weights]: [&Tensor; 4],
    weight: Matrix,
    rows: &[u32],
    mixed: Mixed,
    softcap: Option<f32>,
) -> Result<()> {
    let (vocab, c) = weight.rows_cols();
    let half = scratch.logits.shape()[0] / 2;
    let targets = targets_t.u32()?;
    check_ids(OP, targets_t, targets, vocab, &weight)?;
    let weights = token_weights.f32()?;
    for rows in rows.chunks(half) {
        let at: Vec<usize> = rows.iter().map(|&i| i as usize).collect();
        let k = at.len();
        let (mut own, mut other) = (scratch.logits.rows(0..k)?, scratch.logits.rows(half..half + k)?);
        let mut compact = scratch.hidden.rows(0..k)?;
        for (logits, states) in [(&mut other, base), (&mut own, hidden)] {
            gather(compact.f32_mut()?, states.f32()?, &at, c);
            linear_forward_many_rows(logits, &compact, weight, None)?;
        }
        let wanted = dhidden.is_some();
        let row = |i: usize| {
            (targets[i] as usize, wanted.then_some([mixed.hard * weights[i], mixed.soft * weights[i]]))
        };
        let found = softmax_rows(own.f32_mut()?, other.f32_mut()?, vocab, &at, &row, softcap);
        for (&i, [nll, divergence]) in at.iter().zip(found) {
            losses.f32_mut()?[i] = nll;
            divergences.f32_mut()?[i] = divergence;
        }
        if let Some(dhidden) = &mut dhidden {
            let mut dcompact = scratch.dhidden.rows(0..k)?;
            linear_backward_input(&mut dcompact, &own, weight, false)?;
            scatter(dhidden.f32_mut()?, dcompact.f32()?, &at, c);
        }
    }
    Ok(())
}

fn gpu_run(
    gpu: &Gpu,
    losses: &mut Tensor,
    divergences: &mut Tensor,
    mut dhidden: Option<&mut Tensor>,
    scratch: &mut LossScratch,
    [hidden, base, weight, targets, token_weights]: [&Tensor; 5],
    rows: &[u32],
    Mixed { hard, soft }: Mixed,
    softcap: Option<f32>,
) -> Result<()> {
    let half = scratch.logits.shape()[0] / 2;
    for rows in rows.chunks(half) {
        let k = rows.len();
        let (mut own, mut other) = (scratch.logits.rows(0..k)?, scratch.logits.rows(half..half + k)?);
        let (mut compact, mut map) = (scratch.hidden.rows(0..k)?, scratch.rows.rows(0..k)?);
        map.write_u32(rows)?;
        for (logits, states) in [(&mut other, base), (&mut own, hidden)] {
            gather_rows(&mut compact, states, &map)?;
            linear_forward_many_rows(logits, &compact, weight, None)?;
        }
        let mut dlogits = match &scratch.dlogits {
            Some(d) => d.rows(0..k)?,
            None => own.alias(),
        };
        let written = dhidden.is_some().then_some(&mut dlogits);
        let (vocab, cap, g) = (weight.shape()[0], softcap.unwrap_or(0.0), Grid::new(k));
        let (l, d, w) = (&mut *losses, &mut *divergences, token_weights);
        use kernels::softmax_kl as kl;
        // SAFETY: shapes and rows were checked, targets by the kernel, which reads a logit before it writes the same place of dlogits.
        unsafe { kl(gpu, g, l, d, written, &mut own, &mut other, &map, targets, w, vocab, hard, soft, cap)? };
        if let Some(dhidden) = &mut dhidden {
            let mut dcompact = scratch.dhidden.rows(0..k)?;
            linear_backward_input(&mut dcompact, &dlogits, weight, false)?;
            scatter_rows(dhidden, &dcompact, &map)?;
        }
    }
    Ok(())
}

/// (nll, divergence) of each row of logits against the same row of `base`, both capped where there is a cap; where `of` a row's index has factors beside the
/// target, the logits become their gradient.
fn softmax_rows(
    logits: &mut [f32],
    base: &mut [f32],
    vocab: usize,
    rows: &[usize],
    of: &(dyn Fn(usize) -> (usize, Option<[f32; 2]>) + Sync),
    softcap: Option<f32>,
) -> Vec<[f32; 2]> {
    let mut found = vec![0.0; 2 * rows.len()];
    let (logits, base, out) = (Shared::new(logits), Shared::new(base), Shared::new(&mut found));
    for_each_task(rows.len(), rows.len() * vocab * 32, |r| {
        // SAFETY: row r belongs to task r alone.
        let (row, base, out) =
            unsafe { (logits.part(r * vocab, vocab), base.part(r * vocab, vocab), out.part(2 * r, 2)) };
        let (target, factors) = of(rows[r]);
        out.copy_from_slice(&simd::run(KlRow { row, base, target, factors, softcap }));
    });
    found.chunks_exact(2).map(|x| [x[0], x[1]]).collect()
}

struct KlRow<'a> {
    row: &'a mut [f32],
    base: &'a mut [f32],
    target: usize,
    /// Of nll and divergence in the gradient.
    factors: Option<[f32; 2]>,
    softcap: Option<f32>,
}

impl Kernel for KlRow<'_> {
    type Output = [f32; 2];
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> [f32; 2] {
        if let Some(cap) = self.softcap {
            soft_cap(s, self.row, cap);
            soft_cap(s, self.base, cap);
        }
        let (log_p, log_q) = (log_normaliser(s, self.row), log_normaliser(s, self.base));
        let target = self.row[self.target];
        let (shift_p, shift_q) = (s.splat(-log_p as f32), s.splat(-log_q as f32));
        let [hard, soft] = self.factors.unwrap_or([0.0; 2]);
        let (both, of_base) = (s.splat(hard + soft), s.splat(soft));
        let inverse = self.softcap.map(|cap| 1.0 / cap);
        let mut divergence = 0.0f64;
        let blocks = self.row.chunks_mut(S::LANES * 64).zip(self.base.chunks(S::LANES * 64));
        for (row, base) in blocks {
            let mut sum = s.splat(0.0);
            for (x, z) in row.chunks_mut(S::LANES).zip(base.chunks(S::LANES)) {
                let (y, lanes) = (s.read_some(x), x.len());
                let (log_p, log_q) = (s.add(y, shift_p), s.add(s.read_some(z), shift_q));
                let (p, q) = (s.exp(log_p), s.exp(log_q));
                // At least 0, and an error of a normaliser cancels over the row.
                let mut term = s.sub(s.sub(p, q), s.mul(q, s.sub(log_p, log_q)));
                if lanes < S::LANES {
                    let mut some = [0.0; simd::MAX_LANES];
                    s.write(&mut some, term);
                    some[lanes..].fill(0.0);
                    term = s.read(&some);
                }
                sum = s.add(sum, term);
                if self.factors.is_some() {
                    let d = s.sub(s.mul(both, p), s.mul(of_base, q));
                    s.write_some(x, inverse.map_or(d, |inverse| s.mul(d, soft_cap_slope(s, y, inverse))));
                }
            }
            divergence += s.sum(sum) as f64;
        }
        if self.factors.is_some() {
            let slope = inverse.map_or(1.0, |inverse| 1.0 - (target * inverse) * (target * inverse));
            self.row[self.target] -= hard * slope;
        }
        [(log_p - target as f64) as f32, divergence as f32]
    }
}

/// ln Σ exp(x).
#[inline(always)]
fn log_normaliser<S: Simd>(s: S, row: &[f32]) -> f64 {
    let (top, total) = s.exp_sum(row);
    top as f64 + total.ln()
}

/// The naive losses, summed in f64.
pub mod reference {
    /// (nll (N), divergence (N), dhidden (N, C)) of `rows`, 0 elsewhere: dhidden of Σ weight_i (hard nll_i + soft KL_i).
    pub fn forward_backward(
        [hidden, base, weight]: [&[f32]; 3],
        targets: &[u32],
        token_weights: &[f32],
        rows: &[u32],
        [n, c, v]: [usize; 3],
        [hard, soft]: [f64; 2],
        softcap: Option<f64>,
    ) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
        let (mut losses, mut divergences, mut dhidden) = (vec![0.0; n], vec![0.0; n], vec![0.0; n * c]);
        for i in rows.iter().map(|&i| i as usize) {
            let cap = |x: f64| softcap.map_or(x, |cap| cap * (x / cap).tanh());
            let logits = |states: &[f32]| -> Vec<f64> {
                let dot =
                    |j: usize| (0..c).map(|k| states[i * c + k] as f64 * weight[j * c + k] as f64).sum();
                (0..v).map(|j| cap(dot(j))).collect()
            };
            let normalised = |logits: &[f64]| -> Vec<f64> {
                let top = logits.iter().cloned().fold(f64::NEG_INFINITY, f64::max);
                let sum = top + logits.iter().map(|x| (x - top).exp()).sum::<f64>().ln();
                logits.iter().map(|x| x - sum).collect()
            };
            let own = logits(hidden);
            let (log_p, log_q) = (normalised(&own), normalised(&logits(base)));
            let target = targets[i] as usize;
            losses[i] = -log_p[target];
            divergences[i] = log_p.iter().zip(&log_q).map(|(p, q)| q.exp() * (q - p)).sum();
            for j in 0..v {
                let hot = if j == target { 1.0 } else { 0.0 };
                let slope = softcap.map_or(1.0, |cap| 1.0 - (own[j] / cap).powi(2));
                let mixed = hard * (log_p[j].exp() - hot) + soft * (log_p[j].exp() - log_q[j].exp());
                let d = token_weights[i] as f64 * mixed * slope;
                (0..c).for_each(|k| dhidden[i * c + k] += d * weight[j * c + k] as f64);
            }
        }
        (losses, divergences, dhidden)
    }
}
