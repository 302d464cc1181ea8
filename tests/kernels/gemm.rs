//! Matrix products, every layout and rung.
use sdrrl::{
    ops::{
        gemm::{
            Layout, gemm,
            gpu::product_on,
            linear_add_forward, linear_backward_weight, linear_forward,
            plan::{Extras, Rung},
        },
        lora::{LowRank, lora_forward},
    },
    tensor::DType::{self, Bf16, F32},
};

use super::*;

/// a b in f64; `dims` [rows, columns, depth].
fn product(layout: Layout, a: &[f64], b: &[f64], [n, m, k]: [usize; 3]) -> Vec<f64> {
    let mut out = vec![0.0; n * m];
    for i in 0..n {
        for j in 0..m {
            out[i * m + j] = (0..k)
                .map(|p| {
                    let x = if layout == Layout::TN { a[p * n + i] } else { a[i * k + p] };
                    x * if layout == Layout::NT { b[j * k + p] } else { b[p * m + j] }
                })
                .sum();
        }
    }
    out
}

fn dims(layout: Layout, [n, m, k]: [usize; 3]) -> ([usize; 2], [usize; 2]) {
    match layout {
        Layout::NT => ([n, k], [m, k]),
        Layout::NN => ([n, k], [k, m]),
        Layout::TN => ([k, n], [k, m]),
    }
}

/// One product by each (type of b, type of out, alpha, accumulate).
fn check(device: &Device, a_type: DType, layout: Layout, shape: [usize; 3], rung: Option<Rung>) {
    let [n, m, k] = shape;
    let (a_dims, b_dims) = dims(layout, shape);
    let (a, wa) = random("a", a_type, n * k);
    let ta = put(device, a_type, &a_dims, &a);
    for (b_type, out_type, alpha, accumulate) in
        [(a_type, a_type, 1.0, false), (Bf16, F32, 0.5, true), (F32, a_type, 1.0, true)]
    {
        let hopper = matches!(rung, Some(Rung::Wgmma64 | Rung::Wgmma128 | Rung::Wgmma));
        if hopper && (out_type != Bf16 || b_type != Bf16) {
            continue;
        }
        let (b, wb) = random("b", b_type, m * k);
        // The tensor cores round an f32 operand; the reference rounds it too.
        let wb = if a_type == Bf16 { b.iter().map(|x| rounded(*x, Bf16) as f64).collect() } else { wb };
        let (start, wide) = random("start", out_type, n * m);
        let mut y = put(device, out_type, &[n, m], &start);
        let tb = put(device, b_type, &b_dims, &b);
        match rung {
            Some(rung) => {
                sdrrl::ops::gemm::gpu::gemm_on(&mut y, &ta, &tb, layout, alpha, accumulate, rung).unwrap()
            }
            None => gemm(&mut y, &ta, &tb, layout, alpha, accumulate).unwrap(),
        }
        let mut want = product(layout, &wa, &wb, shape);
        want.iter_mut()
            .zip(&wide)
            .for_each(|(w, s)| *w = *w * alpha as f64 + if accumulate { *s } else { 0.0 });
        assert_within(
            &format!("{layout:?} {shape:?} {b_type:?} {out_type:?}"),
            &y,
            &want,
            tolerance(out_type).max(1e-5),
        );
    }
}

/// Few rows, of any number, width and depth. A row has the bits that it has alone and in larger tiles.
fn few_rows(device: &Device, dtype: DType, n: usize, m: usize, k: usize) {
    check(device, dtype, Layout::NT, [n, m, k], None);
    let (a, b) = (random("a", dtype, n * k).0, put(device, dtype, &[m, k], &random("b", dtype, m * k).0));
    let run = |rows: &[f32], rung: Rung| {
        let mut y = out(device, F32, &[rows.len() / k, m]);
        let a = put(device, dtype, &[rows.len() / k, k], rows);
        sdrrl::ops::gemm::gpu::gemm_on(&mut y, &a, &b, Layout::NT, 1.0, false, rung).unwrap();
        y.to_f32_vec().unwrap()
    };
    let all = run(&a, Rung::FewRows);
    let larger = if dtype == Bf16 { Rung::Mma64 } else { Rung::Fma };
    assert_eq!(all, run(&a, larger), "{n} rows: the larger tiles' bits");
    let last = (n - 1) * m;
    assert_eq!(all[last..], run(&a[(n - 1) * k..], Rung::FewRows), "the last of {n} rows: its bits alone");
}

/// A low-rank tail (adapters in f32), a bias and a residual addition by the kernels for few rows.
fn few_rows_with_adapter(device: &Device) {
    let ([n, m, k], r) = ([3, 40, 136], 5);
    let ((x, wx), (w, ww), (bias, wbias)) =
        (random("x", Bf16, n * k), random("w", Bf16, m * k), random("bias", F32, m));
    let ((low_a, wlow_a), (low_b, wlow_b)) = (random("low_a", Bf16, r * k), random("low_b", Bf16, m * r));
    let (tx, tw, tbias) =
        (put(device, Bf16, &[n, k], &x), put(device, Bf16, &[m, k], &w), put(device, F32, &[m], &bias));
    let (ta, tb) = (put(device, F32, &[r, k], &low_a), put(device, F32, &[m, r], &low_b));
    let (mut y, mut u) = (out(device, Bf16, &[n, m]), out(device, Bf16, &[n, r]));
    lora_forward(
        &mut y,
        &mut u,
        &tx,
        &tw,
        Some(&tbias),
        LowRank { a: &ta, b: &tb, scale: 0.5, scaled: false },
    )
    .unwrap();
    assert_near("u", &u, &product(Layout::NT, &wx, &wlow_a, [n, r, k]));
    let u: Vec<f64> = u.to_f32_vec().unwrap().into_iter().map(f64::from).collect();
    let tail = product(Layout::NT, &u, &wlow_b, [n, m, r]);
    let mut want = product(Layout::NT, &wx, &ww, [n, m, k]);
    want.iter_mut().zip(tail).enumerate().for_each(|(i, (y, t))| *y += 0.5 * t + wbias[i % m]);
    assert_near("out", &y, &want);
}

const LAYOUTS: [Layout; 3] = [Layout::NT, Layout::NN, Layout::TN];

/// The type of b, and what is added to a product; rank 0 is no tail.
#[derive(Clone, Copy, Debug)]
struct Added {
    b: DType,
    rank: usize,
    scale: f32,
    alpha: f32,
    bias: bool,
    resid: Option<DType>,
    accumulate: bool,
}
const NOTHING: Added =
    Added { b: Bf16, rank: 0, scale: 1.0, alpha: 1.0, bias: false, resid: None, accumulate: false };

/// A bf16 product with an f32 adapter behind it, held to what one rounding of the result allows: 2^-9, so that a wrong column shows.
fn full(device: &Device, layout: Layout, shape: [usize; 3], rung: Rung, x: Added) {
    let [n, m, k] = shape;
    let (a_dims, b_dims) = dims(layout, shape);
    let ((a, wa), (b, _)) = (random("a", Bf16, n * k), random("b", x.b, m * k));
    let (ta, tb) = (put(device, Bf16, &a_dims, &a), put(device, x.b, &b_dims, &b));
    let wb: Vec<f64> = b.iter().map(|x| rounded(*x, Bf16) as f64).collect();
    let mut want = product(layout, &wa, &wb, shape);
    let rank = x.rank.max(1);
    let (a2_dims, b2_dims) = dims(layout, [n, m, rank]);
    let ((a2, wa2), (b2, _)) = (random("a2", Bf16, n * rank), random("b2", F32, m * rank));
    let (ta2, tb2) = (put(device, Bf16, &a2_dims, &a2), put(device, F32, &b2_dims, &b2));
    if x.rank > 0 {
        let wb2: Vec<f64> = b2.iter().map(|x| rounded(*x, Bf16) as f64).collect();
        let tail = product(layout, &wa2, &wb2, [n, m, rank]);
        want.iter_mut().zip(tail).for_each(|(w, t)| *w += t * x.scale as f64);
    }
    let (bias, wbias) = random("bias", F32, m);
    let resid_type = x.resid.unwrap_or(F32);
    let (resid, wresid) = random("resid", resid_type, n * m);
    let (start, wstart) = random("start", Bf16, n * m);
    for (i, w) in want.iter_mut().enumerate() {
        *w *= x.alpha as f64;
        *w += if x.bias { wbias[i % m] } else { 0.0 };
        *w += if x.resid.is_some() { wresid[i] } else { 0.0 };
        *w += if x.accumulate { wstart[i] } else { 0.0 };
    }
    let (tbias, tresid) = (put(device, F32, &[m], &bias), put(device, resid_type, &[n, m], &resid));
    let mut y = if x.accumulate { put(device, Bf16, &[n, m], &start) } else { out(device, Bf16, &[n, m]) };
    let extras = Extras {
        alpha: x.alpha,
        accumulate: x.accumulate,
        bias: x.bias.then_some(&tbias),
        resid: x.resid.map(|_| &tresid),
        tail: (x.rank > 0).then_some((&ta2, &tb2, x.scale)),
    };
    product_on(&mut y, &ta, &tb, layout, extras, rung).unwrap();
    assert_within(&format!("{layout:?} {shape:?} {rung:?} {x:?} product"), &y, &want, 3e-3);
}

const HOPPER: [Rung; 2] = [Rung::Wgmma128, Rung::Wgmma];

fn hopper(device: &Device, layout: Layout) {
    // Two blocks of several tiles each: the rings go round more than twice; ragged in all three.
    HOPPER.iter().for_each(|&r| check(device, Bf16, layout, [200, 328, 584], Some(r)));
}

/// Ranks of one, several and more than a stage's products, with and without a stop between tail and product.
fn hopper_tail(device: &Device, layout: Layout) {
    for (rank, scale) in [(5, 2.0), (8, 0.3), (16, 1.0), (40, 0.3), (64, 2.0), (72, 0.3)] {
        for rung in HOPPER {
            full(device, layout, [136, 264, 72], rung, Added { rank, scale, ..NOTHING });
        }
    }
}

/// u and du of a LoRA, whose f32 factor is rounded on the way; five tiles for two blocks.
fn hopper_few_columns(device: &Device) {
    for layout in [Layout::NT, Layout::NN] {
        for shape in [[584, 8, 520], [584, 40, 328], [136, 64, 1096]] {
            full(device, layout, shape, Rung::Wgmma64, Added { b: F32, alpha: 2.0, ..NOTHING });
            full(device, layout, shape, Rung::Wgmma64, NOTHING);
        }
        let with = Added { bias: true, resid: Some(F32), alpha: 0.5, rank: 24, ..NOTHING };
        full(device, layout, [136, 40, 136], Rung::Wgmma64, with);
    }
}

fn hopper_epilogue(device: &Device, layout: Layout) {
    // The last: two addends in bf16, which mma.sync does instead.
    let addends =
        [(None, true), (Some(Bf16), false), (Some(F32), false), (Some(F32), true), (Some(Bf16), true)];
    for rung in HOPPER {
        full(device, layout, [136, 264, 200], rung, Added { bias: true, alpha: 0.5, ..NOTHING });
        for (resid, accumulate) in addends {
            let with = Added { resid, accumulate, ..NOTHING };
            full(device, layout, [136, 264, 72], rung, with);
            let with = Added { bias: true, alpha: 0.5, rank: 8, scale: 2.0, ..with };
            full(device, layout, [136, 392, 328], rung, with);
        }
    }
}

fn linear(device: &Device, dtype: DType) {
    let [n, m, k] = [9, 50, 72];
    let ((x, wx), (w, ww), (b, wb)) =
        (random("x", dtype, n * k), random("w", dtype, m * k), random("bias", F32, m));
    let (tx, tw, tb) =
        (put(device, dtype, &[n, k], &x), put(device, dtype, &[m, k], &w), put(device, F32, &[m], &b));
    let mut y = out(device, dtype, &[n, m]);
    linear_forward(&mut y, &tx, &tw, Some(&tb)).unwrap();
    let mut want = product(Layout::NT, &wx, &ww, [n, m, k]);
    want.iter_mut().enumerate().for_each(|(i, y)| *y += wb[i % m]);
    assert_near("out", &y, &want);
    let (r, wr) = random("resid", dtype, n * m);
    want.iter_mut().zip(&wr).for_each(|(y, r)| *y += r);
    linear_add_forward(&mut y, &tx, &tw, Some(&tb), &put(device, dtype, &[n, m], &r)).unwrap();
    assert_near("out with residual", &y, &want);
    let ((d, wd), (dw, mut want)) = (random("d", dtype, n * m), random("dw", F32, m * k));
    let (mut dweight, mut dbias) = (put(device, F32, &[m, k], &dw), put(device, F32, &[m], &b));
    linear_backward_weight(&mut dweight, Some(&mut dbias), &put(device, dtype, &[n, m], &d), &tx).unwrap();
    want.iter_mut().zip(product(Layout::TN, &wd, &wx, [m, k, n])).for_each(|(a, b)| *a += b);
    assert_near("dweight", &dweight, &want);
    let sums: Vec<f64> = (0..m).map(|j| wb[j] + (0..n).map(|i| wd[i * m + j]).sum::<f64>()).collect();
    assert_near("dbias", &dbias, &sums);
}

cases! {
    gemm_f32_small_and_odd(device) { LAYOUTS.iter().for_each(|&l| check(device, F32, l, [5, 7, 3], None)); }
    gemm_f32_beyond_a_tile(device) { LAYOUTS.iter().for_each(|&l| check(device, F32, l, [67, 70, 53], None)); }
    gemm_bf16_small_and_odd(device) { LAYOUTS.iter().for_each(|&l| check(device, Bf16, l, [5, 7, 3], None)); }
    gemm_bf16_rows_of_16_bytes(device) { LAYOUTS.iter().for_each(|&l| check(device, Bf16, l, [72, 88, 232], Some(Rung::Mma64))); }
    gemm_bf16_odd_rows(device) { LAYOUTS.iter().for_each(|&l| check(device, Bf16, l, [67, 71, 197], Some(Rung::Mma64))); }
    gemm_bf16_large_tiles(device) { LAYOUTS.iter().for_each(|&l| check(device, Bf16, l, [136, 144, 232], Some(Rung::Mma128))); }
    gemm_few_rows_1_of_16_bytes(device) { few_rows(device, Bf16, 1, 300, 1800) }
    gemm_few_rows_1_narrow(device) { few_rows(device, Bf16, 1, 1, 3240) }
    gemm_few_rows_3_odd(device) { few_rows(device, Bf16, 3, 33, 1797) }
    gemm_few_rows_8_narrow_odd(device) { few_rows(device, Bf16, 8, 20, 3243) }
    gemm_few_rows_16(device) { few_rows(device, Bf16, 16, 33, 1672) }
    gemm_few_rows_17(device) { few_rows(device, Bf16, 17, 43, 1160) }
    gemm_few_rows_50_odd(device) { few_rows(device, Bf16, 50, 33, 1157) }
    gemm_few_rows_f32_1(device) { few_rows(device, F32, 1, 33, 840) }
    gemm_few_rows_f32_16_odd(device) { few_rows(device, F32, 16, 35, 843) }
    gemm_few_rows_with_adapter(device) { few_rows_with_adapter(device) }
    gemm_bf16_sums_in_parts(device) {
        // Parts of 288 rows, the last of 161; of 352 and 348.
        check(device, Bf16, Layout::TN, [8, 72, 1025], Some(Rung::Mma64));
        check(device, Bf16, Layout::TN, [71, 5, 700], Some(Rung::Mma64));
    }
    gemm_bf16_hopper_nt(device) { hopper(device, Layout::NT) }
    gemm_bf16_hopper_nn(device) { hopper(device, Layout::NN) }
    gemm_bf16_hopper_tail_nt(device) { hopper_tail(device, Layout::NT) }
    gemm_bf16_hopper_tail_nn(device) { hopper_tail(device, Layout::NN) }
    gemm_bf16_hopper_epilogue_nt(device) { hopper_epilogue(device, Layout::NT) }
    gemm_bf16_hopper_epilogue_nn(device) { hopper_epilogue(device, Layout::NN) }
    gemm_bf16_hopper_few_columns(device) { hopper_few_columns(device) }
    gemm_bf16_hopper_groups(device) {
        // 18 rows of tiles: a group of 16 and one of 2.
        HOPPER.iter().for_each(|&r| full(device, Layout::NT, [2184, 264, 64], r, NOTHING));
    }
    linear_f32(device) { linear(device, F32) }
    linear_bf16(device) { linear(device, Bf16) }
}

#[test]
fn tensor_products_have_no_bank_conflicts() {
    let run = |device: &Device| {
        for (rung, n) in [(Rung::Mma64, 64), (Rung::Mma128, 128)] {
            LAYOUTS.iter().for_each(|&l| check(device, Bf16, l, [n, n, 64], Some(rung)));
        }
        for [n, m] in [[16, 64], [16, 8], [64, 64]] {
            check(device, Bf16, Layout::NT, [n, m, 256], Some(Rung::FewRows));
        }
        let added = Added { accumulate: true, ..NOTHING };
        HOPPER.iter().for_each(|&r| full(device, Layout::NT, [128, 256, 64], r, added));
    };
    if let Some(stats) = profile(run) {
        assert!(stats.shared_requests > 0);
        assert_eq!(stats.bank_conflicts(), 0, "{stats:?}");
    }
}
