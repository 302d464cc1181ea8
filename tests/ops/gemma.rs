//! What Gemma needs of the ops: 1 + w norms, norms of heads, GeGLU, soft-caps, scaled embeddings.
use sdrrl::{
    ops::{
        activation::{self, Activation, softcap},
        cross_entropy::{Head, LossScratch, linear_cross_entropy_forward_backward},
        embedding::{
            self, embedding_forward, embedding_scale, scaled_embedding_backward, scaled_embedding_forward,
        },
        gemm::linear_forward,
        rmsnorm::{self, Gain, rmsnorm_backward, rmsnorm_forward},
        swiglu::{gated_backward, gated_forward},
    },
    tensor::{Arena, DType},
};

use super::*;

/// Rows and columns: one, primes, whole registers, more than one block.
const SHAPES: [(usize, usize); 6] = [(1, 1), (1, 576), (7, 13), (31, 64), (67, 100), (263, 576)];
const EPS: f32 = 1e-5;

#[test]
fn gemmas_gain_is_one_more_than_its_weight_and_heads_are_rows() {
    for (n, heads, hs) in [(1, 1, 64), (33, 3, 80), (70, 2, 256)] {
        let (inp, dout) = (tensor("inp", &[n * heads, hs]), tensor("dout", &[n * heads, hs]));
        let weight = tensor("weight", &[hs]);
        let gain = Gain { weight: &weight, offset: 1.0 };
        let (mut out, mut rstd) = (poisoned("out", &[n * heads, hs]), poisoned("rstd", &[n * heads]));
        rmsnorm_forward(&mut out, &mut rstd, &inp, gain, EPS).unwrap();
        let whole: Vec<f64> = wide(&weight).iter().map(|w| 1.0 + w).collect();
        let (mut want, mut want_rstd) = (vec![0.0; out.len()], vec![0.0; n * heads]);
        rmsnorm::reference::forward(&mut want, &mut want_rstd, &wide(&inp), &whole, EPS as f64);
        close("out", &out, &want, F32);
        let (mut dinp, mut dweight) = (tensor("dinp", &[n * heads, hs]), tensor("dweight", &[hs]));
        let (mut want_dinp, mut want_dweight) = (wide(&dinp), wide(&dweight));
        rmsnorm_backward(&mut dinp, Some(&mut dweight), &dout, &inp, &rstd, gain).unwrap();
        let (dout, inp) = (wide(&dout), wide(&inp));
        rmsnorm::reference::backward(&mut want_dinp, &mut want_dweight, &dout, &inp, &want_rstd, &whole);
        close("dinp", &dinp, &want_dinp, F32);
        close("dweight", &dweight, &want_dweight, F32);
    }
}

#[test]
fn logits_are_capped_in_place_and_only_by_a_number_above_zero() {
    for (n, c) in SHAPES {
        let mut x = tensor("logits", &[n, c]);
        let wider: Vec<f32> = x.to_f32_vec().unwrap().iter().map(|x| x * 90.0).collect();
        x.write_f32(&wider).unwrap();
        let mut want = wide(&x);
        activation::reference::softcap(&mut want, 30.0);
        softcap(&mut x, 30.0).unwrap();
        close("capped", &x, &want, F32);
        for cap in [0.0, -30.0, f32::NAN, f32::INFINITY] {
            refused(softcap(&mut x, cap), &["logits"]);
        }
    }
}

#[test]
fn a_scaled_embedding_is_the_embedding_times_its_scale() {
    assert_eq!(embedding_scale(2048, DType::Bf16), 45.25, "Gemma 2B in bf16");
    assert_eq!(embedding_scale(3072, DType::Bf16), 55.5);
    assert_eq!(embedding_scale(2048, DType::F32), 45.254_833);
    for (n, c) in SHAPES {
        let (weight, dout) = (tensor("weight", &[11, c]), tensor("dout", &[n, c]));
        let tokens = u32s("tokens", &(0..n).map(|i| (i * i % 11) as u32).collect::<Vec<_>>());
        let (mut out, mut plain) = (poisoned("out", &[n, c]), poisoned("plain", &[n, c]));
        scaled_embedding_forward(&mut out, &tokens, &weight, 45.25).unwrap();
        embedding_forward(&mut plain, &tokens, &weight).unwrap();
        let scaled: Vec<f32> = plain.to_f32_vec().unwrap().iter().map(|x| x * 45.25).collect();
        same_bits("out", out.to_f32_vec().unwrap(), scaled);
        let mut dweight = tensor("dweight", &[11, c]);
        let mut want = wide(&dweight);
        let scaled: Vec<f64> = wide(&dout).iter().map(|x| x * 45.25).collect();
        embedding::reference::backward(&mut want, &scaled, &tokens.to_u32_vec().unwrap(), c);
        scaled_embedding_backward(&mut dweight, &dout, &tokens, 45.25).unwrap();
        close("dweight", &dweight, &want, F32);
    }
}

#[test]
fn gemmas_norm_gate_and_embedding_equal_transformers() {
    let golden = Golden::gemma();
    let t = |name: &str| golden.tensor(name);
    let check = |name: &str, got: &Tensor| close(name, got, &wide(&t(name)), F32);
    let zeros = |dims: &[usize]| Tensor::zeros("zeros", DType::F32, dims).unwrap();
    let (inp, weight, dout) = (t("rmsnorm.inp"), t("rmsnorm.weight"), t("rmsnorm.dout"));
    let gain = Gain { weight: &weight, offset: 1.0 };
    let (mut out, mut rstd) = (poisoned("out", inp.shape()), poisoned("rstd", &inp.shape()[..1]));
    rmsnorm_forward(&mut out, &mut rstd, &inp, gain, 1e-6).unwrap();
    check("rmsnorm.out", &out);
    let (mut dinp, mut dweight) = (zeros(inp.shape()), zeros(weight.shape()));
    rmsnorm_backward(&mut dinp, Some(&mut dweight), &dout, &inp, &rstd, gain).unwrap();
    check("rmsnorm.dinp", &dinp);
    check("rmsnorm.dweight", &dweight);

    let (gate, up, dout) = (t("geglu.gate"), t("geglu.up"), t("geglu.dout"));
    for (name, f) in [("gelu_pytorch_tanh", Activation::GeluTanh), ("gelu", Activation::Gelu)] {
        let mut out = poisoned("out", gate.shape());
        let (mut dgate, mut dup) = (poisoned("dgate", gate.shape()), poisoned("dup", gate.shape()));
        gated_forward(&mut out, &gate, &up, f).unwrap();
        gated_backward(&mut dgate, &mut dup, None, &dout, &gate, &up, f).unwrap();
        check(&format!("geglu.{name}.out"), &out);
        check(&format!("geglu.{name}.dgate"), &dgate);
        check(&format!("geglu.{name}.dup"), &dup);
    }

    // In bf16: the scale is rounded to it, and so is the product.
    let table = t("embedding.weight");
    let mut narrow = Tensor::zeros("weight", DType::Bf16, table.shape()).unwrap();
    narrow.write_f32(&table.to_f32_vec().unwrap()).unwrap();
    let mut out = poisoned("out", t("embedding.out").shape());
    let scale = embedding_scale(table.shape()[1], DType::Bf16);
    let ids = u32s("ids", &golden.u32s("embedding.ids"));
    scaled_embedding_forward(&mut out, &ids, &narrow, scale).unwrap();
    let rounded: Vec<f32> =
        out.to_f32_vec().unwrap().iter().map(|&x| half::bf16::from_f32(x).to_f32()).collect();
    same_bits("embedding.out", rounded, t("embedding.out").to_f32_vec().unwrap());
}

#[test]
fn the_loss_with_a_cap_equals_transformers() {
    let golden = Golden::gemma();
    let t = |name: &str| golden.tensor(name);
    let check = |name: &str, got: &Tensor| close(name, got, &wide(&t(name)), F32);
    let zeros = |dims: &[usize]| Tensor::zeros("zeros", DType::F32, dims).unwrap();
    let (hidden, weight) = (t("loss.hidden"), t("loss.weight"));
    let ((n, c), v) = (hidden.rows_cols(), weight.shape()[0]);
    let mut logits = poisoned("logits", &[n, v]);
    linear_forward(&mut logits, &hidden, &weight, None).unwrap();
    softcap(&mut logits, 3.0).unwrap();
    check("loss.logits", &logits);
    let targets = u32s("targets", &golden.u32s("loss.targets"));
    let ones = Tensor::from_f32("ones", &[n], &vec![1.0; n]).unwrap();
    let (mut losses, mut dhidden, mut dweight) = (poisoned("losses", &[n]), zeros(&[n, c]), zeros(&[v, c]));
    let lay_out = |a: &mut Arena| LossScratch::lay_out(a, DType::F32, n, v, c, 0);
    let (mut scratch, _) = Arena::build("scratch", &Default::default(), lay_out).unwrap();
    linear_cross_entropy_forward_backward(
        &mut losses,
        &mut dhidden,
        Some(&mut dweight),
        &mut scratch,
        &hidden,
        Head { weight: (&weight).into(), scale: 1.0, softcap: Some(3.0) },
        &targets,
        &ones,
        1.0,
    )
    .unwrap();
    check("loss.out", &losses);
    check("loss.dhidden", &dhidden);
    check("loss.dweight", &dweight);
}
