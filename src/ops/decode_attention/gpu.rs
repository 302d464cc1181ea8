//! The launch of decode_attention.cu.
use anyhow::{Result, ensure};

use crate::{
    device::Gpu,
    ops::{
        attention::AttentionShape,
        kernels,
        launch::{Grid, gpu_of},
    },
    tensor::{DType, Tensor},
};

/// Query heads of a block where several share a key head: the 4 in the names of such kernels.
const SHARING: usize = 4;

/// Query heads that a block takes, and blocks for all that share a key head.
fn heads_of_block(shape: AttentionShape) -> (usize, usize) {
    let sharing = shape.heads / shape.kv_heads;
    if sharing == 1 { (1, 1) } else { (SHARING, sharing.div_ceil(SHARING)) }
}

/// Blocks that share a row's warps: enough for two on every multiprocessor, if there are as many warps. The result's bits do not depend on it.
pub fn split(rows: usize, shape: AttentionShape, multiprocessors: usize) -> usize {
    let blocks = rows * shape.kv_heads * heads_of_block(shape).1;
    (2 * multiprocessors).div_ceil(blocks.max(1)).next_power_of_two().min(kernels::decode_attention_warps())
}

/// [`super::decode_attention_forward`] on a GPU with 1, 2, 4, 8 or 16 blocks for a row and key head: for tests.
pub fn decode_attention_split(
    out: &mut Tensor,
    inputs: [&Tensor; 5],
    shape: AttentionShape,
    split: usize,
) -> Result<()> {
    let [q, k, v, starts, lengths] = inputs;
    super::check_shapes(out, inputs, shape)?;
    let gpu = gpu_of("decode_attention_forward", &[out, q, k, v, starts, lengths])?;
    let Some(gpu) = gpu else { anyhow::bail!("decode_attention_forward: {q:?} is not on a GPU") };
    let warps = kernels::decode_attention_warps();
    ensure!(split.is_power_of_two() && split <= warps, "{split} blocks cannot share {warps} warps");
    launch(&gpu, out, inputs, shape, split)
}

/// q, k_cache, v_cache, starts, lengths, of shapes that were checked.
pub(super) fn launch(
    gpu: &Gpu,
    out: &mut Tensor,
    [q, k, v, starts, lengths]: [&Tensor; 5],
    shape: AttentionShape,
    split: usize,
) -> Result<()> {
    let hs = shape.head_size;
    ensure!(hs <= 256, "decode_attention_forward: heads of {hs} elements; the GPU kernel takes up to 256");
    let (rows, slots, warps) = (q.rows_cols().0, k.rows_cols().0, kernels::decode_attention_warps());
    let (of_block, tiles) = heads_of_block(shape);
    let launch = match (hs, of_block) {
        (..=64, SHARING) => kernels::decode_attention_64_4,
        (..=64, _) => kernels::decode_attention_64_1,
        (..=128, SHARING) => kernels::decode_attention_128_4,
        (..=128, _) => kernels::decode_attention_128_1,
        (_, SHARING) => kernels::decode_attention_256_4,
        (_, _) => kernels::decode_attention_256_1,
    };
    // For each row, head and warp: the sums of a head's columns, the maximum, the sum of the weights.
    let part = hs.next_multiple_of(8) + 4;
    let mut parts = match split {
        1 => None,
        _ => {
            let dims = [rows * shape.heads, warps, part];
            Some(Tensor::scratch_on(&q.device(), "decode_attention_parts", DType::F32, &dims)?)
        }
    };
    let grid = Grid::xyz([rows * split, shape.kv_heads * tiles, 1]).threads((32 * warps / split) as u32);
    let (heads, kv_heads, scale) = (shape.heads, shape.kv_heads, shape.scale);
    let (window, cap) = (shape.window.unwrap_or(0).min(i32::MAX as usize), shape.softcap.unwrap_or(0.0));
    let sums = parts.as_mut();
    // SAFETY: shapes were checked, slots are checked by the kernel.
    unsafe {
        launch(
            gpu, grid, out, sums, q, k, v, starts, lengths, slots, heads, kv_heads, hs, part, scale, window,
            cap,
        )?;
    }
    let Some(parts) = parts else { return Ok(()) };
    // SAFETY: `parts` has a part for every head of a row and warp.
    unsafe { kernels::decode_attention_join(gpu, Grid::new(rows * heads), out, &parts, hs, part) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_split_where_rows_do_not_fill_the_card() {
        let shape = |heads, kv_heads| AttentionShape {
            heads,
            kv_heads,
            head_size: 128,
            scale: 1.0,
            window: None,
            softcap: None,
        };
        for (rows, kv_heads, want) in
            [(1, 32, 16), (4, 32, 4), (8, 32, 2), (64, 32, 1), (1, 8, 16), (8, 8, 8), (64, 8, 1)]
        {
            assert_eq!(split(rows, shape(32, kv_heads), 132), want, "{rows} rows, {kv_heads} key heads");
        }
        assert_eq!(heads_of_block(shape(36, 4)), (4, 3));
    }
}
