//! What Gemma's and Qwen3's layers have beside the rest: norms of heads, GeGLU, capped scores and logits, windows. Shapes are those of Gemma 2 (C 2304, F 9216,
//! V 256000, heads of 256, a window of 4096), of Qwen3's heads of 128 for the norms.
use sdrrl::{
    ops::{
        activation::{Activation, softcap},
        attention::{AttentionShape, attention_backward, attention_forward},
        cross_entropy::{Head, LossScratch, linear_cross_entropy_forward_backward},
        decode_attention::decode_attention_forward,
        rmsnorm::{Gain, rmsnorm_backward, rmsnorm_forward},
        swiglu::{gated_backward, gated_forward},
    },
    tensor::Arena,
};

use super::*;

rows! {
    rmsnorm_forward_of_heads {
        names: "N NH HS",
        measured: &[(&[8192, 32, 128], BF16)],
        checked: &[&[3, 2, 64]],
        dtypes: BOTH,
        work: |d, t| elements(2 * d[0] * d[1] * d[2], t),
        make: |w, d| norm_of_heads(w, d, false),
    }
    rmsnorm_backward_of_heads {
        names: "N NH HS",
        measured: &[(&[8192, 32, 128], BF16)],
        checked: &[&[3, 2, 64]],
        dtypes: BOTH,
        work: |d, t| elements(4 * d[0] * d[1] * d[2], t),
        make: |w, d| norm_of_heads(w, d, true),
    }
    geglu_tanh_forward {
        names: "N F",
        measured: &[(&[8192, 9216], BF16)],
        checked: &[&[3, 72]],
        dtypes: BOTH,
        work: |d, t| elements(3 * d[0] * d[1], t),
        make: |w, d| geglu(w, d, false),
    }
    geglu_tanh_backward {
        names: "N F",
        measured: &[(&[8192, 9216], BF16)],
        checked: &[&[3, 72]],
        dtypes: BOTH,
        work: |d, t| elements(5 * d[0] * d[1], t),
        make: |w, d| geglu(w, d, true),
    }
    softcap {
        names: "N V",
        measured: &[(&[64, 256000], BF16)],
        checked: &[&[3, 701]],
        dtypes: BOTH,
        work: |d, t| elements(2 * d[0] * d[1], t),
        make: capped_logits,
    }
    linear_cross_entropy_capped {
        names: "N C V",
        measured: &[(&[2048, 2304, 256000], BF16)],
        checked: &[&[17, 40, 301]],
        work: |d, _| flop(4.0, d),
        rows_alone: false,
        make: capped_loss,
    }
    attention_forward_window_cap {
        names: "B T NH NKV HS W",
        measured: &[(&[1, 8192, 16, 8, 256, 4096], BF16)],
        checked: &[&[2, 40, 2, 1, 32, 7]],
        dtypes: BOTH,
        work: |d, _| Work::Flop(4.0 * visible(d)),
        rows_alone: false,
        make: |w, d| attention(w, d, false),
    }
    attention_backward_window_cap {
        names: "B T NH NKV HS W",
        measured: &[(&[1, 8192, 16, 8, 256, 4096], BF16)],
        checked: &[&[2, 40, 2, 1, 32, 7]],
        work: |d, _| Work::Flop(10.0 * visible(d)),
        rows_alone: false,
        make: |w, d| attention(w, d, true),
    }
    decode_attention_window_cap {
        names: "B T NH NKV HS W",
        measured: &[(&[8, 8192, 16, 8, 256, 4096], BF16)],
        checked: &[&[3, 40, 4, 2, 32, 7]],
        dtypes: BOTH,
        work: |d, t| elements(2 * d[0] * d[5].min(d[1]) * d[3] * d[4], t),
        make: decode,
    }
}

/// Of scores, and of logits.
const CAP: f32 = 50.0;
const LOGITS_CAP: f32 = 30.0;

/// Elements of q times the keys that each sees.
fn visible(d: &[usize]) -> f64 {
    let (t, w) = (d[1] as f64, d[5].min(d[1]) as f64);
    (t * w - w * (w - 1.0) / 2.0) * (d[0] * d[2] * d[4]) as f64
}

fn norm_of_heads(w: &World, d: &[usize], back: bool) -> Result<Case> {
    let rows = [d[0] * d[1], d[2]];
    let (x, weight) = (w.normal("x", &rows, 1)?, w.normal_f32("weight", &d[2..])?);
    let (mut y, mut rstd) = (w.out(&rows)?, w.out_f32(&rows[..1])?);
    if !back {
        return case(&[y.reader()], move || {
            rmsnorm_forward(&mut y, &mut rstd, &x, Gain { weight: &weight, offset: 1.0 }, 1e-6)
        });
    }
    rmsnorm_forward(&mut y, &mut rstd, &x, Gain { weight: &weight, offset: 1.0 }, 1e-6)?;
    let (dy, mut dx) = (w.normal("dy", &rows, 1)?, w.normal("dx", &rows, 1)?);
    case(&[dx.reader()], move || {
        rmsnorm_backward(&mut dx, None, &dy, &x, &rstd, Gain { weight: &weight, offset: 1.0 })
    })
}

fn geglu(w: &World, d: &[usize], back: bool) -> Result<Case> {
    let f = Activation::GeluTanh;
    let (gate, up) = (w.normal("gate", d, 1)?, w.normal("up", d, 1)?);
    if !back {
        let mut y = w.out(d)?;
        return case(&[y.reader()], move || gated_forward(&mut y, &gate, &up, f));
    }
    let (dy, mut dgate, mut dup, mut act) = (w.normal("dy", d, 1)?, w.out(d)?, w.out(d)?, w.out(d)?);
    case(&[dgate.reader(), dup.reader(), act.reader()], move || {
        gated_backward(&mut dgate, &mut dup, Some(&mut act), &dy, &gate, &up, f)
    })
}

fn capped_logits(w: &World, d: &[usize]) -> Result<Case> {
    let mut x = w.normal("logits", d, 1)?;
    case(&[x.reader()], move || softcap(&mut x, LOGITS_CAP))
}

fn capped_loss(w: &World, d: &[usize]) -> Result<Case> {
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
        let head = Head { weight: (&head).into(), scale: 1.0, softcap: Some(LOGITS_CAP) };
        let (s, t) = (&mut scratch, &targets);
        linear_cross_entropy_forward_backward(&mut losses, &mut dh, None, s, &hidden, head, t, &weights, 1.0)
    })
}

fn shape(d: &[usize]) -> AttentionShape {
    AttentionShape { window: Some(d[5]), softcap: Some(CAP), ..cases::heads(d) }
}

fn attention(w: &World, d: &[usize], back: bool) -> Result<Case> {
    let s = shape(d);
    // Documents are alone: the CPU needs one to hold a result against.
    let documents = if w.device == Device::Cpu { 1 } else { d[0] };
    let n = documents * d[1];
    let (qd, kd) = ([n, d[2] * d[4]], [n, d[3] * d[4]]);
    let (q, k, v) = (w.normal("q", &qd, 1)?, w.normal("k", &kd, 1)?, w.normal("v", &kd, 1)?);
    let cu = w.integers("cu_seqlens", documents + 1, |i| i * d[1])?;
    let (mut y, mut lse) = (w.out(&qd)?, w.out_f32(&[d[2], n])?);
    if !back {
        return case(&[y.reader()], move || attention_forward(&mut y, &mut lse, &q, &k, &v, &cu, s));
    }
    attention_forward(&mut y, &mut lse, &q, &k, &v, &cu, s)?;
    let (dy, mut dq, mut dk, mut dv) = (w.normal("dy", &qd, 1)?, w.out(&qd)?, w.out(&kd)?, w.out(&kd)?);
    case(&[dq.reader(), dk.reader(), dv.reader()], move || {
        attention_backward(&mut dq, &mut dk, &mut dv, &dy, &y, &lse, &q, &k, &v, &cu, s)
    })
}

fn decode(w: &World, d: &[usize]) -> Result<Case> {
    let (b, t, s) = (d[0], d[1], shape(d));
    let (q, mut y) = (w.normal("q", &[b, d[2] * d[4]], 1)?, w.out(&[b, d[2] * d[4]])?);
    let kd = [b * t, d[3] * d[4]];
    let (k, v) = (w.normal("k", &kd, 1)?, w.normal("v", &kd, 1)?);
    let (starts, lengths) = (w.integers("starts", b, |i| i * t)?, w.integers("lengths", b, |_| t)?);
    case(&[y.reader()], move || decode_attention_forward(&mut y, &q, &k, &v, &starts, &lengths, s))
}
