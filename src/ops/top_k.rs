//! The likeliest tokens of a fixed model with their log-probabilities: what is kept of a teacher that does not run beside its student.
#![allow(unsafe_code)]

use anyhow::{Context, Result, ensure};

use crate::{
    data::top_k::TopK,
    ops::{
        activation::soft_cap,
        cross_entropy::{Head, LossScratch, gather},
        launch::gpu_of,
        parallel::{Shared, for_each_task},
        rows::gather_rows,
        simd::{self, Kernel, Simd},
    },
    tensor::Tensor,
};

const OP: &str = "linear_top_k";

/// Of each of `rows` (different, rising) of hidden (N, C) the `k` likeliest tokens of softmax(hidden head), equals by their ids, with their log-probabilities, and the ln of what all
/// others have together. Rows go through the head in chunks: all logits never exist. On a GPU a chunk's logits are copied to the host, where they are chosen.
///
/// # Errors
/// Shapes that do not fit, rows that are not there, a `k` of 0 or beyond the vocabulary; logits that are not finite.
pub fn linear_top_k<'a>(
    scratch: &mut LossScratch,
    hidden: &Tensor,
    head: impl Into<Head<'a>>,
    rows: &[u32],
    k: usize,
) -> Result<TopK> {
    let head = head.into();
    let Head { weight, softcap, .. } = head;
    let ((n, c), (vocab, wc)) = (hidden.rows_cols(), weight.rows_cols());
    let (chunk, compact) = (scratch.logits.shape()[0], &scratch.hidden);
    let scratch_fits = scratch.logits.shape() == [chunk, vocab] && compact.shape() == [chunk, c];
    let known = rows.is_sorted_by(|a, b| a < b) && rows.last().is_none_or(|&i| (i as usize) < n);
    weight.check(wc == c && scratch_fits && known, OP, &[hidden, &scratch.logits])?;
    ensure!(k > 0 && k <= vocab, "{OP}: the {k} likeliest of {vocab} tokens: 1 to {vocab} were expected");
    let mut found = TopK { k, ids: vec![0; rows.len() * k], log_probs: vec![0.0; rows.len() * (k + 1)] };
    let out = found.ids.chunks_mut(chunk * k).zip(found.log_probs.chunks_mut(chunk * (k + 1)));
    let gpu = gpu_of(OP, &[hidden, &scratch.logits])?;
    for (rows, (ids, log_probs)) in rows.chunks(chunk).zip(out) {
        let (mut logits, mut compact) = (scratch.logits.rows(0..rows.len())?, compact.rows(0..rows.len())?);
        if gpu.is_some() {
            let mut map = scratch.rows.rows(0..rows.len())?;
            map.write_u32(rows)?;
            gather_rows(&mut compact, hidden, &map)?;
            let done = weight
                .dense(OP, hidden, |w| Head { weight: w.into(), ..head }.product(&mut logits, &compact))?;
            done.with_context(|| format!("{OP}: {weight:?} is not on the GPU"))?;
            choose_rows(&mut logits.to_f32_vec()?, vocab, ids, log_probs, softcap)?;
            continue;
        }
        let at: Vec<usize> = rows.iter().map(|&i| i as usize).collect();
        gather(compact.f32_mut()?, hidden.f32()?, &at, c);
        head.product(&mut logits, &compact)?;
        choose_rows(logits.f32_mut()?, vocab, ids, log_probs, softcap)?;
    }
    Ok(found)
}

/// Chooses of each row of logits, which are consumed.
fn choose_rows(
    logits: &mut [f32],
    vocab: usize,
    ids: &mut [u32],
    log_probs: &mut [f32],
    softcap: Option<f32>,
) -> Result<()> {
    let n = logits.len() / vocab;
    let k = ids.len() / n.max(1);
    let mut sound = vec![0.0; n];
    let (logits, log_probs) = (Shared::new(logits), Shared::new(log_probs));
    let ids = Shared::new(bytemuck::cast_slice_mut(ids));
    let seen = Shared::new(&mut sound);
    for_each_task(n, n * vocab * 32, |r| {
        // SAFETY: row r of each belongs to task r alone.
        let (row, ids, log_probs, seen) = unsafe {
            (
                logits.part(r * vocab, vocab),
                ids.part(r * k, k),
                log_probs.part(r * (k + 1), k + 1),
                seen.part(r, 1),
            )
        };
        let ids = bytemuck::cast_slice_mut(ids);
        seen[0] = if simd::run(ChooseRow { row, ids, log_probs, softcap }) { 1.0 } else { 0.0 };
    });
    ensure!(sound.iter().all(|s| *s == 1.0), "{OP}: a logit is not finite: is the model sound?");
    Ok(())
}

struct ChooseRow<'a> {
    row: &'a mut [f32],
    ids: &'a mut [u32],
    log_probs: &'a mut [f32],
    softcap: Option<f32>,
}

/// Larger for a larger number; of equals for the one with the smaller id.
fn key(x: f32, id: usize) -> u64 {
    let bits = x.to_bits();
    let ordered = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    u64::from(ordered) << 32 | u64::from(!(id as u32))
}

impl Kernel for ChooseRow<'_> {
    /// Whether all logits were finite.
    type Output = bool;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> bool {
        let ChooseRow { row, ids, log_probs, softcap } = self;
        let k = ids.len();
        if let Some(cap) = softcap {
            soft_cap(s, row, cap);
        }
        if row.iter().any(|x| !x.is_finite()) {
            return false;
        }
        // -0 and 0 are one number.
        let mut keys: Vec<u64> = row.iter().enumerate().map(|(i, x)| key(x + 0.0, i)).collect();
        if k < keys.len() {
            keys.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
        }
        ids.iter_mut().zip(&keys).for_each(|(id, key)| *id = !(*key as u32));
        ids.sort_unstable();
        let kept = take(row, ids);
        let (own, rest) = log_sums(s, &kept, row);
        let all = log_add(own, rest);
        for (out, y) in log_probs.iter_mut().zip(&kept) {
            *out = (f64::from(*y) - all) as f32;
        }
        log_probs[k] = (rest - all) as f32;
        true
    }
}

/// Takes the logits at `ids` out of a row: what stays there counts nothing.
pub(super) fn take(row: &mut [f32], ids: &[u32]) -> Vec<f32> {
    ids.iter().map(|&id| std::mem::replace(&mut row[id as usize], f32::NEG_INFINITY)).collect()
}

/// ln Σ exp of what was taken out of a row, and of what is left of it; minus infinity where that is nothing.
#[inline(always)]
pub(super) fn log_sums<S: Simd>(s: S, kept: &[f32], row: &[f32]) -> (f64, f64) {
    let top = kept.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b)) as f64;
    let sum: f64 = kept.iter().map(|y| (f64::from(*y) - top).exp()).sum();
    if kept.len() == row.len() {
        return (top + sum.ln(), f64::NEG_INFINITY);
    }
    let (rest_top, rest) = s.exp_sum(row);
    (top + sum.ln(), f64::from(rest_top) + rest.ln())
}

/// ln (exp a + exp b), a finite.
pub(super) fn log_add(a: f64, b: f64) -> f64 {
    let (high, low) = if a > b { (a, b) } else { (b, a) };
    high + (low - high).exp().ln_1p()
}

/// The naive choice, in f64.
pub mod reference {
    /// (ids, log-probabilities and that of the rest) of one row of logits.
    pub fn top_k(logits: &[f64], k: usize) -> (Vec<u32>, Vec<f64>) {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        order.truncate(k);
        order.sort();
        let top = logits.iter().cloned().fold(f64::NEG_INFINITY, f64::max);
        let log_sum = top + logits.iter().map(|x| (x - top).exp()).sum::<f64>().ln();
        let others = (0..logits.len()).filter(|i| !order.contains(i));
        let rest: f64 = others.map(|i| (logits[i] - log_sum).exp()).sum();
        let of_kept = order.iter().map(|&i| logits[i] - log_sum);
        (order.iter().map(|&i| i as u32).collect(), of_kept.chain([rest.ln()]).collect())
    }
}
