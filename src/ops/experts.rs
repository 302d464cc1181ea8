//! What a mixture of experts (Shazeer et al. 2017) needs beside products: the choice of experts, rows by expert, and their weighted sum.
//!
//! A token's pair (token n, place j) is number n K + j. Rows by expert stand one expert behind the other, within each in the order of the tokens: `order` has a row's
//! token, `pairs` its pair, `slots` a pair's row. Shares are put on the input of an expert's last product, which is linear, so that nothing but its gradient is
//! needed for theirs. Every sum has a fixed order, so that a token's bits depend on no other token.
#![allow(unsafe_code)]
use std::ops::Range;

use anyhow::Result;

use super::{
    checks::{check, check_ids},
    choose::order_key,
    kernels,
    launch::{Grid, check_dtype, gpu_of},
    parallel::{Shared, for_each_rows, map_chunks},
};
use crate::tensor::{DType, Tensor, refuse_overlap};

/// chosen (N, K), U32 = the K largest of each row of logits (N, E), falling, the first of equal ones first; shares (N, K) = the softmax over them if
/// `normalised` (so that they sum to 1), else their part of the softmax over all E. Shares and logits are F32.
pub fn route_forward(
    chosen: &mut Tensor,
    shares: &mut Tensor,
    logits: &Tensor,
    normalised: bool,
) -> Result<()> {
    const OP: &str = "route_forward";
    let ((n, e), (rows, k)) = (logits.rows_cols(), chosen.rows_cols());
    check(rows == n && (1..=e).contains(&k) && shares.rows_cols() == (n, k), OP, &[chosen, shares, logits])?;
    check_dtype(OP, DType::U32, &[chosen])?;
    refuse_overlap(&[chosen, shares], &[logits])?;
    if let Some(gpu) = gpu_of(OP, &[chosen, shares, logits])? {
        let (grid, normalised) = (Grid::tiles([n, 1, 1]), usize::from(normalised));
        // SAFETY: shapes were checked.
        return unsafe { kernels::route_forward(&gpu, grid, chosen, shares, logits, normalised, n, e, k) };
    }
    let (chosen, shares, logits) = (chosen.u32_mut()?, shares.f32_mut()?, logits.f32()?);
    let each = chosen.chunks_exact_mut(k).zip(shares.chunks_exact_mut(k)).zip(logits.chunks_exact(e));
    for ((chosen, shares), logits) in each {
        let mut best: Vec<(u32, usize)> = vec![];
        for (i, &x) in logits.iter().enumerate() {
            let key = order_key(x);
            let at = best.partition_point(|&(other, _)| other >= key);
            best.insert(at, (key, i));
            best.truncate(k);
        }
        let top = logits[best[0].1];
        for ((chosen, share), (_, i)) in chosen.iter_mut().zip(&mut *shares).zip(best) {
            (*chosen, *share) = (i as u32, (logits[i] - top).exp());
        }
        let sum: f32 = match normalised {
            true => shares.iter().sum(),
            false => logits.iter().map(|x| (x - top).exp()).sum(),
        };
        shares.iter_mut().for_each(|share| *share /= sum);
    }
    Ok(())
}

/// dlogits (N, E) = the gradient of [`route_forward`] for dshares (N, K), F32; the choice itself has none. dlogits F32 or, on a GPU, Bf16.
pub fn route_backward(
    dlogits: &mut Tensor,
    dshares: &Tensor,
    chosen: &Tensor,
    shares: &Tensor,
    logits: &Tensor,
    normalised: bool,
) -> Result<()> {
    const OP: &str = "route_backward";
    let ((n, e), (rows, k)) = (logits.rows_cols(), chosen.rows_cols());
    let fits = dlogits.rows_cols() == (n, e) && rows == n && (1..=e).contains(&k);
    let same = [dshares, shares].iter().all(|t| t.rows_cols() == (n, k));
    check(fits && same, OP, &[dlogits, dshares, chosen, shares, logits])?;
    check_dtype(OP, DType::U32, &[chosen])?;
    refuse_overlap(&[dlogits], &[dshares, chosen, shares, logits])?;
    if let Some(gpu) = gpu_of(OP, &[dlogits, dshares, chosen, shares, logits])? {
        let (grid, flag) = (Grid::tiles([n, 1, 1]), usize::from(normalised));
        // SAFETY: shapes were checked.
        return unsafe {
            kernels::route_backward(&gpu, grid, dlogits, dshares, chosen, shares, logits, flag, n, e, k)
        };
    }
    let (ids, shares, dshares, logits) = (chosen.u32()?, shares.f32()?, dshares.f32()?, logits.f32()?);
    check_ids(OP, chosen, ids, e, &"the router")?;
    for (i, out) in dlogits.f32_mut()?.chunks_exact_mut(e).enumerate() {
        let (ids, shares, dshares) = (&ids[i * k..][..k], &shares[i * k..][..k], &dshares[i * k..][..k]);
        let (logits, top) = (&logits[i * e..][..e], logits[i * e + ids[0] as usize]);
        let dot: f32 = shares.iter().zip(dshares).map(|(p, d)| p * d).sum();
        for (out, x) in out.iter_mut().zip(logits) {
            *out = if normalised { 0.0 } else { -shares[0] * (x - top).exp() * dot };
        }
        for ((&id, p), d) in ids.iter().zip(shares).zip(dshares) {
            out[id as usize] = p * (d - dot);
        }
    }
    Ok(())
}

/// Rows by expert; see the top of this file.
#[derive(Debug, Default)]
pub struct ByExpert {
    /// Experts that any token chose, and their rows.
    pub groups: Vec<(usize, Range<usize>)>,
    /// (N K): a row's token.
    pub order: Vec<u32>,
    /// (N K): a row's pair.
    pub pairs: Vec<u32>,
    /// (N K): a pair's row.
    pub slots: Vec<u32>,
}

impl ByExpert {
    /// Of `chosen` (N, K), each below `experts`.
    pub fn of(chosen: &[u32], k: usize, experts: usize) -> ByExpert {
        let mut ends = vec![0usize; experts + 1];
        chosen.iter().for_each(|&e| ends[e as usize + 1] += 1);
        (0..experts).for_each(|e| ends[e + 1] += ends[e]);
        let groups = (0..experts).map(|e| (e, ends[e]..ends[e + 1])).filter(|(_, rows)| !rows.is_empty());
        let groups = groups.collect();
        let mut by = ByExpert { groups, ..ByExpert::default() };
        (by.order, by.pairs) = (vec![0; chosen.len()], vec![0; chosen.len()]);
        for (pair, &e) in chosen.iter().enumerate() {
            let row = ends[e as usize];
            ends[e as usize] += 1;
            by.order[row] = (pair / k.max(1)) as u32;
            by.pairs[row] = pair as u32;
            by.slots.push(row as u32);
        }
        by
    }
}

/// rows (R, F) *= the share of each row's pair: shares (N, K), F32, of which `pairs` (R) names R different ones.
pub fn weigh_forward(rows: &mut Tensor, shares: &Tensor, pairs: &Tensor) -> Result<()> {
    const OP: &str = "weigh_forward";
    let (r, f) = rows.rows_cols();
    check(pairs.len() == r && shares.len() == r, OP, &[rows, shares, pairs])?;
    check_dtype(OP, DType::U32, &[pairs])?;
    refuse_overlap(&[rows], &[shares, pairs])?;
    if let Some(gpu) = gpu_of(OP, &[rows, shares, pairs])? {
        // SAFETY: shapes were checked, the pairs are the caller's promise as documented.
        return unsafe { kernels::weigh_forward(&gpu, Grid::new(r), rows, shares, pairs, f) };
    }
    let (shares, ids) = (shares.f32()?, pairs.u32()?);
    check_ids(OP, pairs, ids, r, &"the shares")?;
    map_chunks(rows.f32_mut()?, f.max(1), r * f, |i, row| {
        let share = shares[ids[i] as usize];
        row.iter_mut().for_each(|x| *x *= share);
    });
    Ok(())
}

/// The gradient of [`weigh_forward`] for drows (R, F): dshares (N, K) = drows · rows, the rows before they were weighed; then drows *= the shares.
pub fn weigh_backward(
    dshares: &mut Tensor,
    drows: &mut Tensor,
    rows: &Tensor,
    shares: &Tensor,
    pairs: &Tensor,
) -> Result<()> {
    const OP: &str = "weigh_backward";
    let (r, f) = rows.rows_cols();
    let fits = drows.rows_cols() == (r, f) && [&*dshares, shares, pairs].iter().all(|t| t.len() == r);
    check(fits, OP, &[dshares, drows, rows, shares, pairs])?;
    check_dtype(OP, DType::U32, &[pairs])?;
    refuse_overlap(&[dshares, drows], &[rows, shares, pairs])?;
    if let Some(gpu) = gpu_of(OP, &[dshares, drows, rows, shares, pairs])? {
        let grid = Grid::new(r);
        // SAFETY: shapes were checked, the pairs are the caller's promise as documented.
        return unsafe { kernels::weigh_backward(&gpu, grid, dshares, drows, rows, shares, pairs, f) };
    }
    let (rows, shares, ids) = (rows.f32()?, shares.f32()?, pairs.u32()?);
    check_ids(OP, pairs, ids, r, &"the shares")?;
    let dots = map_chunks(drows.f32_mut()?, f.max(1), 2 * r * f, |i, drow| {
        let dot: f32 = drow.iter().zip(&rows[i * f..][..f]).map(|(d, x)| d * x).sum();
        let share = shares[ids[i] as usize];
        drow.iter_mut().for_each(|d| *d *= share);
        dot
    });
    let dshares = dshares.f32_mut()?;
    ids.iter().zip(dots).for_each(|(&pair, dot)| dshares[pair as usize] = dot);
    Ok(())
}

/// out (N, C) = (or, with `accumulate`, +=) the sum of the K rows of inp (R, C) that slots (N, K) names for each, in their order. Other entries of slots than
/// rows of inp are not allowed.
pub fn sum_slots(out: &mut Tensor, inp: &Tensor, slots: &Tensor, accumulate: bool) -> Result<()> {
    const OP: &str = "sum_slots";
    let ((n, c), (r, width), (rows, k)) = (out.rows_cols(), inp.rows_cols(), slots.rows_cols());
    check(width == c && rows == n, OP, &[out, inp, slots])?;
    check_dtype(OP, DType::U32, &[slots])?;
    refuse_overlap(&[out], &[inp, slots])?;
    if let Some(gpu) = gpu_of(OP, &[out, inp, slots])? {
        // SAFETY: shapes were checked, the slots are the caller's promise as documented.
        return unsafe {
            kernels::sum_slots(&gpu, Grid::new(n), out, inp, slots, usize::from(accumulate), c, k)
        };
    }
    let (inp, ids) = (inp.f32()?, slots.u32()?);
    check_ids(OP, slots, ids, r, &"the rows")?;
    let out = Shared::new(out.f32_mut()?);
    for_each_rows(n, c * k, |block| {
        for i in block {
            // SAFETY: each row belongs to one block.
            let out = unsafe { out.part(i * c, c) };
            for (j, o) in out.iter_mut().enumerate() {
                let sum: f32 = ids[i * k..][..k].iter().map(|&slot| inp[slot as usize * c + j]).sum();
                *o = if accumulate { *o + sum } else { sum };
            }
        }
    });
    Ok(())
}

/// The naive oracle, in f64.
pub mod reference {
    /// (chosen, shares) (n, k) of logits (n, e).
    pub fn route(logits: &[f64], e: usize, k: usize, normalised: bool) -> (Vec<usize>, Vec<f64>) {
        let (mut chosen, mut shares) = (vec![], vec![]);
        for row in logits.chunks_exact(e) {
            let mut order: Vec<usize> = (0..e).collect();
            order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
            let over = if normalised { &order[..k] } else { &order[..] };
            let sum: f64 = over.iter().map(|&i| row[i].exp()).sum();
            shares.extend(order[..k].iter().map(|&i| row[i].exp() / sum));
            chosen.extend(&order[..k]);
        }
        (chosen, shares)
    }

    /// dlogits (n, e) of dshares (n, k): every share by every logit.
    pub fn route_backward(dshares: &[f64], logits: &[f64], e: usize, k: usize, normalised: bool) -> Vec<f64> {
        let (chosen, shares) = route(logits, e, k, normalised);
        let mut out = vec![0.0; logits.len()];
        for (i, row) in logits.chunks_exact(e).enumerate() {
            let (chosen, shares) = (&chosen[i * k..][..k], &shares[i * k..][..k]);
            let total: f64 = match normalised {
                true => chosen.iter().map(|&c| row[c].exp()).sum(),
                false => row.iter().map(|x| x.exp()).sum(),
            };
            for j in 0..k {
                for l in 0..e {
                    let p = if normalised && !chosen.contains(&l) { 0.0 } else { row[l].exp() / total };
                    let own = if l == chosen[j] { 1.0 } else { 0.0 };
                    out[i * e + l] += dshares[i * k + j] * shares[j] * (own - p);
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every pair has one row, experts stand in order, and tokens within an expert.
    #[test]
    fn rows_stand_by_expert_and_token() {
        let chosen = [3, 0, 0, 2, 3, 2, 0, 3];
        let by = ByExpert::of(&chosen, 2, 5);
        assert_eq!(by.groups, [(0, 0..3), (2, 3..5), (3, 5..8)]);
        assert_eq!(by.order, [0, 1, 3, 1, 2, 0, 2, 3]);
        for (pair, &slot) in by.slots.iter().enumerate() {
            assert_eq!(by.pairs[slot as usize] as usize, pair);
            assert_eq!(by.order[slot as usize] as usize, pair / 2);
            let (expert, _) = by.groups.iter().find(|(_, rows)| rows.contains(&(slot as usize))).unwrap();
            assert_eq!(*expert, chosen[pair] as usize);
        }
    }

    /// Of the CPU; kernels are held to the CPU's.
    #[test]
    fn shares_are_the_references() {
        let logits: Vec<f32> = (0..7 * 9u32).map(|i| (i * 7919 % 101) as f32 / 20.0 - 2.0).collect();
        let wide: Vec<f64> = logits.iter().map(|&x| x.into()).collect();
        let t = Tensor::from_f32("logits", &[7, 9], &logits).unwrap();
        for (k, normalised) in [(1, true), (3, true), (9, true), (1, false), (4, false)] {
            let mut chosen = Tensor::zeros("chosen", DType::U32, &[7, k]).unwrap();
            let mut shares = Tensor::zeros("shares", DType::F32, &[7, k]).unwrap();
            route_forward(&mut chosen, &mut shares, &t, normalised).unwrap();
            let (ids, want) = reference::route(&wide, 9, k, normalised);
            assert!(chosen.u32().unwrap().iter().zip(ids).all(|(&got, want)| got as usize == want));
            let close = |(got, want): (&f32, f64)| (*got as f64 - want).abs() < 1e-6;
            assert!(shares.f32().unwrap().iter().zip(want).all(close), "{k} {normalised}");
        }
    }

    /// The first of equal logits comes first, NaN chooses experts that exist, and no expert is chosen twice.
    #[test]
    fn the_choice_is_made_whatever_the_logits_are() {
        let rows = [[1.0, 2.0, 2.0, 0.0], [f32::NAN; 4], [f32::NEG_INFINITY; 4], [-0.0, 0.0, -1.0, -0.0]];
        let logits = Tensor::from_f32("logits", &[4, 4], rows.as_flattened()).unwrap();
        let mut chosen = Tensor::zeros("chosen", DType::U32, &[4, 3]).unwrap();
        let mut shares = Tensor::zeros("shares", DType::F32, &[4, 3]).unwrap();
        route_forward(&mut chosen, &mut shares, &logits, true).unwrap();
        assert_eq!(chosen.u32().unwrap(), [1, 2, 0, 0, 1, 2, 0, 1, 2, 0, 1, 3]);
        let mut few = Tensor::zeros("chosen", DType::U32, &[4, 5]).unwrap();
        assert!(route_forward(&mut few, &mut shares, &logits, true).is_err());
    }
}
