//! Optimizers other than AdamW.
use sdrrl::{
    ops::{
        adamw::AdamW,
        adamw8::{AdamW8Table, Codes, Group8},
    },
    tensor::Tensor,
};

use super::*;

rows! {
    adamw8 {
        names: "N",
        measured: &[(&[40_000_000], ONLY_F32)],
        checked: &[&[5000], &[4096], &[257]],
        dtypes: ONLY_F32,
        work: |d, _| Work::Bytes(16.0 * d[0] as f64),
        rows_alone: false,
        exact: true,
        make: adamw8,
    }
}

/// The first three steps of two tensors: from zeros, then from what was coded.
fn adamw8(w: &World, d: &[usize]) -> Result<Case> {
    let group = |n: usize, factor: f32| -> Result<Group8> {
        let (words, tops) = Codes::sizes(n);
        let codes =
            || -> Result<Codes> { Ok(Codes { codes: w.out_u32(&[words])?, tops: w.out_f32(&[tops])? }) };
        let (param, grad) = (w.normal_f32("param", &[n])?, w.normal_f32("grad", &[n])?);
        Ok(Group8 { param, m: codes()?, v: codes()?, grad, lr_factor: factor, weight_decay: 0.1 * factor })
    };
    let groups = [group(d[0], 1.0)?, group(d[0] + 300, 2.0)?];
    let own = |g: &Group8| [&g.param, &g.m.codes, &g.m.tops, &g.v.codes, &g.v.tops].map(Tensor::reader);
    let outs: Vec<_> = groups.iter().flat_map(own).collect();
    let mut table = AdamW8Table::new(groups.into())?;
    case(&outs, move || {
        (1..4).try_for_each(|step| {
            table.update(&AdamW {
                lr: 1e-2,
                beta1: 0.9,
                beta2: 0.98,
                eps: 1e-8,
                weight_decay: 0.0,
                step,
                grad_scale: 0.5,
            })
        })
    })
}
