//! A mixture of experts: Qwen3-30B-A3B's 128 experts of 768, of which a token has 8.
use sdrrl::{
    ops::experts::{
        ByExpert, reference, route_backward, route_forward, sum_slots, weigh_backward, weigh_forward,
    },
    tensor::Tensor,
};

use super::*;

rows! {
    route_forward {
        names: "N E K",
        measured: &[(&[8192, 128, 8], ONLY_F32)],
        checked: &[&[9, 128, 8], &[5, 7, 2], &[3, 3, 3], &[6, 33, 1]],
        dtypes: ONLY_F32,
        work: |d, _| Work::Bytes((4 * d[0] * (d[1] + 2 * d[2])) as f64),
        make: routed,
    }
    route_backward {
        names: "N E K",
        measured: &[(&[8192, 128, 8], BF16)],
        checked: &[&[9, 128, 8], &[5, 7, 2], &[3, 3, 3], &[6, 33, 1]],
        dtypes: BOTH,
        work: |d, t| Work::Bytes((d[0] * (d[1] * (4 + t.bytes()) + 12 * d[2])) as f64),
        make: routed_back,
    }
    weigh_forward {
        names: "R F",
        measured: &[(&[65536, 768], BF16)],
        checked: &[&[12, 40], &[6, 1031]],
        dtypes: BOTH,
        work: |d, t| elements(2 * d[0] * d[1], t),
        rows_alone: false,
        make: weighed,
    }
    weigh_backward {
        names: "R F",
        measured: &[(&[65536, 768], BF16)],
        checked: &[&[12, 40], &[6, 1031]],
        dtypes: BOTH,
        work: |d, t| elements(3 * d[0] * d[1], t),
        rows_alone: false,
        make: weighed_back,
    }
    sum_slots {
        names: "N C K",
        measured: &[(&[8192, 2048, 8], BF16)],
        checked: &[&[7, 72, 3], &[3, 1027, 2], &[5, 8, 1]],
        dtypes: BOTH,
        work: |d, t| elements(d[0] * d[1] * (d[2] + 1), t),
        rows_alone: false,
        make: summed,
    }
}

/// Both kinds of shares occur among the shapes.
fn normalised(d: &[usize]) -> bool {
    d[1].is_multiple_of(2)
}

fn routed(w: &World, d: &[usize]) -> Result<Case> {
    let (mut logits, norm) = (w.normal_f32("logits", &d[..2])?, normalised(d));
    // Many are equal: which comes first counts. The CPU's are held to the reference by its own test.
    let halves: Vec<f32> = logits.to_f32_vec()?.iter().map(|x| (2.0 * x).round() / 2.0).collect();
    logits.write_f32(&halves)?;
    let (mut chosen, mut shares) = (w.out_u32(&[d[0], d[2]])?, w.out_f32(&[d[0], d[2]])?);
    let outs = [chosen.reader(), shares.reader()];
    case(&outs, move || route_forward(&mut chosen, &mut shares, &logits, norm))
}

fn routed_back(w: &World, d: &[usize]) -> Result<Case> {
    let (logits, norm) = (w.normal_f32("logits", &d[..2])?, normalised(d));
    let (mut chosen, mut shares) = (w.out_u32(&[d[0], d[2]])?, w.out_f32(&[d[0], d[2]])?);
    route_forward(&mut chosen, &mut shares, &logits, norm)?;
    let (dshares, mut dlogits) = (w.normal_f32("dshares", &[d[0], d[2]])?, w.out(&d[..2])?);
    let [values, given] = wide([&logits, &dshares])?;
    let (e, k) = (d[1], d[2]);
    Ok(case(&[dlogits.reader()], move || {
        route_backward(&mut dlogits, &dshares, &chosen, &shares, &logits, norm)
    })?
    .against(move || vec![reference::route_backward(&given, &values, e, k, norm)]))
}

/// Maps of R pairs of tokens with K places to 5 experts.
fn maps(w: &World, r: usize, k: usize) -> Result<[Tensor; 2]> {
    let chosen: Vec<u32> = (0..r).map(|i| (i * 7919 % 5) as u32).collect();
    let by = ByExpert::of(&chosen, k, 5);
    Ok([w.integers("pairs", r, |i| by.pairs[i] as usize)?, w.integers("slots", r, |i| by.slots[i] as usize)?])
}

fn weighed(w: &World, d: &[usize]) -> Result<Case> {
    let [pairs, _] = maps(w, d[0], 2)?;
    let (shares, mut rows) = (w.normal_f32("shares", &d[..1])?, w.normal("rows", d, 1)?);
    let ([values, by], ids, f) = (wide([&rows, &shares])?, pairs.to_u32_vec()?, d[1]);
    Ok(case(&[rows.reader()], move || weigh_forward(&mut rows, &shares, &pairs))?
        .against(move || vec![scaled(&values, &by, &ids, f)]))
}

fn scaled(rows: &[f64], shares: &[f64], pairs: &[u32], f: usize) -> Vec<f64> {
    rows.iter().enumerate().map(|(i, x)| x * shares[pairs[i / f] as usize]).collect()
}

fn weighed_back(w: &World, d: &[usize]) -> Result<Case> {
    let [pairs, _] = maps(w, d[0], 2)?;
    let (shares, rows) = (w.normal_f32("shares", &d[..1])?, w.normal("rows", d, 1)?);
    let (mut drows, mut dshares) = (w.normal("drows", d, 1)?, w.out_f32(&d[..1])?);
    let ([values, given, by], ids, f) = (wide([&rows, &drows, &shares])?, pairs.to_u32_vec()?, d[1]);
    let outs = [dshares.reader(), drows.reader()];
    Ok(case(&outs, move || weigh_backward(&mut dshares, &mut drows, &rows, &shares, &pairs))?.against(
        move || {
            let mut dots = vec![0.0; by.len()];
            (0..values.len()).for_each(|i| dots[ids[i / f] as usize] += values[i] * given[i]);
            vec![dots, scaled(&given, &by, &ids, f)]
        },
    ))
}

fn summed(w: &World, d: &[usize]) -> Result<Case> {
    let (n, c, k) = (d[0], d[1], d[2]);
    let [_, slots] = maps(w, n * k, k)?;
    let slots = slots.into_shape(&[n, k])?;
    let (inp, mut out) = (w.normal("inp", &[n * k, c], 1)?, w.normal("out", &[n, c], 1)?);
    let ([values, given], ids) = (wide([&inp, &out])?, slots.to_u32_vec()?);
    // Added to what is there for an odd number of places.
    let add = k % 2 == 1;
    Ok(case(&[out.reader()], move || sum_slots(&mut out, &inp, &slots, add))?.against(move || {
        let one = |i: usize| {
            let sum: f64 = ids[i / c * k..][..k].iter().map(|&s| values[s as usize * c + i % c]).sum();
            if add { given[i] + sum } else { sum }
        };
        vec![(0..n * c).map(one).collect()]
    }))
}
