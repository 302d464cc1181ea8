//! Optimizers other than AdamW.
use sdrrl::{
    ops::{
        adafactor::{self, Adafactor, AdafactorTable, Member, Squares},
        adamw::AdamW,
        adamw8::{AdamW8Table, Codes, Group8},
        muon::{self, Matrix, Muon, MuonTable, Scratch},
    },
    tensor::{Arena, Tensor},
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
    muon {
        names: "R C",
        measured: &[(&[4096, 11008], ONLY_F32), (&[16, 4096], ONLY_F32)],
        checked: &[&[12, 40], &[40, 12], &[9, 9], &[1, 300]],
        dtypes: ONLY_F32,
        work: |d, _| flop(5.0 * 2.0 * (2 * d[0].max(d[1]) + d[0].min(d[1])) as f64, &[d[0].min(d[1]); 2]),
        rows_alone: false,
        make: muon,
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

/// Two steps: one whose update is small beside the squares before, and a first one, which forgets them and whose update is scaled down.
fn adafactor(w: &World, d: &[usize], factored: bool) -> Result<Case> {
    const STEPS: [u64; 2] = [5, 1];
    let (param, grad) = (w.normal_f32("param", d)?, w.normal_f32("grad", d)?);
    let before = |name: &str, dims: &[usize]| -> Result<Tensor> {
        let mut t = w.normal_f32(name, dims)?;
        t.write_f32(&t.to_f32_vec()?.iter().map(|x| 1.0 + x * x).collect::<Vec<_>>())?;
        Ok(t)
    };
    let squares = match factored {
        true => Squares::Factored { row: before("row", &d[..1])?, col: before("col", &d[1..])? },
        false => Squares::Whole(before("square", d)?),
    };
    let outs: Vec<_> = [&param].into_iter().chain(squares.tensors()).map(Tensor::reader).collect();
    let [values, grads] = wide([&param, &grad])?;
    let given: Vec<Vec<f64>> = squares.tensors().map(|t| wide([t]).map(|[x]| x)).collect::<Result<_>>()?;
    let member = Member { param, grad, squares, lr_factor: 2.0, weight_decay: 0.1 };
    let mut table = AdafactorTable::new(vec![member])?;
    let call = move || {
        STEPS.iter().try_for_each(|&step| table.update(&Adafactor { lr: 5e-3, step, grad_scale: 0.5 }))
    };
    Ok(case(&outs, call)?.against(move || {
        let (mut param, mut col) = (values.clone(), given[given.len() - 1].clone());
        let mut row = if given.len() > 1 { given[0].clone() } else { vec![] };
        let scaled: Vec<f64> = grads.iter().map(|g| g * 0.5).collect();
        for step in STEPS {
            adafactor::reference::step(&mut param, (&mut row, &mut col), &scaled, (1e-2, 0.1, step));
        }
        [param, row, col].into_iter().filter(|x| !x.is_empty()).collect()
    }))
}

/// Two steps.
fn muon(w: &World, d: &[usize]) -> Result<Case> {
    let (param, grad) = (w.normal_f32("param", d)?, w.normal_f32("grad", d)?);
    let moment = w.normal_f32("moment", d)?;
    let (outs, [values, grads, given]) = ([param.reader(), moment.reader()], wide([&param, &grad, &moment])?);
    let shape = [d[0], d[1]];
    let (scratch, _) = Arena::build("scratch", &w.device, |a| Scratch::lay_out(&[[4, 4], shape], a))?;
    let matrix = Matrix { param, grad, moment, lr_factor: 2.0, weight_decay: 0.1 };
    let mut table = MuonTable::new(vec![matrix], scratch)?;
    let call = move || (0..2).try_for_each(|_| table.update(&Muon { lr: 5e-2, grad_scale: 0.5 }));
    Ok(case(&outs, call)?.against(move || {
        let (mut param, mut moment) = (values.clone(), given.clone());
        let scaled: Vec<f64> = grads.iter().map(|g| g * 0.5).collect();
        for _ in 0..2 {
            muon::reference::step(&mut param, &mut moment, &scaled, shape, (1e-1, 0.1));
        }
        vec![param, moment]
    }))
}
