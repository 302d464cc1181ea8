//! The divergence from the base model: PyTorch's numbers, the naive sum, and rows that depend on nothing but themselves.
use sdrrl::{
    ops::{
        cross_entropy::{Head, LossScratch},
        kl_divergence::{Clip, Mixed, linear_kl_divergence, reference},
    },
    tensor::{Arena, DType},
};

use super::*;

/// As f32 PyTorch agrees with us.
const PARITY: f64 = 1e-5;

struct Case {
    hidden: Tensor,
    base: Tensor,
    head: Tensor,
    targets: Tensor,
    weights: Tensor,
    scale: f32,
    cap: Option<f32>,
    mixed: Mixed,
    clip: Option<f32>,
}

impl Case {
    fn of(name: &str, n: usize, c: usize, v: usize, cap: Option<f32>) -> Case {
        let targets: Vec<u32> = (0..n).map(|i| (i * 7919 % v) as u32).collect();
        Case {
            hidden: tensor(&format!("{name} hidden"), &[n, c]),
            base: tensor(&format!("{name} base"), &[n, c]),
            head: tensor(&format!("{name} head"), &[v, c]),
            targets: u32s("targets", &targets),
            weights: Tensor::from_f32("weights", &[n], &values("weights", n)).unwrap(),
            scale: 1.0,
            cap,
            mixed: Mixed { hard: 0.5, soft: 0.75 },
            clip: None,
        }
    }

    /// (losses, divergences, dhidden, clipped divergences) of `rows`, the others poisoned; `at_once` limits the scratch.
    fn run(&self, rows: &[u32], at_once: usize) -> [Tensor; 4] {
        self.tried(rows, at_once).unwrap()
    }

    fn tried(&self, rows: &[u32], at_once: usize) -> anyhow::Result<[Tensor; 4]> {
        let ((n, c), v) = (self.hidden.rows_cols(), self.head.shape()[0]);
        let lay_out = |a: &mut Arena| LossScratch::lay_out(a, DType::F32, at_once, v, c, 1 << 20);
        let (mut scratch, _) = Arena::build("scratch", &Default::default(), lay_out).unwrap();
        let one = |name: &str| poisoned(name, &[n]);
        let mut out = [one("losses"), one("divergences"), poisoned("dhidden", &[n, c]), one("clipped")];
        let [losses, divergences, dhidden, clipped] = &mut out;
        let clip = self.clip.map(|most| Clip { most, clipped });
        let head = Head { weight: (&self.head).into(), scale: self.scale, softcap: self.cap };
        let (states, all) = ((&self.hidden, &self.base), &mut scratch);
        let (t, w, d) = (&self.targets, &self.weights, Some(dhidden));
        linear_kl_divergence(losses, divergences, d, all, states, head, t, w, rows, self.mixed, clip)?;
        Ok(out)
    }
}

fn all(n: usize) -> Vec<u32> {
    (0..n as u32).collect()
}

#[test]
fn losses_and_gradients_are_pytorchs() {
    let golden = Golden::of("kl");
    for name in ["near", "far", "capped", "clipped", "clipped_capped"] {
        let t = |part: &str| golden.tensor(&format!("{name}.{part}"));
        let mixed = t("mixed").to_f32_vec().unwrap();
        let case = Case {
            hidden: t("hidden"),
            base: t("base"),
            head: t("head"),
            targets: u32s("targets", &golden.u32s(&format!("{name}.targets"))),
            weights: t("weights"),
            scale: 1.0,
            cap: (mixed[2] > 0.0).then_some(mixed[2]),
            mixed: Mixed { hard: mixed[0], soft: mixed[1] },
            clip: (mixed[3] > 0.0).then_some(mixed[3]),
        };
        let [losses, divergences, dhidden, clipped] = case.run(&all(case.weights.len()), 64);
        if case.clip.is_some() {
            close(&format!("{name} clipped"), &clipped, &wide(&t("clipped64")), PARITY);
        }
        close(&format!("{name} nll"), &losses, &wide(&t("nll")), PARITY);
        close(&format!("{name} kl"), &divergences, &wide(&t("kl64")), PARITY);
        // In f32 PyTorch is off itself.
        let (kl, kl64) = (wide(&t("kl")), wide(&t("kl64")));
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
        let own = norm(&mut kl.iter().zip(&kl64).map(|(a, b)| a - b)) / norm(&mut kl64.iter().copied());
        close(&format!("{name} kl in f32"), &divergences, &kl, PARITY + own);
        assert!(own < 2.0 * PARITY, "{name}: {own}");
        close(&format!("{name} dhidden"), &dhidden, &wide(&t("dhidden")), PARITY);
    }
}

/// Half the matrix and a factor of 2 are the same head: every bit of what is a sum of its products.
#[test]
fn the_heads_factor_is_one_of_its_matrix() {
    for (cap, clip) in [(None, None), (Some(2.0), Some(0.001))] {
        let plain = Case { clip, ..Case::of("scaled", 21, 33, 100, cap) };
        let half: Vec<f32> = plain.head.to_f32_vec().unwrap().iter().map(|x| x / 2.0).collect();
        let head = Tensor::from_f32("half", plain.head.shape(), &half).unwrap();
        let want = plain.run(&all(21), 64);
        let got = Case { head, scale: 2.0, ..plain }.run(&all(21), 64);
        for (got, want) in got.iter().zip(&want) {
            // What is not asked for stays NaN.
            let bits = |t: &Tensor| t.to_f32_vec().unwrap().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(got), bits(want), "{want:?}");
        }
    }
}

#[test]
fn they_agree_with_the_naive_sum_over_awkward_shapes() {
    for (n, c, v, cap, clip) in [
        (1, 3, 5, None, None),
        (50, 33, 101, None, None),
        (13, 64, 257, None, None),
        (21, 33, 1000, Some(2.0), None),
        (1, 3, 5, None, Some(0.02)),
        (50, 33, 101, None, Some(0.003)),
        (21, 33, 1000, Some(2.0), Some(0.001)),
    ] {
        let case = Case { clip, ..Case::of("naive", n, c, v, cap) };
        let (h, b) = (case.hidden.to_f32_vec().unwrap(), case.base.to_f32_vec().unwrap());
        let (w, weights) = (case.head.to_f32_vec().unwrap(), case.weights.to_f32_vec().unwrap());
        let targets = case.targets.to_u32_vec().unwrap();
        let (nll, kl, most, dhidden) = reference::forward_backward(
            [&h, &b, &w],
            &targets,
            &weights,
            &all(n),
            [n, c, v],
            [0.5, 0.75],
            cap.map(f64::from),
            clip.map(f64::from),
        );
        let [losses, divergences, got, clipped] = case.run(&all(n), n);
        if clip.is_some() {
            close("clipped", &clipped, &most, F32);
            assert!(
                n == 1 || kl.iter().zip(&most).any(|(all, most)| *most < 0.9 * all),
                "nothing is clipped"
            );
        }
        close("nll", &losses, &nll, F32);
        close("kl", &divergences, &kl, F32);
        close("dhidden", &got, &dhidden, F32);
    }
}

/// A row has its bits alone, among others, in any chunk and with any number of threads; other rows are not touched.
#[test]
fn a_row_depends_on_nothing_but_itself() {
    let (n, c, v) = (41, 48, 3001);
    let case = Case { clip: Some(1e-3), ..Case::of("alone", n, c, v, None) };
    let whole = case.run(&all(n), n);
    for threads in [1, 3] {
        let got = with_threads(threads, || case.run(&all(n), 5));
        (0..4).for_each(|i| {
            same_bits("chunks of 2", got[i].to_f32_vec().unwrap(), whole[i].to_f32_vec().unwrap())
        });
    }
    let some: Vec<u32> = vec![0, 3, 4, 17, 40];
    let got = case.run(&some, n);
    for (part, width) in [(0, 1), (1, 1), (2, c), (3, 1)] {
        let (got, whole) = (got[part].to_f32_vec().unwrap(), whole[part].to_f32_vec().unwrap());
        for i in 0..n {
            let at = i * width..(i + 1) * width;
            if some.contains(&(i as u32)) {
                same_bits("some rows", &got[at.clone()], &whole[at]);
            } else {
                assert!(got[at].iter().all(|x| x.is_nan()), "row {i} was written");
            }
        }
    }
}

#[test]
fn equal_models_do_not_diverge_and_bad_operands_are_refused() {
    let mut case = Case::of("equal", 7, 24, 301, None);
    case.base = case.hidden.to_device(&Device::Cpu).unwrap();
    case.mixed = Mixed { hard: 0.0, soft: 1.0 };
    let [_, divergences, dhidden, _] = case.run(&all(7), 7);
    assert!(
        divergences.to_f32_vec().unwrap().iter().chain(&dhidden.to_f32_vec().unwrap()).all(|x| *x == 0.0)
    );
    case.clip = Some(0.0);
    assert!(case.tried(&[1], 7).is_err(), "a limit of 0 is none");
    case.clip = None;
    for rows in [vec![0, 7], vec![3, 3], vec![4, 1]] {
        assert!(case.tried(&rows, 7).is_err(), "{rows:?}");
    }
}

/// A limit that no term reaches changes no bit.
#[test]
fn a_clip_beyond_every_term_is_none() {
    let (n, c, v) = (9, 24, 301);
    let case = Case::of("beyond", n, c, v, None);
    let [_, kl, dhidden, _] = case.run(&all(n), n);
    let [_, same, also, clipped] = Case { clip: Some(1e3), ..case }.run(&all(n), n);
    for (a, b) in [(&same, &kl), (&clipped, &kl), (&also, &dhidden)] {
        same_bits("clip", a.to_f32_vec().unwrap(), b.to_f32_vec().unwrap());
    }
}
