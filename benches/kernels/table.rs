//! The declared rows: op, shape, work, and how to make it. Shapes are LLaMA-2-7B's (C 4096, F 11008, V 32000, 32 heads of 128) for 8192 packed tokens,
//! SmolLM2-135M's (C 576, F 1536, V 49152), NLLB's vocabulary, or what their steps do.
use anyhow::Result;
use sdrrl::{
    ops::{activation::Activation, quantize::GgmlType},
    tensor::DType::{self, Bf16, F32},
};

use crate::world::World;

#[path = "cases.rs"]
mod cases;
pub use cases::Case;
use cases::*;

/// One row of the table.
pub struct Row {
    /// The op.
    pub op: &'static str,
    /// What the dimensions are.
    pub names: &'static str,
    /// Of the measurement.
    pub dims: &'static [usize],
    /// Of the smoke test.
    pub tiny: &'static [usize],
    /// Types of activations and weights.
    pub dtypes: &'static [DType],
    /// What bounds it, and how much of it.
    pub work: fn(&[usize], DType) -> Work,
    /// True if the first rows of the results depend on no others: the first dimension counts them.
    pub rows_alone: bool,
    /// True if the results are the CPU's to the bit.
    pub exact: bool,
    /// Inputs and the call.
    pub make: fn(&World, &[usize]) -> Result<Case>,
}

/// What a row is bound by.
pub enum Work {
    /// Bytes that must move.
    Bytes(f64),
    /// Multiplications and additions.
    Flop(f64),
}

fn bytes(n: usize, t: DType) -> Work {
    Work::Bytes((n * t.bytes()) as f64)
}
fn flop(factor: f64, dims: &[usize]) -> Work {
    Work::Flop(factor * dims.iter().map(|&d| d as f64).product::<f64>())
}

const BF16: &[DType] = &[Bf16];
const BOTH: &[DType] = &[Bf16, F32];
const ONLY_F32: &[DType] = &[F32];

/// All rows.
pub fn rows() -> Vec<Row> {
    let base = Row {
        op: "",
        names: "",
        dims: &[],
        tiny: &[],
        dtypes: BF16,
        work: |_, _| Work::Bytes(0.0),
        rows_alone: true,
        exact: false,
        make: |_, _| case(&[], || Ok(())),
    };
    macro_rules! row {
        ($op:literal, $names:literal, $dims:expr, $tiny:expr, $work:expr, $make:expr $(, $field:ident: $value:expr)*) => {
            #[allow(clippy::needless_update)]
            Row { op: $op, names: $names, dims: $dims, tiny: $tiny, work: $work, make: $make $(, $field: $value)*, ..base }
        };
    }
    let mut all = vec![
        row!("embedding_forward", "N C V", &[8192, 4096, 32000], &[5, 40, 11], |d, t| bytes(2 * d[0] * d[1], t), embedding, exact: true),
        row!("embedding_backward", "N C V", &[8192, 576, 49152], &[5, 40, 11], |d, t| Work::Bytes((d[0] * d[1] * (t.bytes() + 8)) as f64), embedding_back, rows_alone: false),
        row!("rmsnorm_forward", "N C", &[8192, 4096], &[3, 72], |d, t| bytes(2 * d[0] * d[1], t), rmsnorm, dtypes: BOTH),
        row!(
            "add_rmsnorm_forward",
            "N C",
            &[8192, 4096],
            &[3, 72],
            |d, t| bytes(4 * d[0] * d[1], t),
            add_rmsnorm
        ),
        row!("rmsnorm_backward", "N C", &[8192, 4096], &[3, 72], |d, t| bytes(4 * d[0] * d[1], t), |w, d| {
            rmsnorm_back(w, d, false)
        }),
        row!("rmsnorm_backward_dweight", "N C", &[8192, 576], &[35, 72], |d, t| bytes(4 * d[0] * d[1], t), |w, d| rmsnorm_back(w, d, true), rows_alone: false),
        row!(
            "layernorm_forward",
            "N C",
            &[8192, 1024],
            &[3, 72],
            |d, t| bytes(2 * d[0] * d[1], t),
            layernorm
        ),
        row!(
            "layernorm_backward",
            "N C",
            &[8192, 1024],
            &[3, 72],
            |d, t| bytes(4 * d[0] * d[1], t),
            layernorm_back
        ),
        row!("gelu_forward", "N F", &[8192, 4096], &[3, 72], |d, t| bytes(2 * d[0] * d[1], t), |w, d| {
            activation(w, d, Activation::Gelu)
        }),
        row!("gelu_backward", "N F", &[8192, 4096], &[3, 72], |d, t| bytes(3 * d[0] * d[1], t), |w, d| {
            activation_back(w, d, Activation::Gelu)
        }),
        row!("relu_forward", "N F", &[8192, 4096], &[3, 72], |d, t| bytes(2 * d[0] * d[1], t), |w, d| {
            activation(w, d, Activation::Relu)
        }),
        row!("relu_backward", "N F", &[8192, 4096], &[3, 72], |d, t| bytes(3 * d[0] * d[1], t), |w, d| {
            activation_back(w, d, Activation::Relu)
        }),
        row!(
            "rope_forward",
            "N NH HS",
            &[8192, 32, 128],
            &[5, 2, 16],
            |d, t| bytes(2 * d[0] * d[1] * d[2], t),
            rope
        ),
        row!("swiglu_forward", "N F", &[8192, 11008], &[3, 72], |d, t| bytes(3 * d[0] * d[1], t), swiglu),
        row!(
            "swiglu_backward",
            "N F",
            &[8192, 11008],
            &[3, 72],
            |d, t| bytes(5 * d[0] * d[1], t),
            swiglu_back
        ),
        row!("add", "N C", &[8192, 4096], &[3, 72], |d, t| bytes(3 * d[0] * d[1], t), residual),
        row!("cast_to_f32", "N C", &[8192, 4096], &[3, 72], |d, t| Work::Bytes((d[0] * d[1] * (t.bytes() + 4)) as f64), to_f32, exact: true),
        row!("gather_rows", "N C", &[8192, 4096], &[3, 72], |d, t| bytes(2 * d[0] * d[1], t), gather, rows_alone: false, exact: true),
        row!("linear_forward", "N M K", &[8192, 4096, 4096], &[9, 24, 40], |d, _| flop(2.0, d), linear, rows_alone: false, dtypes: ONLY_F32),
        row!("linear_forward", "N M K", &[8192, 1536, 576], &[70, 24, 40], |d, _| flop(2.0, d), linear, rows_alone: false),
        row!("linear_backward_weight", "N M K", &[8192, 1536, 576], &[9, 24, 40], |d, _| flop(2.0, d), linear_back_weight, rows_alone: false),
        row!(
            "lora_forward",
            "N M K R",
            &[8192, 11008, 4096, 16],
            &[9, 24, 40, 8],
            |d, _| flop(2.0, &[d[0], d[1] * d[2] + d[3] * (d[1] + d[2])]),
            low_rank,
            rows_alone: false
        ),
        row!(
            "lora_backward_input",
            "N M K R",
            &[8192, 11008, 4096, 16],
            &[9, 24, 40, 8],
            |d, _| flop(2.0, &[d[0], d[1] * d[2] + d[3] * d[2]]),
            low_rank_back_input,
            rows_alone: false
        ),
        row!("lora_backward", "N M K R", &[8192, 4096, 4096, 16], &[9, 24, 40, 8], |d, t| bytes(d[0] * (2 * d[1] + d[2]), t), low_rank_back, rows_alone: false),
        row!("attention_forward", "B T NH NKV HS", &[4, 2048, 32, 32, 128], &[2, 20, 2, 1, 32], |d, _| flop(2.0, &[d[0], d[1], d[1], d[2], d[4]]), |w, d| attention(w, d, false), rows_alone: false),
        row!("attention_forward", "B T NH NKV HS", &[4, 2048, 32, 8, 128], &[2, 20, 2, 1, 32], |d, _| flop(2.0, &[d[0], d[1], d[1], d[2], d[4]]), |w, d| attention(w, d, false), rows_alone: false),
        row!("attention_forward", "B T NH NKV HS", &[8, 1024, 9, 3, 64], &[2, 20, 2, 1, 32], |d, _| flop(2.0, &[d[0], d[1], d[1], d[2], d[4]]), |w, d| attention(w, d, false), rows_alone: false, dtypes: BOTH),
        row!("attention_backward", "B T NH NKV HS", &[4, 2048, 32, 32, 128], &[2, 20, 2, 1, 32], |d, _| flop(5.0, &[d[0], d[1], d[1], d[2], d[4]]), |w, d| attention(w, d, true), rows_alone: false),
        row!("attention_backward", "B T NH NKV HS", &[4, 2048, 32, 8, 128], &[2, 20, 2, 1, 32], |d, _| flop(5.0, &[d[0], d[1], d[1], d[2], d[4]]), |w, d| attention(w, d, true), rows_alone: false),
        row!("attention_backward", "B T NH NKV HS", &[8, 1024, 9, 3, 64], &[2, 20, 2, 1, 32], |d, _| flop(5.0, &[d[0], d[1], d[1], d[2], d[4]]), |w, d| attention(w, d, true), rows_alone: false),
        row!("cross_attention_forward", "B T NH NKV HS", &[32, 128, 16, 16, 64], &[2, 20, 2, 1, 32], |d, _| flop(4.0, &[d[0], d[1], d[1], d[2], d[4]]), cross, rows_alone: false),
        row!("linear_cross_entropy", "N C V", &[2048, 4096, 32000], &[17, 40, 301], |d, _| flop(4.0, d), loss, rows_alone: false),
        row!("linear_cross_entropy", "N C V", &[8192, 4096, 32000], &[70, 40, 301], |d, _| flop(4.0, d), loss, rows_alone: false),
        row!("cross_entropy", "N V", &[256, 49152], &[3, 700], |d, _| Work::Bytes(4.0 * (d[0] * d[1]) as f64), loss_of_logits, dtypes: ONLY_F32),
        row!("adamw", "N", &[40_000_000], &[5000], |d, _| Work::Bytes(28.0 * d[0] as f64), adamw, rows_alone: false, dtypes: ONLY_F32),
        row!("grad_norm", "N", &[40_000_000], &[5000], |d, _| Work::Bytes(4.0 * d[0] as f64), norm, rows_alone: false, dtypes: ONLY_F32),
        row!("sample_greedy", "N V", &[64, 32000], &[3, 700], |d, _| Work::Bytes(4.0 * (d[0] * d[1]) as f64), |w, d| sample(w, d, 0.0), dtypes: ONLY_F32, exact: true),
        row!("sample_top_k_top_p", "N V", &[64, 128256], &[3, 700], |d, _| Work::Bytes(4.0 * (d[0] * d[1]) as f64), |w, d| sample(w, d, 0.8), dtypes: ONLY_F32, exact: true),
        row!("beam_step", "B K V", &[16, 4, 256206], &[2, 3, 700], |d, _| Work::Bytes(8.0 * (d[0] * d[1] * d[2]) as f64), beams, dtypes: ONLY_F32, exact: true),
        row!(
            "dequantize_q4_k",
            "N C",
            &[11008, 4096],
            &[2, 256],
            |d, t| Work::Bytes((d[0] * d[1]) as f64 * (t.bytes() as f64 + 144.0 / 256.0)),
            |w, d| from_blocks(w, d, GgmlType::Q4K)
        ),
        row!(
            "dequantize_q6_k",
            "N C",
            &[11008, 4096],
            &[2, 256],
            |d, t| Work::Bytes((d[0] * d[1]) as f64 * (t.bytes() as f64 + 210.0 / 256.0)),
            |w, d| from_blocks(w, d, GgmlType::Q6K)
        ),
        row!(
            "dequantize_q8_0",
            "N C",
            &[11008, 4096],
            &[2, 256],
            |d, t| Work::Bytes((d[0] * d[1]) as f64 * (t.bytes() as f64 + 34.0 / 32.0)),
            |w, d| from_blocks(w, d, GgmlType::Q8_0)
        ),
        row!("quantize_q8_0", "N C", &[11008, 4096], &[2, 256], |d, _| Work::Bytes((d[0] * d[1]) as f64 * (4.0 + 34.0 / 32.0)), into_blocks, dtypes: ONLY_F32, exact: true),
    ];
    for dims in &PRODUCTS {
        all.push(
            row!("linear_forward", "N M K", dims, &[9, 24, 40], |d, _| flop(2.0, d), linear, rows_alone: false),
        );
        all.push(row!("linear_backward_input", "N M K", dims, &[9, 24, 40], |d, _| flop(2.0, d), linear_back_input, rows_alone: false));
    }
    for dims in &DECODE_PRODUCTS {
        all.push(row!("linear_forward_decode", "N M K", dims, &[3, 24, 40], |d, t| bytes(d[1] * d[2], t), linear, rows_alone: false));
    }
    for dims in &DECODE_ATTENTION {
        all.push(row!(
            "decode_attention",
            "B T NH NKV HS",
            dims,
            &[3, 40, 4, 2, 32],
            |d, t| bytes(2 * d[0] * d[1] * d[3] * d[4], t),
            decode
        ));
    }
    all
}

/// The linears of a decode step of LLaMA-2-7B, and its head.
const DECODE_PRODUCTS: [[usize; 3]; 11] = [
    [1, 4096, 4096],
    [8, 4096, 4096],
    [16, 4096, 4096],
    [1, 11008, 4096],
    [8, 11008, 4096],
    [16, 11008, 4096],
    [64, 11008, 4096],
    [1, 32000, 4096],
    [8, 32000, 4096],
    [16, 32000, 4096],
    [1, 1024, 4096],
];

/// Batches of a decode step, with a key head for each query head and with one for four.
const DECODE_ATTENTION: [[usize; 5]; 6] = [
    [1, 1024, 32, 32, 128],
    [8, 1024, 32, 32, 128],
    [64, 1024, 32, 32, 128],
    [1, 1024, 32, 8, 128],
    [8, 1024, 32, 8, 128],
    [64, 1024, 32, 8, 128],
];

/// The linears of LLaMA-2-7B and its head, also with q, k, v and with gate and up side by side, for 8192 tokens.
const PRODUCTS: [[usize; 3]; 6] = [
    [8192, 4096, 4096],
    [8192, 12288, 4096],
    [8192, 11008, 4096],
    [8192, 22016, 4096],
    [8192, 4096, 11008],
    [8192, 32000, 4096],
];
