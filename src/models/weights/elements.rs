//! The elements of a checkpoint's tensors, from the types and the order in which they are stored.
use anyhow::{Result, anyhow, ensure};
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;

use crate::tensor::{DType, Tensor};

/// The elements of a strided view, row by row. The view lies inside `bytes` (checked when the file was opened).
pub(super) fn gather(bytes: &[u8], shape: &[usize], strides: &[usize], dtype: Dtype) -> Vec<u8> {
    let size = dtype.bitsize() / 8;
    let elements: usize = shape.iter().product();
    let mut out = Vec::with_capacity(elements * size);
    for i in 0..elements {
        let (mut rest, mut at) = (i, 0);
        for (&d, &stride) in shape.iter().zip(strides).rev() {
            at += rest % d * stride;
            rest /= d;
        }
        out.extend_from_slice(&bytes[at * size..][..size]);
    }
    out
}

/// 64-bit floats as 32-bit ones, rounded to nearest.
pub(super) fn narrow(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(bytes.len() / 2);
    for b in bytes.chunks_exact(8) {
        let wide = f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]);
        let x = wide as f32;
        ensure!(
            x.is_finite() || !wide.is_finite(),
            "{wide:e}, a 64-bit float, is beyond what 32 bits can hold"
        );
        out.extend(x.to_le_bytes());
    }
    Ok(out)
}

/// Why elements of a type are not read.
pub(super) fn unreadable(dtype: Dtype) -> anyhow::Error {
    match dtype {
        Dtype::F8_E4M3 | Dtype::F8_E5M2 => anyhow!(
            "element type {dtype:?}: the weights are quantised (FP8), which is not read: use the unquantised model, or a GGUF file of it"
        ),
        other => anyhow!("element type {other:?} is not supported (F64, F32, F16, BF16 are)"),
    }
}

const BLOCK: usize = 1 << 16;

/// out = bytes, element by element through f32.
pub(super) fn convert(out: &mut Tensor, from: Dtype, bytes: &[u8]) -> Result<()> {
    let widen: fn(&[u8]) -> f32 = match from {
        Dtype::F32 => |b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        Dtype::F16 => |b| f16::from_le_bytes([b[0], b[1]]).to_f32(),
        Dtype::BF16 => |b| bf16::from_le_bytes([b[0], b[1]]).to_f32(),
        other => return Err(unreadable(other)),
    };
    let size = if from == Dtype::F32 { 4 } else { 2 };
    ensure!(bytes.len() == out.len() * size, "{} bytes for {} elements", bytes.len(), out.len());
    match out.dtype() {
        DType::F32 => {
            out.f32_mut()?.par_chunks_mut(BLOCK).zip(bytes.par_chunks(BLOCK * size)).for_each(|(o, b)| {
                o.iter_mut().zip(b.chunks_exact(size)).for_each(|(o, b)| *o = widen(b));
            })
        }
        DType::Bf16 => {
            out.bf16_mut()?.par_chunks_mut(BLOCK).zip(bytes.par_chunks(BLOCK * size)).for_each(|(o, b)| {
                o.iter_mut().zip(b.chunks_exact(size)).for_each(|(o, b)| *o = bf16::from_f32(widen(b)));
            })
        }
        DType::U32 => return Err(anyhow!("weights are not integers")),
    }
    Ok(())
}
