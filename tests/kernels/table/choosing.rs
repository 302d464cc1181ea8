//! The choice of tokens.
use super::{cases::*, *};

rows! {
    sample_greedy {
        names: "N V",
        measured: &[(&[64, 32000], ONLY_F32)],
        checked: &[&[3, 700]],
        dtypes: ONLY_F32,
        work: |d, _| Work::Bytes(4.0 * (d[0] * d[1]) as f64),
        exact: true,
        make: |w, d| sample(w, d, 0.0),
    }
    sample_top_k_top_p {
        names: "N V",
        measured: &[(&[64, 128256], ONLY_F32)],
        checked: &[&[3, 700]],
        dtypes: ONLY_F32,
        work: |d, _| Work::Bytes(4.0 * (d[0] * d[1]) as f64),
        exact: true,
        make: |w, d| sample(w, d, 0.8),
    }
    beam_step {
        names: "B K V",
        measured: &[(&[16, 4, 256206], ONLY_F32)],
        checked: &[&[2, 3, 700]],
        dtypes: ONLY_F32,
        work: |d, _| Work::Bytes(8.0 * (d[0] * d[1] * d[2]) as f64),
        exact: true,
        make: beams,
    }
}
