//! ggml's block formats: the CPU arm's bits, which `tests/weights.rs` holds to the gguf package.
use sdrrl::{
    ops::{
        embedding::embedding_forward,
        quantize::{BlockFormat, Blocks, GgmlType, RowOrder, Scratch, dequantize, quantize, reference},
    },
    tensor::{
        Activations,
        DType::{self, Bf16, F32, U32},
    },
};

use super::*;
use crate::{common::random_blocks, ops::blocks::equals_dense};

/// Words of `n` values' blocks.
fn blocks(kind: GgmlType, n: usize) -> Vec<u32> {
    let mut bytes = random_blocks(kind, n);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn bits(t: &Tensor) -> Vec<u32> {
    t.to_f32_vec().unwrap().into_iter().map(f32::to_bits).collect()
}

fn out_of_blocks(device: &Device, kind: GgmlType) {
    // More than one block of threads, and not a multiple of them.
    let n = kind.block().0.max(2) * 11 + if kind.block().0 == 1 { 263 } else { 0 };
    let words = blocks(kind, n);
    let run = |device: &Device, dtype: DType| {
        let mut values = out(device, dtype, &[n]);
        dequantize(&mut values, &put_u32(device, &words), kind).unwrap();
        bits(&values)
    };
    for dtype in [F32, Bf16] {
        let want = run(&Device::Cpu, dtype);
        assert!(want.iter().all(|&x| f32::from_bits(x).is_finite()) && want.iter().any(|&x| x != 0));
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let exact = reference::dequantize(kind, &bytes[..n / kind.block().0 * kind.block().1]);
        let top = exact.iter().fold(0.0f64, |a, x| a.max(x.abs()));
        for (i, (got, exact)) in want.iter().zip(exact).enumerate() {
            let error = (f32::from_bits(*got) as f64 - exact).abs();
            assert!(
                error <= tolerance(dtype) * (exact.abs() + 1e-2 * top),
                "{kind:?} {dtype:?} {i}: {error:e}"
            );
        }
        assert_eq!(run(device, dtype), want, "{kind:?} {dtype:?}");
    }
}

fn into_blocks(device: &Device, kind: GgmlType) {
    let n = 32 * 11;
    let mut values = random("quantize", F32, n).0;
    values[32..64].fill(0.0);
    values[64..96].iter_mut().for_each(|x| *x = (*x * 4.0).round());
    values[96..128].iter_mut().for_each(|x| *x *= 1e-6);
    values[128..160].iter_mut().enumerate().for_each(|(i, x)| *x = i as f32 - 16.0);
    let words = (n / 32 * kind.block().1).div_ceil(4);
    let run = |device: &Device| {
        let mut blocks = Tensor::zeros_on(device, "blocks", U32, &[words]).unwrap();
        quantize(&mut blocks, &put(device, F32, &[n], &values), kind).unwrap();
        blocks.to_u32_vec().unwrap()
    };
    assert_eq!(run(device), run(&Device::Cpu), "{kind:?}");
}

cases! {
    dequantize_every_format(device) {
        GgmlType::EVERY.iter().for_each(|&k| out_of_blocks(device, k));
    }
    quantize_the_simple_formats(device) {
        use GgmlType::*;
        [Q4_0, Q4_1, Q8_0].iter().for_each(|&k| into_blocks(device, k));
    }
    products_over_blocks(device) {
        for (kind, compute, shape, n) in [
            (GgmlType::Q4K, Bf16, [70, 256], 130),
            (GgmlType::Q8_0, Bf16, [33, 96], 5),
            (GgmlType::Q6K, F32, [19, 256], 18),
            (GgmlType::Iq4Nl, F32, [7, 64], 3),
            (GgmlType::Nf4, Bf16, [40, 128], 9),
        ] {
            equals_dense(device, BlockFormat { kind, shape, order: RowOrder::Straight, compute, activations: Activations::F32 }, n);
        }
    }
    embedding_of_a_token_that_is_not_there(device) {
        for compute in [F32, Bf16] {
            let format = BlockFormat { kind: GgmlType::Q5_1, shape: [3, 96], order: RowOrder::Straight, compute, activations: Activations::F32 };
            let blocks = Blocks::from_bytes("w", &random_blocks(format.kind, 3 * 96), format).unwrap();
            let blocks = blocks.to_device(device, &Scratch::new(device, compute, 3 * 96).unwrap()).unwrap();
            let mut rows = out(device, compute, &[3, 96]);
            embedding_forward(&mut rows, &put_u32(device, &[2, 3, 0]), &blocks).unwrap();
            let rows = rows.to_f32_vec().unwrap();
            assert!(rows[96..192].iter().all(|x| x.is_nan()));
            assert!(rows[..96].iter().chain(&rows[192..]).all(|x| x.is_finite()));
        }
    }
}
