//! Embedding, RMSNorm, RoPE and SwiGLU.
use sdrrl::{
    ops::{
        activation::Activation,
        embedding::{self, embedding_backward, embedding_forward},
        rmsnorm::{self, add_rmsnorm_forward, rmsnorm_backward, rmsnorm_forward},
        rope::{self, rope_backward, rope_forward},
        swiglu::{self, gated_backward, gated_forward, swiglu_backward, swiglu_forward},
    },
    tensor::DType,
};

use super::*;

/// Rows and columns: one, primes, whole registers, more than one block.
const SHAPES: [(usize, usize); 6] = [(1, 1), (1, 576), (7, 13), (31, 64), (67, 100), (263, 576)];
const EPS: f32 = 1e-5;

#[test]
fn embedding_gathers_and_scatters_its_rows() {
    for (n, c) in SHAPES {
        let weight = tensor("weight", &[11, c]);
        let ids: Vec<u32> = (0..n).map(|i| (i * i % 11) as u32).collect();
        let tokens = u32s("tokens", &ids);
        let mut want = vec![0.0; n * c];
        embedding::reference::forward(&mut want, &ids, &wide(&weight), c);
        let mut out = poisoned("out", &[n, c]);
        embedding_forward(&mut out, &tokens, &weight).unwrap();
        close("f32", &out, &want, 0.0);

        let mut narrow = Tensor::zeros("weight", DType::Bf16, &[11, c]).unwrap();
        narrow.write_f32(&weight.to_f32_vec().unwrap()).unwrap();
        embedding::reference::forward(&mut want, &ids, &wide(&narrow), c);
        embedding_forward(&mut out, &tokens, &narrow).unwrap();
        close("bf16", &out, &want, 0.0);

        let dout = tensor("dout", &[n, c]);
        let mut dweight = tensor("dweight", &[11, c]);
        let mut want = wide(&dweight);
        embedding::reference::backward(&mut want, &wide(&dout), &ids, c);
        embedding_backward(&mut dweight, &dout, &tokens).unwrap();
        close("dweight", &dweight, &want, F32);
    }
}

#[test]
fn embedding_names_the_token_that_is_not_in_the_table() {
    let (mut out, mut weight) = (poisoned("hidden", &[3, 4]), tensor("embed_tokens", &[11, 4]));
    let tokens = u32s("tokens", &[1, 11, 2]);
    refused(
        embedding_forward(&mut out, &tokens, &weight),
        &["entry 1", "tokens", "is 11", "embed_tokens", "11 rows"],
    );
    refused(embedding_backward(&mut weight, &out, &tokens), &["entry 1", "is 11"]);
    let few = u32s("tokens", &[1, 2]);
    refused(
        embedding_forward(&mut out, &few, &weight),
        &["hidden F32 [3, 4]", "tokens U32 [2]", "embed_tokens"],
    );
}

#[test]
fn rmsnorm_equals_its_oracle() {
    for (n, c) in SHAPES {
        let (inp, weight, dout) = (tensor("inp", &[n, c]), tensor("weight", &[c]), tensor("dout", &[n, c]));
        let (mut out, mut rstd) = (poisoned("out", &[n, c]), poisoned("rstd", &[n]));
        rmsnorm_forward(&mut out, &mut rstd, &inp, &weight, EPS).unwrap();
        let (mut want, mut want_rstd) = (vec![0.0; n * c], vec![0.0; n]);
        rmsnorm::reference::forward(&mut want, &mut want_rstd, &wide(&inp), &wide(&weight), EPS as f64);
        close(&format!("out {n} {c}"), &out, &want, F32);
        close("rstd", &rstd, &want_rstd, F32);

        let (mut dinp, mut dweight) = (tensor("dinp", &[n, c]), tensor("dweight", &[c]));
        let (mut only_dinp, mut want_dinp, mut want_dweight) =
            (tensor("dinp", &[n, c]), wide(&dinp), wide(&dweight));
        rmsnorm_backward(&mut dinp, Some(&mut dweight), &dout, &inp, &rstd, &weight).unwrap();
        rmsnorm_backward(&mut only_dinp, None, &dout, &inp, &rstd, &weight).unwrap();
        let (dout, inp, weight) = (wide(&dout), wide(&inp), wide(&weight));
        rmsnorm::reference::backward(&mut want_dinp, &mut want_dweight, &dout, &inp, &want_rstd, &weight);
        close(&format!("dinp {n} {c}"), &dinp, &want_dinp, F32);
        close(&format!("dweight {n} {c}"), &dweight, &want_dweight, F32);
        same_bits("dinp without dweight", dinp.to_f32_vec().unwrap(), only_dinp.to_f32_vec().unwrap());
    }
}

#[test]
fn add_rmsnorm_is_the_addition_and_rmsnorm_to_the_bit() {
    for (n, c) in SHAPES {
        let (inp, resid, weight) = (tensor("inp", &[n, c]), tensor("resid", &[n, c]), tensor("weight", &[c]));
        let (mut out, mut rstd, mut sum) =
            (poisoned("out", &[n, c]), poisoned("rstd", &[n]), poisoned("sum", &[n, c]));
        add_rmsnorm_forward(&mut out, &mut rstd, &mut sum, &inp, &resid, &weight, EPS).unwrap();
        let total: Vec<f32> =
            inp.to_f32_vec().unwrap().iter().zip(resid.to_f32_vec().unwrap()).map(|(a, b)| a + b).collect();
        same_bits("resid_out", sum.to_f32_vec().unwrap(), &total);
        let (mut plain, mut plain_rstd) = (poisoned("out", &[n, c]), poisoned("rstd", &[n]));
        rmsnorm_forward(&mut plain, &mut plain_rstd, &sum, &weight, EPS).unwrap();
        same_bits("out", out.to_f32_vec().unwrap(), plain.to_f32_vec().unwrap());
        same_bits("rstd", rstd.to_f32_vec().unwrap(), plain_rstd.to_f32_vec().unwrap());
    }
}

#[test]
fn rope_equals_its_oracle_and_its_backward_turns_back() {
    for (n, heads, hs) in [(1, 1, 2), (7, 3, 64), (13, 2, 80), (263, 9, 64), (5, 1, 6)] {
        let (x, positions) =
            (tensor("x", &[n, heads * hs]), (0..n).map(|i| (i * 5 % 17) as u32).collect::<Vec<_>>());
        let angles = values("angles", 17 * hs / 2);
        let table = |name, f: fn(f32) -> f32| {
            Tensor::from_f32(name, &[17, hs / 2], &angles.iter().map(|&a| f(a * 3.2)).collect::<Vec<_>>())
                .unwrap()
        };
        let (cos, sin, ids) = (table("cos", f32::cos), table("sin", f32::sin), u32s("positions", &positions));
        let mut turned = tensor("x", &[n, heads * hs]);
        rope_forward(&mut turned, &ids, &cos, &sin, hs).unwrap();
        let mut want = wide(&x);
        rope::reference::rotate(&mut want, &positions, &wide(&cos), &wide(&sin), hs, heads * hs, 1.0);
        close("forward", &turned, &want, F32);
        rope_backward(&mut turned, &ids, &cos, &sin, hs).unwrap();
        close("there and back", &turned, &wide(&x), F32);
    }
    let (mut x, table) = (tensor("x", &[2, 8]), tensor("cos", &[5, 2]));
    let sin = tensor("sin", &[5, 2]);
    refused(
        rope_forward(&mut x, &u32s("positions", &[0, 5]), &table, &sin, 4),
        &["entry 1 of positions", "is 5", "cos"],
    );
    refused(
        rope_forward(&mut x, &u32s("positions", &[0, 1]), &table, &sin, 6),
        &["x F32 [2, 8]", "cos", "sin"],
    );
}

#[test]
fn gated_activations_equal_their_oracle() {
    use Activation::*;
    for ((n, f), kind) in SHAPES.into_iter().flat_map(|s| [Silu, Gelu, GeluTanh].map(|kind| (s, kind))) {
        let mut gate = tensor("gate", &[n, f]);
        // From where the sigmoid vanishes to where it is 1.
        change(&mut gate, |gate| gate.iter_mut().step_by(3).for_each(|g| *g *= 40.0));
        let (up, dout) = (tensor("up", &[n, f]), tensor("dout", &[n, f]));
        let mut out = poisoned("out", &[n, f]);
        let (mut dgate, mut dup) = (poisoned("dgate", &[n, f]), poisoned("dup", &[n, f]));
        gated_forward(&mut out, &gate, &up, kind).unwrap();
        gated_backward(&mut dgate, &mut dup, None, &dout, &gate, &up, kind).unwrap();
        let (gate, up, dout) = (wide(&gate), wide(&up), wide(&dout));
        let (mut want, mut want_gate, mut want_up) = (vec![0.0; n * f], vec![0.0; n * f], vec![0.0; n * f]);
        swiglu::reference::forward(&mut want, &gate, &up, kind);
        swiglu::reference::backward(&mut want_gate, &mut want_up, &dout, &gate, &up, kind);
        close("out", &out, &want, F32);
        close("dgate", &dgate, &want_gate, F32);
        close("dup", &dup, &want_up, F32);
    }
}

#[test]
fn the_oracles_equal_finite_differences() {
    let (n, c) = (3, 8);
    let (x, w, dout) =
        (wide(&tensor("x", &[n, c])), wide(&tensor("w", &[c])), wide(&tensor("dout", &[n, c])));
    let norm = |x: &[f64], w: &[f64]| {
        let (mut out, mut rstd) = (vec![0.0; n * c], vec![0.0; n]);
        rmsnorm::reference::forward(&mut out, &mut rstd, x, w, 1e-3);
        (inner(&out, &dout), rstd)
    };
    let (mut dx, mut dw) = (vec![0.0; n * c], vec![0.0; c]);
    rmsnorm::reference::backward(&mut dx, &mut dw, &dout, &x, &norm(&x, &w).1, &w);
    finite_differences("rmsnorm dinp", &x, &dx, |x| norm(x, &w).0);
    finite_differences("rmsnorm dweight", &w, &dw, |w| norm(&x, w).0);

    let up = wide(&tensor("up", &[n, c]));
    for kind in [Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
        let gated = |gate: &[f64], up: &[f64]| {
            let mut out = vec![0.0; n * c];
            swiglu::reference::forward(&mut out, gate, up, kind);
            inner(&out, &dout)
        };
        let (mut dgate, mut dup) = (vec![0.0; n * c], vec![0.0; n * c]);
        swiglu::reference::backward(&mut dgate, &mut dup, &dout, &x, &up, kind);
        finite_differences(&format!("{kind:?} dgate"), &x, &dgate, |gate| gated(gate, &up));
        finite_differences(&format!("{kind:?} dup"), &up, &dup, |up| gated(&x, up));
    }

    let (cos, sin) = (wide(&tensor("cos", &[4, 2])), wide(&tensor("sin", &[4, 2])));
    let rotate = |x: &[f64], sign| {
        let mut x = x.to_vec();
        rope::reference::rotate(&mut x, &[3, 0, 1], &cos, &sin, 4, c, sign);
        x
    };
    finite_differences("rope dx", &x, &rotate(&dout, -1.0), |x| inner(&rotate(x, 1.0), &dout));

    let (ids, table) = ([2u32, 0, 2], wide(&tensor("table", &[4, c])));
    let mut dtable = vec![0.0; 4 * c];
    embedding::reference::backward(&mut dtable, &dout, &ids, c);
    finite_differences("embedding dweight", &table, &dtable, |table| {
        let mut out = vec![0.0; n * c];
        embedding::reference::forward(&mut out, &ids, table, c);
        inner(&out, &dout)
    });
}

#[test]
fn rmsnorm_rope_and_swiglu_equal_pytorch() {
    let golden = Golden::open();
    let t = |name: &str| golden.tensor(name);
    let check = |name: &str, got: &Tensor| close(name, got, &wide(&t(name)), F32);
    let (inp, weight, dout) = (t("rmsnorm.inp"), t("rmsnorm.weight"), t("rmsnorm.dout"));
    let (n, c) = inp.rows_cols();
    let (mut out, mut rstd) = (poisoned("out", &[n, c]), poisoned("rstd", &[n]));
    rmsnorm_forward(&mut out, &mut rstd, &inp, &weight, EPS).unwrap();
    check("rmsnorm.out", &out);
    let zeros = |dims: &[usize]| Tensor::zeros("zeros", DType::F32, dims).unwrap();
    let (mut dinp, mut dweight) = (zeros(&[n, c]), zeros(&[c]));
    rmsnorm_backward(&mut dinp, Some(&mut dweight), &dout, &inp, &rstd, &weight).unwrap();
    check("rmsnorm.dinp", &dinp);
    check("rmsnorm.dweight", &dweight);

    let (mut x, mut dx, cos, sin) = (t("rope.x"), t("rope.dout"), t("rope.cos"), t("rope.sin"));
    let positions = u32s("positions", &golden.u32s("rope.positions"));
    rope_forward(&mut x, &positions, &cos, &sin, 16).unwrap();
    check("rope.out", &x);
    rope_backward(&mut dx, &positions, &cos, &sin, 16).unwrap();
    check("rope.dx", &dx);

    let (gate, up, dout) = (t("swiglu.gate"), t("swiglu.up"), t("swiglu.dout"));
    let mut out = poisoned("out", gate.shape());
    let (mut dgate, mut dup) = (poisoned("dgate", gate.shape()), poisoned("dup", gate.shape()));
    swiglu_forward(&mut out, &gate, &up).unwrap();
    swiglu_backward(&mut dgate, &mut dup, &dout, &gate, &up).unwrap();
    check("swiglu.out", &out);
    check("swiglu.dgate", &dgate);
    check("swiglu.dup", &dup);
}

#[test]
fn rows_and_sums_have_the_same_bits_for_any_number_of_threads_and_rows() {
    let (n, c) = (1000, 576);
    let (inp, weight, dout) = (tensor("inp", &[n, c]), tensor("weight", &[c]), tensor("dout", &[n, c]));
    let ids: Vec<u32> = (0..n).map(|i| (i * i % 97) as u32).collect();
    let run = |rows: usize| {
        let (inp, dout) = (inp.slice(0..rows).unwrap(), dout.slice(0..rows).unwrap());
        let (mut out, mut rstd) = (poisoned("out", &[rows, c]), poisoned("rstd", &[rows]));
        rmsnorm_forward(&mut out, &mut rstd, &inp, &weight, EPS).unwrap();
        let (mut dinp, mut dweight) =
            (tensor("dinp", &[n, c]).into_rows(0..rows).unwrap(), tensor("dweight", &[c]));
        rmsnorm_backward(&mut dinp, Some(&mut dweight), &dout, &inp, &rstd, &weight).unwrap();
        let mut table = tensor("table", &[97, c]);
        embedding_backward(&mut table, &dout, &u32s("tokens", &ids[..rows])).unwrap();
        let mut gated = poisoned("gated", &[rows, c]);
        swiglu_forward(&mut gated, &inp, &dout).unwrap();
        [out, dinp, gated, dweight, table]
    };
    let (one, few) = (with_threads(1, || run(n)), run(3));
    let many = with_threads(4, || run(n));
    for (a, b) in one.iter().zip(&many) {
        same_bits(&format!("{a:?}"), a.to_f32_vec().unwrap(), b.to_f32_vec().unwrap());
    }
    for (a, b) in one[..3].iter().zip(&few) {
        same_bits(
            &format!("three rows of {a:?}"),
            &a.to_f32_vec().unwrap()[..3 * c],
            b.to_f32_vec().unwrap(),
        );
    }
}

#[test]
fn errors_print_every_tensor_and_outputs_may_not_overlap() {
    let (a, b, w) = (tensor("alpha", &[4, 6]), tensor("beta", &[4, 6]), tensor("gamma", &[5]));
    let (mut out, mut rstd) = (poisoned("out", &[4, 6]), poisoned("rstd", &[4]));
    let names = ["out F32 [4, 6]", "rstd F32 [4]", "alpha F32 [4, 6]", "gamma F32 [5]"];
    refused(rmsnorm_forward(&mut out, &mut rstd, &a, &w, EPS), &names);
    let mut sum = poisoned("sum", &[4, 6]);
    refused(
        add_rmsnorm_forward(&mut out, &mut rstd, &mut sum, &a, &b, &w, EPS),
        &["beta", "sum", "gamma F32 [5]"],
    );
    refused(
        rmsnorm_backward(&mut out, None, &a, &b, &rstd, &w),
        &["rmsnorm_backward", "alpha", "gamma F32 [5]"],
    );
    let relu = gated_forward(&mut out, &a, &b, Activation::Relu);
    refused(relu, &["Relu", "does not gate", "GeluTanh"]);
    refused(swiglu_forward(&mut out, &a, &w), &["swiglu_forward", "out", "alpha", "gamma F32 [5]"]);
    let integers = u32s("ids", &[1, 2]).into_shape(&[1, 2]).unwrap();
    let mut out = poisoned("out", &[1, 2]);
    refused(swiglu_forward(&mut out, &integers, &integers), &["ids U32 [1, 2] is not F32"]);
}
