//! One step of beam search: the best continuations of every hypothesis, over (batch, beams) rows of logits.
//!
//! Length penalty, finished hypotheses and everything that counts tokens stay with the caller; it gets twice as many candidates as
//! beams, so that enough are left when all beams end at once.
#![allow(unsafe_code)]
use anyhow::{Result, bail, ensure};

use crate::{
    device::{Device, Gpu},
    ops::parallel::map_chunks,
    tensor::{DType, Tensor, refuse_overlap},
};

use super::{
    checks::check,
    choose::{LOG2_E, order_key, select, top, weight, weight_bits},
    kernels,
    launch::{Grid, check_dtype, gpu_of},
};

/// Beams of a batch item at most.
pub const MAX_BEAMS: usize = 32;
/// No forced token.
const NONE: u32 = u32::MAX;

/// What a row may not choose, checked against the vocabulary.
pub struct BeamRules {
    /// Tokens of all rows, one after another.
    forbidden: Tensor,
    /// Where each row's begin (rows + 1).
    offsets: Tensor,
    /// The only token of a row, or `u32::MAX`.
    forced: Tensor,
}

impl BeamRules {
    /// For each row its forbidden tokens, and the one token it must take, if any. Errors name the row and the token that is not below `vocab`.
    pub fn new(
        device: &Device,
        forbidden: &[&[u32]],
        forced: &[Option<u32>],
        vocab: usize,
    ) -> Result<BeamRules> {
        ensure!(
            forbidden.len() == forced.len(),
            "beam_step: {} rows of forbidden tokens, {} of forced ones",
            forbidden.len(),
            forced.len()
        );
        for (row, (tokens, forced)) in forbidden.iter().zip(forced).enumerate() {
            if let Some(t) = tokens.iter().chain(forced).find(|&&t| t as usize >= vocab) {
                bail!("beam_step: row {row} names token {t}, but the vocabulary has {vocab}");
            }
        }
        let (mut all, mut offsets) = (vec![], vec![0]);
        for tokens in forbidden {
            // Each once: a token must not belong to two threads.
            let mut tokens = tokens.to_vec();
            tokens.sort_unstable();
            tokens.dedup();
            all.extend(tokens);
            offsets.push(all.len() as u32);
        }
        let forced: Vec<u32> = forced.iter().map(|t| t.unwrap_or(NONE)).collect();
        let put = |name: &str, values: &[u32]| -> Result<Tensor> {
            Tensor::from_u32(name, &[values.len()], values)?.to_device(device)
        };
        Ok(BeamRules {
            forbidden: put("forbidden", &all)?,
            offsets: put("forbidden_offsets", &offsets)?,
            forced: put("forced", &forced)?,
        })
    }

    /// `rows` rows that may choose anything.
    pub fn none(device: &Device, rows: usize) -> Result<BeamRules> {
        BeamRules::new(device, &vec![&[][..]; rows], &vec![None; rows], 0)
    }
}

/// best_scores, best_beams, best_tokens (B, 2 K) = the 2 K best continuations of each batch item's K hypotheses, best first:
/// the candidate (beam, token) has the score scores\[beam\] + ln softmax(logits\[beam\])\[token\].
///
/// logits (B K, V) F32 are consumed; scores (B, K) F32 are the hypotheses' sums of log-probabilities, -inf for one that must not
/// continue. A row's forbidden tokens score -inf; a row with a forced token gives it the log-probability 0 and -inf to all others (both
/// after the softmax, as transformers' logits processors do). Equal scores are in order of beam, then token, so that there is one
/// answer; candidates of -inf fill up where too few are left. A row that holds a NaN or +inf, or nothing else than -inf, and is not forced, scores NaN
/// and comes first: look at the first score. The same bits on every device. K is at most [`MAX_BEAMS`], V at least 2.
pub fn beam_step(
    best_scores: &mut Tensor,
    best_beams: &mut Tensor,
    best_tokens: &mut Tensor,
    logits: &mut Tensor,
    scores: &Tensor,
    rules: &BeamRules,
) -> Result<()> {
    let ((rows, vocab), (batch, beams)) = (logits.rows_cols(), scores.rows_cols());
    let BeamRules { forbidden, offsets, forced } = rules;
    let all = [&*best_scores, best_beams, best_tokens, logits, scores, offsets, forced];
    let best = (batch, 2 * beams);
    check(
        rows == batch * beams
            && (1..=MAX_BEAMS).contains(&beams)
            && vocab >= 2
            && best_scores.rows_cols() == best
            && best_beams.rows_cols() == best
            && best_tokens.rows_cols() == best
            && offsets.len() == rows + 1
            && forced.len() == rows,
        "beam_step",
        &all,
    )?;
    check_dtype("beam_step", DType::F32, &[best_scores, logits, scores])?;
    check_dtype("beam_step", DType::U32, &[best_beams, best_tokens])?;
    refuse_overlap(&[best_scores, best_beams, best_tokens, logits], &[scores, forbidden, offsets, forced])?;
    if let Some(gpu) = gpu_of(
        "beam_step",
        &[best_scores, best_beams, best_tokens, logits, scores, forbidden, offsets, forced],
    )? {
        return gpu_step(&gpu, [best_scores, best_beams, best_tokens, logits], scores, rules);
    }
    let (forbidden, offsets, forced) = (forbidden.u32()?, offsets.u32()?, forced.u32()?);
    let own = scores.f32()?;
    let work = 8 * logits.len();
    let found: Vec<Vec<Candidate>> = map_chunks(logits.f32_mut()?, vocab, work, |row, logits| {
        let forbidden = &forbidden[offsets[row] as usize..offsets[row + 1] as usize];
        score_row(logits, own[row], forbidden, forced[row]);
        best_of_row(logits, (row % beams) as u32, 2 * beams)
    });
    let (out, out_beams, out_tokens) =
        (best_scores.f32_mut()?, best_beams.u32_mut()?, best_tokens.u32_mut()?);
    for (item, rows) in found.chunks_exact(beams).enumerate() {
        let mut all = rows.concat();
        all.sort_unstable_by_key(Candidate::rank);
        for (at, c) in (item * 2 * beams..).zip(&all[..2 * beams]) {
            (out[at], out_beams[at], out_tokens[at]) = (c.score, c.beam, c.token);
        }
    }
    Ok(())
}

fn gpu_step(
    gpu: &Gpu,
    [best_scores, best_beams, best_tokens, logits]: [&mut Tensor; 4],
    scores: &Tensor,
    rules: &BeamRules,
) -> Result<()> {
    let ((rows, vocab), (batch, beams)) = (logits.rows_cols(), scores.rows_cols());
    check(beams <= kernels::beam_step_beams(), "beam_step", &[logits, scores])?;
    let n = vocab.min(2 * beams);
    let list = |name: &str| Tensor::zeros_on(&logits.device(), name, DType::U32, &[rows, n]);
    let (mut keys, mut tokens) = (list("beam_keys")?, list("beam_tokens")?);
    let BeamRules { forbidden, offsets, forced } = rules;
    let (grid, k, t, bits) = (Grid::new(rows), &mut keys, &mut tokens, weight_bits(vocab) as usize);
    // SAFETY: shapes were checked by the caller, tokens and offsets by `BeamRules::new`.
    unsafe {
        kernels::beam_rows(gpu, grid, k, t, logits, scores, forbidden, offsets, forced, vocab, n, bits)?;
        kernels::beam_merge(
            gpu,
            Grid::new(batch),
            best_scores,
            best_beams,
            best_tokens,
            &keys,
            &tokens,
            beams,
            n,
        )
    }
}

#[derive(Clone, Copy)]
struct Candidate {
    score: f32,
    beam: u32,
    token: u32,
}

impl Candidate {
    /// Better ones first.
    fn rank(&self) -> (std::cmp::Reverse<u32>, u32, u32) {
        (std::cmp::Reverse(order_key(self.score)), self.beam, self.token)
    }
}

/// Turns a row's logits into its candidates' scores.
fn score_row(logits: &mut [f32], own: f32, forbidden: &[u32], forced: u32) {
    if let Some(token) = (forced != NONE).then_some(forced as usize) {
        logits.fill(f32::NEG_INFINITY);
        logits[token] = own;
        return;
    }
    let (top, bits) = (top(logits), weight_bits(logits.len()));
    let sum = logits.iter().map(|x| weight((x - top) * LOG2_E, bits)).sum();
    let log_sum = ln_fixed(sum, bits);
    logits.iter_mut().for_each(|x| *x = own + ((*x - top) - log_sum));
    forbidden.iter().for_each(|&t| logits[t as usize] = f32::NEG_INFINITY);
}

/// ln(sum 2^-bits) for sum >= 2^bits, by single f64 operations.
fn ln_fixed(sum: u64, bits: i32) -> f32 {
    let x = (sum as f64).to_bits();
    // sum = m 2^e with m in [3/4, 3/2).
    let high = (x >> 51 & 1) as i64;
    let e = (x >> 52) as i64 - 1023 + high;
    let m = f64::from_bits((x & ((1 << 52) - 1)) | ((1023 - high) as u64) << 52);
    // ln m = 2 atanh(s), s = (m - 1) / (m + 1), |s| <= 1/5
    let s = (m - 1.0) / (m + 1.0);
    let s2 = s * s;
    let mut p = 1.0 / 15.0;
    for d in [13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        p = p * s2 + 1.0 / d;
    }
    ((e - bits as i64) as f64 * std::f64::consts::LN_2 + 2.0 * s * p) as f32
}

/// The row's `n` best (or all there are), best first.
fn best_of_row(scores: &[f32], beam: u32, n: usize) -> Vec<Candidate> {
    let n = n.min(scores.len());
    let cut = select(|| scores.iter().map(|&x| (order_key(x), 1)), n as u64);
    let mut ties = n - cut.above as usize;
    let mut best = Vec::with_capacity(n);
    for (token, &score) in (0..).zip(scores) {
        let key = order_key(score);
        if key < cut.key || (key == cut.key && ties == 0) {
            continue;
        }
        ties -= (key == cut.key) as usize;
        best.push(Candidate { score, beam, token });
    }
    best
}

/// The naive oracle, in f64: everything is sorted.
pub mod reference {
    /// (score, beam, token) of the `2 * beams` best of each batch item, from logits (rows, V), scores (rows), forbidden tokens and forced
    /// ones of each row.
    pub fn best(
        logits: &[f64],
        scores: &[f64],
        forbidden: &[Vec<u32>],
        forced: &[Option<u32>],
        beams: usize,
    ) -> Vec<(f64, u32, u32)> {
        let v = logits.len() / scores.len();
        let mut out = vec![];
        for first in (0..scores.len()).step_by(beams) {
            let mut all = vec![];
            for row in first..first + beams {
                let x = &logits[row * v..][..v];
                let log_sum = x.iter().map(|x| x.exp()).sum::<f64>().ln();
                for t in 0..v as u32 {
                    let score = match forced[row] {
                        Some(f) => scores[row] + if f == t { 0.0 } else { f64::NEG_INFINITY },
                        None if forbidden[row].contains(&t) => f64::NEG_INFINITY,
                        None => scores[row] + x[t as usize] - log_sum,
                    };
                    all.push((score, (row - first) as u32, t));
                }
            }
            // Stable: ties stay in order of beam, then token.
            all.sort_by(|a, b| b.0.total_cmp(&a.0));
            out.extend_from_slice(&all[..2 * beams]);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_takes_as_many_beams_as_the_op() {
        assert_eq!(MAX_BEAMS, kernels::beam_step_beams());
    }
}
