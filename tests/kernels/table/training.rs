//! The loss, the optimizer and the gradient norm.
use super::{cases::*, *};

rows! {
    linear_cross_entropy {
        names: "N C V",
        measured: &[(&[2048, 4096, 32000], BF16), (&[8192, 4096, 32000], BF16)],
        checked: &[&[17, 40, 301], &[70, 40, 301]],
        work: |d, _| flop(4.0, d),
        rows_alone: false,
        make: loss,
    }
    cross_entropy {
        names: "N V",
        measured: &[(&[256, 49152], ONLY_F32)],
        checked: &[&[3, 700]],
        dtypes: ONLY_F32,
        work: |d, _| Work::Bytes(4.0 * (d[0] * d[1]) as f64),
        make: loss_of_logits,
    }
    adamw {
        names: "N",
        measured: &[(&[40_000_000], ONLY_F32)],
        checked: &[&[5000]],
        dtypes: ONLY_F32,
        work: |d, _| Work::Bytes(28.0 * d[0] as f64),
        rows_alone: false,
        make: adamw,
    }
    grad_norm {
        names: "N",
        measured: &[(&[40_000_000], ONLY_F32)],
        checked: &[&[5000]],
        dtypes: ONLY_F32,
        work: |d, _| Work::Bytes(4.0 * d[0] as f64),
        rows_alone: false,
        make: norm,
    }
}
