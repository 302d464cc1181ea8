//! Products of blocks with activations of 8 bits: against sums in f64 of the same integers, and against the product with the activations as they are.
use sdrrl::{
    ops::{
        gemm::{Layout, gemm, linear_forward, linear_forward_many},
        quantize::{BlockFormat, Blocks, GgmlType, RowOrder},
    },
    tensor::{Activations, DType, Tensor},
};

use crate::common::{random_blocks, uniform, with_threads};

const KINDS: [GgmlType; 8] = [
    GgmlType::Q4_0,
    GgmlType::Q4_1,
    GgmlType::Q5_0,
    GgmlType::Q5_1,
    GgmlType::Q8_0,
    GgmlType::Q4K,
    GgmlType::Q5K,
    GgmlType::Q6K,
];

fn blocks(kind: GgmlType, shape: [usize; 2], order: RowOrder) -> Blocks {
    let format = BlockFormat { kind, shape, order, compute: DType::F32, activations: Activations::Int8 };
    Blocks::from_bytes("w", &random_blocks(kind, shape[0] * shape[1]), format).unwrap()
}

fn tensor(name: &str, dims: &[usize]) -> Tensor {
    Tensor::from_f32(name, dims, &uniform(name, dims.iter().product())).unwrap()
}

fn forward(x: &Tensor, w: &Blocks) -> Vec<f32> {
    let mut out = Tensor::zeros("out", DType::F32, &[x.rows_cols().0, w.shape()[0]]).unwrap();
    linear_forward(&mut out, x, w, None).unwrap();
    out.to_f32_vec().unwrap()
}

/// A row as the product reads it (d q) and half of d, value by value.
fn rounded(x: &[f32], group: usize) -> Vec<(f64, f64)> {
    let of = |x: &[f32]| -> Vec<(f64, f64)> {
        let top = x.iter().fold(0f32, |top, x| top.max(x.abs()));
        let d = f64::from(top / 127.0);
        let to_code = if top > 0.0 { 127.0 / top } else { 0.0 };
        x.iter().map(|x| (d * f64::from((x * to_code).round_ties_even()), d / 2.0)).collect()
    };
    x.chunks(group).flat_map(of).collect()
}

/// Columns: a row that is not a multiple of what the kernels take at a time, where blocks allow it.
fn columns(kind: GgmlType) -> usize {
    if kind.block().0 == 32 { 32 * 7 } else { 256 * 3 }
}

#[test]
fn products_are_the_sums_of_the_integers_and_near_those_of_the_values() {
    for kind in KINDS {
        let (m, k, group) = (70, columns(kind), kind.block().0);
        for order in [RowOrder::Straight, RowOrder::Interleaved(14)] {
            let w = blocks(kind, [m, k], order);
            let values = w.to_dense(DType::F32).unwrap().to_f32_vec().unwrap();
            for n in [1, 4, 61] {
                let x = tensor("x", &[n, k]);
                let found = forward(&x, &w);
                for (i, x) in x.to_f32_vec().unwrap().chunks(k).enumerate() {
                    let read = rounded(x, group);
                    for (j, w) in values.chunks(k).enumerate() {
                        let (mut sum, mut size, mut exact, mut bound) = (0.0, 0.0, 0.0, 0.0);
                        for ((w, x), (q, half)) in w.iter().zip(x).zip(&read) {
                            let w = f64::from(*w);
                            sum += w * q;
                            size += (w * q).abs();
                            exact += w * f64::from(*x);
                            bound += w.abs() * half;
                        }
                        let found = f64::from(found[i * m + j]);
                        assert!(
                            (found - sum).abs() <= 2e-6 * size,
                            "{kind:?} {n}: {found} for {sum} of {size}"
                        );
                        assert!(
                            (found - exact).abs() <= bound + 2e-6 * size,
                            "{kind:?}: {found} for {exact}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_depends_neither_on_the_others_nor_on_threads() {
    for kind in KINDS {
        let (m, k) = (1300, columns(kind));
        let w = blocks(kind, [m, k], RowOrder::Straight);
        let x = tensor("x", &[130, k]);
        let all = with_threads(1, || forward(&x, &w));
        assert_eq!(all, with_threads(2, || forward(&x, &w)), "{kind:?}");
        let values = x.to_f32_vec().unwrap();
        for (i, row) in all.chunks(m).enumerate().step_by(43) {
            let alone = Tensor::from_f32("x", &[1, k], &values[i * k..][..k]).unwrap();
            assert_eq!(row, forward(&alone, &w), "{kind:?}: row {i}");
        }
    }
}

#[test]
fn several_products_of_one_input_and_what_is_added_to_them() {
    let x = tensor("x", &[5, 512]);
    // Of both groups, and one that is read as it is.
    let kinds = [GgmlType::Q4K, GgmlType::Q8_0, GgmlType::Q6K];
    let mut weights: Vec<Blocks> = kinds.map(|kind| blocks(kind, [48, 512], RowOrder::Straight)).into();
    let format = BlockFormat { activations: Activations::F32, ..weights[0].format() };
    weights.push(Blocks::from_bytes("w", &random_blocks(GgmlType::Q4K, 48 * 512), format).unwrap());
    let mut outs: Vec<Tensor> = (0..4).map(|_| tensor("out", &[5, 48])).collect();
    let weights: Vec<&Blocks> = weights.iter().collect();
    linear_forward_many(&mut outs.iter_mut().collect::<Vec<_>>(), &x, &weights).unwrap();
    for (out, w) in outs.iter().zip(&weights) {
        assert_eq!(out.to_f32_vec().unwrap(), forward(&x, w), "{w:?}");
    }
    assert_ne!(outs[0].to_f32_vec().unwrap(), outs[3].to_f32_vec().unwrap());

    let bias = tensor("bias", &[48]);
    let mut out = tensor("before", &[5, 48]);
    linear_forward(&mut out, &x, weights[0], Some(&bias)).unwrap();
    let (plain, bias) = (forward(&x, weights[0]), bias.to_f32_vec().unwrap());
    let sums: Vec<f32> = plain.iter().enumerate().map(|(i, x)| x + bias[i % 48]).collect();
    assert_eq!(out.to_f32_vec().unwrap(), sums);
    let before = tensor("before", &[5, 48]).to_f32_vec().unwrap();
    let mut out = tensor("before", &[5, 48]);
    gemm(&mut out, &x, weights[0], Layout::NT, 0.5, true).unwrap();
    let sums: Vec<f32> = plain.iter().zip(&before).map(|(x, before)| before + 0.5 * x).collect();
    assert_eq!(out.to_f32_vec().unwrap(), sums);
}

#[test]
fn what_is_not_a_number_stays_in_its_row_and_nothing_is_nothing() {
    for kind in KINDS {
        let k = columns(kind);
        let w = blocks(kind, [9, k], RowOrder::Straight);
        let mut values = uniform("x", 4 * k);
        values[k + 3] = f32::NAN;
        values[3 * k - 1] = f32::NEG_INFINITY;
        values[3 * k..].fill(0.0);
        let x = Tensor::from_f32("x", &[4, k], &values).unwrap();
        let found = forward(&x, &w);
        assert!(
            found[..9].iter().all(|x| x.is_finite()) && found[9..27].iter().all(|x| x.is_nan()),
            "{kind:?}"
        );
        assert!(found[27..].iter().all(|x| *x == 0.0), "{kind:?}");
    }
}

#[test]
fn other_formats_are_refused_by_name() {
    for kind in GgmlType::ALL.iter().filter(|kind| !KINDS.contains(kind)) {
        let format = BlockFormat {
            kind: *kind,
            shape: [2, 256],
            order: RowOrder::Straight,
            compute: DType::F32,
            activations: Activations::Int8,
        };
        let error = Blocks::from_bytes("blk.0", &random_blocks(*kind, 512), format).unwrap_err().to_string();
        assert!(error.contains("blk.0") && error.contains(kind.name()) && error.contains("Q6_K"), "{error}");
    }
}
