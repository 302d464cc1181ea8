//! The launch of sm90/gemm.cu.
use anyhow::{Result, bail, ensure};

use super::{Layout, plan::aligned};
use crate::{
    device::Gpu,
    ops::{
        kernels,
        launch::{Grid, TileMap},
        rows::pad_rows,
    },
    tensor::{DType, Tensor},
};

/// One product of a launch: out (N, M) = alpha Σ a b + bias + resid [+ out].
pub(super) struct Member<'a> {
    pub out: &'a Tensor,
    /// (a, b, factor on b), in the order in which they are added up.
    pub terms: Vec<(&'a Tensor, &'a Tensor, f32)>,
    pub bias: Option<&'a Tensor>,
    pub resid: Option<&'a Tensor>,
    pub accumulate: bool,
}

/// A launch function of sm90/gemm.cu: all of its kernels have the same parameters.
type Launch = unsafe fn(
    &Gpu,
    Grid,
    &[TileMap],
    &[u32],
    Option<&Tensor>,
    Option<&Tensor>,
    Option<&Tensor>,
    Option<&Tensor>,
    Option<&mut Tensor>,
    usize,
    f32,
) -> Result<()>;

/// scale t in bf16, in rows of 16-byte multiples: t itself if it is so already.
fn padded(t: &Tensor, scale: f32) -> Result<Tensor> {
    if t.dtype() == DType::Bf16 && aligned(t) && scale == 1.0 {
        return Ok(t.alias());
    }
    let (rows, cols) = t.rows_cols();
    let mut out = Tensor::scratch_on(&t.device(), "tail", DType::Bf16, &[rows, cols.next_multiple_of(8)])?;
    pad_rows(&mut out, t, scale)?;
    Ok(out)
}

fn kernel(layout: Layout, tile: usize) -> Result<Launch> {
    Ok(match (layout, tile) {
        (Layout::NT, 64) => kernels::gemm_nt_64_wgmma,
        (Layout::NN, 64) => kernels::gemm_nn_64_wgmma,
        (Layout::NT, 128) => kernels::gemm_nt_128_wgmma,
        (Layout::NN, 128) => kernels::gemm_nn_128_wgmma,
        (Layout::NT, 256) => kernels::gemm_nt_256_wgmma,
        (Layout::NN, 256) => kernels::gemm_nn_256_wgmma,
        _ => bail!("gemm: the Hopper kernel has no {layout:?} layout in tiles of {tile} columns"),
    })
}

/// True if one launch takes products of these numbers of terms.
pub(super) fn fits(terms: impl ExactSizeIterator<Item = usize>) -> bool {
    (1..=kernels::wgmma_products()).contains(&terms.len()) && terms.sum::<usize>() <= kernels::wgmma_terms()
}

/// All of `members`, of as many rows, with tiles of 128 x `tile`; [`super::plan::tma_carries`] holds for each term, [`fits`] for their number, and an f32 out is
/// a single one.
pub(super) fn products(gpu: &Gpu, members: &[Member], layout: Layout, alpha: f32, tile: usize) -> Result<()> {
    let launch = kernel(layout, tile)?;
    let (most, terms) = (kernels::wgmma_products(), kernels::wgmma_terms());
    ensure!(
        fits(members.iter().map(|m| m.terms.len())),
        "gemm: more than one launch of the Hopper kernel takes"
    );
    let (depth, side) = (kernels::wgmma_depth(), [kernels::wgmma_box(); 2]);
    let a_tile = [kernels::wgmma_rows(), depth];
    let b_tile = if layout == Layout::NT { [tile, depth] } else { side };
    let map = |t: &Tensor, [rows, cols]: [usize; 2]| TileMap::new(gpu, t, [rows as u32, cols as u32]);
    // What was padded lives until the launch has its place in the stream.
    let (mut maps, mut held) = (vec![TileMap::none(); 2 * (terms + most)], vec![]);
    let mut plan = Plan {
        columns: vec![0; most],
        first: vec![0; most + 1],
        addend: vec![0; most],
        depth: vec![0; terms],
    };
    let (mut rows, mut next, mut wide, mut strips) = (0, 0, None, 0);
    for (p, member) in members.iter().enumerate() {
        let (n, m) = member.out.rows_cols();
        (rows, strips, plan.columns[p]) = (n, strips + m.div_ceil(tile), m as u32);
        for (a, b, scale) in &member.terms {
            // The padding is zeros in both, and products of it would cost.
            plan.depth[next] = a.rows_cols().1 as u32;
            let pair = [padded(a, 1.0)?, padded(b, *scale)?];
            (maps[2 * next], maps[2 * next + 1]) = (map(&pair[0], a_tile)?, map(&pair[1], b_tile)?);
            held.push(pair);
            next += 1;
        }
        plan.first[p + 1..].fill(next as u32);
        let narrow = member.resid.filter(|r| r.dtype() == DType::Bf16);
        plan.addend[p] = u32::from(member.accumulate || narrow.is_some());
        let at = 2 * terms + 2 * p;
        if member.out.dtype() == DType::F32 {
            wide = Some(member.out.alias());
            continue;
        }
        maps[at] = map(member.out, side)?;
        maps[at + 1] = narrow.map_or(Ok(maps[at].clone()), |r| map(r, side))?;
    }
    let alone = members.len() == 1;
    let resid = members.iter().find_map(|m| m.resid.filter(|r| r.dtype() == DType::F32));
    ensure!(alone || (resid.is_none() && wide.is_none()), "gemm: f32 beside a product is for a single one");
    // One block a multiprocessor: shared memory holds no second one.
    let tiles = rows.div_ceil(kernels::wgmma_rows()) * strips;
    let grid = Grid::new(tiles.min(gpu.multiprocessors()));
    let bias = |p: usize| members.get(p).and_then(|m| m.bias);
    let words = plan.words(members.len());
    // SAFETY: the caller checked shapes and alignment, and scratch is freed in the stream's order.
    unsafe { launch(gpu, grid, &maps, &words, bias(0), bias(1), bias(2), resid, wide.as_mut(), rows, alpha) }
}

/// sm90/gemm.cu's `Plan`.
struct Plan {
    columns: Vec<u32>,
    first: Vec<u32>,
    addend: Vec<u32>,
    depth: Vec<u32>,
}

impl Plan {
    fn words(self, products: usize) -> Vec<u32> {
        [vec![products as u32], self.columns, self.first, self.addend, self.depth].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    #[test]
    fn a_tail_is_padded_to_whole_lines() {
        let mut t = Tensor::zeros_on(&Device::emulated(), "t", DType::F32, &[3, 5]).unwrap();
        t.write_f32(&(0..15).map(|i| i as f32).collect::<Vec<_>>()).unwrap();
        let p = padded(&t, 2.0).unwrap();
        assert_eq!((p.dtype(), p.rows_cols()), (DType::Bf16, (3, 8)));
        let values = p.to_f32_vec().unwrap();
        assert_eq!(values[8..16], [10.0, 12.0, 14.0, 16.0, 18.0, 0.0, 0.0, 0.0]);
        let same = padded(&p, 1.0).unwrap();
        assert_eq!(same.address().unwrap(), p.address().unwrap());
    }

    #[test]
    fn the_plan_has_as_many_words_as_the_kernels() {
        let (most, terms) = (kernels::wgmma_products(), kernels::wgmma_terms());
        let plan = Plan {
            columns: vec![0; most],
            first: vec![0; most + 1],
            addend: vec![0; most],
            depth: vec![0; terms],
        };
        assert_eq!(plan.words(1).len(), kernels::wgmma_plan_words());
        assert!(fits([2; 3].into_iter()) && fits([6].into_iter()));
        assert!(!fits([7].into_iter()) && !fits([1; 4].into_iter()) && !fits([0; 0].into_iter()));
    }
}
