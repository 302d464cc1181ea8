//! The loss, the optimizer and the gradient norm against naive sums, finite differences and PyTorch's numbers.
use sdrrl::{
    ops::{
        activation,
        adamw::{self, AdamW, adamw_update},
        cross_entropy::{self, Head, LossScratch},
        gemm::linear_forward,
        grad_norm::global_norm,
    },
    tensor::{Arena, DType, Tensor},
};

use crate::common::{assert_close, uniform, with_threads};

struct Case {
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    token_weights: Tensor,
    scratch: LossScratch,
}

fn case(n: usize, c: usize, v: usize) -> Case {
    let hidden = Tensor::from_f32("hidden", &[n, c], &uniform("hidden", n * c)).unwrap();
    let weight = Tensor::from_f32("weight", &[v, c], &uniform("weight", v * c)).unwrap();
    let targets: Vec<u32> = (0..n).map(|i| ((i * 7919 + 3) % v) as u32).collect();
    let token_weights: Vec<f32> = (0..n).map(|i| [1.0, 0.0, 0.5][i % 3]).collect();
    // 16 rows a chunk: 50 rows of which two thirds count take three chunks.
    let (scratch, _) =
        Arena::build("scratch", &Default::default(), |a| LossScratch::lay_out(a, DType::F32, n, v, c, 0))
            .unwrap();
    Case {
        hidden,
        weight,
        targets: Tensor::from_u32("targets", &[n], &targets).unwrap(),
        token_weights: Tensor::from_f32("token_weights", &[n], &token_weights).unwrap(),
        scratch,
    }
}

fn to_f32(x: &[f64]) -> Vec<f32> {
    x.iter().map(|&x| x as f32).collect()
}

#[test]
fn loss_and_gradients_agree_with_the_naive_sum() {
    let cases = [(1, 3, 5, None), (50, 33, 101, None), (49, 64, 257, None), (50, 33, 101, Some(2.0f32))];
    for (n, c, v, softcap) in cases {
        let mut t = case(n, c, v);
        let head = Head { weight: (&t.weight).into(), scale: 1.0, softcap };
        let mut losses = Tensor::zeros("losses", DType::F32, &[n]).unwrap();
        let mut dhidden = Tensor::zeros("dhidden", DType::F32, &[n, c]).unwrap();
        let mut dweight = Tensor::zeros("dweight", DType::F32, &[v, c]).unwrap();
        cross_entropy::linear_cross_entropy_forward_backward(
            &mut losses,
            &mut dhidden,
            Some(&mut dweight),
            &mut t.scratch,
            &t.hidden,
            head,
            &t.targets,
            &t.token_weights,
            0.25,
        )
        .unwrap();
        let (want, want_dhidden, want_dweight) = cross_entropy::reference::forward_backward(
            &t.hidden.to_f32_vec().unwrap(),
            &t.weight.to_f32_vec().unwrap(),
            &t.targets.to_u32_vec().unwrap(),
            &t.token_weights.to_f32_vec().unwrap(),
            [n, c, v],
            0.25,
            softcap.map(f64::from),
        );
        assert_close("losses", losses.to_f32_vec().unwrap(), &to_f32(&want), 1e-6);
        assert_close("dhidden", dhidden.to_f32_vec().unwrap(), &to_f32(&want_dhidden), 2e-6);
        assert_close("dweight", dweight.to_f32_vec().unwrap(), &to_f32(&want_dweight), 2e-6);
        let mut alone = Tensor::zeros("alone", DType::F32, &[n]).unwrap();
        cross_entropy::linear_cross_entropy_forward(
            &mut alone,
            &mut t.scratch,
            &t.hidden,
            head,
            &t.targets,
            &t.token_weights,
        )
        .unwrap();
        assert_eq!(alone.to_f32_vec().unwrap(), losses.to_f32_vec().unwrap());
        let mut logits = Tensor::zeros("logits", DType::F32, &[n, v]).unwrap();
        linear_forward(&mut logits, &t.hidden, &t.weight, None).unwrap();
        if let Some(cap) = softcap {
            activation::softcap(&mut logits, cap).unwrap();
        }
        cross_entropy::cross_entropy_forward(&mut alone, &mut logits, &t.targets).unwrap();
        let weighted =
            t.token_weights.to_f32_vec().unwrap().into_iter().map(|w| if w == 0.0 { 0.0 } else { 1.0 });
        let of_logits: Vec<f32> =
            alone.to_f32_vec().unwrap().iter().zip(weighted).map(|(x, w)| x * w).collect();
        assert_close("losses of logits", &of_logits, &to_f32(&want), 1e-6);
    }
}

#[test]
fn losses_of_logits_refuse_targets_beyond_the_vocabulary() {
    let mut logits = Tensor::zeros("logits", DType::F32, &[2, 5]).unwrap();
    let mut losses = Tensor::zeros("losses", DType::F32, &[2]).unwrap();
    let mut fails = |targets: &[u32]| {
        let targets = Tensor::from_u32("targets", &[targets.len()], targets).unwrap();
        cross_entropy::cross_entropy_forward(&mut losses, &mut logits, &targets).unwrap_err().to_string()
    };
    assert!(fails(&[0, 5]).contains("targets"));
    assert!(fails(&[0]).contains("targets"));
}

#[test]
fn the_reference_gradient_is_the_slope_of_the_loss() {
    [None, Some(0.8)].into_iter().for_each(reference_gradient);
}

fn reference_gradient(softcap: Option<f64>) {
    let (n, c, v) = (4, 5, 7);
    let t = case(n, c, v);
    let hidden = t.hidden.to_f32_vec().unwrap();
    let loss = |hidden: &[f32]| {
        let (losses, ..) = cross_entropy::reference::forward_backward(
            hidden,
            &t.weight.to_f32_vec().unwrap(),
            &t.targets.to_u32_vec().unwrap(),
            &t.token_weights.to_f32_vec().unwrap(),
            [n, c, v],
            1.0,
            softcap,
        );
        losses.iter().zip(t.token_weights.to_f32_vec().unwrap()).map(|(l, w)| l * w as f64).sum::<f64>()
    };
    let (_, dhidden, _) = cross_entropy::reference::forward_backward(
        &hidden,
        &t.weight.to_f32_vec().unwrap(),
        &t.targets.to_u32_vec().unwrap(),
        &t.token_weights.to_f32_vec().unwrap(),
        [n, c, v],
        1.0,
        softcap,
    );
    for i in 0..n * c {
        let shifted = |by: f32| {
            let mut h = hidden.clone();
            h[i] += by;
            (loss(&h), h[i])
        };
        let ((up, x1), (down, x0)) = (shifted(1e-3), shifted(-1e-3));
        let slope = (up - down) / (x1 - x0) as f64;
        assert!((slope - dhidden[i]).abs() < 1e-5, "{i}: {slope} {}", dhidden[i]);
    }
}

/// torch 2.15: p = [1.0, -2.0, 0.5], lr 0.1, betas (0.9, 0.999), eps 1e-8, weight_decay 0.01; gradients g, then 2g.
#[test]
fn adamw_takes_pytorchs_steps() {
    let tensor = |name: &str, x: [f32; 3]| Tensor::from_f32(name, &[3], &x).unwrap();
    let (mut p, mut m, mut v) = (tensor("p", [1.0, -2.0, 0.5]), tensor("m", [0.0; 3]), tensor("v", [0.0; 3]));
    let hyper = |step| AdamW {
        lr: 0.1,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.01,
        step,
        grad_scale: 1.0,
    };
    for (step, g) in [(1, [0.1, -0.2, 0.3]), (2, [0.2, -0.4, 0.6])] {
        adamw_update(&mut p, &mut m, &mut v, &tensor("g", g), &hyper(step)).unwrap();
    }
    assert_close("p", p.to_f32_vec().unwrap(), &[0.801_582_8, -1.799_583_9, 0.302_582_3], 1e-6);
    let mut want = (1.0, 0.0, 0.0);
    for (step, g) in [(1, 0.1f32), (2, 0.2)] {
        want = adamw::reference::step(want.0, want.1, want.2, g as f64, &hyper(step));
    }
    assert_close("p[0]", &p.to_f32_vec().unwrap()[..1], &[want.0 as f32], 1e-6);
}

#[test]
fn the_norm_is_the_same_on_any_number_of_threads() {
    let a = Tensor::from_f32("a", &[100_003], &uniform("a", 100_003)).unwrap();
    let b = Tensor::from_f32("b", &[7], &uniform("b", 7)).unwrap();
    let one = with_threads(1, || global_norm(&[&a, &b]).unwrap());
    for threads in [2, 3] {
        assert_eq!(one.to_bits(), with_threads(threads, || global_norm(&[&a, &b]).unwrap()).to_bits());
    }
    let squares = |t: &Tensor| t.to_f32_vec().unwrap().iter().map(|&x| x as f64 * x as f64).sum::<f64>();
    assert!((one - (squares(&a) + squares(&b)).sqrt()).abs() < 1e-9);
}
