//! Fused LM head and forward KL divergence from the k likeliest tokens of a teacher, all others being one bucket, to the model in training:
//!
//! KL_k(q || p) = Σ_{i in K} q_i (ln q_i - ln p_i) + q_r (ln q_r - ln p_r), with q_r = 1 - Σ_K q_i and p_r = 1 - Σ_K p_i.
//!
//! It is the divergence of two distributions over k + 1 outcomes, and so at least 0, and 0 where p equals q on K and in what is left, whatever is said within the rest. Without the
//! bucket (top-k terms alone, or both renormalised over K) the minimum lies elsewhere: at a p that has nothing outside of K, or one that may have anything there (Anshumann et al. 2025,
//! arXiv 2503.16870, on the bias of the former). By the log-sum inequality it is at most the whole divergence, and equal to it where k is the vocabulary.
//!
//! Gradient by the logit of j: p_j - q_j in K, p_j (1 - q_r / p_r) elsewhere. Rows go through the head in chunks: all logits never exist.
#![allow(unsafe_code)]

use anyhow::{Context, Result};

use crate::{
    data::top_k::TopK,
    device::Gpu,
    ops::{
        activation::{soft_cap, soft_cap_slope},
        checks::{check, check_ids},
        cross_entropy::{Head, LossScratch, gather, scatter},
        gemm::linear_backward_input,
        kernels,
        kl_divergence::Mixed,
        launch::{Grid, gpu_of},
        parallel::{Shared, for_each_task},
        rows::{gather_rows, scatter_rows},
        simd::{self, Kernel, Simd},
        top_k::{log_add, log_sums, take},
    },
    tensor::{DType, Tensor, refuse_overlap},
};

const OP: &str = "linear_top_k_divergence";

/// Of each row i of `rows` (different, rising), of which the teacher's tokens stand in `teacher` in the same order: losses\[i\] = nll of its target, divergences\[i\] = KL_k(q || p) with
/// p of hidden (N, C) through the head; and dhidden\[i\] = d(weight_i (hard nll_i + soft KL_i)) / d hidden_i. losses, divergences, targets U32 and token_weights are (N). Other rows
/// of all outputs stay as they are. On a GPU a target that is not below V gives NaN.
///
/// # Errors
/// Shapes that do not fit, memory that overlaps, rows, targets and tokens that are not there; a teacher's tokens that do not rise, probabilities above 1.
pub fn linear_top_k_divergence<'a>(
    losses: &mut Tensor,
    divergences: &mut Tensor,
    mut dhidden: Option<&mut Tensor>,
    scratch: &mut LossScratch,
    hidden: &Tensor,
    head: impl Into<Head<'a>>,
    targets: &Tensor,
    token_weights: &Tensor,
    (rows, teacher): (&[u32], &TopK),
    mixed: Mixed,
) -> Result<()> {
    let head = head.into();
    let Head { weight, .. } = head;
    let ((n, c), (vocab, wc)) = (hidden.rows_cols(), weight.rows_cols());
    let logits = &scratch.logits;
    let lengths = [losses.len(), divergences.len(), targets.len(), token_weights.len()];
    let fits = wc == c && lengths == [n; 4];
    let scratch_fits = logits.shape()[1] == vocab && scratch.hidden.shape() == [logits.shape()[0], c];
    let known = rows.is_sorted_by(|a, b| a < b) && rows.last().is_none_or(|&i| (i as usize) < n);
    let operands = [&*losses, divergences, hidden, targets, token_weights, logits];
    weight.check(fits && scratch_fits && head.is_sound() && known, OP, &operands)?;
    teacher.check(rows.len(), vocab).context(OP)?;
    refuse_overlap(&[losses, divergences], &[hidden, targets, token_weights])?;
    weight.refuse_overlap(&[losses, divergences])?;
    if let Some(dhidden) = &dhidden {
        check(dhidden.shape() == hidden.shape(), OP, &[dhidden, hidden])?;
        refuse_overlap(&[dhidden, losses, divergences], &[hidden, token_weights])?;
        weight.refuse_overlap(&[dhidden])?;
    }
    if let Some(gpu) = gpu_of(OP, &operands)? {
        // Blocks are unpacked once for all chunks.
        let done = weight.dense(OP, hidden, |weight| {
            gpu_of(OP, &[hidden, weight])?;
            let inputs = [hidden, weight, targets, token_weights];
            let d = dhidden.as_deref_mut();
            gpu_run(&gpu, losses, divergences, d, scratch, inputs, (rows, teacher), mixed, head)
        })?;
        return done.with_context(|| format!("{OP}: {weight:?} is not on the GPU"));
    }
    let inputs = [hidden, targets, token_weights];
    cpu_run(losses, divergences, dhidden, scratch, inputs, (rows, teacher), mixed, head)
}

fn cpu_run(
    losses: &mut Tensor,
    divergences: &mut Tensor,
    mut dhidden: Option<&mut Tensor>,
    scratch: &mut LossScratch,
    [hidden, targets_t, token_weights]: [&Tensor; 3],
    (rows, teacher): (&[u32], &TopK),
    mixed: Mixed,
    head: Head,
) -> Result<()> {
    let Head { weight, scale, softcap } = head;
    let (vocab, c) = weight.rows_cols();
    let (targets, chunk) = (targets_t.u32()?, scratch.logits.shape()[0]);
    check_ids(OP, targets_t, targets, vocab, &weight)?;
    let weights = token_weights.f32()?;
    for (first, rows) in (0..).step_by(chunk).zip(rows.chunks(chunk)) {
        let at: Vec<usize> = rows.iter().map(|&i| i as usize).collect();
        let n = at.len();
        let (mut logits, mut compact) = (scratch.logits.rows(0..n)?, scratch.hidden.rows(0..n)?);
        gather(compact.f32_mut()?, hidden.f32()?, &at, c);
        head.product(&mut logits, &compact)?;
        // By the product, the gradient of the logits has the head's factor, too.
        let (hard, soft) = (mixed.hard * scale, mixed.soft * scale);
        let mut found = vec![0.0; 2 * n];
        let (all, out) = (Shared::new(logits.f32_mut()?), Shared::new(&mut found));
        let wanted = dhidden.is_some();
        for_each_task(n, n * vocab * 24, |r| {
            // SAFETY: row r belongs to task r alone.
            let (row, out) = unsafe { (all.part(r * vocab, vocab), out.part(2 * r, 2)) };
            let (ids, log_q) = teacher.row(first + r);
            let i = at[r];
            let factors = wanted.then_some([hard * weights[i], soft * weights[i]]);
            let target = targets[i] as usize;
            out.copy_from_slice(&simd::run(TopKRow { row, ids, log_q, target, factors, softcap }));
        });
        for (&i, found) in at.iter().zip(found.chunks_exact(2)) {
            losses.f32_mut()?[i] = found[0];
            divergences.f32_mut()?[i] = found[1];
        }
        if let Some(dhidden) = &mut dhidden {
            let mut dcompact = scratch.dhidden.rows(0..n)?;
            linear_backward_input(&mut dcompact, &logits, weight, false)?;
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
    [hidden, weight, targets, token_weights]: [&Tensor; 4],
    (rows, teacher): (&[u32], &TopK),
    mixed: Mixed,
    head: Head,
) -> Result<()> {
    let (hard, soft) = (mixed.hard * head.scale, mixed.soft * head.scale);
    let (chunk, k, device) = (scratch.logits.shape()[0], teacher.k, hidden.device());
    let most = chunk.min(rows.len());
    let part = |name: &str, dtype, width| Tensor::scratch_on(&device, name, dtype, &[most, width]);
    let (ids, log_q) = (part("teacher_ids", DType::U32, k)?, part("teacher_log_probs", DType::F32, k + 1)?);
    let kept = part("kept_logits", DType::F32, k)?;
    for (first, rows) in (0..).step_by(chunk).zip(rows.chunks(chunk)) {
        let n = rows.len();
        let (mut logits, mut compact) = (scratch.logits.rows(0..n)?, scratch.hidden.rows(0..n)?);
        let (mut map, mut kept) = (scratch.rows.rows(0..n)?, kept.rows(0..n)?);
        let (mut ids, mut log_q) = (ids.rows(0..n)?, log_q.rows(0..n)?);
        map.write_u32(rows)?;
        ids.write_u32(&teacher.ids[first * k..(first + n) * k])?;
        log_q.write_f32(&teacher.log_probs[first * (k + 1)..(first + n) * (k + 1)])?;
        gather_rows(&mut compact, hidden, &map)?;
        Head { weight: weight.into(), ..head }.product(&mut logits, &compact)?;
        let mut dlogits = match &scratch.dlogits {
            Some(d) => d.rows(0..n)?,
            None => logits.alias(),
        };
        let written = dhidden.is_some().then_some(&mut dlogits);
        let (vocab, cap, g) = (weight.shape()[0], head.softcap.unwrap_or(0.0), Grid::new(n));
        let (l, d, x, y, w) = (&mut *losses, &mut *divergences, &mut logits, &mut kept, token_weights);
        use kernels::softmax_top_k as kl;
        // SAFETY: shapes, rows and the teacher's tokens were checked, targets by the kernel, which reads a logit before it writes the same place of dlogits.
        unsafe {
            kl(gpu, g, l, d, written, x, y, &map, &ids, &log_q, targets, w, vocab, k, hard, soft, cap)?
        };
        if let Some(dhidden) = &mut dhidden {
            let mut dcompact = scratch.dhidden.rows(0..n)?;
            linear_backward_input(&mut dcompact, &dlogits, weight, false)?;
            scatter_rows(dhidden, &dcompact, &map)?;
        }
    }
    Ok(())
}

struct TopKRow<'a> {
    row: &'a mut [f32],
    ids: &'a [u32],
    log_q: &'a [f32],
    target: usize,
    /// Of nll and divergence in the gradient, which the row becomes.
    factors: Option<[f32; 2]>,
    softcap: Option<f32>,
}

impl Kernel for TopKRow<'_> {
    /// nll and divergence.
    type Output = [f32; 2];
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> [f32; 2] {
        let TopKRow { row, ids, log_q, target: at, factors, softcap } = self;
        if let Some(cap) = softcap {
            soft_cap(s, row, cap);
        }
        let target = row[at];
        let kept = take(row, ids);
        let (own, rest) = log_sums(s, &kept, row);
        let all = log_add(own, rest);
        // Σ p = Σ q = 1, so that p - q + q (ln q - ln p), which is at least 0, may stand for each term.
        let term = |log_q: f64, log_p: f64| {
            let (p, q) = (log_p.exp(), log_q.exp());
            if q > 0.0 { p - q + q * (log_q - log_p) } else { p }
        };
        let of_kept = kept.iter().zip(log_q).map(|(y, q)| term(f64::from(*q), f64::from(*y) - all));
        let log_rest = f64::from(log_q[ids.len()]);
        let divergence = of_kept.sum::<f64>() + term(log_rest, rest - all);
        if let Some([hard, soft]) = factors {
            let inverse = softcap.map(|cap| 1.0 / cap);
            let slope = |y: f32| inverse.map_or(1.0, |inverse| 1.0 - (y * inverse) * (y * inverse));
            let (both, soft_q) = (f64::from(hard) + f64::from(soft), f64::from(soft));
            if rest > f64::NEG_INFINITY {
                // Each of the rest by its share in it: neither p_r nor what it divides can be lost below the smallest number.
                let factor = s.splat((both * (rest - all).exp() - soft_q * log_rest.exp()) as f32);
                let shift = s.splat(-rest as f32);
                for x in row.chunks_mut(S::LANES) {
                    let y = s.read_some(x);
                    let d = s.mul(factor, s.exp(s.add(y, shift)));
                    s.write_some(x, inverse.map_or(d, |inverse| s.mul(d, soft_cap_slope(s, y, inverse))));
                }
            }
            for ((&id, y), q) in ids.iter().zip(&kept).zip(log_q) {
                let d = both * (f64::from(*y) - all).exp() - soft_q * f64::from(*q).exp();
                row[id as usize] = d as f32 * slope(*y);
            }
            row[at] -= hard * slope(target);
        }
        [(all - f64::from(target)) as f32, divergence as f32]
    }
}

/// The naive losses, summed in f64.
pub mod reference {
    use crate::data::top_k::TopK;

    /// (nll (N), divergence (N), dhidden (N, C)) of `rows`, 0 elsewhere: dhidden of Σ weight_i (hard nll_i + soft KL_k,i).
    pub fn forward_backward(
        [hidden, weight]: [&[f32]; 2],
        targets: &[u32],
        token_weights: &[f32],
        (rows, teacher): (&[u32], &TopK),
        [n, c, v]: [usize; 3],
        [hard, soft]: [f64; 2],
        softcap: Option<f64>,
    ) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
        let (mut losses, mut divergences, mut dhidden) = (vec![0.0; n], vec![0.0; n], vec![0.0; n * c]);
        for (r, i) in rows.iter().map(|&i| i as usize).enumerate() {
            let cap = |x: f64| softcap.map_or(x, |cap| cap * (x / cap).tanh());
            let dot = |j: usize| (0..c).map(|k| hidden[i * c + k] as f64 * weight[j * c + k] as f64).sum();
            let logits: Vec<f64> = (0..v).map(|j| cap(dot(j))).collect();
            let top = logits.iter().cloned().fold(f64::NEG_INFINITY, f64::max);
            let sum = top + logits.iter().map(|x| (x - top).exp()).sum::<f64>().ln();
            let p: Vec<f64> = logits.iter().map(|x| (x - sum).exp()).collect();
            let (ids, log_q) = teacher.row(r);
            let q: Vec<f64> = log_q.iter().map(|q| (*q as f64).exp()).collect();
            let inside = |j: usize| ids.iter().position(|&id| id as usize == j);
            let p_rest: f64 = (0..v).filter(|&j| inside(j).is_none()).map(|j| p[j]).sum();
            let q_rest = q[ids.len()];
            let term = |q: f64, p: f64| if q > 0.0 { q * (q / p).ln() } else { 0.0 };
            losses[i] = -p[targets[i] as usize].ln();
            divergences[i] = ids.iter().zip(&q).map(|(&id, q)| term(*q, p[id as usize])).sum::<f64>()
                + term(q_rest, p_rest);
            for j in 0..v {
                let of_rest = || p[j] * (1.0 - q_rest / p_rest);
                let kl = inside(j).map_or_else(of_rest, |k| p[j] - q[k]);
                let hot = if j == targets[i] as usize { 1.0 } else { 0.0 };
                let slope = softcap.map_or(1.0, |cap| 1.0 - (logits[j] / cap).powi(2));
                let d = token_weights[i] as f64 * (hard * (p[j] - hot) + soft * kl) * slope;
                (0..c).for_each(|k| dhidden[i * c + k] += d * weight[j * c + k] as f64);
            }
        }
        (losses, divergences, dhidden)
    }
}
