//! A mixture of layers.
use sdrrl::ops::mix::{mix, reference};

use super::*;

rows! {
    mix {
        names: "N C M",
        measured: &[(&[256, 1024, 8192], BF16)],
        checked: &[&[5, 72, 9], &[3, 1027, 2]],
        dtypes: BOTH,
        work: |d, t| Work::Bytes((d[0] * d[1] * (t.bytes() + 8)) as f64),
        exact: true,
        make: mixed,
    }
}

const WEIGHT: f32 = 0.3;

fn mixed(w: &World, d: &[usize]) -> Result<Case> {
    let (n, m) = (d[0], d[2]);
    let (states, mut sum) = (w.normal("states", &[m, d[1]], 1)?, w.normal_f32("sum", &d[..2])?);
    let rows = w.integers("rows", n, |i| i * 7919 % m)?;
    let (values, given) = (states.to_f32_vec()?, sum.to_f32_vec()?);
    Ok(case(&[sum.reader()], move || mix(&mut sum, &states, &rows, WEIGHT))?.exactly(move || {
        let (mut want, rows) = (given.clone(), (0..n).map(|i| i * 7919 % m).collect::<Vec<_>>());
        reference::mix(&mut want, &values, &rows, WEIGHT);
        vec![want.into_iter().map(f64::from).collect()]
    }))
}
