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
        gemm::linear_backward_input,
        kernels,
        launch::{Grid, gpu_of},
        parallel::{Shared, for_each_task},
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

/// A divergence is a sum over the vocabulary: each of its terms counts up to a limit, so that a few words of style do not outweigh all others ("point-wise
/// clipping" of Zhao et al. 2026, arXiv 2601.18734). A term above it has no gradient of its own.
pub struct Clip<'a> {
    /// The limit of q_v (ln q_v - ln p_v), nats.
    pub most: f32,
    /// (N): Σ_v min(q_v (ln q_v - ln p_v), most). Equal to the divergence, bit for bit, where no term is above the limit.
    pub clipped: &'a mut Tensor,
}

/// Of each row i of `rows` (different, rising): losses\[i\] = nll of its target, divergences\[i\] = KL(q || p) where q comes of `base` and p of `hidden`, both (N, C),
/// through one head; and dhidden\[i\] = d(weight_i (hard nll_i + soft KL_i)) / d hidden_i, with `clip` of the clipped divergence. losses, divergences, targets U32 and
/// token_weights are (N). Other rows of all outputs stay as they are. On a GPU a target that is not below V gives NaN.
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
    mut clip: Option<Clip>,
) -> Result<()> {
    let head = head.into();
    let weight = head.weight;
    let (n, c) = hidden.rows_cols();
    let (vocab, wc) = weight.rows_cols();
    let (logits, compact) = (&scratch.logits, &scratch.hidden);
    let half = logits.shape()[0] / 2;
    let lengths = [losses.len(), divergences.len(), targets.len(), token_weights.len()];
    let fits = wc == c && base.shape() == hidden.shape() && lengths == [n; 4];
    let scratch_fits = half > 0 && logits.shape()[1] == vocab && compact.shape() == [logits.shape()[0], c];
    let known = rows.is_sorted_by(|a, b| a < b) && rows.last().is_none_or(|&i| (i as usize) < n);
    let operands = [&*losses, divergences, hidden, base, targets, token_weights, logits];
    weight.check(fits && scratch_fits && head.is_sound() && known, OP, &operands)?;
    refuse_overlap(&[losses, divergences], &[hidden, base, targets, token_weights])?;
    weight.refuse_overlap(&[losses, divergences])?;
    if let Some(Clip { most, clipped }) = &clip {
        check(clipped.len() == n && *most > 0.0, OP, &[clipped, hidden])?;
        gpu_of(OP, &[hidden, clipped])?;
        refuse_overlap(&[clipped, losses, divergences], &[hidden, base, targets, token_weights])?;
        weight.refuse_overlap(&[clipped])?;
    }
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
            let d = dhidden.as_deref_mut();
            gpu_run(&gpu, losses, divergences, &mut clip, d, scratch, inputs, rows, mixed, head)
        })?;
        return done.with_context(|| format!("{OP}: {weight:?} is not on the GPU"));
    }
    let inputs = [hidden, base, targets, token_weights];
    cpu_run(losses, divergences, clip, dhidden, scratch, inputs, head, rows, mixed)
}

fn cpu_run(
    losses: &mut Tensor,
    divergences: &mut Tensor,
    mut clip: Option<Clip>,
    mut dhidden: Option<&mut Tensor>,
    scratch: &mut LossScratch,
    [hidden, base, targets_t, token_weights]: [&Tensor; 4],
    head: Head,
    rows: &[u32],
    mixed: Mixed,
) -> Result<()> {
    let Head { weight, scale, softcap } = head;
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
            head.product(logits, &compact)?;
        }
        // By the product, the gradient of the logits has the head's factor, too.
        let (hard, soft) = (mixed.hard * scale, mixed.soft * scale);
        let wanted = dhidden.is_some();
        let row = |i: usize| (targets[i] as usize, wanted.then_some([hard * weights[i], soft * weights[i]]));
        let limits = (softcap, clip.as_ref().map(|clip| clip.most));
        let found = softmax_rows(own.f32_mut()?, other.f32_mut()?, vocab, &at, &row, limits);
        for (&i, [nll, divergence, clipped]) in at.iter().zip(found) {
            losses.f32_mut()?[i] = nll;
            divergences.f32_mut()?[i] = divergence;
            if let Some(clip) = &mut clip {
                clip.clipped.f32_mut()?[i] = clipped;
            }
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
    clip: &mut Option<Clip>,
    mut dhidden: Option<&mut Tensor>,
    scratch: &mut LossScratch,
    [hidden, base, weight, targets, token_weights]: [&Tensor; 5],
    rows: &[u32],
    mixed: Mixed,
    head: Head,
) -> Result<()> {
    let (hard, soft) = (mixed.hard * head.scale, mixed.soft * head.scale);
    let half = scratch.logits.shape()[0] / 2;
    for rows in rows.chunks(half) {
        let k = rows.len();
        let (mut own, mut other) = (scratch.logits.rows(0..k)?, scratch.logits.rows(half..half + k)?);
        let (mut compact, mut map) = (scratch.hidden.rows(0..k)?, scratch.rows.rows(0..k)?);
        map.write_u32(rows)?;
        for (logits, states) in [(&mut other, base), (&mut own, hidden)] {
            gather_rows(&mut compact, states, &map)?;
            Head { weight: weight.into(), ..head }.product(logits, &compact)?;
        }
        let mut dlogits = match &scratch.dlogits {
            Some(d) => d.rows(0..k)?,
            None => own.alias(),
        };
        let written = dhidden.is_some().then_some(&mut dlogits);
        let (vocab, cap, g) = (weight.shape()[0], head.softcap.unwrap_or(0.0), Grid::new(k));
        let (l, d, w) = (&mut *losses, &mut *divergences, token_weights);
        let most = clip.as_ref().map_or(0.0, |clip| clip.most);
        let (e, z) = (clip.as_mut().map(|clip| &mut *clip.clipped), &mut other);
        use kernels::softmax_kl as kl;
        // SAFETY: shapes and rows were checked, targets by the kernel, which reads a logit before it writes the same place of dlogits.
        unsafe { kl(gpu, g, l, d, e, written, &mut own, z, &map, targets, w, vocab, hard, soft, cap, most)? };
        if let Some(dhidden) = &mut dhidden {
            let mut dcompact = scratch.dhidden.rows(0..k)?;
            linear_backward_input(&mut dcompact, &dlogits, weight, false)?;
            scatter_rows(dhidden, &dcompact, &map)?;
        }
    }
    Ok(())
}

/// (nll, divergence, clipped divergence) of each row of logits against the same row of `base`, both capped where there is a cap; where `of` a row's index has
/// factors beside the target, the logits become their gradient.
fn softmax_rows(
    logits: &mut [f32],
    base: &mut [f32],
    vocab: usize,
    rows: &[usize],
    of: &(dyn Fn(usize) -> (usize, Option<[f32; 2]>) + Sync),
    (softcap, clip): (Option<f32>, Option<f32>),
) -> Vec<[f32; 3]> {
    let mut found = vec![0.0; 3 * rows.len()];
    let (logits, base, out) = (Shared::new(logits), Shared::new(base), Shared::new(&mut found));
    for_each_task(rows.len(), rows.len() * vocab * 32, |r| {
        // SAFETY: row r belongs to task r alone.
        let (row, base, out) =
            unsafe { (logits.part(r * vocab, vocab), base.part(r * vocab, vocab), out.part(3 * r, 3)) };
        let (target, factors) = of(rows[r]);
        out.copy_from_slice(&simd::run(KlRow { row, base, target, factors, softcap, clip }));
    });
    found.chunks_exact(3).map(|x| [x[0], x[1], x[2]]).collect()
}

struct KlRow<'a> {
    row: &'a mut [f32],
    base: &'a mut [f32],
    target: usize,
    /// Of nll and divergence in the gradient.
    factors: Option<[f32; 2]>,
    softcap: Option<f32>,
    clip: Option<f32>,
}

impl Kernel for KlRow<'_> {
    type Output = [f32; 3];
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> [f32; 3] {
        if let Some(cap) = self.softcap {
            soft_cap(s, self.row, cap);
            soft_cap(s, self.base, cap);
        }
        let (log_p, log_q) = (log_normaliser(s, self.row), log_normaliser(s, self.base));
        let target = self.row[self.target];
        let shifts = [s.splat(-log_p as f32), s.splat(-log_q as f32)];
        let [hard, soft] = self.factors.unwrap_or([0.0; 2]);
        let clipped = self.clip.map_or(0.0, |most| clipped_share(s, self.row, self.base, shifts, most));
        let (of_own, of_base) = (s.splat(hard + soft * (1.0 - clipped)), s.splat(soft));
        let left = s.splat(1.0 - clipped);
        let inverse = self.softcap.map(|cap| 1.0 / cap);
        let mut divergence = [0.0f64; 2];
        let blocks = self.row.chunks_mut(S::LANES * 64).zip(self.base.chunks(S::LANES * 64));
        for (row, base) in blocks {
            let mut sums = [s.splat(0.0); 2];
            for (x, z) in row.chunks_mut(S::LANES).zip(base.chunks(S::LANES)) {
                let (y, lanes) = (s.read_some(x), x.len());
                let Column { p, q, term } = column(s, y, s.read_some(z), shifts);
                let (limited, kept) = match self.clip {
                    Some(most) => (s.min(term, s.splat(most)), unclipped(s, term, q, most)),
                    None => (term, q),
                };
                // Terms are at least 0, and an error of a normaliser cancels over the row; of the clipped ones it stands in what is left of q.
                let rest = s.sub(p, q);
                for (sum, term) in sums.iter_mut().zip([s.add(rest, term), s.add(s.mul(left, rest), limited)])
                {
                    *sum = s.add(*sum, first(s, term, lanes));
                }
                if self.factors.is_some() {
                    let d = s.sub(s.mul(of_own, p), s.mul(of_base, kept));
                    s.write_some(x, inverse.map_or(d, |inverse| s.mul(d, soft_cap_slope(s, y, inverse))));
                }
            }
            (0..2).for_each(|i| divergence[i] += s.sum(sums[i]) as f64);
        }
        if self.factors.is_some() {
            let slope = inverse.map_or(1.0, |inverse| 1.0 - (target * inverse) * (target * inverse));
            self.row[self.target] -= hard * slope;
        }
        [(log_p - target as f64) as f32, divergence[0] as f32, divergence[1] as f32]
    }
}

/// Of some columns of the vocabulary: p, q and q (ln q - ln p).
struct Column<V> {
    p: V,
    q: V,
    term: V,
}

#[inline(always)]
fn column<S: Simd>(s: S, y: S::V, z: S::V, [shift_p, shift_q]: [S::V; 2]) -> Column<S::V> {
    let (log_p, log_q) = (s.add(y, shift_p), s.add(z, shift_q));
    let (p, q) = (s.exp(log_p), s.exp(log_q));
    Column { p, q, term: s.mul(q, s.sub(log_q, log_p)) }
}

/// The first lanes, 0 in the others.
#[inline(always)]
fn first<S: Simd>(s: S, v: S::V, lanes: usize) -> S::V {
    if lanes == S::LANES {
        return v;
    }
    let mut some = [0.0; simd::MAX_LANES];
    s.write(&mut some, v);
    some[lanes..].fill(0.0);
    s.read(&some)
}

/// q where its term is not above the limit, 0 elsewhere.
#[inline(always)]
fn unclipped<S: Simd>(s: S, term: S::V, q: S::V, most: f32) -> S::V {
    let (mut terms, mut kept) = ([0.0; simd::MAX_LANES], [0.0; simd::MAX_LANES]);
    s.write(&mut terms, term);
    s.write(&mut kept, q);
    kept.iter_mut().zip(&terms).for_each(|(q, term)| *q = if *term > most { 0.0 } else { *q });
    s.read(&kept)
}

/// Σ q over the columns whose term is above the limit.
#[inline(always)]
fn clipped_share<S: Simd>(s: S, row: &[f32], base: &[f32], shifts: [S::V; 2], most: f32) -> f32 {
    let mut total = 0.0f64;
    for (row, base) in row.chunks(S::LANES * 64).zip(base.chunks(S::LANES * 64)) {
        let mut sum = s.splat(0.0);
        for (x, z) in row.chunks(S::LANES).zip(base.chunks(S::LANES)) {
            let Column { q, term, .. } = column(s, s.read_some(x), s.read_some(z), shifts);
            sum = s.add(sum, first(s, s.sub(q, unclipped(s, term, q, most)), x.len()));
        }
        total += s.sum(sum) as f64;
    }
    total as f32
}

/// ln Σ exp(x).
#[inline(always)]
fn log_normaliser<S: Simd>(s: S, row: &[f32]) -> f64 {
    let (top, total) = s.exp_sum(row);
    top as f64 + total.ln()
}

/// The naive losses, summed in f64.
pub mod reference {
    /// (nll (N), divergence (N), clipped divergence (N), dhidden (N, C)) of `rows`, 0 elsewhere: dhidden of Σ weight_i (hard nll_i + soft clipped KL_i).
    pub fn forward_backward(
        [hidden, base, weight]: [&[f32]; 3],
        targets: &[u32],
        token_weights: &[f32],
        rows: &[u32],
        [n, c, v]: [usize; 3],
        [hard, soft]: [f64; 2],
        softcap: Option<f64>,
        clip: Option<f64>,
    ) -> (Vec<f64>, Vec<f64>, Vec<f64>, Vec<f64>) {
        let (mut losses, mut divergences, mut dhidden) = (vec![0.0; n], vec![0.0; n], vec![0.0; n * c]);
        let (mut clipped, most) = (vec![0.0; n], clip.unwrap_or(f64::INFINITY));
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
            let terms: Vec<f64> = log_p.iter().zip(&log_q).map(|(p, q)| q.exp() * (q - p)).collect();
            divergences[i] = terms.iter().sum();
            clipped[i] = terms.iter().map(|t| t.min(most)).sum();
            // d term_v / d logit_j = q_v (p_j - [j = v]) of those that are not clipped.
            let kept: Vec<f64> =
                terms.iter().zip(&log_q).map(|(t, q)| if *t > most { 0.0 } else { q.exp() }).collect();
            let all: f64 = kept.iter().sum();
            for j in 0..v {
                let hot = if j == target { 1.0 } else { 0.0 };
                let slope = softcap.map_or(1.0, |cap| 1.0 - (own[j] / cap).powi(2));
                let mixed = hard * (log_p[j].exp() - hot) + soft * (log_p[j].exp() * all - kept[j]);
                let d = token_weights[i] as f64 * mixed * slope;
                (0..c).for_each(|k| dhidden[i * c + k] += d * weight[j * c + k] as f64);
            }
        }
        (losses, divergences, clipped, dhidden)
    }
}
