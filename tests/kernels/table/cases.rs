//! How the table's rows are made: inputs, outputs and the call.
use anyhow::Result;
use sdrrl::{
    device::Device,
    ops::{
        activation::{Activation, activation_backward, activation_forward},
        adamw::{AdamW, AdamWTable, Group},
        attention::{AttentionShape, attention_backward, attention_forward, cross_attention_forward},
        beam_step::{BeamRules, beam_step},
        cross_entropy::{LossScratch, cross_entropy_forward, linear_cross_entropy_forward_backward},
        decode_attention::decode_attention_forward,
        embedding::{embedding_backward, embedding_forward},
        gemm::{linear_backward_input, linear_backward_weight, linear_forward},
        grad_norm::GradNorm,
        lora::{LowRank, lora_backward, lora_backward_input, lora_forward},
        quantize::{GgmlType, dequantize, quantize},
        rmsnorm::{add_rmsnorm_forward, rmsnorm_backward, rmsnorm_forward},
        rope::rope_forward,
        sampling::{Sampler, Sampling, SamplingRow},
        swiglu::{swiglu_backward, swiglu_forward},
    },
    tensor::{Arena, Reader, Tensor},
};

use super::world::World;

/// A row, ready to run.
pub struct Case {
    /// The call.
    pub run: Box<dyn FnMut() -> Result<()>>,
    /// Its results.
    pub outs: Vec<Reader>,
    /// The results in f64, for the shapes of checks.
    pub reference: Option<Box<dyn Fn() -> Vec<Vec<f64>>>>,
    /// True if they are the reference's to the bit.
    pub to_the_bit: bool,
}

impl Case {
    /// With the results that an f64 reference has, in their order.
    pub fn against(self, reference: impl Fn() -> Vec<Vec<f64>> + 'static) -> Case {
        Case { reference: Some(Box::new(reference)), ..self }
    }
    /// The same with results that the reference has rounded as the op does.
    pub fn exactly(self, reference: impl Fn() -> Vec<Vec<f64>> + 'static) -> Case {
        Case { to_the_bit: true, ..self.against(reference) }
    }
}

pub fn case(outs: &[Reader], run: impl FnMut() -> Result<()> + 'static) -> Result<Case> {
    let named = |(i, t): (usize, &Reader)| t.renamed(&format!("result {i}"));
    Ok(Case {
        run: Box::new(run),
        outs: outs.iter().enumerate().map(named).collect(),
        reference: None,
        to_the_bit: false,
    })
}

pub fn embedding(w: &World, d: &[usize]) -> Result<Case> {
    let table = w.normal("table", &[d[2], d[1]], 1)?;
    let (tokens, mut y) = (w.integers("tokens", d[0], |i| i * 7919 % d[2])?, w.out(&d[..2])?);
    case(&[y.reader()], move || embedding_forward(&mut y, &tokens, &table))
}

pub fn embedding_back(w: &World, d: &[usize]) -> Result<Case> {
    let tokens = w.integers("tokens", d[0], |i| i * i * 7919 % d[2])?;
    let (dy, mut dw) = (w.normal("dy", &d[..2], 1)?, w.out_f32(&[d[2], d[1]])?);
    case(&[dw.reader()], move || embedding_backward(&mut dw, &dy, &tokens))
}

pub fn rmsnorm(w: &World, d: &[usize]) -> Result<Case> {
    let (x, weight) = (w.normal("x", d, 1)?, w.normal_f32("weight", &d[1..])?);
    let (mut y, mut rstd) = (w.out(d)?, w.out_f32(&d[..1])?);
    case(&[y.reader()], move || rmsnorm_forward(&mut y, &mut rstd, &x, &weight, 1e-5))
}

pub fn add_rmsnorm(w: &World, d: &[usize]) -> Result<Case> {
    let (x, r, weight) = (w.normal("x", d, 1)?, w.normal("r", d, 1)?, w.normal_f32("weight", &d[1..])?);
    let (mut y, mut rstd, mut sum) = (w.out(d)?, w.out_f32(&d[..1])?, w.out(d)?);
    case(&[y.reader(), sum.reader()], move || {
        add_rmsnorm_forward(&mut y, &mut rstd, &mut sum, &x, &r, &weight, 1e-5)
    })
}

pub fn rmsnorm_back(w: &World, d: &[usize], with_weight: bool) -> Result<Case> {
    let (x, dy, weight) = (w.normal("x", d, 1)?, w.normal("dy", d, 1)?, w.normal_f32("weight", &d[1..])?);
    let (mut y, mut rstd) = (w.out(d)?, w.out_f32(&d[..1])?);
    rmsnorm_forward(&mut y, &mut rstd, &x, &weight, 1e-5)?;
    let (mut dx, mut dw) = (w.normal("dx", d, 1)?, w.out_f32(&d[1..])?);
    let outs = if with_weight { vec![dx.reader(), dw.reader()] } else { vec![dx.reader()] };
    case(&outs, move || rmsnorm_backward(&mut dx, with_weight.then_some(&mut dw), &dy, &x, &rstd, &weight))
}

pub fn activation(w: &World, d: &[usize], f: Activation) -> Result<Case> {
    let (x, mut y) = (w.normal("x", d, 1)?, w.out(d)?);
    case(&[y.reader()], move || activation_forward(&mut y, &x, f))
}

pub fn activation_back(w: &World, d: &[usize], f: Activation) -> Result<Case> {
    let (x, dy, mut dx) = (w.normal("x", d, 1)?, w.normal("dy", d, 1)?, w.out(d)?);
    case(&[dx.reader()], move || activation_backward(&mut dx, &dy, &x, f))
}

pub fn rope(w: &World, d: &[usize]) -> Result<Case> {
    let (n, row, half) = (d[0], d[1] * d[2], d[2] / 2);
    let angle = |i: usize| (i / half) as f32 * 1e4f32.powf(-((i % half) as f32) / half as f32);
    let table = |f: fn(f32) -> f32| -> Result<Tensor> {
        let values: Vec<f32> = (0..2048 * half).map(|i| f(angle(i))).collect();
        Tensor::from_f32("angles", &[2048, half], &values)?.to_device(&w.device)
    };
    let (cos, sin, positions) =
        (table(f32::cos)?, table(f32::sin)?, w.integers("positions", n, |i| i % 2048)?);
    let (mut x, hs) = (w.normal("x", &[n, row], 1)?, d[2]);
    case(&[x.reader()], move || rope_forward(&mut x, &positions, &cos, &sin, hs))
}

pub fn swiglu(w: &World, d: &[usize]) -> Result<Case> {
    let (gate, up, mut y) = (w.normal("gate", d, 1)?, w.normal("up", d, 1)?, w.out(d)?);
    case(&[y.reader()], move || swiglu_forward(&mut y, &gate, &up))
}

pub fn swiglu_back(w: &World, d: &[usize]) -> Result<Case> {
    let (gate, up, dy) = (w.normal("gate", d, 1)?, w.normal("up", d, 1)?, w.normal("dy", d, 1)?);
    let (mut dgate, mut dup) = (w.out(d)?, w.out(d)?);
    case(&[dgate.reader(), dup.reader()], move || swiglu_backward(&mut dgate, &mut dup, &dy, &gate, &up))
}

pub fn linear(w: &World, d: &[usize]) -> Result<Case> {
    let [n, m, k] = [d[0], d[1], d[2]];
    let (x, weight) = (w.normal_ends("x", [n, k], 1)?, w.normal("weight", &[m, k], k)?);
    let mut y = w.out(&[x.shape()[0], m])?;
    case(&w.ends(&[&y], n)?, move || linear_forward(&mut y, &x, &weight, None))
}

pub fn linear_back_input(w: &World, d: &[usize]) -> Result<Case> {
    let [n, m, k] = [d[0], d[1], d[2]];
    let (dy, weight) = (w.normal_ends("dy", [n, m], 1)?, w.normal("weight", &[m, k], m)?);
    let mut dx = w.out(&[dy.shape()[0], k])?;
    case(&w.ends(&[&dx], n)?, move || linear_backward_input(&mut dx, &dy, &weight, false))
}

pub fn linear_back_weight(w: &World, d: &[usize]) -> Result<Case> {
    let [n, m, k] = [d[0], d[1], d[2]];
    let (dy, x) = (w.normal("dy", &[n, m], n)?, w.normal("x", &[n, k], 1)?);
    let mut dw = w.out_f32(&[m, k])?;
    case(&[dw.reader()], move || linear_backward_weight(&mut dw, None, &dy, &x))
}

fn adapter(w: &World, [m, k, r]: [usize; 3]) -> Result<[Tensor; 2]> {
    Ok([w.normal_f32_of("a", &[r, k], k)?, w.normal_f32_of("b", &[m, r], r)?])
}

pub fn low_rank(w: &World, d: &[usize]) -> Result<Case> {
    let [n, m, k, r] = [d[0], d[1], d[2], d[3]];
    let [a, b] = adapter(w, [m, k, r])?;
    let (x, weight) = (w.normal_ends("x", [n, k], 1)?, w.normal("weight", &[m, k], k)?);
    let rows = x.shape()[0];
    let (mut y, mut u) = (w.out(&[rows, m])?, w.out(&[rows, r])?);
    case(&w.ends(&[&y, &u], n)?, move || {
        lora_forward(&mut y, &mut u, &x, &weight, None, LowRank { a: &a, b: &b, scale: 2.0, scaled: false })
    })
}

pub fn low_rank_back_input(w: &World, d: &[usize]) -> Result<Case> {
    let [n, m, k, r] = [d[0], d[1], d[2], d[3]];
    let [a, _] = adapter(w, [m, k, r])?;
    let (dy, weight) = (w.normal_ends("dy", [n, m], m)?, w.normal("weight", &[m, k], k)?);
    let (du, mut dx) = (w.normal_ends("du", [n, r], 1)?, w.out(&[dy.shape()[0], k])?);
    case(&w.ends(&[&dx], n)?, move || lora_backward_input(&mut dx, &dy, &weight, &du, &a, false))
}

pub fn low_rank_back(w: &World, d: &[usize]) -> Result<Case> {
    let [n, m, k, r] = [d[0], d[1], d[2], d[3]];
    let [a, b] = adapter(w, [m, k, r])?;
    let (x, dy) = (w.normal("x", &[n, k], 1)?, w.normal("dy", &[n, m], m)?);
    let u = w.normal("u", &[n, r], 1)?;
    let (mut da, mut db, mut du) = (w.out_f32(&[r, k])?, w.out_f32(&[m, r])?, w.out(&[n, r])?);
    case(&[da.reader(), db.reader(), du.reader()], move || {
        lora_backward(
            &mut da,
            &mut db,
            &mut du,
            &dy,
            &u,
            &x,
            LowRank { a: &a, b: &b, scale: 2.0, scaled: false },
        )
    })
}

/// How many documents a side runs: documents are alone, and the CPU needs no more than 2048 tokens of them to hold a result against.
fn documents(w: &World, d: &[usize]) -> usize {
    if w.device == Device::Cpu { d[0].min((2048 / d[1]).max(1)) } else { d[0] }
}

pub fn heads(d: &[usize]) -> AttentionShape {
    let scale = 1.0 / (d[4] as f32).sqrt();
    AttentionShape { heads: d[2], kv_heads: d[3], head_size: d[4], scale, window: None, softcap: None }
}

pub fn attention(w: &World, d: &[usize], back: bool) -> Result<Case> {
    let (documents, s) = (documents(w, d), heads(d));
    let n = documents * d[1];
    let (qd, kd) = ([n, d[2] * d[4]], [n, d[3] * d[4]]);
    let (q, k, v) = (w.normal("q", &qd, 1)?, w.normal("k", &kd, 1)?, w.normal("v", &kd, 1)?);
    let cu = w.integers("cu_seqlens", documents + 1, |i| i * d[1])?;
    let (mut y, mut lse) = (w.out(&qd)?, w.out_f32(&[d[2], n])?);
    if !back {
        // The beginning of lse (NH, N) is head 0's of the first documents.
        return case(&[y.reader(), lse.reader().rows(0..1)?], move || {
            attention_forward(&mut y, &mut lse, &q, &k, &v, &cu, s)
        });
    }
    attention_forward(&mut y, &mut lse, &q, &k, &v, &cu, s)?;
    let (dy, mut dq, mut dk, mut dv) = (w.normal("dy", &qd, 1)?, w.out(&qd)?, w.out(&kd)?, w.out(&kd)?);
    case(&[dq.reader(), dk.reader(), dv.reader()], move || {
        attention_backward(&mut dq, &mut dk, &mut dv, &dy, &y, &lse, &q, &k, &v, &cu, s)
    })
}

pub fn cross(w: &World, d: &[usize]) -> Result<Case> {
    let (documents, s) = (documents(w, d), heads(d));
    let n = documents * d[1];
    let (qd, kd) = ([n, d[2] * d[4]], [n, d[3] * d[4]]);
    let (q, k, v) = (w.normal("q", &qd, 1)?, w.normal("k", &kd, 1)?, w.normal("v", &kd, 1)?);
    let cu = w.integers("cu_seqlens", documents + 1, |i| i * d[1])?;
    let (mut y, mut lse) = (w.out(&qd)?, w.out_f32(&[d[2], n])?);
    case(&[y.reader()], move || cross_attention_forward(&mut y, &mut lse, &q, &k, &v, &cu, &cu, s))
}

pub fn decode(w: &World, d: &[usize]) -> Result<Case> {
    let (b, t, s) = (d[0], d[1], heads(d));
    let (q, mut y) = (w.normal("q", &[b, d[2] * d[4]], 1)?, w.out(&[b, d[2] * d[4]])?);
    let kd = [b * t, d[3] * d[4]];
    let (k, v) = (w.normal("k", &kd, 1)?, w.normal("v", &kd, 1)?);
    let (starts, lengths) = (w.integers("starts", b, |i| i * t)?, w.integers("lengths", b, |_| t)?);
    case(&[y.reader()], move || decode_attention_forward(&mut y, &q, &k, &v, &starts, &lengths, s))
}

pub fn loss(w: &World, d: &[usize]) -> Result<Case> {
    let [n, c, v] = [d[0], d[1], d[2]];
    let (hidden, head) = (w.normal_ends("hidden", [n, c], 1)?, w.normal("head", &[v, c], c)?);
    let rows = hidden.shape()[0];
    let targets = w.integers("targets", rows, |i| w.row(i, n) * 7919 % v)?;
    let mut weights = w.out_f32(&[rows])?;
    weights.write_f32(&vec![1.0; rows])?;
    let acts = w.acts;
    let (mut scratch, _) =
        Arena::build("scratch", &w.device, |a| LossScratch::lay_out(a, acts, rows, v, c, 256 << 20))?;
    let (mut losses, mut dh) = (w.out_f32(&[rows])?, w.out(&[rows, c])?);
    case(&w.ends(&[&losses, &dh], n)?, move || {
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

pub fn loss_of_logits(w: &World, d: &[usize]) -> Result<Case> {
    let mut logits = w.normal_f32("logits", d)?;
    let targets = w.integers("targets", d[0], |i| i * 7919 % d[1])?;
    let mut losses = w.out_f32(&d[..1])?;
    case(&[losses.reader()], move || cross_entropy_forward(&mut losses, &mut logits, &targets))
}

pub fn adamw(w: &World, d: &[usize]) -> Result<Case> {
    let (param, m) = (w.normal_f32("param", d)?, w.normal_f32("m", d)?);
    let (mut v, grad) = (w.normal_f32("v", d)?, w.normal_f32("grad", d)?);
    v.write_f32(&v.to_f32_vec()?.iter().map(|x| x * x).collect::<Vec<_>>())?;
    let out = param.reader();
    let group = Group { param, m, v, grad, lr_factor: 1.0, weight_decay: 0.1 };
    let mut table = AdamWTable::new(vec![group])?;
    let h =
        AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.98, eps: 1e-8, weight_decay: 0.0, step: 3, grad_scale: 0.5 };
    case(&[out], move || table.update(&h))
}

pub fn norm(w: &World, d: &[usize]) -> Result<Case> {
    let mut norm = GradNorm::new(vec![w.normal_f32("grad", d)?])?;
    let mut out = w.out_f32(&[1])?;
    case(&[out.reader()], move || out.write_f32(&[norm.norm()? as f32]))
}

pub fn sample(w: &World, d: &[usize], temperature: f32) -> Result<Case> {
    let mut logits = w.normal_f32("logits", d)?;
    let mut sampler = Sampler::new(&w.device, d[0], 1)?;
    let how = Sampling { temperature, top_k: 50, top_p: 0.9, min_p: 0.0, repetition_penalty: 1.0, seed: 1 };
    let (mut out, n) = (w.out_u32(&d[..1])?, d[0]);
    case(&[out.reader()], move || {
        let rows: Vec<SamplingRow> =
            (0..n).map(|i| SamplingRow { id: i as u64, ..Default::default() }).collect();
        let tokens = sampler.sample(&mut logits, &rows, &how)?;
        out.write_u32(&tokens.iter().map(|t| t.unwrap_or(u32::MAX)).collect::<Vec<_>>())
    })
}

pub fn beams(w: &World, d: &[usize]) -> Result<Case> {
    let (batch, beams, v) = (d[0], d[1], d[2]);
    let (mut logits, own) =
        (w.normal_f32("logits", &[batch * beams, v])?, w.normal_f32("own", &[batch, beams])?);
    let rules = BeamRules::none(&w.device, batch * beams)?;
    let best = [batch, 2 * beams];
    let (mut out, mut from, mut tokens) = (w.out_f32(&best)?, w.out_u32(&best)?, w.out_u32(&best)?);
    case(&[out.reader(), from.reader(), tokens.reader()], move || {
        beam_step(&mut out, &mut from, &mut tokens, &mut logits, &own, &rules)
    })
}

pub fn from_blocks(w: &World, d: &[usize], kind: GgmlType) -> Result<Case> {
    let (values, size) = kind.block();
    let words = d[0] * d[1] / values * size / 4;
    // Blocks of small numbers and of scales that are finite: every byte below 0x40.
    let blocks = w.integers("blocks", words, |i| i.wrapping_mul(0x9e37_79b1) >> 3 & 0x3b3b_3b3b)?;
    let mut y = w.out(d)?;
    case(&[y.reader()], move || dequantize(&mut y, &blocks, kind))
}

pub fn into_blocks(w: &World, d: &[usize]) -> Result<Case> {
    let x = w.normal_f32("x", d)?;
    let mut blocks = w.out_u32(&[d[0] * d[1] / 32 * 34 / 4])?;
    case(&[blocks.reader()], move || quantize(&mut blocks, &x, GgmlType::Q8_0))
}
