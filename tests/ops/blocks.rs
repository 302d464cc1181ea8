//! Ops over blocks: the bits of the same op over the tensor that the blocks unpack to, whatever the format, the shape and the number of threads.
use std::sync::Arc;

use sdrrl::{
    data::map::map_path,
    device::Device,
    ops::{
        cross_entropy::{LossScratch, linear_cross_entropy_forward_backward},
        embedding::embedding_forward,
        gemm::{
            Layout, gemm, linear_add_forward, linear_backward_input, linear_forward, linear_forward_many,
            linear_forward_many_rows,
        },
        lora::{LowRank, lora_backward_input, lora_forward},
        quantize::{BlockFormat, Blocks, GgmlType, Matrix, RowOrder, Scratch},
    },
    tensor::{Activations, Arena, DType, Tensor},
};

use crate::common::{random_blocks, uniform, with_threads};

fn format(kind: GgmlType, shape: [usize; 2], compute: DType) -> BlockFormat {
    BlockFormat { kind, shape, order: RowOrder::Straight, compute, activations: Activations::F32 }
}

fn random(format: BlockFormat) -> Blocks {
    Blocks::from_bytes("w", &random_blocks(format.kind, format.shape[0] * format.shape[1]), format).unwrap()
}

fn put(device: &Device, dtype: DType, name: &str, dims: &[usize]) -> Tensor {
    let mut t = Tensor::zeros_on(device, name, dtype, dims).unwrap();
    t.write_f32(&uniform(name, dims.iter().product())).unwrap();
    t
}

/// Everything that reads a weight (m, k), for n rows, as bits.
fn everything(device: &Device, acts: DType, w: Matrix, n: usize) -> Vec<(&'static str, Vec<u32>)> {
    let (m, k) = w.rows_cols();
    let t = |name: &str, dims: &[usize]| put(device, acts, name, dims);
    let f = |name: &str, dims: &[usize]| put(device, DType::F32, name, dims);
    let (x, dy, bias, resid) = (t("x", &[n, k]), t("dy", &[n, m]), f("bias", &[m]), t("resid", &[n, m]));
    let (a, b) = (f("a", &[4, k]), f("b", &[m, 4]));
    let low = LowRank { a: &a, b: &b, scale: 0.5, scaled: false };
    let mut found = vec![];
    let mut keep = |what, out: &Tensor| {
        found.push((what, out.to_f32_vec().unwrap().into_iter().map(f32::to_bits).collect()));
    };
    let (mut y, mut u, mut dx) = (t("y", &[n, m]), t("u", &[n, 4]), t("dx", &[n, k]));
    linear_forward(&mut y, &x, w, Some(&bias)).unwrap();
    keep("linear_forward", &y);
    linear_forward_many_rows(&mut y, &x, w, None).unwrap();
    keep("linear_forward_many_rows", &y);
    linear_add_forward(&mut y, &x, w, Some(&bias), &resid).unwrap();
    keep("linear_add_forward", &y);
    let mut second = t("second", &[n, m]);
    linear_forward_many(&mut [&mut y, &mut second], &x, &[w, w]).unwrap();
    keep("linear_forward_many", &y);
    keep("linear_forward_many, second", &second);
    gemm(&mut y, &x, w, Layout::NT, 0.5, true).unwrap();
    keep("gemm NT", &y);
    linear_backward_input(&mut dx, &dy, w, false).unwrap();
    keep("linear_backward_input", &dx);
    gemm(&mut dx, &dy, w, Layout::NN, 0.5, true).unwrap();
    keep("gemm NN", &dx);
    lora_forward(&mut y, &mut u, &x, w, Some(&bias), low).unwrap();
    keep("lora_forward", &y);
    lora_backward_input(&mut dx, &dy, w, &u, &a, true).unwrap();
    keep("lora_backward_input", &dx);
    let ids: Vec<u32> = (0..n as u32).map(|i| i * 7 % m as u32).collect();
    let mut tokens = Tensor::zeros_on(device, "tokens", DType::U32, &[n]).unwrap();
    tokens.write_u32(&ids).unwrap();
    embedding_forward(&mut dx, &tokens, w).unwrap();
    keep("embedding_forward", &dx);
    let (mut scratch, _) =
        Arena::build("scratch", device, |arena| LossScratch::lay_out(arena, acts, n, m, k, 1 << 14)).unwrap();
    let mut losses = f("losses", &[n]);
    let weights = f("weights", &[n]);
    linear_cross_entropy_forward_backward(
        &mut losses,
        &mut dx,
        None,
        &mut scratch,
        &x,
        w,
        &tokens,
        &weights,
        0.25,
    )
    .unwrap();
    keep("losses", &losses);
    keep("dhidden", &dx);
    found
}

/// Compares blocks on `device` with the tensor that they unpack to.
pub fn equals_dense(device: &Device, format: BlockFormat, n: usize) {
    let host = random(format);
    let mut dense = host.to_dense(format.compute).unwrap();
    let (mut blocks, mut acts) = (host, DType::F32);
    if *device != Device::Cpu {
        let scratch = Scratch::new(device, format.compute, format.shape[0] * format.shape[1] + 40).unwrap();
        blocks = blocks.to_device(device, &scratch).unwrap();
        dense = dense.to_device(device).unwrap();
        acts = format.compute;
        let unpacked = blocks.to_dense(format.compute).unwrap();
        assert_eq!(unpacked.to_f32_vec().unwrap(), dense.to_f32_vec().unwrap());
    }
    let want = everything(device, acts, (&dense).into(), n);
    for ((what, got), (_, want)) in everything(device, acts, (&blocks).into(), n).iter().zip(&want) {
        assert!(got == want, "{what} of {n} rows differs over {format:?}");
        assert!(want.iter().any(|&x| f32::from_bits(x) != 0.0), "{what}");
    }
}

#[test]
fn every_format_has_the_bits_of_its_dense_tensor() {
    for &kind in GgmlType::EVERY {
        for compute in [DType::F32, DType::Bf16] {
            for n in [1, 13] {
                equals_dense(&Device::Cpu, format(kind, [37, 512], compute), n);
            }
        }
    }
}

#[test]
fn every_path_of_the_products_has_the_bits_of_its_dense_tensor() {
    // Rows beyond a task's, a chunk of the backward's, and a deep sum's cut; columns that fill no register.
    let cases: [(GgmlType, [usize; 2], usize); 6] = [
        (GgmlType::Q4K, [300, 1792], 70),
        (GgmlType::Q8_0, [515, 96], 130),
        (GgmlType::Iq4Nl, [9, 1600], 9),
        (GgmlType::F16, [70, 45], 61),
        (GgmlType::Bf16, [40, 17], 8),
        (GgmlType::Q6K, [64, 256], 64),
    ];
    for (kind, shape, n) in cases {
        for compute in [DType::F32, DType::Bf16] {
            for threads in [1, 3] {
                with_threads(threads, || equals_dense(&Device::Cpu, format(kind, shape, compute), n));
            }
        }
    }
}

/// A head's halves alternate in the file.
#[test]
fn interleaved_rows_come_out_in_the_models_order() {
    let straight = format(GgmlType::Q5_0, [12, 64], DType::F32);
    let bytes = random_blocks(straight.kind, 12 * 64);
    let stored = Blocks::from_bytes("w", &bytes, straight).unwrap().to_dense(DType::F32).unwrap();
    let stored = stored.to_f32_vec().unwrap();
    let interleaved = BlockFormat { order: RowOrder::Interleaved(6), ..straight };
    let blocks = Blocks::from_bytes("w", &bytes, interleaved).unwrap();
    let want: Vec<f32> = [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
        .iter()
        .flat_map(|&r| stored[r * 64..][..64].to_vec())
        .collect();
    assert_eq!(blocks.to_dense(DType::F32).unwrap().to_f32_vec().unwrap(), want);
    let emulated = Device::emulated();
    let scratch = Scratch::new(&emulated, DType::F32, 12 * 64).unwrap();
    let there = blocks.to_device(&emulated, &scratch).unwrap();
    assert_eq!(there.to_dense(DType::F32).unwrap().to_f32_vec().unwrap(), want);
    equals_dense(&Device::Cpu, interleaved, 5);
    let odd = BlockFormat { order: RowOrder::Interleaved(5), ..straight };
    let error = Blocks::from_bytes("q_proj", &bytes, odd).err().unwrap().to_string();
    assert!(error.contains("q_proj") && error.contains("heads of 5"), "{error}");
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let q4 = format(GgmlType::Q4K, [3, 256], DType::F32);
    let bytes = random_blocks(q4.kind, 3 * 256);
    let fails = |format: BlockFormat| Blocks::from_bytes("w", &bytes, format).err().unwrap().to_string();
    let error = fails(BlockFormat { shape: [3, 300], ..q4 });
    assert!(error.contains("whole blocks of 256") && error.contains("Q4_K"), "{error}");
    assert!(fails(BlockFormat { shape: [4, 256], ..q4 }).contains("expected 576"));
    assert!(fails(BlockFormat { shape: [usize::MAX / 8, 256], ..q4 }).contains("too large"));
    assert!(fails(BlockFormat { compute: DType::U32, ..q4 }).contains("integers"));

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("blocks");
    std::fs::write(&path, &bytes).unwrap();
    let map = Arc::new(map_path(&path).unwrap());
    let mapped = |offset| Blocks::mapped("w", map.clone(), offset, q4);
    assert!(mapped(0).unwrap().is_mapped());
    assert!(mapped(2).err().unwrap().to_string().contains("truncated"));
    assert!(mapped(usize::MAX).is_err());

    let w = random(q4);
    let (x, mut y) = (Tensor::zeros("x", DType::F32, &[2, 128]).unwrap(), poisoned_y());
    let error = linear_forward(&mut y, &x, &w, None).unwrap_err().to_string();
    assert!(error.contains("linear_forward") && error.contains("w Q4_K [3, 256]"), "{error}");
    let x = Tensor::zeros("x", DType::F32, &[3, 256]).unwrap();
    let error = gemm(&mut y, &x, &w, Layout::TN, 1.0, false).unwrap_err().to_string();
    assert!(error.contains("w Q4_K"), "{error}");
    let tokens = Tensor::from_u32("tokens", &[2], &[0, 3]).unwrap();
    let mut rows = Tensor::zeros("rows", DType::F32, &[2, 256]).unwrap();
    let error = embedding_forward(&mut rows, &tokens, &w).unwrap_err().to_string();
    assert!(error.contains("entry 1") && error.contains("w Q4_K [3, 256] has 3 rows"), "{error}");

    // Blocks in main memory, activations on a GPU; and a scratch that is too small or of another type.
    let emulated = Device::emulated();
    let there = |dims: &[usize]| Tensor::zeros_on(&emulated, "there", DType::F32, dims).unwrap();
    let error = linear_forward(&mut there(&[2, 3]), &there(&[2, 256]), &w, None).unwrap_err().to_string();
    assert!(error.contains("w Q4_K") && error.contains("main memory"), "{error}");
    for (dtype, room) in [(DType::F32, 767), (DType::Bf16, 768)] {
        let scratch = Scratch::new(&emulated, dtype, room).unwrap();
        assert!(w.to_device(&emulated, &scratch).is_err());
    }
}

fn poisoned_y() -> Tensor {
    super::poisoned("y", &[2, 3])
}
