//! ggml's blocks.
use sdrrl::ops::quantize::GgmlType;

use super::{cases::*, *};

rows! {
    dequantize_q4_k {
        names: "N C",
        measured: &[(&[11008, 4096], BF16)],
        checked: &[&[2, 256]],
        work: |d, t| Work::Bytes((d[0] * d[1]) as f64 * (t.bytes() as f64 + 144.0 / 256.0)),
        make: |w, d| from_blocks(w, d, GgmlType::Q4K),
    }
    dequantize_q6_k {
        names: "N C",
        measured: &[(&[11008, 4096], BF16)],
        checked: &[&[2, 256]],
        work: |d, t| Work::Bytes((d[0] * d[1]) as f64 * (t.bytes() as f64 + 210.0 / 256.0)),
        make: |w, d| from_blocks(w, d, GgmlType::Q6K),
    }
    dequantize_q8_0 {
        names: "N C",
        measured: &[(&[11008, 4096], BF16)],
        checked: &[&[2, 256]],
        work: |d, t| Work::Bytes((d[0] * d[1]) as f64 * (t.bytes() as f64 + 34.0 / 32.0)),
        make: |w, d| from_blocks(w, d, GgmlType::Q8_0),
    }
    quantize_q8_0 {
        names: "N C",
        measured: &[(&[11008, 4096], ONLY_F32)],
        checked: &[&[2, 256]],
        dtypes: ONLY_F32,
        work: |d, _| Work::Bytes((d[0] * d[1]) as f64 * (4.0 + 34.0 / 32.0)),
        exact: true,
        make: into_blocks,
    }
}
