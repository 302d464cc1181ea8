//! Matrix products and low-rank updates.
use super::{cases::*, *};

rows! {
    linear_forward {
        names: "N M K",
        measured: FORWARD,
        checked: &[&[9, 24, 40], &[70, 24, 40]],
        dtypes: BOTH,
        work: |d, _| flop(2.0, d),
        rows_alone: false,
        make: linear,
    }
    linear_backward_input {
        names: "N M K",
        measured: PRODUCTS,
        checked: &[&[9, 24, 40]],
        work: |d, _| flop(2.0, d),
        rows_alone: false,
        make: linear_back_input,
    }
    linear_backward_weight {
        names: "N M K",
        measured: &[(&[8192, 1536, 576], BF16)],
        checked: &[&[9, 24, 40]],
        work: |d, _| flop(2.0, d),
        rows_alone: false,
        make: linear_back_weight,
    }
    linear_forward_decode {
        names: "N M K",
        measured: DECODE,
        checked: &[&[3, 24, 40]],
        work: |d, t| elements(d[1] * d[2], t),
        rows_alone: false,
        make: linear,
    }
    lora_forward {
        names: "N M K R",
        measured: &[(&[8192, 11008, 4096, 16], BF16)],
        checked: &[&[9, 24, 40, 8]],
        work: |d, _| flop(2.0, &[d[0], d[1] * d[2] + d[3] * (d[1] + d[2])]),
        rows_alone: false,
        make: low_rank,
    }
    lora_backward_input {
        names: "N M K R",
        measured: &[(&[8192, 11008, 4096, 16], BF16)],
        checked: &[&[9, 24, 40, 8]],
        work: |d, _| flop(2.0, &[d[0], d[1] * d[2] + d[3] * d[2]]),
        rows_alone: false,
        make: low_rank_back_input,
    }
    lora_backward {
        names: "N M K R",
        measured: &[(&[8192, 4096, 4096, 16], BF16)],
        checked: &[&[9, 24, 40, 8]],
        work: |d, t| elements(d[0] * (2 * d[1] + d[2]), t),
        rows_alone: false,
        make: low_rank_back,
    }
}

/// The linears of LLaMA-2-7B and its head, also with q, k, v and with gate and up side by side, for 8192 tokens; one of SmolLM2-135M.
const FORWARD: &[(&[usize], &[DType])] = &[
    (&[8192, 4096, 4096], BOTH),
    (&[8192, 1536, 576], BF16),
    (&[8192, 12288, 4096], BF16),
    (&[8192, 11008, 4096], BF16),
    (&[8192, 22016, 4096], BF16),
    (&[8192, 4096, 11008], BF16),
    (&[8192, 32000, 4096], BF16),
];

/// The linears of LLaMA-2-7B and its head, also with q, k, v and with gate and up side by side, for 8192 tokens.
const PRODUCTS: &[(&[usize], &[DType])] = &[
    (&[8192, 4096, 4096], BF16),
    (&[8192, 12288, 4096], BF16),
    (&[8192, 11008, 4096], BF16),
    (&[8192, 22016, 4096], BF16),
    (&[8192, 4096, 11008], BF16),
    (&[8192, 32000, 4096], BF16),
];

/// The linears of a decode step of LLaMA-2-7B, and its head.
const DECODE: &[(&[usize], &[DType])] = &[
    (&[1, 4096, 4096], BF16),
    (&[8, 4096, 4096], BF16),
    (&[16, 4096, 4096], BF16),
    (&[1, 11008, 4096], BF16),
    (&[8, 11008, 4096], BF16),
    (&[16, 11008, 4096], BF16),
    (&[64, 11008, 4096], BF16),
    (&[1, 32000, 4096], BF16),
    (&[8, 32000, 4096], BF16),
    (&[16, 32000, 4096], BF16),
    (&[1, 1024, 4096], BF16),
];
