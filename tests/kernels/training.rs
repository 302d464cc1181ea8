//! The loss, low-rank updates, the optimizer and the gradient norm.
use sdrrl::{
    ops::{
        adamw::{self, AdamW, AdamWTable, Group},
        cross_entropy::{
            self, Head, LossScratch, cross_entropy_forward, linear_cross_entropy_forward,
            linear_cross_entropy_forward_backward,
        },
        dora::{self, dora_backward, dora_forward, dora_norms},
        grad_norm::GradNorm,
        lora::{self, LowRank, lora_backward, lora_backward_input, lora_forward},
    },
    tensor::{
        Arena,
        DType::{self, Bf16, F32},
        Reader, Tensor,
    },
};

use super::*;

fn loss(device: &Device, dtype: DType, softcap: Option<f32>) {
    let (n, c, v) = (37, 72, 301);
    let ((h, _), (w, _)) = (random("h", dtype, n * c), random("w", dtype, v * c));
    let targets: Vec<u32> = (0..n as u32).map(|i| i * 53 % v as u32).collect();
    let weights: Vec<f32> = (0..n).map(|i| [1.0, 0.0, 0.5][i % 3]).collect();
    // 16 rows at once: three chunks, the last one short.
    let (mut scratch, _) =
        Arena::build("scratch", device, |a| LossScratch::lay_out(a, dtype, n, v, c, 0)).unwrap();
    let (th, tw) = (put(device, dtype, &[n, c], &h), put(device, dtype, &[v, c], &w));
    let (tt, tweights) = (put_u32(device, &targets), put(device, F32, &[n], &weights));
    let (mut losses, mut dh) = (out(device, F32, &[n]), out(device, dtype, &[n, c]));
    let mut dw = put(device, F32, &[v, c], &vec![0.0; v * c]);
    let (head, cap) = (Head { weight: (&tw).into(), scale: 1.0, softcap }, softcap.map(f64::from));
    let (want, want_dh, want_dw) =
        cross_entropy::reference::forward_backward(&h, &w, &targets, &weights, [n, c, v], 0.3, cap);
    linear_cross_entropy_forward(&mut losses, &mut scratch, &th, head, &tt, &tweights).unwrap();
    assert_within("losses", &losses, &want, tolerance(dtype));
    linear_cross_entropy_forward_backward(
        &mut losses,
        &mut dh,
        Some(&mut dw),
        &mut scratch,
        &th,
        head,
        &tt,
        &tweights,
        0.3,
    )
    .unwrap();
    assert_within("losses", &losses, &want, tolerance(dtype));
    assert_near("dhidden", &dh, &want_dh);
    assert_within("dweight", &dw, &want_dw, tolerance(dtype));
}

/// The same from logits: a head that is the identity.
fn loss_of_logits(device: &Device) {
    let (n, v) = (7, 301);
    let (logits, _) = random("logits", F32, n * v);
    let logits: Vec<f32> = logits.iter().map(|x| x * 8.0).collect();
    let identity: Vec<f32> = (0..v * v).map(|i| if i / v == i % v { 1.0 } else { 0.0 }).collect();
    let targets: Vec<u32> = (0..n as u32).map(|i| i * 50).collect();
    let (want, ..) = cross_entropy::reference::forward_backward(
        &logits,
        &identity,
        &targets,
        &[1.0; 7],
        [n, v, v],
        1.0,
        None,
    );
    let mut held = put(device, F32, &[n, v], &logits);
    let mut losses = out(device, F32, &[n]);
    cross_entropy_forward(&mut losses, &mut held, &put_u32(device, &targets)).unwrap();
    assert_within("losses", &losses, &want, tolerance(F32));
    assert_eq!(held.to_f32_vec().unwrap(), logits);
}

fn low_rank(device: &Device, dtype: DType, sizes: [usize; 4]) {
    let [n, i, o, r] = sizes;
    let ((x, wx), (w, ww)) = (random("x", dtype, n * i), random("w", dtype, o * i));
    let ((a, _), (b, _), (d, wd)) =
        (random("a", F32, r * i), random("b", F32, o * r), random("d", dtype, n * o));
    // The tensor cores round the adapters; so does the reference.
    let [wa, wb] = [&a, &b].map(|x| x.iter().map(|&x| rounded(x, dtype) as f64).collect::<Vec<_>>());
    let (tx, tw, td) =
        (put(device, dtype, &[n, i], &x), put(device, dtype, &[o, i], &w), put(device, dtype, &[n, o], &d));
    let (ta, tb) = (put(device, F32, &[r, i], &a), put(device, F32, &[o, r], &b));
    let low = LowRank { a: &ta, b: &tb, scale: 2.0, scaled: false };
    let (mut y, mut u) = (out(device, dtype, &[n, o]), out(device, dtype, &[n, r]));
    lora_forward(&mut y, &mut u, &tx, &tw, None, low).unwrap();
    let (wy, wu) = lora::reference::forward(&wx, &ww, &wa, &wb, 2.0, sizes);
    assert_near("u", &u, &wu);
    assert_near("out", &y, &wy);
    let (mut da, mut db) =
        (put(device, F32, &[r, i], &vec![0.0; r * i]), put(device, F32, &[o, r], &vec![0.0; o * r]));
    let (mut du, mut dx) = (out(device, dtype, &[n, r]), put(device, dtype, &[n, i], &x));
    lora_backward(&mut da, &mut db, &mut du, &td, &u, &tx, low).unwrap();
    lora_backward_input(&mut dx, &td, &tw, &du, &ta, true).unwrap();
    let (mut wdx, wda, wdb) = lora::reference::backward(&wd, &wx, &wu, &ww, &wa, &wb, 2.0, sizes);
    wdx.iter_mut().zip(&wx).for_each(|(d, x)| *d += x);
    assert_near("dinp", &dx, &wdx);
    assert_within("da", &da, &wda, tolerance(dtype));
    assert_within("db", &db, &wdb, tolerance(dtype));
}

/// Norms of W + s B A, the columns' scale and its backward. The GPU's norms are of the adapters in f32.
fn dora(device: &Device, dtype: DType, [n, i, o, r]: [usize; 4]) {
    let ((w, ww), (a, wa), (b, wb)) =
        (random("w", dtype, o * i), random("a", F32, r * i), random("b", F32, o * r));
    let ((m, wm), (bias, wbias)) = (random("m", F32, o), random("bias", F32, o));
    let (ta, tb) = (put(device, F32, &[r, i], &a), put(device, F32, &[o, r], &b));
    let (tm, tbias) = (put(device, F32, &[o], &m), put(device, F32, &[o], &bias));
    let low = LowRank { a: &ta, b: &tb, scale: 2.0, scaled: false };
    let mut norms = out(device, F32, &[o]);
    dora_norms(&mut norms, &put(device, dtype, &[o, i], &w), low).unwrap();
    let want_norms = dora::reference::norms(&ww, &wa, &wb, 2.0, [i, o, r]);
    assert_near("norms", &norms, &want_norms);
    let ((z, wz), (d, wd)) = (random("z", dtype, n * o), random("d", dtype, n * o));
    for (bias, wbias) in [(None, vec![0.0; o]), (Some(&tbias), wbias)] {
        let (mut y, mut want) = (put(device, dtype, &[n, o], &z), wz.clone());
        dora_forward(&mut y, &tm, &norms, bias).unwrap();
        dora::reference::forward(&mut want, &wm, &want_norms, &wbias);
        assert_near("out", &y, &want);
    }
    let (mut dz, mut dm) = (put(device, dtype, &[n, o], &d), put(device, F32, &[o], &m));
    dora_backward(&mut dz, &mut dm, &put(device, dtype, &[n, o], &z), &tm, &norms).unwrap();
    let (mut want_dz, mut want_dm) = (wd, wm.clone());
    dora::reference::backward(&mut want_dz, &mut want_dm, &wz, &wm, &want_norms);
    assert_near("dz", &dz, &want_dz);
    assert_near("dmagnitude", &dm, &want_dm);
}

fn optimizer(device: &Device) {
    let sizes = [5, 4096, 1, 9000];
    let value = |name: &str, n: usize| random(&format!("{name}{n}"), F32, n);
    let group = |n: usize, lr_factor: f32, weight_decay: f32| Group {
        param: put(device, F32, &[n], &value("p", n).0),
        m: put(device, F32, &[n], &value("m", n).0),
        v: put(device, F32, &[n], &value("v", n).0.iter().map(|x| x.abs()).collect::<Vec<_>>()),
        grad: put(device, F32, &[n], &value("g", n).0),
        lr_factor,
        weight_decay,
    };
    let groups: Vec<Group> =
        sizes.iter().enumerate().map(|(i, &n)| group(n, 1.0 + i as f32, 0.1 * i as f32)).collect();
    let grads = groups.iter().map(|g| g.grad.to_device(device).unwrap()).collect();
    let state: Vec<[Reader; 3]> = groups.iter().map(|g| [&g.param, &g.m, &g.v].map(Tensor::reader)).collect();
    let norm = GradNorm::new(grads).unwrap().norm().unwrap();
    let want: f64 = sizes.iter().flat_map(|&n| value("g", n).1).map(|x| x * x).sum::<f64>().sqrt();
    assert!((norm / want - 1.0).abs() < 1e-12, "{norm} {want}");
    let h =
        AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.98, eps: 1e-8, weight_decay: 0.0, step: 3, grad_scale: 0.5 };
    AdamWTable::new(groups).unwrap().update(&h).unwrap();
    let read = |r: &Reader| Tensor::from_f32(r.name(), r.shape(), &r.to_f32_vec().unwrap()).unwrap();
    for (i, &n) in sizes.iter().enumerate() {
        let own = AdamW { lr: h.lr * (1.0 + i as f32), weight_decay: 0.1 * i as f32, ..h };
        let (p, m, v, g) = (value("p", n).1, value("m", n).1, value("v", n).1, value("g", n).1);
        let steps: Vec<_> =
            (0..n).map(|j| adamw::reference::step(p[j], m[j], v[j].abs(), g[j], &own)).collect();
        assert_near("param", &read(&state[i][0]), &steps.iter().map(|s| s.0).collect::<Vec<_>>());
        assert_near("m", &read(&state[i][1]), &steps.iter().map(|s| s.1).collect::<Vec<_>>());
        assert_near("v", &read(&state[i][2]), &steps.iter().map(|s| s.2).collect::<Vec<_>>());
    }
}

cases! {
    loss_f32(device) { loss(device, F32, None) }
    loss_bf16(device) { loss(device, Bf16, None) }
    loss_capped_f32(device) { loss(device, F32, Some(3.0)) }
    loss_capped_bf16(device) { loss(device, Bf16, Some(3.0)) }
    loss_of_given_logits(device) { loss_of_logits(device) }
    lora_f32(device) { low_rank(device, F32, [19, 40, 24, 3]) }
    lora_bf16(device) { low_rank(device, Bf16, [19, 72, 88, 8]) }
    lora_bf16_rings_go_round(device) { low_rank(device, Bf16, [24, 200, 216, 40]) }
    lora_bf16_rank_of_5(device) { low_rank(device, Bf16, [70, 72, 88, 5]) }
    lora_bf16_of_whole_tiles(device) { low_rank(device, Bf16, [136, 200, 264, 8]) }
    lora_bf16_of_whole_tiles_rank_of_5(device) { low_rank(device, Bf16, [136, 200, 264, 5]) }
    dora_f32(device) { dora(device, F32, [37, 300, 19, 3]) }
    dora_bf16(device) { dora(device, Bf16, [70, 72, 270, 40]) }
    dora_bf16_whole(device) { dora(device, Bf16, [32, 256, 264, 8]); dora(device, Bf16, [3, 600, 8, 70]) }
    adamw_and_norm(device) { optimizer(device) }
}
