//! Optimizers other than AdamW.
use sdrrl::{
    ops::{
        adafactor::{self, Adafactor, AdafactorTable, Member, Squares},
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
    adafactor {
        names: "R C",
        measured: &[(&[4096, 11008], ONLY_F32)],
        checked: &[&[70, 37], &[3, 300], &[1, 5], &[300, 1]],
        dtypes: ONLY_F32,
        work: |d, _| Work::Bytes(20.0 * (d[0] * d[1]) as f64),
        rows_alone: false,
        make: |w, d| adafactor(w, d, true),
    }
    adafactor_vector {
        names: "N",
        measured: &[(&[4096], ONLY_F32)],
        checked: &[&[700], &[3]],
        dtypes: ONLY_F32,
        work: |d, _| Work::Bytes(20.0 * d[0] as f64),
        rows_alone: false,
        make: |w, d| adafactor(w, d, false),
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

/// The first two steps.
fn adafactor(w: &World, d: &[usize], factored: bool) -> Result<Case> {
    let (param, grad) = (w.normal_f32("param", d)?, w.normal_f32("grad", d)?);
    let squares = match factored {
        true => Squares::Factored { row: w.out_f32(&d[..1])?, col: w.out_f32(&d[1..])? },
        false => Squares::Whole(w.out_f32(d)?),
    };
    let outs: Vec<_> = [&param].into_iter().chain(squares.tensors()).map(Tensor::reader).collect();
    let [values, grads] = wide([&param, &grad])?;
    let (rows, cols) = if factored { (d[0], d[1]) } else { (0, d[0]) };
    let member = Member { param, grad, squares, lr_factor: 2.0, weight_decay: 0.1 };
    let mut table = AdafactorTable::new(vec![member])?;
    let call =
        move || (1..3).try_for_each(|step| table.update(&Adafactor { lr: 5e-3, step, grad_scale: 0.5 }));
    Ok(case(&outs, call)?.against(move || {
        let (mut param, mut row, mut col) = (values.clone(), vec![0.0; rows], vec![0.0; cols]);
        let scaled: Vec<f64> = grads.iter().map(|g| g * 0.5).collect();
        for step in 1..3 {
            adafactor::reference::step(&mut param, (&mut row, &mut col), &scaled, (1e-2, 0.1, step));
        }
        let all = [param, row, col];
        all.into_iter().filter(|x| !x.is_empty()).collect()
    }))
}
