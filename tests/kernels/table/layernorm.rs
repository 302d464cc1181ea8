//! Layer normalisation, forward and backward.
use sdrrl::{
    ops::layernorm::{layernorm_backward, layernorm_forward, reference},
    tensor::Tensor,
};

use super::*;

const SHAPES: &[&[usize]] = &[&[3, 576], &[35, 130], &[2, 4099]];

rows! {
    layernorm_forward {
        names: "N C",
        measured: &[(&[8192, 1024], BF16)],
        checked: SHAPES,
        dtypes: BOTH,
        work: |d, t| elements(2 * d[0] * d[1], t),
        make: forward,
    }
    layernorm_backward {
        names: "N C",
        measured: &[(&[8192, 1024], BF16)],
        checked: SHAPES,
        dtypes: BOTH,
        work: |d, t| elements(4 * d[0] * d[1], t),
        make: |w, d| backward(w, d, false),
    }
    layernorm_backward_dweight_dbias {
        names: "N C",
        checked: SHAPES,
        dtypes: BOTH,
        rows_alone: false,
        make: |w, d| backward(w, d, true),
    }
}

fn inputs(w: &World, d: &[usize]) -> Result<[Tensor; 3]> {
    Ok([w.normal("x", d, 1)?, w.normal_f32("weight", &d[1..])?, w.normal_f32("bias", &d[1..])?])
}

/// out, mean, rstd of the reference.
fn reference_forward(values: &[Vec<f64>; 3], rows: usize) -> [Vec<f64>; 3] {
    let [x, weight, bias] = values;
    let [mut y, mut mean, mut rstd] = [vec![0.0; x.len()], vec![0.0; rows], vec![0.0; rows]];
    reference::forward(&mut y, &mut mean, &mut rstd, x, weight, bias, 1e-5);
    [y, mean, rstd]
}

fn forward(w: &World, d: &[usize]) -> Result<Case> {
    let [x, weight, bias] = inputs(w, d)?;
    let (values, rows) = (wide([&x, &weight, &bias])?, d[0]);
    let (mut y, mut mean, mut rstd) = (w.out(d)?, w.out_f32(&d[..1])?, w.out_f32(&d[..1])?);
    let outs = [y.reader(), mean.reader(), rstd.reader()];
    let run = move || layernorm_forward(&mut y, &mut mean, &mut rstd, &x, &weight, &bias, 1e-5);
    Ok(case(&outs, run)?.against(move || reference_forward(&values, rows).to_vec()))
}

fn backward(w: &World, d: &[usize], with_weights: bool) -> Result<Case> {
    let [x, weight, bias] = inputs(w, d)?;
    let (values, rows) = (wide([&x, &weight, &bias])?, d[0]);
    let (mut y, mut mean, mut rstd) = (w.out(d)?, w.out_f32(&d[..1])?, w.out_f32(&d[..1])?);
    layernorm_forward(&mut y, &mut mean, &mut rstd, &x, &weight, &bias, 1e-5)?;
    let (dy, mut dx) = (w.normal("dy", d, 1)?, w.normal("dx", d, 1)?);
    let (mut dweight, mut dbias) = (w.normal_f32("dweight", &d[1..])?, w.normal_f32("dbias", &d[1..])?);
    let given = wide([&dy, &dx, &dweight, &dbias])?;
    let mut outs = vec![dx.reader()];
    if with_weights {
        outs.extend([dweight.reader(), dbias.reader()]);
    }
    let run = move || {
        let both = with_weights.then_some((&mut dweight, &mut dbias));
        layernorm_backward(&mut dx, both, &dy, &x, &mean, &rstd, &weight)
    };
    Ok(case(&outs, run)?.against(move || {
        let [_, mean, rstd] = reference_forward(&values, rows);
        let ([x, weight, _], [dy, mut dx, mut dweight, mut dbias]) = (&values, given.clone());
        reference::backward([&mut dx, &mut dweight, &mut dbias], &dy, x, &mean, &rstd, weight);
        if with_weights { vec![dx, dweight, dbias] } else { vec![dx] }
    }))
}
