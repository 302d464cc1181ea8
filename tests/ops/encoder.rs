//! LayerNorm and the activations of encoders.
use sdrrl::{
    ops::{
        activation::{self, Activation, activation_backward, activation_forward},
        layernorm::{self, layernorm_backward, layernorm_forward},
    },
    tensor::DType,
};

use super::*;

const SHAPES: [(usize, usize); 6] = [(1, 1), (1, 1024), (7, 13), (31, 64), (67, 100), (263, 576)];
const EPS: f32 = 1e-5;
const ALL: [Activation; 3] = [Activation::Gelu, Activation::Relu, Activation::Tanh];

struct Normed {
    out: Tensor,
    mean: Tensor,
    rstd: Tensor,
    dinp: Tensor,
    dweight: Tensor,
    dbias: Tensor,
}

fn normed(inp: &Tensor, weight: &Tensor, bias: &Tensor, dout: &Tensor) -> Normed {
    let (n, c) = inp.rows_cols();
    let (mut out, mut mean, mut rstd) =
        (poisoned("out", &[n, c]), poisoned("mean", &[n]), poisoned("rstd", &[n]));
    layernorm_forward(&mut out, &mut mean, &mut rstd, inp, weight, bias, EPS).unwrap();
    let (mut dinp, mut dweight, mut dbias) =
        (tensor("dinp", &[n, c]), tensor("dweight", &[c]), tensor("dbias", &[c]));
    layernorm_backward(&mut dinp, Some((&mut dweight, &mut dbias)), dout, inp, &mean, &rstd, weight).unwrap();
    Normed { out, mean, rstd, dinp, dweight, dbias }
}

fn operands(n: usize, c: usize) -> [Tensor; 4] {
    [tensor("inp", &[n, c]), tensor("weight", &[c]), tensor("bias", &[c]), tensor("dout", &[n, c])]
}

#[test]
fn layernorm_equals_its_oracle() {
    for (n, c) in SHAPES {
        let [mut inp, weight, bias, dout] = operands(n, c);
        // A mean far above the deviation: sums of squares would cancel.
        change(&mut inp, |inp| inp.iter_mut().for_each(|x| *x += 50.0));
        let r = normed(&inp, &weight, &bias, &dout);
        let (wi, ww, wb, wd) = (wide(&inp), wide(&weight), wide(&bias), wide(&dout));
        let (mut out, mut mean, mut rstd) = (vec![0.0; n * c], vec![0.0; n], vec![0.0; n]);
        layernorm::reference::forward(&mut out, &mut mean, &mut rstd, &wi, &ww, &wb, EPS as f64);
        // What rounding the row to f32 at 50 leaves of a deviation of 2.
        const SHIFTED: f64 = 5e-6;
        close(&format!("out {n} {c}"), &r.out, &out, SHIFTED);
        close("mean", &r.mean, &mean, F32);
        if c > 1 {
            close("rstd", &r.rstd, &rstd, SHIFTED);
            let (mut dinp, mut dweight, mut dbias) = (
                wide(&tensor("dinp", &[n, c])),
                wide(&tensor("dweight", &[c])),
                wide(&tensor("dbias", &[c])),
            );
            layernorm::reference::backward(
                [&mut dinp, &mut dweight, &mut dbias],
                &wd,
                &wi,
                &mean,
                &rstd,
                &ww,
            );
            close(&format!("dinp {n} {c}"), &r.dinp, &dinp, SHIFTED);
            close(&format!("dweight {n} {c}"), &r.dweight, &dweight, SHIFTED);
            close(&format!("dbias {n} {c}"), &r.dbias, &dbias, F32);
            let mut alone = tensor("dinp", &[n, c]);
            layernorm_backward(&mut alone, None, &dout, &inp, &r.mean, &r.rstd, &weight).unwrap();
            same_bits("dinp alone", r.dinp.to_f32_vec().unwrap(), alone.to_f32_vec().unwrap());
        }
    }
}

#[test]
fn activations_equal_their_oracles() {
    for (n, c) in SHAPES {
        for f in ALL {
            let (mut inp, dout) = (tensor("inp", &[n, c]), tensor("dout", &[n, c]));
            change(&mut inp, |inp| inp.iter_mut().step_by(5).for_each(|x| *x *= 20.0));
            let (mut out, mut dinp) = (poisoned("out", &[n, c]), poisoned("dinp", &[n, c]));
            activation_forward(&mut out, &inp, f).unwrap();
            activation_backward(&mut dinp, &dout, &inp, f).unwrap();
            let (mut want, mut want_dinp) = (vec![0.0; n * c], vec![0.0; n * c]);
            activation::reference::forward(&mut want, &wide(&inp), f);
            activation::reference::backward(&mut want_dinp, &wide(&dout), &wide(&inp), f);
            close(&format!("{f:?} {n} {c}"), &out, &want, F32);
            close(&format!("{f:?} slope {n} {c}"), &dinp, &want_dinp, F32);
        }
    }
}

#[test]
fn the_oracles_of_encoders_equal_finite_differences() {
    let (n, c) = (3, 8);
    let [x, w, b, dout] = operands(n, c).map(|t| wide(&t));
    let norm = |x: &[f64], w: &[f64], b: &[f64]| {
        let (mut out, mut mean, mut rstd) = (vec![0.0; n * c], vec![0.0; n], vec![0.0; n]);
        layernorm::reference::forward(&mut out, &mut mean, &mut rstd, x, w, b, 1e-3);
        (inner(&out, &dout), mean, rstd)
    };
    let (_, mean, rstd) = norm(&x, &w, &b);
    let (mut dx, mut dw, mut db) = (vec![0.0; n * c], vec![0.0; c], vec![0.0; c]);
    layernorm::reference::backward([&mut dx, &mut dw, &mut db], &dout, &x, &mean, &rstd, &w);
    finite_differences("layernorm dinp", &x, &dx, |x| norm(x, &w, &b).0);
    finite_differences("layernorm dweight", &w, &dw, |w| norm(&x, w, &b).0);
    finite_differences("layernorm dbias", &b, &db, |b| norm(&x, &w, b).0);
    for f in ALL {
        let mut dx = vec![0.0; n * c];
        activation::reference::backward(&mut dx, &dout, &x, f);
        finite_differences(&format!("{f:?}"), &x, &dx, |x| {
            let mut out = vec![0.0; n * c];
            activation::reference::forward(&mut out, x, f);
            inner(&out, &dout)
        });
    }
}

#[test]
fn layernorm_and_activations_equal_pytorch() {
    let golden = Golden::open();
    let t = |name: &str| golden.tensor(name);
    let check = |name: &str, got: &Tensor| close(name, got, &wide(&t(name)), F32);
    let (inp, weight, bias, dout) =
        (t("layernorm.inp"), t("layernorm.weight"), t("layernorm.bias"), t("layernorm.dout"));
    let (n, c) = inp.rows_cols();
    let (mut out, mut mean, mut rstd) =
        (poisoned("out", &[n, c]), poisoned("mean", &[n]), poisoned("rstd", &[n]));
    layernorm_forward(&mut out, &mut mean, &mut rstd, &inp, &weight, &bias, EPS).unwrap();
    check("layernorm.out", &out);
    let zeros = |dims: &[usize]| Tensor::zeros("zeros", DType::F32, dims).unwrap();
    let (mut dinp, mut dweight, mut dbias) = (zeros(&[n, c]), zeros(&[c]), zeros(&[c]));
    layernorm_backward(&mut dinp, Some((&mut dweight, &mut dbias)), &dout, &inp, &mean, &rstd, &weight)
        .unwrap();
    check("layernorm.dinp", &dinp);
    check("layernorm.dweight", &dweight);
    check("layernorm.dbias", &dbias);
    let (inp, dout) = (t("activation.inp"), t("activation.dout"));
    for (name, f) in ["gelu", "relu", "tanh"].iter().zip(ALL) {
        let (mut out, mut dinp) = (poisoned("out", inp.shape()), poisoned("dinp", inp.shape()));
        activation_forward(&mut out, &inp, f).unwrap();
        activation_backward(&mut dinp, &dout, &inp, f).unwrap();
        check(&format!("activation.{name}.out"), &out);
        check(&format!("activation.{name}.dinp"), &dinp);
    }
}

#[test]
fn encoder_rows_have_the_same_bits_in_any_company_on_any_number_of_threads() {
    let (n, c) = (263, 1027);
    let [inp, weight, bias, dout] = operands(n, c);
    let run = |n: usize| {
        let (inp, dout) = (inp.slice(0..n).unwrap(), dout.slice(0..n).unwrap());
        let r = normed(&inp, &weight, &bias, &dout);
        let mut all = vec![r.out, r.dinp, r.dweight, r.dbias];
        for f in ALL {
            let (mut out, mut dinp) = (poisoned("out", &[n, c]), poisoned("dinp", &[n, c]));
            activation_forward(&mut out, &inp, f).unwrap();
            activation_backward(&mut dinp, &dout, &inp, f).unwrap();
            all.extend([out, dinp]);
        }
        all
    };
    let one = with_threads(1, || run(n));
    let many = with_threads(5, || run(n));
    let few = run(3);
    for (i, (a, b)) in one.iter().zip(&many).enumerate() {
        same_bits(&format!("{a:?}"), a.to_f32_vec().unwrap(), b.to_f32_vec().unwrap());
        if a.shape() == [n, c] {
            same_bits(
                &format!("three rows of {a:?}"),
                &a.to_f32_vec().unwrap()[..3 * c],
                few[i].to_f32_vec().unwrap(),
            );
        }
    }
}

#[test]
fn encoder_ops_refuse_tensors_that_do_not_fit() {
    let [inp, weight, _, dout] = operands(4, 6);
    let short = tensor("short", &[5]);
    let (mut out, mut mean, mut rstd) =
        (poisoned("out", &[4, 6]), poisoned("mean", &[4]), poisoned("rstd", &[4]));
    let r = layernorm_forward(&mut out, &mut mean, &mut rstd, &inp, &weight, &short, EPS);
    refused(r, &["layernorm_forward", "out F32 [4, 6]", "inp", "short F32 [5]"]);
    refused(
        layernorm_backward(&mut out, None, &dout, &inp, &mean, &rstd, &short),
        &["layernorm_backward", "short F32 [5]"],
    );
    refused(activation_forward(&mut out, &short, Activation::Relu), &["activation_forward", "short F32 [5]"]);
    let r = activation_backward(&mut out, &short, &inp, Activation::Tanh);
    refused(r, &["activation_backward", "short F32 [5]"]);
}
