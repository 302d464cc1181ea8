//! The divergence from the base model.
use sdrrl::{
    ops::{
        cross_entropy::{Head, LossScratch},
        kl_divergence::{Clip, Mixed, linear_kl_divergence, reference},
    },
    tensor::Arena,
};

use super::*;

rows! {
    linear_kl_divergence {
        names: "N C V",
        measured: &[(&[2048, 4096, 32000], BF16)],
        checked: &[&[17, 40, 301], &[70, 40, 301]],
        dtypes: BOTH,
        work: |d, _| flop(6.0, d),
        rows_alone: false,
        make: |w, d| divergence(w, d, None, None),
    }
    linear_kl_divergence_capped {
        names: "N C V",
        measured: &[(&[2048, 2304, 256000], BF16)],
        checked: &[&[17, 40, 301]],
        dtypes: BOTH,
        work: |d, _| flop(6.0, d),
        rows_alone: false,
        make: |w, d| divergence(w, d, Some(30.0), None),
    }
    linear_kl_divergence_clipped {
        names: "N C V",
        measured: &[(&[2048, 4096, 32000], BF16)],
        checked: &[&[17, 40, 301], &[70, 40, 301]],
        dtypes: BOTH,
        work: |d, _| flop(6.0, d),
        rows_alone: false,
        make: |w, d| divergence(w, d, None, Some(CLIP)),
    }
}

/// A third of the nll and the whole divergence.
const MIXED: Mixed = Mixed { hard: 0.3, soft: 1.0 };
/// Some columns of each row are above it.
const CLIP: f32 = 0.01;

fn divergence(w: &World, d: &[usize], softcap: Option<f32>, most: Option<f32>) -> Result<Case> {
    let [n, c, v] = [d[0], d[1], d[2]];
    let (hidden, base) = (w.normal("hidden", &[n, c], 1)?, w.normal("base", &[n, c], 1)?);
    let head = w.normal("head", &[v, c], c)?;
    let targets = w.integers("targets", n, |i| i * 7919 % v)?;
    let mut weights = w.out_f32(&[n])?;
    weights.write_f32(&vec![1.0; n])?;
    let acts = w.acts;
    let (mut scratch, _) =
        Arena::build("scratch", &w.device, |a| LossScratch::lay_out(a, acts, n, v, c, 256 << 20))?;
    let (mut losses, mut divergences, mut dh) = (w.out_f32(&[n])?, w.out_f32(&[n])?, w.out(&[n, c])?);
    let mut clipped = w.out_f32(&[n])?;
    let inputs = [hidden.reader(), base.reader(), head.reader()];
    let rows: Vec<u32> = (0..n as u32).collect();
    let asked = rows.clone();
    let outs = [losses.reader(), divergences.reader(), clipped.reader(), dh.reader()];
    let outs: Vec<_> = outs.into_iter().enumerate().filter(|(i, _)| *i != 2 || most.is_some()).collect();
    let outs: Vec<_> = outs.into_iter().map(|(_, out)| out).collect();
    Ok(case(&outs, move || {
        let (s, states, d, t) = (&mut scratch, (&hidden, &base), Some(&mut dh), &targets);
        let head = Head { weight: (&head).into(), scale: 1.0, softcap };
        let clip = most.map(|most| Clip { most, clipped: &mut clipped });
        let (l, k) = (&mut losses, &mut divergences);
        linear_kl_divergence(l, k, d, s, states, head, t, &weights, &rows, MIXED, clip)
    })?
    .against(move || {
        let targets: Vec<u32> = (0..n).map(|i| (i * 7919 % v) as u32).collect();
        let [h, b, head] = inputs.each_ref().map(|t| t.to_f32_vec().unwrap());
        let (nll, kl, clipped, dhidden) = reference::forward_backward(
            [&h, &b, &head],
            &targets,
            &vec![1.0; n],
            &asked,
            [n, c, v],
            [0.3, 1.0],
            softcap.map(f64::from),
            most.map(f64::from),
        );
        if most.is_some() { vec![nll, kl, clipped, dhidden] } else { vec![nll, kl, dhidden] }
    }))
}
