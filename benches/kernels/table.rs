//! The declared rows: op, shape, work, and how to make it. Shapes are LLaMA-2-7B's (C 4096, F 11008, V 32000, 32 heads of 128) for 8192 packed tokens,
//! SmolLM2-135M's (C 576, F 1536, V 49152), NLLB's vocabulary, or what their steps do.
use anyhow::Result;
use sdrrl::{
    ops::{
        activation::{Activation, activation_backward, activation_forward},
        adamw::{AdamW, AdamWTable, Group},
        attention::{AttentionShape, attention_backward, attention_forward, cross_attention_forward},
        beam_step::{BeamRules, beam_step},
        cross_entropy::{Scratch, cross_entropy_forward, linear_cross_entropy_forward_backward},
        decode_attention::decode_attention_forward,
        embedding::{embedding_backward, embedding_forward},
        gemm::{linear_backward_input, linear_backward_weight, linear_forward},
        grad_norm::GradNorm,
        layernorm::{layernorm_backward, layernorm_forward},
        lora::{LowRank, lora_backward, lora_backward_input, lora_forward},
        quantize::{GgmlType, dequantize, quantize},
        rmsnorm::{add_rmsnorm_forward, rmsnorm_backward, rmsnorm_forward},
        rope::rope_forward,
        rows::{add, cast, gather_rows},
        sampling::{Sampler, Sampling, SamplingRow},
        swiglu::{swiglu_backward, swiglu_forward},
    },
    tensor::{
        Arena,
        DType::{self, Bf16, F32},
        Tensor,
    },
};

use crate::world::World;

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

/// A row, ready to run.
pub struct Case {
    /// The call.
    pub run: Box<dyn FnMut() -> Result<()>>,
    /// Its results.
    pub outs: Vec<Tensor>,
}

fn case(outs: &[&Tensor], run: impl FnMut() -> Result<()> + 'static) -> Result<Case> {
    let named = |(i, t): (usize, &&Tensor)| t.renamed(&format!("result {i}"));
    Ok(Case { run: Box::new(run), outs: outs.iter().enumerate().map(named).collect() })
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
    vec![
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
        row!("linear_forward", "N M K", &[8192, 4096, 4096], &[9, 24, 40], |d, _| flop(2.0, d), linear, dtypes: BOTH),
        row!("linear_forward", "N M K", &[8192, 11008, 4096], &[9, 24, 40], |d, _| flop(2.0, d), linear),
        row!("linear_forward", "N M K", &[8192, 4096, 11008], &[9, 24, 40], |d, _| flop(2.0, d), linear),
        row!("linear_forward", "N M K", &[8192, 1536, 576], &[9, 24, 40], |d, _| flop(2.0, d), linear),
        row!(
            "linear_forward_decode",
            "N M K",
            &[16, 11008, 4096],
            &[3, 24, 40],
            |d, t| bytes(d[1] * d[2], t),
            linear
        ),
        row!(
            "linear_backward_input",
            "N M K",
            &[8192, 11008, 4096],
            &[9, 24, 40],
            |d, _| flop(2.0, d),
            linear_back_input
        ),
        row!("linear_backward_weight", "N M K", &[8192, 1536, 576], &[9, 24, 40], |d, _| flop(2.0, d), linear_back_weight, rows_alone: false),
        row!(
            "lora_forward",
            "N M K R",
            &[8192, 11008, 4096, 16],
            &[9, 24, 40, 8],
            |d, _| flop(2.0, &[d[0], d[1] * d[2] + d[3] * (d[1] + d[2])]),
            |w, d| low_rank(w, d, 0)
        ),
        row!(
            "lora_backward_input",
            "N M K R",
            &[8192, 11008, 4096, 16],
            &[9, 24, 40, 8],
            |d, _| flop(2.0, &[d[0], d[1] * d[2] + d[3] * d[2]]),
            |w, d| low_rank(w, d, 1)
        ),
        row!("lora_backward", "N M K R", &[8192, 4096, 4096, 16], &[9, 24, 40, 8], |d, t| bytes(d[0] * (2 * d[1] + d[2]), t), |w, d| low_rank(w, d, 2), rows_alone: false),
        row!("attention_forward", "B T NH NKV HS", &[4, 2048, 32, 32, 128], &[2, 20, 2, 1, 32], |d, _| flop(2.0, &[d[0], d[1], d[1], d[2], d[4]]), |w, d| attention(w, d, false), rows_alone: false),
        row!("attention_forward", "B T NH NKV HS", &[8, 1024, 9, 3, 64], &[2, 20, 2, 1, 32], |d, _| flop(2.0, &[d[0], d[1], d[1], d[2], d[4]]), |w, d| attention(w, d, false), rows_alone: false, dtypes: BOTH),
        row!("attention_backward", "B T NH NKV HS", &[4, 2048, 32, 32, 128], &[2, 20, 2, 1, 32], |d, _| flop(5.0, &[d[0], d[1], d[1], d[2], d[4]]), |w, d| attention(w, d, true), rows_alone: false),
        row!("cross_attention_forward", "B T NH NKV HS", &[32, 128, 16, 16, 64], &[2, 20, 2, 1, 32], |d, _| flop(4.0, &[d[0], d[1], d[1], d[2], d[4]]), cross, rows_alone: false),
        row!(
            "decode_attention",
            "B T NH NKV HS",
            &[64, 1024, 32, 32, 128],
            &[3, 40, 4, 2, 32],
            |d, t| bytes(2 * d[0] * d[1] * d[3] * d[4], t),
            decode
        ),
        row!("linear_cross_entropy", "N C V", &[2048, 4096, 32000], &[17, 40, 301], |d, _| flop(4.0, d), loss, rows_alone: false),
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
    ]
}

fn embedding(w: &World, d: &[usize]) -> Result<Case> {
    let table = w.normal("table", &[d[2], d[1]], 1)?;
    let (tokens, mut y) = (w.integers("tokens", d[0], |i| i * 7919 % d[2])?, w.out(&d[..2])?);
    case(&[&y.clone()], move || embedding_forward(&mut y, &tokens, &table))
}

fn embedding_back(w: &World, d: &[usize]) -> Result<Case> {
    let tokens = w.integers("tokens", d[0], |i| i * i * 7919 % d[2])?;
    let (dy, mut dw) = (w.normal("dy", &d[..2], 1)?, w.out_f32(&[d[2], d[1]])?);
    case(&[&dw.clone()], move || embedding_backward(&mut dw, &dy, &tokens))
}

fn rmsnorm(w: &World, d: &[usize]) -> Result<Case> {
    let (x, weight) = (w.normal("x", d, 1)?, w.normal_f32("weight", &d[1..])?);
    let (mut y, mut rstd) = (w.out(d)?, w.out_f32(&d[..1])?);
    case(&[&y.clone()], move || rmsnorm_forward(&mut y, &mut rstd, &x, &weight, 1e-5))
}

fn add_rmsnorm(w: &World, d: &[usize]) -> Result<Case> {
    let (x, r, weight) = (w.normal("x", d, 1)?, w.normal("r", d, 1)?, w.normal_f32("weight", &d[1..])?);
    let (mut y, mut rstd, mut sum) = (w.out(d)?, w.out_f32(&d[..1])?, w.out(d)?);
    case(&[&y.clone(), &sum.clone()], move || {
        add_rmsnorm_forward(&mut y, &mut rstd, &mut sum, &x, &r, &weight, 1e-5)
    })
}

fn rmsnorm_back(w: &World, d: &[usize], with_weight: bool) -> Result<Case> {
    let (x, dy, weight) = (w.normal("x", d, 1)?, w.normal("dy", d, 1)?, w.normal_f32("weight", &d[1..])?);
    let (mut y, mut rstd) = (w.out(d)?, w.out_f32(&d[..1])?);
    rmsnorm_forward(&mut y, &mut rstd, &x, &weight, 1e-5)?;
    let (mut dx, mut dw) = (w.normal("dx", d, 1)?, w.out_f32(&d[1..])?);
    let outs = if with_weight { vec![dx.clone(), dw.clone()] } else { vec![dx.clone()] };
    case(&outs.iter().collect::<Vec<_>>(), move || {
        rmsnorm_backward(&mut dx, with_weight.then_some(&mut dw), &dy, &x, &rstd, &weight)
    })
}

fn layernorm(w: &World, d: &[usize]) -> Result<Case> {
    let (x, weight, bias) =
        (w.normal("x", d, 1)?, w.normal_f32("weight", &d[1..])?, w.normal_f32("bias", &d[1..])?);
    let (mut y, mut mean, mut rstd) = (w.out(d)?, w.out_f32(&d[..1])?, w.out_f32(&d[..1])?);
    case(&[&y.clone()], move || layernorm_forward(&mut y, &mut mean, &mut rstd, &x, &weight, &bias, 1e-5))
}

fn layernorm_back(w: &World, d: &[usize]) -> Result<Case> {
    let (x, weight, bias) =
        (w.normal("x", d, 1)?, w.normal_f32("weight", &d[1..])?, w.normal_f32("bias", &d[1..])?);
    let (mut y, mut mean, mut rstd) = (w.out(d)?, w.out_f32(&d[..1])?, w.out_f32(&d[..1])?);
    layernorm_forward(&mut y, &mut mean, &mut rstd, &x, &weight, &bias, 1e-5)?;
    let (dy, mut dx) = (w.normal("dy", d, 1)?, w.normal("dx", d, 1)?);
    case(&[&dx.clone()], move || layernorm_backward(&mut dx, None, &dy, &x, &mean, &rstd, &weight))
}

fn activation(w: &World, d: &[usize], f: Activation) -> Result<Case> {
    let (x, mut y) = (w.normal("x", d, 1)?, w.out(d)?);
    case(&[&y.clone()], move || activation_forward(&mut y, &x, f))
}

fn activation_back(w: &World, d: &[usize], f: Activation) -> Result<Case> {
    let (x, dy, mut dx) = (w.normal("x", d, 1)?, w.normal("dy", d, 1)?, w.out(d)?);
    case(&[&dx.clone()], move || activation_backward(&mut dx, &dy, &x, f))
}

fn rope(w: &World, d: &[usize]) -> Result<Case> {
    let (n, row, half) = (d[0], d[1] * d[2], d[2] / 2);
    let angle = |i: usize| (i / half) as f32 * 1e4f32.powf(-((i % half) as f32) / half as f32);
    let table = |f: fn(f32) -> f32| -> Result<Tensor> {
        let values: Vec<f32> = (0..2048 * half).map(|i| f(angle(i))).collect();
        Tensor::from_f32("angles", &[2048, half], &values)?.to_device(&w.device)
    };
    let (cos, sin, positions) =
        (table(f32::cos)?, table(f32::sin)?, w.integers("positions", n, |i| i % 2048)?);
    let (mut x, hs) = (w.normal("x", &[n, row], 1)?, d[2]);
    case(&[&x.clone()], move || rope_forward(&mut x, &positions, &cos, &sin, hs))
}

fn swiglu(w: &World, d: &[usize]) -> Result<Case> {
    let (gate, up, mut y) = (w.normal("gate", d, 1)?, w.normal("up", d, 1)?, w.out(d)?);
    case(&[&y.clone()], move || swiglu_forward(&mut y, &gate, &up))
}

fn swiglu_back(w: &World, d: &[usize]) -> Result<Case> {
    let (gate, up, dy) = (w.normal("gate", d, 1)?, w.normal("up", d, 1)?, w.normal("dy", d, 1)?);
    let (mut dgate, mut dup) = (w.out(d)?, w.out(d)?);
    case(&[&dgate.clone(), &dup.clone()], move || swiglu_backward(&mut dgate, &mut dup, &dy, &gate, &up))
}

fn residual(w: &World, d: &[usize]) -> Result<Case> {
    let (x, mut y) = (w.normal("x", d, 1)?, w.normal("y", d, 1)?);
    case(&[&y.clone()], move || add(&mut y, &x))
}

fn to_f32(w: &World, d: &[usize]) -> Result<Case> {
    let (x, mut y) = (w.normal("x", d, 1)?, w.out_f32(d)?);
    case(&[&y.clone()], move || cast(&mut y, &x, 0.5))
}

fn gather(w: &World, d: &[usize]) -> Result<Case> {
    let (x, mut y) = (w.normal("x", d, 1)?, w.out(d)?);
    let map = w.integers("map", d[0], |i| i * 7919 % d[0])?;
    case(&[&y.clone()], move || gather_rows(&mut y, &x, &map))
}

fn linear(w: &World, d: &[usize]) -> Result<Case> {
    let [n, m, k] = [d[0], d[1], d[2]];
    let (x, weight) = (w.normal("x", &[n, k], 1)?, w.normal("weight", &[m, k], k)?);
    let mut y = w.out(&[n, m])?;
    case(&[&y.clone()], move || linear_forward(&mut y, &x, &weight, None))
}

fn linear_back_input(w: &World, d: &[usize]) -> Result<Case> {
    let [n, m, k] = [d[0], d[1], d[2]];
    let (dy, weight) = (w.normal("dy", &[n, m], 1)?, w.normal("weight", &[m, k], m)?);
    let mut dx = w.out(&[n, k])?;
    case(&[&dx.clone()], move || linear_backward_input(&mut dx, &dy, &weight, false))
}

fn linear_back_weight(w: &World, d: &[usize]) -> Result<Case> {
    let [n, m, k] = [d[0], d[1], d[2]];
    let (dy, x) = (w.normal("dy", &[n, m], n)?, w.normal("x", &[n, k], 1)?);
    let mut dw = w.out_f32(&[m, k])?;
    case(&[&dw.clone()], move || linear_backward_weight(&mut dw, None, &dy, &x))
}

/// Forward (0), the input's gradient (1), the adapters' (2).
fn low_rank(w: &World, d: &[usize], part: usize) -> Result<Case> {
    let [n, m, k, r] = [d[0], d[1], d[2], d[3]];
    let (x, dy) = (w.normal("x", &[n, k], 1)?, w.normal("dy", &[n, m], m)?);
    let (a, b) = (w.normal_f32_of("a", &[r, k], k)?, w.normal_f32_of("b", &[m, r], r)?);
    let u = w.normal("u", &[n, r], 1)?;
    match part {
        0 => {
            let (weight, mut y, mut u) = (w.normal("weight", &[m, k], k)?, w.out(&[n, m])?, w.out(&[n, r])?);
            case(&[&y.clone(), &u.clone()], move || {
                lora_forward(&mut y, &mut u, &x, &weight, None, LowRank { a: &a, b: &b, scale: 2.0 })
            })
        }
        1 => {
            let (weight, mut dx) = (w.normal("weight", &[m, k], k)?, w.out(&[n, k])?);
            case(&[&dx.clone()], move || lora_backward_input(&mut dx, &dy, &weight, &u, &a, false))
        }
        _ => {
            let (mut da, mut db, mut du) = (w.out_f32(&[r, k])?, w.out_f32(&[m, r])?, w.out(&[n, r])?);
            case(&[&da.clone(), &db.clone(), &du.clone()], move || {
                lora_backward(&mut da, &mut db, &mut du, &dy, &u, &x, LowRank { a: &a, b: &b, scale: 2.0 })
            })
        }
    }
}

fn heads(d: &[usize]) -> AttentionShape {
    let scale = 1.0 / (d[4] as f32).sqrt();
    AttentionShape { heads: d[2], kv_heads: d[3], head_size: d[4], scale, window: None }
}

fn attention(w: &World, d: &[usize], back: bool) -> Result<Case> {
    let (n, s) = (d[0] * d[1], heads(d));
    let (qd, kd) = ([n, d[2] * d[4]], [n, d[3] * d[4]]);
    let (q, k, v) = (w.normal("q", &qd, 1)?, w.normal("k", &kd, 1)?, w.normal("v", &kd, 1)?);
    let cu = w.integers("cu_seqlens", d[0] + 1, |i| i * d[1])?;
    let (mut y, mut lse) = (w.out(&qd)?, w.out_f32(&[d[2], n])?);
    if !back {
        return case(&[&y.clone(), &lse.clone()], move || {
            attention_forward(&mut y, &mut lse, &q, &k, &v, &cu, s)
        });
    }
    attention_forward(&mut y, &mut lse, &q, &k, &v, &cu, s)?;
    let (dy, mut dq, mut dk, mut dv) = (w.normal("dy", &qd, 1)?, w.out(&qd)?, w.out(&kd)?, w.out(&kd)?);
    case(&[&dq.clone(), &dk.clone(), &dv.clone()], move || {
        attention_backward(&mut dq, &mut dk, &mut dv, &dy, &y, &lse, &q, &k, &v, &cu, s)
    })
}

fn cross(w: &World, d: &[usize]) -> Result<Case> {
    let (n, s) = (d[0] * d[1], heads(d));
    let (qd, kd) = ([n, d[2] * d[4]], [n, d[3] * d[4]]);
    let (q, k, v) = (w.normal("q", &qd, 1)?, w.normal("k", &kd, 1)?, w.normal("v", &kd, 1)?);
    let cu = w.integers("cu_seqlens", d[0] + 1, |i| i * d[1])?;
    let (mut y, mut lse) = (w.out(&qd)?, w.out_f32(&[d[2], n])?);
    case(&[&y.clone()], move || cross_attention_forward(&mut y, &mut lse, &q, &k, &v, &cu, &cu, s))
}

fn decode(w: &World, d: &[usize]) -> Result<Case> {
    let (b, t, s) = (d[0], d[1], heads(d));
    let (q, mut y) = (w.normal("q", &[b, d[2] * d[4]], 1)?, w.out(&[b, d[2] * d[4]])?);
    let kd = [b * t, d[3] * d[4]];
    let (k, v) = (w.normal("k", &kd, 1)?, w.normal("v", &kd, 1)?);
    let (starts, lengths) = (w.integers("starts", b, |i| i * t)?, w.integers("lengths", b, |_| t)?);
    case(&[&y.clone()], move || decode_attention_forward(&mut y, &q, &k, &v, &starts, &lengths, s))
}

fn loss(w: &World, d: &[usize]) -> Result<Case> {
    let [n, c, v] = [d[0], d[1], d[2]];
    let (hidden, head) = (w.normal("hidden", &[n, c], 1)?, w.normal("head", &[v, c], c)?);
    let targets = w.integers("targets", n, |i| i * 7919 % v)?;
    let mut weights = w.out_f32(&[n])?;
    weights.write_f32(&vec![1.0; n])?;
    let acts = w.acts;
    let (mut scratch, _) =
        Arena::build("scratch", &w.device, |a| Scratch::lay_out(a, acts, n, v, c, 256 << 20))?;
    let (mut losses, mut dh) = (w.out_f32(&[n])?, w.out(&[n, c])?);
    case(&[&losses.clone(), &dh.clone()], move || {
        linear_cross_entropy_forward_backward(
            &mut losses,
            &mut dh,
            None,
            &mut scratch,
            &hidden,
            &head,
            &targets,
            &weights,
            1.0,
        )
    })
}

fn loss_of_logits(w: &World, d: &[usize]) -> Result<Case> {
    let mut logits = w.normal_f32("logits", d)?;
    let targets = w.integers("targets", d[0], |i| i * 7919 % d[1])?;
    let mut losses = w.out_f32(&d[..1])?;
    case(&[&losses.clone()], move || cross_entropy_forward(&mut losses, &mut logits, &targets))
}

fn adamw(w: &World, d: &[usize]) -> Result<Case> {
    let (param, m) = (w.normal_f32("param", d)?, w.normal_f32("m", d)?);
    let (mut v, grad) = (w.normal_f32("v", d)?, w.normal_f32("grad", d)?);
    v.write_f32(&v.to_f32_vec()?.iter().map(|x| x * x).collect::<Vec<_>>())?;
    let group = Group { param: param.clone(), m, v, grad, lr_factor: 1.0, weight_decay: 0.1 };
    let mut table = AdamWTable::new(vec![group])?;
    let h =
        AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.98, eps: 1e-8, weight_decay: 0.0, step: 3, grad_scale: 0.5 };
    case(&[&param], move || table.update(&h))
}

fn norm(w: &World, d: &[usize]) -> Result<Case> {
    let norm = GradNorm::new(vec![w.normal_f32("grad", d)?])?;
    let out = w.out_f32(&[1])?;
    case(&[&out.clone()], move || out.clone().write_f32(&[norm.norm()? as f32]))
}

fn sample(w: &World, d: &[usize], temperature: f32) -> Result<Case> {
    let values = w.normal_f32("logits", d)?;
    let mut logits = values.clone();
    let mut sampler = Sampler::new(&w.device, d[0], 1)?;
    let how = Sampling { temperature, top_k: 50, top_p: 0.9, repetition_penalty: 1.0, seed: 1 };
    let (mut out, n) = (w.out_u32(&d[..1])?, d[0]);
    case(&[&out.clone()], move || {
        let rows: Vec<SamplingRow> =
            (0..n).map(|i| SamplingRow { id: i as u64, ..Default::default() }).collect();
        let tokens = sampler.sample(&mut logits, &rows, &how)?;
        out.write_u32(&tokens.iter().map(|t| t.unwrap_or(u32::MAX)).collect::<Vec<_>>())
    })
}

fn beams(w: &World, d: &[usize]) -> Result<Case> {
    let (batch, beams, v) = (d[0], d[1], d[2]);
    let (mut logits, own) =
        (w.normal_f32("logits", &[batch * beams, v])?, w.normal_f32("own", &[batch, beams])?);
    let rules = BeamRules::none(&w.device, batch * beams)?;
    let best = [batch, 2 * beams];
    let (mut out, mut from, mut tokens) = (w.out_f32(&best)?, w.out_u32(&best)?, w.out_u32(&best)?);
    case(&[&out.clone(), &from.clone(), &tokens.clone()], move || {
        beam_step(&mut out, &mut from, &mut tokens, &mut logits, &own, &rules)
    })
}

fn from_blocks(w: &World, d: &[usize], kind: GgmlType) -> Result<Case> {
    let (values, size) = kind.block();
    let words = d[0] * d[1] / values * size / 4;
    // Blocks of small numbers and of scales that are finite: every byte below 0x40.
    let blocks = w.integers("blocks", words, |i| i.wrapping_mul(0x9e37_79b1) >> 3 & 0x3b3b_3b3b)?;
    let mut y = w.out(d)?;
    case(&[&y.clone()], move || dequantize(&mut y, &blocks, kind))
}

fn into_blocks(w: &World, d: &[usize]) -> Result<Case> {
    let x = w.normal_f32("x", d)?;
    let mut blocks = w.out_u32(&[d[0] * d[1] / 32 * 34 / 4])?;
    case(&[&blocks.clone()], move || quantize(&mut blocks, &x, GgmlType::Q8_0))
}
