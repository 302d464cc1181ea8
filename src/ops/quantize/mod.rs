//! Values out of a checkpoint's blocks, and blocks out of values.
#![allow(unsafe_code)]
use anyhow::{Result, bail, ensure};
use half::bf16;

use crate::{
    device::Gpu,
    ops::parallel::map_chunks,
    tensor::{DType, Tensor, refuse_overlap},
};

use super::{
    checks::check,
    kernels,
    launch::{Grid, gpu_of},
};

mod blocks;
mod formats;
pub(crate) mod int8;
mod matrix;
mod pack;
mod packed;
pub mod reference;
mod unpack;

pub(crate) use blocks::HostBlocks;
pub use blocks::{BlockFormat, Blocks, RowOrder, Scratch};
pub use formats::GgmlType;
pub use matrix::Matrix;
pub(crate) use matrix::gather_on_gpu;
pub use packed::PackedType;
pub use unpack::NF4;

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
    let (tokens, cols, vocab) =
        rows.map_or((None, 0, 0), |(tokens, cols, vocab)| (Some(tokens), cols, vocab));
    let (grid, values) = (Grid::covering(out.len()), out.len() as u64);
    // SAFETY: lengths were checked, tokens are checked by the kernel.
    unsafe { kind.launch()(gpu, grid, out, blocks, tokens, values, cols, vocab) }
}

/// blocks (bytes in a U32 tensor) = inp (F32, finite) as Q8_0, Q4_0 or Q4_1 blocks, by ggml's reference rounding.
pub fn quantize(blocks: &mut Tensor, inp: &Tensor, kind: GgmlType) -> Result<()> {
    let bytes = check_blocks("quantize", inp, blocks, kind)?;
    refuse_overlap(&[blocks], &[inp])?;
    let launch = match kind {
        GgmlType::Q8_0 => kernels::quantize_q8_0,
        GgmlType::Q4_0 => kernels::quantize_q4_0,
        GgmlType::Q4_1 => kernels::quantize_q4_1,
        _ => bail!("quantize: this op makes no {kind:?} blocks; use Q8_0, Q4_0 or Q4_1"),
    };
    ensure!(inp.dtype() == DType::F32, "quantize: {inp:?} must be F32");
    if let Some(gpu) = gpu_of("quantize", &[blocks, inp])? {
        let (grid, n) = (Grid::covering(inp.len()), inp.len() as u64 / 32);
        // SAFETY: lengths were checked.
        return unsafe { launch(&gpu, grid, blocks, inp, n) };
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
