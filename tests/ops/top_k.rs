//! A teacher's likeliest tokens and the divergence from them: PyTorch's numbers, the naive sums, the whole divergence where everything is kept, and rows that depend on nothing but
//! themselves.
use sdrrl::{
    data::top_k::TopK,
    ops::{
        cross_entropy::{Head, LossScratch},
        kl_divergence::{Mixed, linear_kl_divergence},
        top_k::{self, linear_top_k},
        top_k_divergence::{linear_top_k_divergence, reference},
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
    k: usize,
}

impl Case {
    fn of(name: &str, [n, c, v, k]: [usize; 4], cap: Option<f32>) -> Case {
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
            k,
        }
    }

    fn golden(golden: &Golden, name: &str) -> Case {
        let t = |part: &str| golden.tensor(&format!("{name}.{part}"));
        let how = t("how").to_f32_vec().unwrap();
        Case {
            hidden: t("hidden"),
            base: t("base"),
            head: t("head"),
            targets: u32s("targets", &golden.u32s(&format!("{name}.targets"))),
            weights: t("weights"),
            scale: 1.0,
            cap: (how[2] > 0.0).then_some(how[2]),
            mixed: Mixed { hard: how[0], soft: how[1] },
            k: how[3] as usize,
        }
    }

    fn scratch(&self, at_once: usize) -> LossScratch {
        let (c, v) = (self.hidden.shape()[1], self.head.shape()[0]);
        let lay_out = |a: &mut Arena| LossScratch::lay_out(a, DType::F32, at_once, v, c, 1 << 20);
        Arena::build("scratch", &Default::default(), lay_out).unwrap().0
    }

    fn head(&self) -> Head<'_> {
        Head { weight: (&self.head).into(), scale: self.scale, softcap: self.cap }
    }

    fn teacher(&self, rows: &[u32], at_once: usize) -> TopK {
        linear_top_k(&mut self.scratch(at_once), &self.base, self.head(), rows, self.k).unwrap()
    }

    /// (losses, divergences, dhidden) of `rows`, the others poisoned; `at_once` limits the scratch.
    fn run(&self, rows: &[u32], at_once: usize) -> [Tensor; 3] {
        self.tried((rows, &self.teacher(rows, at_once)), at_once).unwrap()
    }

    fn tried(&self, teacher: (&[u32], &TopK), at_once: usize) -> anyhow::Result<[Tensor; 3]> {
        let (n, c) = self.hidden.rows_cols();
        let one = |name: &str| poisoned(name, &[n]);
        let mut out = [one("losses"), one("divergences"), poisoned("dhidden", &[n, c])];
        let [losses, divergences, dhidden] = &mut out;
        let (h, t, w, s) = (&self.hidden, &self.targets, &self.weights, &mut self.scratch(at_once));
        linear_top_k_divergence(
            losses,
            divergences,
            Some(dhidden),
            s,
            h,
            self.head(),
            t,
            w,
            teacher,
            self.mixed,
        )?;
        Ok(out)
    }
}

fn all(n: usize) -> Vec<u32> {
    (0..n as u32).collect()
}

#[test]
fn choices_losses_and_gradients_are_pytorchs() {
    let golden = Golden::of("top_k");
    for name in ["near", "far", "capped", "sure", "one", "everything"] {
        let case = Case::golden(&golden, name);
        let rows = all(case.weights.len());
        let teacher = case.teacher(&rows, 64);
        assert_eq!(teacher.ids, golden.u32s(&format!("{name}.ids")), "{name}");
        let t = |part: &str| wide(&golden.tensor(&format!("{name}.{part}")));
        let kept: Vec<f32> = (0..rows.len()).flat_map(|r| teacher.row(r).1[..case.k].to_vec()).collect();
        let rest: Vec<f32> = (0..rows.len()).map(|r| teacher.row(r).1[case.k].exp()).collect();
        let own = |x: &[f32]| Tensor::from_f32("own", &[x.len()], x).unwrap();
        close(&format!("{name} log_probs"), &own(&kept), &t("log_probs"), PARITY);
        if case.k < case.head.shape()[0] {
            close(&format!("{name} rest"), &own(&rest), &t("rest"), PARITY);
        } else {
            assert!(rest.iter().all(|x| *x == 0.0), "{name}: nothing is left");
        }
        let [losses, divergences, dhidden] = case.run(&rows, 64);
        close(&format!("{name} nll"), &losses, &t("nll"), PARITY);
        close(&format!("{name} kl"), &divergences, &t("kl"), PARITY);
        close(&format!("{name} dhidden"), &dhidden, &t("dhidden"), PARITY);
    }
}

#[test]
fn a_factor_of_the_logits_is_one_of_the_head() {
    let rows = all(13);
    let mut halved = Case::of("factor", [13, 33, 101, 8], Some(30.0));
    let mut smaller = Case::of("factor", [13, 33, 101, 8], Some(30.0));
    halved.scale = 0.5;
    let half: Vec<f32> = smaller.head.to_f32_vec().unwrap().iter().map(|x| 0.5 * x).collect();
    smaller.head = Tensor::from_f32("head", &[101, 33], &half).unwrap();
    let (found, expected) = (halved.teacher(&rows, 64), smaller.teacher(&rows, 64));
    assert_eq!((found.ids, found.log_probs), (expected.ids, expected.log_probs));
    for (found, expected) in halved.run(&rows, 64).iter().zip(&smaller.run(&rows, 64)) {
        assert_eq!(found.to_f32_vec().unwrap(), expected.to_f32_vec().unwrap(), "{found:?}");
    }
}

#[test]
fn they_agree_with_the_naive_sums_over_awkward_shapes() {
    for (shape, cap) in [
        ([1, 3, 5, 2], None),
        ([50, 33, 101, 100], None),
        ([13, 64, 257, 257], None),
        ([13, 64, 257, 1], None),
        // Where a cap rounds many logits to one number others are chosen.
        ([21, 33, 1000, 64], Some(30.0)),
    ] {
        let case = Case::of("naive", shape, cap);
        let [n, c, v, k] = shape;
        let [h, b, w] = [&case.hidden, &case.base, &case.head].map(|t| t.to_f32_vec().unwrap());
        let teacher = case.teacher(&all(n), n);
        for i in 0..n {
            let dot =
                |j: usize| (0..c).map(|x| f64::from(b[i * c + x]) * f64::from(w[j * c + x])).sum::<f64>();
            let cap = |x: f64| cap.map_or(x, |cap| f64::from(cap) * (x / f64::from(cap)).tanh());
            let logits: Vec<f64> = (0..v).map(|j| cap(dot(j))).collect();
            let (ids, log_probs) = top_k::reference::top_k(&logits, k);
            let (own, own_logs) = teacher.row(i);
            assert_eq!(own, ids, "{shape:?}");
            for (got, want) in own_logs.iter().zip(&log_probs) {
                let near = (f64::from(*got) - want).abs() < 1e-5 * want.abs().max(1.0);
                assert!(near || (k == v && *got == f32::NEG_INFINITY), "{shape:?}: {got} {want}");
            }
        }
        let (weights, targets) = (case.weights.to_f32_vec().unwrap(), case.targets.to_u32_vec().unwrap());
        let (rows, how) = (all(n), ([0.5, 0.75], cap.map(f64::from)));
        let (nll, kl, dhidden) = reference::forward_backward(
            [&h, &w],
            &targets,
            &weights,
            (&rows, &teacher),
            [n, c, v],
            how.0,
            how.1,
        );
        let [losses, divergences, got] = case.run(&rows, n);
        close("nll", &losses, &nll, F32);
        close("kl", &divergences, &kl, F32);
        close("dhidden", &got, &dhidden, F32);
    }
}

/// With every token kept it is the whole divergence, and with fewer at most that.
#[test]
fn everything_kept_is_the_whole_divergence() {
    let [n, c, v] = [17, 40, 301];
    let whole = Case { mixed: Mixed { hard: 0.25, soft: 1.0 }, ..Case::of("whole", [n, c, v, v], None) };
    let rows = all(n);
    let mut out = [poisoned("l", &[n]), poisoned("k", &[n]), poisoned("d", &[n, c])];
    let [losses, divergences, dhidden] = &mut out;
    let states = (&whole.hidden, &whole.base);
    let (t, w, s) = (&whole.targets, &whole.weights, &mut whole.scratch(n));
    let (head, d) = (whole.head(), Some(dhidden));
    linear_kl_divergence(losses, divergences, d, s, states, head, t, w, &rows, whole.mixed, None).unwrap();
    let found = whole.run(&rows, n);
    for (got, want) in found.iter().zip(&out) {
        close("everything", got, &wide(want), F32);
    }
    let all_kept = wide(&found[1]);
    let mut before = vec![0.0; n];
    for k in [1, 4, 32, 300] {
        let kl = wide(&Case { k, ..Case::of("whole", [n, c, v, v], None) }.run(&rows, n)[1]);
        for i in 0..n {
            assert!(before[i] <= kl[i] + 1e-6 && kl[i] <= all_kept[i] + 1e-6, "k {k}, row {i}");
        }
        before = kl;
    }
}

/// A row has its bits alone, among others, in any chunk and with any number of threads; other rows are not touched.
#[test]
fn a_row_depends_on_nothing_but_itself() {
    let (n, c) = (41, 48);
    let case = Case::of("alone", [n, c, 3001, 20], None);
    let whole = case.run(&all(n), n);
    for threads in [1, 3] {
        let got = with_threads(threads, || case.run(&all(n), 5));
        for (got, whole) in got.iter().zip(&whole) {
            same_bits("chunks", got.to_f32_vec().unwrap(), whole.to_f32_vec().unwrap());
        }
    }
    let some: Vec<u32> = vec![0, 3, 4, 17, 40];
    let got = case.run(&some, n);
    for (part, width) in [(0, 1), (1, 1), (2, c)] {
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

/// The teacher's own distribution is the minimum: no divergence, no gradient; and what is no teacher's is refused.
#[test]
fn equal_models_do_not_diverge_and_bad_operands_are_refused() {
    let mut case = Case::of("equal", [7, 24, 301, 10], None);
    case.base = case.hidden.to_device(&Device::Cpu).unwrap();
    case.mixed = Mixed { hard: 0.0, soft: 1.0 };
    let rows = all(7);
    let teacher = case.teacher(&rows, 7);
    let [_, divergences, dhidden] = case.tried((&rows, &teacher), 7).unwrap();
    let most = |t: &Tensor| t.to_f32_vec().unwrap().iter().fold(0.0f32, |a, x| a.max(x.abs()));
    assert!(most(&divergences) < 1e-6 && most(&dhidden) < 1e-5, "{} {}", most(&divergences), most(&dhidden));
    for rows in [vec![0, 7], vec![3, 3], vec![4, 1]] {
        assert!(linear_top_k(&mut case.scratch(7), &case.base, case.head(), &rows, 3).is_err(), "{rows:?}");
    }
    for k in [0, 302] {
        assert!(linear_top_k(&mut case.scratch(7), &case.base, case.head(), &rows, k).is_err(), "{k}");
    }
    let mut odd = teacher.clone();
    odd.ids[0] = odd.ids[1];
    assert!(case.tried((&rows, &odd), 7).is_err(), "a token twice");
    assert!(case.tried((&rows[..6], &teacher), 7).is_err(), "rows of others");
    change(&mut case.base, |x| x[3] = f32::NAN);
    let error = linear_top_k(&mut case.scratch(7), &case.base, case.head(), &rows, 3).unwrap_err();
    assert!(error.to_string().contains("not finite"), "{error}");
}
