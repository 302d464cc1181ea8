//! Matrix products against the naive sum, and the invariances that inference and resuming rely on.
use sdrrl::{
    device::Device,
    ops::gemm::{self, Layout},
    tensor::{DType, Tensor},
};

use crate::common::{assert_close, uniform, with_threads};

const SIZES: &[[usize; 3]] = &[
    [1, 1, 1],
    [1, 5, 16],
    [2, 33, 17],
    [7, 31, 65],
    [8, 64, 256],
    [65, 40, 300],
    [130, 97, 513],
    [3, 1, 1000],
    [1, 300, 576],
    [16, 330, 64],
    [100, 16, 70],
    [40, 90, 16],
    [19, 70, 1700],
];

fn operands([n, m, k]: [usize; 3], layout: Layout) -> (Tensor, Tensor) {
    let (a, b) = match layout {
        Layout::NT => ([n, k], [m, k]),
        Layout::NN => ([n, k], [k, m]),
        Layout::TN => ([k, n], [k, m]),
    };
    let make = |name: &str, d: [usize; 2]| Tensor::from_f32(name, &d, &uniform(name, d[0] * d[1])).unwrap();
    (make("a", a), make("b", b))
}

fn to_bf16(t: &Tensor) -> Tensor {
    let mut out = Tensor::zeros(t.name(), DType::Bf16, t.shape()).unwrap();
    out.write_f32(&t.to_f32_vec().unwrap()).unwrap();
    out
}

#[test]
fn products_agree_with_the_naive_sum() {
    for &size in SIZES {
        for layout in [Layout::NT, Layout::NN, Layout::TN] {
            for (alpha, accumulate) in [(1.0, false), (0.5, true)] {
                let (a, b) = operands(size, layout);
                for b in [b.to_device(&Device::Cpu).unwrap(), to_bf16(&b)] {
                    let [n, m, _] = size;
                    let mut out = Tensor::from_f32("out", &[n, m], &uniform("out", n * m)).unwrap();
                    let mut want = out.to_f32_vec().unwrap();
                    let b_values = b.to_f32_vec().unwrap();
                    gemm::reference::gemm(
                        &mut want,
                        &a.to_f32_vec().unwrap(),
                        &b_values,
                        size,
                        layout,
                        alpha,
                        accumulate,
                    );
                    gemm::gemm(&mut out, &a, &b, layout, alpha, accumulate).unwrap();
                    let what = format!("{layout:?} {size:?} {:?}", b.dtype());
                    assert_close(&what, out.to_f32_vec().unwrap(), &want, 1e-6);
                    if (layout, alpha) == (Layout::NT, 1.0) {
                        gemm::linear_forward_many_rows(&mut out, &a, &b, None).unwrap();
                        assert_close(&format!("many rows {what}"), out.to_f32_vec().unwrap(), &want, 1e-6);
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    // Sums of the second length are cut.
    for (m, k) in [(70, 321), (70, 2085)] {
        row_in_batches(m, k);
    }
}

fn row_in_batches(m: usize, k: usize) {
    let (a, w) = operands([300, m, k], Layout::NT);
    for w in [w.to_device(&Device::Cpu).unwrap(), to_bf16(&w)] {
        let run = |rows: usize| {
            let mut out = Tensor::zeros("out", DType::F32, &[rows, m]).unwrap();
            gemm::linear_forward(&mut out, &a.slice(0..rows).unwrap(), &w, None).unwrap();
            let mut first = out.to_f32_vec().unwrap()[..m].to_vec();
            gemm::linear_forward_many_rows(&mut out, &a.slice(0..rows).unwrap(), &w, None).unwrap();
            first.extend(&out.to_f32_vec().unwrap()[..m]);
            first
        };
        let alone = run(1);
        for rows in [2, 3, 7, 8, 9, 10, 11, 64, 65, 300] {
            assert_eq!(alone, run(rows), "{:?}, depth {k}, in a batch of {rows}", w.dtype());
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    for layout in [Layout::NT, Layout::NN, Layout::TN] {
        let (a, b) = operands([150, 200, 310], layout);
        let run = || {
            let mut out = Tensor::zeros("out", DType::F32, &[150, 200]).unwrap();
            gemm::gemm(&mut out, &a, &b, layout, 1.0, false).unwrap();
            out.to_f32_vec().unwrap()
        };
        let alone = with_threads(1, run);
        for threads in [2, 3, 5] {
            assert_eq!(alone, with_threads(threads, run), "{layout:?} on {threads} threads");
        }
    }
}

#[test]
fn layers_with_bias_and_their_gradients() {
    let (n, m, k) = (9, 13, 21);
    let (x, w) = operands([n, m, k], Layout::NT);
    let bias = Tensor::from_f32("bias", &[m], &uniform("bias", m)).unwrap();
    let mut out = Tensor::zeros("out", DType::F32, &[n, m]).unwrap();
    gemm::linear_forward(&mut out, &x, &w, Some(&bias)).unwrap();
    let mut plain = Tensor::zeros("plain", DType::F32, &[n, m]).unwrap();
    gemm::linear_forward_many(&mut [&mut plain], &x, &[&w]).unwrap();
    for (i, (a, b)) in out.to_f32_vec().unwrap().iter().zip(plain.to_f32_vec().unwrap()).enumerate() {
        assert_eq!(*a, b + bias.to_f32_vec().unwrap()[i % m]);
    }
    let mut dbias = Tensor::zeros("dbias", DType::F32, &[m]).unwrap();
    let mut dw = Tensor::zeros("dw", DType::F32, &[m, k]).unwrap();
    gemm::linear_backward_weight(&mut dw, Some(&mut dbias), &out, &x).unwrap();
    let want: Vec<f32> = (0..m).map(|j| (0..n).map(|i| out.to_f32_vec().unwrap()[i * m + j]).sum()).collect();
    assert_close("dbias", dbias.to_f32_vec().unwrap(), &want, 1e-6);
}

#[test]
fn misfits_name_the_tensors() {
    let (a, _) = operands([2, 3, 4], Layout::NT);
    let (_, w) = operands([2, 3, 5], Layout::NT);
    let mut out = Tensor::zeros("out", DType::F32, &[2, 3]).unwrap();
    let error = gemm::linear_forward(&mut out, &a, &w, None).unwrap_err().to_string();
    assert!(error.contains("a F32 [2, 4]") && error.contains("b F32 [3, 5]"), "{error}");
}

#[test]
fn a_nan_is_never_hidden() {
    let (mut a, w) = operands([4, 8, 40], Layout::NT);
    let mut values = a.to_f32_vec().unwrap();
    values[45] = f32::NAN;
    a.write_f32(&values).unwrap();
    let mut out = Tensor::zeros("out", DType::F32, &[4, 8]).unwrap();
    gemm::linear_forward(&mut out, &a, &w, None).unwrap();
    let out = out.to_f32_vec().unwrap();
    assert!(out[8..16].iter().all(|x| x.is_nan()) && out[..8].iter().all(|x| x.is_finite()));
}
