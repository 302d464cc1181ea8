//! The divergence from a teacher's likeliest tokens.
use sdrrl::{
    data::top_k::TopK,
    ops::{
        cross_entropy::{Head, LossScratch},
        kl_divergence::Mixed,
        top_k::linear_top_k,
        top_k_divergence::{linear_top_k_divergence, reference},
    },
    tensor::Arena,
};

use super::*;

rows! {
    linear_top_k_divergence {
        names: "N C V K",
        measured: &[(&[2048, 4096, 32000, 64], BF16)],
        checked: &[&[17, 40, 301, 5], &[70, 40, 1101, 600], &[9, 24, 77, 77]],
        dtypes: BOTH,
        work: |d, _| flop(4.0, &d[..3]),
        rows_alone: false,
        make: |w, d| divergence(w, d, None),
    }
    linear_top_k_divergence_capped {
        names: "N C V K",
        measured: &[(&[2048, 2304, 256000, 64], BF16)],
        checked: &[&[17, 40, 301, 5]],
        dtypes: BOTH,
        work: |d, _| flop(4.0, &d[..3]),
        rows_alone: false,
        make: |w, d| divergence(w, d, Some(30.0)),
    }
}

/// A third of the nll and the whole divergence.
const MIXED: Mixed = Mixed { hard: 0.3, soft: 1.0 };

fn divergence(w: &World, d: &[usize], softcap: Option<f32>) -> Result<Case> {
    let [n, c, v, k] = [d[0], d[1], d[2], d[3]];
    let hidden = w.normal("hidden", &[n, c], 1)?;
    let head = w.normal("head", &[v, c], c)?;
    let targets = w.integers("targets", n, |i| i * 7919 % v)?;
    let mut weights = w.out_f32(&[n])?;
    weights.write_f32(&vec![1.0; n])?;
    let acts = w.acts;
    let (mut scratch, _) =
        Arena::build("scratch", &w.device, |a| LossScratch::lay_out(a, acts, n, v, c, 256 << 20))?;
    let rows: Vec<u32> = (0..n as u32).collect();
    // The teacher is the CPU's everywhere: what is chosen may hang on a last bit.
    let teacher = teacher(w, [n, c, v, k])?;
    let (mut losses, mut divergences, mut dh) = (w.out_f32(&[n])?, w.out_f32(&[n])?, w.out(&[n, c])?);
    let outs = [losses.reader(), divergences.reader(), dh.reader()];
    let inputs = [hidden.reader(), head.reader()];
    let (asked, said) = (rows.clone(), teacher.clone());
    Ok(case(&outs, move || {
        let (s, d, t) = (&mut scratch, Some(&mut dh), &targets);
        let head = Head { weight: (&head).into(), scale: 1.0, softcap };
        let (l, k, own) = (&mut losses, &mut divergences, (&rows[..], &teacher));
        linear_top_k_divergence(l, k, d, s, &hidden, head, t, &weights, own, MIXED)
    })?
    .against(move || {
        let targets: Vec<u32> = (0..n).map(|i| (i * 7919 % v) as u32).collect();
        let [h, head] = inputs.each_ref().map(|t| t.to_f32_vec().unwrap());
        let (weights, cap) = (vec![1.0; n], softcap.map(f64::from));
        let own = (&asked[..], &said);
        let (nll, kl, dhidden) =
            reference::forward_backward([&h, &head], &targets, &weights, own, [n, c, v], [0.3, 1.0], cap);
        vec![nll, kl, dhidden]
    }))
}

/// The likeliest tokens of another model with the same head.
fn teacher(w: &World, [n, c, v, k]: [usize; 4]) -> Result<TopK> {
    let cpu = World { device: Device::Cpu, acts: F32, rounded: w.rounded };
    let (base, head) = (cpu.normal("base", &[n, c], 1)?, cpu.normal("head", &[v, c], c)?);
    let (mut scratch, _) =
        Arena::build("scratch", &Device::Cpu, |a| LossScratch::lay_out(a, F32, n, v, c, 1 << 20))?;
    let rows: Vec<u32> = (0..n as u32).collect();
    linear_top_k(&mut scratch, &base, &head, &rows, k)
}
