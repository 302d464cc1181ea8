//! Dropout of adapters' inputs.
use sdrrl::{
    ops::dropout::{Mask, Part, dropout_backward, dropout_forward, key, reference},
    tensor::Tensor,
};

use super::*;

rows! {
    dropout {
        names: "N C",
        measured: &[(&[8192, 4096], BF16)],
        checked: &[&[5, 72], &[3, 1027], &[2, 6]],
        dtypes: BOTH,
        work: |d, t| Work::Bytes(3.0 * (d[0] * d[1] * t.bytes()) as f64),
        make: dropped,
    }
}

const RATE: f64 = 0.3;

/// What is kept, and a gradient to which the rest is added.
fn dropped(w: &World, d: &[usize]) -> Result<Case> {
    let (n, cols) = (d[0], d[1]);
    let (x, mut out, mut sum) = (w.normal("x", d, 1)?, w.out(d)?, w.normal("sum", d, 1)?);
    // A document of 3 rows, and others of one.
    let place = |row: usize| if row < 3 { [70_000, row as u32] } else { [row as u32, 0] };
    let words: Vec<u32> = (0..n).flat_map(place).collect();
    let rows = Tensor::from_u32("rows", &[n, 2], &words)?.to_device(&w.device)?;
    let (key, [values, given]) = (key(9, 1 << 33, 20), wide([&x, &sum])?);
    let outs = [out.reader(), sum.reader()];
    let call = move || {
        let mask = Mask { rows: &rows, key, rate: RATE };
        dropout_forward(&mut out, &x, mask, Part::Kept)?;
        dropout_backward(&mut sum, &x, mask, Part::Rest)
    };
    let m = move |i: usize| reference::factor(key, RATE, place(i / cols), i % cols);
    Ok(case(&outs, call)?.against(move || {
        let kept = values.iter().enumerate().map(|(i, x)| m(i) * x).collect();
        let rest = values.iter().enumerate().map(|(i, x)| given[i] + x - m(i) * x).collect();
        vec![kept, rest]
    }))
}
