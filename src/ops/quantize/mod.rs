//! Values out of a checkpoint's blocks, and blocks out of values.
#![allow(unsafe_code)]
use anyhow::{Result, bail, ensure};
use half::bf16;

use crate::{
    device::{Arg, Geometry, Gpu, Kernel},
    ops::parallel::map_chunks,
    tensor::{DType, Tensor, refuse_overlap},
};

use super::{checks::check, launch::gpu_of};

mod blocks;
mod formats;
mod matrix;
pub mod reference;
mod unpack;

pub(crate) use blocks::HostBlocks;
pub use blocks::{BlockFormat, Blocks, RowOrder, Scratch};
pub use formats::GgmlType;
pub use matrix::Matrix;
pub(crate) use matrix::gather_on_gpu;

const THREADS: usize = 256;
/// Values that a task of the CPU arm takes: whole blocks of every format.
const CHUNK: usize = 1 << 14;

/// out = the values of `blocks`, rounded if out is Bf16; `blocks` are bytes of `kind` in a U32 tensor, of which the last word may be used in part.
pub fn dequantize(out: &mut Tensor, blocks: &Tensor, kind: GgmlType) -> Result<()> {
    let bytes = check_blocks("dequantize", out, blocks, kind)?;
    refuse_overlap(&[out], &[blocks])?;
    if let Some(gpu) = gpu_of("dequantize", &[out, blocks])? {
        return launch_dequantize(&gpu, out, blocks, kind, None);
    }
    let (values, size) = kind.block();
    let blocks = &bytemuck::cast_slice::<u32, u8>(blocks.u32()?)[..bytes];
    let (part, work) =
        (|i: usize, n: usize| &blocks[CHUNK / values * size * i..][..n / values * size], out.len());
    if out.dtype() == DType::Bf16 {
        let one = |i: usize, out: &mut [bf16]| kind.dequantize_bf16(part(i, out.len()), out);
        map_chunks(out.bf16_mut()?, CHUNK, work, one);
    } else {
        let one = |i: usize, out: &mut [f32]| kind.dequantize(part(i, out.len()), out);
        map_chunks(out.f32_mut()?, CHUNK, work, one);
    }
    Ok(())
}

/// The kernel: everything, or the rows of (tokens, columns of a row, rows of the table). The caller checked the shapes.
fn launch_dequantize(
    gpu: &Gpu,
    out: &mut Tensor,
    blocks: &Tensor,
    kind: GgmlType,
    rows: Option<(&Tensor, usize, usize)>,
) -> Result<()> {
    let [f32, bf16] = kind.kernels();
    let name = if out.dtype() == DType::Bf16 { bf16 } else { f32 };
    let (tokens, cols, vocab) = match rows {
        Some((tokens, cols, vocab)) => (tokens.arg()?, cols, vocab),
        None => (Arg::Null, 0, 0),
    };
    let values = Arg::U64(out.len() as u64);
    let args = [out.arg()?, blocks.arg()?, tokens, values, Arg::int(cols)?, Arg::int(vocab)?];
    let at = Geometry::new(out.len().div_ceil(THREADS), THREADS as u32);
    // SAFETY: the kernel's parameters; lengths were checked, tokens are checked by the kernel.
    unsafe { gpu.launch(Kernel { file: "quantize", name }, at, &args) }
}

/// blocks (bytes in a U32 tensor) = inp (F32, finite) as Q8_0, Q4_0 or Q4_1 blocks, by ggml's reference rounding.
pub fn quantize(blocks: &mut Tensor, inp: &Tensor, kind: GgmlType) -> Result<()> {
    let bytes = check_blocks("quantize", inp, blocks, kind)?;
    refuse_overlap(&[blocks], &[inp])?;
    let name = match kind {
        GgmlType::Q8_0 => "quantize_q8_0",
        GgmlType::Q4_0 => "quantize_q4_0",
        GgmlType::Q4_1 => "quantize_q4_1",
        _ => bail!("quantize: {kind:?} blocks can be read, not made; use Q8_0, Q4_0 or Q4_1"),
    };
    ensure!(inp.dtype() == DType::F32, "quantize: {inp:?} must be F32");
    if let Some(gpu) = gpu_of("quantize", &[blocks, inp])? {
        let args = [blocks.arg()?, inp.arg()?, Arg::U64(inp.len() as u64 / 32)];
        let at = Geometry::new(inp.len().div_ceil(THREADS), THREADS as u32);
        // SAFETY: the kernel's parameters; lengths were checked.
        return unsafe { gpu.launch(Kernel { file: "quantize", name }, at, &args) };
    }
    let (values, size) = kind.block();
    let blocks = &mut bytemuck::cast_slice_mut::<u32, u8>(blocks.u32_mut()?)[..bytes];
    let inp = inp.f32()?;
    map_chunks(blocks, CHUNK / values * size, inp.len(), |i, part| {
        kind.quantize(&inp[i * CHUNK..][..part.len() / size * values], part)
    });
    Ok(())
}

/// The bytes of `blocks` that hold as many values as `values`.
fn check_blocks(op: &str, values: &Tensor, blocks: &Tensor, kind: GgmlType) -> Result<usize> {
    let (n, size) = kind.block();
    let bytes = values.len() / n * size;
    check(
        values.len().is_multiple_of(n)
            && values.dtype() != DType::U32
            && blocks.dtype() == DType::U32
            && blocks.len() == bytes.div_ceil(4),
        op,
        &[values, blocks],
    )?;
    Ok(bytes)
}
