//! The divergence from the base model.
use sdrrl::{
    ops::{
        cross_entropy::{Head, LossScratch},
        kl_divergence::{Mixed, linear_kl_divergence, reference},
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
        make: |w, d| divergence(w, d, None),
    }
    linear_kl_divergence_capped {
        names: "N C V",
        measured: &[(&[2048, 2304, 256000], BF16)],
        checked: &[&[17, 40, 301]],
        dtypes: BOTH,
        work: |d, _| flop(6.0, d),
        rows_alone: false,
        make: |w, d| divergence(w, d, Some(30.0)),
    }
}

/// A third of the nll and the whole divergence.
const MIXED: Mixed = Mixed { hard: 0.3, soft: 1.0 };

fn divergence(w: &World, d: &[usize], softcap: Option<f32>) -> Result<Case> {
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
    let inputs = [hidden.reader(), base.reader(), head.reader()];
    let rows: Vec<u32> = (0..n as u32).collect();
    let asked = rows.clone();
    let outs = [losses.reader(), divergences.reader(), dh.reader()];
    Ok(case(&outs, move || {
        let (s, states, d, t) = (&mut scratch, (&hidden, &base), Some(&mut dh), &targets);
        let head = Head { weight: (&head).into(), softcap };
        linear_kl_divergence(&mut losses, &mut divergences, d, s, states, head, t, &weights, &rows, MIXED)
    })?
    .against(move || {
        let targets: Vec<u32> = (0..n).map(|i| (i * 7919 % v) as u32).collect();
        let [h, b, head] = inputs.each_ref().map(|t| t.to_f32_vec().unwrap());
        let (nll, kl, dhidden) = reference::forward_backward(
            [&h, &b, &head],
            &targets,
            &vec![1.0; n],
            &asked,
            [n, c, v],
            [0.3, 1.0],
            softcap.map(f64::from),
        );
        vec![nll, kl, dhidden]
    }))
}
