//! Kernels that work row by row or element by element.
use sdrrl::{
    ops::{
        activation::{self, Activation, activation_backward, activation_forward, softcap},
        embedding::{
            self, embedding_backward, embedding_forward, scaled_embedding_backward, scaled_embedding_forward,
        },
        rmsnorm::{
            self, Gain, add_rmsnorm_forward, rmsnorm_backward, rmsnorm_backward_into, rmsnorm_forward,
        },
        rope::{self, rope_backward, rope_forward},
        swiglu::{self, gated_backward, gated_forward},
    },
    tensor::DType::{self, Bf16, F32},
};

use super::*;

const SHAPES: [(usize, usize); 3] = [(3, 576), (35, 130), (2, 4099)];

fn rmsnorm(device: &Device, dtype: DType) {
    for (n, c) in SHAPES {
        let (x, wx) = random("x", dtype, n * c);
        let (r, wr) = random("r", dtype, n * c);
        let (w, ww) = random("w", F32, c);
        let (tx, tr, tw) =
            (put(device, dtype, &[n, c], &x), put(device, dtype, &[n, c], &r), put(device, F32, &[c], &w));
        let (mut y, mut rstd, mut sum) =
            (out(device, dtype, &[n, c]), out(device, F32, &[n]), out(device, dtype, &[n, c]));
        rmsnorm_forward(&mut y, &mut rstd, &tx, &tw, 1e-5).unwrap();
        let (mut want, mut want_rstd) = (vec![0.0; n * c], vec![0.0; n]);
        rmsnorm::reference::forward(&mut want, &mut want_rstd, &wx, &ww, 1e-5);
        assert_near("out", &y, &want);
        assert_near("rstd", &rstd, &want_rstd);
        let (dy, wdy) = random("dy", dtype, n * c);
        let (mut dx, mut dw) = (put(device, dtype, &[n, c], &r), put(device, F32, &[c], &w));
        rmsnorm_backward(&mut dx, Some(&mut dw), &put(device, dtype, &[n, c], &dy), &tx, &rstd, &tw).unwrap();
        let (mut want_dx, mut want_dw) = (wr.clone(), ww.clone());
        rmsnorm::reference::backward(&mut want_dx, &mut want_dw, &wdy, &wx, &want_rstd, &ww);
        assert_near("dinp", &dx, &want_dx);
        assert_near("dweight", &dw, &want_dw);
        let mut alone = out(device, dtype, &[n, c]);
        rmsnorm_backward_into(&mut alone, None, &put(device, dtype, &[n, c], &dy), &tx, &rstd, &tw).unwrap();
        let (mut want_alone, mut unused) = (vec![0.0; n * c], ww.clone());
        rmsnorm::reference::backward(&mut want_alone, &mut unused, &wdy, &wx, &want_rstd, &ww);
        assert_near("dinp alone", &alone, &want_alone);
        add_rmsnorm_forward(&mut y, &mut rstd, &mut sum, &tx, &tr, &tw, 1e-5).unwrap();
        let total: Vec<f64> =
            wx.iter().zip(&wr).map(|(a, b)| rounded((a + b) as f32, dtype) as f64).collect();
        assert_near("sum", &sum, &total);
        rmsnorm::reference::forward(&mut want, &mut want_rstd, &total, &ww, 1e-5);
        assert_near("out of the sum", &y, &want);
    }
}

/// Gemma's gain, 1 + weight, and heads as rows: queries (N, NH*HS) normalised head by head, the gradient of the weight summed over all of them.
fn rmsnorm_of_heads(device: &Device, dtype: DType) {
    for (n, heads, hs) in [(5, 3, 64), (9, 2, 80), (3, 4, 128), (17, 2, 256)] {
        let (rows, row) = (n * heads, heads * hs);
        let ((x, wx), (r, wr)) = (random("x", dtype, n * row), random("r", dtype, n * row));
        let ((w, ww), (dy, wdy)) = (random("w", F32, hs), random("dy", dtype, n * row));
        let whole: Vec<f64> = ww.iter().map(|w| 1.0 + w).collect();
        let (tx, tw) = (put(device, dtype, &[rows, hs], &x), put(device, F32, &[hs], &w));
        let gain = Gain { weight: &tw, offset: 1.0 };
        let (mut y, mut rstd) = (out(device, dtype, &[rows, hs]), out(device, F32, &[rows]));
        rmsnorm_forward(&mut y, &mut rstd, &tx, gain, 1e-6).unwrap();
        let (mut want, mut want_rstd) = (vec![0.0; n * row], vec![0.0; rows]);
        rmsnorm::reference::forward(&mut want, &mut want_rstd, &wx, &whole, 1e-6);
        assert_near("out", &y, &want);
        let (mut dx, mut dw) = (put(device, dtype, &[rows, hs], &r), put(device, F32, &[hs], &w));
        let tdy = put(device, dtype, &[rows, hs], &dy);
        rmsnorm_backward(&mut dx, Some(&mut dw), &tdy, &tx, &rstd, gain).unwrap();
        let (mut want_dx, mut want_dw) = (wr.clone(), ww.clone());
        rmsnorm::reference::backward(&mut want_dx, &mut want_dw, &wdy, &wx, &want_rstd, &whole);
        assert_near("dinp", &dx, &want_dx);
        assert_near("dweight", &dw, &want_dw);
        let (mut sum, tr) = (out(device, dtype, &[rows, hs]), put(device, dtype, &[rows, hs], &r));
        add_rmsnorm_forward(&mut y, &mut rstd, &mut sum, &tx, &tr, gain, 1e-6).unwrap();
        let total: Vec<f64> =
            wx.iter().zip(&wr).map(|(a, b)| rounded((a + b) as f32, dtype) as f64).collect();
        rmsnorm::reference::forward(&mut want, &mut want_rstd, &total, &whole, 1e-6);
        assert_near("out of the sum", &y, &want);
    }
}

fn activation(device: &Device, dtype: DType) {
    for n in [5 * 1027, 3] {
        use Activation::*;
        for f in [Gelu, GeluTanh, Silu, Relu, Tanh] {
            let (x, _) = random("x", dtype, n);
            let x: Vec<f32> = x.iter().map(|x| rounded(x * 4.0, dtype)).collect();
            let wx: Vec<f64> = x.iter().map(|&x| x as f64).collect();
            let (d, wd) = random("d", dtype, n);
            let tx = put(device, dtype, &[n], &x);
            let (mut y, mut dx) = (out(device, dtype, &[n]), out(device, dtype, &[n]));
            activation_forward(&mut y, &tx, f).unwrap();
            activation_backward(&mut dx, &put(device, dtype, &[n], &d), &tx, f).unwrap();
            let (mut wy, mut wdx) = (vec![0.0; n], vec![0.0; n]);
            activation::reference::forward(&mut wy, &wx, f);
            activation::reference::backward(&mut wdx, &wd, &wx, f);
            assert_near("out", &y, &wy);
            assert_near("dinp", &dx, &wdx);
        }
    }
}

/// Logits from where a cap changes little to where it is all that is left.
fn cap_logits(device: &Device, dtype: DType) {
    for n in [5 * 1027, 3] {
        let x: Vec<f32> = random("x", dtype, n).0.iter().map(|x| rounded(x * 100.0, dtype)).collect();
        let mut want: Vec<f64> = x.iter().map(|&x| x as f64).collect();
        let mut t = put(device, dtype, &[n], &x);
        softcap(&mut t, 30.0).unwrap();
        activation::reference::softcap(&mut want, 30.0);
        assert_near("x", &t, &want);
    }
}

fn swiglu(device: &Device, dtype: DType, kind: Activation) {
    let (n, f) = (5, 1027);
    let ((g, wg), (u, wu), (d, wd)) =
        (random("g", dtype, n * f), random("u", dtype, n * f), random("d", dtype, n * f));
    let [tg, tu, td] = [&g, &u, &d].map(|x| put(device, dtype, &[n, f], x));
    let (mut y, mut dg, mut du) =
        (out(device, dtype, &[n, f]), out(device, dtype, &[n, f]), out(device, dtype, &[n, f]));
    gated_forward(&mut y, &tg, &tu, kind).unwrap();
    gated_backward(&mut dg, &mut du, None, &td, &tg, &tu, kind).unwrap();
    let (mut dg2, mut again) = (out(device, dtype, &[n, f]), out(device, dtype, &[n, f]));
    gated_backward(&mut dg2, &mut du, Some(&mut again), &td, &tg, &tu, kind).unwrap();
    assert_eq!(again.to_f32_vec().unwrap(), y.to_f32_vec().unwrap());
    assert_eq!(dg2.to_f32_vec().unwrap(), dg.to_f32_vec().unwrap());
    let (mut wy, mut wdg, mut wdu) = (vec![0.0; n * f], vec![0.0; n * f], vec![0.0; n * f]);
    swiglu::reference::forward(&mut wy, &wg, &wu, kind);
    swiglu::reference::backward(&mut wdg, &mut wdu, &wd, &wg, &wu, kind);
    assert_near("out", &y, &wy);
    assert_near("dgate", &dg, &wdg);
    assert_near("dup", &du, &wdu);
}

fn rope(device: &Device, dtype: DType) {
    let (n, heads, hs, t) = (7, 3, 20, 40);
    let row = heads * hs;
    let (x, wx) = random("x", dtype, n * row);
    let angle: Vec<f32> =
        (0..t * hs / 2).map(|i| (i / (hs / 2)) as f32 * 0.9f32.powi((i % (hs / 2)) as i32)).collect();
    let (cos, sin): (Vec<f32>, Vec<f32>) = angle.iter().map(|a| (a.cos(), a.sin())).unzip();
    let positions: Vec<u32> = (0..n as u32).map(|i| i * 5 % t as u32).collect();
    let (tc, ts) = (put(device, F32, &[t, hs / 2], &cos), put(device, F32, &[t, hs / 2], &sin));
    let tp = put_u32(device, &positions);
    let wide = |x: &[f32]| x.iter().map(|&x| x as f64).collect::<Vec<_>>();
    for sign in [1.0, -1.0] {
        let mut y = put(device, dtype, &[n, row], &x);
        let turn = if sign > 0.0 { rope_forward } else { rope_backward };
        turn(&mut y, &tp, &tc, &ts, hs).unwrap();
        let mut want = wx.clone();
        rope::reference::rotate(&mut want, &positions, &wide(&cos), &wide(&sin), hs, row, sign);
        assert_near("x", &y, &want);
    }
}

fn embedding(device: &Device, dtype: DType) {
    let (v, c) = (11, 270);
    let tokens = [3u32, 0, 10, 3, 3, 7, 0];
    let (w, ww) = random("w", dtype, v * c);
    let mut y = out(device, dtype, &[tokens.len(), c]);
    embedding_forward(&mut y, &put_u32(device, &tokens), &put(device, dtype, &[v, c], &w)).unwrap();
    let mut want = vec![0.0; tokens.len() * c];
    embedding::reference::forward(&mut want, &tokens, &ww, c);
    assert_within("out", &y, &want, 0.0);
    let (d, wd) = random("d", dtype, tokens.len() * c);
    let (start, mut want) = random("start", F32, v * c);
    let mut dw = put(device, F32, &[v, c], &start);
    embedding_backward(&mut dw, &put(device, dtype, &[tokens.len(), c], &d), &put_u32(device, &tokens))
        .unwrap();
    embedding::reference::backward(&mut want, &wd, &tokens, c);
    assert_near("dweight", &dw, &want);
    // Gemma's: one rounding after the product.
    let scale = embedding::embedding_scale(c, dtype);
    scaled_embedding_forward(&mut y, &put_u32(device, &tokens), &put(device, dtype, &[v, c], &w), scale)
        .unwrap();
    let scaled: Vec<f64> = tokens
        .iter()
        .flat_map(|&t| &w[t as usize * c..][..c])
        .map(|x| rounded(x * scale, dtype) as f64)
        .collect();
    assert_within("scaled out", &y, &scaled, 0.0);
    let mut dw = put(device, F32, &[v, c], &vec![0.0; v * c]);
    let td = put(device, dtype, &[tokens.len(), c], &d);
    scaled_embedding_backward(&mut dw, &td, &put_u32(device, &tokens), scale).unwrap();
    let (mut want, wd) = (vec![0.0; v * c], wd.iter().map(|d| d * scale as f64).collect::<Vec<_>>());
    embedding::reference::backward(&mut want, &wd, &tokens, c);
    assert_near("scaled dweight", &dw, &want);
}

cases! {
    rmsnorm_f32(device) { rmsnorm(device, F32) }
    rmsnorm_bf16(device) { rmsnorm(device, Bf16) }
    rmsnorm_of_heads_f32(device) { rmsnorm_of_heads(device, F32) }
    rmsnorm_of_heads_bf16(device) { rmsnorm_of_heads(device, Bf16) }
    softcap_f32(device) { cap_logits(device, F32) }
    softcap_bf16(device) { cap_logits(device, Bf16) }
    activation_f32(device) { activation(device, F32) }
    activation_bf16(device) { activation(device, Bf16) }
    swiglu_f32(device) { swiglu(device, F32, Activation::Silu) }
    swiglu_bf16(device) { swiglu(device, Bf16, Activation::Silu) }
    geglu_f32(device) { swiglu(device, F32, Activation::Gelu); swiglu(device, F32, Activation::GeluTanh) }
    geglu_bf16(device) { swiglu(device, Bf16, Activation::Gelu); swiglu(device, Bf16, Activation::GeluTanh) }
    rope_f32(device) { rope(device, F32) }
    rope_bf16(device) { rope(device, Bf16) }
    embedding_f32(device) { embedding(device, F32) }
    embedding_bf16(device) { embedding(device, Bf16) }
}

#[test]
fn row_kernels_have_no_bank_conflicts() {
    let run = |device: &Device| {
        rmsnorm(device, F32);
        rmsnorm(device, Bf16);
        table::layernorm::ROWS.iter().for_each(|row| check_row(device, row));
    };
    if let Some(stats) = profile(run) {
        assert!(stats.shared_requests > 0);
        assert_eq!(stats.bank_conflicts(), 0, "{stats:?}");
    }
}
