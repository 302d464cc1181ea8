//! ggml's block formats: the CPU arm's bits, which `tests/weights.rs` holds to the gguf package.
use sdrrl::{
    data::random::RowRandom,
    ops::quantize::{GgmlType, dequantize, quantize, reference},
    tensor::DType::{self, Bf16, F32, U32},
};

use super::*;

/// Words of `n` values' blocks: random bytes with finite scales.
fn blocks(kind: GgmlType, n: usize) -> Vec<u32> {
    let (values, size) = kind.block();
    let mut random = RowRandom::new(1, "blocks", &format!("{kind:?}"));
    let mut bytes: Vec<u8> = (0..n / values * size).map(|_| random.below(256) as u8).collect();
    // The upper bytes of floats.
    let floats: &[usize] = match kind {
        GgmlType::F32 => &[3],
        GgmlType::Q2K => &[81, 83],
        GgmlType::Q3K => &[109],
        GgmlType::Q6K => &[209],
        GgmlType::Q4_1 | GgmlType::Q5_1 | GgmlType::Q4K | GgmlType::Q5K => &[1, 3],
        _ => &[1],
    };
    for block in bytes.chunks_exact_mut(size) {
        for &at in floats {
            // The lowest exponent is a subnormal's; the highest would be infinity's.
            block[at] &= 0xbb;
        }
    }
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
        GgmlType::ALL.iter().for_each(|&k| out_of_blocks(device, k));
    }
    quantize_the_simple_formats(device) {
        use GgmlType::*;
        [Q4_0, Q4_1, Q8_0].iter().for_each(|&k| into_blocks(device, k));
    }
}
