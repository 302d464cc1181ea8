//! DoRA beside the products of a LoRA.
use sdrrl::ops::{
    dora::{dora_backward, dora_forward, dora_norms},
    lora::LowRank,
};

use super::*;

rows! {
    dora_norms {
        names: "M K R",
        measured: &[(&[11008, 4096, 16], BF16)],
        checked: &[&[19, 40, 3]],
        dtypes: BOTH,
        work: |d, _| flop(2.0, d),
        make: norms,
    }
    dora_forward {
        names: "N M",
        measured: &[(&[8192, 11008], BF16)],
        checked: &[&[5, 72]],
        dtypes: BOTH,
        work: |d, t| elements(2 * d[0] * d[1], t),
        make: |w, d| scaled(w, d, false),
    }
    dora_backward {
        names: "N M",
        measured: &[(&[8192, 11008], BF16)],
        checked: &[&[35, 72]],
        dtypes: BOTH,
        work: |d, t| elements(3 * d[0] * d[1], t),
        rows_alone: false,
        make: |w, d| scaled(w, d, true),
    }
}

fn norms(w: &World, d: &[usize]) -> Result<Case> {
    let [m, k, r] = [d[0], d[1], d[2]];
    let (weight, mut norms) = (w.normal("weight", &[m, k], k)?, w.out_f32(&[m])?);
    let (a, b) = (w.normal_f32_of("a", &[r, k], k)?, w.normal_f32_of("b", &[m, r], r)?);
    case(&[norms.reader()], move || dora_norms(&mut norms, &weight, LowRank { a: &a, b: &b, scale: 2.0, scaled: false }))
}

fn scaled(w: &World, d: &[usize], back: bool) -> Result<Case> {
    let (z, magnitude, mut norms) =
        (w.normal("z", d, 1)?, w.normal_f32("magnitude", &d[1..])?, w.out_f32(&d[1..])?);
    // Norms are above 0, and so many runs of an op in place leave numbers.
    let positive = |x: f32| 1.0 + x.abs();
    norms.write_f32(&magnitude.to_f32_vec()?.into_iter().map(positive).collect::<Vec<_>>())?;
    if !back {
        let mut y = z;
        return case(&[y.reader()], move || dora_forward(&mut y, &magnitude, &norms, None));
    }
    let (mut dy, mut dm) = (w.normal("dy", d, 1)?, w.out_f32(&d[1..])?);
    case(&[dy.reader(), dm.reader()], move || dora_backward(&mut dy, &mut dm, &z, &magnitude, &norms))
}
