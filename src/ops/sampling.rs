//! From logits to the next token of each row: repetition penalty, bans, then the likeliest or a draw after temperature, top-k, top-p and min-p, in
//! transformers' order.
//!
//! What is kept: the k largest logits (of equal ones the first), then of those the fewest, from the largest down, whose probabilities sum to
//! at least p, then of those the ones that are at least min-p times as likely as the likeliest. A draw is 64 bits of Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") for (seed, row id,
//! step), as a fraction of the sum of the kept weights, which are added in order of the tokens. Weights are integers, so that a row's token is the same
//! in every batch, on every device and for any number of threads, bit for bit.
#![allow(unsafe_code)]
// A comparison that is false for NaN is meant.
#![allow(clippy::neg_cmp_op_on_partial_ord)]
use anyhow::{Result, ensure};

use crate::{
    device::{Device, Gpu},
    ops::parallel::map_chunks,
    tensor::{DType, Tensor},
};

use super::{
    checks::check,
    choose::{LOG2_E, order_key, select, top, weight, weight_bits},
    kernels,
    launch::{Grid, check_dtype},
};

/// Elementary operations per logit, about, of choosing a token.
const ROW_WORK: usize = 8;
/// Words of a row in the kernel's table.
const ROW_WORDS: usize = 6;

/// How tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 is greedy: the first of the largest logits.
    pub temperature: f32,
    /// Keep the k largest; 0 keeps all.
    pub top_k: usize,
    /// Keep the fewest whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens that are at least this fraction as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of the tokens in [`SamplingRow::seen`]; 1 is off.
    pub repetition_penalty: f32,
    /// Of every draw.
    pub seed: u64,
}

/// What belongs to one row.
#[derive(Clone, Copy, Debug, Default)]
pub struct SamplingRow<'a> {
    /// Of the row's draws.
    pub id: u64,
    /// Counts the row's draws.
    pub step: u32,
    /// The tokens to penalise, rising.
    pub seen: &'a [u32],
    /// The tokens not to choose, rising.
    pub banned: &'a [u32],
}

/// Chooses tokens for some rows at a time; holds what the kernel needs.
pub struct Sampler {
    rows: Tensor,
    lists: Tensor,
    tokens: Tensor,
}

impl Sampler {
    /// For up to `rows` rows whose lists hold up to `listed` tokens together.
    pub fn new(device: &Device, rows: usize, listed: usize) -> Result<Sampler> {
        let words = |name: &str, n: usize| Tensor::zeros_on(device, name, DType::U32, &[n]);
        Ok(Sampler {
            rows: words("sampling_rows", rows * ROW_WORDS)?,
            lists: words("sampling_lists", listed.max(1))?,
            tokens: words("sampled_tokens", rows)?,
        })
    }

    /// The token of each row of logits (N, V), F32, which are consumed. `None` for a row that holds a NaN or +inf, or that has no token to choose.
    /// Errors name a row whose lists do not rise or leave the vocabulary.
    pub fn sample(
        &mut self,
        logits: &mut Tensor,
        rows: &[SamplingRow],
        how: &Sampling,
    ) -> Result<Vec<Option<u32>>> {
        let (n, vocab) = logits.rows_cols();
        let listed: usize = rows.iter().map(|r| r.seen.len() + r.banned.len()).sum();
        check(n == rows.len() && vocab > 0, "sample", &[logits])?;
        ensure!(
            n <= self.tokens.len() && listed <= self.lists.len(),
            "sample: {n} rows with {listed} listed tokens, made for {} with {}",
            self.tokens.len(),
            self.lists.len()
        );
        check_dtype("sample", DType::F32, &[logits])?;
        for (i, row) in rows.iter().enumerate() {
            for list in [row.seen, row.banned] {
                let sound =
                    list.windows(2).all(|w| w[0] < w[1]) && list.last().is_none_or(|&t| (t as usize) < vocab);
                ensure!(
                    sound,
                    "sample: row {i} of {logits:?}: its tokens {list:?} must rise and be below {vocab}"
                );
            }
        }
        let chosen: Vec<u32> = match logits.gpu().cloned() {
            Some(gpu) => self.on_gpu(&gpu, logits, rows, how)?,
            None => map_chunks(logits.f32_mut()?, vocab, ROW_WORK * n * vocab, |i, logits| {
                choose(logits, &rows[i], how).unwrap_or(u32::MAX)
            }),
        };
        Ok(chosen.into_iter().map(|t| (t != u32::MAX).then_some(t)).collect())
    }

    fn on_gpu(
        &mut self,
        gpu: &Gpu,
        logits: &mut Tensor,
        rows: &[SamplingRow],
        how: &Sampling,
    ) -> Result<Vec<u32>> {
        let (n, vocab) = logits.rows_cols();
        let (mut table, mut lists) = (vec![], vec![]);
        for row in rows {
            let seen = lists.len();
            lists.extend_from_slice(row.seen);
            let banned = lists.len();
            lists.extend_from_slice(row.banned);
            let (id, end) = ([row.id as u32, (row.id >> 32) as u32], lists.len());
            table.extend([id[0], id[1], row.step, seen as u32, banned as u32, end as u32]);
        }
        self.rows.rows(0..table.len())?.write_u32(&table)?;
        self.lists.rows(0..lists.len())?.write_u32(&lists)?;
        ensure!(ROW_WORDS * 4 == kernels::sampling_row_bytes(), "sample: sampling.cu's Row is another");
        // SAFETY: shapes and lists were checked.
        unsafe {
            kernels::sample_tokens(
                gpu,
                Grid::new(n),
                &mut self.tokens,
                logits,
                &self.rows,
                &self.lists,
                vocab,
                weight_bits(vocab) as usize,
                how.repetition_penalty,
                how.exponent(),
                how.top_k.min(vocab),
                how.top_p_fraction().unwrap_or(0),
                how.least(),
                how.seed,
            )?;
        }
        self.tokens.rows(0..n)?.to_u32_vec()
    }
}

impl Sampling {
    /// Weights are 2^(exponent (logit - top)); 0 is greedy.
    fn exponent(&self) -> f32 {
        if self.temperature == 0.0 { 0.0 } else { (LOG2_E / self.temperature).min(f32::MAX) }
    }
    /// top-p as a fraction of 2^64.
    fn top_p_fraction(&self) -> Option<u64> {
        (self.top_p < 1.0).then(|| ((self.top_p as f64 * 2f64.powi(64)) as u64).max(1))
    }
}

impl Sampling {
    /// What is added to the top logit for the least one that min-p keeps.
    fn least(&self) -> f32 {
        if self.min_p > 0.0 { self.min_p.ln() * self.temperature } else { f32::NEG_INFINITY }
    }
}

fn choose(x: &mut [f32], row: &SamplingRow, how: &Sampling) -> Option<u32> {
    for &t in row.seen {
        let x = &mut x[t as usize];
        *x = if *x > 0.0 { *x / how.repetition_penalty } else { *x * how.repetition_penalty };
    }
    row.banned.iter().for_each(|&t| x[t as usize] = f32::NEG_INFINITY);
    let top = top(x);
    if !(top > f32::NEG_INFINITY) {
        return None;
    }
    if how.temperature == 0.0 {
        return x.iter().position(|&v| v == top).map(|i| i as u32);
    }
    let (exponent, bits) = (how.exponent(), weight_bits(x.len()));
    let items: Vec<(u32, u64)> =
        x.iter().map(|&v| (order_key(v), weight((v - top) * exponent, bits))).collect();
    let draw = philox([row.id as u32, (row.id >> 32) as u32, row.step, 0], how.seed);
    let least = how.least();
    let least = if least > f32::NEG_INFINITY { order_key(top + least) } else { 0 };
    draw_from(&items, how, least, u64::from(draw[1]) << 32 | u64::from(draw[0]))
}

/// The token of (key, weight) items that `draw`, a fraction of 2^64, falls on; none with a key below `least`.
fn draw_from(items: &[(u32, u64)], how: &Sampling, least: u32, draw: u64) -> Option<u32> {
    let scaled = |x: u64, fraction: u64| u128::from(x) * u128::from(fraction);
    // Kept are the keys above `floor` and the first `ties` of those equal to it, which weigh the same.
    let (mut floor, mut ties) = (0, 0);
    if how.top_k > 0 && how.top_k < items.len() {
        let cut = select(|| items.iter().map(|&(key, _)| (key, 1)), how.top_k as u64);
        (floor, ties) = (cut.key, how.top_k as u64 - cut.above);
    }
    let weigh = |floor: u32| items.iter().find(|i| i.0 == floor).map_or(0, |i| i.1);
    let mut total = items.iter().filter(|i| i.0 > floor).map(|i| i.1).sum::<u64>() + ties * weigh(floor);
    if let Some(p) = how.top_p_fraction() {
        let target = scaled(total, p).div_ceil(1 << 64) as u64;
        let kept = || items.iter().map(|&(key, weight)| (key, if key >= floor { weight } else { 0 }));
        let cut = select(kept, target);
        ties = (target - cut.above).div_ceil(weigh(cut.key));
        (floor, total) = (cut.key, cut.above + ties * weigh(cut.key));
    }
    if least > floor {
        (floor, ties) = (least - 1, 0);
        total = items.iter().filter(|i| i.0 > floor).map(|i| i.1).sum();
    }
    let mut left = (scaled(total, draw) >> 64) as u64;
    for (token, &(key, weight)) in (0..).zip(items) {
        if key < floor || (key == floor && ties == 0) {
            continue;
        }
        ties -= (key == floor) as u64;
        if left < weight {
            return Some(token);
        }
        left -= weight;
    }
    None
}

/// Philox4x32-10: 128 random bits for a counter under a key.
pub fn philox(counter: [u32; 4], key: u64) -> [u32; 4] {
    let ([mut c0, mut c1, mut c2, mut c3], mut k0, mut k1) = (counter, key as u32, (key >> 32) as u32);
    for _ in 0..10 {
        let (a, b) = (0xD251_1F53 * u64::from(c0), 0xCD9E_8D57 * u64::from(c2));
        (c0, c1, c2, c3) = ((b >> 32) as u32 ^ c1 ^ k0, b as u32, (a >> 32) as u32 ^ c3 ^ k1, a as u32);
        (k0, k1) = (k0.wrapping_add(0x9E37_79B9), k1.wrapping_add(0xBB67_AE85));
    }
    [c0, c1, c2, c3]
}

/// The naive oracle: everything is sorted, in f64.
pub mod reference {
    use super::{Sampling, SamplingRow};

    /// The probability of every token after penalties, bans, temperature, top-k, top-p and min-p.
    pub fn probabilities(logits: &[f32], row: &SamplingRow, how: &Sampling) -> Vec<f64> {
        let mut x: Vec<f64> = logits.iter().map(|&x| x as f64).collect();
        for &t in row.seen {
            let penalty = how.repetition_penalty as f64;
            let x = &mut x[t as usize];
            *x = if *x > 0.0 { *x / penalty } else { *x * penalty };
        }
        row.banned.iter().for_each(|&t| x[t as usize] = f64::NEG_INFINITY);
        let mut order: Vec<usize> = (0..x.len()).collect();
        // Stable: of equal logits the first comes first.
        order.sort_by(|&a, &b| x[b].total_cmp(&x[a]));
        let mut out = vec![0.0; x.len()];
        if how.temperature == 0.0 {
            out[order[0]] = 1.0;
            return out;
        }
        if how.top_k > 0 {
            order.truncate(how.top_k);
        }
        let weight = |i: usize| ((x[i] - x[order[0]]) / how.temperature as f64).exp();
        let total: f64 = order.iter().map(|&i| weight(i)).sum();
        let mut reached = 0.0;
        for &i in &order {
            if how.top_p < 1.0 && reached >= how.top_p as f64 * total {
                break;
            }
            out[i] = weight(i);
            reached += out[i];
        }
        out.iter_mut().filter(|p| **p < how.min_p as f64).for_each(|p| *p = 0.0);
        let reached: f64 = out.iter().sum();
        out.iter_mut().for_each(|p| *p /= reached);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Random123's own known answers (kat_vectors, philox4x32-10).
    #[test]
    fn philox_gives_the_known_answers() {
        assert_eq!(philox([0; 4], 0), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = philox([u32::MAX; 4], u64::MAX);
        assert_eq!(ones, [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        let want = [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1];
        assert_eq!(philox(pi, 0x299f_31d0_a409_3822), want);
    }
}
