//! Attention: of packed documents, across to others, of one new token a row.
use super::{cases::*, *};

rows! {
    attention_forward {
        names: "B T NH NKV HS",
        measured: &[
            (&[4, 2048, 32, 32, 128], BF16),
            (&[4, 2048, 32, 8, 128], BF16),
            (&[8, 1024, 9, 3, 64], BOTH),
        ],
        checked: &[&[2, 20, 2, 1, 32]],
        dtypes: BOTH,
        work: |d, _| flop(2.0, &[d[0], d[1], d[1], d[2], d[4]]),
        rows_alone: false,
        make: |w, d| attention(w, d, false),
    }
    attention_backward {
        names: "B T NH NKV HS",
        measured: &[
            (&[4, 2048, 32, 32, 128], BF16),
            (&[4, 2048, 32, 8, 128], BF16),
            (&[8, 1024, 9, 3, 64], BF16),
        ],
        checked: &[&[2, 20, 2, 1, 32]],
        work: |d, _| flop(5.0, &[d[0], d[1], d[1], d[2], d[4]]),
        rows_alone: false,
        make: |w, d| attention(w, d, true),
    }
    cross_attention_forward {
        names: "B T NH NKV HS",
        measured: &[(&[32, 128, 16, 16, 64], BF16)],
        checked: &[&[2, 20, 2, 1, 32]],
        work: |d, _| flop(4.0, &[d[0], d[1], d[1], d[2], d[4]]),
        rows_alone: false,
        make: cross,
    }
    decode_attention {
        names: "B T NH NKV HS",
        measured: DECODE,
        checked: &[&[3, 40, 4, 2, 32]],
        work: |d, t| elements(2 * d[0] * d[1] * d[3] * d[4], t),
        make: decode,
    }
}

/// Batches of a decode step, with a key head for each query head and with one for four.
const DECODE: &[(&[usize], &[DType])] = &[
    (&[1, 1024, 32, 32, 128], BF16),
    (&[8, 1024, 32, 32, 128], BF16),
    (&[64, 1024, 32, 32, 128], BF16),
    (&[1, 1024, 32, 8, 128], BF16),
    (&[8, 1024, 32, 8, 128], BF16),
    (&[64, 1024, 32, 8, 128], BF16),
];
